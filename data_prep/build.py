"""Raw input -> a dataset folder: plan, make chunks in worker processes, merge them to shards, write the manifest.

    DIR/.build/<label>/plan.json          what is being built: settings, and a digest of the raw input's pieces
    DIR/.build/<label>/shard-00000/*.npz  chunks of a shard in the making (data_prep/chunks.py)
    DIR/.build/<label>/shard-00000.json   a finished shard: its record, and what was refused
    DIR/<split>-00000.bin/.idx            finished shards
    DIR/refused.jsonl, preview.*, manifest.json   once all are finished; then .build goes

<label> is the split, or "all" where items are divided by their hash. Every file appears by rename, so a build that was
killed continues from what is there, and `--part K/M` builds, each doing every M-th shard, meet in the same folder.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_prep import look
from data_prep.chunks import make_chunk, merge, refusals
from data_prep.domain import Domain, Refusal, domain, family
from data_prep.manifest import (
    NAME,
    SPLITS,
    BuildRecord,
    Manifest,
    ShardRecord,
    check_domain,
    load_manifest,
    new_manifest,
    save_manifest,
)
from data_prep.plan import (
    Request,
    ShardPlan,
    check_damage,
    check_request,
    lock,
    plan_shards,
    same_settings,
)
from data_prep.shards import write_file
from data_prep.workers import Progress, run_tasks

REFUSED = "refused.jsonl"


@dataclass(frozen=True)
class How:
    """How to compute it: no influence on the tokens. `part` counts from 0; `tell` hears (chunks, all, Progress)."""

    workers: int = 1
    part: int = 0
    parts: int = 1
    max_refused: float = 0.01
    accept_damaged: bool = False
    command: str = ""
    tell: Callable[[int, int, Progress], None] = lambda done, total, progress: None


def build(request: Request, out: Path, how: How) -> Manifest | None:
    """Build into folder `out`. The manifest when the dataset is complete (also when it was before), None when other
    parts have still to be done. ValueError for bad input, with what to do."""
    check_request(request)
    _check_how(how)
    here = domain(request.domain)
    finished = already_built(request, out, here)
    if finished:
        return finished
    if out.is_file():
        raise ValueError(
            f"{out}: is a file; wanted a folder, new or our own. Choose another --out."
        )
    out.mkdir(parents=True, exist_ok=True)
    # Parts work side by side; a part twice, or a whole build beside anything else, would be in each other's way.
    part = f"part-{how.part + 1}-of-{how.parts}"
    with lock(out, "build", shared=how.parts > 1), lock(out, part, shared=False):
        work = out / ".build" / request.label
        work.mkdir(parents=True, exist_ok=True)
        plans = plan_shards(request, here, out, work, part, how.accept_damaged)
        _make_shards(
            here,
            out,
            work,
            [plan for plan in plans if plan.number % how.parts == how.part],
            request,
            how,
        )
        with lock(out, "finish", shared=False, wait=True):
            return already_built(request, out, here) or _finish(
                request, here, out, work, len(plans), how
            )


def already_built(request: Request, out: Path, here: Domain) -> Manifest | None:
    """The manifest if this very build is finished; ValueError if another one has taken its splits; else None."""
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
    unfinished = [plan for plan in plans if not _record_path(work, plan.number).exists()]
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


def _record_path(work: Path, number: int) -> Path:
    return work / f"shard-{number:05d}.json"


def _merge_shard(here: Domain, out: Path, work: Path, plan: ShardPlan, request: Request) -> None:
    paths = [chunk.path for chunk in plan.chunks]
    records = merge(
        out, plan.number, here, tuple(split for split, _ in request.shares), paths, plan.rows
    )
    refused = [each for path in paths for each in refusals(path)]
    content = {
        "shards": {split: record.model_dump() for split, record in records.items()},
        "refused": refused,
    }
    write_file(_record_path(work, plan.number), json.dumps(content).encode())
    shutil.rmtree(paths[0].parent)


# --- finish


def _finish(
    request: Request, here: Domain, out: Path, work: Path, shards: int, how: How
) -> Manifest | None:
    """If every shard is there: the ledger, the manifest, the preview; then the work folder goes."""
    if any(not _record_path(work, number).exists() for number in range(shards)):
        return None
    splits: dict[str, list[ShardRecord]] = {split: [] for split, _ in request.shares}
    refused: list[dict[str, Any]] = []
    for number in range(shards):
        content = json.loads(_record_path(work, number).read_bytes())
        refused += content["refused"]
        for split, record in content["shards"].items():
            splits[split].append(ShardRecord(**record))
    written = sum(record.documents for records in splits.values() for record in records)
    _write_ledger(out, request.label, refused)
    damaged = [Refusal(**each) for each in refused if each.get("damaged")]
    if not how.accept_damaged:
        check_damage(request, damaged)
    _check_refused(request, out, written, refused, how.max_refused)
    _check_rows(request, here, written, splits)
    manifest = _add_build(request, here, out, splits, written, refused, how)
    look.write_preview(out, here, splits)
    save_manifest(out, manifest)
    shutil.rmtree(work)
    return manifest


def _write_ledger(out: Path, label: str, refused: list[dict[str, Any]]) -> None:
    """refused.jsonl: one line for each refused item, {"build", "key", "reason"}; other builds' lines stay.

    A damaged file's line has "damaged": true too.
    """
    path = out / REFUSED
    old = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in old if json.loads(line)["build"] != label]
    lines = kept + [json.dumps({"build": label, **each}) for each in refused]
    write_file(path, "".join(line + "\n" for line in lines).encode())


def _check_refused(
    request: Request, out: Path, written: int, refused: list[dict[str, Any]], max_refused: float
) -> None:
    """Damaged files are no items: they are accepted or not, and do not count here."""
    if written:
        refused = [each for each in refused if not each.get("damaged")]
    share = len(refused) / max(1, written + len(refused))
    if written and share <= max_refused:
        return
    common = Counter(each["reason"] for each in refused).most_common(3)
    reasons = "; ".join(f"{count} x {reason}" for reason, count in common)
    advice = (
        f"raise --max-refused to {share:.3g} or more and run again"
        if written
        else "give --raw other data"
    )
    raise ValueError(
        f"{request.raw}: {len(refused)} of {written + len(refused)} items ({share:.2%}) refused; wanted at most "
        f"{max_refused:.2%} (--max-refused) and some usable item. Most often: {reasons}. "
        f"See {out / REFUSED}; then repair the raw data in another --out, or {advice}."
    )


def _check_rows(
    request: Request, here: Domain, written: int, splits: dict[str, list[ShardRecord]]
) -> None:
    if not any(record.rows for records in splits.values() for record in records):
        tokens = sum(record.tokens for records in splits.values() for record in records)
        raise ValueError(
            f"{request.raw}: {written} documents make {tokens} tokens; wanted at least one row of {here.seq_length} "
            f"in some split. Give --raw more data."
        )


def _add_build(
    request: Request,
    here: Domain,
    out: Path,
    splits: dict[str, list[ShardRecord]],
    written: int,
    refused: list[dict[str, Any]],
    how: How,
) -> Manifest:
    manifest = load_manifest(out) if (out / NAME).is_file() else new_manifest(here)
    notes = family(here.name).notes(here, request.raw)
    record = BuildRecord(
        splits=tuple(splits), settings=request.settings, seed=request.seed, command=how.command,
        finished=datetime.now(UTC).isoformat(timespec="seconds"), versions=notes.versions,
        reproducible=notes.reproducible, reason=notes.reason, written=written, refused=len(refused),
        damaged=tuple(each["key"] for each in refused if each.get("damaged")),
    )  # fmt: skip
    together = {**manifest.splits, **{split: tuple(records) for split, records in splits.items()}}
    ordered = {split: together[split] for split in SPLITS if split in together}
    return manifest.model_copy(update={"splits": ordered, "builds": (*manifest.builds, record)})
