"""Stopped anywhere, in any way, and started again: the run never notices."""

import random
import time

import pytest

from launch.checkpoint import newest
from launch.folder import run_folder
from launch.results import read_result
from tests.launch.small import (
    BATCH,
    DIED,
    STOPPED,
    assert_same_bits,
    config,
    exit_status,
    start,
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


@pytest.mark.parametrize("way", WAYS[::3])
def test_kill_9_at_random_moments_changes_no_bit(way, alone, pictures, tmp_path):
    kill_and_compare(way, 3, 0, alone, pictures, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("way", WAYS)
def test_kill_9_a_hundred_times(way, seed, alone, pictures, tmp_path):
    kill_and_compare(way, 5, seed, alone, pictures, tmp_path)
