"""manifest.json: what a dataset folder holds. Written last, by rename: a folder without it is not finished.

pydantic models that refuse anything unknown or of the wrong type. `load_manifest` turns their complaints into one
readable error; `identity` is what a run records so that it can refuse to go on with other data.
"""

import hashlib
from pathlib import Path

import pydantic

from data_prep.domain import Domain, TokenRange
from data_prep.files import write_file
from data_prep.shards import ShardSummary

NAME = "manifest.json"
SPLITS = ("train", "valid", "test")
Setting = str | int | float | None


class _Record(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True)


class ShardRecord(_Record):
    """One .bin/.idx pair: `file` is their common name without ending; `rows` of seq_length tokens are served from it.

    `dropped_tokens` lie in the .bin after the last full row (packed domains only).
    """

    file: str
    sequences: int
    documents: int
    tokens: int
    rows: int
    dropped_tokens: int
    bin_bytes: int
    idx_bytes: int
    bin_sha256: str
    idx_sha256: str


def record_of(summary: ShardSummary, domain: Domain) -> ShardRecord:
    """What a written shard is in the manifest: its full rows are served, what is left over is not."""
    rows, dropped = divmod(summary.tokens, domain.seq_length)
    return ShardRecord(**vars(summary), rows=rows, dropped_tokens=dropped)


class KindRecord(_Record):
    """A `TokenRange` as it stands in the file."""

    kind: str
    start: int
    stop: int
    in_loss: bool


class BuildRecord(_Record):
    """One `build` command: which splits it made, from what, and what became of every raw item.

    `written`: documents. `usable`: raw items, such as videos, that gave one or more; `refused`: items that were not
    used. `duplicates`: documents whose content an earlier one had already. `damaged`: raw files of which an unknown
    part is missing (--accept-damaged). `passed_over`: ending -> files below the raw input that are not of this domain.
    `shared`: split of another build -> about how many documents it holds too.
    """

    splits: tuple[str, ...]
    settings: dict[str, Setting]
    seed: int
    command: str
    finished: str
    versions: dict[str, str]
    reproducible: bool
    reason: str
    written: int
    refused: int
    usable: int = 0
    duplicates: int = 0
    damaged: tuple[str, ...] = ()
    passed_over: dict[str, int] = {}
    shared: dict[str, int] = {}


class CodecRecord(_Record):
    """The tokenizer or codebook that made the tokens, and turns them back: a copy lies in the folder."""

    file: str
    sha256: str


class ClassRecord(_Record):
    """A class of labelled pictures; its number is its place. `pictures`: how many each split holds."""

    name: str
    pictures: dict[str, int]


class Manifest(_Record):
    """The whole file. `known`: what is known exactly of the source, where it is one of ours (`Notes`). `classes`: of
    labelled pictures, in the order of their numbers."""

    format: int
    domain: str
    vocab_size: int
    seq_length: int
    packed: bool
    kinds: tuple[KindRecord, ...]
    splits: dict[str, tuple[ShardRecord, ...]]
    builds: tuple[BuildRecord, ...]
    codec: CodecRecord | None = None
    known: dict[str, float | tuple[float, ...]] = {}
    classes: tuple[ClassRecord, ...] = ()

    def rows(self, split: str) -> int:
        """How many rows a split serves."""
        return sum(shard.rows for shard in self.splits[split])

    def identity(self, split: str) -> str:
        """A hex digest of everything that decides a row's tokens, from the shards' own hashes; no data is read."""
        parts = [self.domain, split, str(self.seq_length)]
        parts += [self.codec.sha256] if self.codec else []
        parts += [f"{shard.bin_sha256} {shard.idx_sha256}" for shard in self.splits[split]]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def new_manifest(domain: Domain) -> Manifest:
    """A manifest of `domain` without any split yet."""
    kinds = tuple(
        KindRecord(kind=k.kind, start=k.start, stop=k.stop, in_loss=k.in_loss) for k in domain.kinds
    )
    return Manifest(format=1, domain=domain.name, vocab_size=domain.vocab_size, seq_length=domain.seq_length,
                    packed=domain.packed, kinds=kinds, splits={}, builds=())  # fmt: skip


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a dataset folder; ValueError says what is missing or wrong and what to do."""
    path = folder / NAME
    if not folder.is_dir():
        found = "is not a folder" if folder.exists() else "does not exist"
        raise ValueError(
            f"{folder}: {found}; wanted the folder of a finished dataset. Check the path, or make one with: "
            f"python -m data_prep build ... --out {folder}"
        )
    if not path.is_file():
        found = "an unfinished build" if (folder / ".build").is_dir() else "no manifest.json"
        raise ValueError(
            f"{folder}: holds {found}; wanted a finished dataset. "
            f"Run `python -m data_prep build ... --out {folder}` (again): it continues where it stopped."
        )
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        found = f"{where} = {str(first.get('input'))[:80]!r}: " if where else ""
        more = f" (the first of {error.error_count()} faults)" if error.error_count() > 1 else ""
        raise ValueError(
            f"{path}: {found}{first['msg']}{more}; wanted a manifest as `build` writes it. "
            "Build the dataset again; do not edit this file."
        ) from None


def codec_path(folder: Path, manifest: Manifest) -> Path | None:
    """The dataset's copy of its tokenizer or codebook, checked; None where tokens need none."""
    if manifest.codec is None:
        return None
    path = folder / manifest.codec.file
    found = file_sha256(path) if path.is_file() else "no such file"
    if found != manifest.codec.sha256:
        raise ValueError(
            f"{path}: sha256 {found[:16]}; wanted {manifest.codec.sha256[:16]}, says the manifest. Without it tokens "
            f"cannot be turned back: copy the file that the dataset was built with to this place."
        )
    return path


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Put the manifest in place, whole or not at all."""
    write_file(folder / NAME, (manifest.model_dump_json(indent=1) + "\n").encode())


def check_domain(
    folder: Path, manifest: Manifest, domain: Domain, wanted: str | None = None
) -> None:
    """ValueError if the manifest's rows are not those of `domain` as this version of the project knows it, or of
    another domain than the one called `wanted`, if that is given."""
    if wanted not in (None, manifest.domain):
        raise ValueError(
            f"{folder}: holds domain {manifest.domain!r}; wanted {wanted!r}. Point at a dataset of that domain."
        )
    kinds = tuple(TokenRange(k.kind, k.start, k.stop, k.in_loss) for k in manifest.kinds)
    here = (domain.name, domain.vocab_size, domain.seq_length, domain.packed, domain.kinds)
    there = (manifest.domain, manifest.vocab_size, manifest.seq_length, manifest.packed, kinds)
    if here != there:
        raise ValueError(
            f"{folder / NAME}: domain, vocab_size, seq_length, packed, kinds = {there}; wanted {here}. "
            f"The dataset was built for another domain or by another version: build it again."
        )
