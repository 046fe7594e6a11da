"""Saving and resuming: what all ranks do together, and which checkpoint a run resumes from.

The newest folder whose files all match is used (`launch.checkpoint_files`); one that does not match is
named aloud and passed over. There is no `latest` file to go stale. The ranks share the hashing, of what
they write and of what they read, so that its time does not grow with their number.
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed

from launch.checkpoint_files import (
    CHECKPOINTS,
    Checkpoint,
    FileRecord,
    hashed,
    publish,
    step_name,
    step_number,
    steps_of,
    verify,
)
from launch.config import RunConfig, save_config
from launch.console import say
from launch.engine import Engine
from launch.results import METRICS_FILE, DamagedFile, is_finished
from launch.universal import UNIVERSAL, write_universal


def save(engine: Engine, folder: Path, step: int, data_identity: str) -> None:
    """Save after `step` steps, then remove what is no longer kept. Collective.

    The run's flushed `metrics.h5` goes in too. Raises `OSError` on all ranks where one cannot write,
    and leaves the checkpoints as they were.
    """
    config = engine.config
    final = folder / CHECKPOINTS / step_name(step)
    temporary = final.parent / f".{final.name}.tmp"
    state = temporary / "state"
    if _first_rank():
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    _barrier()
    _together(lambda: engine.save(temporary, state.name, {"step": step}), temporary)
    if _first_rank():
        shutil.copyfile(folder / METRICS_FILE, state / METRICS_FILE)
        save_config(config, state)
    _barrier()
    records = _together(lambda: _hashed(state), temporary)
    if _first_rank():
        whole = Checkpoint(
            path=final,
            step=step,
            config_digest=config.digest,
            data_identity=data_identity,
            zero_stage=config.parallel.zero_stage,
            world_size=engine.world_size,
            tensor_parallel=config.parallel.tensor_model_parallel_size,
        )
        publish(state, whole, {name: each for some in records for name, each in some.items()})
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_old(folder, config)
    _barrier()


def _together(work: Callable[[], Any], temporary: Path) -> list[Any]:
    """Every rank does its part of a save; where one fails, all remove `temporary` and raise."""
    problem, result = None, None
    try:
        result = work()
    except OSError as error:
        problem = error
    results = _gathered((result, problem and (problem.errno, problem.strerror, problem.filename)))
    failed = [(rank, reason) for rank, (_, reason) in enumerate(results) if reason]
    if failed:
        if _first_rank():
            shutil.rmtree(temporary, ignore_errors=True)
        raise problem or OSError(*failed[0][1])  # errno, what, file
    return [result for result, _ in results]


def newest(folder: Path, *, at_step: int | None = None) -> Checkpoint | None:
    """The newest whole checkpoint of a run folder (or the one after `at_step` steps), if any.

    Collective: the ranks share the reading, and all must agree. The first says on stderr which newer
    ones are broken, and why.
    """
    found = _from_first(
        [path for path in reversed(steps_of(folder)) if at_step in (None, step_number(path))]
    )
    for path in found:
        checkpoint, problem = None, None
        try:
            checkpoint = verify(path, _rank(), torch.distributed.get_world_size())
        except ValueError as error:
            problem = str(error)
        problems = [each for each in _gathered(problem) if each]
        if not problems:
            return checkpoint
        if _first_rank():
            print(f"WARNING: {problems[0]}", file=sys.stderr, flush=True)
            if at_step is None:  # out of the way: it must not count among those that are kept
                shutil.rmtree(path.with_name(f"broken-{path.name}"), ignore_errors=True)
                path.rename(path.with_name(f"broken-{path.name}"))
        _barrier()
    return None


def restore_results(folder: Path, checkpoint: Checkpoint | None) -> None:
    """Put back the `metrics.h5` of a checkpoint; without one, the run begins with none."""
    measured = folder / METRICS_FILE
    try:
        is_finished(folder)
    except DamagedFile as error:
        print(f"WARNING: {error} Kept as {measured.name}.damaged.", file=sys.stderr, flush=True)
        measured.replace(measured.with_name(f"{measured.name}.damaged"))
    if checkpoint is None:
        measured.unlink(missing_ok=True)
        return
    temporary = folder / f".{METRICS_FILE}.tmp"
    shutil.copyfile(checkpoint.path / METRICS_FILE, temporary)
    os.replace(temporary, measured)


def refuse_weights_alone(checkpoint: Checkpoint) -> None:
    """Raise `ValueError` for a checkpoint that came from another tool, without an optimizer."""
    if not checkpoint.optimizer:
        raise ValueError(
            f"{checkpoint.path}: holds weights alone, from another tool; wanted the optimizer's state too, "
            "to continue training. Evaluate it, or continue from a checkpoint of the run itself."
        )


def load(engine: Engine, checkpoint: Checkpoint, folder: Path) -> None:
    """Continue `engine` from a checkpoint. Collective.

    On the topology that saved it, DeepSpeed reads its own files, to the same bits. On another one the
    ranks first put whole parameters together, in the run's `folder`, and each takes its share.
    """
    parallel = engine.config.parallel
    here = (parallel.tensor_model_parallel_size, engine.world_size, parallel.zero_stage)
    whole_on_each_rank = checkpoint.zero_stage == parallel.zero_stage == 0
    same_model_parts = checkpoint.tensor_parallel == parallel.tensor_model_parallel_size
    if (checkpoint.path / UNIVERSAL).is_dir():
        engine.load_universal(checkpoint.path / UNIVERSAL)
    elif checkpoint.topology == here or (whole_on_each_rank and same_model_parts):
        state = engine.load(checkpoint.path.parent, checkpoint.path.name)
        assert state["step"] == checkpoint.step, f"{checkpoint.path} holds step {state['step']}"
    else:
        there = "TP {}, {} data-parallel ranks, ZeRO {}".format(*checkpoint.topology)
        say(
            f"{checkpoint.path}: saved with {there}; put together for {here[0]}, {here[1]}, {here[2]}"
        )
        _load_through_universal(engine, checkpoint, folder / CHECKPOINTS / f".{UNIVERSAL}.tmp")


def _load_through_universal(engine: Engine, checkpoint: Checkpoint, temporary: Path) -> None:
    if _first_rank():
        shutil.rmtree(temporary, ignore_errors=True)
    _barrier()
    try:
        parts = torch.distributed.get_world_size()
        write_universal(checkpoint.path, temporary, engine.config.shape, part=_rank(), parts=parts)
        _barrier()
        engine.load_universal(temporary)
        _barrier()
    finally:
        if _first_rank():
            shutil.rmtree(temporary, ignore_errors=True)


def remove_all(folder: Path, keep_steps: list[int]) -> None:
    """A finished run keeps its last checkpoint, and those that shorter runs start from."""
    paths = steps_of(folder)
    for path in paths[:-1]:
        if step_number(path) not in keep_steps:
            shutil.rmtree(path, ignore_errors=True)


def _remove_old(folder: Path, config: RunConfig) -> None:
    paths = steps_of(folder)
    for path in paths[: -config.checkpoint.keep_last]:
        if step_number(path) not in config.keep_steps:
            shutil.rmtree(path, ignore_errors=True)


def _hashed(state: Path) -> dict[str, FileRecord]:
    """This rank's share of the files of a folder: pushed to the disk, and hashed."""
    files = sorted(path for path in state.rglob("*") if path.is_file())
    return hashed(files[_rank() :: torch.distributed.get_world_size()], state)


def _rank() -> int:
    return torch.distributed.get_rank()


def _first_rank() -> bool:
    return _rank() == 0


def _barrier() -> None:
    if torch.distributed.get_world_size() > 1:
        torch.distributed.barrier()


def _gathered(value: Any) -> list[Any]:
    """The value of every rank, on every rank."""
    size = torch.distributed.get_world_size()
    values = [value] * size
    if size > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def _from_first(value: Any) -> Any:
    values = [value]
    if torch.distributed.get_world_size() > 1:
        torch.distributed.broadcast_object_list(values, src=0)
    return values[0]
