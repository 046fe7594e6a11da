"""Two ranks: the same numbers as one, one agreed stop, exact resume."""

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from launch.checkpoint import newest
from launch.folder import run_folder
from launch.results import read_result
from tests.launch.small import (
    STOPPED,
    assert_same_bits,
    config,
    exit_status,
    expanded,
    start_ranks,
    study,
    wait_for,
    write_study,
)

ROOT = Path(__file__).parents[2]
SINGLE = 2.0**-24


def assert_equal_up_to_order_of_sums(two, one):
    """Ranks split the batch as micro-batches do: 2 n u per step, n the tokens of a batch."""
    steps = np.arange(1, len(one.train) + 1)
    bound = 2 * (4 * 192) * SINGLE * steps
    for name in ("loss", "grad_norm"):
        assert (abs(two.train[name] / one.train[name] - 1) <= bound).all(), name
    for name in ("step", "tokens", "samples", "flops", "learning_rate"):
        np.testing.assert_array_equal(two.train[name], one.train[name])
    for name in ("step", "split", "kind", "num_tokens", "num_rows"):
        np.testing.assert_array_equal(two.eval[name], one.eval[name])
    np.testing.assert_allclose(two.eval["loss"], one.eval["loss"], rtol=bound[-1])
    np.testing.assert_allclose(two.eval["standard_error"], one.eval["standard_error"], rtol=1e-3)


def test_torchrun_trains_both_runs_of_a_study(alone, pictures, tmp_path):
    path = write_study(tmp_path / "s.toml", study(8, seeds=[0, 1]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "launch", "run", str(path)]
    command += ["--data", str(pictures), "--results", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=200, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    for run in expanded(8, seeds=[0, 1]):
        assert done.stderr.count(f"{run.run_id}: step 8/8") == 1, "rank 0 alone reports"
        result = read_result(run_folder(tmp_path, run))
        assert result.provenance[-1]["world_size"] == 2
        assert_equal_up_to_order_of_sums(result, alone(run))


@pytest.mark.parametrize(("precision", "stage"), [("fp32", 1), ("bf16", 0)])
def test_a_signal_to_one_rank_stops_both_and_they_resume_exactly(
    precision, stage, pictures, tmp_path
):
    tables = {
        "precision": precision,
        "parallel": {"zero_stage": stage},
        "checkpoint": {"interval_minutes": 0.0},
    }
    run = config(25, **tables)
    command = ["run", write_study(tmp_path / "s.toml", study(25, **tables)), "--data", pictures]

    whole = start_ranks([*command, "--results", tmp_path / "whole"], tmp_path / "whole.log", 2)
    assert [exit_status(each) for each in whole] == [0, 0], logs(tmp_path / "whole.log")

    command += ["--results", tmp_path / "stopped"]
    folder = run_folder(tmp_path / "stopped", run)
    ranks = start_ranks(command, tmp_path / "log", 2)
    wait_for(lambda: any(folder.glob("checkpoints/step-*")), "the first checkpoint")
    os.kill(ranks[1].pid, signal.SIGTERM)
    assert [exit_status(each) for each in ranks] == [STOPPED, STOPPED], logs(tmp_path / "log")
    stopped = read_result(folder)
    assert 1 <= len(stopped.train) < 25
    assert newest(folder).step == len(stopped.train)
    assert "stopped by SIGTERM" in logs(tmp_path / "log")

    ranks = start_ranks(command, tmp_path / "log", 2)
    assert [exit_status(each) for each in ranks] == [0, 0], logs(tmp_path / "log")
    assert_same_bits(read_result(folder), read_result(run_folder(tmp_path / "whole", run)))


def test_zero_stages_of_two_ranks_agree(alone, pictures, tmp_path):
    for stage in (0, 1):
        tables = {"parallel": {"zero_stage": stage}}
        path = write_study(tmp_path / f"{stage}.toml", study(**tables))
        command = ["run", path, "--data", pictures, "--results", tmp_path / str(stage)]
        ranks = start_ranks(command, tmp_path / "log", 2)
        assert [exit_status(each) for each in ranks] == [0, 0], logs(tmp_path / "log")
        run = config(**tables)
        result = read_result(run_folder(tmp_path / str(stage), run))
        assert_equal_up_to_order_of_sums(result, alone(run))


def test_a_checkpoint_of_two_ranks_on_one_is_refused_or_continued(alone, pictures, tmp_path):
    from launch.run import run_all

    tables = {"parallel": {"zero_stage": 1}, "checkpoint": {"interval_minutes": 0.0}}
    run = config(25, **tables)
    path = write_study(tmp_path / "s.toml", study(25, **tables))
    folder = run_folder(tmp_path, run)
    ranks = start_ranks(
        ["run", path, "--data", pictures, "--results", tmp_path], tmp_path / "log", 2
    )
    wait_for(lambda: any(folder.glob("checkpoints/step-*")), "the first checkpoint")
    os.kill(ranks[0].pid, signal.SIGTERM)
    assert [exit_status(each) for each in ranks] == [STOPPED, STOPPED], logs(tmp_path / "log")

    if run_all([run], pictures, tmp_path) == 0:
        assert_equal_up_to_order_of_sums(read_result(folder), alone(run))
    else:
        reason = (folder / "failed.json").read_text()
        assert "ranks" in reason
        assert "ValueError" in reason


def test_a_lock_held_elsewhere_ends_the_first_rank_so_that_the_launcher_ends_the_others(
    alone, pictures, tmp_path
):
    """Rank 0 alone sees the lock, while rank 1 waits in a collective."""
    run = config(8)
    folder = run_folder(tmp_path, run)
    folder.mkdir(parents=True)
    path = write_study(tmp_path / "s.toml", study(8))
    command = ["run", path, "--data", pictures, "--results", tmp_path]
    with (folder / "run.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        first, second = start_ranks(command, tmp_path / "log", 2)
        assert exit_status(first) == 1, logs(tmp_path / "log")
        second.terminate()  # what torchrun does then
        assert exit_status(second, 20) != 0
    assert "another process trains this run" in logs(tmp_path / "log")
    assert not (folder / "failed.json").exists(), "it has not failed: another trains it"
    ranks = start_ranks(command, tmp_path / "log", 2)
    assert [exit_status(each) for each in ranks] == [0, 0], logs(tmp_path / "log")
    assert_equal_up_to_order_of_sums(read_result(folder), alone(run))


def logs(prefix: Path) -> str:
    return "\n".join(f"rank {n}: " + Path(f"{prefix}.{n}").read_text() for n in range(2))
