"""Text files of question and answer lines in turn: which there are, cut into pieces, the pairs of one piece.

Nothing in such a file says which line is a question, so one stray or lost line turns all later answers into questions.
A file where that can be seen is out of step, and nothing behind that place is used: from a pair with one empty line on,
or the whole file where the number of lines is odd. Empty lines at the end, and pairs of empty lines, shift nothing.
"""

import codecs
import gzip
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from data_prep.domain import Piece, Refusal
from data_prep.folders import PassedOver, walk

# A line longer than this is no problem; it is skipped without being held in memory.
_LONGEST_LINE = 1 << 16
_BLOCK = 1 << 20
_EMPTY_LINE = re.compile(rb"\n[ \t\r]*\n")
_Stream = IO[bytes] | gzip.GzipFile
_DAMAGED_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)


def plan_files(raw: Path, problems: int, passed_over: PassedOver | None = None) -> Iterator[Piece]:
    """The pieces of `raw` itself, or of every .txt and .txt.gz below it, sorted; other files are counted."""
    passed_over = PassedOver() if passed_over is None else passed_over
    if not raw.is_dir():
        if not raw.is_file():
            raise ValueError(
                f"{raw}: does not exist; wanted a text file, a folder of them, or `generator`. "
                f"Generate problems with: --raw generator --rows 4000"
            )
        yield from _plan_file(raw, problems)
        return
    for found in walk(str(raw), "", _wanted, passed_over):
        if found.reason:
            refused = Refusal(found.key, found.reason)
            yield Piece(found.path, 0, 0, (refused,))
        else:
            yield from _plan_file(Path(found.path), problems)


def _wanted(name: str) -> bool:
    return name.lower().endswith((".txt", ".txt.gz"))


def _plan_file(path: Path, problems: int) -> list[Piece]:
    """Cut a file after every `problems` pairs of lines; what is behind a place out of step is one damaged piece.

    A compressed file cannot be entered in the middle: it is one piece, and its damage is seen when it is read.
    """
    size = path.stat().st_size
    if path.name.lower().endswith(".gz"):
        empty = Refusal(_name(path), "an empty file is no .gz: copy it again", damaged=True)
        return [Piece(str(path), 0, size, () if size else (empty,))]
    cuts, suspicious = _survey(path, 2 * problems)
    good, reason = size, ""
    if suspicious:
        with path.open("rb") as stream:
            good, reason = _out_of_step(stream)
    cuts = [cut for cut in cuts if cut < good] + [good]
    pieces = [Piece(str(path), start, stop) for start, stop in zip(cuts, cuts[1:], strict=False)]
    if reason:
        pieces.append(Piece(str(path), good, size, (Refusal(_name(path), reason, damaged=True),)))
    return pieces


def _survey(path: Path, lines_each: int) -> tuple[list[int], bool]:
    """Where every `lines_each` lines begin, in bytes; and whether to look closer: an empty line, an odd number."""
    cuts, lines, offset, empty = [0], 0, 0, False
    before = b"\n"
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
            # The newline that completes a multiple of `lines_each` lines begins a piece behind it.
            for place in ends[-(lines + 1) % lines_each :: lines_each]:
                cuts.append(offset + int(place) + 1)
            lines += len(ends)
            offset += len(block)
            text = before + block
            empty = empty or _EMPTY_LINE.search(text) is not None
            # What the next block goes on with; of a monstrous line only the beginning.
            before = text[text.rfind(b"\n") :][: _LONGEST_LINE + 1]
    if before != b"\n":
        lines += 1
    return cuts, empty or lines % 2 == 1


def _out_of_step(stream: _Stream) -> tuple[int, str]:
    """Up to which byte the pairs of a whole file can be trusted, and why no further ("": all can)."""
    lines = 0
    while True:
        place = stream.tell()
        question, answer = _line(stream), _line(stream)
        if question is None or (answer is None and not question.strip()):
            return place, ""
        if answer is None:
            return 0, (
                f"the file has {lines + 1} lines, an odd number: one is lost or too many, and nobody knows where; "
                f"wanted a question and an answer line in turn"
            )
        lines += 2
        if bool(question.strip()) != bool(answer.strip()):
            empty = lines if question.strip() else lines - 1
            return place, (
                f"out of step from line {lines - 1} on: line {empty} is empty, so that questions and answers may "
                f"have changed places behind it"
            )


def read_pairs(piece: Piece) -> Iterator[tuple[str, bytes, bytes] | Refusal]:
    """(key, question, answer) of every pair of lines in a piece, or why it is none."""
    if piece.damage:
        yield from piece.damage
        return
    name = _name(Path(piece.source))
    # If it is known beforehand, none of the piece is used: the last answer that is left may be cut through.
    if not _is_shorter(piece):
        yield from _read(piece, name)
    if _is_shorter(piece):
        reason = "has become shorter since it was listed: copy it again"
        yield Refusal(name, reason, damaged=True)


def _is_shorter(piece: Piece) -> bool:
    return os.stat(piece.source).st_size < piece.stop


def _read(piece: Piece, name: str) -> Iterator[tuple[str, bytes, bytes] | Refusal]:
    if piece.source.lower().endswith(".gz"):
        yield from _read_compressed(piece.source, name)
        return
    with open(piece.source, "rb") as stream:
        stream.seek(piece.start)
        yield from _pairs(stream, name, piece.stop)


def _read_compressed(path: str, name: str) -> Iterator[tuple[str, bytes, bytes] | Refusal]:
    """Twice through the file: to see how far it can be trusted, and to read so far."""
    reason = ""
    try:
        with gzip.open(path) as stream:
            good, reason = _out_of_step(stream)
    except _DAMAGED_GZIP:
        good = -1  # as far as it goes
    try:
        with gzip.open(path) as stream:
            yield from _pairs(stream, name, good)
    except _DAMAGED_GZIP as error:
        reason = f"the compressed file is damaged or cut off ({error}): copy it again"
    if reason:
        yield Refusal(name, reason, damaged=True)


def _pairs(stream: _Stream, name: str, stop: int) -> Iterator[tuple[str, bytes, bytes] | Refusal]:
    """The pairs from here to byte `stop`; -1: to the end."""
    while stop < 0 or stream.tell() < stop:
        key = f"{name}, byte {stream.tell()}"
        begin = stream.tell()
        question, answer = _line(stream), _line(stream)
        if question is None or (answer is None and not question.strip()):
            return
        if begin == 0:  # some editors mark a file as UTF-8
            question = question.removeprefix(codecs.BOM_UTF8)
        reason = _fault(question, answer)
        yield Refusal(key, reason) if reason else (key, question, answer or b"")


def _name(path: Path) -> str:
    return "/".join(path.parts[-2:])


def _line(stream: _Stream) -> bytes | None:
    """The next line without its ending; None at the end of the file. Of a monstrous line only the beginning."""
    line = stream.readline(_LONGEST_LINE + 1)
    if not line:
        return None
    rest = line
    while len(rest) == _LONGEST_LINE + 1 and not rest.endswith(b"\n"):
        rest = stream.readline(_LONGEST_LINE + 1)
    return line.rstrip(b"\r\n")


def _fault(question: bytes, answer: bytes | None) -> str:
    """Why this pair of lines is no problem, or ""."""
    if answer is None:
        return "the last question has no answer line"
    for what, text in (("question", question), ("answer", answer)):
        if not text.strip():
            return f"empty {what}"
        if len(text) >= _LONGEST_LINE:
            return f"{what} longer than {_LONGEST_LINE} bytes"
        try:
            characters = text.decode()
        except UnicodeDecodeError as error:
            return f"{what} is not UTF-8: byte {text[error.start]:#04x} at {error.start}"
        if not characters.isprintable():
            odd = next(c for c in characters if not c.isprintable())
            return f"{what} holds the control character {odd!r}"
    return ""
