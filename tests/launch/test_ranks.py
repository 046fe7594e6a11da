"""Two ranks: the same numbers as one, one agreed stop, exact resume."""

import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main as data_prep
from data_prep.domain import family
from launch.config import RunConfig
from launch.folder import run_folder
from launch.results import RunResult, read_result
from tests.launch.small import (
    DIED,
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


SPREAD = [
    ("fp32", {"zero_stage": 1}, 0.1),
    ("bf16", {"zero_stage": 0}, 0.0),
    ("bf16", {"zero_stage": 3, "tensor_model_parallel_size": 2, "sequence_parallel": True}, 0.1),
    # One micro-batch is all: the noise scale's half of it meets the collectives of sequence parallelism.
    ("bf16", {"zero_stage": 1, "tensor_model_parallel_size": 2, "sequence_parallel": True}, 0.0),
]


@pytest.mark.parametrize(("precision", "parallel", "dropout"), SPREAD)
def test_a_signal_to_one_rank_stops_both_and_they_resume_exactly(
    precision, parallel, dropout, pictures, tmp_path
):
    tables = {
        "precision": precision,
        "parallel": parallel,
        "model": {"dropout": dropout},
        "checkpoint": {"interval_minutes": 0.0},
    }
    run = config(25, **tables)
    command = ["run", write_study(tmp_path / "s.toml", study(25, **tables)), "--data", pictures]
    whole = undisturbed(command, tmp_path, run)

    command += ["--results", tmp_path / "stopped"]
    folder = run_folder(tmp_path / "stopped", run)
    ranks = start_ranks(command, tmp_path / "log", 2)
    wait_for(lambda: any(folder.glob("checkpoints/step-*")), "the first checkpoint")
    os.kill(ranks[1].pid, signal.SIGTERM)
    assert [exit_status(each) for each in ranks] == [STOPPED, STOPPED], logs(tmp_path / "log")
    stopped = read_result(folder)
    assert 1 <= len(stopped.train) < 25
    assert "stopped by SIGTERM" in logs(tmp_path / "log")

    ranks = start_ranks(command, tmp_path / "log", 2)
    assert [exit_status(each) for each in ranks] == [0, 0], logs(tmp_path / "log")
    assert_same_bits(read_result(folder), whole)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_kill_9_of_split_models_changes_no_bit(stage, pictures, tmp_path):
    """Both ranks at once, at moments that nobody chose, saves included: there is one after each step."""
    tables = {
        "precision": "bf16",
        "parallel": {"zero_stage": stage, "tensor_model_parallel_size": 2},
        "checkpoint": {"interval_minutes": 0.0},
    }
    run = config(25, **tables)
    command = ["run", write_study(tmp_path / "s.toml", study(25, **tables)), "--data", pictures]
    whole = undisturbed(command, tmp_path, run)
    command += ["--results", tmp_path / "killed"]
    folder = run_folder(tmp_path / "killed", run)
    moments = random.Random(stage)
    for _ in range(2):
        ranks = start_ranks(command, tmp_path / "log", 2)
        wait_for(lambda: any(folder.glob("checkpoints/step-*")), "the first checkpoint")
        time.sleep(moments.uniform(0, 2))
        for rank in ranks:
            rank.kill()
        assert {exit_status(each) for each in ranks} <= {DIED, 0}
    ranks = start_ranks(command, tmp_path / "log", 2)
    assert [exit_status(each) for each in ranks] == [0, 0], logs(tmp_path / "log")
    assert_same_bits(read_result(folder), whole)


def undisturbed(command: list, folder: Path, run: RunConfig) -> RunResult:
    ranks = start_ranks([*command, "--results", folder / "whole"], folder / "whole.log", 2)
    assert [exit_status(each) for each in ranks] == [0, 0], logs(folder / "whole.log")
    return read_result(run_folder(folder / "whole", run))


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


def test_a_checkpoint_of_two_ranks_is_continued_on_one(alone, pictures, tmp_path):
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

    assert run_all([run], pictures, tmp_path) == 0
    assert_equal_up_to_order_of_sums(read_result(folder), alone(run))


def test_a_lock_held_elsewhere_ends_all_ranks(alone, pictures, tmp_path):
    """Rank 0 alone sees the lock, while rank 1 waits in a collective."""
    run = config(8)
    folder = run_folder(tmp_path, run)
    folder.mkdir(parents=True)
    path = write_study(tmp_path / "s.toml", study(8))
    command = ["run", path, "--data", pictures, "--results", tmp_path]
    with (folder / "run.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        first, second = start_ranks(command, tmp_path / "log", 2)
        assert exit_status(first) == 2, logs(tmp_path / "log")
        assert exit_status(second, 30) == 2, logs(tmp_path / "log")
    assert "another process trains this run" in logs(tmp_path / "log")
    assert not (folder / "failed.json").exists(), "it has not failed: another trains it"
    ranks = start_ranks(command, tmp_path / "log", 2)
    assert [exit_status(each) for each in ranks] == [0, 0], logs(tmp_path / "log")
    assert_equal_up_to_order_of_sums(read_result(folder), alone(run))


def test_a_bit_flipped_in_one_ranks_file_sends_both_to_the_older_checkpoint(pictures, tmp_path):
    tables = {"parallel": {"zero_stage": 1}, "checkpoint": {"interval_minutes": 0.0}}
    run = config(25, **tables)
    command = ["run", write_study(tmp_path / "s.toml", study(25, **tables)), "--data", pictures]
    whole = undisturbed(command, tmp_path, run)
    command += ["--results", tmp_path / "damaged"]
    folder = run_folder(tmp_path / "damaged", run)
    ranks = start_ranks(command, tmp_path / "log", 2)
    wait_for(lambda: len(list(folder.glob("checkpoints/step-*"))) == 2, "two checkpoints")
    os.kill(ranks[0].pid, signal.SIGTERM)
    assert [exit_status(each) for each in ranks] == [STOPPED, STOPPED], logs(tmp_path / "log")
    newest = max(folder.glob("checkpoints/step-*"), key=lambda path: int(path.name[5:]))
    file = next(newest.glob("*zero_pp_rank_1_*"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    ranks = start_ranks(command, tmp_path / "again", 2)
    assert [exit_status(each) for each in ranks] == [0, 0], logs(tmp_path / "again")
    said = logs(tmp_path / "again")
    assert said.count(f"WARNING: {file}: sha256") == 1
    assert f"continues after step {int(newest.name[5:]) - 1} " in said
    assert_same_bits(read_result(folder), whole)


def test_a_shard_that_is_missing_ends_both_ranks_with_its_name_and_loses_nothing(
    tmp_path, monkeypatch
):
    """Found before the first step; one that is taken away later is still open."""
    monkeypatch.setattr(family("image-8x8"), "_PIECE", 40)
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(200):
        Image.new("RGB", (8, 8), (number, 255 - number, 7)).save(raw / f"{number}.png")
    words = ["build", "image-8x8", "--raw", str(raw), "--out", str(tmp_path / "data")]
    assert data_prep([*words, "--workers", "1", "--chunks-per-shard", "1"]) == 0
    shard = sorted((tmp_path / "data").glob("train-*.bin"))[1]
    shard.rename(tmp_path / "elsewhere")
    path = write_study(tmp_path / "s.toml", study(25))
    command = ["run", path, "--data", tmp_path / "data", "--results", tmp_path]
    ranks = start_ranks(command, tmp_path / "log", 2)
    assert [exit_status(each) for each in ranks] == [2, 2], logs(tmp_path / "log")
    said = logs(tmp_path / "log")
    assert f"{shard}: is missing; wanted " in said
    assert "Traceback" not in said
    (tmp_path / "elsewhere").rename(shard)
    ranks = start_ranks(command, tmp_path / "log", 2)
    assert [exit_status(each) for each in ranks] == [0, 0], logs(tmp_path / "log")
    assert read_result(run_folder(tmp_path, config(25))).finished


def logs(prefix: Path) -> str:
    return "\n".join(f"rank {n}: " + Path(f"{prefix}.{n}").read_text() for n in range(2))
