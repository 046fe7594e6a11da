"""Pictures and their captions: text-to-image, image-to-text.

A row is one pair: 128 tokens of the caption and the 3,072 colour values of the picture at 32 x 32 pixels; the caption
comes first in text-to-image, the picture in image-to-text (Henighan et al. 2020, section 2). Captions are "padded or
trimmed" to 128 tokens. With V caption pieces, ids are

    [0, V)            pieces of the caption
    V                 padding
    [V + 1, V + 257)  colour values 0 to 255
    V + 257           the blank picture

The paper counts padding in its text loss; here padding is a kind of its own and not in the loss, so that a text loss is
one of text. It does not say what a blank caption or picture is: here they are all padding, and all blanks.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

from data_prep.domain import (
    Document,
    Domain,
    Item,
    Notes,
    Piece,
    Refusal,
    Shown,
    TokenRange,
    blanked,
)
from data_prep.domains import image
from data_prep.folders import PassedOver
from data_prep.watch import Watch

RAW = "webdataset tars or folders of key.jpg + key.txt/.json, or a .tsv with the columns image and caption"
PATIENCE = 120.0
# 2^18 pictures a shard: 8 GB with five captions each.
CHUNKS_PER_SHARD = 1024
DEDUPLICATE = True
CODEC = "tokenizer"

SIDE = 32
PIXELS = 3 * SIDE * SIDE
CAPTION_TOKENS = 128
TEXT, PADDING, PIXEL, BLANK = range(4)
_PIECES = 32_768


def _pair_domain(name: str, summary: str, pieces: int) -> Domain:
    return Domain(
        name=name,
        summary=summary,
        seq_length=CAPTION_TOKENS + PIXELS,
        vocab_size=pieces + 258,
        kinds=(
            TokenRange("text", 0, pieces),
            TokenRange("padding", pieces, pieces + 1, in_loss=False),
            TokenRange("pixel", pieces + 1, pieces + 257),
            TokenRange("blank", pieces + 257, pieces + 258, in_loss=False),
        ),
        packed=False,
    )


DOMAINS = (
    _pair_domain("text-to-image", "a caption, then its picture at 32 x 32 pixels", _PIECES),
    _pair_domain("image-to-text", "a picture at 32 x 32 pixels, then its caption", _PIECES),
)


def with_vocabulary(domain: Domain, pieces: int) -> Domain:
    """The same rows with a caption vocabulary of `pieces`."""
    name = f"{domain.name}-v{pieces}"
    return replace(_pair_domain(name, domain.summary, pieces), grid=domain.grid)


def check_codec(domain: Domain, codec: Path) -> None:
    """ValueError unless the tokenizer has as many pieces as the domain."""
    from data_prep.tokenizers import open_tokenizer

    pieces, base = open_tokenizer(codec).pieces, domain.name.partition("-v")[0]
    if pieces != domain.kinds[TEXT].stop:
        raise ValueError(
            f"{codec}: has {pieces} pieces; wanted {domain.kinds[TEXT].stop} for domain {domain.name}. Build domain "
            f"{base}-v{pieces} with it, or give another --tokenizer."
        )


def plan(
    domain: Domain, raw: str, rows: int | None, listing: Path, passed_over: PassedOver | None = None
) -> Iterator[Piece]:
    """The pairs below `raw`, cut into pieces; see `data_prep/pairs.py`."""
    from data_prep.pairs import plan_pairs

    if rows is not None:
        raise ValueError(
            f"--rows {rows}: pairs are all taken; wanted no --rows for {domain.name}. Leave it out."
        )
    return plan_pairs(Path(raw), listing, passed_over)


def read(
    domain: Domain, piece: Piece, seed: int, codec: Path | None, watch: Watch | None = None
) -> Iterator[Item | Refusal]:
    """Every caption of every picture of one piece as a document of its own; `seed` is not needed.

    The split goes by the picture's bytes, so that all its captions are in one split.
    """
    from data_prep.pairs import read_pairs
    from data_prep.pictures import decode
    from data_prep.tokenizers import open_tokenizer

    assert codec is not None, "a build checks that its tokenizer is there"
    watch = watch or Watch()
    tokenizer = open_tokenizer(codec)
    for found in read_pairs(piece):
        if isinstance(found, Refusal):
            yield found
            continue
        try:
            watch.begin(found.key)
            colours = decode(found.picture, SIDE).reshape(-1)
        except ValueError as error:
            yield from found.refused(str(error))
            continue
        pixels = colours.astype(domain.dtype) + domain.dtype.type(domain.kinds[PIXEL].start)
        group = hashlib.blake2b(found.picture, digest_size=16).digest()
        for number, caption in enumerate(found.captions):
            content = hashlib.blake2b(group + caption.encode(), digest_size=16).digest()
            parts = _parts(domain, tokenizer.encode([caption])[0], pixels)
            document = Document(found.pair_key(number), parts)
            yield Item(document, content, group, found.continues(number))


def _parts(
    domain: Domain, caption: np.ndarray, pixels: np.ndarray
) -> tuple[tuple[int, np.ndarray], ...]:
    """Caption, padding where there is room for it, picture; or the picture first."""
    caption = caption[:CAPTION_TOKENS].astype(domain.dtype)
    room = CAPTION_TOKENS - caption.size
    padding = np.full(room, domain.kinds[PADDING].start, domain.dtype)
    words = ((TEXT, caption), (PADDING, padding)) if room else ((TEXT, caption),)
    return (*words, (PIXEL, pixels)) if _text_first(domain) else ((PIXEL, pixels), *words)


def render(domain: Domain, tokens: np.ndarray, kinds: np.ndarray, codec: Path | None) -> Shown:
    """One row back as its caption and its picture, uint8 [32, 32, 3]; no picture where it is blank."""
    from data_prep.tokenizers import open_tokenizer

    assert codec is not None, "a dataset keeps its tokenizer"
    colours = tokens[kinds == PIXEL].astype(np.int64) - domain.kinds[PIXEL].start
    picture = colours.reshape(SIDE, SIDE, 3).astype(np.uint8) if colours.size else None
    return Shown(open_tokenizer(codec).decode(tokens[kinds == TEXT]), picture)


def notes(domain: Domain, raw: str, codec: Path | None) -> Notes:
    """As for pictures alone, and SentencePiece's version decides the caption's tokens."""
    versions = image.notes(domain, raw, codec).versions
    return Notes(versions | {"sentencepiece": version("sentencepiece")})


def blank(
    domain: Domain, tokens: np.ndarray, kinds: np.ndarray, part: Literal["text", "image"]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows, tokens and kinds [B, S] each, with the caption ("text") or the picture ("image") blanked; copies.

    What remains is untouched. This is how Henighan et al. 2020 (section 4) measure what a caption tells of its picture:
    the picture's loss behind a blank caption minus that behind its own, summed over tokens; and the other way round.
    They first train for 10^4 steps on rows of which half are blanked: without it the difference is about twice too
    large.
    """
    if part not in ("text", "image"):
        raise ValueError(
            f"part = {part!r}: wanted 'text' or 'image', what to blank. Pass one of these."
        )
    kind = PADDING if part == "text" else BLANK
    # The part that comes first is told by the domain alone.
    split = CAPTION_TOKENS if _text_first(domain) else PIXELS
    where = slice(split) if (part == "text") == _text_first(domain) else slice(split, None)
    return blanked(domain, tokens, kinds, where, kind)


def _text_first(domain: Domain) -> bool:
    return domain.name.startswith("text-to-image")
