"""Saving and resuming: what all ranks do together, and which checkpoint a run resumes from.

The newest folder whose files all match is used (`launch.checkpoint_files`); one that does not match is
named aloud and passed over. There is no `latest` file to go stale. Each rank hashes what it writes, and
they share the hashing of what they read, so that its time does not grow with their number.
"""

import contextlib
import os
import shutil
import sys
import time
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
from launch.checkpoint_writer import Part, Writing
from launch.config import CONFIG_FILE, RunConfig, load_config, save_config
from launch.console import say
from launch.engine import Engine
from launch.results import METRICS_FILE, DamagedFile, is_finished
from launch.universal import UNIVERSAL, write_universal

SAID_ELSEWHERE = "said_elsewhere"  # attribute of an error that another rank raises too, and says
# Ranks that read all of a checkpoint's files: the work is shared, opening the files is not.
ASSEMBLERS = 16


class Saver:
    """Saves one run's checkpoints. A context manager; `begin` and `finish` are collective.

    `begin` copies the state in memory and lets a thread of each rank write it (`launch.checkpoint_writer`);
    `finish` has it appear, once every rank has written. A save waits for the one before it.
    """

    def __init__(self, engine: Engine, folder: Path, data_identity: str) -> None:
        self.saves = 0
        self.seconds_waited = 0.0  # by training
        self.seconds_written = 0.0  # by this rank's thread
        self._engine, self._folder, self._data_identity = engine, folder, data_identity
        self._writing: Writing | None = None
        self._final, self._step = folder, 0

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        together = kind is not None and issubclass(kind, FloatingPointError)  # raised by all ranks
        if kind is None or together or torch.distributed.get_world_size() == 1:
            self.finish()
        elif (
            self._writing
        ):  # the others may be elsewhere; what was begun is removed at the next start
            with contextlib.suppress(OSError):
                self._writing.result()

    @property
    def under_way(self) -> bool:
        """Whether this rank is still writing."""
        return self._writing is not None and self._writing.under_way

    def begin(self, step: int) -> None:
        """Start saving the state after `step` steps; the run's flushed `metrics.h5` goes in too.

        Raises `OSError` on all ranks where one cannot, and leaves the checkpoints as they were.
        """
        self.finish()
        began = time.monotonic()
        self._step, self._final = step, self._folder / CHECKPOINTS / step_name(step)
        state, copy = self._state, self._engine.config.checkpoint.overlap

        def measured_so_far() -> None:
            shutil.copyfile(self._folder / METRICS_FILE, state / METRICS_FILE)
            save_config(self._engine.config, state)

        def hand_over() -> None:  # what it returned would be gathered from all ranks
            parts.extend(self._engine.to_save(state.parent, state.name, {"step": step}, copy=copy))

        parts: list[Part] = []
        try:
            _on_first(lambda: _fresh(state))
            _on_first(measured_so_far)
            _together(hand_over)
        except BaseException:
            self._clear()
            raise
        self._writing = Writing(parts)
        if not copy:
            self._writing.wait()
        self.seconds_waited += time.monotonic() - began

    def finish(self) -> None:
        """Have the checkpoint that was begun appear, then remove what is no longer kept.

        Raises `OSError` on all ranks where one could not write, and leaves the checkpoints as they were.
        """
        if not self._writing:
            return
        began = time.monotonic()
        writing, self._writing = self._writing, None
        try:
            each = _together(writing.result)
            files = {path: record for records in each for path, record in records.items()}
            _on_first(lambda: self._publish(files))
        finally:
            self._clear()
        if _first_rank():
            _remove_old(self._folder, self._engine.config)
        _barrier()
        self.saves += 1
        self.seconds_written += writing.seconds
        self.seconds_waited += time.monotonic() - began

    @property
    def _state(self) -> Path:
        return self._final.parent / f".{self._final.name}.tmp" / "state"

    def _publish(self, files: dict[Path, FileRecord]) -> None:
        config, state = self._engine.config, self._state
        records = {str(path.relative_to(state)): record for path, record in files.items()}
        records |= hashed([state / METRICS_FILE, state / CONFIG_FILE], state)
        whole = Checkpoint(
            path=self._final,
            step=self._step,
            config_digest=config.digest,
            data_identity=self._data_identity,
            zero_stage=config.parallel.zero_stage,
            world_size=self._engine.world_size,
            tensor_parallel=config.parallel.tensor_model_parallel_size,
        )
        publish(state, whole, records)

    def _clear(self) -> None:
        if _first_rank():
            shutil.rmtree(self._state.parent, ignore_errors=True)


def save(engine: Engine, folder: Path, step: int, data_identity: str) -> None:
    """Save after `step` steps, and wait for it. Collective; see `Saver`."""
    with Saver(engine, folder, data_identity) as saver:
        saver.begin(step)


def _fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _on_first(work: Callable[[], Any]) -> Any:
    """What the first rank does for all; the others get its result, or its error."""
    return _together(lambda: work() if _first_rank() else None)[0]


def _together(work: Callable[[], Any]) -> list[Any]:
    """Every rank does its part; where one cannot, all raise: the reason there, elsewhere the first reason.

    Without this a rank that raises alone leaves the others waiting in their next collective.
    """
    problem: Exception | None = None
    result = None
    try:
        result = work()
    except Exception as error:
        problem = error
    # Any other kind of error may not survive the way to the other ranks.
    told = problem
    if problem and not isinstance(problem, OSError | ValueError):
        told = RuntimeError(f"rank {_rank()}: {type(problem).__name__}: {problem}")
    results = _gathered((result, told))
    failed = {rank: reason for rank, (_, reason) in enumerate(results) if reason}
    if failed:
        first = min(failed)
        raised = problem or failed[first]
        if _rank() != first:
            setattr(raised, SAID_ELSEWHERE, True)
        raise raised
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


def remove_all(folder: Path, config: RunConfig) -> None:
    """A finished run keeps its last checkpoint, and those that are kept for good; no broken ones."""
    _remove(steps_of(folder)[:-1], config)
    for path in (folder / CHECKPOINTS).glob("broken-*"):
        shutil.rmtree(path, ignore_errors=True)


def _remove_old(folder: Path, config: RunConfig) -> None:
    _remove(steps_of(folder)[: -config.checkpoint.keep_last], config)


def _remove(paths: list[Path], config: RunConfig) -> None:
    for path in paths:
        if not _kept(path, config):
            shutil.rmtree(path, ignore_errors=True)


def _kept(path: Path, config: RunConfig) -> bool:
    """For good: as the study says now, or said when it was saved, for somebody may count on it."""
    step = step_number(path)
    if config.keeps(step):
        return True
    try:
        return load_config(path).keeps(step)
    except ValueError:
        return False


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
