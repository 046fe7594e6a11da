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

# Ranks that read all of a checkpoint's files: the work is shared, opening the files is not.
ASSEMBLERS = 16


def save(engine: Engine, folder: Path, step: int, data_identity: str) -> None:
    """Save after `step` steps, then remove what is no longer kept. Collective.

    The run's flushed `metrics.h5` goes in too. Raises `OSError` on all ranks where one cannot write,
    and leaves the checkpoints as they were.
    """
    config = engine.config
    final = folder / CHECKPOINTS / step_name(step)
    temporary = final.parent / f".{final.name}.tmp"
    state = temporary / "state"
    whole = Checkpoint(
        path=final,
        step=step,
        config_digest=config.digest,
        data_identity=data_identity,
        zero_stage=config.parallel.zero_stage,
        world_size=engine.world_size,
        tensor_parallel=config.parallel.tensor_model_parallel_size,
    )

    def add_ours() -> list[Path]:
        shutil.copyfile(folder / METRICS_FILE, state / METRICS_FILE)
        save_config(config, state)
        return sorted(path for path in state.rglob("*") if path.is_file())

    try:
        _on_first(lambda: _fresh(temporary))
        _together(lambda: engine.save(temporary, state.name, {"step": step}))
        files = _on_first(add_ours)
        share = files[_rank() :: torch.distributed.get_world_size()]
        records = _together(lambda: hashed(share, state))
        _on_first(
            lambda: publish(state, whole, {name: r for each in records for name, r in each.items()})
        )
    finally:
        if _first_rank():
            shutil.rmtree(temporary, ignore_errors=True)
    if _first_rank():
        _remove_old(folder, config)
    _barrier()


def _fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _on_first(work: Callable[[], Any]) -> Any:
    """What the first rank does for all; the others get its result, or its error."""
    return _together(lambda: work() if _first_rank() else None)[0]


def _together(work: Callable[[], Any]) -> list[Any]:
    """Every rank does its part; where one cannot, all raise: the reason there, `OSError` or `ValueError`.

    Without this a rank that raises alone leaves the others waiting in their next collective.
    """
    problem: OSError | ValueError | None = None
    result = None
    try:
        result = work()
    except (OSError, ValueError) as error:
        problem = error
    results = _gathered((result, problem))
    failed = [error for _, error in results if error]
    if failed:
        raise problem or failed[0]
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
            passed = "kept as broken-..." if at_step is None else "left where it is"
            problem = (
                f"{error} It is passed over and {passed}; an older one, or the beginning, serves."
            )
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
    """At most `ASSEMBLERS` ranks read every file to put parameters together; all then read these."""
    parts = min(torch.distributed.get_world_size(), ASSEMBLERS)

    def assemble() -> None:
        if _rank() < parts:
            shape = engine.config.shape
            write_universal(checkpoint.path, temporary, shape, part=_rank(), parts=parts)

    try:
        _on_first(lambda: _fresh(temporary))
        _together(assemble)
        _together(lambda: engine.load_universal(temporary))
    finally:
        if _first_rank():
            shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """What a killed process had begun to write. Only for who holds the run's lock."""
    for path in (folder / CHECKPOINTS).glob(".*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


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
