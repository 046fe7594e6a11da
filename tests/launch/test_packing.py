"""Several runs at a time: the same results, stopped together, and a process that dies takes no other along."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.folder import run_folder
from launch.results import read_progress, read_result
from tests.launch.small import assert_same_bits, expanded, study, write_study

LADDER = [{"num_layers": 1, "hidden_size": 32}, {"num_layers": 2, "hidden_size": 32}]
SECONDS = 120.0  # to wait for what takes some


def command(file: Path, data: Path, results: Path) -> list[str]:
    words = ["run", str(file), "--data", str(data), "--results", str(results)]
    return [sys.executable, "-m", "launch", *words, "--at-a-time", "2"]


def changes(steps: int) -> dict:
    return study(steps, ladder=LADDER, seeds=[0, 1])


def test_all_runs_are_trained_to_the_bits_that_each_has_alone(pictures, alone, tmp_path, capfd):
    file = write_study(tmp_path / "s.toml", changes(12))
    words = command(file, pictures, tmp_path)
    assert main(words[3:]) == 0
    for run in expanded(12, ladder=LADDER, seeds=[0, 1]):
        assert_same_bits(read_result(run_folder(tmp_path, run)), alone(run))
    capfd.readouterr()
    assert main(words[3:]) == 0
    assert "4 of 4 runs are finished: nothing to do" in capfd.readouterr().err


def wait_for_steps(folder: Path, count: int) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        begun = [path.parent for path in folder.glob("*/metrics.h5")]
        try:
            if sum(len(read_progress(path)[1]) > 0 for path in begun) >= count:
                return
        except ValueError:
            pass  # being written at this moment
        time.sleep(0.1)
    raise AssertionError(f"no {count} runs under way after {SECONDS} s")


def children(process: subprocess.Popen) -> list[int]:
    """The processes that train, by the order of their start."""
    pids = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.long
def test_a_signal_stops_all_and_a_dead_process_takes_no_other_along(pictures, alone, tmp_path):
    steps = 4000
    file = write_study(tmp_path / "s.toml", changes(steps))
    words = command(file, pictures, tmp_path)
    runs = expanded(steps, ladder=LADDER, seeds=[0, 1])
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        wait_for_steps(tmp_path / "small", 2)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=SECONDS)[1]
        assert process.returncode == 3, said
    assert said.count("stopped by SIGTERM, saved") == 2
    progress = [len(read_progress(run_folder(tmp_path, run))[1]) for run in runs]
    assert sum(each > 0 for each in progress) == 2

    shutil.rmtree(tmp_path / "small")
    file = write_study(tmp_path / "s.toml", changes(200))
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        wait_for_steps(tmp_path / "small", 2)
        os.kill(children(process)[0], signal.SIGKILL)
        said = process.communicate(timeout=SECONDS)[1]
        assert process.returncode == 4, said
    assert re.search(r"process \d of 2 was ended by SIGKILL: its run is not finished", said)
    runs = expanded(200, ladder=LADDER, seeds=[0, 1])
    finished = [read_progress(run_folder(tmp_path, run))[0] for run in runs]
    assert sorted(finished) == [False, True, True, True], "the other process did all the rest"


@pytest.mark.long
def test_the_processes_do_not_outlive_the_one_that_started_them(pictures, tmp_path):
    file = write_study(tmp_path / "s.toml", changes(4000))
    with subprocess.Popen(command(file, pictures, tmp_path), stderr=subprocess.PIPE) as process:
        pids = wait_for_children(process)
        process.kill()
    end = time.monotonic() + SECONDS
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.1)


def wait_for_children(process: subprocess.Popen) -> list[int]:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        found = children(process)
        if len(found) == 2:
            return found
        time.sleep(0.1)
    raise AssertionError("no two processes")


@pytest.mark.parametrize(("number", "ranks"), [("0", "1"), ("-3", "1"), ("2", "4")])
def test_numbers_that_make_no_sense_are_refused(
    number, ranks, pictures, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("WORLD_SIZE", ranks)
    file = write_study(tmp_path / "s.toml", changes(12))
    words = command(file, pictures, tmp_path)
    assert main([*words[3:-1], number]) == 2
    assert f"run: --at-a-time {number} with {ranks} ranks; wanted" in capsys.readouterr().err
