"""Worker processes that may die: whatever one was doing is done again by another, and nothing else is lost.

`run_tasks(function, tasks, workers, patience)` yields an outcome for each task, in the order in which they finish. A
worker that exits (also by `kill -9`), raises, or stays silent for `patience` seconds costs only its own task, which is
tried `ATTEMPTS` times in all. Workers are spawned, not forked, so they inherit no locks and no open files.

The item under a worker's hands lies in memory that it shares with its parent, so it is known however the worker ends.
One that it was at the second time is refused from the third on, and the rest is done (`data_prep/watch.py`).
"""

import errno
import itertools
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

from data_prep.watch import KEY_BYTES, Watch

ATTEMPTS = 3
# Trying again cannot help against these: full disk, quota, size limit, read-only, no permission.
HOPELESS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
)
# Items that one task may lose so. More is no hostile item, but a machine without memory, or a fault of ours.
MOST_BLAMED = 16
_BEAT_SECONDS = 0.5

# Any: what is passed through is the caller's business. Called in the worker as function(task, watch).
Function = Callable[[Any, Watch], Any]


@dataclass(frozen=True)
class Progress:
    """`items` more are done; `task` and `result` are set when a whole task is."""

    items: int
    task: Any = None
    result: Any = None


@dataclass
class _Job:
    """A task, how often it has been tried, and which items of it are to be refused (mark -> reason)."""

    task: Any
    attempt: int = 0
    blamed: dict[bytes, str] = field(default_factory=dict)


@dataclass
class _Worker:
    """`mark` holds the key of the item under its hands, in shared memory."""

    process: BaseProcess
    pipe: Connection
    mark: Any
    job: _Job | None = None
    heard: float = field(default_factory=time.monotonic)


def run_tasks(
    function: Function,
    tasks: Iterable[Any],
    workers: int,
    patience: float | Callable[[Any], float],
    added: deque[Any] | None = None,
) -> Iterator[Progress]:
    """Do every task in one of `workers` processes. RuntimeError after a task has failed ATTEMPTS times, OSError at once
    for a full disk and the like; the workers are gone when this returns or raises.

    A task is taken from `tasks` when a worker is free for it, so there may be any number; those that the caller puts
    into `added` meanwhile come first. `patience`: in seconds, of every task or as a function of it.
    """
    waiting = _Waiting(iter(tasks), deque() if added is None else added)
    team: list[_Worker] = []
    try:
        while waiting.more() or any(worker.job is not None for worker in team):
            _hand_out(team, waiting, function, workers)
            yield from _listen(team, waiting, patience)
    finally:
        for worker in team:
            _dismiss(worker)


class _Waiting:
    """The jobs to come: those that are done again, then tasks that were added, then the others, one by one."""

    def __init__(self, tasks: Iterator[Any], added: deque[Any]) -> None:
        self._tasks, self._added = tasks, added
        self._again: deque[_Job] = deque()

    def more(self) -> bool:
        """Whether there is one."""
        if not self._again and not self._added:
            self._again.extend(_Job(task) for task in itertools.islice(self._tasks, 1))
        # To ask for the next task may have added others.
        return bool(self._again or self._added)

    def next(self) -> _Job:
        """The next one, where there is `more`."""
        return self._again.popleft() if self._again else _Job(self._added.popleft())

    def again(self, job: _Job) -> None:
        """Put back a job, before all others."""
        self._again.appendleft(job)


def _hand_out(team: list[_Worker], waiting: _Waiting, function: Function, workers: int) -> None:
    """Give every free worker a task, starting workers as needed."""
    while waiting.more():
        free = next((worker for worker in team if worker.job is None), None)
        if free is None and len(team) >= workers:
            return
        if free is None:
            free = _start(function)
            team.append(free)
        free.job = waiting.next()
        free.heard = time.monotonic()
        free.mark.value = b""
        try:
            free.pipe.send((free.job.task, free.job.attempt, free.job.blamed))
        except OSError:
            # It died while idle; the task is as good as new.
            waiting.again(free.job)
            team.remove(free)
            _dismiss(free)


def _start(function: Function) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    mark = context.RawArray("c", KEY_BYTES + 1)
    process = context.Process(target=_serve, args=(theirs, mark, function), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours, mark)


def _listen(
    team: list[_Worker], waiting: _Waiting, patience: float | Callable[[Any], float]
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
            job, worker.job = worker.job, None
            assert job is not None
            yield Progress(payload[0], job.task, payload[1])
        elif kind == "hopeless":
            raise payload
        else:
            _retry(waiting, worker, payload)
            worker.job = None
    for worker in list(team):
        if worker.job is None:
            continue
        limit = patience(worker.job.task) if callable(patience) else patience
        if time.monotonic() - worker.heard > limit:
            _lose(team, waiting, worker, f"the worker process was silent for {limit:g} s")


def _lose(team: list[_Worker], waiting: _Waiting, worker: _Worker, why: str) -> None:
    team.remove(worker)
    _dismiss(worker)
    if worker.job is not None:
        _retry(waiting, worker, why)


def _retry(waiting: _Waiting, worker: _Worker, why: str) -> None:
    """Put the job back, without the item that was under the worker's hands if this was not the first time."""
    job, mark = worker.job, bytes(worker.mark.value)
    assert job is not None
    tried = job.attempt + 1
    known = bool(mark) and mark not in job.blamed and len(job.blamed) < MOST_BLAMED
    if tried >= ATTEMPTS and not known:
        item = f" at item {mark.decode('utf-8', 'backslashreplace')}" if mark else ""
        raise RuntimeError(
            f"{job.task} failed {tried} times; wanted one success. The last time{item}: {why}. What was finished is "
            f"kept: repair the cause and run the same command again."
        )
    # The first time many items may have been under way together.
    blamed = {mark: f"given up after {tried} attempts: {why}"} if known and job.attempt else {}
    waiting.again(_Job(job.task, tried, job.blamed | blamed))


def _dismiss(worker: _Worker) -> None:
    worker.pipe.close()
    worker.process.kill()
    worker.process.join()


def _serve(pipe: Connection, mark: Any, function: Function) -> None:
    """A worker's life: take a task, do it, say so. Ends when the pipe does, as it does when the parent is killed."""
    parent = os.getppid()
    while True:
        try:
            task, attempt, blamed = pipe.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        try:
            beat = _Beat(pipe, parent)
            watch = Watch(attempt, blamed, beat, lambda key: setattr(mark, "value", key))
            _do(pipe, function, task, watch, beat)
        except (BrokenPipeError, KeyboardInterrupt):
            return


class _Beat:
    """Tells the parent of items done, at most twice a second; `unsaid` it has not heard of yet."""

    def __init__(self, pipe: Connection, parent: int) -> None:
        self._pipe, self._parent = pipe, parent
        self.unsaid, self._last = 0, time.monotonic()

    def __call__(self, items: int) -> None:
        self.unsaid += items
        if time.monotonic() - self._last > _BEAT_SECONDS:
            if os.getppid() != self._parent:
                raise BrokenPipeError("the build is gone")
            self._pipe.send(("beat", self.unsaid))
            self.unsaid, self._last = 0, time.monotonic()


def _do(pipe: Connection, function: Function, task: object, watch: Watch, beat: _Beat) -> None:
    try:
        result = function(task, watch)
    except BrokenPipeError:
        raise
    except OSError as error:
        hopeless = error.errno in HOPELESS
        pipe.send(("hopeless", error) if hopeless else ("failed", _one_line(error)))
    except Exception as error:  # whatever it was, the parent decides
        pipe.send(("failed", _one_line(error)))
    else:
        pipe.send(("done", (beat.unsaid, result)))


def _one_line(error: Exception) -> str:
    """An exception and where it came from, without the whole traceback."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({os.path.basename(place.filename)}:{place.lineno})"
