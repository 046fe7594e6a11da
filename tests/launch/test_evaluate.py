"""`launch evaluate`: what it measures, where it puts it, and what it refuses."""

import hashlib
import json
import shutil

import h5py
import numpy as np
import pytest
import torch

from data_prep.__main__ import main as data_prep
from data_prep.dataset import TokenDataset
from data_prep.domain import domain
from launch import evaluation
from launch.__main__ import main
from launch.evaluation_file import read_evaluations
from launch.folder import run_folder
from launch.results import read_result
from launch.run import run_all
from megatron_ext.loss import LossSums
from tests.launch.small import config, exit_status, start_ranks

EPSILON = float(torch.finfo(torch.float32).eps)


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def trained(request, pictures, tmp_path_factory):
    """A finished run with checkpoints at its middle and its end; in bf16 with ZeRO, whose files hold no whole weights
    but those that the model computes with."""
    results = tmp_path_factory.mktemp("trained")
    parallel = {"zero_stage": 2 if request.param == "bf16" else 0}
    run = config(8, precision=request.param, parallel=parallel)
    run = run.model_copy(update={"keep_steps": [4]})
    assert run_all([run], pictures, results) == 0
    return run_folder(results, run)


def evaluate(capsys, *arguments):
    status = main(["evaluate", *map(str, arguments)])
    said = capsys.readouterr()
    return status, said.out.splitlines(), said.err


class Counted:
    """A model of one of two ranks, which counts the forward passes that it takes part in."""

    micro_batch, world_size, device = 1, 2, torch.device("cpu")

    def __init__(self):
        self.passes = 0

    def losses(self, batch):
        self.passes += 1
        return torch.ones(batch.tokens.shape)

    def add_over_ranks(self, tensors):
        pass


def test_every_rank_takes_part_in_every_forward_pass(pictures, monkeypatch):
    """Under ZeRO 3 those of a large model gather its parameters from all ranks, so one that has no rows left would
    leave the others waiting; what it computes then counts nowhere."""
    dataset = TokenDataset(pictures, "valid")
    for rank, mine in ((0, [0, 2]), (1, [1])):
        monkeypatch.setattr(evaluation, "data_parallel_rank", lambda rank=rank: rank)
        model = Counted()
        sums = evaluation.evaluate(model, dataset, np.arange(3))
        assert model.passes == 2
        assert sums.count_R.nonzero().flatten().tolist() == mine


def test_it_measures_what_training_measured(trained, pictures, capsys):
    """The same rows, weights and model: only the number of rows that go through at once differs."""
    result = read_result(trained)
    status, lines, _ = evaluate(capsys, trained, "--data", pictures, "--rows", 8)
    assert status == 0
    (path,) = (trained / "evaluations").glob("*.h5")
    assert lines[0].endswith(f"on 8 rows of valid -> {path}")
    ((name, found),) = read_evaluations(path).items()
    assert name == f"{trained.name}/step-8"
    wanted = result.eval_rows("valid")[-1]
    # Sums of some hundred products, whose order depends on the batch, in every layer; in bf16 each
    # result is rounded alike unless it falls on the other side, by 2^-8.
    tolerance = 1e3 * EPSILON if "bf16" not in result.config["precision"] else 2**-8
    assert found["attributes"]["loss"] == pytest.approx(wanted["loss"], rel=tolerance)
    error = found["attributes"]["standard_error"]
    assert error == pytest.approx(wanted["standard_error"], rel=100 * tolerance)
    assert found["attributes"]["num_tokens"] == wanted["num_tokens"]
    assert found["attributes"]["own_data"]
    np.testing.assert_allclose(
        found["position/loss"], result.eval_position["valid"]["loss"][-1], rtol=10 * tolerance
    )
    path.unlink()


def test_all_ways_to_look_at_it_agree(trained, pictures, tmp_path, capsys):
    out = tmp_path / "all.h5"
    status, *_ = evaluate(capsys, trained, "--data", pictures, "--out", out)
    assert status == 0
    (found,) = read_evaluations(out).values()
    dataset = TokenDataset(pictures, "valid")
    loss = found["attributes"]["loss"]
    sums, count = found["documents/loss_sum"], found["documents/count"]
    np.testing.assert_array_equal(found["documents/row"], np.arange(dataset.num_rows))
    np.testing.assert_array_equal(count, 192)
    close = {"rel": 1e-12}  # float64 sums of the same numbers in another order
    assert sums.sum() / count.sum() == pytest.approx(loss, **close)
    assert found["position/loss"].mean() == pytest.approx(loss, **close)
    assert found["grid/pixel"].shape == (8, 8)
    np.testing.assert_allclose(
        found["grid/pixel"], found["position/loss"].reshape(8, 8, 3).mean(2), rtol=1e-12
    )
    numbers, losses = found["percentiles"].T
    assert numbers.tolist() == list(evaluation.PERCENTILES)
    np.testing.assert_allclose(losses, np.percentile(sums / count, numbers), rtol=1e-12)
    assert found["kinds"]["kind"].tolist() == [b"loss"]
    np.testing.assert_array_equal(found["documents/start"], 0)


def test_what_is_there_is_passed_over(trained, pictures, tmp_path, capsys):
    """An evaluation that a time limit ended goes on; what compares it with the first is evaluated again for that."""
    run = shutil.copytree(trained, tmp_path / "run")
    middle, end = (run / "checkpoints" / f"step-{step}" for step in (4, 8))
    both = (middle, end, "--data", pictures, "--rows", 8)
    assert evaluate(capsys, middle, "--data", pictures, "--rows", 8)[0] == 0
    (first,) = (run / "evaluations").iterdir()
    whole = first.read_bytes()
    status, lines, err = evaluate(capsys, *both, "--missing")
    assert status == 0
    assert "are evaluated already" not in err  # the first is needed to compare the last one with it
    assert len(list((run / "evaluations").iterdir())) == 2
    assert first.read_bytes() == whole
    status, lines, err = evaluate(capsys, *both, "--missing")
    assert status == 0
    assert "2 of 2 are evaluated already" in err
    assert not any(lines)
    first.unlink()
    status, lines, err = evaluate(capsys, *both, "--missing")
    assert status == 0
    assert "1 of 2 are evaluated already" in err
    assert [line.split(":")[0] for line in lines] == [f"{run.name}/{middle.name}"]
    status, _, err = evaluate(capsys, *both, "--missing", "--out", tmp_path / "all.h5")
    assert status == 2
    assert "--missing: wanted one of the two, for a file is written whole. Leave one out." in err


def test_two_checkpoints_are_compared_row_by_row(trained, pictures, tmp_path, capsys):
    steps = [trained / "checkpoints" / f"step-{step}" for step in (4, 8)]
    out = tmp_path / "two.h5"
    status, lines, _ = evaluate(capsys, *steps, "--data", pictures, "--out", out)
    assert status == 0
    first, last = read_evaluations(out).values()
    change = (first["documents/loss_sum"] - last["documents/loss_sum"]) / first["documents/count"]
    table = last["improved"]
    np.testing.assert_allclose(table["difference"], change, rtol=1e-9)
    np.testing.assert_allclose(
        table["ratio"], first["documents/loss_sum"] / last["documents/loss_sum"], rtol=1e-12
    )
    assert "improved" not in first
    most = first["documents/row"][np.argmax(change)]
    (line,) = (each for each in lines if "improved most by difference" in each)
    assert f": {most}:0 ({change.max():.3f})" in line
    assert change.mean() > 0, "four more steps help"
    best = first["documents/row"][np.argmax(table["ratio"])]
    assert f"python -m data_prep show {pictures} --split valid --row {best}," in lines[-1]


def test_of_several_the_smallest_is_compared_with_the_largest(pictures, tmp_path, capsys):
    """However their folders are named: 16 wide comes before 8 wide here, and step 10 before step 5."""
    folders = []
    for width, name in ((16, "a"), (8, "b")):
        run = config(10, ladder=[{"num_layers": 1, "hidden_size": width}])
        run = run.model_copy(update={"keep_steps": [5]})
        assert run_all([run], pictures, tmp_path / name) == 0
        folders.append(run_folder(tmp_path / name, run))
    large, small = folders
    sources = [large / "checkpoints" / "step-10", large / "checkpoints" / "step-5",
               small / "checkpoints" / "step-10", small / "checkpoints" / "step-5"]  # fmt: skip
    status, lines, _ = evaluate(capsys, *sources, "--data", pictures, "--out", tmp_path / "all.h5")
    assert status == 0
    names = (f"{small.name}/step-5", f"{large.name}/step-10")
    assert f"from {names[0]} to {names[1]}, by document (row:first token):" in lines
    assert [
        name for name, each in read_evaluations(tmp_path / "all.h5").items() if "improved" in each
    ] == [names[1]]


def test_kinds_of_token_and_no_answer_position(mathematics, tmp_path, capsys):
    run = config(4, domain="mathematics", budget={"tokens": 4 * 4 * 512.0})
    assert run_all([run], mathematics, tmp_path) == 0
    folder = run_folder(tmp_path, run)
    assert evaluate(capsys, folder, "--data", mathematics, "--split", "test")[0] == 0
    (path,) = (folder / "evaluations").glob("step-4-mathematics-test-*.h5")
    (found,) = read_evaluations(path).values()
    kinds = {row["kind"].decode(): row for row in found["kinds"]}
    assert set(kinds) == {"loss", "question", "answer"}
    assert kinds["answer"]["loss"] == pytest.approx(found["attributes"]["loss"], rel=1e-12)
    assert "grid/pixel" not in found
    dataset = TokenDataset(mathematics, "test")
    batch = dataset.rows(np.arange(dataset.num_rows))
    # A problem begins where a question follows an answer. Of each row the first and the last may be cut.
    begins = (batch.kinds[:, 1:] == 0) & (batch.kinds[:, :-1] == 1)
    listed = zip(found["documents/row"], found["documents/start"], strict=True)
    inside = {(row, column + 1) for row, column in zip(*np.nonzero(begins), strict=True)}
    whole = set(listed)
    assert {place for place in whole if place[1]} <= inside
    last = {(row, max(column for at, column in inside if at == row)) for row, _ in inside}
    assert inside - last <= whole
    assert len(whole) > 5 * dataset.num_rows
    share = found["documents/count"].sum() / kinds["answer"]["num_tokens"]
    assert 0.8 < share <= 1


def test_other_data_of_the_same_vocabulary_and_other_forms(trained, pictures, tmp_path, capsys):
    """Weights alone, as another tool keeps them, give the same losses; so does a folder that moved."""
    export, back, moved = tmp_path / "megatron", tmp_path / "back", tmp_path / "moved"
    assert main(["reshard", str(trained), "--to", "megatron", "--out", str(export)]) == 0
    assert main(["reshard", str(export), "--out", str(back)]) == 0
    shutil.copytree(trained, moved)
    out = tmp_path / "out.h5"
    sources = (trained, back / "step-8", moved)
    assert evaluate(capsys, *sources, "--data", pictures, "--rows", 5, "--out", out)[0] == 0
    losses = [each["documents/loss_sum"] for each in read_evaluations(out).values()]
    np.testing.assert_array_equal(losses[0], losses[1])
    np.testing.assert_array_equal(losses[0], losses[2])


def test_data_of_other_pictures_are_not_its_own(trained, pictures, tmp_path, capsys):
    raw, other, out = pictures.parent / "raw", tmp_path / "other", tmp_path / "out.h5"
    split = ["--split", "valid", "--workers", "1"]  # all of them: no split to train on
    assert data_prep(["build", "image-8x8", "--raw", str(raw), "--out", str(other), *split]) == 0
    assert evaluate(capsys, trained, "--data", other, "--rows", 5, "--out", out)[0] == 0
    (found,) = read_evaluations(out).values()
    assert not found["attributes"]["own_data"]


def test_two_ranks_share_the_rows_and_measure_the_same(trained, pictures, tmp_path, capsys):
    one, two = tmp_path / "one.h5", tmp_path / "two.h5"
    assert evaluate(capsys, trained, "--data", pictures, "--out", one)[0] == 0
    command = ["evaluate", trained, "--data", pictures, "--out", two]
    ranks = start_ranks(command, tmp_path / "log", 2)
    assert [exit_status(rank) for rank in ranks] == [0, 0], (tmp_path / "log.0").read_text()
    (alone,), (shared,) = (read_evaluations(path).values() for path in (one, two))
    for name, values in alone.items():
        if name not in ("attributes", "kinds"):
            np.testing.assert_allclose(shared[name], values, rtol=1e-12)
    said = [(tmp_path / f"log.{rank}").read_text().count(" -> ") for rank in range(2)]
    assert said == [2, 0], "the first rank alone speaks, on stderr and on stdout"


# --- views that no small dataset has


def test_video_is_folded_by_frame_and_by_pixel():
    here = domain("video-codes-16x16x16")
    sums = LossSums.zeros(1, 1, here.seq_length, torch.device("cpu"))
    sums.position_sum_S += torch.arange(here.seq_length)
    sums.position_count_S += 2
    folded = evaluation.folded_means(sums, here)
    cube = np.arange(here.seq_length).reshape(16, 16, 16) / 2
    np.testing.assert_allclose(folded["frame"], cube.mean((1, 2)))
    np.testing.assert_allclose(folded["pixel"], cube.mean(0))
    assert evaluation.folded_means(sums, domain("text")) == {}


def test_a_document_without_a_counted_token_is_no_percentile():
    sums, count = np.array([2.0, 0.0, 9.0]), np.array([1, 0, 3])
    np.testing.assert_allclose(evaluation.percentiles(sums, count)[3], 2.5)
    assert np.isnan(evaluation.percentiles(np.zeros(2), np.zeros(2))).all()
    found = evaluation.improvements((sums, count), (sums / 2, count))
    np.testing.assert_allclose(found["difference"], [1.0, np.nan, 1.5])
    np.testing.assert_allclose(found["ratio"], [2.0, np.nan, 2.0])


# --- bad input


@pytest.fixture(scope="module")
def one(pictures, tmp_path_factory):
    results = tmp_path_factory.mktemp("one")
    run = config(4)
    assert run_all([run], pictures, results) == 0
    return run_folder(results, run)


def test_a_dataset_of_another_vocabulary_or_context_is_refused(one, mathematics, tmp_path, capsys):
    status, _, error = evaluate(capsys, one, "--data", mathematics)
    assert status == 2
    assert (
        "domain mathematics has a vocabulary of 256 and rows of 512 tokens; wanted 256 and 192"
        in error
    )
    assert "Give --data a dataset that is tokenised the same way." in error
    known = tmp_path / "known"
    command = ["build", "known-entropy", "--raw", "generator", "--rows", "50", "--out", str(known)]
    assert data_prep([*command, "--split", "valid", "--workers", "1"]) == 0
    capsys.readouterr()
    status, _, error = evaluate(capsys, one, "--data", known)
    assert (status, "has a vocabulary of 4 " in error) == (2, True)


def damaged_file(folder):
    file = next((folder / "checkpoints" / "step-4").glob("*model_states.pt"))
    file.write_bytes(file.read_bytes()[:-100])


def no_checkpoints(folder):
    shutil.rmtree(folder / "checkpoints")


def no_description(folder):
    (folder / "checkpoints/step-4/checkpoint.json").write_text("{}")


def no_config(folder):
    (folder / "checkpoints/step-4/config.json").unlink()


def other_model(folder):
    other = config(4, ladder=[{"num_layers": 1, "hidden_size": 32}])
    path = folder / "checkpoints" / "step-4"
    (path / "config.json").write_text(other.model_dump_json())
    description = path / "checkpoint.json"
    text = description.read_text()
    found = json.loads(text)
    content = (path / "config.json").read_bytes()
    found["files"]["config.json"] = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    description.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damaged_file, "model_states.pt: "),
        (no_checkpoints, "no checkpoint in it; wanted a run's folder"),
        (no_description, "checkpoint.json: not readable"),
        (no_config, "config.json: missing; wanted"),
        (shutil.rmtree, "no such folder; wanted a run's folder"),
        (other_model, "as the run's config.json says. The files are of another model"),
    ],
)  # fmt: skip
def test_what_is_no_whole_checkpoint_is_refused(one, pictures, tmp_path, capsys, damage, message):
    folder = tmp_path / "run"
    shutil.copytree(one, folder)
    damage(folder)
    status, lines, error = evaluate(capsys, folder, "--data", pictures)
    assert (status, lines) == (2, [])
    assert message in error
    assert "Traceback" not in error
    assert not (folder / "evaluations").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rows", "0"], "--rows 0: wanted a whole number of at least 1. Omit it for all."),
        (["--split", "test2"], "split 'test2' is not there; wanted one of train, valid, test"),
        (["--out", "."], "--out .: this is a folder; wanted a file. Name a file in it."),
        (["--data", "nowhere"], "nowhere: does not exist; wanted a dataset folder"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(one, pictures, capsys, more, message):
    status, _, error = evaluate(capsys, one, "--data", pictures, *more)
    assert (status, message in error) == (2, True), error


def test_a_checkpoint_that_is_named_twice_is_refused(one, pictures, capsys):
    status, _, error = evaluate(capsys, one, one / "checkpoints/step-4", "--data", pictures)
    assert status == 2
    assert f"{one.name}/step-4: named 2 times; wanted each checkpoint once" in error


@pytest.mark.parametrize("content", [b"", b"no HDF5", None])
def test_a_file_that_holds_no_evaluations_is_refused(tmp_path, content):
    path = tmp_path / "x.h5"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x.h5: not readable as evaluations .*Evaluate again"):
        read_evaluations(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["loss"] = 1.0
    with pytest.raises(ValueError, match=r"\(schema = None\); wanted what `launch evaluate` wrote"):
        read_evaluations(path)
