"""Stopped anywhere, in any way, and started again: the run never notices. `test_kill_9.py` has the topologies."""

import os
import random
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main as data_prep
from data_prep.domain import family
from launch.batches import TrainingBatches, open_dataset
from launch.checkpoint import newest
from launch.exits import BAD_INPUT
from launch.folder import run_folder
from launch.results import RunResult, read_result
from launch.run import run_all
from tests.launch.small import (
    BATCH,
    DIED,
    STEP,
    STOPPED,
    assert_same_bits,
    config,
    exit_status,
    start,
    start_ranks,
    study,
    train_alone,
    train_until,
    wait_for,
    write_study,
)

EVERY_STEP = {"interval_minutes": 0.0}
WAYS = [
    pytest.param(
        {"precision": precision, "parallel": {"zero_stage": stage}}, id=f"{precision}-zero{stage}"
    )
    for precision in ("fp32", "bf16")
    for stage in (0, 1)
]


@pytest.mark.parametrize("way", WAYS)
def test_a_stop_and_a_fresh_process_change_no_bit(way, alone, pictures, tmp_path, capfd):
    run = config(**way)
    assert not train_until(run, pictures, tmp_path, step=5)
    folder = run_folder(tmp_path, run)
    stopped = read_result(folder)
    assert not stopped.finished
    assert stopped.train["step"].tolist() == [1, 2, 3, 4, 5, 6], "one more step after the signal"
    assert newest(folder).step == 6

    command = ["run", write_study(tmp_path / "s.toml", study(**way)), "--data", pictures]
    process = start([*command, "--results", tmp_path], tmp_path / "log")
    assert exit_status(process) == 0, (tmp_path / "log").read_text()
    resumed = read_result(folder)
    assert_same_bits(resumed, alone(run))
    assert [start["resumed_at_step"] for start in resumed.provenance] == [0, 6]


def test_stops_at_every_step_within_one_process(alone, pictures, tmp_path):
    run = config(precision="bf16", parallel={"zero_stage": 1})
    for step in (1, 3, 5, 7, 9):  # a signal at step s stops after step s + 1
        assert not train_until(run, pictures, tmp_path, step)
        assert newest(run_folder(tmp_path, run)).step == step + 1
    assert_same_bits(train_alone(run, pictures, tmp_path), alone(run))


def test_mathematics_with_accumulation_resumes_too(alone, mathematics, tmp_path):
    tables = {
        "domain": "mathematics",
        "budget": {"tokens": 6.0 * BATCH * 512},
        "parallel": {"train_micro_batch_size_per_gpu": 2},
    }
    run = config(**tables)
    assert not train_until(run, mathematics, tmp_path, step=2)
    assert_same_bits(train_alone(run, mathematics, tmp_path), alone(run))


def test_sigterm_exits_with_3_and_the_same_command_continues(alone, pictures, tmp_path):
    tables = study(40, checkpoint=EVERY_STEP)
    run = config(40, checkpoint=EVERY_STEP)
    command = ["run", write_study(tmp_path / "s.toml", tables), "--data", pictures]
    command += ["--results", tmp_path]
    folder, log = run_folder(tmp_path, run), tmp_path / "log"

    process = start(command, log)
    wait_for(lambda: any(folder.glob("checkpoints/step-*")), "the first checkpoint")
    process.terminate()
    assert exit_status(process) == STOPPED, log.read_text()
    assert f"{run.run_id}: stopped by SIGTERM, saved; run it again to continue" in log.read_text()
    stopped = read_result(folder)
    assert not stopped.finished
    assert newest(folder).step == len(stopped.train)

    assert exit_status(start(command, log)) == 0, log.read_text()
    assert_same_bits(read_result(folder), alone(run))


def kill_and_compare(way, kills, seed, alone, pictures, tmp_path):
    """SIGKILL `kills` times at random moments, then let the run finish; compare every number."""
    steps = 30
    run = config(steps, checkpoint=EVERY_STEP, **way)
    tables = study(steps, checkpoint=EVERY_STEP, **way)
    command = ["run", write_study(tmp_path / "s.toml", tables), "--data", pictures]
    command += ["--results", tmp_path]
    folder, log, draw = run_folder(tmp_path, run), tmp_path / "log", random.Random(seed)
    for number in range(kills):
        process = start(command, log)
        if number % 2:  # anywhere in start-up or later; or else once training is on
            time.sleep(draw.uniform(0, 2))
        else:
            began = folder / "metrics.h5"
            wait_for(lambda: began.exists() or not process.is_alive(), "training")  # noqa: B023
            time.sleep(draw.uniform(0, 0.8))
        process.kill()
        assert exit_status(process) in (DIED, 0), log.read_text()
        if (folder / "metrics.h5").exists():
            read_result(folder)
    assert exit_status(start(command, log)) == 0, log.read_text()
    assert_same_bits(read_result(folder), alone(run))


@pytest.mark.parametrize("way", WAYS[-1:])
def test_kill_9_at_random_moments_changes_no_bit(way, alone, pictures, tmp_path):
    kill_and_compare(way, 3, 0, alone, pictures, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("way", WAYS)
def test_kill_9_a_hundred_times(way, seed, alone, pictures, tmp_path):
    kill_and_compare(way, 5, seed, alone, pictures, tmp_path)


def assert_equal_up_to_order_of_sums(found: RunResult, whole: RunResult) -> None:
    """The same batches, summed in another order: 2 n u in each step, n the tokens of a batch."""
    bound = 2 * STEP * 2.0**-24 * len(whole.train)
    for name in ("step", "tokens", "samples", "learning_rate"):
        np.testing.assert_array_equal(found.train[name], whole.train[name])
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(found.train[name], whole.train[name], rtol=bound, err_msg=name)


@pytest.mark.parametrize("stage", [0, 2])
def test_another_micro_batch_goes_on_with_the_same_batches(stage, alone, pictures, tmp_path):
    """From one micro-batch of four rows to four of one, and then to two."""
    run = config(parallel={"zero_stage": stage})
    assert not train_until(run, pictures, tmp_path, step=3)
    for rows, step in ((1, 7), (2, None)):
        split = run.parallel.model_copy(update={"train_micro_batch_size_per_gpu": rows})
        changed = run.model_copy(update={"parallel": split})
        if step:
            assert not train_until(changed, pictures, tmp_path, step)
        else:
            assert run_all([changed], pictures, tmp_path) == 0
    found = read_result(run_folder(tmp_path, run))
    assert [each["resumed_at_step"] for each in found.provenance] == [0, 4, 8]
    assert [each["train_micro_batch_size_per_gpu"] for each in found.provenance] == [4, 1, 2]
    assert_equal_up_to_order_of_sums(found, alone(run))


def test_one_rank_then_two_then_one(alone, pictures, tmp_path):
    """Each with `launch run` alone: a checkpoint does not ask who goes on from it."""
    tables = {"parallel": {"zero_stage": 1}, "checkpoint": EVERY_STEP}
    run = config(25, **tables)
    assert not train_until(run, pictures, tmp_path, step=3)
    path = write_study(tmp_path / "s.toml", study(25, **tables))
    command = ["run", path, "--data", pictures, "--results", tmp_path]
    ranks = start_ranks(command, tmp_path / "log", 2)
    folder = run_folder(tmp_path, run)
    wait_for(lambda: any(folder.glob("checkpoints/step-[6-9]")), "the two to have gone on")
    os.kill(ranks[1].pid, signal.SIGTERM)
    assert [exit_status(rank) for rank in ranks] == [STOPPED, STOPPED], said(tmp_path)
    assert run_all([run], pictures, tmp_path) == 0
    found = read_result(folder)
    assert [each["world_size"] for each in found.provenance] == [1, 2, 1]
    assert_equal_up_to_order_of_sums(found, alone(run))


def test_a_full_disk_during_a_save_is_told_once_and_loses_nothing(alone, pictures, tmp_path):
    """One of two ranks can no longer write files beyond a size: as on a full disk, what is there stays."""
    tables = {"parallel": {"zero_stage": 1}, "checkpoint": EVERY_STEP}
    run = config(25, **tables)
    path = write_study(tmp_path / "s.toml", study(25, **tables))
    command = ["run", path, "--data", pictures, "--results", tmp_path]
    ranks = start_ranks(command, tmp_path / "log", 2)
    folder = run_folder(tmp_path, run)
    wait_for(lambda: any(folder.glob("checkpoints/step-*")), "the first checkpoint")
    resource.prlimit(ranks[1].pid, resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    assert 1 in [exit_status(rank) for rank in ranks], said(tmp_path)
    assert said(tmp_path).count("File too large") == 1, said(tmp_path)
    assert "zero_pp_rank_1_mp_rank_00_optim_states.pt" in said(tmp_path)
    assert "Traceback" not in said(tmp_path)
    left = sorted((folder / "checkpoints").iterdir(), key=lambda path: int(path.name[5:]))
    assert newest(folder).path == left[-1], "whole, and nothing half-written beside it"
    assert run_all([run], pictures, tmp_path) == 0
    assert_equal_up_to_order_of_sums(read_result(folder), alone(run))


def test_a_shard_that_goes_missing_while_a_run_trains(tmp_path, monkeypatch):
    """Met by one rank at the step that first needs it: said once, with its name; all ranks end."""
    monkeypatch.setattr(family("image-8x8"), "_PIECE", 8)
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(800):
        Image.new("RGB", (8, 8), (number % 256, 255 - number // 4, 7)).save(raw / f"{number}.png")
    words = ["build", "image-8x8", "--raw", str(raw), "--out", str(tmp_path / "data")]
    assert data_prep([*words, "--workers", "1", "--chunks-per-shard", "1"]) == 0
    run = config(150)
    shard, step = needed_last(run, tmp_path / "data")
    assert step > 50, "time to take it away before"
    command = ["run", write_study(tmp_path / "s.toml", study(150)), "--data", tmp_path / "data"]
    ranks = start_ranks([*command, "--results", tmp_path], tmp_path / "log", 2)
    folder = run_folder(tmp_path, run)
    wait_for(lambda: (folder / "metrics.h5").exists(), "training")
    shard.rename(tmp_path / "elsewhere")
    statuses = [exit_status(rank) for rank in ranks]
    assert statuses == [BAD_INPUT, BAD_INPUT], said(tmp_path)
    assert said(tmp_path).count(f"FAILED: {shard}: ") == 1, said(tmp_path)
    assert "Traceback" not in said(tmp_path)


def needed_last(run, data: Path) -> tuple[Path, int]:
    """The training shard that is opened last, and the step that needs it."""
    dataset = open_dataset(data, "train", run)
    order = TrainingBatches(dataset, run, 0, 1)._sampler
    shards = sorted(data.glob("train-*.bin"))
    ends = np.cumsum([path.stat().st_size // 192 for path in shards])
    assert ends[-1] == dataset.num_rows
    seen: dict[int, int] = {}
    for step in range(run.train_steps):
        for row in order.rows_for(step, BATCH, 0, 1):
            seen.setdefault(int(np.searchsorted(ends, row, side="right")), step)
    last = max(seen, key=lambda shard: seen[shard])
    return shards[last], seen[last]


def said(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.glob("log.*")))
