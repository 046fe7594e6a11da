"""School mathematics: questions and their answers, one byte a token.

The problems are those of `mathematics_dataset` (Saxton et al. 2019), generated here or read from the published text
files. A document is one problem in two parts: the question with a newline (kind 0, outside the loss) and the answer
with a newline (kind 1). Problems are concatenated to rows of 512 (Henighan et al. 2020, section 2). The paper does not
say what separates them; here the newline after the answer belongs to the answer, so that a model learns to stop.
"""

import hashlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np

from data_prep.domain import Document, Domain, Item, Notes, Piece, Refusal, Shown, TokenRange
from data_prep.folders import PassedOver
from data_prep.watch import Watch

RAW = (
    "generator[:regime,...] with --rows N, or the published .txt files (a file or a folder of them)"
)
# Twice the generator's own limit on a problem, and the time that sympy takes to import on a slow disk.
PATIENCE = 240.0
CHUNKS_PER_SHARD = 256
CODEC = ""
# Easy problems come again by themselves, as in the paper: to drop them would change what is learnt.
DEDUPLICATE = False
GENERATOR = "generator"
QUESTION, ANSWER = 0, 1
# Rows in one generated piece: about 6 s of work at 300 problems a second and core. Towards the end pieces become
# smaller, to 0.2 s, so that workers end together (guided self-scheduling: Polychronopoulos and Kuck 1987).
_PIECE_ROWS, _LEAST_ROWS = 256, 8
# The plan of a build is a line for each piece: so many rows make 4 million.
MOST_ROWS = 1 << 30
# Problems in one piece of a text file.
_PIECE_PROBLEMS = 4096
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


def plan(
    domain: Domain, raw: str, rows: int | None, listing: Path, passed_over: PassedOver | None = None
) -> Iterator[Piece]:
    """Pieces of rows to generate, or of the text files' bytes; `listing` is not needed."""
    from data_prep.listing import some
    from data_prep.mathematics_files import plan_files

    if raw.partition(":")[0] == GENERATOR:
        return _plan_generator(raw, rows)
    if rows is not None:
        raise ValueError(
            f"--rows {rows}: text files are read whole; wanted --rows only with --raw generator. Omit it."
        )
    return some(
        plan_files(Path(raw), _PIECE_PROBLEMS, passed_over),
        f"{raw}: holds no problems; wanted text files of alternating question and answer lines. "
        f"Give --raw one such .txt or .txt.gz, or a folder of them.",
    )


def read(
    domain: Domain, piece: Piece, seed: int, codec: Path | None, watch: Watch | None = None
) -> Iterator[Item | Refusal]:
    """The problems of one piece. A generated piece ends with the problem that fills its last row; another attempt at
    it has another seed, so that nothing is to blame."""
    if piece.source.partition(":")[0] == GENERATOR:
        # A problem that hangs or crashes its worker must not come again at the next attempt.
        attempt = watch.attempt if watch else 0
        return _generate(piece, seed + attempt, domain.seq_length)
    return _read_text(piece)


def render(domain: Domain, tokens: np.ndarray, kinds: np.ndarray, codec: Path | None) -> Shown:
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
    return Shown("".join(pieces) + ("»" if before == ANSWER else ""))


def notes(domain: Domain, raw: str, codec: Path | None) -> Notes:
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


def _plan_generator(raw: str, rows: int | None) -> Iterator[Piece]:
    if rows is None or not 1 <= rows <= MOST_ROWS:
        raise ValueError(
            f"--raw {raw}: --rows is {rows}; wanted how many rows of 512 tokens to generate, 1 to {MOST_ROWS} "
            f"({MOST_ROWS * 512:.1e} tokens). Add for instance --rows 4000 (2 million tokens)."
        )
    source = f"{GENERATOR}:{','.join(_regimes(raw))}"
    return _pieces(source, rows)


def _pieces(source: str, rows: int) -> Iterator[Piece]:
    """Each a sixteenth of what is left, within bounds; small builds are of small pieces too."""
    start, least = 0, min(_LEAST_ROWS, max(1, rows // 16))
    while start < rows:
        stop = min(rows, start + min(_PIECE_ROWS, max(least, (rows - start) // 16)))
        yield Piece(source, start, stop)
        start = stop


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


def _read_text(piece: Piece) -> Iterator[Item | Refusal]:
    from data_prep.mathematics_files import read_pairs

    for found in read_pairs(piece):
        yield found if isinstance(found, Refusal) else _item(*found)
