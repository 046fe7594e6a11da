"""Raw pictures in folders and tar files: which items there are, and the bytes of one. Nothing is ever unpacked to disk.

`list_items` walks folders in sorted order and looks into every tar, so that the same input always gives the same list.
Whatever is not a plain file (links, devices) or carries a name that points elsewhere is listed with its reason.
"""

import json
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True)
class Entry:
    """One raw item: `size` bytes at `offset` of `file`; `key` names it; a `reason` means that it is refused.

    `damaged`: not one item but a tar, of which an unknown number of items is lost.
    """

    file: str
    offset: int
    size: int
    key: str
    reason: str = ""
    damaged: bool = False

    def line(self) -> bytes:
        """This entry as one line of a listing."""
        return json.dumps(astuple(self)).encode() + b"\n"


def from_line(line: bytes) -> Entry:
    """The entry that `Entry.line` wrote."""
    return Entry(*json.loads(line))


def list_items(raw: Path, extensions: frozenset[str]) -> Iterator[Entry]:
    """Every item below `raw` (a folder, a tar, a folder with tars) whose name ends in one of `extensions`."""
    if raw.is_dir():
        yield from _list_folder(raw, "", extensions)
    elif _ending(raw.name) == ".tar":
        yield from _list_tar(str(raw), raw.name, extensions)
    elif raw.is_file() and _ending(raw.name) in extensions:
        yield Entry(str(raw), 0, raw.stat().st_size, raw.name)
    else:
        found = "is another kind of file" if raw.exists() else "does not exist"
        raise ValueError(
            f"{raw}: {found}; wanted a folder of pictures, a .tar, or a folder of .tar files. "
            f"Unpack .zip and decompress .tar.gz first, then give that path as --raw."
        )


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _list_folder(folder: Path, prefix: str, extensions: frozenset[str]) -> Iterator[Entry]:
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        key = prefix + entry.name
        wanted = _ending(entry.name) in extensions or _ending(entry.name) == ".tar"
        if entry.is_symlink():
            if wanted or os.path.isdir(entry.path):
                yield Entry(
                    entry.path, 0, 0, key, "a symbolic link: give --raw the place that it points to"
                )
        elif entry.is_dir():
            yield from _list_folder(Path(entry.path), key + "/", extensions)
        elif not entry.is_file():
            yield Entry(entry.path, 0, 0, key, "not a plain file (device, socket or pipe)")
        elif _ending(entry.name) == ".tar":
            yield from _list_tar(entry.path, key, extensions)
        elif wanted:
            yield Entry(entry.path, 0, entry.stat().st_size, key)


def _list_tar(path: str, key: str, extensions: frozenset[str]) -> Iterator[Entry]:
    """The members of one tar, by reading its headers only; damage becomes one entry that says so."""
    length = os.stat(path).st_size
    count = 0
    try:
        with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as tar:
            for member in tar:
                # tarfile remembers every member; forget them, or a tar of millions fills the memory.
                tar.members.clear()  # type: ignore[attr-defined]
                entry = _tar_entry(path, key, length, member, extensions)
                if entry is not None:
                    count += 1
                    yield entry
            end = tar.offset
        if not _ends_properly(path, end):
            reason = f"the tar file is cut off after {count} items (no end mark): copy it again"
            yield Entry(path, 0, 0, key, reason, damaged=True)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        reason = f"the tar file is damaged after {count} items ({error}): copy it again"
        yield Entry(path, 0, 0, key, reason, damaged=True)


def _ends_properly(path: str, end: int) -> bool:
    """Is there a block of zeros where the last member ends? tarfile takes a torn header for the end, silently."""
    with open(path, "rb") as stream:
        stream.seek(end)
        return stream.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _tar_entry(
    path: str, key: str, length: int, member: tarfile.TarInfo, extensions: frozenset[str]
) -> Entry | None:
    name = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    key = f"{key}/{name}"
    if member.isdir():
        return None
    if name.startswith("/") or ".." in name.split("/"):
        return Entry(path, 0, 0, key, "a tar member whose name points outside the archive")
    if not member.isreg() or member.issparse():
        return Entry(
            path,
            0,
            0,
            key,
            f"a tar member that is no plain file (type {member.type.decode('latin1')!r})",
        )
    if _ending(name) not in extensions:
        return None
    if member.offset_data + member.size > length:
        return Entry(path, 0, 0, key, "cut off: the tar file ends inside this member")
    return Entry(path, member.offset_data, member.size, key)


def read_entry(entry: Entry, limit: int, opened: dict[str, BinaryIO]) -> bytes:
    """The bytes of one item; ValueError if it may not or cannot be read. `opened` keeps the last tar's handle."""
    if entry.reason:
        raise ValueError(entry.reason)
    if entry.size > limit:
        raise ValueError(f"{entry.size} bytes; at most {limit} are read")
    try:
        stream = opened.get(entry.file)
        if stream is None:
            close_all(opened)
            # O_NONBLOCK: a pipe put in a file's place since the listing must not hang us.
            handle = os.open(entry.file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            stream = opened[entry.file] = os.fdopen(handle, "rb")
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ValueError("not a plain file (device, socket or pipe)")
        data = os.pread(stream.fileno(), entry.size, entry.offset)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    if len(data) != entry.size:
        raise ValueError(f"cut off: {len(data)} bytes of {entry.size}")
    return data


def close_all(opened: dict[str, BinaryIO]) -> None:
    """Close every handle that `read_entry` keeps."""
    for stream in opened.values():
        stream.close()
    opened.clear()
