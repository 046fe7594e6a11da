"""Runs and batches without data, for benchmarks."""

import torch

from launch import config as configs
from launch.batches import Batch
from launch.config import Parallel, RunConfig
from launch.schedule import Schedule
from megatron_ext.shape import Family, ModelShape


def run_of(
    shape: ModelShape,
    rows: int,
    precision: str,
    *,
    steps: int = 1,
    family: Family = "kaplan",
    parallel: Parallel | None = None,
) -> RunConfig:
    """A run of so many steps of `rows` rows."""
    return RunConfig(
        study="benchmark",
        question="how fast, and with how much memory?",
        domain="benchmark",
        shape=shape,
        tokens=steps * rows * shape.seq_length,
        seed=0,
        batch=configs.Batch(train_batch_size=rows),
        optimizer=configs.Optimizer(learning_rate=1e-3),
        schedule=Schedule(),
        model=configs.Model(family=family),
        precision=precision,
        evaluation=configs.Evaluation(),
        checkpoint=configs.Checkpoint(),
        parallel=parallel or Parallel(),
    )


def batch_of(
    run: RunConfig, device: torch.device, *, data_parallel: int = 1, counted: float = 1.0
) -> Batch:
    """Random tokens [rows of a rank, S], of which a share counts in the loss; a classifier's classes alone. The same
    every time."""
    size = (run.batch.train_batch_size // data_parallel, run.shape.row_length)
    draw = torch.Generator(device).manual_seed(0)
    tokens = torch.randint(0, run.shape.vocab_size, size, device=device, generator=draw)
    counts = torch.rand(size, device=device, generator=draw) < counted if counted < 1 else None
    if run.shape.classes:
        classes = torch.arange(size[0], device=device) % run.shape.classes
        tokens[:, -2], tokens[:, -1] = classes % 256, classes // 256
        counts = torch.zeros(size, dtype=torch.bool, device=device)
        counts[:, -2] = True
    return Batch(tokens, torch.zeros(size, dtype=torch.uint8, device=device), counts)
