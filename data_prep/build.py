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
from pathlib import Path

from data_prep.chunks import count_usable, make_chunk, merge, refusals
from data_prep.dataset import folder_shards
from data_prep.domain import Domain, domain, family
from data_prep.files import write_file
from data_prep.finish_build import finish
from data_prep.manifest import NAME, Manifest, check_domain, file_sha256, load_manifest
from data_prep.plan import (
    How,
    Request,
    ShardPlan,
    check_request,
    codec_name,
    lock,
    lock_division,
    plan_shards,
    record_path,
    same_settings,
)
from data_prep.workers import run_tasks


def build(request: Request, out: Path, how: How) -> Manifest | None:
    """Build into folder `out`. The manifest when the dataset is complete (also when it was before), None when other
    parts have still to be done. ValueError for bad input, with what to do."""
    check_request(request)
    _check_how(how)
    here = domain(request.domain)
    finished = already_built(request, out, here)
    if finished:
        _clear(request, out)
        return finished
    if out.is_file():
        raise ValueError(
            f"{out}: is a file; wanted a folder, new or our own. Choose another --out."
        )
    out.mkdir(parents=True, exist_ok=True)
    # Parts work side by side; a part twice, or a whole build beside anything else, would be in each other's way.
    part = f"part-{how.part + 1}-of-{how.parts}"
    with (
        lock(out, "build", shared=how.parts > 1),
        lock_division(out, how.parts),
        lock(out, part, shared=False),
    ):
        work = out / ".build" / request.label
        (work / "merged").mkdir(parents=True, exist_ok=True)
        _copy_codec(request, out)
        plans, shards = plan_shards(request, here, out, work, how)
        _make_shards(here, out, work, plans, request, how)
        with lock(out, "finish", shared=False, wait=True):
            return already_built(request, out, here) or finish(
                request, here, out, work, shards, how
            )


def _clear(request: Request, out: Path) -> None:
    """Remove what a build that was killed after its manifest was written has left."""
    work = out / ".build" / request.label
    if work.is_dir():
        with contextlib.suppress(ValueError), lock(out, "build", shared=False):
            shutil.rmtree(work)


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


def _make_shards(
    here: Domain, out: Path, work: Path, plans: list[ShardPlan], request: Request, how: How
) -> None:
    """Make the chunks that are missing, and each shard as soon as its last chunk is there."""
    unfinished = [plan for plan in plans if not record_path(work, plan.number).exists()]
    missing = {
        plan.number: [chunk for chunk in plan.chunks if not chunk.path.exists()]
        for plan in unfinished
    }
    left = {number: len(chunks) for number, chunks in missing.items()}
    owner = {chunk.path: plan for plan in unfinished for chunk in plan.chunks}
    for plan in unfinished:
        plan.chunks[0].path.parent.mkdir(exist_ok=True)
        if not left[plan.number]:
            _merge_shard(here, out, work, plan, request)
    tasks = [chunk for plan in unfinished for chunk in missing[plan.number]]
    total = sum(len(plan.chunks) for plan in plans)
    done = total - len(tasks)
    for progress in run_tasks(make_chunk, tasks, how.workers, family(here.name).PATIENCE):
        if progress.task is not None:
            done += 1
            plan = owner[progress.task.path]
            left[plan.number] -= 1
            if not left[plan.number]:
                _merge_shard(here, out, work, plan, request)
        how.tell(done, total, progress)


def _merge_shard(here: Domain, out: Path, work: Path, plan: ShardPlan, request: Request) -> None:
    paths = [chunk.path for chunk in plan.chunks]
    records = merge(
        work / "merged",
        plan.number,
        here,
        tuple(split for split, _ in request.shares),
        paths,
        plan.rows,
    )
    refused = [each for path in paths for each in refusals(path)]
    content = {
        "shards": {split: record.model_dump() for split, record in records.items()},
        "usable": sum(map(count_usable, paths)),
        "refused": refused,
    }
    write_file(record_path(work, plan.number), json.dumps(content).encode())
    shutil.rmtree(paths[0].parent)
