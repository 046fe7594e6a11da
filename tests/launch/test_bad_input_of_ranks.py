"""What all ranks are refused for is said by one of them; all end with the status of bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.dataset import TokenDataset
from launch.checkpoint_files import newest_path
from launch.folder import run_folder
from tests.launch.conftest import build
from tests.launch.small import config, exit_status, start_ranks, study, train_until, write_study

BAD = 2


def said_by(count: int, prefix: Path) -> str:
    return "".join(Path(f"{prefix}.{rank}").read_text() for rank in range(count))


def refusal(command: list, folder: Path, count: int = 2) -> str:
    """What is said, on all ranks together: one message."""
    ranks = start_ranks(command, folder / "log", count)
    status = [exit_status(each) for each in ranks]
    said = said_by(count, folder / "log")
    assert status == [BAD] * count, said
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        (
            {
                "ladder": [{"num_layers": 2, "hidden_size": 32, "num_attention_heads": 1}],
                "parallel": {"tensor_model_parallel_size": 2},
            },
            "parallel.tensor_model_parallel_size = 2 does not divide num_attention_heads = 1",
        ),
        (
            {"parallel": {"tensor_model_parallel_size": 4}},
            "parallel.tensor_model_parallel_size = 4 does not divide 2 ranks",
        ),
        (
            {"batch": {"train_batch_size": 1}},
            "batch.train_batch_size = 1 does not divide into 2 ranks",
        ),
        ({"batch": {"train_batch_sise": 4}}, "train_batch_sise: unknown key"),
    ],
)
def test_a_study_that_does_not_suit_the_ranks(tables, words, pictures, tmp_path):
    path = write_study(tmp_path / "s.toml", study(**tables))
    said = refusal(["run", path, "--data", pictures, "--results", tmp_path], tmp_path)
    assert said.count(words) == 1, said


def test_more_ranks_than_rows_of_the_dataset(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    draw = np.random.default_rng(0)
    for number in range(12):
        pixels = draw.integers(0, 255, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(raw / f"{number}.png")
    data = build("image-8x8", raw, tmp_path / "data")
    rows = TokenDataset(data, "train").num_rows
    path = write_study(tmp_path / "s.toml", study(batch={"train_batch_size": rows + 1}))
    said = refusal(["run", path, "--data", data, "--results", tmp_path], tmp_path, rows + 1)
    words = f"{rows + 1} data-parallel ranks for the {rows} rows of the training split"
    assert said.count(words) == 1, said


def test_a_dataset_that_is_missing(tmp_path):
    path = write_study(tmp_path / "s.toml", study())
    data = tmp_path / "nowhere"
    said = refusal(["run", path, "--data", data, "--results", tmp_path], tmp_path)
    assert said.count(f"--data {data}: no such folder") == 1, said


def test_a_checkpoint_of_another_model(pictures, tmp_path):
    run = config()
    other = config(seeds=[5])
    assert not train_until(other, pictures, tmp_path, step=4)
    there, here = newest_path(run_folder(tmp_path, other)), run_folder(tmp_path, run)
    shutil.copytree(there, here / "checkpoints" / there.name)
    path = write_study(tmp_path / "s.toml", study())
    said = refusal(["run", path, "--data", pictures, "--results", tmp_path], tmp_path)
    words = f"{here / 'checkpoints' / there.name}: saved by the run whose id ends in "
    assert said.count(words) == 1, said
    record = json.loads((here / "failed.json").read_text())
    assert "saved by the run whose id ends in" in record["error"]
