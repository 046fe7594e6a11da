"""Runs of a study, one after another in one process, so that imports are paid once.

Two processes cannot train one run: each takes the run's lock. A run that fails says why in its
folder and does not stop the others.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from launch.config import RunConfig, save_config
from launch.engine import start_process
from launch.folder import FAILED_FILE, finished_on, locked, record_failure, run_folder
from launch.stopping import StopSignal
from launch.train import Progress, train

DONE, FAILED, STOPPED = 0, 1, 3
"""Exit statuses: all done; some run failed; stopped early by a signal, to be continued."""


def run_all(runs: Sequence[RunConfig], data: Path, results: Path) -> int:
    """Train every run that is not finished; returns the exit status."""
    device = start_process()
    status = DONE
    with StopSignal() as stop:
        for run in runs:
            folder = run_folder(results, run)
            try:
                # The first rank holds the lock for all.
                with locked(folder) if _first_rank() else contextlib.nullcontext():
                    finished = _run_one(run, data, folder, device, stop)
            except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
                _fail(run, folder, error)
                status = FAILED
                if torch.distributed.get_world_size() > 1:
                    break  # the other ranks wait in a collective: end, so that the launcher ends them
                continue
            if not finished:
                say(f"{run.run_id}: stopped by {stop.name}, saved; run it again to continue")
                status = STOPPED
                break
    if stop.requested:
        stop.hand_over()
    return status


def _run_one(
    run: RunConfig, data: Path, folder: Path, device: torch.device, stop: StopSignal
) -> bool:
    if finished_on(run, folder, data):
        say(f"{run.run_id}: finished before, nothing to do")
        return True
    if _first_rank():
        (folder / FAILED_FILE).unlink(missing_ok=True)
        save_config(run, folder)
    return train(run, data, folder, device=device, stop=stop, report=_report)


def _fail(run: RunConfig, folder: Path, error: Exception) -> None:
    """Say what failed; an error that no message of ours explains comes with its traceback."""
    explained = isinstance(error, ValueError | OSError | FloatingPointError)
    message = str(error) if explained else "".join(traceback.format_exception(error))
    print(f"{run.run_id}: FAILED: {message}", file=sys.stderr, flush=True)
    record_failure(folder, error)


def _report(progress: Progress) -> None:
    left = f"{progress.seconds_left // 60:.0f}:{progress.seconds_left % 60:02.0f}"
    say(
        f"{progress.run_id}: step {progress.step}/{progress.steps}, loss {progress.loss:.4f}, "
        f"{progress.tokens_per_second:,.0f} tokens/s, {left} left"
    )


def say(line: str) -> None:
    """Tell the user on stderr, once for all ranks."""
    if _first_rank():
        print(line, file=sys.stderr, flush=True)


def _first_rank() -> bool:
    return int(os.environ.get("RANK", "0")) == 0
