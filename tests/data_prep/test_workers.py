import os
import time
from pathlib import Path

import pytest

from data_prep.workers import run_tasks


def square(task, attempt, beat):
    beat(1)
    return task * task


def unlucky(task, attempt, beat):
    """Task (folder, number): number 3 dies the first time, leaving its mark; all others must be done just once."""
    folder, number = task
    with open(Path(folder) / f"{number}-{attempt}", "x"):
        pass
    if number == 3 and attempt == 0:
        os.kill(os.getpid(), 9)
    if number == 4 and attempt == 0:
        raise TypeError("odd")
    if number == 5 and attempt == 0:
        time.sleep(60)
    return number


def always_raise(task, attempt, beat):
    raise KeyError(task)


def always_die(task, attempt, beat):
    os._exit(7)


def full_disk(task, attempt, beat):
    raise OSError(28, "No space left on device", "/x/y")


def slow_but_alive(task, attempt, beat):
    for _ in range(6):
        time.sleep(0.6)
        beat(1)
    return task


def results(function, tasks, workers=2, patience=60.0):
    return [
        progress.result
        for progress in run_tasks(function, tasks, workers, patience)
        if progress.task is not None
    ]


@pytest.mark.parametrize("workers", [1, 3])
def test_every_task_is_done_once(workers):
    progress = list(run_tasks(square, range(1, 20), workers, 60.0))
    assert sorted(each.result for each in progress if each.task) == [n * n for n in range(1, 20)]
    assert sum(each.items for each in progress) == 19


def test_the_dead_the_raising_and_the_silent_lose_only_their_own_task(tmp_path):
    tasks = [(str(tmp_path), number) for number in range(8)]
    assert sorted(results(unlucky, tasks, patience=12.0)) == list(range(8))
    done = sorted(path.name for path in tmp_path.iterdir())
    assert done == sorted([f"{n}-0" for n in range(8)] + ["3-1", "4-1", "5-1"])


def test_a_worker_that_beats_is_not_silent():
    assert results(slow_but_alive, [1], patience=2.0) == [1]


def test_what_fails_every_time_is_an_error():
    with pytest.raises(
        RuntimeError,
        match=r"x failed 3 times; .*KeyError: 'x' \(test_workers.py:\d+\).*run the same",
    ):
        results(always_raise, ["x"])
    with pytest.raises(
        RuntimeError, match=r"5 failed 3 times; wanted one success.*died \(exit code 7\)"
    ):
        results(always_die, [5])


def test_a_full_disk_is_not_tried_again():
    start = time.monotonic()
    with pytest.raises(OSError, match="No space left on device") as error:
        results(full_disk, [1])
    assert error.value.filename == "/x/y"
    assert time.monotonic() - start < 30


def test_no_process_is_left():
    before = set(os.listdir("/proc"))
    with pytest.raises(RuntimeError):
        results(always_raise, range(4))
    children = [
        pid
        for pid in set(os.listdir("/proc")) - before
        if pid.isdigit() and _parent(pid) == os.getpid()
    ]
    # multiprocessing keeps one process that watches over shared resources.
    assert all("resource_tracker" in Path(f"/proc/{pid}/cmdline").read_text() for pid in children)


def _parent(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1
