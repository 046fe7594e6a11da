"""Files that appear whole or not at all, also when the machine dies: written under another name, synced, renamed."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_TEMPORARY = re.compile(r"\.[0-9]+\.tmp$")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream to write the new content of `path` to; it takes its place when the block ends well, else it goes."""
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as stream:
            yield stream
            sync(stream)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_path(path.parent)


def temporary_name(path: Path) -> Path:
    """What `path` is called while it is written. Every process has its own: a worker whose build was killed may live on
    for a while beside the one that does its work again."""
    return beside(path, f".{os.getpid()}.tmp")


def clear_temporaries(folder: Path, name: str = "") -> None:
    """Remove what killed processes have left in `folder` of files that begin with `name`; nobody may write there."""
    for path in folder.iterdir():
        if path.name.startswith(name) and _TEMPORARY.search(path.name):
            path.unlink(missing_ok=True)


def write_file(path: Path, data: bytes) -> None:
    """Write a small file so that it appears whole or not at all."""
    with replacing(path) as stream:
        stream.write(data)


def sync(stream: BinaryIO) -> None:
    """Make what was written survive a power cut."""
    stream.flush()
    os.fsync(stream.fileno())


def sync_path(path: Path) -> None:
    """Make a file that was written, or the renames in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def beside(prefix: Path, ending: str) -> Path:
    """The file whose name is that of `prefix` and `ending`; a prefix may have dots of its own."""
    return prefix.with_name(prefix.name + ending)


def recorded(text: str) -> str:
    """A path or command as it is written down and shown: bytes that are not UTF-8, which a path may have, as \\xNN."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def check_writable(out: Path) -> None:
    """ValueError unless `out` (--out) can be a file: no folder, and in a folder that is there."""
    if out.is_dir() or not out.parent.is_dir():
        found = "is a folder" if out.is_dir() else f"the folder {out.parent} does not exist"
        raise ValueError(
            f"--out {out}: {found}; wanted a file to write, in a folder that is there. Choose another path."
        )
