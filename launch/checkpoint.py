"""Checkpoints that are whole or absent, and which one a run resumes from.

    checkpoints/step-<n>/       appears by rename, once every rank has written and rank 0 has hashed
        *.pt                    DeepSpeed's files: model, optimizer
        metrics.h5              what the run had measured by then
        checkpoint.json         step, the run's digest, the data's identity, size and sha256 of each file

The newest folder whose files all match is used; one that does not match is named aloud and passed
over. There is no `latest` file to go stale.
"""

import hashlib
import os
import re
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed
from pydantic import ValidationError

from launch.config import RunConfig
from launch.engine import Engine
from launch.results import METRICS_FILE, DamagedFile, is_finished
from launch.strict import Strict

CHECKPOINTS = "checkpoints"
DESCRIPTION = "checkpoint.json"


class FileRecord(Strict):
    bytes: int
    sha256: str


class Description(Strict):
    """`checkpoint.json`."""

    step: int
    config_digest: str
    data_identity: str
    zero_stage: int
    world_size: int
    files: dict[str, FileRecord]


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    path: Path
    step: int
    config_digest: str
    data_identity: str
    zero_stage: int
    world_size: int


def save(engine: Engine, folder: Path, step: int, data_identity: str) -> None:
    """Save after `step` steps, then remove what is no longer kept. Collective.

    The run's flushed `metrics.h5` goes in too.
    """
    config = engine.config
    final = folder / CHECKPOINTS / _name(step)
    temporary = final.parent / f".{final.name}.tmp"
    if _first_rank():
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    _barrier()
    engine.save(temporary, "state", {"step": step})
    _barrier()
    if _first_rank():
        shutil.copyfile(folder / METRICS_FILE, temporary / "state" / METRICS_FILE)
        whole = Checkpoint(
            path=final,
            step=step,
            config_digest=config.digest,
            data_identity=data_identity,
            zero_stage=config.parallel.zero_stage,
            world_size=engine.world_size,
        )
        _describe(temporary / "state", whole)
        # A run that was stopped comes by steps that it has saved before; those may be broken.
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary / "state", final)
        shutil.rmtree(temporary, ignore_errors=True)
        _sync(final.parent)
        _remove_old(folder, config)
    _barrier()


def newest(folder: Path, *, at_step: int | None = None) -> Checkpoint | None:
    """The newest whole checkpoint of a run folder (or the one after `at_step` steps), if any.

    Collective: the first rank looks, for reading every file on every rank would keep a file system
    busy, and all must agree. It says on stderr which newer ones are broken, and why.
    """
    found: list[Checkpoint | None] = [None]
    if _first_rank():
        found = [_newest_whole(folder, at_step)]
    if torch.distributed.get_world_size() > 1:
        torch.distributed.broadcast_object_list(found, src=0)
    return found[0]


def _newest_whole(folder: Path, at_step: int | None) -> Checkpoint | None:
    for path in reversed(_steps(folder)):
        if at_step is not None and _step_of(path) != at_step:
            continue
        try:
            return verify(path)
        except ValueError as error:
            print(f"WARNING: {error}", file=sys.stderr, flush=True)
            if at_step is None:  # out of the way: it must not count among those that are kept
                shutil.rmtree(path.with_name(f"broken-{path.name}"), ignore_errors=True)
                path.rename(path.with_name(f"broken-{path.name}"))
    return None


def verify(path: Path) -> Checkpoint:
    """Check every file's size and hash. Raises `ValueError` that names the first broken file."""
    advice = (
        "It is passed over and kept as `broken-step-...`; the next older checkpoint, or the beginning, "
        "is used instead."
    )
    try:
        description = Description.model_validate_json((path / DESCRIPTION).read_bytes())
    except (OSError, ValidationError) as error:
        raise ValueError(
            f"{path / DESCRIPTION}: not readable as a checkpoint's description "
            f"({str(error).splitlines()[0]}); wanted what was saved. {advice}"
        ) from None
    if description.step != _step_of(path):
        raise ValueError(
            f"{path / DESCRIPTION}: step {description.step}; wanted {_step_of(path)}, as its folder "
            f"says. {advice}"
        )
    for name, wanted in description.files.items():
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != wanted.bytes:
            found = "missing" if size is None else f"{size} bytes"
            raise ValueError(f"{file}: {found}; wanted {wanted.bytes} bytes. {advice}")
        digest = _sha256(file)
        if digest != wanted.sha256:
            raise ValueError(
                f"{file}: sha256 {digest[:12]}...; wanted {wanted.sha256[:12]}... {advice}"
            )
    return Checkpoint(path=path, **description.model_dump(exclude={"files"}))


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


def load(engine: Engine, checkpoint: Checkpoint) -> None:
    """Continue `engine` from a checkpoint. Collective.

    ZeRO spreads the optimizer over the ranks, so what it saved fits the same stage and number of
    ranks alone; without ZeRO every rank holds everything, and any number of ranks may continue.
    Raises `ValueError` naming both sides where it does not fit.
    """
    there = (checkpoint.zero_stage, checkpoint.world_size)
    here = (engine.config.parallel.zero_stage, engine.world_size)
    if there != here and (there[0] or here[0]):
        raise ValueError(
            f"{checkpoint.path}: saved with ZeRO stage {there[0]} on {there[1]} ranks; this run has "
            f"stage {here[0]} on {here[1]} ranks; wanted the same. Restore parallel.zero_stage and "
            "the number of ranks."
        )
    state = engine.load(checkpoint.path.parent, checkpoint.path.name)
    assert state["step"] == checkpoint.step, f"{checkpoint.path} holds step {state['step']}"


def remove_all(folder: Path, keep_steps: list[int]) -> None:
    """A finished run keeps its last checkpoint, and those that shorter runs start from."""
    paths = _steps(folder)
    for path in paths[:-1]:
        if _step_of(path) not in keep_steps:
            shutil.rmtree(path, ignore_errors=True)


def _remove_old(folder: Path, config: RunConfig) -> None:
    paths = _steps(folder)
    for path in paths[: -config.checkpoint.keep_last]:
        if _step_of(path) not in config.keep_steps:
            shutil.rmtree(path, ignore_errors=True)


def _describe(path: Path, checkpoint: Checkpoint) -> None:
    """Write the description last, and push everything to the disk before the rename."""
    files = {}
    for file in sorted(path.iterdir()):
        _sync(file)
        files[file.name] = FileRecord(bytes=file.stat().st_size, sha256=_sha256(file))
    fields = {name: value for name, value in asdict(checkpoint).items() if name != "path"}
    description = Description(**fields, files=files)
    (path / DESCRIPTION).write_text(description.model_dump_json(indent=2) + "\n")
    _sync(path / DESCRIPTION)
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _name(step: int) -> str:
    return f"step-{step}"


def _steps(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; what else lies there is somebody else's."""
    named = re.compile(r"step-(0|[1-9][0-9]*)")
    found = (folder / CHECKPOINTS).glob("step-*")
    return sorted(
        (path for path in found if named.fullmatch(path.name) and path.is_dir()), key=_step_of
    )


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _first_rank() -> bool:
    return torch.distributed.get_rank() == 0


def _barrier() -> None:
    if torch.distributed.get_world_size() > 1:
        torch.distributed.barrier()
