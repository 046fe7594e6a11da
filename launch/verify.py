"""`launch verify`: the same losses for every way to spread a model over this machine's devices.

A tiny model is trained a few steps in every combination of tensor parallelism, ZeRO stage and data
parallelism, in fp32 and bf16, and with what can be added to them where it takes another way through the
libraries: sequence parallelism, activation checkpointing ("recompute"), offloading. Its losses are compared
with those of one rank without ZeRO. What an operator runs first on a new cluster: a wrong driver, library or
link shows here, and not in a law.
"""

import json
import math
import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from launch.batches import Batch
from launch.config import RunConfig
from launch.engine import Engine, start_process
from launch.strict import validate
from launch.study import Study, expand
from megatron_ext.parallel import data_parallel_rank

STEPS = 8
ROWS = 16  # a batch: so many data-parallel ranks at most
HEADS = 8  # so many tensor-parallel ranks at most
LARGEST = {"fp32": 1e-5, "bf16": 5e-3}  # relative difference of a loss; bf16 rounds by 2^-9 = 2e-3
PATIENCE = 300.0  # seconds for one case, the start of its ranks included


@dataclass(frozen=True)
class Case:
    """One way to spread the model; the other ranks are data parallel."""

    world_size: int
    tensor_parallel: int
    sequence_parallel: bool
    zero_stage: int
    precision: str
    recompute: bool = False
    offload: bool = False

    @property
    def data_parallel(self) -> int:
        return self.world_size // self.tensor_parallel

    @property
    def additions(self) -> str:
        names = ("sequence parallel", "recompute", "offload")
        there = (self.sequence_parallel, self.recompute, self.offload)
        return " + ".join(name for name, on in zip(names, there, strict=True) if on) or "-"


def verify(world_size: int | None = None) -> int:
    """Compare all cases of up to `world_size` ranks, print the table; returns the exit status.

    By default as many ranks as this machine has GPUs and the batch divides by, or two processes on its CPU. Raises
    `ValueError` for a number of ranks that the batch or the machine does not allow.
    """
    devices = torch.cuda.device_count()
    most = min(devices or ROWS, ROWS)
    if world_size is None:
        world_size = max(n for n in range(1, most + 1) if ROWS % n == 0) if devices else 2
    if not 1 <= world_size <= most or ROWS % world_size:
        raise ValueError(
            f"--world-size {world_size}: wanted a divisor of {ROWS} up to {most}, for the "
            f"{devices or 'no'} GPUs of this machine and the {ROWS} rows that are trained. Name another "
            "number; a job over several nodes repeats what one node does."
        )
    sizes = [size for size in range(1, world_size + 1) if world_size % size == 0]
    losses: dict[Case, list[float] | str] = {}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("verify", total=sum(len(list(cases(size))) for size in sizes))
        for size in sizes:
            for case, found in _trained(size):
                losses[case] = found
                progress.advance(task)
    table, wrong = _table(losses)
    Console(width=120, soft_wrap=True).print(table)
    print(f"{len(losses) - wrong} of {len(losses)} combinations agree with one rank without ZeRO")
    return 1 if wrong else 0


def cases(world_size: int) -> Iterator[Case]:
    """Every combination that so many ranks allow."""
    for tensor_parallel in range(1, min(world_size, HEADS) + 1):
        if world_size % tensor_parallel or HEADS % tensor_parallel:
            continue
        for sequence_parallel in (False, True) if tensor_parallel > 1 else (False,):
            for zero_stage in (0, 1, 2, 3):
                for precision in LARGEST:
                    case = Case(
                        world_size, tensor_parallel, sequence_parallel, zero_stage, precision
                    )
                    yield case
                    # Only ZeRO 3 changes what a layer computes again: it fetches the weights anew.
                    if zero_stage in (0, 3) and precision == "fp32":
                        yield replace(case, recompute=True)
                    # For big models, so in bf16; ZeRO 1 goes the way of 2, and rows are not the optimizer's.
                    if zero_stage in (2, 3) and precision == "bf16" and not sequence_parallel:
                        yield replace(case, offload=True)


def _table(losses: dict[Case, list[float] | str]) -> tuple[Table, int]:
    columns = ["ranks", "TP", "DP", "ZeRO", "precision", "with", "last loss"]
    table = Table(*columns, "largest difference", "", box=None, pad_edge=False)
    wrong = 0
    for case, found in losses.items():
        reference = losses[Case(1, 1, False, 0, case.precision)]
        difference, verdict = _compare(found, reference, LARGEST[case.precision])
        wrong += verdict != "ok"
        table.add_row(
            str(case.world_size),
            str(case.tensor_parallel),
            str(case.data_parallel),
            str(case.zero_stage),
            case.precision,
            case.additions,
            "-" if isinstance(found, str) else f"{found[-1]:.6f}",
            difference,
            verdict,
        )
    return table, wrong


def _compare(
    found: list[float] | str, reference: list[float] | str, largest: float
) -> tuple[str, str]:
    """The largest relative difference over the steps, and the verdict."""
    if isinstance(found, str) or isinstance(reference, str):
        return "-", f"FAILED: {found}" if isinstance(found, str) else "nothing to compare with"
    differences = [abs(a / b - 1) for a, b in zip(found, reference, strict=True)]
    agrees = all(each <= largest for each in differences)  # which no NaN is
    verdict = "ok" if agrees else f"WRONG: wanted at most {largest:.0e}"
    return f"{max(differences, key=lambda each: (math.isnan(each), each)):.1e}", verdict


# --- the ranks


def _trained(world_size: int) -> Iterator[tuple[Case, list[float] | str]]:
    """Each case with its losses, or with what went wrong, as the ranks get done."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        ranks = [
            context.Process(target=_rank, args=(rank, world_size, port, folder))
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        try:
            yield from _collected(list(cases(world_size)), Path(folder), ranks)
        finally:
            for process in ranks:
                process.kill()
                process.join()


def _collected(
    wanted: Sequence[Case], folder: Path, ranks: Sequence[Any]
) -> Iterator[tuple[Case, list[float] | str]]:
    for index, case in enumerate(wanted):
        file = folder / f"{index}.json"
        deadline = time.monotonic() + PATIENCE
        while not file.exists():
            ended = [r for r, process in enumerate(ranks) if process.exitcode not in (None, 0)]
            late = time.monotonic() > deadline
            if (ended or late) and not file.exists():
                what = f"rank {ended[0]} ended early" if ended else "the ranks hang"
                yield from ((each, what) for each in wanted[index:])
                return
            time.sleep(0.05)
        yield case, json.loads(file.read_text())


def _rank(rank: int, world_size: int, port: int, folder: str) -> None:
    """All cases of `world_size` ranks, as one of them; the first writes the losses."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(1)  # the ranks share the machine's cores
    device = start_process()
    for index, case in enumerate(cases(world_size)):
        found = _losses(case, device)
        if rank == 0:
            temporary = Path(folder, f".{index}")
            temporary.write_text(json.dumps(found))
            temporary.replace(Path(folder, f"{index}.json"))


def _losses(case: Case, device: torch.device) -> list[float]:
    config = run_of(case)
    engine = Engine(config, device)
    shape = config.shape
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, shape.vocab_size, (ROWS, shape.seq_length), generator=generator)
    share = ROWS // engine.world_size
    mine = tokens[data_parallel_rank() * share :][:share].to(device)
    # The last token of a row does not count, so that ranks and micro-batches weigh by tokens.
    counted = torch.ones_like(mine, dtype=torch.bool)
    counted[:, -1] = False
    batch = Batch(mine, torch.zeros_like(mine, dtype=torch.uint8), counted)
    losses = [engine.train_step(batch, config.peak_learning_rate).loss for _ in range(STEPS)]
    engine.close()
    return losses


def run_of(case: Case) -> RunConfig:
    """A model whose vocabulary needs padding, whose layers alternate, whose gradients get clipped."""
    tables = {
        "name": "verify",
        "question": "Are the losses the same however the model is spread?",
        "domain": "image-8x8",
        "precision": case.precision,
        "ladder": [{"num_layers": 2, "hidden_size": 64, "num_attention_heads": HEADS}],
        "budget": {"tokens": 1e6},
        "batch": {"train_batch_size": ROWS},
        "optimizer": {"learning_rate": 3e-3, "clip_grad_norm": 0.1},
        "model": {"family": "kaplan", "attention": "sparse", "positions": "factorised"},
        "parallel": {
            "tensor_model_parallel_size": case.tensor_parallel,
            "sequence_parallel": case.sequence_parallel,
            "zero_stage": case.zero_stage,
            "activation_checkpointing": case.recompute,
            "offload_optimizer": case.offload,
            # At least two micro-batches, whose gradients add up, as far as the rows go
            "train_micro_batch_size_per_gpu": max(1, min(4, ROWS // case.data_parallel // 2)),
        },
    }
    (config,) = expand(validate(Study, tables, "verify"), "verify")
    return config
