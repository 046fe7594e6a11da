"""The gradient noise scale's small batch, however the model and its rows are spread: as plain autograd has it."""

import json
import multiprocessing
import os
import socket
from pathlib import Path

import pytest
import torch

from launch.batches import Batch
from launch.config import RunConfig
from launch.engine import Engine, start_process
from launch.verify import ROWS, Case, run_of
from megatron_ext.model import build_model
from megatron_ext.parallel import data_parallel_rank

CASES = [
    Case(2, 1, False, 0, "fp32"),
    Case(2, 1, False, 2, "fp32"),
    Case(2, 1, False, 3, "fp32"),
    Case(2, 2, False, 0, "fp32"),
    Case(2, 2, True, 1, "fp32"),
]
SPLIT = [case for case in CASES if case.tensor_parallel == 2]


def whole_rows(run: RunConfig) -> RunConfig:
    """One micro-batch is the global batch: its half is measured by itself."""
    parallel = run.parallel.model_copy(update={"train_micro_batch_size_per_gpu": ROWS})
    return run.model_copy(update={"parallel": parallel})


def rows_of(run: RunConfig, data_parallel: int, rank: int) -> Batch:
    """The share of a data-parallel rank in one random batch, of whose tokens three in ten count."""
    draw = torch.Generator().manual_seed(0)
    size = (ROWS, run.shape.seq_length)
    tokens = torch.randint(0, run.shape.vocab_size, size, generator=draw)
    counted = torch.rand(size, generator=draw) < 0.3
    where = slice(rank * ROWS // data_parallel, (rank + 1) * ROWS // data_parallel)
    return Batch(tokens, torch.zeros_like(tokens, dtype=torch.uint8), counted).rows(where)


def _measure(out: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    device = start_process()
    measured = []
    for run in [run_of(case) for case in CASES] + [whole_rows(run_of(case)) for case in SPLIT]:
        engine = Engine(run, device)
        batch = rows_of(run, engine.world_size, data_parallel_rank())
        result = engine.train_step(batch, 1e-3, measure_noise=True)
        measured.append((result.small_batch, result.small_square))
        engine.close()
    (out / environment["RANK"]).write_text(json.dumps(measured))


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> list[list]:
    """(rows, mean squared norm) of each case, as each of two ranks has it."""
    out = tmp_path_factory.mktemp("noise")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        multiprocessing.get_context("forkserver").Process(
            target=_measure, args=(out, {**shared, "RANK": rank, "LOCAL_RANK": rank})
        )
        for rank in "01"
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
        assert process.exitcode == 0
    return [json.loads((out / rank).read_text()) for rank in "01"]


def plain(run: RunConfig, batch: Batch) -> float:
    """The squared norm of the gradient of the mean loss, on one rank by autograd alone."""
    device = start_process()
    model = build_model(run.shape, seed=run.seed, init_std=run.model.init_std, device=device)
    model(batch.tokens, batch.counted).mean().backward()
    return sum((p.grad.double() ** 2).sum().item() for p in model.parameters())


@pytest.mark.parametrize("number", range(len(CASES) + len(SPLIT)))
def test_it_is_that_of_one_rank(number, measured):
    case = [*CASES, *SPLIT][number]
    run = run_of(case)
    rows = run.parallel.train_micro_batch_size_per_gpu if number < len(CASES) else ROWS // 2
    assert measured[0][number] == measured[1][number]
    small_batch, square = measured[0][number]
    assert small_batch == rows
    ranks = case.data_parallel
    parts = [rows_of(run, ranks, rank).rows(slice(rows)) for rank in range(ranks)]
    wanted = sum(plain(run, part) for part in parts) / ranks
    # Sums of up to 2 x rows x 64 x 192 products in another order: their number times the rounding unit.
    assert square == pytest.approx(wanted, rel=rows * 192 * 64 * 2.0**-24)
