"""The end of a build, when every shard is merged: duplicates, the ledger, the checks, the preview and the manifest.

Nothing here is remembered: killed anywhere, it starts over from the merged shards.
"""

import json
import shutil
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Context
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import classes, show
from data_prep.domain import Domain, Refusal, family
from data_prep.duplicates import (
    Placement,
    keep_sample,
    list_duplicates,
    place,
    shared_documents,
)
from data_prep.files import beside, clear_temporaries, recorded, replacing
from data_prep.manifest import (
    NAME,
    SPLITS,
    BuildRecord,
    CodecRecord,
    Manifest,
    ShardRecord,
    file_sha256,
    load_manifest,
    new_manifest,
    save_manifest,
)
from data_prep.plan import How, Request, check_damage, codec_name, passed_over, record_path
from data_prep.watch import Watch
from data_prep.workers import run_tasks

REFUSED = "refused.jsonl"
# Seconds that a worker which copies a shard may be silent: between two blocks of it, or at its end on a slow disk.
_PATIENCE = 600.0
# Different reasons that are counted: in some families each names its item.
_MOST_REASONS = 10_000


def finish(
    request: Request, here: Domain, out: Path, work: Path, shards: int, how: How
) -> Manifest | None:
    """If every shard is there: the ledger, the manifest, the preview; then the work folder goes."""
    if any(not record_path(work, number).exists() for number in range(shards)):
        return None
    clear_temporaries(out)
    merged: dict[str, dict[int, ShardRecord]] = {split: {} for split, _ in request.shares}
    for number in range(shards):
        content = json.loads(record_path(work, number).read_bytes())
        for split, record in content["shards"].items():
            merged[split][number] = ShardRecord(**record)
    with how.during("finding duplicates"):
        placements, duplicates = _find_duplicates(here, out, work, merged)
    written = sum(each.record.documents - len(each.dropped) for each in placements)
    refused = _write_ledger(request, out, work, shards)
    if not how.accept_damaged:
        check_damage(request, refused.damaged)
    _check_refused(request, out, refused, how.max_refused)
    # Not before this are there shards in the dataset's folder.
    with how.during("putting the shards into the dataset, without duplicates"):
        splits = _place_shards(placements, tuple(merged), how)
    _check_rows(request, here, out, written, splits)
    manifest = load_manifest(out) if (out / NAME).is_file() else new_manifest(here)
    counts = {
        "written": written,
        "usable": refused.usable,
        "refused": refused.count + len(refused.damaged),
        "duplicates": duplicates,
        "damaged": tuple(recorded(each.key) for each in refused.damaged),
        "passed_over": {recorded(name): count for name, count in passed_over(work).items()},
        "shared": _compare(here, out, placements, tuple(merged), tuple(manifest.splits)),
    }
    if here.labelled:
        found = classes.count(here, out, work, splits, manifest)
        manifest = manifest.model_copy(update={"classes": found})
    manifest = _add_build(request, here, out, splits, manifest, counts, how)
    codec = out / manifest.codec.file if manifest.codec else None
    show.write_preview(out, here, splits, codec)
    save_manifest(out, manifest)
    shutil.rmtree(work)
    return manifest


def _find_duplicates(
    here: Domain, out: Path, work: Path, merged: dict[str, dict[int, ShardRecord]]
) -> tuple[list[Placement], int]:
    """What is to be put into the dataset: each merged shard without what is there twice; and how many that are."""
    placements, total = [], 0
    with (work / "duplicates.jsonl").open("w") as ledger:
        for records in merged.values():
            prefixes = {number: work / "merged" / record.file for number, record in records.items()}
            dropped = list_duplicates(prefixes, ledger) if family(here.name).DEDUPLICATE else {}
            total += sum(map(len, dropped.values()))
            none = np.empty(0, np.uint32)
            placements += [
                Placement(
                    prefixes[number],
                    out / record.file,
                    here.name,
                    record,
                    dropped.get(number, none),
                )
                for number, record in records.items()
            ]
    return placements, total


def _place_shards(
    placements: list[Placement], splits: tuple[str, ...], how: How
) -> dict[str, list[ShardRecord]]:
    """Put the shards into the dataset; their records in order. Done from the beginning each time, so it may be killed
    anywhere."""
    found: dict[Path, ShardRecord | None] = {}
    # Links take no time; only copies deserve processes of their own.
    copies = [each for each in placements if len(each.dropped)]
    for each in placements:
        if not len(each.dropped):
            found[each.final] = place(each, Watch())
    for progress in run_tasks(place, copies, how.workers, _PATIENCE) if copies else ():
        if progress.task is not None:
            found[progress.task.final] = progress.result
    records: dict[str, list[ShardRecord]] = {split: [] for split in splits}
    for each in placements:
        record = found[each.final]
        if record is not None:
            records[record.file.rpartition("-")[0]].append(record)
    return records


@dataclass
class _Refused:
    """What the ledger of a build amounts to, in raw items: how many are refused, how many gave a document (duplicates
    too). Damaged files are no items and do not count."""

    count: int = 0
    usable: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    damaged: list[Refusal] = field(default_factory=list)

    def add(self, each: dict[str, Any]) -> None:
        """Count a line of the ledger."""
        if each.get("damaged"):
            self.damaged.append(Refusal(**each))
        elif not each.get("partial"):
            self.count += 1
            if each["reason"] in self.reasons or len(self.reasons) < _MOST_REASONS:
                self.reasons[each["reason"]] += 1


def _write_ledger(request: Request, out: Path, work: Path, shards: int) -> _Refused:
    """refused.jsonl: one line for each refused item or duplicate, {"build", "key", "reason"}; other builds' lines stay.

    A damaged file's line has "damaged": true too, a duplicate's "duplicate": true, and a part of an item that counts
    already "partial": true. Streamed: it may be long.
    """
    path, label, refused = out / REFUSED, request.label, _Refused()
    with replacing(path) as ledger:
        if path.exists():
            with path.open("rb") as old:
                ledger.writelines(line for line in old if json.loads(line)["build"] != label)
        for number in range(shards):
            content = json.loads(record_path(work, number).read_bytes())
            refused.usable += content["usable"]
            for each in content["refused"]:
                ledger.write(_ledger_line(label, each))
                refused.add(each)
        with (work / "duplicates.jsonl").open("rb") as duplicates:
            ledger.writelines(_ledger_line(label, json.loads(line)) for line in duplicates)
    return refused


def _ledger_line(label: str, each: dict[str, Any]) -> bytes:
    return json.dumps({"build": label, **each}).encode() + b"\n"


def _check_refused(request: Request, out: Path, refused: _Refused, max_refused: float) -> None:
    items = refused.usable + refused.count
    share = refused.count / max(1, items)
    if refused.usable and share <= max_refused:
        return
    enough = Context(prec=3, rounding=ROUND_CEILING).divide(refused.count, max(1, items))
    reasons = "; ".join(f"{count} x {reason}" for reason, count in refused.reasons.most_common(3))
    advice = (
        f"raise --max-refused to {enough:f} or more and run again"
        if refused.usable
        else "give --raw other data"
    )
    raise ValueError(
        f"{request.raw}: {refused.count} of {items} items ({share:.2%}) refused; wanted at most "
        f"{max_refused:.2%} (--max-refused) and some usable item. Most often: {reasons}. "
        f"See {out / REFUSED}; then repair the raw data in another --out, or {advice}."
    )


def _check_rows(
    request: Request, here: Domain, out: Path, written: int, splits: dict[str, list[ShardRecord]]
) -> None:
    if not any(record.rows for records in splits.values() for record in records):
        for record in (each for records in splits.values() for each in records):
            for ending in (".idx", ".bin"):
                beside(out / record.file, ending).unlink()
        tokens = sum(record.tokens for records in splits.values() for record in records)
        raise ValueError(
            f"{request.raw}: {written} documents make {tokens} tokens; wanted at least one row of {here.seq_length} "
            f"in some split. Give --raw more data."
        )


def _compare(
    here: Domain,
    out: Path,
    placements: list[Placement],
    splits: tuple[str, ...],
    others: tuple[str, ...],
) -> dict[str, int]:
    """What other builds' splits have in common with this one's: within a build no two splits share a document."""
    shared: Counter[str] = Counter()
    if family(here.name).DEDUPLICATE:
        for split in splits:
            own = [each.merged for each in placements if each.merged.name.startswith(f"{split}-")]
            keep_sample(out, split, own)
            shared.update(shared_documents(out, split, [o for o in others if o not in splits]))
    return dict(shared)


def _add_build(
    request: Request,
    here: Domain,
    out: Path,
    splits: dict[str, list[ShardRecord]],
    manifest: Manifest,
    counts: dict[str, Any],
    how: How,
) -> Manifest:
    """The manifest with this build; `counts`: the fields of `BuildRecord` that say what became of the raw items."""
    copy = out / codec_name(here.name) if request.codec else None
    notes = family(here.name).notes(here, request.raw, copy)
    record = BuildRecord(
        splits=tuple(splits), settings=request.settings, seed=request.seed, command=recorded(how.command),
        finished=datetime.now(UTC).isoformat(timespec="seconds"), versions=notes.versions,
        reproducible=notes.reproducible, reason=notes.reason, **counts,
    )  # fmt: skip
    together = {**manifest.splits, **{split: tuple(records) for split, records in splits.items()}}
    ordered = {split: together[split] for split in SPLITS if split in together}
    codec = CodecRecord(file=copy.name, sha256=file_sha256(copy)) if copy else None
    return manifest.model_copy(
        update={
            "splits": ordered,
            "builds": (*manifest.builds, record),
            "codec": codec,
            "known": dict(notes.known),
        }
    )
