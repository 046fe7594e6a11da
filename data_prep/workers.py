"""Worker processes that may die: whatever one was doing is done again by another, and nothing else is lost.

`run_tasks(function, tasks, workers, patience)` yields an outcome for each task, in the order in which they finish. A
worker that exits (also by `kill -9`), raises, or stays silent for `patience` seconds costs only its own task, which is
tried `ATTEMPTS` times in all. Workers are spawned, not forked, so they inherit no locks and no open files.
"""

import errno
import multiprocessing
import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

ATTEMPTS = 3
# Trying again cannot help against these: full disk, quota, size limit, read-only, no permission.
HOPELESS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
)
_BEAT_SECONDS = 0.5

# Any: what is passed through is the caller's business.
Beat = Callable[[int], None]
# Called in the worker as function(task, attempt, beat), attempt counting from 0; beat(n) tells of n more items done.
Function = Callable[[Any, int, Beat], Any]


@dataclass(frozen=True)
class Progress:
    """`items` more are done; `task` and `result` are set when a whole task is."""

    items: int
    task: Any = None
    result: Any = None


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    task: Any = None
    attempt: int = 0
    heard: float = field(default_factory=time.monotonic)


def run_tasks(
    function: Function, tasks: Iterable[Any], workers: int, patience: float
) -> Iterator[Progress]:
    """Do every task in one of `workers` processes. RuntimeError after a task has failed ATTEMPTS times, OSError at once
    for a full disk and the like; the workers are gone when this returns or raises."""
    waiting = deque((task, 0) for task in tasks)
    team: list[_Worker] = []
    try:
        while waiting or any(worker.task is not None for worker in team):
            _hand_out(team, waiting, function, workers)
            yield from _listen(team, waiting, patience)
    finally:
        for worker in team:
            _dismiss(worker)


def _hand_out(
    team: list[_Worker], waiting: deque[tuple[Any, int]], function: Function, workers: int
) -> None:
    """Give every free worker a task, starting workers as needed."""
    while waiting:
        free = next((worker for worker in team if worker.task is None), None)
        if free is None and len(team) >= workers:
            return
        if free is None:
            free = _start(function)
            team.append(free)
        free.task, free.attempt = waiting.popleft()
        free.heard = time.monotonic()
        try:
            free.pipe.send((free.task, free.attempt))
        except OSError:
            # It died while idle; the task is as good as new.
            waiting.appendleft((free.task, free.attempt))
            team.remove(free)
            _dismiss(free)


def _start(function: Function) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, function), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _listen(
    team: list[_Worker], waiting: deque[tuple[Any, int]], patience: float
) -> Iterator[Progress]:
    """Wait a moment for messages; notice the dead and the silent."""
    ready = wait([worker.pipe for worker in team], timeout=1.0)
    for worker in [each for each in team if each.pipe in ready]:
        worker.heard = time.monotonic()
        try:
            kind, payload = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join(timeout=10)
            _lose(
                team,
                waiting,
                worker,
                f"the worker process died (exit code {worker.process.exitcode})",
            )
            continue
        if kind == "beat":
            yield Progress(payload)
        elif kind == "done":
            task, worker.task = worker.task, None
            yield Progress(payload[0], task, payload[1])
        elif kind == "hopeless":
            raise payload
        else:
            _retry(waiting, worker, payload)
            worker.task = None
    for worker in list(team):
        if worker.task is not None and time.monotonic() - worker.heard > patience:
            _lose(team, waiting, worker, f"the worker process was silent for {patience:g} s")


def _lose(team: list[_Worker], waiting: deque[tuple[Any, int]], worker: _Worker, why: str) -> None:
    team.remove(worker)
    _dismiss(worker)
    if worker.task is not None:
        _retry(waiting, worker, why)


def _retry(waiting: deque[tuple[Any, int]], worker: _Worker, why: str) -> None:
    if worker.attempt + 1 >= ATTEMPTS:
        raise RuntimeError(
            f"{worker.task} failed {ATTEMPTS} times; wanted one success. The last time: {why}. What was finished is "
            f"kept: repair the cause and run the same command again."
        )
    waiting.appendleft((worker.task, worker.attempt + 1))


def _dismiss(worker: _Worker) -> None:
    worker.pipe.close()
    worker.process.kill()
    worker.process.join()


def _serve(pipe: Connection, function: Function) -> None:
    """A worker's life: take a task, do it, say so. Ends when the pipe does, as it does when the parent is killed."""
    parent = os.getppid()
    while True:
        try:
            task, attempt = pipe.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        try:
            _do(pipe, function, task, attempt, parent)
        except (BrokenPipeError, KeyboardInterrupt):
            return


def _do(pipe: Connection, function: Function, task: object, attempt: int, parent: int) -> None:
    unsaid, last = 0, time.monotonic()

    def beat(items: int) -> None:
        nonlocal unsaid, last
        unsaid += items
        if time.monotonic() - last > _BEAT_SECONDS:
            if os.getppid() != parent:
                raise BrokenPipeError("the build is gone")
            pipe.send(("beat", unsaid))
            unsaid, last = 0, time.monotonic()

    try:
        result = function(task, attempt, beat)
    except BrokenPipeError:
        raise
    except OSError as error:
        hopeless = error.errno in HOPELESS
        pipe.send(("hopeless", error) if hopeless else ("failed", _one_line(error)))
    except Exception as error:  # whatever it was, the parent decides
        pipe.send(("failed", _one_line(error)))
    else:
        pipe.send(("done", (unsaid, result)))


def _one_line(error: Exception) -> str:
    """An exception and where it came from, without the whole traceback."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({os.path.basename(place.filename)}:{place.lineno})"
