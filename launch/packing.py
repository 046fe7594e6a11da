"""Several small runs at a time on one device, each in a process of its own.

A model of a few million parameters leaves most of a GPU idle: a step's kernels are shorter than the time
that Python takes to launch them. Processes that share the device fill each other's gaps; NVIDIA's MPS, where
the operator has started it, lets their kernels run side by side too. On a CPU each process takes its part of
the cores: small models gain little from more threads. Imports are paid once for each process, not for each
run. `benchmarks/packing.py` measures the gain. This module needs no torch.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from launch.config import RunConfig
from launch.console import sentence
from launch.exits import BAD_INPUT, LOST, STOPPED, end_with
from launch.stopping import STOP_SIGNALS

LONGEST_WAIT = 1.0  # seconds: a signal may come just before a wait


def run_packed(runs: Sequence[RunConfig], data: Path, results: Path, at_a_time: int) -> int:
    """Train every run that is not finished, so many at a time; returns the exit status.

    A run that starts from another's checkpoint is done by that one's process, after it.
    """
    chains = _chains(runs)
    context: Any = multiprocessing.get_context("spawn")
    work = context.Queue()
    number_of_workers = min(at_a_time, len(chains))
    for chain in [*chains, *[[]] * number_of_workers]:  # an empty one: there are no more
        work.put(chain)
    workers = [
        context.Process(
            target=_work,
            args=(work, data, results, number_of_workers, os.getpid()),
            name=f"process {number}",
        )
        for number in range(1, number_of_workers + 1)
    ]
    with _forwarded(workers):
        with shared_cores(len(workers)):
            for worker in workers:
                worker.start()
        for worker in workers:
            while worker.exitcode is None:
                worker.join(LONGEST_WAIT)
    return _status(workers)


def _status(workers: list[Any]) -> int:
    statuses = [worker.exitcode for worker in workers]
    for worker in workers:
        if worker.exitcode < 0 and -worker.exitcode not in STOP_SIGNALS:
            print(
                f"{worker.name} of {len(workers)} was ended by {signal.Signals(-worker.exitcode).name}: its run "
                "is not finished. Start the same again: it continues from its newest checkpoint; and with "
                "a smaller --at-a-time, if memory ran out.",
                file=sys.stderr,
                flush=True,
            )
    # A signal that meets a process before it is ready for it ends it, and nothing is lost.
    if any(status == STOPPED or -status in STOP_SIGNALS for status in statuses):
        return STOPPED
    return max(LOST if status < 0 else status for status in statuses)


def _chains(runs: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """A trunk and its branches are one; the longest first, so that the processes end together."""
    chains: dict[str, list[RunConfig]] = {}
    for run in sorted(runs, key=lambda run: run.trunk is not None):
        chains.setdefault(run.trunk.run_id if run.trunk else run.run_id, []).append(run)
    return sorted(chains.values(), key=lambda chain: -sum(run.flops_exact for run in chain))


@contextlib.contextmanager
def shared_cores(processes: int) -> Iterator[None]:
    """Share the cores, unless somebody has said how: OpenMP reads this when a process starts."""
    name = "OMP_NUM_THREADS"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(max(1, len(os.sched_getaffinity(0)) // processes))
    try:
        yield
    finally:
        del os.environ[name]


@contextlib.contextmanager
def _forwarded(workers: list[Any]) -> Iterator[None]:
    """Signals that ask for a stop go to every process, which saves and ends."""

    def forward(number: int, _: FrameType | None) -> None:
        for worker in workers:
            if worker.pid and worker.exitcode is None:
                os.kill(worker.pid, number)

    kept = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _work(work: Any, data: Path, results: Path, sharing: int, parent: int) -> None:
    """One process: takes the next runs until none is left. It does not outlive the one that started it."""
    end_with(parent)
    from launch.run import run_all  # torch and DeepSpeed

    try:
        status = run_all(_taken(work), data, results, sharing=sharing)
    except (ValueError, OSError) as error:
        print(f"run: {sentence(error)}", file=sys.stderr, flush=True)
        status = BAD_INPUT
    sys.exit(status)


def _taken(work: Any) -> Iterator[RunConfig]:
    while chain := work.get():
        yield from chain
