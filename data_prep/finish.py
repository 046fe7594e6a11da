"""The end of a build, when every shard is merged: duplicates, the ledger, the checks, the preview and the manifest.

Nothing here is remembered: killed anywhere, it starts over from the merged shards.
"""

import itertools
import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from data_prep import look
from data_prep.domain import Domain, Refusal, family
from data_prep.duplicates import Placement, find_duplicates, load_keys, place
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
from data_prep.plan import How, Request, check_damage, codec_name, record_path
from data_prep.workers import run_tasks

REFUSED = "refused.jsonl"
# Seconds that a worker which copies a shard may be silent.
_PATIENCE = 1800.0
# Different reasons that are counted: in some families each names its item.
_MOST_REASONS = 10_000


def finish(
    request: Request, here: Domain, out: Path, work: Path, shards: int, how: How
) -> Manifest | None:
    """If every shard is there: the ledger, the manifest, the preview; then the work folder goes."""
    if any(not record_path(work, number).exists() for number in range(shards)):
        return None
    merged: dict[str, dict[int, ShardRecord]] = {split: {} for split, _ in request.shares}
    for number in range(shards):
        content = json.loads(record_path(work, number).read_bytes())
        for split, record in content["shards"].items():
            merged[split][number] = ShardRecord(**record)
    splits, duplicates = _place_shards(here, out, work, merged, how)
    written = sum(record.documents for records in splits.values() for record in records)
    refused = _write_ledger(request, out, work, shards)
    if not how.accept_damaged:
        check_damage(request, refused.damaged)
    _check_refused(request, out, written, refused, how.max_refused)
    _check_rows(request, here, written, splits)
    manifest = _add_build(request, here, out, splits, written, duplicates, refused, how)
    codec = out / manifest.codec.file if manifest.codec else None
    look.write_preview(out, here, splits, codec)
    save_manifest(out, manifest)
    shutil.rmtree(work)
    return manifest


def _place_shards(
    here: Domain, out: Path, work: Path, merged: dict[str, dict[int, ShardRecord]], how: How
) -> tuple[dict[str, list[ShardRecord]], int]:
    """Put the merged shards into the dataset without what they hold twice; (records of each split, duplicates).

    Done from the beginning each time, so it may be killed anywhere.
    """
    tasks, total = [], 0
    with (work / "duplicates.jsonl").open("w") as ledger:
        for records in merged.values():
            prefixes = {number: work / "merged" / record.file for number, record in records.items()}
            dropped: dict[int, list[int]] = {number: [] for number in records}
            if family(here.name).DEDUPLICATE:
                total += _list_duplicates(prefixes, dropped, ledger)
            tasks += [
                Placement(
                    prefixes[number], out / record.file, here.name, record, tuple(dropped[number])
                )
                for number, record in records.items()
            ]
    order = {task.final: index for index, task in enumerate(tasks)}
    found: dict[int, ShardRecord] = {}
    # Links take no time; only copies deserve processes of their own.
    copies = [task for task in tasks if task.dropped]
    for task in tasks:
        if not task.dropped:
            record = place(task, 0, lambda items: None)
            assert record is not None
            found[order[task.final]] = record
    for progress in run_tasks(place, copies, how.workers, _PATIENCE) if copies else ():
        if progress.result is not None:
            found[order[progress.task.final]] = progress.result
    splits: dict[str, list[ShardRecord]] = {split: [] for split in merged}
    for index in sorted(found):
        splits[found[index].file.rpartition("-")[0]].append(found[index])
    return splits, total


def _list_duplicates(
    prefixes: dict[int, Path], dropped: dict[int, list[int]], ledger: TextIO
) -> int:
    """Fill `dropped` (shard -> documents) and write a line for each duplicate; how many there are."""
    found = sorted(find_duplicates(prefixes), key=lambda each: each.first)
    firsts: dict[tuple[int, int], str] = {}
    # They come in the order of their digests; shard by shard, the keys of each are read twice in all.
    for shard, group in itertools.groupby(found, key=lambda each: each.first[0]):
        keys = load_keys(prefixes[shard])
        firsts |= {each.first: keys[each.first[1]] for each in group}
    found.sort(key=lambda each: (each.shard, each.document))
    for shard, group in itertools.groupby(found, key=lambda each: each.shard):
        keys = load_keys(prefixes[shard])
        for each in group:
            dropped[shard].append(each.document)
            reason = f"a duplicate of {firsts[each.first]}"
            line = {"key": keys[each.document], "reason": reason, "duplicate": True}
            ledger.write(json.dumps(line) + "\n")
    return len(found)


@dataclass
class _Refused:
    """What the ledger of a build amounts to; damaged files are no items and do not count."""

    count: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    damaged: list[Refusal] = field(default_factory=list)


def _write_ledger(request: Request, out: Path, work: Path, shards: int) -> _Refused:
    """refused.jsonl: one line for each refused item or duplicate, {"build", "key", "reason"}; other builds' lines stay.

    A damaged file's line has "damaged": true too, a duplicate's "duplicate": true. Streamed: it may be long.
    """
    path, temporary, label = out / REFUSED, out / (REFUSED + ".tmp"), request.label
    refused = _Refused()
    with temporary.open("w") as ledger:
        if path.exists():
            with path.open() as old:
                ledger.writelines(line for line in old if json.loads(line)["build"] != label)
        for number in range(shards):
            for each in json.loads(record_path(work, number).read_bytes())["refused"]:
                ledger.write(json.dumps({"build": label, **each}) + "\n")
                if each.get("damaged"):
                    refused.damaged.append(Refusal(**each))
                else:
                    refused.count += 1
                    if each["reason"] in refused.reasons or len(refused.reasons) < _MOST_REASONS:
                        refused.reasons[each["reason"]] += 1
        with (work / "duplicates.jsonl").open() as duplicates:
            ledger.writelines(
                json.dumps({"build": label, **json.loads(line)}) + "\n" for line in duplicates
            )
        ledger.flush()
        os.fsync(ledger.fileno())
    os.replace(temporary, path)
    return refused


def _check_refused(
    request: Request, out: Path, written: int, refused: _Refused, max_refused: float
) -> None:
    share = refused.count / max(1, written + refused.count)
    if written and share <= max_refused:
        return
    reasons = "; ".join(f"{count} x {reason}" for reason, count in refused.reasons.most_common(3))
    advice = (
        f"raise --max-refused to {share:.3g} or more and run again"
        if written
        else "give --raw other data"
    )
    raise ValueError(
        f"{request.raw}: {refused.count} of {written + refused.count} items ({share:.2%}) refused; wanted at most "
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
    duplicates: int,
    refused: _Refused,
    how: How,
) -> Manifest:
    manifest = load_manifest(out) if (out / NAME).is_file() else new_manifest(here)
    copy = out / codec_name(here.name) if request.codec else None
    notes = family(here.name).notes(here, request.raw, copy)
    record = BuildRecord(
        splits=tuple(splits), settings=request.settings, seed=request.seed, command=how.command,
        finished=datetime.now(UTC).isoformat(timespec="seconds"), versions=notes.versions,
        reproducible=notes.reproducible, reason=notes.reason, written=written,
        refused=refused.count + len(refused.damaged), duplicates=duplicates,
        damaged=tuple(each.key for each in refused.damaged),
    )  # fmt: skip
    together = {**manifest.splits, **{split: tuple(records) for split, records in splits.items()}}
    ordered = {split: together[split] for split in SPLITS if split in together}
    codec = CodecRecord(file=copy.name, sha256=file_sha256(copy)) if copy else None
    return manifest.model_copy(
        update={"splits": ordered, "builds": (*manifest.builds, record), "codec": codec}
    )
