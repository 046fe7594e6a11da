"""Pictures with their captions: which pairs there are, and the bytes and texts of each.

    a .tar, or a folder of them       webdataset and img2dataset: key.jpg beside key.txt and/or key.json, one after
                                      another
    a folder                          the same, as files
    a .tsv                            a header with the columns `image` and `caption`, no quoting; `image` is a path
                                      below the TSV's folder, with or without its ending

A .txt is one caption. Of a .json, `captions` (a list) and `caption` count. What several of them say of one picture is
put together, equal captions once: they repeat each other by custom. Each caption with its picture is one pair. Files of
a pair differ in their last ending only; in a tar they must follow one another. A raw item is a picture with all its
captions: of a bad one beside good ones the ledger tells, but it is no refused item. Of a table each line is a pair and
a raw item, equal ones too, which then are duplicates.
"""

import itertools
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from data_prep.caption_table import CAPTION, IMAGE, plan_table, table_rows
from data_prep.documents import Text
from data_prep.domain import Piece, Refusal
from data_prep.folders import PassedOver
from data_prep.listing import Listed, cut_listing, read_lines, some
from data_prep.pictures import EXTENSIONS, MAX_BYTES
from data_prep.raw_files import Entry, close_all, from_line, list_items, listed, read_entry

_TEXTS = frozenset({".txt", ".json"})
# Pictures in one piece of work: with five captions each 8 MB of tokens at 32x32.
_PIECE = 256
# The longest of five million published captions has some thousand characters; more is no caption.
MAX_CAPTION = 1 << 16
_MAX_JSON = 1 << 20
# What one picture may have; COCO has up to 7.
MAX_CAPTIONS = 100


class _Pair(NamedTuple):
    """A picture's place, its captions, and the lines of a table that they stand in, if they do."""

    picture: Entry
    captions: tuple[str, ...]
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Captioned:
    """A picture file's bytes and what is said of it; `key` names it in the raw data.

    `lines` names the lines of a table that the captions stand in: each is a raw item of its own. Else the picture is
    one, with all its captions.
    """

    key: str
    picture: bytes
    captions: tuple[str, ...]
    lines: tuple[str, ...] = ()

    def refused(self, reason: str) -> list[Refusal]:
        """Why all of it cannot be used: for each raw item."""
        return _refused(self.key, self.lines, reason)

    def continues(self, number: int) -> bool:
        """Whether caption `number` is of the same raw item as the one before."""
        return number > 0 and not self.lines

    def pair_key(self, number: int) -> str:
        """The name of the picture with its caption `number`."""
        return f"{self.key}#{number}"


def plan_pairs(raw: Path, listing: Path, passed_over: PassedOver | None = None) -> Iterator[Piece]:
    """Cut the pairs below `raw` into pieces; of folders and tars every file is written to `listing`."""
    if raw.suffix.lower() == ".tsv":
        return plan_table(raw)
    entries = list_items(raw, EXTENSIONS | _TEXTS, passed_over, together=_without_ending)
    groups = (map(listed, group) for _, group in itertools.groupby(entries, _name))
    return some(
        cut_listing(map(_joined, groups), listing, _PIECE, math.inf),
        f"{raw}: holds no pictures with captions; wanted key.jpg beside key.txt or key.json, in a folder or .tar, "
        f"or a .tsv with the columns {IMAGE} and {CAPTION}. Give --raw the path of such data.",
    )


def _joined(files: Iterable[Listed]) -> Listed:
    """The files of one pair, which no piece may part."""
    several = list(files)
    damage = tuple(each for file in several for each in file.damage)
    return Listed(b"".join(file.lines for file in several), 0, damage)


def read_pairs(piece: Piece) -> Iterator[Captioned | Refusal]:
    """The pictures of one piece that have captions, and why others have not."""
    opened: dict[str, BinaryIO] = {}
    try:
        for found in _pairs(piece, opened):
            if isinstance(found, Refusal):
                yield found
            else:
                yield from _with_picture(found, opened)
    finally:
        close_all(opened)


def read_captions(raw: Path) -> Iterator[Text | Refusal]:
    """Every caption below `raw` that has a picture; the pictures themselves are not read."""
    with tempfile.TemporaryDirectory() as scratch:
        opened: dict[str, BinaryIO] = {}
        try:
            for piece in plan_pairs(raw, Path(scratch) / "listing"):
                for found in _pairs(piece, opened):
                    if isinstance(found, Refusal):
                        yield found
                    else:
                        yield from (Text(found.picture.key, each) for each in found.captions)
        finally:
            close_all(opened)


def _pairs(piece: Piece, opened: dict[str, BinaryIO]) -> Iterator[_Pair | Refusal]:
    if piece.source.lower().endswith(".tsv"):
        yield from _from_table(piece)
        return
    for _, entries in itertools.groupby(_listed(piece), _name):
        yield from _together(entries, opened)


def _name(entry: Entry) -> str:
    """What the files of one pair have in common: all but the last ending."""
    return _without_ending(entry.key)


def _without_ending(name: str) -> str:
    return os.path.splitext(name)[0]


def _listed(piece: Piece) -> Iterator[Entry]:
    return map(from_line, read_lines(piece).splitlines())


# --- files that belong together


def _together(entries: Iterable[Entry], opened: dict[str, BinaryIO]) -> Iterator[_Pair | Refusal]:
    """The picture among `entries`, files of one name, with the captions of the others."""
    picture, last = None, ""
    captions: dict[str, None] = {}  # in their order, each once
    refused: list[Refusal] = []
    for entry in entries:
        last = entry.key
        for found in _of_file(entry, opened):
            if isinstance(found, Refusal):
                refused.append(found)
            elif isinstance(found, Entry) and picture is not None:
                # Not a part of this pair: an item of its own.
                yield Refusal(entry.key, f"a second picture of this name beside {picture.key}")
            elif isinstance(found, Entry):
                picture = found
            elif found in captions or len(captions) < MAX_CAPTIONS:
                captions[found] = None
            else:
                reason = f"the picture has {MAX_CAPTIONS} captions before this one"
                refused.append(Refusal(entry.key, reason))
    whole = picture is not None and bool(captions)
    if not whole and not refused:
        # What was refused has said already why the pair is not whole.
        missing = "a picture without a caption" if picture else "no picture beside it"
        missing += ": files of a pair follow one another and differ in their last ending only"
        refused.append(Refusal(picture.key if picture else last, missing))
    yield from _counted_once(refused, whole)
    if picture is not None and captions:
        yield _Pair(picture, tuple(captions))


def _counted_once(refused: list[Refusal], counted: bool) -> Iterator[Refusal]:
    """What is wrong with one raw item: all of it partial but the first, if the item is not `counted` otherwise."""
    for each in refused:
        yield each if each.damaged else replace(each, partial=counted)
        counted = counted or not each.damaged


def _of_file(entry: Entry, opened: dict[str, BinaryIO]) -> Iterator[str | Entry | Refusal]:
    """The captions in a file, or the entry itself if it is a picture."""
    ending = os.path.splitext(entry.key)[1].lower()
    if entry.reason:
        yield Refusal(entry.key, entry.reason, entry.damaged)
    elif ending in _TEXTS:
        try:
            data = read_entry(entry, MAX_CAPTION if ending == ".txt" else _MAX_JSON, opened)
            stated = [data] if ending == ".txt" else _in_json(data)
        except ValueError as error:
            yield Refusal(entry.key, str(error))
            return
        for caption in stated:
            try:
                yield _caption(caption)
            except ValueError as error:
                yield Refusal(entry.key, str(error))
    else:
        yield entry


def _with_picture(pair: _Pair, opened: dict[str, BinaryIO]) -> Iterator[Captioned | Refusal]:
    key = pair.picture.key
    try:
        data = read_entry(pair.picture, MAX_BYTES, opened)
    except ValueError as error:
        yield from _refused(key, pair.lines, str(error))
    else:
        yield Captioned(key, data, pair.captions, pair.lines)


def _refused(key: str, lines: tuple[str, ...], reason: str) -> list[Refusal]:
    """Why a picture gives nothing; of a table's lines each is refused."""
    return [Refusal(each, reason) for each in ([f"{line}, {key}" for line in lines] or [key])]


def _in_json(data: bytes) -> list[Any]:
    """Whatever stands under `captions` and `caption`; ValueError if nothing can."""
    try:
        found = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(_not_utf8(error)) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"broken JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"JSON that holds a {type(found).__name__}; wanted an object")
    several, one = found.get("captions"), found.get("caption")
    if several is not None and not isinstance(several, list):
        raise ValueError(f"JSON whose `captions` is a {type(several).__name__}; wanted a list")
    return [*(several or []), *([] if one is None else [one])]


def _caption(found: Any, what: str = "a caption") -> str:
    """A caption without white space around it; ValueError says why `found` is none."""
    if not isinstance(found, str | bytes):
        raise ValueError(f"{what} of type {type(found).__name__}; wanted text")
    if len(found) > MAX_CAPTION:
        raise ValueError(f"{what} of {len(found)} characters; at most {MAX_CAPTION} are read")
    try:
        text = found.decode("utf-8-sig") if isinstance(found, bytes) else found
        text.encode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} that is {_not_utf8(error)}") from None
    except UnicodeEncodeError:
        raise ValueError(f"{what} with half a surrogate pair") from None
    if "\0" in text:
        raise ValueError(f"{what} with a NUL character")
    if not text.strip():
        raise ValueError(f"{what} that is empty")
    return text.strip()


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8: byte {error.object[error.start]:#04x} at {error.start}"


# --- lines of a table


def _from_table(piece: Piece) -> Iterator[_Pair | Refusal]:
    """Lines that follow each other and name one picture are read together, so that it is read once."""
    root = os.path.realpath(os.path.dirname(piece.source))
    for image, together in itertools.groupby(map(_row, table_rows(piece)), _image):
        lines, captions = (
            [],
            [],
        )  # equal ones too: each line is counted, as written or as a duplicate
        for row in together:
            if isinstance(row, Refusal):
                yield row
            else:
                lines.append(row[0])
                captions.append(row[2])
        if image is not None:
            yield _Pair(_find_picture(root, image), tuple(captions), tuple(lines))


def _row(row: tuple[str, bytes, bytes] | Refusal) -> tuple[str, str, str] | Refusal:
    """(key, image, caption) of a line as text."""
    if isinstance(row, Refusal):
        return row
    key, image, caption = row
    try:
        return key, _caption(image, "a path"), _caption(caption)
    except ValueError as error:
        return Refusal(key, str(error))


def _image(row: tuple[str, str, str] | Refusal) -> str | None:
    return None if isinstance(row, Refusal) else row[1]


def _find_picture(root: str, image: str) -> Entry:
    """The file that `image` names, with or without its ending; an entry with a reason if there is none."""
    parts = image.split("/")
    if image.startswith("/") or ".." in parts:
        return Entry(root, 0, 0, image, "a path that points outside the folder of the table")
    named = os.path.join(root, *parts)
    for path in (named, *(named + ending for ending in sorted(EXTENSIONS))):
        try:
            found = os.lstat(path)
        except OSError:  # not there, or a name that no file can have
            continue
        if stat.S_ISREG(found.st_mode) and os.path.realpath(path) == os.path.normpath(path):
            return Entry(path, 0, found.st_size, image)
        if not stat.S_ISDIR(found.st_mode):
            return Entry(path, 0, 0, image, "not a plain file (link, device, socket or pipe)")
    return Entry(named, 0, 0, image, "no such picture below the folder of the table")
