"""YFCC100M: its metadata table joined with its photographs (Thomee et al. 2016, arXiv:1503.01817).

`--raw META.tsv:PHOTOS`. The table has one tab-separated line an item, 25 columns or, in the older release, 23 (without
line number and hash); it may be .gz or .bz2, as published. PHOTOS is a folder with `data/images/abc/def/HASH.jpg` below
it, as in the public bucket `multimedia-commons`, or a tar or a folder of tars with members called so. HASH begins with
abcdef and is the MD5 of the download URL, each byte printed as %x without zero padding.
"""

import bz2
import contextlib
import gzip
import hashlib
import os
import re
import sqlite3
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from data_prep.folders import PassedOver
from data_prep.raw_files import Entry, list_items

# The longest field of the table is a description of at most 64 Ki letters, each at most 12 bytes when encoded.
_LONGEST_LINE = 1 << 20
_TABLE = re.compile(r"\.(tsv|txt)(\.gz|\.bz2)?$|\.bz2$")
# Columns by number of columns: identifier, the free text (device, title, description, tags), download URL.
_IDENTIFIER = {25: 1, 23: 0}
_FREE_TEXT = {25: slice(7, 12), 23: slice(5, 10)}
_URL = {25: 16, 23: 14}
_HASH = re.compile(rb"[0-9a-f]{16,32}")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_MEMBER = re.compile(r"(?:.*/)?([0-9a-f]{3})/([0-9a-f]{3})/(\1\2[0-9a-f]{10,26})\.jpg")

# Where the photograph with this hash lies; None: nowhere.
_Find = Callable[[str], Entry | None]


class Photo(NamedTuple):
    """One line of the table: the photo's identifier and the hash that names its file."""

    identifier: str
    hash: str


def split_raw(raw: str) -> tuple[Path, Path] | None:
    """(table, photographs) of `META.tsv:PHOTOS`; None if `raw` is not of that form."""
    table, colon, photos = raw.partition(":")
    while colon and not (_TABLE.search(table) and not Path(raw).exists()):
        more, colon, photos = photos.partition(":")
        table = f"{table}:{more}"
    return (Path(table), Path(photos)) if colon else None


def photo_hash(url: bytes) -> str:
    """The name of a photograph's file, from the URL that it was downloaded from."""
    return "".join(f"{byte:x}" for byte in hashlib.md5(url, usedforsecurity=False).digest())


def list_photos(
    table: Path, photos: Path, folder: Path, passed_over: PassedOver | None = None
) -> Iterator[Entry]:
    """Every line of `table`, in order, as an entry: a photograph below `photos`, or why there is none. Videos, of which
    the table holds some, are counted in `passed_over`.

    Its key is the photo's identifier, or begins with the line's number where there is none. Folders are asked for each
    path. Tars are listed once into a SQLite file in `folder`, sorted there by hash (about 60 bytes a photograph), so
    that memory stays flat; it is deleted at the end.
    """
    if not table.is_file() or not photos.exists() or not str(photos):
        missing = photos if table.is_file() else table
        raise ValueError(
            f"{table}:{photos}: {missing} does not exist; wanted the YFCC100M table and the folder or tars of its "
            f"photographs. Check both paths of --raw META.tsv:PHOTOS."
        )
    passed_over = PassedOver() if passed_over is None else passed_over
    if photos.is_dir() and (photos / "data" / "images").is_dir():
        yield from _join(table, lambda name: _find_file(photos, name), passed_over)
        return
    index = folder / "photographs.sqlite3"
    index.unlink(missing_ok=True)
    try:
        with contextlib.closing(sqlite3.connect(index)) as database:
            yield from _index(database, photos)
            yield from _join(table, lambda name: _find_member(database, name), passed_over)
    except sqlite3.Error as error:
        raise ValueError(
            f"{index}: SQLite cannot keep the list of photographs there ({error}); wanted about 60 bytes of disk for "
            f"each. Free some space, then run the same command again."
        ) from None
    finally:
        index.unlink(missing_ok=True)


def _join(table: Path, find: _Find, passed_over: PassedOver) -> Iterator[Entry]:
    count = 0
    try:
        with _open(table) as stream:
            while line := stream.readline(_LONGEST_LINE):
                count += 1
                entry = _entry(line, count, find)
                if entry is None:
                    passed_over["videos of the table"] += 1
                else:
                    yield entry
                while line and len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
                    line = stream.readline(_LONGEST_LINE)  # the rest of a line that is refused
    except (OSError, EOFError, zlib.error) as error:
        reason = f"the table cannot be read behind line {count} ({error}): copy it again"
        yield Entry(str(table), 0, 0, table.name, reason, damaged=True)


def _open(table: Path) -> BinaryIO:
    if table.suffix == ".gz":
        return cast(BinaryIO, gzip.open(table, "rb"))
    return cast(BinaryIO, bz2.open(table, "rb")) if table.suffix == ".bz2" else table.open("rb")


def _entry(line: bytes, number: int, find: _Find) -> Entry | None:
    """The photograph of a line; None for a video."""
    try:
        photo = parse(line)
    except ValueError as error:
        return Entry("", 0, 0, f"line {number}", str(error))
    if photo is None:
        return None
    found = find(photo.hash)
    if found is None:
        # The reason is the same for all, so that a build can say how many there are.
        key = f"line {number}, photo {photo.identifier}, {_path(photo.hash)}"
        return Entry("", 0, 0, key, "no such photograph")
    if found.reason:
        return found._replace(key=f"line {number}, photo {photo.identifier}")
    return found._replace(key=photo.identifier)


def parse(line: bytes) -> Photo | None:
    """One line of the table; None for a video, and ValueError says why it names neither."""
    if len(line) >= _LONGEST_LINE:
        raise ValueError(f"longer than {_LONGEST_LINE} bytes")
    fields = line.rstrip(b"\r\n").split(b"\t")
    columns = len(fields)
    if columns not in _URL:
        raise ValueError(f"{columns} columns; wanted 25, or the older 23")
    if fields[-1] == b"1":
        return None
    identifier, url = fields[_IDENTIFIER[columns]], fields[_URL[columns]]
    if fields[-1] != b"0" or not identifier.isdigit():
        found = f"identifier {_shown(identifier)}, marker {_shown(fields[-1])}"
        raise ValueError(f"{found}; wanted a number, and 0 (photo) or 1 (video)")
    for field in (*fields[_FREE_TEXT[columns]], url):
        if _BAD_ESCAPE.search(field):
            raise ValueError(f"{_shown(field)} is not URL-encoded")
    if not url.startswith((b"http://", b"https://")):
        raise ValueError(f"download URL {_shown(url)}")
    name = fields[2] if columns == 25 else photo_hash(url).encode()
    if not _HASH.fullmatch(name):
        raise ValueError(f"hash {_shown(name)}; wanted 16 to 32 hexadecimal digits")
    return Photo(identifier.decode(), name.decode())


def _shown(field: bytes) -> str:
    return repr(field[:80].decode("utf-8", "backslashreplace"))


def _path(name: str) -> str:
    return f"data/images/{name[:3]}/{name[3:6]}/{name}.jpg"


def _find_file(photos: Path, name: str) -> Entry | None:
    path = f"{photos}/{_path(name)}"
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Entry(path, 0, 0, "", f"cannot be read: {error.strerror}")
    if not stat.S_ISREG(found.st_mode):
        return Entry(path, 0, 0, "", "not a plain file (link, device, socket or pipe)")
    return Entry(path, 0, found.st_size, "")


def _index(database: sqlite3.Connection, photos: Path) -> Iterator[Entry]:
    """Fill `database` with the photographs in the tars; yields what is wrong with the tars themselves."""
    # It is made anew by each build, so it need not survive a crash.
    database.execute("PRAGMA journal_mode = OFF")
    database.execute("PRAGMA synchronous = OFF")
    database.execute("CREATE TABLE tar (path TEXT)")
    database.execute("CREATE TABLE photo (hash TEXT, tar INTEGER, offset INTEGER, size INTEGER)")
    tars: dict[str, int] = {}
    for entry in list_items(photos, frozenset({".jpg"})):
        found = _MEMBER.fullmatch(entry.key)
        if entry.damaged:
            yield entry
        elif found and not entry.reason:
            if entry.file not in tars:
                row = database.execute("INSERT INTO tar VALUES (?)", (entry.file,))
                tars[entry.file] = cast(int, row.lastrowid)
            values = (found[3], tars[entry.file], entry.offset, entry.size)
            database.execute("INSERT INTO photo VALUES (?, ?, ?, ?)", values)
    database.execute("CREATE INDEX by_hash ON photo (hash)")
    database.commit()


def _find_member(database: sqlite3.Connection, name: str) -> Entry | None:
    found = database.execute(
        "SELECT path, offset, size FROM photo JOIN tar ON tar.rowid = photo.tar WHERE hash = ? "
        "ORDER BY photo.rowid LIMIT 1",
        (name,),
    ).fetchone()
    if found is None:
        return None
    path, offset, size = found
    return Entry(path, offset, size, "")
