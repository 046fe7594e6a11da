"""A gradient that is not finite on one rank: no weight of any rank changes; the run stops, or goes on and counts it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from launch.engine import Engine
from launch.folder import run_folder
from launch.results import read_result
from launch.safe_load import load_file
from tests.launch.poisoned import start_ranks_with_nan, with_nan
from tests.launch.small import (
    assert_same_bits,
    config,
    exit_status,
    study,
    train_alone,
    train_until,
    write_study,
)

SKIP = {"guards": {"non_finite": "skip"}}


def logs(prefix: Path) -> str:
    return "".join(Path(f"{prefix}.{rank}").read_text() for rank in range(2))


def tensors(value: Any, path: str = "") -> dict[str, torch.Tensor]:
    """Every tensor in a nest of dictionaries and lists, by where it is."""
    if isinstance(value, torch.Tensor):
        return {path: value}
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    nested = (tensors(each, f"{path}/{name}") for name, each in inside if is_nest(each))
    return {name: tensor for found in nested for name, tensor in found.items()}


def is_nest(value: Any) -> bool:
    return isinstance(value, dict | list | tuple | torch.Tensor)


def state_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Weights, master weights and Adam's moments of all ranks."""
    return {
        f"{path.name}{name}": tensor
        for path in sorted(checkpoint.glob("*.pt"))
        for name, tensor in tensors(load_file(path)).items()
    }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_nan_on_one_rank_is_left_out_on_all_and_counted_once(pictures, tmp_path):
    tables = {**SKIP, "parallel": {"zero_stage": 1}, "checkpoint": {"keep_every": 1}}
    path = write_study(tmp_path / "s.toml", study(4, **tables))
    command = ["run", path, "--data", pictures, "--results", tmp_path]
    ranks = start_ranks_with_nan(command, tmp_path / "log", 2, rank=1, at=2)
    assert [exit_status(each) for each in ranks] == [0, 0], logs(tmp_path / "log")
    run = config(4, **tables)
    folder = run_folder(tmp_path, run)
    result = read_result(folder)
    assert result.finished
    assert result.skipped.tolist() == [3]
    assert np.isfinite(np.delete(result.train["loss"], 2)).all()
    states = [state_of(folder / "checkpoints" / f"step-{step}") for step in (2, 3, 4)]
    assert len(states[0]) > 20, "weights and moments were found"
    assert same(states[0], states[1]), "the step changed something"
    assert not same(states[1], states[2]), "training went on"
    said = logs(tmp_path / "log")
    assert said.count(f"WARNING: {run.run_id}: step 3 has loss nan and gradient norm ") == 1
    assert said.count("1 of 4 steps changed no weight") == 1


def test_by_default_it_stops_all_ranks_with_one_message(pictures, tmp_path):
    path = write_study(tmp_path / "s.toml", study(8))
    command = ["run", path, "--data", pictures, "--results", tmp_path]
    ranks = start_ranks_with_nan(command, tmp_path / "log", 2, rank=1, at=4)
    assert [exit_status(each) for each in ranks] == [1, 1], logs(tmp_path / "log")
    assert logs(tmp_path / "log").count("step 5 has loss nan and gradient norm ") == 1
    result = read_result(run_folder(tmp_path, config(8)))
    assert (len(result.train), result.finished) == (5, False)


@pytest.mark.parametrize("stop_after", [3, 6])
def test_a_resume_keeps_the_count(stop_after, pictures, tmp_path, monkeypatch, capfd):
    """Stopped before the skipped step, and after it."""
    monkeypatch.setattr(Engine, "train_step", with_nan(Engine.train_step, at=4))
    run = config(9, **SKIP)
    whole = train_alone(run, pictures, tmp_path / "whole")
    assert whole.skipped.tolist() == [5]
    assert (
        "1 of 9 steps changed no weight, for their gradient was not finite"
        in capfd.readouterr().err
    )
    assert not train_until(run, pictures, tmp_path / "stopped", step=stop_after)
    stopped = read_result(run_folder(tmp_path / "stopped", run))
    assert stopped.skipped.tolist() == [5] * (stop_after > 4)
    resumed = train_alone(run, pictures, tmp_path / "stopped")
    assert_same_bits(resumed, whole)
    assert "1 of 9 steps changed no weight" in capfd.readouterr().err
