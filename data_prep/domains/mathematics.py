"""School mathematics: questions and their answers, one byte a token.

The problems are those of `mathematics_dataset` (Saxton et al. 2019), generated here or read from the published text
files. A document is one problem in two parts: the question with a newline (kind 0, outside the loss) and the answer
with a newline (kind 1). Problems are concatenated to rows of 512 (Henighan et al. 2020, section 2). The paper does not
say what separates them; here the newline after the answer belongs to the answer, so that a model learns to stop.
"""

import gzip
import hashlib
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import IO

import numpy as np

from data_prep.domain import Document, Domain, Item, Notes, Piece, Refusal, TokenRange

RAW = (
    "generator[:regime,...] with --rows N, or the published .txt files (a file or a folder of them)"
)
# Twice the generator's own limit on a problem, and the time that sympy takes to import on a slow disk.
PATIENCE = 240.0
CHUNKS_PER_SHARD = 256
GENERATOR = "generator"
QUESTION, ANSWER = 0, 1
# Rows in one generated piece: about 6 s of work at 300 problems a second and core; fewer when few are wanted.
_PIECE_ROWS = 256
# Problems in one piece of a text file.
_PIECE_PROBLEMS = 4096
# A line longer than this is no problem; it is skipped without being held in memory.
_LONGEST_LINE = 1 << 16
# So many failures in a row within one piece are no bad luck.
_MOST_FAILURES = 20

DOMAINS = (
    Domain(
        name="mathematics",
        summary="questions and answers of the mathematics dataset, one byte a token",
        seq_length=512,
        vocab_size=256,
        kinds=(TokenRange("question", 0, 256, in_loss=False), TokenRange("answer", 0, 256)),
        packed=True,
    ),
)


def plan(domain: Domain, raw: str, rows: int | None, listing: Path) -> list[Piece]:
    """Pieces of rows to generate, or of the text files' bytes; `listing` is not needed."""
    if raw.partition(":")[0] == GENERATOR:
        return _plan_generator(raw, rows)
    if rows is not None:
        raise ValueError(
            f"--rows {rows}: text files are read whole; wanted --rows only with --raw generator. Omit it."
        )
    pieces = [piece for path in _text_files(Path(raw)) for piece in _plan_text(path)]
    if not pieces:
        raise ValueError(
            f"{raw}: holds no problems; wanted text files of alternating question and answer lines. "
            f"Give --raw one such .txt or .txt.gz, or a folder of them."
        )
    return pieces


def read(domain: Domain, piece: Piece, seed: int) -> Iterator[Item | Refusal]:
    """The problems of one piece. A generated piece ends with the problem that fills its last row."""
    if piece.source.partition(":")[0] == GENERATOR:
        return _generate(piece, seed, domain.seq_length)
    return _read_text(piece)


def render(domain: Domain, tokens: np.ndarray, kinds: np.ndarray) -> str:
    """One row back as text, the answers between guillemets."""
    pieces, before = [], QUESTION
    for token, kind in zip(tokens.tolist(), kinds.tolist(), strict=True):
        character = chr(token)
        if kind == ANSWER and before != ANSWER:
            pieces.append("«")
        if before == ANSWER and kind != ANSWER:
            pieces.append("»\n")
        if character != "\n":
            pieces.append(character)
        elif kind == QUESTION:
            pieces.append(" ")
        before = kind
    return "".join(pieces) + ("»" if before == ANSWER else "")


def notes(domain: Domain, raw: str) -> Notes:
    """Which libraries made the problems; generated ones cannot be made again from the seed."""
    if raw.partition(":")[0] != GENERATOR:
        return Notes({"numpy": version("numpy")})
    versions = {name: version(name) for name in ("mathematics_dataset", "sympy", "numpy")}
    reason = "the generator does not repeat its problems from a seed; the shards' sha256 identify this dataset"
    return Notes(versions, reproducible=False, reason=reason)


# --- generated problems


def _regimes(raw: str) -> tuple[str, ...]:
    from data_prep.mathematics_generator import REGIMES, TRAIN_REGIMES

    named = raw.partition(":")[2]
    regimes = tuple(named.split(",")) if ":" in raw else TRAIN_REGIMES
    unknown = [regime for regime in regimes if regime not in REGIMES]
    if unknown:
        raise ValueError(
            f"--raw {raw}: regime {unknown[0]!r} is not known; wanted some of {', '.join(REGIMES)}. "
            f"For instance: --raw generator:train-easy,interpolate"
        )
    return regimes


def _plan_generator(raw: str, rows: int | None) -> list[Piece]:
    if rows is None or rows < 1:
        raise ValueError(
            f"--raw {raw}: --rows is {rows}; wanted how many rows of 512 tokens to generate. "
            f"Add for instance --rows 4000 (2 million tokens)."
        )
    source = f"{GENERATOR}:{','.join(_regimes(raw))}"
    size = min(_PIECE_ROWS, max(1, rows // 16))
    return [Piece(source, start, min(start + size, rows)) for start in range(0, rows, size)]


def _generate(piece: Piece, seed: int, seq_length: int) -> Iterator[Item | Refusal]:
    import random

    from data_prep.mathematics_generator import (
        ProblemTimeout,
        choose_modules,
        sample,
        seed_everything,
    )

    choices = choose_modules(_regimes(piece.source))
    seed_everything(seed)
    draw = random.Random(seed)
    wanted, failures = (piece.stop - piece.start) * seq_length, 0
    while wanted > 0:
        name, make = draw.choice(choices)
        try:
            question, answer = sample(make)
        except (Exception, ProblemTimeout) as error:  # sympy raises anything; one draw is lost
            failures += 1
            if failures == _MOST_FAILURES:
                raise RuntimeError(
                    f"{failures} problems in a row failed, the last of {name}: {error}"
                ) from None
            yield Refusal(name, f"the generator failed: {type(error).__name__}: {error}")
            continue
        failures = 0
        item = _item(name, question.encode(), answer.encode())
        wanted -= sum(part.size for _, part in item.document.parts)
        yield item


def _item(key: str, question: bytes, answer: bytes) -> Item:
    parts = tuple(
        (mode, np.frombuffer(text + b"\n", np.uint8))
        for mode, text in ((QUESTION, question), (ANSWER, answer))
    )
    return Item(
        Document(key, parts), hashlib.blake2b(question + b"\n" + answer, digest_size=16).digest()
    )


# --- published text files


def _text_files(raw: Path) -> list[Path]:
    if raw.is_dir():
        return sorted(
            path
            for path in raw.rglob("*")
            if path.name.endswith((".txt", ".txt.gz")) and path.is_file()
        )
    if not raw.is_file():
        raise ValueError(
            f"{raw}: does not exist; wanted a text file, a folder of them, or `generator`. "
            f"Generate problems with: --raw generator --rows 4000"
        )
    return [raw]


def _plan_text(path: Path) -> list[Piece]:
    """Cut a file after every `_PIECE_PROBLEMS` pairs of lines; a compressed one cannot be entered in the middle."""
    size = path.stat().st_size
    if path.name.endswith(".gz"):
        return [Piece(str(path), 0, size)] if size else []
    cuts, lines, offset = [0], 0, 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
            # The newline that completes a multiple of 2 * _PIECE_PROBLEMS lines ends a piece.
            for place in ends[-(lines + 1) % (2 * _PIECE_PROBLEMS) :: 2 * _PIECE_PROBLEMS]:
                cuts.append(offset + int(place) + 1)
            lines += len(ends)
            offset += len(block)
    if cuts[-1] != size:
        cuts.append(size)
    return [Piece(str(path), start, stop) for start, stop in zip(cuts, cuts[1:], strict=False)]


def _read_text(piece: Piece) -> Iterator[Item | Refusal]:
    compressed = piece.source.endswith(".gz")
    name = "/".join(Path(piece.source).parts[-2:])
    opener: Callable[[str], IO[bytes]] = gzip.open if compressed else _open_plain  # type: ignore[assignment]
    with opener(piece.source) as stream:
        stream.seek(0 if compressed else piece.start)
        try:
            while compressed or stream.tell() < piece.stop:
                key = f"{name}, byte {stream.tell()}"
                question, answer = _line(stream), _line(stream)
                if question is None or (question == b"" and answer is None):
                    return
                reason = _fault(question, answer)
                yield Refusal(key, reason) if reason else _item(key, question, answer or b"")
        except (EOFError, gzip.BadGzipFile, OSError) as error:
            if not compressed:
                raise
            yield Refusal(
                name, f"the compressed file is damaged or cut off ({error}): copy it again"
            )


def _open_plain(path: str) -> IO[bytes]:
    return open(path, "rb")


def _line(stream: IO[bytes]) -> bytes | None:
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
        if not text:
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
