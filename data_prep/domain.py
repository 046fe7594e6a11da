"""What a kind of data is: its row, its vocabulary, its kinds of token.

`Domain` and its parts are plain frozen values. `domain("image-8x8")` finds one by name; the names come from the
modules in `data_prep/domains/`, so that a new family of domains is one new file there.
"""

import difflib
import functools
import importlib
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np

import data_prep.domains


@dataclass(frozen=True)
class TokenRange:
    """One kind of token; its position in `Domain.kinds` is the mode byte in the .idx file.

    Ids of this kind lie in [start, stop). `in_loss` says whether they count in the training loss.
    """

    kind: str
    start: int
    stop: int
    in_loss: bool = True


def blanked(
    here: "Domain", tokens: np.ndarray, kinds: np.ndarray, where: slice, kind: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows, tokens and kinds [B, S] each, with the places `where` of every row blank, of `kind`; copies."""
    if tokens.ndim != 2 or tokens.shape != kinds.shape or tokens.shape[1] != here.seq_length:
        raise ValueError(
            f"tokens {tokens.shape}, kinds {kinds.shape}: wanted [B, {here.seq_length}] each for domain "
            f"{here.name}. Pass rows as a dataset of this domain gives them."
        )
    tokens, kinds = tokens.copy(), kinds.copy()
    tokens[:, where], kinds[:, where] = here.kinds[kind].start, kind
    return tokens, kinds


@dataclass(frozen=True)
class Document:
    """One picture, problem, ...: its name in the raw data and its parts, each (mode, token ids [length])."""

    key: str
    parts: tuple[tuple[int, np.ndarray], ...]


@dataclass(frozen=True)
class Domain:
    """A kind of data that models are trained on.

    `seq_length` tokens make one row. `vocab_size` counts the data's token ids, without the start token. `packed` means
    that documents are concatenated and cut into rows; otherwise one document is one row. `grid` says how the positions
    of a row fold up in figures, slowest first: (("row", 8), ("column", 8), ("colour", 3)); () means plain positions.
    `labelled` names the domain whose rows these are, with a class behind each ("image-8x8"); "" for all others.
    """

    name: str
    summary: str
    seq_length: int
    vocab_size: int
    kinds: tuple[TokenRange, ...]
    packed: bool
    grid: tuple[tuple[str, int], ...] = ()
    labelled: str = ""

    @property
    def only_read(self) -> frozenset[str]:
        """The kinds of token that models read and never predict: those of a row that a class stands behind."""
        return (
            frozenset(k.kind for k in domain(self.labelled).kinds) if self.labelled else frozenset()
        )

    @property
    def dtype(self) -> np.dtype:
        """How shards of this domain store a token: the smallest of Megatron's types that holds every id."""
        if self.vocab_size <= 1 << 8:
            return np.dtype("<u1")
        return np.dtype("<u2") if self.vocab_size <= 1 << 16 else np.dtype("<i4")


@dataclass(frozen=True)
class Refusal:
    """A raw item that could not be used, and why; ends up in refused.jsonl.

    `damaged` means a file of many items of which an unknown number is lost: a cut-off tar, a text out of step.
    `partial` means only a part of a raw item that counts already, as usable or as refused: one of several captions.
    """

    key: str
    reason: str
    damaged: bool = False
    partial: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of raw input that one worker does alone: [start, stop) of `source`, in bytes or rows of it.

    `damage` is what the plan has already found in it: damaged files, and files of many items that are refused.
    """

    source: str
    start: int
    stop: int
    damage: tuple[Refusal, ...] = ()


@dataclass(frozen=True)
class Item:
    """A raw item that became a document. Equal items have equal `content`; it and `group` are hashes of 16 bytes.

    The split is decided by `group` where it is given (all captions of one picture go together), else by `content`.
    `continues`: of the same raw item as the document before, such as the next clip of a video.
    """

    document: Document
    content: bytes
    group: bytes = b""
    continues: bool = False


@dataclass(frozen=True)
class Block:
    """Many documents of the same parts, all of one length: `tokens` [n, length], of one kind (`mode`) but for the parts
    `behind`, (mode, length) each.

    The fast way for pictures, where an object for each would cost more than its pixels.
    """

    mode: int
    tokens: np.ndarray
    keys: tuple[str, ...]
    contents: tuple[bytes, ...]
    behind: tuple[tuple[int, int], ...] = ()

    @property
    def parts(self) -> tuple[tuple[int, int], ...]:
        """(mode, length) of the parts of each document."""
        first = self.tokens.shape[1] - sum(length for _, length in self.behind)
        return ((self.mode, first), *self.behind)


@dataclass(frozen=True)
class Shown:
    """A row as a person sees it: text, a picture uint8 [H, W, 3], or both."""

    text: str = ""
    picture: np.ndarray | None = None


@dataclass(frozen=True)
class Notes:
    """What the manifest records of how tokens were made; `reason` says why a build is not repeatable, if so.

    `known`: what is known exactly of the source, by name, in nats (`data_prep/domains/known_entropy.py`).
    """

    versions: dict[str, str]
    reproducible: bool = True
    reason: str = ""
    known: Mapping[str, float | tuple[float, ...]] = field(default_factory=dict)


@functools.cache
def _families() -> dict[str, ModuleType]:
    """Domain name -> the module of `data_prep.domains` that declares it, in the order of `list`."""
    names = sorted(module.name for module in pkgutil.iter_modules(data_prep.domains.__path__))
    modules = [importlib.import_module(f"data_prep.domains.{name}") for name in names]
    return {each.name: module for module in modules for each in module.DOMAINS}


def domain_names() -> tuple[str, ...]:
    """The names that `domain` knows."""
    return tuple(_families())


def _base_name(name: str) -> tuple[str, int | None]:
    """("text", 8192) of "text-v8192": a domain with a vocabulary of its own; (name, None) of others."""
    found = re.fullmatch(r"(.+)-v([1-9][0-9]{2,7})", name)
    if found and hasattr(_families().get(found[1]), "with_vocabulary"):
        return found[1], int(found[2])
    return name, None


def family(name: str) -> ModuleType:
    """The module that reads and shows domain `name`; ValueError with the nearest valid names if there is none."""
    families = _families()
    base, _ = _base_name(name)
    if base not in families:
        near = difflib.get_close_matches(base, families, n=3, cutoff=0.4) or list(families)
        raise ValueError(
            f"domain {name!r} is not known; wanted one of {', '.join(families)}. "
            f"Did you mean {' or '.join(near)}? See: python -m data_prep list"
        )
    return families[base]


@functools.lru_cache(maxsize=64)
def domain(name: str) -> Domain:
    """The domain called `name`; ValueError with the nearest valid names if there is none.

    `text-v8192` is `text` with a vocabulary of 8,192 pieces, and so for every domain that takes a tokenizer.
    """
    module = family(name)
    base, pieces = _base_name(name)
    found = next(each for each in module.DOMAINS if each.name == base)
    return found if pieces is None else module.with_vocabulary(found, pieces)


def check_codec(here: Domain, codec: Path | None) -> None:
    """ValueError unless `codec` is the tokenizer or codebook that domain `here` takes, or None where it takes none."""
    wanted = family(here.name).CODEC
    if wanted and codec is None:
        raise ValueError(
            f"domain {here.name}: no --{wanted} is given; wanted the file that turns raw data into tokens. "
            f"Make one with: python -m data_prep train-{wanted} --raw PATH --out FILE, then add --{wanted} FILE"
        )
    if codec and not wanted:
        raise ValueError(
            f"--tokenizer or --codebook {codec}: domain {here.name} needs none; wanted none. Leave it out."
        )
    if codec:
        if not codec.is_file():
            raise ValueError(
                f"--{wanted} {codec}: no such file; wanted what `train-{wanted}` wrote. Check the path."
            )
        family(here.name).check_codec(here, codec)
