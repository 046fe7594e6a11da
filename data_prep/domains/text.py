"""Text: documents as the ids of a SentencePiece model, packed into rows.

Each document is followed by the model's end piece </s>. Domains are comparable only with the vocabulary that their
name says: `text` has 32,768 pieces, `text-v8192` has 8,192.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_prep.domain import (
    Block,
    Document,
    Domain,
    Item,
    Notes,
    Piece,
    Refusal,
    Shown,
    TokenRange,
)
from data_prep.folders import PassedOver
from data_prep.watch import Watch

if TYPE_CHECKING:
    from data_prep.documents import Text

RAW = "a .txt or .jsonl file, as it is or as .gz or .zst, or a folder of such files"
# A document of 16 MiB without a space takes SentencePiece some of this.
PATIENCE = 240.0
# 1 GiB of text a shard.
CHUNKS_PER_SHARD = 256
DEDUPLICATE = True
CODEC = "tokenizer"
# Characters that are tokenised at a time: a call of SentencePiece costs as much as a few words.
_TOGETHER = 1 << 15
_END = "\n=== end of the document\n"


def with_vocabulary(domain: Domain, pieces: int) -> Domain:
    """`domain` for a tokenizer of `pieces` pieces."""
    return replace(
        domain,
        name=f"{domain.name}-v{pieces}",
        vocab_size=pieces,
        kinds=(TokenRange("text", 0, pieces),),
    )


DOMAINS = (
    Domain(
        name="text",
        summary="documents of text in SentencePiece's pieces; text-v8192 for 8,192 pieces, and so on",
        seq_length=1024,
        vocab_size=32768,
        kinds=(TokenRange("text", 0, 32768),),
        packed=True,
    ),
)


def check_codec(domain: Domain, codec: Path) -> None:
    """ValueError if the tokenizer has not exactly as many pieces as the domain: losses would not compare."""
    from data_prep.tokenizers import open_tokenizer

    pieces = open_tokenizer(codec).pieces
    if pieces != domain.vocab_size:
        raise ValueError(
            f"--tokenizer {codec}: {pieces} pieces; wanted {domain.vocab_size} for {domain.name}, so that losses "
            f"compare. Build the domain text-v{pieces}, or train a tokenizer of {domain.vocab_size} pieces."
        )


def plan(
    domain: Domain, raw: str, rows: int | None, listing: Path, passed_over: PassedOver | None = None
) -> Iterator[Piece]:
    """Write the stretches of the files below `raw` to `listing` and cut it into pieces."""
    from data_prep.documents import plan_documents

    if rows is not None:
        raise ValueError(
            f"--rows {rows}: text is all taken; wanted no --rows for {domain.name}. Leave it out."
        )
    return plan_documents(Path(raw), listing, passed_over)


def read(
    domain: Domain, piece: Piece, seed: int, codec: Path | None, watch: Watch | None = None
) -> Iterator[Item | Block | Refusal]:
    """Tokenize the documents of one piece; `seed` is not needed. The split goes by the text, whatever the tokenizer."""
    from data_prep.documents import read_piece
    from data_prep.tokenizers import open_tokenizer

    assert codec is not None
    watch = watch or Watch()
    tokenizer = open_tokenizer(codec)
    for group in _groups(read_piece(piece, watch), 1 if watch.careful else _TOGETHER):
        ids = iter(tokenizer.encode([each.text for each in group if not isinstance(each, Refusal)]))
        for found in group:
            if isinstance(found, Refusal):
                yield found
                continue
            tokens = np.append(next(ids), tokenizer.end_of_text).astype(domain.dtype)
            content = hashlib.blake2b(found.text.encode(), digest_size=16).digest()
            yield Item(Document(found.key, ((0, tokens),)), content)


def _groups(found: Iterable["Text | Refusal"], characters: int) -> Iterator[list["Text | Refusal"]]:
    """What was found, in groups that end with the first to make so many characters."""
    group: list[Text | Refusal] = []
    so_far = 0
    for each in found:
        group.append(each)
        so_far += 1 if isinstance(each, Refusal) else len(each.text)
        if so_far >= characters:
            yield group
            group, so_far = [], 0
    yield group


def render(domain: Domain, tokens: np.ndarray, kinds: np.ndarray, codec: Path | None) -> Shown:
    """One row back as text; characters that the row cuts in half are U+FFFD."""
    from data_prep.tokenizers import open_tokenizer

    assert codec is not None
    tokenizer = open_tokenizer(codec)
    documents = np.split(tokens, np.flatnonzero(tokens == tokenizer.end_of_text) + 1)
    return Shown(_END.join(tokenizer.decode(document) for document in documents))


def notes(domain: Domain, raw: str, codec: Path | None) -> Notes:
    """The tokenizer decides the tokens; sentencepiece's version how it is applied."""
    assert codec is not None
    sha256 = hashlib.sha256(codec.read_bytes()).hexdigest()
    return Notes({"sentencepiece": version("sentencepiece"), "tokenizer": sha256})
