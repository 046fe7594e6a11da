"""Small studies, the ways to train them, and how two results are compared."""

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from launch.config import RunConfig, save_config
from launch.folder import run_folder
from launch.results import RunResult, read_result
from launch.strict import validate
from launch.study import Study, expand

ROW = 192  # tokens in a row of image-8x8
BATCH = 4
STEP = ROW * BATCH  # tokens in one step of `study`
DIED, STOPPED = -signal.SIGKILL, 3


def study(steps: int = 12, **changes: Any) -> dict[str, Any]:
    """A study of one run of image-8x8, as its TOML would be read; `changes` replace tables."""
    return {
        "name": "small",
        "question": "Does it work?",
        "domain": "image-8x8",
        "precision": "fp32",
        "ladder": [{"num_layers": 2, "hidden_size": 32}],
        "budget": {"tokens": float(steps * STEP)},
        "batch": {"train_batch_size": BATCH},
        "optimizer": {"learning_rate": 3e-3},
        "schedule": {"kind": "linear", "warmup_steps": 3},
        "evaluation": {"rows": 8, "points_per_decade": 3},
    } | changes


def expanded(steps: int = 12, **changes: Any) -> tuple[RunConfig, ...]:
    return expand(validate(Study, study(steps, **changes), "small.toml"), "small.toml")


def config(steps: int = 12, **changes: Any) -> RunConfig:
    (run,) = expanded(steps, **changes)
    return run


def toml(tables: dict[str, Any]) -> str:
    """A dictionary as TOML, its tables inline."""

    def value(this: Any) -> str:
        if isinstance(this, dict):
            return "{" + ", ".join(f"{key} = {value(each)}" for key, each in this.items()) + "}"
        if isinstance(this, list):
            return "[" + ", ".join(map(value, this)) + "]"
        return json.dumps(this)

    return "".join(f"{key} = {value(this)}\n" for key, this in tables.items())


def write_study(path: Path, tables: dict[str, Any]) -> Path:
    path.write_text(toml(tables))
    return path


# --- training in this process


def train_alone(run: RunConfig, data: Path, results: Path) -> RunResult:
    from launch.run import run_all

    assert run_all([run], data, results) == 0
    return read_result(run_folder(results, run))


def train_until(run: RunConfig, data: Path, results: Path, step: int) -> bool:
    """Train; once `step` steps are done, this process gets a real SIGTERM. Whether it finished."""
    import launch.train
    from launch.engine import start_process
    from launch.lifeline import Lifeline
    from launch.stopping import StopSignal

    def interrupt(progress: launch.train.Progress) -> None:
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    folder = run_folder(results, run)
    save_config(run, folder)
    kept, launch.train.REPORT_SECONDS = launch.train.REPORT_SECONDS, -1.0  # report every step
    try:
        device = start_process()
        with StopSignal() as stop, Lifeline(run.run_id, 10.0, print) as lifeline:
            return launch.train.train(
                run, data, folder, device=device, stop=stop, report=interrupt, lifeline=lifeline
            )
    finally:
        launch.train.REPORT_SECONDS = kept


# --- training in processes of their own, forked from one that has imported torch and DeepSpeed

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["pytest", "launch.run"])


def start(arguments: list[Any], log: Path, *then: list[Any], **environment: str) -> BaseProcess:
    """`python -m launch ARGUMENTS` in a fresh process, its messages in `log`; what is to follow, in the same one."""
    words = [[str(word) for word in command] for command in (arguments, *then)]
    process = _processes.Process(target=_in_turn, args=(words, str(log), environment))
    process.start()
    return process


def start_ranks(arguments: list[Any], log: Path, count: int, *then: list[Any]) -> list[BaseProcess]:
    """The same commands on `count` ranks, as torchrun would start them; logs are `log`.RANK."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        start(
            arguments,
            Path(f"{log}.{rank}"),
            *then,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            **shared,
        )
        for rank in range(count)
    ]


def exit_status(process: BaseProcess, patience: float = 120) -> int | None:
    """How it ended; a process that hangs is killed, and the answer is None."""
    process.join(patience)
    if process.exitcode is None:
        process.kill()
        process.join()
        return None
    return process.exitcode


def _in_turn(commands: list[list[str]], log: str, environment: dict[str, str]) -> None:
    from launch.__main__ import main

    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for command in commands:
        if status := main(command):
            sys.exit(status)


def wait_for(condition: Callable[[], bool], what: str, patience: float = 60) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience} s for {what}"
        time.sleep(0.01)


# --- comparing


def assert_same_bits(one: RunResult, other: RunResult) -> None:
    """All that was measured is equal, bit for bit; only wall times may differ."""
    for name in one.train.dtype.names:
        if name != "seconds":
            np.testing.assert_array_equal(one.train[name], other.train[name], err_msg=name)
    for name in one.eval.dtype.names:
        np.testing.assert_array_equal(one.eval[name], other.eval[name], err_msg=name)
    assert one.eval_position.keys() == other.eval_position.keys()
    for split, arrays in one.eval_position.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, other.eval_position[split][name])
    assert (one.finished, one.counts) == (other.finished, other.counts)
