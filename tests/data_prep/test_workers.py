import os
import time
from collections import deque
from pathlib import Path

import pytest

from data_prep import workers
from data_prep.workers import run_tasks


def square(task, watch):
    watch.beat(1)
    return task * task


def unlucky(task, watch):
    """Task (folder, number): number 3 dies the first time, leaving its mark; all others must be done just once."""
    (folder, number), attempt = task, watch.attempt
    with open(Path(folder) / f"{number}-{attempt}", "x"):
        pass
    if number == 3 and attempt == 0:
        os.kill(os.getpid(), 9)
    if number == 4 and attempt == 0:
        raise TypeError("odd")
    if number == 5 and attempt == 0:
        time.sleep(60)
    return number


def always_raise(task, watch):
    raise KeyError(task)


def always_die(task, watch):
    os._exit(7)


def full_disk(task, watch):
    raise OSError(28, "No space left on device", "/x/y")


def slow_but_alive(task, watch):
    for _ in range(6):
        time.sleep(0.6)
        watch.beat(1)
    return task


def sleepy(task, watch):
    time.sleep(60)


def hostile_items(task, watch):
    """Items of a task: those called "die" and "raise" end their process every time."""
    done = []
    for item in task:
        try:
            watch.begin(item)
        except ValueError as error:
            done.append(str(error))
            continue
        if item.startswith("die"):
            os.kill(os.getpid(), 9)
        if item.startswith("raise"):
            raise TypeError("odd")
        if item.startswith("sleep"):
            time.sleep(60)
        done.append(item)
    watch.end()
    if "end" in task:
        os._exit(7)
    return done


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


def test_tasks_are_taken_one_by_one_and_those_that_are_added_come_first():
    taken, added, done = [], deque(), []

    def tasks():
        for number in range(20):
            taken.append(number)
            yield number

    for progress in run_tasks(square, tasks(), 1, lambda task: 60.0, added):
        if progress.task is not None:
            done.append(progress.task)
            assert len(taken) <= len(done) + 2, "no more than are being done and one"
            if progress.task == 5:
                added.append(100)
            if progress.task == 19:
                added.append(200)
    assert sorted(done) == [*range(20), 100, 200]
    assert done.index(100) <= 8
    assert done[-1] == 200


def test_the_patience_may_depend_on_the_task():
    with pytest.raises(RuntimeError, match="silent for 1 s"):
        results(sleepy, ["long"], patience=lambda task: {"long": 1.0}[task])


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


def test_an_item_that_ends_its_process_is_refused_and_the_rest_is_done():
    (done,) = results(hostile_items, [["a", "die 1", "b", "raise", "die 2", "c"]])
    killed = "given up after {} attempts: the worker process died (exit code -9)"
    raised = "given up after 3 attempts: TypeError: odd (test_workers.py:"
    assert done[0:3] == ["a", killed.format(2), "b"]
    assert done[3].startswith(raised)
    assert done[4:] == [killed.format(4), "c"]


def test_an_item_that_never_ends_is_refused():
    (done,) = results(hostile_items, [["a", "sleep", "b"]], patience=5.0)
    assert done == ["a", "given up after 2 attempts: the worker process was silent for 5 s", "b"]


def test_a_process_that_dies_between_items_blames_none():
    with pytest.raises(RuntimeError, match=r"failed 3 times; wanted one success. The last time: "):
        results(hostile_items, [["a", "end"]])


def test_too_many_hostile_items_are_an_error_that_names_the_last():
    items = [f"die {number}" for number in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "MOST_BLAMED", 2)
        with pytest.raises(RuntimeError, match="failed 4 times; .* The last time at item die 2: "):
            results(hostile_items, [items])
