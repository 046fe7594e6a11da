"""One run, top to bottom: data, model, resume, then the loop."""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_prep.dataset import meaning
from launch import checkpoint, noise
from launch.batches import TrainingBatches, evaluation_rows, open_dataset
from launch.config import RunConfig
from launch.console import first_rank, say
from launch.datasets import Dataset
from launch.diagnosis import skipped_places
from launch.engine import Engine, StepResult
from launch.evaluation import evaluate, evaluation_table, position_means
from launch.folder import data_identity, refuse_other_data
from launch.lifeline import Lifeline
from launch.process import gpu_of
from launch.provenance import provenance
from launch.results import STEP_SECONDS, ResultWriter
from launch.schedule import learning_rate
from launch.speed import described, speed
from launch.start import Beginning
from launch.stopping import StopSignal
from megatron_ext.parallel import data_parallel_rank

REPORT_SECONDS = 5.0
MOST_SKIPPED = 10  # in a row: then it is not the batch


@dataclass(frozen=True)
class Progress:
    """What a run tells while it works."""

    run_id: str
    step: int
    steps: int
    loss: float
    tokens_per_second: float
    seconds_left: float


def train(
    config: RunConfig,
    data: Path,
    folder: Path,
    *,
    device: torch.device,
    stop: StopSignal,
    report: Callable[[Progress], None],
    lifeline: Lifeline,
) -> bool:
    """Train one run to its end, or to an agreed stop, continuing from what `folder` holds.

    Returns whether the run is finished. Raises `ValueError` for bad input and
    `FloatingPointError` for a loss that is not finite.
    """
    # --- data ---
    identity = data_identity(config, data)
    train_set = _training_set(config, data)
    held_out = [open_dataset(data, split, config) for split in config.evaluation.splits]
    rows = [evaluation_rows(dataset, config.evaluation.rows) for dataset in held_out]

    # --- model, optimizer, and where to continue ---
    with contextlib.ExitStack() as opened:
        found = _found(config, folder, identity)
        means = meaning(train_set.codec, train_set.classes)
        begin = Beginning.of(config, folder.parents[1], means) if found is None else Beginning()
        engine = opened.enter_context(contextlib.closing(Engine(config, device, begin.fill)))
        batches = TrainingBatches(train_set, config, data_parallel_rank(), engine.world_size)
        step = _resume(engine, folder, found)
        evaluation_steps = set(config.evaluation_steps())
        writer = None
        if first_rank():
            results = _open_results(engine, folder, step, identity, means, begin.source)
            writer = opened.enter_context(results)
        # The last to be opened: what it is still writing is waited for first.
        saver = opened.enter_context(checkpoint.Saver(engine, folder, identity))

        # --- the loop ---
        last_save = last_report = time.monotonic()
        first_step, skipped = step, 0
        began = time.monotonic()
        while step < config.train_steps:
            step_began = time.perf_counter()
            tokens = (step + 1) * config.tokens_per_step
            rate = learning_rate(
                tokens,
                schedule=config.schedule,
                peak=config.peak_learning_rate,
                warmup_tokens=config.warmup_tokens,
                total_tokens=config.tokens,
            )
            result = engine.train_step(
                batches.at(step, device),
                rate,
                step=step,
                measure_noise=step % noise.EVERY == 0,
            )
            lifeline.step()
            step += 1
            progress = {
                "step": step,
                "tokens": tokens,
                "flops": config.shape.flops_per_token_6nd * tokens,
                "flops_exact": config.shape.flops_per_token_exact * tokens,
            }
            if writer:
                seconds = time.perf_counter() - step_began
                _record(writer, config, result, progress, learning_rate=rate, seconds=seconds)
            skipped = skipped + 1 if result.skipped else 0
            if result.skipped or not math.isfinite(result.loss):
                if writer:
                    writer.flush()
                _stop_or_skip(config, step, result, rate, skipped)

            if step in evaluation_steps:
                with lifeline.patience():
                    _evaluate(engine, held_out, rows, writer, progress)

            now = time.monotonic()
            due = now - last_save >= 60 * config.checkpoint.interval_minutes
            stopping, save_now, writing = engine.agree(
                stop.number, int(first_rank() and due), int(saver.under_way)
            )
            stop.agree(stopping)
            last = stopping or step == config.train_steps
            with lifeline.patience():
                if last or save_now or config.keeps(step):
                    if writer:
                        writer.flush()
                    saver.begin(step)
                    last_save = now
                elif not writing:
                    saver.finish()
            if writer and (last or now - last_report >= REPORT_SECONDS):
                writer.flush()
                report(_progress(config, step, result.loss, (now - began) / (step - first_step)))
                last_report = now
            if stopping:
                break

        # --- the end ---
        with lifeline.patience():
            saver.finish()
        finished = step == config.train_steps
        if writer and step > first_step:
            _tell_speed(engine, writer, first_step, saver, time.monotonic() - began)
        if writer and finished:
            writer.finish()
            checkpoint.remove_all(folder, config)
    return finished


def _training_set(config: RunConfig, data: Path) -> Dataset:
    """Raises `ValueError` where it has fewer rows than there are data-parallel ranks."""
    dataset = open_dataset(data, "train", config)
    ranks = torch.distributed.get_world_size() // config.parallel.tensor_model_parallel_size
    if ranks > dataset.num_rows:
        raise ValueError(
            f"{config.run_id}: {ranks} data-parallel ranks for the {dataset.num_rows:,} rows of the training split; "
            "wanted at least one row for each. Start fewer ranks, or build a larger dataset."
        )
    return dataset


def _progress(config: RunConfig, step: int, loss: float, pace: float) -> Progress:
    """`pace`: seconds of a step, all that comes between two included."""
    return Progress(
        run_id=config.run_id,
        step=step,
        steps=config.train_steps,
        loss=loss,
        tokens_per_second=config.tokens_per_step / pace,
        seconds_left=pace * (config.train_steps - step),
    )


def _tell_speed(
    engine: Engine, writer: ResultWriter, first_step: int, saver: checkpoint.Saver, seconds: float
) -> None:
    """Say and record it. `seconds`: of all steps since `first_step`, with evaluations and checkpoints."""
    config, device = engine.config, gpu_of(engine.device)
    steps = writer.column("seconds")[first_step:]  # others may be of other devices
    fast = speed(steps, config, torch.distributed.get_world_size(), device)
    writer.speed(
        tokens_per_second=fast.tokens,
        model_flops_per_second=fast.flops_exact,
        mfu=math.nan if fast.mfu is None else fast.mfu,
        **dict(zip(STEP_SECONDS, fast.percentiles, strict=True)),
    )
    say(f"{config.run_id}: {described(fast, config, device)}")
    say(
        f"{config.run_id}: {saver.saves} checkpoints, for which training waited "
        f"{saver.seconds_waited / seconds:.1%} of the time ({saver.seconds_waited:.2g} s); written in "
        f"{saver.seconds_written:.2g} s"
    )
    if skipped := len(skipped_places(writer.column("grad_norm"))):
        say(
            f"{config.run_id}: {skipped} of {config.train_steps} steps changed no weight, for their gradient was "
            "not finite; their batches are left out"
        )


def _record(
    writer: ResultWriter,
    config: RunConfig,
    result: StepResult,
    progress: dict[str, Any],
    **measured: float,
) -> None:
    """One step's row, and what the gradient noise scale comes from where it was measured."""
    samples = progress["step"] * config.batch.train_batch_size
    writer.train(
        **progress, **measured, samples=samples, loss=result.loss, grad_norm=result.grad_norm
    )
    if result.small_square is not None and not result.skipped:
        writer.noise(
            step=progress["step"],
            batch_small=result.small_batch,
            batch_big=config.batch.train_batch_size,
            square_small=result.small_square,
            square_big=result.grad_norm**2,
        )


def _evaluate(
    engine: Engine,
    held_out: list[Dataset],
    rows: list[np.ndarray],
    writer: ResultWriter | None,
    progress: dict[str, Any],
) -> None:
    """The loss on the chosen rows of each held-out split, into the run's file. Collective."""
    for dataset, chosen in zip(held_out, rows, strict=True):
        sums = evaluate(engine, dataset, chosen)
        if writer:
            writer.eval_position(dataset.split, progress["step"], *position_means(sums))
            writer.eval(evaluation_table(sums, dataset, **progress))


def _found(config: RunConfig, folder: Path, identity: str) -> checkpoint.Checkpoint | None:
    """The newest whole checkpoint of the run, or its trunk's; None where it begins. Collective."""
    if first_rank():
        checkpoint.remove_leftovers(folder)
    trunk = config.trunk
    found = checkpoint.newest(folder)
    if found is None and trunk is not None:
        found = checkpoint.newest(folder.parent / trunk.run_id, at_step=trunk.step)
    if found is not None:
        checkpoint.refuse_weights_alone(found)
        refuse_other_data(folder, found.data_identity, identity)
        _refuse_other_run(found, config)
    return found


def _resume(engine: Engine, folder: Path, found: checkpoint.Checkpoint | None) -> int:
    """Load what was found, measurements too; returns the steps done."""
    if found is not None:
        checkpoint.load(engine, found, folder)
        say(f"{engine.config.run_id}: continues after step {found.step} ({found.path})")
    if first_rank():
        # A trunk's measurements up to there are this run's, to the last bit.
        checkpoint.restore_results(folder, found)
    return found.step if found else 0


def _refuse_other_run(found: checkpoint.Checkpoint, config: RunConfig) -> None:
    """The checkpoint must be this run's or its trunk's: run ids end in six digits of the digest."""
    runs = [config.run_id] + ([config.trunk.run_id] if config.trunk else [])
    if not any(run_id.endswith(f"-{found.config_digest[:6]}") for run_id in runs):
        raise ValueError(
            f"{found.path}: saved by the run whose id ends in {found.config_digest[:6]}; wanted "
            f"{' or '.join(runs)}. It was copied here from another run: remove it."
        )


def _open_results(
    engine: Engine,
    folder: Path,
    step: int,
    identity: str,
    means: str,
    started_from: str,
) -> ResultWriter:
    config = engine.config
    return ResultWriter(
        folder,
        config=config.model_dump(mode="json"),
        provenance=provenance(
            data_identity=identity,
            vocabulary=means,
            device=str(engine.device),
            world_size=torch.distributed.get_world_size(),
            tensor_model_parallel_size=config.parallel.tensor_model_parallel_size,
            train_micro_batch_size_per_gpu=engine.micro_batch,
            zero_stage=config.parallel.zero_stage,
            resumed_at_step=step,
            started_from=started_from,
        ),
        counts={
            "params_non_embedding": config.shape.params_non_embedding,
            "params_non_embedding_and_head": config.shape.params_non_embedding_and_head,
            "params_total": config.shape.params_total,
            "flops_6nd": config.flops,
            "flops_exact": config.flops_exact,
        },
        seq_length=config.shape.row_length,
    )


def _stop_or_skip(
    config: RunConfig, step: int, result: StepResult, rate: float, skipped: int
) -> None:
    """Say that a step was skipped; raise where the study or the number in a row says to stop."""
    what = (
        f"{config.run_id}: step {step} has loss {result.loss} and gradient norm {result.grad_norm} at "
        f"learning rate {rate:.3g}; wanted finite numbers."
    )
    if config.guards.non_finite == "skip" and result.skipped and skipped <= MOST_SKIPPED:
        say(f"WARNING: {what} No weight was changed; the batch is left out.")
        return
    raise FloatingPointError(
        f"{what} Its checkpoints before that step are kept. Lower optimizer.learning_rate, lengthen the "
        "warm-up, or set guards.non_finite = 'skip' if single batches do this, and run the study again."
    )
