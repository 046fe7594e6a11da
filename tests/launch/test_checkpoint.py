"""A checkpoint is whole or absent; a broken or hostile one is named, passed over, and never run."""

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from launch.checkpoint import newest, verify
from launch.config import load_config, save_config
from launch.folder import data_identity, run_folder
from launch.results import read_result
from launch.run import run_all
from tests.launch.conftest import build
from tests.launch.small import assert_same_bits, config, train_alone, train_until

EVERY_STEP = {"interval_minutes": 0.0, "keep_last": 3}


@pytest.fixture(scope="module")
def stopped(pictures, tmp_path_factory):
    """A run of 12 steps, stopped after 8, with its last three checkpoints."""
    results = tmp_path_factory.mktemp("stopped")
    run = config(checkpoint=EVERY_STEP)
    assert not train_until(run, pictures, results, step=7)
    return run, results


@pytest.fixture
def copy(stopped, tmp_path):
    """A copy to break: (run, results, run folder)."""
    run, results = stopped
    shutil.copytree(results, tmp_path / "results")
    return run, tmp_path / "results", run_folder(tmp_path / "results", run)


def steps(folder: Path) -> list[int]:
    paths = (folder / "checkpoints").glob("step-*")
    return sorted(int(path.name.removeprefix("step-")) for path in paths)


def test_the_newest_three_are_kept_and_each_is_whole(copy):
    run, _, folder = copy
    assert steps(folder) == [6, 7, 8]
    for step in (6, 7, 8):
        checkpoint = verify(folder / "checkpoints" / f"step-{step}")
        assert (checkpoint.step, checkpoint.config_digest) == (step, run.digest)
    assert newest(folder).step == 8
    assert newest(folder, at_step=7).step == 7
    assert newest(folder, at_step=5) is None


def test_a_finished_run_keeps_its_last_and_those_of_its_branches(pictures, tmp_path):
    run = config(8, checkpoint=EVERY_STEP).model_copy(update={"keep_steps": [2, 5]})
    train_alone(run, pictures, tmp_path)
    assert steps(run_folder(tmp_path, run)) == [2, 5, 8]


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty(file: Path) -> None:
    file.write_bytes(b"")


DAMAGE = {
    "truncated": (truncate, "bytes; wanted"),
    "bit-flipped": (flip_a_bit, "sha256"),
    "empty": (empty, "0 bytes; wanted"),
    "missing": (Path.unlink, "missing; wanted"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_named_and_the_older_checkpoint_used(kind, copy, capfd):
    _, _, folder = copy
    damage, words = DAMAGE[kind]
    newer = folder / "checkpoints" / "step-8"
    files = [file for file in sorted(newer.iterdir()) if file.name != "checkpoint.json"]
    assert len(files) >= 2, "the model, and the measurements"
    for file in files:
        kept = file.read_bytes()
        damage(file)
        assert newest(folder).step == 7
        warning = capfd.readouterr().err
        assert warning.startswith(f"WARNING: {file}: ")
        assert words in warning
        assert "It is passed over and kept as broken-...; an older one" in warning
        newer.with_name("broken-step-8").rename(newer)
        file.write_bytes(kept)
    assert newest(folder).step == 8


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "17", '"files"', "{}", '{"files": 3}', '{"files": {"a.pt": 3}}',
        '{"step": 8, "config_digest": "", "data_identity": "", "files": []}',
        '{"step": 8, "config_digest": "", "data_identity": "", "files": {"a.pt": {}}}',
        '{"step": "8", "config_digest": 1, "data_identity": null, "files": {}}',
        '{"step": 9, "config_digest": "", "data_identity": "", "files": {}}',
        '{"step": 8, "config_digest": "", "data_identity": "", "files": {}, "more": 1}',
        "[" * 100_000,
        "\xff\x00".encode("latin-1"),
    ],
)  # fmt: skip
def test_a_damaged_description_is_named_and_the_older_checkpoint_used(text, copy, capfd):
    _, _, folder = copy
    description = folder / "checkpoints" / "step-8" / "checkpoint.json"
    description.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert newest(folder).step == 7
    assert f"WARNING: {description}: " in capfd.readouterr().err


def test_foreign_folders_and_half_written_ones_are_no_checkpoints(copy):
    _, _, folder = copy
    (folder / "checkpoints" / ".step-9.tmp" / "state").mkdir(parents=True)
    (folder / "checkpoints" / "step-final").mkdir()
    (folder / "checkpoints" / "step-99").write_text("a file")
    assert newest(folder).step == 8
    assert newest(folder / "nowhere") is None


def test_a_run_with_a_damaged_checkpoint_resumes_from_the_older_and_replaces_it(
    copy, alone, pictures, capfd
):
    run, results, folder = copy
    damaged = next((folder / "checkpoints" / "step-8").glob("mp_rank*.pt"))
    flip_a_bit(damaged)
    assert not train_until(run, pictures, results, step=8), "stopped again after step 9"
    assert f"WARNING: {damaged}: sha256" in capfd.readouterr().err
    assert steps(folder) == [7, 8, 9]
    assert verify(folder / "checkpoints" / "step-8").step == 8, "written anew"
    assert (folder / "checkpoints" / "broken-step-8").is_dir(), "kept for who wants to look"
    assert_same_bits(train_alone(run, pictures, results), alone(run))
    assert not list(folder.glob("checkpoints/broken-*")), "a finished run has no use for it"


def test_all_damaged_means_from_the_beginning(copy, alone, pictures, capfd):
    run, results, folder = copy
    for step in (6, 7, 8):
        truncate(next((folder / "checkpoints" / f"step-{step}").glob("mp_rank*.pt")))
    assert_same_bits(train_alone(run, pictures, results), alone(run))
    assert capfd.readouterr().err.count("WARNING") == 3


class Malicious:
    """Unpickling this runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def describe_again(folder: Path) -> None:
    """Make the description match the files, as an attacker would."""
    description = folder / "checkpoint.json"
    record = json.loads(description.read_text())
    record["files"] = {
        file.name: {
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in sorted(folder.iterdir())
        if file != description
    }
    description.write_text(json.dumps(record))


@pytest.mark.parametrize("plain", [True, False], ids=["plain-pickle", "inside-torch-save"])
@pytest.mark.parametrize(("precision", "stage"), [("fp32", 0), ("bf16", 0), ("fp32", 1)])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(
    precision, stage, plain, pictures, tmp_path, capfd
):
    run = config(4, precision=precision, parallel={"zero_stage": stage}, checkpoint=EVERY_STEP)
    good = config(5)
    assert not train_until(run, pictures, tmp_path, step=1)
    folder = run_folder(tmp_path, run)
    newest_step = folder / "checkpoints" / "step-2"
    files = sorted(newest_step.glob("*.pt"))
    assert len(files) == 1 + stage
    for file in files:
        kept, ran = file.read_bytes(), tmp_path / "ran"
        bomb = Malicious(f"touch {ran}")
        if plain:
            file.write_bytes(pickle.dumps({"module": bomb, "optimizer_state_dict": bomb}))
        else:
            torch.save({**torch.load(file, weights_only=False), "more": bomb}, file)
        describe_again(newest_step)
        assert run_all([run, good], pictures, tmp_path) == 2
        error = capfd.readouterr().err
        assert not ran.exists(), f"the code in {file.name} ran"
        assert f"{run.run_id}: FAILED" in error
        assert str(newest_step) in error, "the message names the checkpoint"
        assert "Traceback" not in error
        assert read_result(run_folder(tmp_path, good)).finished, "the next run was trained"
        shutil.rmtree(run_folder(tmp_path, good))
        file.write_bytes(kept)
        describe_again(newest_step)
    assert run_all([run], pictures, tmp_path) == 0, "the test broke nothing else"


def test_other_data_is_refused_naming_both(copy, mathematics, tmp_path, capfd):
    run, results, folder = copy
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(100):
        Image.new("RGB", (8, 8), (number, 2 * number, 7)).save(raw / f"{number}.png")
    other = build("image-8x8", raw, tmp_path / "other")
    there, here = newest(folder).data_identity, data_identity(run, other)
    assert run_all([run], other, results) == 2
    error = capfd.readouterr().err
    assert f"trained on data {there[:12]} and is now given data {here[:12]}" in error
    assert "Give that dataset, or other --results" in error


def test_another_configuration_in_the_folder_is_refused_naming_both(copy, pictures, capfd):
    run, results, folder = copy
    save_config(run.model_copy(update={"seed": 7}), folder)
    assert run_all([run], pictures, results) == 2
    error = capfd.readouterr().err
    assert "holds a run of another configuration: seed is 7 there and 0 here" in error
    assert load_config(folder).seed == 7, "left as it was"


@pytest.mark.parametrize(("before", "after"), [(0, 1), (1, 0)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_another_zero_stage_continues_and_never_forgets(
    before, after, precision, alone, pictures, tmp_path, capfd
):
    """The stage is not part of the run's identity, so a change must not lose Adam's state."""
    run = config(8, precision=precision, parallel={"zero_stage": before})
    assert not train_until(run, pictures, tmp_path, step=3)
    changed = run.model_copy(
        update={"parallel": run.parallel.model_copy(update={"zero_stage": after})}
    )
    assert run_all([changed], pictures, tmp_path) == 0
    assert f"ZeRO {before}; put together for 1, 1, {after}" in capfd.readouterr().err
    result = read_result(run_folder(tmp_path, run))
    # The same sums in another order: see test_training.py for this bound.
    assert result.train["loss"] == pytest.approx(
        alone(run).train["loss"], rel=2 * 4 * 192 * 2.0**-24 * 8
    )


def test_a_lost_metrics_file_comes_back_from_the_checkpoint(copy, alone, pictures):
    run, results, folder = copy
    (folder / "metrics.h5").unlink()
    assert_same_bits(train_alone(run, pictures, results), alone(run))


@pytest.mark.parametrize("kind", ["truncated", "bit-flipped", "empty"])
def test_a_damaged_metrics_file_comes_back_too(kind, copy, alone, pictures):
    """A flipped bit may hide in a number; the copy in the checkpoint is the truth either way."""
    run, results, folder = copy
    DAMAGE[kind][0](folder / "metrics.h5")
    assert_same_bits(train_alone(run, pictures, results), alone(run))


def test_files_copied_from_another_run_are_refused(copy, pictures, capfd):
    run, results, folder = copy
    other = config(seeds=[5])
    there = run_folder(results, other)
    shutil.copytree(folder / "checkpoints", there / "checkpoints")
    assert run_all([other], pictures, results) == 2
    error = capfd.readouterr().err
    assert f"{there / 'checkpoints' / 'step-8'}: saved by the run whose id ends in " in error
    assert f"wanted {other.run_id}" in error
    shutil.rmtree(there)
    finished = train_alone(run, pictures, results)
    there.mkdir()
    shutil.copy(finished.path, there / "metrics.h5")
    assert run_all([other], pictures, results) == 2
    error = capfd.readouterr().err
    assert f"{there / 'metrics.h5'}: measured by run {run.run_id}; wanted {other.run_id}" in error


def test_rows_written_after_the_checkpoint_are_written_again_not_twice(copy, alone, pictures):
    """As a kill between two checkpoints leaves it."""
    run, results, folder = copy
    shutil.rmtree(folder / "checkpoints" / "step-8")
    assert len(read_result(folder).train) == 8
    assert newest(folder).step == 7
    assert_same_bits(train_alone(run, pictures, results), alone(run))


def test_folders_that_are_no_checkpoints_are_left_alone(copy, pictures):
    run, results, folder = copy
    (folder / "checkpoints" / "step-best").mkdir()
    (folder / "checkpoints" / "step-99").write_text("notes")
    train_alone(run, pictures, results)
    found = {path.name for path in (folder / "checkpoints").iterdir()}
    assert found == {"step-12", "step-best", "step-99"}
