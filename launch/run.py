"""Runs of a study, one after another in one process, so that imports are paid once.

Two processes cannot train one run: each takes the run's lock. A run that fails says why in its
folder and does not stop the others.
"""

import contextlib
import dataclasses
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

import torch

from launch.config import RunConfig, save_config
from launch.console import first_rank, say, sentence
from launch.devices import Device
from launch.engine import start_process
from launch.exits import DONE, EXPLAINED, STOPPED, status_of
from launch.folder import FAILED_FILE, finished_on, locked, record_failure, run_folder
from launch.lifeline import CLAIM, Lifeline
from launch.out_of_memory import in_words, refuse_what_cannot_fit
from launch.planner import spread
from launch.process import gpu_of, gpus_per_node
from launch.stopping import StopSignal
from launch.train import Progress, train


def run_all(runs: Iterable[RunConfig], data: Path, results: Path, *, sharing: int = 1) -> int:
    """Train every run that is not finished; returns the exit status.

    A stop ends it before the next of `runs` is taken. `sharing`: so many processes share the device.
    """
    device = start_process()
    gpu = gpu_of(device)
    if gpu:
        gpu = dataclasses.replace(gpu, memory=gpu.memory / sharing)
    status = DONE
    with StopSignal() as stop:
        for run in runs:
            if gpu:
                run = _spread(run, gpu)
            outcome = _guarded(run, data, run_folder(results, run), device, stop)
            if outcome == STOPPED:
                say(f"{run.run_id}: stopped by {stop.name}, saved; run it again to continue")
            status = status if outcome == DONE else outcome
            # Where several ranks work together, the others of a failed one wait in a collective:
            # end, so that the launcher ends them.
            failed = outcome not in (DONE, STOPPED)
            if outcome == STOPPED or (failed and torch.distributed.get_world_size() > 1):
                break
    if status == STOPPED:
        stop.hand_over()
    return status


def _spread(run: RunConfig, gpu: Device) -> RunConfig:
    """As the planner says; as the study says where the planner knows no way, which it tells."""
    try:
        return spread(run, gpu, torch.distributed.get_world_size(), gpus_per_node())
    except ValueError as error:
        say(f"WARNING: {error} It is tried as the study says.")
        return run


def _guarded(
    run: RunConfig, data: Path, folder: Path, device: torch.device, stop: StopSignal
) -> int:
    """One run; whatever goes wrong is said and recorded, and leaves the other runs alone."""
    lifeline = Lifeline(
        run.run_id, run.guards.hang_minutes, lambda e: record_failure(folder, e), folder
    )
    try:
        # The first rank holds the lock for all.
        with lifeline, locked(folder) if first_rank() else contextlib.nullcontext():
            try:
                done = _run_one(run, data, folder, device, stop, lifeline)
                return DONE if done else STOPPED
            except Exception as error:
                told = in_words(error, run, device)
                if first_rank():
                    record_failure(folder, told or error)
                if told:
                    raise told from error
                raise
    except Exception as error:
        message = "".join(traceback.format_exception(error))
        if isinstance(error, EXPLAINED):
            message = sentence(error)
        if lifeline.speaks:
            print(f"{run.run_id}: FAILED: {message}", file=sys.stderr, flush=True)
        return status_of(error)


def _run_one(
    run: RunConfig,
    data: Path,
    folder: Path,
    device: torch.device,
    stop: StopSignal,
    lifeline: Lifeline,
) -> bool:
    if finished_on(run, folder, data):
        say(f"{run.run_id}: finished before, nothing to do")
        return True
    if first_rank():
        for path in (folder / FAILED_FILE, *folder.glob(f"{CLAIM}*")):
            path.unlink(missing_ok=True)
        save_config(run, folder)
    refuse_what_cannot_fit(run, device)
    return train(run, data, folder, device=device, stop=stop, report=_report, lifeline=lifeline)


def _report(progress: Progress) -> None:
    left = f"{progress.seconds_left // 60:.0f}:{progress.seconds_left % 60:02.0f}"
    say(
        f"{progress.run_id}: step {progress.step}/{progress.steps}, loss {progress.loss:.4f}, "
        f"{progress.tokens_per_second:,.0f} tokens/s, {left} left"
    )
