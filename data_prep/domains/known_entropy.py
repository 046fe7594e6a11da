"""Rows drawn from sources whose entropies are known exactly: ground truth for whatever is fitted to losses.

`known-entropy`: a row is 32 symbols of a stationary Markov chain of order 8 over 4 symbols (`MarkovSource`), each row
independent of the others. Knowing contexts of j symbols and no longer ones leaves a reducible loss that falls by about
the same factor for each j, so models of growing size approach the entropy rate along a power law.

`known-entropy-pairs`: a row is a pair, 16 left symbols and then 8 right ones that tell of them (`PairSource`), with
kinds as in captions and pictures: each half has ids of its own and a blank that is not in the loss. Ids are [0, 4)
left, 4 the left blank, [5, 9) right, 9 the right blank.

The exact numbers are in the manifest (`known`), in nats:

    entropy_rate         of one symbol, once the context is full
    loss                 the least possible mean loss of a whole row, its start included
    position_loss        the least possible loss at each position, up to the first with a full context
    mutual_information   of the two halves of a pair
    left_loss, right_loss, right_loss_alone    for each token: the left half, the right one after it, the right one
                         behind a blank
"""

import functools
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

from data_prep.domain import Block, Document, Domain, Item, Notes, Piece, Shown, TokenRange, blanked
from data_prep.folders import PassedOver
from data_prep.known_sources import MarkovSource, PairSource, markov_source, pair_source
from data_prep.watch import Watch

RAW = "generator, with --rows N"
PATIENCE = 120.0
CHUNKS_PER_SHARD = 256
CODEC = ""
# Rows are independent draws: to drop equal ones would change the source.
DEDUPLICATE = False
GENERATOR = "generator"
SYMBOLS = 4
LENGTH = 32
# Left symbols that decide each right one: tables of 4, 16 and 64 entries, from easy to hard.
BLOCKS = (1, 1, 2, 2, 2, 2, 3, 3)
LEFT, LEFT_BLANK, RIGHT, RIGHT_BLANK = range(4)
# Rows in one piece of work: a tenth of a second.
_PIECE_ROWS = 4096
# The plan of a build is a line for each piece.
_MOST_ROWS = 1 << 32

DOMAINS = (
    Domain(
        name="known-entropy",
        summary="a Markov chain of order 8 over 4 symbols, its entropy known exactly",
        seq_length=LENGTH,
        vocab_size=SYMBOLS,
        kinds=(TokenRange("symbol", 0, SYMBOLS),),
        packed=False,
    ),
    Domain(
        name="known-entropy-pairs",
        summary="16 symbols and 8 that tell of them, their mutual information known exactly",
        seq_length=sum(BLOCKS) + len(BLOCKS),
        vocab_size=2 * SYMBOLS + 2,
        kinds=(
            TokenRange("left", 0, SYMBOLS),
            TokenRange("left-blank", SYMBOLS, SYMBOLS + 1, in_loss=False),
            TokenRange("right", SYMBOLS + 1, 2 * SYMBOLS + 1),
            TokenRange("right-blank", 2 * SYMBOLS + 1, 2 * SYMBOLS + 2, in_loss=False),
        ),
        packed=False,
    ),
)


@functools.cache
def chain() -> MarkovSource:
    """The source of `known-entropy`."""
    return markov_source(SYMBOLS, order=8, strength=1.0, decay=0.75, seed=0)


@functools.cache
def pairs() -> PairSource:
    """The source of `known-entropy-pairs`; the noise makes a pair share 7.6 nats, as captions share with pictures."""
    return pair_source(SYMBOLS, BLOCKS, noise=0.1, seed=0)


def known(domain: Domain) -> dict[str, float | tuple[float, ...]]:
    """The exact numbers of a domain: what the manifest says of it."""
    if domain.name == "known-entropy":
        source = chain()
        losses = source.position_entropies(domain.seq_length)
        early = tuple(losses[: source.order + 1].tolist())
        rate = source.entropy_rate
        return {"entropy_rate": rate, "loss": float(losses.mean()), "position_loss": early}
    alone, noise = float(np.log(SYMBOLS)), pairs().noise_entropy
    total = sum(BLOCKS) * alone + len(BLOCKS) * noise
    return {
        "loss": total / domain.seq_length,
        "mutual_information": pairs().mutual_information,
        "left_loss": alone,
        "right_loss": noise,
        "right_loss_alone": alone,
    }


def plan(
    domain: Domain, raw: str, rows: int | None, listing: Path, passed_over: PassedOver | None = None
) -> Iterator[Piece]:
    """Pieces of rows to draw; `listing` is not needed."""
    if raw != GENERATOR:
        raise ValueError(
            f"--raw {raw}: {domain.name} is drawn from a source, not read; wanted --raw {GENERATOR}. "
            f"For instance: --raw {GENERATOR} --rows 100000"
        )
    if rows is None or not 1 <= rows <= _MOST_ROWS:
        raise ValueError(
            f"--raw {raw}: --rows is {rows}; wanted how many rows of {domain.seq_length} tokens to draw, 1 to "
            f"{_MOST_ROWS}. Add for instance --rows 100000."
        )
    starts = range(0, rows, _PIECE_ROWS)
    return (Piece(raw, start, min(start + _PIECE_ROWS, rows)) for start in starts)


def read(
    domain: Domain, piece: Piece, seed: int, codec: Path | None, watch: Watch | None = None
) -> Iterator[Item | Block]:
    """The rows of one piece, drawn from `seed`."""
    draw, count = np.random.default_rng(seed), piece.stop - piece.start
    # A hash of the rows would put equal ones into one split; drawn numbers keep splits independent.
    contents = tuple(draw.bytes(16) for _ in range(count))
    keys = tuple(f"row {piece.start + number}" for number in range(count))
    if domain.name == "known-entropy":
        tokens = chain().sample(count, domain.seq_length, draw).astype(domain.dtype)
        yield Block(0, tokens, keys, contents)
        return
    left, right = (each.astype(domain.dtype) for each in pairs().sample(count, draw))
    right += domain.dtype.type(domain.kinds[RIGHT].start)
    for number, (key, content) in enumerate(zip(keys, contents, strict=True)):
        yield Item(Document(key, ((LEFT, left[number]), (RIGHT, right[number]))), content)


def render(domain: Domain, tokens: np.ndarray, kinds: np.ndarray, codec: Path | None) -> Shown:
    """One row as letters; of a pair both halves, blanks as dots."""
    letters = np.array(list("abcd" if domain.name == "known-entropy" else "abcd.ABCD."))
    text = "".join(letters[tokens])
    split = len(tokens) if domain.name == "known-entropy" else sum(BLOCKS)
    return Shown(" ".join(part for part in (text[:split], text[split:]) if part))


def notes(domain: Domain, raw: str, codec: Path | None) -> Notes:
    """numpy draws the rows; the same seed gives the same ones."""
    return Notes({"numpy": version("numpy")}, known=known(domain))


def blank(
    domain: Domain, tokens: np.ndarray, kinds: np.ndarray, part: Literal["left", "right"]
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs, tokens and kinds [B, S] each, with one half blanked; copies.

    The right half's loss behind a blank left one, less that behind its own, is the mutual information, once a model
    knows the source (Henighan et al. 2020, section 4; see `image_text.blank`).
    """
    if part not in ("left", "right"):
        raise ValueError(
            f"part = {part!r}: wanted 'left' or 'right', what to blank. Pass one of these."
        )
    kind = LEFT_BLANK if part == "left" else RIGHT_BLANK
    where = slice(sum(BLOCKS)) if part == "left" else slice(sum(BLOCKS), None)
    return blanked(domain, tokens, kinds, where, kind)
