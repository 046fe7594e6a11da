"""Checkpoints that are whole or absent, and which one a run resumes from.

    checkpoints/step-<n>/       appears by rename, once every rank has written and rank 0 has hashed
        *.pt                    DeepSpeed's files: model, optimizer
        checkpoint.json         step, the run's digest, the data's identity, size and sha256 of each file

The newest folder whose files all match is used; one that does not match is named aloud and passed
over. There is no `latest` file to go stale.
"""

import hashlib
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed

from launch.config import RunConfig
from launch.engine import Engine

CHECKPOINTS = "checkpoints"
DESCRIPTION = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    path: Path
    step: int
    config_digest: str
    data_identity: str


def save(engine: Engine, folder: Path, step: int, data_identity: str) -> None:
    """Save after `step` steps, then remove what is no longer kept. Collective."""
    config = engine.config
    final = folder / CHECKPOINTS / _name(step)
    if final.exists():
        return  # a resumed run comes by steps that it has saved before
    temporary = final.parent / f".{final.name}.tmp"
    if _first_rank():
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    _barrier()
    engine.save(temporary, "state", {"step": step})
    _barrier()
    if _first_rank():
        _describe(temporary / "state", Checkpoint(final, step, config.digest, data_identity))
        os.replace(temporary / "state", final)
        shutil.rmtree(temporary, ignore_errors=True)
        _sync(final.parent)
        _remove_old(folder, config)
    _barrier()


def newest(folder: Path, *, at_step: int | None = None) -> Checkpoint | None:
    """The newest whole checkpoint of a run folder (or the one after `at_step` steps), if any.

    Says on stderr which newer ones are broken, and why.
    """
    for path in sorted((folder / CHECKPOINTS).glob("step-*"), key=_step_of, reverse=True):
        if at_step is not None and _step_of(path) != at_step:
            continue
        try:
            return verify(path)
        except ValueError as error:
            print(f"WARNING: {error}", file=sys.stderr, flush=True)
    return None


def verify(path: Path) -> Checkpoint:
    """Check every file's size and hash. Raises `ValueError` that names the first broken file."""
    advice = "It is passed over; the next older checkpoint, or the beginning, is used instead."
    try:
        description = json.loads((path / DESCRIPTION).read_text())
        files = description.pop("files")
        checkpoint = Checkpoint(path=path, **description)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path / DESCRIPTION}: not readable as a checkpoint's description ({error}); wanted "
            f"what was saved. {advice}"
        ) from None
    for name, wanted in files.items():
        file = path / name
        size = file.stat().st_size if file.exists() else None
        if size != wanted["bytes"]:
            found = "missing" if size is None else f"{size} bytes"
            raise ValueError(f"{file}: {found}; wanted {wanted['bytes']} bytes. {advice}")
        digest = _sha256(file)
        if digest != wanted["sha256"]:
            raise ValueError(
                f"{file}: sha256 {digest[:12]}...; wanted {wanted['sha256'][:12]}... {advice}"
            )
    return checkpoint


def load(engine: Engine, checkpoint: Checkpoint) -> None:
    """Continue `engine` from a checkpoint. Collective."""
    state = engine.load(checkpoint.path.parent, checkpoint.path.name)
    assert state["step"] == checkpoint.step, f"{checkpoint.path} holds step {state['step']}"


def remove_all(folder: Path, keep_steps: list[int]) -> None:
    """A finished run keeps its last checkpoint, and those that shorter runs start from."""
    paths = sorted((folder / CHECKPOINTS).glob("step-*"), key=_step_of)
    for path in paths[:-1]:
        if _step_of(path) not in keep_steps:
            shutil.rmtree(path, ignore_errors=True)


def _remove_old(folder: Path, config: RunConfig) -> None:
    paths = sorted((folder / CHECKPOINTS).glob("step-*"), key=_step_of)
    for path in paths[: -config.checkpoint.keep_last]:
        if _step_of(path) not in config.keep_steps:
            shutil.rmtree(path, ignore_errors=True)


def _describe(path: Path, checkpoint: Checkpoint) -> None:
    """Write the description last, and push everything to the disk before the rename."""
    files = {}
    for file in sorted(path.iterdir()):
        _sync(file)
        files[file.name] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
    record = {name: value for name, value in asdict(checkpoint).items() if name != "path"}
    description = path / DESCRIPTION
    description.write_text(json.dumps({**record, "files": files}, indent=2) + "\n")
    _sync(description)
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


def _step_of(path: Path) -> int:
    digits = path.name.removeprefix("step-")
    return int(digits) if digits.isdigit() else -1


def _first_rank() -> bool:
    return torch.distributed.get_rank() == 0


def _barrier() -> None:
    if torch.distributed.get_world_size() > 1:
        torch.distributed.barrier()
