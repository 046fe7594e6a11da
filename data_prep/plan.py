"""What a build is, before anything is computed: the request, and the raw input cut into shards.

Everything here is a pure function of the command and the raw input, so that the parts of a job array, each planning for
itself, agree on which shard holds what.
"""

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from data_prep import classes
from data_prep.chunks import Chunk
from data_prep.domain import Domain, Piece, Refusal, check_codec, domain, family
from data_prep.files import recorded, sync_path, write_file
from data_prep.folders import PassedOver
from data_prep.locks import lock
from data_prep.manifest import NAME, SPLITS, Setting, file_sha256, load_manifest
from data_prep.workers import Progress
from data_prep.yfcc import split_raw

FRACTIONS = (0.96, 0.02, 0.02)


@dataclass(frozen=True)
class Request:
    """What to build. Everything here decides the result; nothing here says how it is computed."""

    domain: str
    raw: str
    split: str | None = None
    rows: int | None = None
    seed: int = 0
    fractions: tuple[float, float, float] = FRACTIONS
    chunks_per_shard: int | None = None
    codec: Path | None = None

    @property
    def label(self) -> str:
        """The name of this build within its folder."""
        return self.split or "all"

    @property
    def shares(self) -> tuple[tuple[str, float], ...]:
        """(split, share of the items) of every split that gets some."""
        if self.split:
            return ((self.split, 1.0),)
        return tuple(
            (split, share) for split, share in zip(SPLITS, self.fractions, strict=True) if share > 0
        )

    def _resolved_raw(self) -> str:
        """`raw` with whole paths, so that the same command from another folder is seen to be another."""
        if self.raw.partition(":")[0] == "generator":
            return self.raw
        joined = split_raw(self.raw)
        return recorded(":".join(str(Path(part).resolve()) for part in joined or (self.raw,)))

    @property
    def settings(self) -> dict[str, Setting]:
        """What another command must agree in to be the same build."""
        return {
            "raw": self._resolved_raw(),
            "split": self.split,
            "rows": self.rows,
            "seed": self.seed,
            "fractions": None if self.split else ",".join(f"{share:g}" for share in self.fractions),
            "chunks_per_shard": self.chunks_per_shard,
            "codec": file_sha256(self.codec) if self.codec else None,
        }


@dataclass(frozen=True)
class How:
    """How to compute it: no influence on the tokens. `part` counts from 0; `tell` hears (chunks, all, Progress);
    `during(what)` goes around what takes long and cannot be counted."""

    workers: int = 1
    part: int = 0
    parts: int = 1
    max_refused: float = 0.01
    accept_damaged: bool = False
    command: str = ""
    tell: Callable[[int, int, Progress], None] = lambda done, total, progress: None
    during: Callable[[str], AbstractContextManager[None]] = lambda what: nullcontext()


@dataclass(frozen=True)
class ShardPlan:
    """The chunks of one shard; `rows` caps its rows (generated data)."""

    number: int
    chunks: tuple[Chunk, ...]
    rows: int | None


def check_request(request: Request) -> None:
    if request.split not in (None, *SPLITS):
        raise ValueError(
            f"--split {request.split}: wanted one of {', '.join(SPLITS)}, or no --split. Choose one."
        )
    # Said so that NaN, which compares as false, is refused.
    if not (min(request.fractions) >= 0 and abs(sum(request.fractions) - 1) <= 1e-9):
        raise ValueError(
            f"--fractions {','.join(map(str, request.fractions))}: wanted three shares (train, valid, test), "
            f"none below 0, that add up to 1. For instance: --fractions 0.96,0.02,0.02"
        )
    check_codec(domain(request.domain), request.codec)
    if request.chunks_per_shard is not None and request.chunks_per_shard < 1:
        raise ValueError(
            f"--chunks-per-shard {request.chunks_per_shard}: wanted at least 1. Leave it out."
        )


def same_settings(
    out: Path, there: dict[str, Setting], here: dict[str, Setting], state: str
) -> None:
    different = [name for name in here if there.get(name) != here[name]]
    if different:
        both = "; ".join(
            f"{name} = {there.get(name)!r} there, {here[name]!r} now" for name in different
        )
        raise ValueError(
            f"{out}: {state} with other settings: {both}. Wanted the same command, or a split that is not there yet. "
            f"Choose another --out, or delete {out} to start over."
        )


def record_path(work: Path, number: int) -> Path:
    """Where the record of a merged shard lies."""
    return work / f"shard-{number:05d}.json"


def chunk_path(work: Path, number: int, index: int) -> Path:
    """Where chunk `index` of shard `number` lies until the shard is merged."""
    return work / f"shard-{number:05d}" / f"{index:06d}.npz"


def codec_name(name: str) -> str:
    """What a dataset's own copy of its tokenizer or codebook is called."""
    return {"tokenizer": "tokenizer.model", "codebook": "codebook.safetensors"}[family(name).CODEC]


@dataclass(frozen=True)
class Plan:
    """The raw input of a build, cut into `pieces` pieces, and the shards of them that one part makes."""

    request: Request
    here: Domain
    out: Path
    work: Path
    part: int
    parts: int
    pieces: int

    @property
    def _each(self) -> int:
        return self.request.chunks_per_shard or family(self.here.name).CHUNKS_PER_SHARD

    @property
    def shards(self) -> int:
        """The number of all shards, also those of other parts."""
        return -(-self.pieces // self._each)

    def sizes(self) -> Iterator[tuple[int, int]]:
        """(number, chunks) of each shard of this part."""
        for number in range(self.part, self.shards, self.parts):
            yield number, min(self._each, self.pieces - number * self._each)

    def own(self) -> Iterator[ShardPlan]:
        """The shards of this part, read one after another: of millions of chunks only some are ever in memory."""
        with _index(self.work).open("rb") as lines:
            for number in range(self.shards):
                group = itertools.islice(lines, self._each)
                if number % self.parts == self.part:
                    yield _shard_plan(self, number, list(_load_pieces(group, self.work)))
                else:
                    for _ in group:
                        pass


def plan_shards(request: Request, here: Domain, out: Path, work: Path, how: How) -> Plan:
    """Cut the raw input into shards of chunks. The same input always gives the same plan, whoever makes it.

    The first of several parts lists the raw input for all of them. A build of one part lists it each time, and so
    notices raw data that has changed. Damage that can be seen already ends the build here, before anything is recorded:
    files may still be replaced.
    """
    index = _index(work)
    with ExitStack() as held:
        with how.during("waiting for another part, which lists the raw input"):
            held.enter_context(lock(out, "plan", shared=False, wait=True))
        if how.parts > 1 and index.exists():
            plan = json.loads((work / "plan.json").read_bytes())
            same_settings(out, plan["settings"], request.settings, "half built")
        else:
            with how.during(f"listing {recorded(request.raw)}"):
                _list_pieces(request, here, out, work, how.accept_damaged)
    with index.open("rb") as lines:
        count = sum(1 for _ in lines)
    return Plan(request, here, out, work, how.part, how.parts, count)


_LISTING = "listing.jsonl"


def _index(work: Path) -> Path:
    """The file with a line for each piece."""
    return work / "pieces.jsonl"


def _list_pieces(
    request: Request, here: Domain, out: Path, work: Path, accept_damaged: bool
) -> None:
    """List the raw input in a folder of its own. What is there takes the place of an earlier listing, which chunks may
    have been made of, only when it is found to be the same. Of millions of pieces one at a time is in memory."""
    scratch, others = work / "listing", PassedOver()
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    if here.labelled and (out / NAME).is_file():
        classes.keep_earlier(scratch, load_manifest(out))
    pieces = family(here.name).plan(here, request.raw, request.rows, scratch / _LISTING, others)
    with _index(scratch).open("wb") as stream:
        stream.writelines(_piece_line(piece, scratch) for piece in pieces)
    if not accept_damaged:
        check_damage(request, _damage(scratch))
    _record_plan(work, out, request, _digest(scratch), others)
    # The pieces come last: where they are, all is.
    for path in sorted(scratch.iterdir(), key=lambda path: path == _index(scratch)):
        sync_path(path)
        os.replace(path, work / path.name)
    scratch.rmdir()
    sync_path(work)


def _piece_line(piece: Piece, work: Path) -> bytes:
    source = "" if piece.source == str(work / _LISTING) else piece.source
    damage = [astuple(each) for each in piece.damage]
    return json.dumps([source, piece.start, piece.stop, damage]).encode() + b"\n"


def _load_pieces(lines: Iterable[bytes], work: Path) -> Iterator[Piece]:
    """The pieces that `_piece_line` wrote; those of the listing have it in folder `work` for a source."""
    for line in lines:
        source, start, stop, damage = json.loads(line)
        refusals = tuple(Refusal(*each) for each in damage)
        yield Piece(source or str(work / _LISTING), start, stop, refusals)


def _damage(work: Path) -> Iterator[Refusal]:
    """The damaged files that the plan has found."""
    with _index(work).open("rb") as lines:
        suspicious = (line for line in lines if not line.endswith(b"[]]\n"))
        for piece in _load_pieces(suspicious, work):
            yield from (each for each in piece.damage if each.damaged)


def _digest(work: Path) -> str:
    """Of the pieces and, where there is one, of the listing that they are stretches of."""
    digest = hashlib.sha256()
    for path in (work / _LISTING, _index(work)):
        if path.exists():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def passed_over(work: Path) -> PassedOver:
    """What the plan has counted of files that are not of the domain, by ending."""
    return PassedOver(json.loads((work / "plan.json").read_bytes())["passed_over"])


def check_damage(request: Request, damaged: Iterable[Refusal]) -> None:
    """ValueError naming the damaged files, if there are any."""
    rest = iter(damaged)
    first = list(itertools.islice(rest, 3))
    if first:
        named = "; ".join(f"{each.key}: {each.reason}" for each in first)
        left = sum(1 for _ in rest)
        more, count = f"; and {left} more" if left else "", len(first) + left
        raise ValueError(
            f"{request.raw}: {count} damaged file{'s' * (count > 1)}: {named}{more}; wanted whole files, "
            f"whatever --max-refused says: nobody knows how much is lost. Replace them, or add --accept-damaged to "
            f"build from what is readable."
        )


def _record_plan(work: Path, out: Path, request: Request, digest: str, others: PassedOver) -> None:
    """Write down what is being built, or check that it is what was being built before."""
    path = work / "plan.json"
    for other in (out / ".build").glob("*/plan.json"):
        # "all" writes the files of every split, so it and one split exclude each other.
        if other != path and "all" in (other.parent.name, request.label):
            same_settings(
                out, json.loads(other.read_bytes())["settings"], request.settings, "half built"
            )
    if not path.exists():
        plan = {"settings": request.settings, "raw": digest, "passed_over": others}
        write_file(path, json.dumps(plan, indent=1).encode())
        return
    before = json.loads(path.read_bytes())
    same_settings(out, before["settings"], request.settings, "half built")
    if before["raw"] != digest:
        alone = not (out / NAME).exists()  # else there are finished splits, which are to stay
        raise ValueError(
            f"{request.raw}: has changed since this build of {out} began (digest of its list of items "
            f"{before['raw'][:12]} then, {digest[:12]} now); wanted the same raw data. "
            f"Restore it, or delete {out if alone else out / '.build'} to start over."
        )


def _shard_plan(plan: Plan, number: int, pieces: list[Piece]) -> ShardPlan:
    request = plan.request
    rows = None if request.rows is None else sum(piece.stop - piece.start for piece in pieces)
    if rows is not None:
        # Each split loses up to a row at the end of the shard: make so much more.
        pieces = [*pieces[:-1], replace(pieces[-1], stop=pieces[-1].stop + len(request.shares))]
    codec = plan.out / codec_name(request.domain) if request.codec else None
    shares, name = request.shares, plan.here.name
    chunks = tuple(
        Chunk(
            chunk_path(plan.work, number, index), name, piece, f"{request.seed} {number} {index}",
            shares, codec,
        )
        for index, piece in enumerate(pieces)
    )  # fmt: skip
    return ShardPlan(number, chunks, rows)
