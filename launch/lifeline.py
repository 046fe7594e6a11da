"""A run that hangs or loses a rank ends, on all ranks, with one message that says why.

A collective waits for every rank: where one is dead or stuck, the others wait in silence, for ten
minutes (PyTorch's own limit) or longer. Here each process has threads that

    - note every few seconds, in the store where the ranks met, that the process lives;
    - look whether the process of the next rank still does: a ring, so that their work does not grow with
      the number of ranks; and whether anybody has said that the run is over;
    - watch the steps of this process: one that takes too long is a hang. Every rank's stacks go to its
      stderr: the ranks wait for each other, and the one whose time is up first need not be the one behind.

Whoever finds something says it, once, and writes it into the store; every thread reads that within
seconds and ends its process. Where rank 0 has taken the store along, those that are left all find it out;
the first of them to make a file in the run's folder says it. Nothing is saved then: the run continues from
its newest checkpoint.

A process that was stopped and goes on (suspended by Slurm for other work, or on a terminal) stood still,
threads and all: that time counts for nothing.
"""

import contextlib
import faulthandler
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed
from torch.distributed import PrefixStore, Store

from launch.checkpoint import SAID_ELSEWHERE
from launch.exits import EXPLAINED, FAILED, LOST, status_of

BEAT_SECONDS = 2.0
SILENCE_SECONDS = 30.0  # of a process, until it is taken for dead
LONGER = (
    10.0  # than a step: the first one, in which kernels are compiled; an evaluation; a checkpoint
)

HANGS = "hangs"
CLAIM = ".lost-"  # a file of this name and a mark of the attempt: somebody has said that the store is gone
_OVER, _SAID, _ERRORS, _LEFT, _GONE, _MARK = "over", "said", "errors", "left", "gone", "mark"


class Lifeline:
    """Watches one run. A context manager; `step` tells that the process has got on."""

    def __init__(
        self,
        name: str,
        hang_minutes: float,
        record: Callable[[Exception], None],
        folder: Path | None = None,
    ) -> None:
        """`record` is called, on the process that finds something, with what it found. `folder`: of the run, on a disk
        that all ranks share."""
        self.speaks = True  # this rank, of an error that it leaves with: no other has said it
        self._name, self._record, self._folder = name, record, folder
        self._limit = 60 * hang_minutes
        self._deadline = time.monotonic() + LONGER * self._limit
        self._ended, self._spoken = threading.Event(), threading.Event()
        self._ending = threading.Lock()  # held by the thread that ends this process
        self._rank, self._ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self._store = _store(name) if self._ranks > 1 else None
        # Of this attempt; the other ranks learn it.
        self._mark = uuid.uuid4().hex if self._rank == 0 else ""
        self._answered = time.monotonic()  # the store, the last time
        work = [self._watch_steps] + ([self._watch_ranks] if self._store else [])
        self._threads = [threading.Thread(target=each, daemon=True) for each in work]

    def __enter__(self) -> "Lifeline":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.speaks = not hasattr(error, SAID_ELSEWHERE)
        if self._store and error is not None:
            self._explain(self._store, error)
        self._ended.set()
        for thread in self._threads:
            thread.join()
        if self._store:
            with contextlib.suppress(RuntimeError):  # the process that keeps it may have gone first
                self._store.set(str(self._rank), _LEFT)
                self._leave(self._store, error is None)

    def _leave(self, store: Store, well: bool) -> None:
        """Rank 0 may take the store along, so it goes last; the others of a failed one read why first."""
        gone = store.add(_GONE, 1)
        deadline = time.monotonic() + (SILENCE_SECONDS if well else 3 * BEAT_SECONDS)
        while self._rank == 0 and gone < self._ranks and time.monotonic() < deadline:
            time.sleep(BEAT_SECONDS / 20)
            gone = store.add(_GONE, 0)

    def step(self) -> None:
        """The process has finished a step."""
        self._deadline = time.monotonic() + self._limit

    @contextlib.contextmanager
    def patience(self) -> Iterator[None]:
        """What is done in here may take longer than a step."""
        self._deadline = time.monotonic() + LONGER * self._limit
        yield
        self.step()

    def _explain(self, store: Store, error: BaseException) -> None:
        """Tell the others why this rank leaves; or wait for the reason, if it is that another one did."""
        try:
            if isinstance(error, EXPLAINED):
                self._spoken.set()
                self.speaks = self.speaks and store.add(_SAID, 1) == 1
                if self.speaks:
                    store.set(_OVER, f"{status_of(error)} rank {self._rank} failed: {error}")
                return
            count = store.add(_ERRORS, 1)
            deadline = time.monotonic() + SILENCE_SECONDS + 5 * BEAT_SECONDS
            # Where every rank failed by itself, none of them was lost.
            while count < self._ranks and time.monotonic() < deadline:
                time.sleep(BEAT_SECONDS / 4)
                count = store.add(_ERRORS, 0)
            if count < self._ranks:  # nobody was lost and nobody else failed: it is this rank's own
                self._spoken.set()
                what = f"{type(error).__name__}: {error}"
                store.set(_OVER, f"{FAILED} rank {self._rank} failed: {what}")
        except RuntimeError:
            self._end_without_store()

    # --- the threads: one asks the store, which may not answer; the other looks at the clock alone

    def _beats(self) -> Iterator[tuple[float, float]]:
        """Until the end, every few seconds: the time, and how long this process stood still before it."""
        last = time.monotonic()
        while not self._ended.wait(BEAT_SECONDS):
            now = time.monotonic()
            still = now - last - BEAT_SECONDS
            yield now, still if still > 2 * BEAT_SECONDS else 0.0
            last = time.monotonic()

    def _watch_steps(self) -> None:
        for now, still in self._beats():
            self._deadline += still
            self._answered += still
            if now > self._deadline:
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                self._end(f"rank {self._rank} on {platform.node()} {HANGS}: its stacks are above")
            if self._store and now - self._answered > SILENCE_SECONDS:
                self._end_without_store()

    def _watch_ranks(self) -> None:
        assert self._store is not None
        heard, last = time.monotonic(), None
        for _, still in self._beats():
            heard += still
            try:
                self._store.set(str(self._rank), str(time.monotonic()))
                self._learn_mark(self._store)
                if self._store.check([_OVER]):
                    self._follow(self._store.get(_OVER).decode())
                following = self._following(self._store)
            except RuntimeError:
                self._end_without_store()
            now = self._answered = time.monotonic()
            if following != last or following in (None, _LEFT.encode()):
                heard, last = now, following
            if now - heard > SILENCE_SECONDS:
                lost = (self._rank + 1) % self._ranks
                self._end(f"rank {lost} died: its process has been silent for {now - heard:.0f} s")

    def _following(self, store: Store) -> bytes | None:
        """The last sign of the next rank; None before its first."""
        key = str((self._rank + 1) % self._ranks)
        return store.get(key) if store.check([key]) else None

    def _follow(self, over: str) -> None:
        """Another rank has said why the run is over. The first writes it down, for it has the folder."""
        if self._spoken.is_set():
            return
        status, why = over.split(" ", 1)
        if HANGS in why:  # whose stack is not in a collective is the one that is behind
            faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        if self._rank == 0:
            self._record(RuntimeError(f"{self._name}: {why}"))
            time.sleep(2 * BEAT_SECONDS)  # it may take the store along: the others read it first
        os._exit(int(status))

    def _end(self, what: str) -> None:
        self._ending.acquire()
        if self._store:
            # The store may not answer: half of the beats to be the first to say it, half for the others.
            first = threading.Thread(target=self._say_first, args=(self._store, what), daemon=True)
            first.start()
            first.join(3 * BEAT_SECONDS)
        self._say(what)
        if self._store:
            time.sleep(3 * BEAT_SECONDS)
        os._exit(LOST)

    def _end_without_store(self) -> None:
        self._ending.acquire()
        if self._claimed():
            at_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
            lost = "torchrun's process on the first node" if at_launcher else "rank 0"
            self._say(
                f"{lost} died: the store where the ranks meet, which it keeps, does not answer"
            )
        os._exit(LOST)

    def _say(self, what: str) -> None:
        message = (
            f"{self._name}: {what}. All ranks end; the run continues from its newest checkpoint."
        )
        self._spoken.set()
        print(message, file=sys.stderr, flush=True)
        self._record(RuntimeError(message))

    def _learn_mark(self, store: Store) -> None:
        if self._rank == 0:
            store.set(_MARK, self._mark)
        elif not self._mark and store.check([_MARK]):
            self._mark = store.get(_MARK).decode()

    def _claimed(self) -> bool:
        """Whether this rank is the first to say that the store is gone; all are, where nothing can tell."""
        if not self._folder or not self._mark:
            return True
        try:
            (self._folder / f"{CLAIM}{self._mark}").open("x").close()
        except FileExistsError:
            return False
        except OSError:
            return True
        return True

    def _say_first(self, store: Store, what: str) -> None:
        """Tell the others; the rank that another one forestalled ends in silence."""
        if store.add(_SAID, 1) > 1:
            time.sleep(2 * BEAT_SECONDS)  # until the other's words are there
            self._follow(store.get(_OVER).decode())
        self._spoken.set()
        store.set(_OVER, f"{LOST} {what}")


def _store(name: str) -> Store:
    """A connection of its own: the thread must not wait for one that the main thread waits on."""
    default: Any = torch.distributed.distributed_c10d._get_default_store()
    return PrefixStore(f"lifeline/{name}", default.clone())
