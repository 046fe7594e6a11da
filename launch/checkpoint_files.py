"""The folder of one checkpoint: what is in it, whether it is whole, how it appears. No torch.

checkpoints/step-<n>/       appears by rename, once every rank has written and hashed its files
    *.pt                    DeepSpeed's files: model, optimizer
    universal/              instead of them, where `launch reshard` wrote it
    config.json             the run's configuration
    metrics.h5              what the run had measured by then
    checkpoint.json         step, the run's digest, the data's identity, size and sha256 of each file

checkpoints/broken-step-<n>/    one that did not match on loading: for who wants to look, until the run is finished
"""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import ValidationError

from data_prep.files import sync_path
from launch.strict import Strict

CHECKPOINTS = "checkpoints"
DESCRIPTION = "checkpoint.json"


class FileRecord(Strict):
    bytes: int
    sha256: str


class Description(Strict):
    """`checkpoint.json`; `world_size` counts the data-parallel ranks."""

    step: int
    config_digest: str
    data_identity: str
    zero_stage: int
    world_size: int
    tensor_parallel: int = 1
    optimizer: bool = True  # else weights alone: enough to evaluate
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
    tensor_parallel: int = 1
    optimizer: bool = True

    @property
    def topology(self) -> tuple[int, int, int]:
        return self.tensor_parallel, self.world_size, self.zero_stage


def verify(path: Path, part: int = 0, parts: int = 1) -> Checkpoint:
    """Check size and hash of every file, or of every `parts`-th one.

    Raises `ValueError` that names the first broken file.
    """
    advice = "This checkpoint is damaged or incomplete: take another one."
    try:
        description = Description.model_validate_json((path / DESCRIPTION).read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValidationError) as error:
        raise ValueError(
            f"{path / DESCRIPTION}: not readable as a checkpoint's description "
            f"({str(error).splitlines()[0]}); wanted what was saved. {advice}"
        ) from None
    if description.step != step_number(path):
        raise ValueError(
            f"{path / DESCRIPTION}: step {description.step}; wanted {step_number(path)}, as its folder "
            f"says. {advice}"
        )
    for name, wanted in list(description.files.items())[part::parts]:
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != wanted.bytes:
            found = "missing" if size is None else f"{size} bytes"
            raise ValueError(f"{file}: {found}; wanted {wanted.bytes} bytes. {advice}")
        try:
            digest = _sha256(file)
        except OSError as error:
            if error.errno != errno.EIO:  # a bad sector is damage; too many open files is not
                raise
            raise ValueError(
                f"{file}: not readable ({error.strerror}); wanted its bytes. {advice}"
            ) from None
        if digest != wanted.sha256:
            raise ValueError(
                f"{file}: sha256 {digest[:12]}...; wanted {wanted.sha256[:12]}... {advice}"
            )
    return Checkpoint(path=path, **description.model_dump(exclude={"files"}))


def newest_path(folder: Path) -> Path | None:
    """The newest checkpoint of a run folder, whole or not."""
    paths = steps_of(folder)
    return paths[-1] if paths else None


def publish(state: Path, whole: Checkpoint, files: dict[str, FileRecord]) -> None:
    """Describe the files of the folder `state`, push them to the disk, and rename it to `whole.path`."""
    fields = {name: value for name, value in asdict(whole).items() if name != "path"}
    description = Description(**fields, files=dict(sorted(files.items())))
    (state / DESCRIPTION).write_text(description.model_dump_json(indent=2) + "\n")
    sync_path(state / DESCRIPTION)
    sync_path(state)
    # A run that was stopped comes by steps that it has saved before; those may be broken.
    shutil.rmtree(whole.path, ignore_errors=True)
    os.replace(state, whole.path)
    sync_path(whole.path.parent)


def hashed(files: Sequence[Path], folder: Path) -> dict[str, FileRecord]:
    """Size and sha256 of each, by its path inside `folder`; all are on the disk then."""
    records = {}
    for file in files:
        sync_path(file)
        record = FileRecord(bytes=file.stat().st_size, sha256=_sha256(file))
        records[str(file.relative_to(folder))] = record
    return records


def step_name(step: int) -> str:
    return f"step-{step}"


def steps_of(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; what else lies there is somebody else's."""
    named = re.compile(r"step-(0|[1-9][0-9]*)")
    found = (folder / CHECKPOINTS).glob("step-*")
    return sorted(
        (path for path in found if named.fullmatch(path.name) and path.is_dir()), key=step_number
    )


def newest_step(folder: Path) -> int:
    """Of a run; 0 where it has no checkpoint."""
    steps = steps_of(folder)
    return step_number(steps[-1]) if steps else 0


def step_number(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
