"""Raw pictures in folders and tar files: which items there are, and the bytes of one. Nothing is ever unpacked to disk.

`list_items` walks folders in sorted order and looks into every tar, so that the same input always gives the same list.
Whatever is not a plain file (links, devices) or carries a name that points elsewhere is listed with its reason.
"""

import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from data_prep.domain import Refusal
from data_prep.folders import PassedOver, ending, walk
from data_prep.listing import Listed
from data_prep.tar_files import Member, TarDamage, members

_quoted = json.encoder.encode_basestring_ascii
# Items are handed over in batches of at most so many items and, beyond one item, so many bytes.
_BATCH_ITEMS, _BATCH_BYTES = 256, 1 << 22
# Nobody knows how many items these hold, so they count as damage and not as files of another kind.
_ARCHIVES = (*(".tar" + end for end in (".gz", ".bz2", ".xz", ".zst")), ".tgz", ".zip")


class Entry(NamedTuple):
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
        """This entry as one line of a listing, in JSON."""
        if self.reason:
            return json.dumps(self).encode() + b"\n"
        place = f"{self.offset}, {self.size}"
        return f"[{_quoted(self.file)}, {place}, {_quoted(self.key)}]\n".encode()


def listed(entry: Entry) -> Listed:
    """An entry as it stands in a listing, alone."""
    damage = (Refusal(entry.key, entry.reason, damaged=True),) if entry.damaged else ()
    return Listed(entry.line(), entry.size, damage)


def from_line(line: bytes) -> Entry:
    """The entry that `Entry.line` wrote."""
    return Entry(*json.loads(line))


def from_lines(lines: bytes) -> list[Entry]:
    """The entries of many lines."""
    return [Entry(*each) for each in json.loads(b"[%b]" % lines.rstrip().replace(b"\n", b","))]


def list_items(
    raw: Path,
    extensions: frozenset[str],
    passed_over: PassedOver | None = None,
    together: Callable[[str], str] | None = None,
) -> Iterator[Entry]:
    """Every item below `raw` (a folder, a tar, a folder with tars) whose name ends in one of `extensions`; the others
    are counted in `passed_over`. Files of a folder that are `together` follow one another (`data_prep/folders.py`)."""
    passed_over = PassedOver() if passed_over is None else passed_over
    if raw.is_dir():
        yield from _list_folder(raw, extensions, passed_over, together)
    elif raw.is_file() and _ending(raw.name) == ".tar":
        yield from _list_tar(str(raw), raw.name, extensions, passed_over)
    elif raw.is_file() and _ending(raw.name) in extensions:
        yield Entry(str(raw), 0, raw.stat().st_size, raw.name)
    else:
        found = "is another kind of file" if raw.exists() else "does not exist"
        raise ValueError(
            f"{raw}: {found}; wanted a folder of pictures, a .tar, or a folder of .tar files. "
            f"Unpack .zip and decompress .tar.gz first, then give that path as --raw."
        )


def _ending(name: str) -> str:
    dot = name.rfind(".")
    if dot > 0 and name[dot - 1] not in "./":
        return name[dot:].lower() if "/" not in name[dot:] else ""
    return os.path.splitext(name)[1].lower()


def _list_folder(
    folder: Path,
    extensions: frozenset[str],
    passed_over: PassedOver,
    together: Callable[[str], str] | None,
) -> Iterator[Entry]:
    def wanted(name: str) -> bool:
        return _ending(name) in extensions or _ending(name) == ".tar" or _is_archive(name)

    for found in walk(str(folder), "", wanted, passed_over, together):
        if found.reason:
            yield Entry(found.path, 0, 0, found.key, found.reason)
        elif _is_archive(found.path):
            reason = "an archive that is compressed: unpack it, or decompress the tar in it"
            yield Entry(found.path, 0, 0, found.key, reason, damaged=True)
        elif _ending(found.path) == ".tar":
            yield from _list_tar(found.path, found.key, extensions, passed_over)
        else:
            yield Entry(found.path, 0, found.size, found.key)


def _is_archive(name: str) -> bool:
    return name.lower().endswith(_ARCHIVES)


def _list_tar(
    path: str, key: str, extensions: frozenset[str], passed_over: PassedOver
) -> Iterator[Entry]:
    """The members of one tar, by reading its headers only; damage becomes one entry that says so."""
    count = 0
    with open(path, "rb", buffering=0) as stream:
        length = os.fstat(stream.fileno()).st_size
        try:
            for member in members(stream.fileno(), length):
                entry = _tar_entry(path, key, length, member, extensions, passed_over)
                if entry is not None:
                    count += 1
                    yield entry
        except TarDamage as error:
            how = "cut off" if error.cut else "damaged"
            reason = f"the tar file is {how} after {count} items ({error}): copy it again"
            yield Entry(path, 0, 0, key, reason, damaged=True)


def _tar_entry(
    path: str,
    tar_key: str,
    length: int,
    member: Member,
    extensions: frozenset[str],
    passed_over: PassedOver,
) -> Entry | None:
    """What one member is as a raw item; None for a folder, and for one that is passed over."""
    name, kind, offset, size = member
    if kind == "5":
        return None
    key = f"{tar_key}/{name}"
    if "\0" in name:  # only pax can say so; keys end with it elsewhere
        reason = "a tar member whose name holds a NUL byte"
        return Entry(path, 0, 0, key.replace("\0", "\\x00"), reason)
    if name.startswith("/") or (".." in name and ".." in name.split("/")):
        return Entry(path, 0, 0, key, "a tar member whose name points outside the archive")
    if kind != "0":
        return Entry(path, 0, 0, key, f"a tar member that is no plain file (type {kind!r})")
    if _ending(name) == ".tar" or _is_archive(name):
        return Entry(
            path, 0, 0, key, "an archive inside of a tar: unpack the outer one", damaged=True
        )
    if _ending(name) not in extensions:
        passed_over[ending(name)] += 1
        return None
    if offset + size > length:
        return Entry(path, 0, 0, key, "cut off: the tar file ends inside this member")
    return Entry(path, offset, size, key)


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


def read_batches(
    entries: Iterable[Entry], limit: int, one_by_one: bool = False
) -> Iterator[tuple[list[tuple[Entry, bytes]], list[tuple[Entry, ValueError]]]]:
    """`read_entry` of many, in order: batches of (entry, its bytes), and of (entry, why it cannot be read).

    Neighbours in one tar are read at once, unless they are wanted one by one.
    """
    opened: dict[str, BinaryIO] = {}
    try:
        for batch in ([entry] for entry in entries) if one_by_one else _batches(entries):
            good: list[tuple[Entry, bytes]] = []
            bad: list[tuple[Entry, ValueError]] = []
            for run in _neighbours(batch):
                _read_run(run, limit, opened, good, bad)
            yield good, bad
    finally:
        close_all(opened)


def _batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    size = 0
    for entry in entries:
        if batch and (len(batch) == _BATCH_ITEMS or size + entry.size > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += entry.size
    if batch:
        yield batch


def _neighbours(batch: list[Entry]) -> Iterator[list[Entry]]:
    """Runs of entries of one file, each at most `_BATCH_BYTES` from its first byte to its last."""
    run: list[Entry] = []
    for entry in batch:
        if run and not (
            entry.file == run[0].file
            and run[-1].offset <= entry.offset
            and entry.offset + entry.size <= run[0].offset + _BATCH_BYTES
            and not (entry.reason or run[0].reason)
        ):
            yield run
            run = []
        run.append(entry)
    if run:
        yield run


def _read_run(
    run: list[Entry],
    limit: int,
    opened: dict[str, BinaryIO],
    good: list[tuple[Entry, bytes]],
    bad: list[tuple[Entry, ValueError]],
) -> None:
    start = run[0].offset
    size = max(entry.offset + entry.size for entry in run) - start
    if len(run) > 1 and max(entry.size for entry in run) <= limit:
        try:
            data = read_entry(run[0]._replace(size=size), size, opened)
        except ValueError:
            pass  # one by one, to see which of them it is
        else:
            good += [
                (each, data[each.offset - start : each.offset - start + each.size]) for each in run
            ]
            return
    for entry in run:
        try:
            good.append((entry, read_entry(entry, limit, opened)))
        except ValueError as error:
            bad.append((entry, error))


def close_all(opened: dict[str, BinaryIO]) -> None:
    """Close every handle that `read_entry` keeps."""
    for stream in opened.values():
        stream.close()
    opened.clear()
