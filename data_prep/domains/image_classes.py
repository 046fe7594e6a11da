"""Pictures with their classes: image-8x8-classes, image-16x16-classes, image-32x32-classes.

A row is one picture as in image-8x8 and its kin, then the number of its class in two bytes, the low one first. The
class is what a model is asked for; the pixels are only read (Henighan et al. 2020, Figure 11: models of
pictures fine-tuned to classify). The loss stands at the low byte, and whether the answer was wrong at the high one:
`megatron_ext/classifier.py`.
"""

import itertools
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from data_prep.domain import Block, Domain, Notes, Piece, Refusal, Shown, TokenRange
from data_prep.domain import domain as domain_called
from data_prep.domains import image
from data_prep.folders import PassedOver
from data_prep.raw_files import Entry, close_all, list_items, read_entry
from data_prep.watch import Watch

if TYPE_CHECKING:
    from data_prep.classes import Seen
    from data_prep.listing import Listed

RAW = (
    "a folder or .tar of classes (class/x.jpg), a folder of .tar files, one for each class, or webdataset .tar files "
    "of key.jpg + key.cls"
)
PATIENCE = image.PATIENCE
CHUNKS_PER_SHARD = image.CHUNKS_PER_SHARD
CODEC = ""
# Of one picture in two classes the first stays.
DEDUPLICATE = True
PIXEL, CLASS, ERROR = range(3)
# As for pictures alone.
_PIECE, _PIECE_BYTES = 4096, 1 << 26
# The longest number, and white space that an editor may have left.
_MAX_CLS = 16


def _class_domain(pictures: Domain) -> Domain:
    return Domain(
        name=f"{pictures.name}-classes",
        summary=f"{pictures.summary}, then the picture's class",
        seq_length=pictures.seq_length + 2,
        vocab_size=256,
        kinds=(
            TokenRange("pixel", 0, 256, in_loss=False),
            TokenRange("class", 0, 256),
            TokenRange("error", 0, 256, in_loss=False),
        ),
        packed=False,
        labelled=pictures.name,
    )


DOMAINS = tuple(_class_domain(pictures) for pictures in image.DOMAINS)


def plan(
    domain: Domain, raw: str, rows: int | None, listing: Path, passed_over: PassedOver | None = None
) -> Iterator[Piece]:
    """Write every picture below `raw` and its label to `listing`, cut into pieces, and the classes beside it."""
    from data_prep.classes import Seen
    from data_prep.listing import cut_listing, some
    from data_prep.pictures import EXTENSIONS

    if rows is not None:
        raise ValueError(
            f"--rows {rows}: pictures are all taken; wanted no --rows for {domain.name}. Leave it out."
        )
    entries = list_items(Path(raw), EXTENSIONS | {".cls"}, passed_over, together=_without_ending)
    seen = Seen(raw)
    pieces = some(
        cut_listing(_listed(entries, seen), listing, _PIECE, _PIECE_BYTES),
        f"{raw}: holds no pictures; wanted files or tar members ending in {' '.join(sorted(EXTENSIONS))}. "
        f"Give --raw the folder or tar that holds them.",
    )
    return _then_classes(pieces, seen, listing.parent)


def _then_classes(pieces: Iterator[Piece], seen: "Seen", work: Path) -> Iterator[Piece]:
    """All pieces, and when every label is seen the file of classes in `work`."""
    yield from pieces
    seen.classes(work)


def _without_ending(name: str) -> str:
    return os.path.splitext(name)[0]


def _listed(entries: Iterable[Entry], seen: "Seen") -> Iterator["Listed"]:
    """A line for each picture, [label, its entry]; what is refused has its reason in it."""
    from data_prep.classes import folder_of
    from data_prep.listing import Listed

    opened: dict[str, BinaryIO] = {}
    try:
        for _, group in itertools.groupby(entries, lambda entry: _without_ending(entry.key)):
            files = list(group)
            stated = [each for each in files if each.key.lower().endswith(".cls")]
            pictures = [each for each in files if each not in stated]
            number, reason = _number(stated, bool(pictures), opened) if stated else (None, "")
            for entry in pictures or stated:
                entry = entry._replace(reason=entry.reason or reason)
                label = folder_of(entry.key) if number is None else number
                if not entry.reason:
                    seen.add(label)
                damage = (Refusal(entry.key, entry.reason, damaged=True),) if entry.damaged else ()
                yield Listed(json.dumps([label, *entry]).encode() + b"\n", entry.size, damage)
    finally:
        close_all(opened)


def _number(
    stated: list[Entry], pictured: bool, opened: dict[str, BinaryIO]
) -> tuple[int | None, str]:
    """The class in the .cls beside a picture, or why there is none."""
    from data_prep.classes import number_in

    if not pictured:
        return None, "a .cls without a picture beside it"
    if len(stated) > 1:
        return None, "two .cls of one name beside it"
    try:
        return number_in(read_entry(stated[0], _MAX_CLS, opened)), ""
    except ValueError as error:
        return None, f"its class cannot be read: {error}"


def read(
    domain: Domain, piece: Piece, seed: int, codec: Path | None, watch: Watch | None = None
) -> Iterator[Block | Refusal]:
    """Decode the pictures of one piece, each with its class behind it; `seed` is not needed.

    The split goes by the picture's bytes, so that it is in the same split as without its class.
    """
    from data_prep.classes import in_bytes

    numbers: dict[str, int] = {}
    entries = list(_numbered(piece, numbers))
    side = domain_called(domain.labelled).grid[0][1]
    for found in image.pixels_of(entries, side, watch or Watch()):
        if isinstance(found, Block):
            classes = in_bytes([numbers[key] for key in found.keys])
            tokens = np.concatenate([found.tokens, classes], axis=1)
            found = replace(found, tokens=tokens, behind=((CLASS, 1), (ERROR, 1)))
        yield found


def _numbered(piece: Piece, numbers: dict[str, int]) -> Iterator[Entry]:
    """The entries of a piece, and into `numbers` the class of each by its key."""
    from data_prep.classes import load_classes
    from data_prep.listing import read_lines

    classes = load_classes(Path(piece.source).parent)
    lines = read_lines(piece).rstrip().replace(b"\n", b",")
    for label, *fields in json.loads(b"[%b]" % lines):
        entry = Entry(*fields)
        if not entry.reason:
            try:
                number = classes.number(label)
            except ValueError as error:
                entry = entry._replace(reason=str(error))
            else:
                if numbers.setdefault(entry.key, number) != number:
                    entry = entry._replace(reason="a second picture of this name, of another class")
        yield entry


def render(domain: Domain, tokens: np.ndarray, kinds: np.ndarray, codec: Path | None) -> Shown:
    """One row back as its picture, uint8 [R, R, 3], and the number of its class."""
    from data_prep.classes import classes_of

    side = domain_called(domain.labelled).grid[0][1]
    picture = tokens[kinds == PIXEL].reshape(side, side, 3).astype(np.uint8)
    return Shown(f"class {classes_of(tokens[None])[0]}", picture)


def notes(domain: Domain, raw: str, codec: Path | None) -> Notes:
    """As for pictures alone."""
    return image.notes(domain, raw, codec)
