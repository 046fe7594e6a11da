"""`[start]`: a run begins with the weights of another study's run, and with nothing else of it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.batches import TrainingBatches, open_dataset
from launch.checkpoint_files import newest_path
from launch.config import load_config, save_config
from launch.engine import start_process
from launch.results import read_result
from launch.run import run_all
from launch.start import start_of
from launch.trained_model import TrainedModel
from tests.launch.small import (
    STEP,
    assert_same_bits,
    config,
    expanded,
    study,
    train_alone,
    train_until,
    write_study,
)

ROOT = Path(__file__).parents[2]
LADDER = [{"num_layers": 1, "hidden_size": 16}, {"num_layers": 2, "hidden_size": 32}]


@pytest.fixture(scope="module")
def before(pictures, tmp_path_factory) -> Path:
    """A results folder with a finished study of two sizes, one of them with two seeds."""
    results = tmp_path_factory.mktemp("before")
    ladder = [LADDER[0] | {"seeds": [0, 1]}, LADDER[1]]
    assert run_all(expanded(6, name="before", ladder=ladder), pictures, results) == 0
    return results


def after(steps: int = 4, **changes):
    return config(steps, **({"name": "after", "start": {"study": "before"}} | changes))


def source_of(run, results: Path) -> Path:
    return start_of(run, run.start, results)[1]


def expected_first_loss(run, source: Path, pictures: Path) -> float:
    model = TrainedModel(run, start_process())
    model.load(newest_path(source))
    batches = TrainingBatches(open_dataset(pictures, "train", run), run, 0, 1)
    return model.losses(batches.at(0, model.device)).mean().item()


def test_the_weights_are_taken_and_nothing_else(before, pictures, tmp_path):
    """The schedule, the optimizer and the count of tokens begin anew."""
    shutil.copytree(before / "before", tmp_path / "before")
    run = after()
    result = train_alone(run, pictures, tmp_path)
    source = source_of(run, tmp_path)
    # The same weights and rows; sums over 768 tokens in another order
    expected = expected_first_loss(run, source, pictures)
    assert result.train["loss"][0] == pytest.approx(expected, rel=768 * 2.0**-24)
    assert result.train["tokens"][0] == run.tokens_per_step
    assert result.train["learning_rate"][0] == pytest.approx(run.peak_learning_rate / 3)
    first = read_result(source).train["loss"][0]
    assert result.train["loss"][0] < first - 0.1, "it has learned before"
    assert result.provenance[0]["started_from"] == f"{source.name}/step-6"


def test_a_stopped_run_goes_on_from_its_own_checkpoint(before, pictures, tmp_path):
    for folder in ("whole", "stopped"):
        shutil.copytree(before / "before", tmp_path / folder / "before")
    run = after(6)
    whole = train_alone(run, pictures, tmp_path / "whole")
    assert not train_until(run, pictures, tmp_path / "stopped", step=3)
    shutil.rmtree(tmp_path / "stopped" / "before")  # no longer needed
    assert_same_bits(train_alone(run, pictures, tmp_path / "stopped"), whole)


def test_two_ranks_start_from_one(before, pictures, tmp_path):
    """A model split over two ranks, cut by ZeRO 3: the weights come from an unsplit run."""
    shutil.copytree(before / "before", tmp_path / "before")
    tables = {"parallel": {"zero_stage": 3, "tensor_model_parallel_size": 2}}
    changes = {"name": "after", "start": {"study": "before"}} | tables
    path = write_study(tmp_path / "after.toml", study(4, **changes))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "launch", "run", str(path)]
    command += ["--data", str(pictures), "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    run = after(**tables)
    found = read_result(tmp_path / "after" / run.run_id)
    expected = expected_first_loss(after(), source_of(run, tmp_path), pictures)
    assert found.train["loss"][0] == pytest.approx(expected, rel=768 * 2.0**-24)


def test_of_several_the_same_seed_and_then_the_most_tokens(before, pictures, tmp_path):
    shutil.copytree(before / "before", tmp_path / "before")
    ladder = [LADDER[0]]
    for seed in (0, 1):
        (run,) = expanded(name="after", start={"study": "before"}, ladder=ladder, seeds=[seed])
        assert load_config(source_of(run, tmp_path)).seed == seed
    longer = expanded(8, name="before", ladder=ladder)
    assert run_all(longer, pictures, tmp_path) == 0
    run = after(ladder=ladder)
    assert load_config(source_of(run, tmp_path)).tokens == 8 * STEP


def refusal(run, results: Path) -> str:
    with pytest.raises(ValueError, match="wanted") as error:
        source_of(run, results)
    return str(error.value)


def test_what_cannot_serve_is_refused(before, pictures, tmp_path, capfd):
    shutil.copytree(before / "before", tmp_path / "before")
    run = after()
    said = refusal(after(start={"study": "nowhere"}), tmp_path)
    assert (
        f"{tmp_path / 'nowhere'} holds no run of study 'nowhere' with the sizes of L2-H32 on image-8x8"
        in said
    )
    assert "Train that study with the same --results first" in said
    other = after(ladder=[{"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4}])
    assert "holds no run" in refusal(other, tmp_path), "as wide and deep, with other heads"
    variant = after(start={"study": "before", "variant": "wide"})
    assert "holds no run of study 'before', variant 'wide'" in refusal(variant, tmp_path)
    (third,) = expanded(name="after", start={"study": "before"}, ladder=LADDER[:1], seeds=[7])
    assert "have the same sizes and the most tokens" in refusal(third, tmp_path)

    source = source_of(run, tmp_path)
    shutil.rmtree(newest_path(source))
    assert run_all([run], pictures, tmp_path) == 2
    assert "holds no whole checkpoint after its last step, 6" in capfd.readouterr().err
    (source / "metrics.h5").unlink()
    assert "is not finished; wanted its last weights" in refusal(run, tmp_path)


def test_a_model_of_other_data_is_refused_by_name(before, pictures, tmp_path, capfd):
    shutil.copytree(before / "before", tmp_path / "before")
    run = after()
    source = source_of(run, tmp_path)
    saved = load_config(source).model_dump(mode="json")
    saved["shape"]["vocab_size"] = 200  # its token tables are said to have fewer rows
    save_config(type(run).model_validate_json(json.dumps(saved)), source)
    assert run_all([run], pictures, tmp_path) == 2
    said = capfd.readouterr().err
    assert "holds gpt.embedding.word_embeddings.weight of shape [201, 32]; wanted [257, 32]" in said
    assert "name a study whose rows and vocabulary are the same" in said
    assert "Traceback" not in said


def test_the_plan_says_what_the_runs_start_from(tmp_path, capsys):
    path = write_study(
        tmp_path / "after.toml", study(name="after", start={"study": "before", "variant": "a"})
    )
    assert main(["plan", str(path)]) == 0
    said = capsys.readouterr().out
    assert (
        "runs start from the weights of the run of their sizes in study 'before', variant 'a'"
        in said
    )
