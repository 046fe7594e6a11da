"""What a kind of data is: its row, its vocabulary, its kinds of token.

`Domain` and its parts are plain frozen values. `domain("image-8x8")` finds one by name; the names come from the
modules in `data_prep/domains/`, so that a new family of domains is one new file there.
"""

import difflib
import functools
import importlib
import pkgutil
from dataclasses import dataclass
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
    """

    name: str
    summary: str
    seq_length: int
    vocab_size: int
    kinds: tuple[TokenRange, ...]
    packed: bool
    grid: tuple[tuple[str, int], ...] = ()

    @property
    def start_token(self) -> int:
        """The id that the trainer puts before every row, so that the first token is predicted too; never in shards."""
        return self.vocab_size

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
    """

    key: str
    reason: str
    damaged: bool = False


@dataclass(frozen=True)
class Piece:
    """A stretch of raw input that one worker does alone: [start, stop) of `source`, in bytes or rows of it.

    `damage` is what the plan has already found in it: damaged files only.
    """

    source: str
    start: int
    stop: int
    damage: tuple[Refusal, ...] = ()


@dataclass(frozen=True)
class Item:
    """A raw item that became a document. `content` is what the split is decided by: equal items, equal content."""

    document: Document
    content: bytes


@dataclass(frozen=True)
class Notes:
    """What the manifest records of how tokens were made; `reason` says why a build is not repeatable, if so."""

    versions: dict[str, str]
    reproducible: bool = True
    reason: str = ""


@functools.cache
def _families() -> dict[str, ModuleType]:
    """Domain name -> the module of `data_prep.domains` that declares it, in the order of `list`."""
    names = sorted(module.name for module in pkgutil.iter_modules(data_prep.domains.__path__))
    modules = [importlib.import_module(f"data_prep.domains.{name}") for name in names]
    return {each.name: module for module in modules for each in module.DOMAINS}


def domain_names() -> tuple[str, ...]:
    """The names that `domain` knows."""
    return tuple(_families())


def family(name: str) -> ModuleType:
    """The module that reads and shows domain `name`; ValueError with the nearest valid names if there is none."""
    families = _families()
    if name not in families:
        near = difflib.get_close_matches(name, families, n=3, cutoff=0.4) or list(families)
        raise ValueError(
            f"domain {name!r} is not known; wanted one of {', '.join(families)}. "
            f"Did you mean {' or '.join(near)}? See: python -m data_prep list"
        )
    return families[name]


def domain(name: str) -> Domain:
    """The domain called `name`; ValueError with the nearest valid names if there is none."""
    return next(each for each in family(name).DOMAINS if each.name == name)
