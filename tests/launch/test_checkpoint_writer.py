"""Checkpoints that are written while training goes on hold what the weights were when it was asked for."""

import errno
import hashlib
from collections import OrderedDict

import numpy as np
import pytest
import torch
from deepspeed.runtime.zero.config import ZeroStageEnum

from launch.checkpoint import Saver, newest, save, verify
from launch.checkpoint_files import CHECKPOINTS
from launch.checkpoint_writer import Part, Writing, copied, plain, write_file
from launch.engine import Engine, start_process
from launch.results import METRICS_FILE
from tests.launch.small import config, run_folder, train_alone, train_until
from tests.launch.test_checkpoint import steps
from tests.launch.topologies import train


def test_a_copy_is_equal_shares_what_was_shared_and_does_not_follow():
    flat = torch.arange(12.0)
    state = OrderedDict(
        weights=[flat[:6].view(2, 3), flat[6:]],
        turned=flat.view(3, 4).T,
        half=torch.ones(3, dtype=torch.bfloat16),
        empty=torch.zeros(0),
        number=torch.tensor(7, dtype=torch.int64),
        plain=(1, "two", None, {"three": 3.0}),
        size=torch.Size([2, 3]),
    )
    copy = copied(state)
    first, second = copy["weights"]
    assert type(copy) is OrderedDict
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    assert first.untyped_storage().data_ptr() != flat.untyped_storage().data_ptr()
    assert (copy["plain"], copy["size"]) == (state["plain"], state["size"])
    flat += 1
    assert first.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert second.tolist() == [6, 7, 8, 9, 10, 11]
    assert torch.equal(copy["turned"], torch.arange(12.0).view(3, 4).T)
    assert (copy["half"].dtype, copy["number"].item(), len(copy["empty"])) == (torch.bfloat16, 7, 0)


@pytest.mark.parametrize("of", [copied, plain])
def test_a_member_of_an_enumeration_is_written_as_its_value(of):
    """Python before 3.11.4 would write a call in its place, and the file could not be read again."""
    written = of({"zero_stage": ZeroStageEnum.gradients, "more": [(ZeroStageEnum.weights,)]})
    assert (type(written["zero_stage"]), written["zero_stage"]) == (int, 2)
    assert type(written["more"][0][0]) is int


def test_a_file_is_whole_and_its_record_is_true(tmp_path):
    file, state = tmp_path / "a.pt", {"weights": torch.rand(1000), "step": 3}
    record = write_file(Part(file, state))
    assert record.bytes == file.stat().st_size
    assert record.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    back = torch.load(file, weights_only=True)
    assert torch.equal(back["weights"], state["weights"])
    assert back["step"] == 3


def test_a_file_that_cannot_be_written_is_named_with_the_reason(tmp_path):
    full, after = tmp_path / "full.pt", tmp_path / "after.pt"
    full.symlink_to("/dev/full")
    writing = Writing([Part(full, torch.rand(100_000)), Part(after, torch.rand(3))])
    for _ in range(2):
        with pytest.raises(OSError, match=r"No space left on device: '.*/full\.pt'") as error:
            writing.result()
        assert error.value.errno == errno.ENOSPC
    assert not after.exists()


def test_whatever_goes_wrong_no_checkpoint_appears_and_the_older_stays(tmp_path, monkeypatch):
    """A thread that ends by an error that nobody expected must not look like one that is done."""
    engine = Engine(config(checkpoint={"keep_last": 1}), start_process())
    (tmp_path / METRICS_FILE).write_bytes(b"what was measured")
    save(engine, tmp_path, 1, "data")
    for place, error in (
        ("launch.checkpoint_writer.write_file", MemoryError),
        ("launch.safe_load.copied", MemoryError),
        ("launch.checkpoint_writer.write_file", TypeError),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(place, lambda *_, error=error: (_ for _ in ()).throw(error("no more")))
            with pytest.raises(error, match="no more"):
                save(engine, tmp_path, 2, "data")
        assert newest(tmp_path).step == 1
        assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["step-1"]
    save(engine, tmp_path, 2, "data")
    assert newest(tmp_path).step == 2
    engine.close()


@pytest.mark.parametrize("overlap", [True, False])
def test_training_may_go_on_before_a_checkpoint_is_written(overlap, tmp_path):
    """The same bytes as one that training waited for."""
    device = start_process()
    run = config(checkpoint={"overlap": overlap})
    engine = Engine(run, device)
    train(engine, 0, 2)
    (tmp_path / METRICS_FILE).write_bytes(b"what was measured")
    with Saver(engine, tmp_path, "data") as saver:
        saver.begin(2)
        saver.finish()
        first = hashes(tmp_path, 2)
        saver.begin(2)
        assert hashes(tmp_path, 2) == first, "the older one stays until the newer is whole"
        if overlap:
            train(engine, 2, 3)
        saver.finish()
        assert hashes(tmp_path, 2) == first
        train(engine, 3, 4)
        saver.begin(4)
        saver.begin(5)
        assert newest(tmp_path).step == 4, "a save waits for the one before it"
    assert newest(tmp_path).step == 5
    assert saver.saves == 4
    assert saver.seconds_written > 0
    assert saver.seconds_waited > 0
    engine.close()


def hashes(folder, step) -> dict[str, str]:
    path = folder / CHECKPOINTS / f"step-{step}"
    assert verify(path).step == step
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in path.iterdir()
        if file.suffix == ".pt"
    }


def test_numbers_that_are_not_finite_lose_nothing_that_was_begun(tmp_path):
    engine = Engine(config(), start_process())
    (tmp_path / METRICS_FILE).write_bytes(b"what was measured")

    def fail(step: int, error: type[Exception]) -> None:
        with Saver(engine, tmp_path, "data") as saver:
            saver.begin(step)
            raise error

    with pytest.raises(FloatingPointError):  # which all ranks raise together
        fail(1, FloatingPointError)
    assert newest(tmp_path).step == 1
    with pytest.raises(KeyError):
        fail(2, KeyError)
    assert newest(tmp_path).step == 2, "one rank alone need not ask the others"
    engine.close()


def test_every_so_many_steps_a_checkpoint_is_kept_for_good(pictures, tmp_path):
    run = config(10, checkpoint={"interval_minutes": 0.0, "keep_last": 1, "keep_every": 4})
    train_alone(run, pictures, tmp_path)
    assert steps(run_folder(tmp_path, run)) == [4, 8, 10]


def test_what_was_kept_stays_when_the_study_no_longer_asks_for_it(pictures, tmp_path):
    every = {"interval_minutes": 0.0, "keep_last": 1}
    assert not train_until(
        config(10, checkpoint={**every, "keep_every": 4}), pictures, tmp_path, step=5
    )
    run = config(10, checkpoint=every)
    train_alone(run, pictures, tmp_path)
    assert steps(run_folder(tmp_path, run)) == [4, 10], "and 8 was never asked for"


def test_the_end_says_how_fast_it_was_and_what_saving_cost(pictures, tmp_path, capfd):
    run = config(10, checkpoint={"keep_every": 5})
    result = train_alone(run, pictures, tmp_path)
    said = capfd.readouterr().err
    tokens = 10 * run.tokens_per_step / result.train["seconds"].sum()
    assert f"{run.run_id}: {tokens:,.0f} tokens/s, " in said
    assert result.speed["tokens_per_second"] == tokens
    assert result.speed["step_seconds_median"] == np.median(result.train["seconds"])
    exact = tokens * run.shape.flops_per_token_exact
    assert result.speed["model_flops_per_second"] == exact
    assert np.isnan(result.speed["mfu"])
    assert "no MFU, for the peak of this device is not known; a step takes " in said
    assert f"{run.run_id}: 2 checkpoints, for which training waited " in said
