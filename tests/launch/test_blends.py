"""A study over several datasets: which rows a run sees, and what is refused."""

import shutil

import numpy as np
import pytest
import torch

from data_prep.dataset import TokenDataset
from launch.batches import TrainingBatches, evaluation_rows, open_dataset
from launch.exits import DONE
from launch.folder import data_identity
from launch.plan import print_plan
from launch.results import read_result
from launch.run import run_all
from launch.strict import validate
from launch.study import Study
from tests.launch.conftest import build
from tests.launch.small import BATCH, config, study

CPU = torch.device("cpu")
BLEND = [{"name": "one", "weight": 3.0}, {"name": "two", "weight": 1.0}]


@pytest.fixture(scope="module")
def both(pictures, tmp_path_factory):
    """`one` is the pictures as they are, `two` the same in negative: told apart by their bytes."""
    from PIL import Image, ImageOps

    folder = tmp_path_factory.mktemp("both")
    raw = folder / "negatives"
    raw.mkdir()
    for path in sorted((pictures.parent / "raw").iterdir())[:60]:
        ImageOps.invert(Image.open(path)).save(raw / path.name)
    shutil.copytree(pictures, folder / "one")
    build("image-8x8", raw, folder / "two")
    return folder


def test_batches_hold_each_dataset_by_its_weight(both):
    run = config(steps=30, blend=BLEND)
    first = {
        row.tobytes() for row in TokenDataset(both / "one", "train").rows(np.arange(50)).tokens
    }
    every = {
        row.tobytes()
        for row in TokenDataset(both / "one", "train")
        .rows(np.arange(TokenDataset(both / "one", "train").num_rows))
        .tokens
    }
    batches = TrainingBatches(open_dataset(both, "train", run), run, 0, 1)
    seen = [
        row.numpy().astype(np.uint8).tobytes() in every
        for step in range(30)
        for row in batches.at(step, CPU).tokens
    ]
    assert first <= every
    counts = np.cumsum(seen)
    expected = 0.75 * np.arange(1, len(seen) + 1)
    assert np.abs(counts - expected).max() < 1
    halves = [TrainingBatches(open_dataset(both, "train", run), run, r, 2) for r in (0, 1)]
    whole = batches.at(7, CPU).tokens
    assert torch.equal(torch.cat([half.at(7, CPU).tokens for half in halves]), whole)


def test_a_run_on_a_blend(both, tmp_path):
    run = config(steps=6, blend=BLEND)
    assert run_all([run], both, tmp_path) == DONE
    result = read_result(tmp_path / run.study / run.run_id)
    assert result.finished
    assert result.config["blend"] == BLEND
    assert len(result.train) == 6


def test_evaluations_do_not_depend_on_the_seed_of_the_run(both):
    chosen = [
        evaluation_rows(open_dataset(both, "valid", config(seeds=[seed], blend=BLEND)), 8)
        for seed in (0, 1)
    ]
    assert np.array_equal(*chosen)
    assert BATCH < len(chosen[0]) <= 8


def test_the_plan_counts_the_epochs_of_each_dataset(both, capsys):
    run = config(steps=40, blend=BLEND)
    print_plan([run], both)
    rows = [TokenDataset(both / name, "train").num_rows for name in ("one", "two")]
    epochs = [
        f"{40 * BATCH * share / count:.2f}" for share, count in zip((0.75, 0.25), rows, strict=True)
    ]
    assert " / ".join(epochs) in capsys.readouterr().out


def test_weights_and_names_make_another_run(both):
    plain, blend = config(), config(blend=BLEND)
    other = config(blend=[{"name": "one", "weight": 1.0}, {"name": "two", "weight": 1.0}])
    assert len({plain.digest, blend.digest, other.digest}) == 3
    assert data_identity(blend, both) != data_identity(other, both)
    assert data_identity(plain, both / "one") != data_identity(blend, both)


def test_what_is_missing_is_named(both):
    run = config(blend=[*BLEND, {"name": "three", "weight": 1.0}])
    with pytest.raises(ValueError, match=r"holds no dataset three; wanted one folder for each"):
        data_identity(run, both)


@pytest.mark.parametrize(
    ("blend", "message"),
    [
        ([BLEND[0], BLEND[0]], "wanted each dataset once"),
        ([{"name": "../one", "weight": 1.0}], "blend"),
        ([{"name": "one", "weight": 0.0}], "weight"),
        ([{"name": "one"}], "weight"),
    ],
)
def test_blends_that_cannot_be(blend, message):
    with pytest.raises(ValueError, match=message):
        validate(Study, study(blend=blend), "small.toml")
