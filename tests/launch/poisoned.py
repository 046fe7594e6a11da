"""A NaN in a real run: on one rank, in one step, as a broken kernel or a bad batch would give."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any


def with_nan(train_step: Callable, at: int) -> Callable:
    """`Engine.train_step`, in whose step `at` (0 for the first) a norm of this process gives NaN."""

    def poisoned(self: Any, batch: Any, rate: float, *, step: int = 0, **more: Any) -> Any:
        if step != at:
            return train_step(self, batch, rate, step=step, **more)
        norm = self.model.gpt.decoder.layers[1].input_layernorm
        hook = norm.register_forward_hook(lambda *call: call[2] * float("nan"))
        try:
            return train_step(self, batch, rate, step=step, **more)
        finally:
            hook.remove()

    return poisoned


def start_ranks_with_nan(
    words: list[Any], log: Path, count: int, *, rank: int, at: int
) -> list[BaseProcess]:
    """`python -m launch WORDS` on `count` ranks, of which `rank` meets the NaN; logs are `log`.RANK."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = []
    for number in range(count):
        environment = {**shared, "RANK": str(number), "LOCAL_RANK": str(number)}
        given = ([str(word) for word in words], f"{log}.{number}", environment)
        process = multiprocessing.get_context("forkserver").Process(
            target=_command, args=(*given, at if number == rank else -1)
        )
        process.start()
        processes.append(process)
    return processes


def _command(words: list[str], log: str, environment: dict[str, str], at: int) -> None:
    from launch.__main__ import main
    from launch.engine import Engine

    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    Engine.train_step = with_nan(Engine.train_step, at)  # type: ignore[method-assign]
    sys.exit(main(words))
