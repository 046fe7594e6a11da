"""Raw input -> a dataset folder: plan, make chunks in worker processes, merge them to shards, write the manifest.

    DIR/.build/<label>/plan.json          what is being built: settings, and a digest of the raw input's pieces
    DIR/.build/<label>/shard-00000/*.npz  chunks of a shard in the making (data_prep/chunks.py)
    DIR/.build/<label>/merged/*           shards that still hold duplicates, and the digests to find them by
    DIR/.build/<label>/shard-00000.json   a merged shard: its record, and what was refused
    DIR/<split>-00000.bin/.idx            the shards without duplicates, once all are merged
    DIR/refused.jsonl, preview.*, manifest.json   then these; .build goes last

<label> is the split, or "all" where items are divided by their hash. Every file appears by rename, so a build that was
killed continues from what is there, and `--part K/M` builds, each doing every M-th shard, meet in the same folder.
"""

import contextlib
import json
import shutil
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.chunks import Chunk, count_usable, make_chunk, merge, refusals
from data_prep.dataset import folder_shards
from data_prep.domain import Domain, domain, family
from data_prep.files import write_file
from data_prep.finish_build import finish
from data_prep.locks import lock, lock_division
from data_prep.manifest import NAME, Manifest, check_domain, file_sha256, load_manifest
from data_prep.plan import (
    How,
    Plan,
    Request,
    check_request,
    chunk_path,
    codec_name,
    plan_shards,
    record_path,
    same_settings,
)
from data_prep.watch import Watch
from data_prep.workers import run_tasks
from data_prep.yfcc import split_raw

# Seconds that a worker which puts a shard together may be silent: at its end, on a slow disk.
_MERGE_PATIENCE = 600.0


def build(request: Request, out: Path, how: How) -> Manifest | None:
    """Build into folder `out`. The manifest when the dataset is complete (also when it was before), None when other
    parts have still to be done. ValueError for bad input, with what to do."""
    check_request(request)
    _check_how(how)
    _check_out(request, out)
    here = domain(request.domain)
    before = finished(request, out, here)
    if before:
        return before
    if out.is_file():
        raise ValueError(
            f"{out}: is a file; wanted a folder, new or our own. Choose another --out."
        )
    out.mkdir(parents=True, exist_ok=True)
    # Parts work side by side; a part twice, or a whole build beside anything else, would be in each other's way.
    part = f"part-{how.part + 1}-of-{how.parts}"
    with (
        lock(out, "build", shared=how.parts > 1),
        lock_division(out, request.label, how.parts),
        lock(out, part, shared=False),
    ):
        work = out / ".build" / request.label
        (work / "merged").mkdir(parents=True, exist_ok=True)
        _copy_codec(request, out)
        plan = plan_shards(request, here, out, work, how)
        _make_shards(plan, how)
        with lock(out, "finish", shared=False, wait=True):
            return already_built(request, out, here) or finish(
                request, here, out, work, plan.shards, how
            )


def finished(request: Request, out: Path, here: Domain) -> Manifest | None:
    """As `already_built`; what a build that was killed after its manifest was written has left is removed."""
    manifest = already_built(request, out, here)
    work = out / ".build" / request.label
    if manifest is not None and work.is_dir():
        with contextlib.suppress(ValueError), lock(out, "build", shared=False):
            shutil.rmtree(work)
    return manifest


def _check_out(request: Request, out: Path) -> None:
    """ValueError where the dataset would lie in its own raw data, and be read with them the next time."""
    for part in split_raw(request.raw) or (Path(request.raw),):
        if part.is_dir() and out.resolve().is_relative_to(part.resolve()):
            raise ValueError(
                f"--out {out}: lies in the raw data ({part}); wanted a folder outside of it, for what is written would "
                f"be taken for raw data. Choose another --out."
            )


def _copy_codec(request: Request, out: Path) -> None:
    """Keep the tokenizer or codebook with the tokens: without it they mean nothing."""
    if request.codec is None:
        return
    copy = out / codec_name(request.domain)
    with lock(out, "codec", shared=False, wait=True):
        if not copy.exists():
            write_file(copy, request.codec.read_bytes())
    if file_sha256(copy) != file_sha256(request.codec):
        raise ValueError(
            f"{out}: its {copy.name} differs from {request.codec}; wanted one for all splits of a dataset. Give the "
            f"one that is there ({copy}), or choose another --out."
        )


def already_built(request: Request, out: Path, here: Domain) -> Manifest | None:
    """The manifest if this very build is finished; ValueError if another one has taken its splits, or if a shard is
    missing or cut off; else None."""
    if not (out / NAME).is_file():
        if not (out / ".build").is_dir() and any(out.glob("*.idx")):
            raise ValueError(
                f"{out}: holds .idx files but no manifest.json; wanted a new or our own folder. "
                f"Choose another --out: these files would be mixed with others."
            )
        return None
    manifest = load_manifest(out)
    check_domain(out, manifest, here)
    wanted = {split for split, _ in request.shares}
    for record in manifest.builds:
        if wanted & set(record.splits):
            same_settings(out, record.settings, request.settings, "already built")
            for split in record.splits:
                folder_shards(out, split, manifest)
            return manifest
    return None


def _check_how(how: How) -> None:
    if how.workers < 1 or not 0 <= how.part < how.parts:
        raise ValueError(
            f"--workers {how.workers}, --part {how.part + 1}/{how.parts}: wanted at least one worker and "
            f"1 <= K <= M in --part K/M. For instance: --workers 2 --part 1/4"
        )
    if not 0 <= how.max_refused <= 1:
        raise ValueError(
            f"--max-refused {how.max_refused}: wanted a share from 0 to 1. For instance 0.01."
        )


# --- make


@dataclass(frozen=True)
class _Merge:
    """A shard whose chunks are all there: what a worker needs to put them together; picklable."""

    work: Path
    number: int
    chunks: int
    domain: str
    splits: tuple[str, ...]
    rows: int | None

    def __str__(self) -> str:
        return f"shard {self.number}"

    @property
    def paths(self) -> list[Path]:
        """Its chunk files, in order."""
        return [chunk_path(self.work, self.number, index) for index in range(self.chunks)]


def _make_shards(plan: Plan, how: How) -> None:
    """Make the chunks that are missing, and each shard as soon as its last chunk is there, in worker processes."""
    ready: deque[_Merge] = deque()
    # Of the shards under way: how many chunks are missing, and what is then to do.
    left: dict[Path, tuple[int, _Merge]] = {}
    total, done = _count(plan)
    tasks = _missing(plan, ready, left)
    for progress in run_tasks(do_task, tasks, how.workers, _patience, ready):
        task = progress.task
        if isinstance(task, _Merge):
            shutil.rmtree(task.paths[0].parent)
        elif task is not None:
            done += 1
            count, then = left.pop(task.path.parent)
            if count > 1:
                left[task.path.parent] = count - 1, then
            else:
                ready.append(then)
        how.tell(done, total, progress)


def _missing(
    plan: Plan, ready: deque[_Merge], left: dict[Path, tuple[int, _Merge]]
) -> Iterator[Chunk]:
    """The chunks that are not there, shard by shard; of a shard of which all are, it goes to those that are ready."""
    splits = tuple(split for split, _ in plan.request.shares)
    for shard in plan.own():
        if record_path(plan.work, shard.number).exists():
            continue
        task = _Merge(
            plan.work, shard.number, len(shard.chunks), plan.here.name, splits, shard.rows
        )
        folder = shard.chunks[0].path.parent
        folder.mkdir(exist_ok=True)
        missing = [chunk for chunk in shard.chunks if not chunk.path.exists()]
        if missing:
            left[folder] = len(missing), task
            yield from missing
        else:
            ready.append(task)


def _count(plan: Plan) -> tuple[int, int]:
    """The chunks of all shards of this part, and how many of them are there already."""
    total = done = 0
    for number, chunks in plan.sizes():
        total += chunks
        folder = chunk_path(plan.work, number, 0).parent
        if record_path(plan.work, number).exists():
            done += chunks
        elif folder.is_dir():
            done += sum(path.suffix == ".npz" for path in folder.iterdir())
    return total, done


def _patience(task: Chunk | _Merge) -> float:
    """Seconds that a worker may be silent about a task; at the end of a shard it waits for the disk."""
    return _MERGE_PATIENCE if isinstance(task, _Merge) else family(task.domain).PATIENCE


def do_task(task: Chunk | _Merge, watch: Watch) -> None:
    """Worker's side: make a chunk, or a shard of chunks."""
    if isinstance(task, Chunk):
        make_chunk(task, watch)
        return
    here, paths = domain(task.domain), task.paths
    records = merge(
        task.work / "merged", task.number, here, task.splits, paths, task.rows, watch.beat
    )
    content = {
        "shards": {split: record.model_dump() for split, record in records.items()},
        "usable": sum(map(count_usable, paths)),
        "refused": [each for path in paths for each in refusals(path)],
    }
    write_file(record_path(task.work, task.number), json.dumps(content).encode())
