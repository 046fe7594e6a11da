"""Equal items are written once, whoever builds, and every one that is left out is listed."""

import io
import json
import multiprocessing
import os
import signal
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import duplicates
from data_prep.__main__ import main
from data_prep.build import build
from data_prep.check import check
from data_prep.dataset import TokenDataset
from data_prep.domain import domain, family
from data_prep.duplicates import (
    Placement,
    find_duplicates,
    keep_sample,
    list_duplicates,
    load_keys,
    place,
    save_contents,
    shared_documents,
)
from data_prep.manifest import load_manifest, record_of
from data_prep.plan import How, Request
from data_prep.shards import ShardWriter
from data_prep.watch import Watch


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(family("image-8x8"), "_PIECE", 7)


@pytest.fixture
def folder(tmp_path):
    """30 pictures, of which the names say which are equal: 00 = 10 = 25, 03 = 04, 11 = 29."""
    same = {10: 0, 25: 0, 4: 3, 29: 11}
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(30):
        pixels = np.random.default_rng(same.get(number, number)).integers(0, 256, (9, 9, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(raw / f"{number:02d}.png")
    return raw


def request(raw, **changes):
    return Request(
        "image-8x8", str(raw), **{"fractions": (0.5, 0.25, 0.25), "chunks_per_shard": 2, **changes}
    )


def lines(out):
    return [json.loads(line) for line in (out / "refused.jsonl").read_text().splitlines()]


def files(out):
    return {path.name: path.read_bytes() for path in sorted(out.glob("*-?????.*"))}


def test_the_first_stays_and_the_others_are_listed(folder, tmp_path):
    out = tmp_path / "out"
    manifest = build(request(folder), out, How())
    rows = np.concatenate(
        [
            TokenDataset(out, split).rows(np.arange(manifest.rows(split))).tokens
            for split in manifest.splits
        ]
    )
    assert len(rows) == len({row.tobytes() for row in rows}) == 26
    assert sorted((line["key"], line["reason"], line["duplicate"]) for line in lines(out)) == [
        ("04.png", "a duplicate of 03.png", True),
        ("10.png", "a duplicate of 00.png", True),
        ("25.png", "a duplicate of 00.png", True),
        ("29.png", "a duplicate of 11.png", True),
    ]
    record = manifest.builds[0]
    assert (record.written, record.duplicates, record.refused) == (26, 4, 0)
    assert "right" in check(out)


def test_parts_and_workers_leave_the_same_ones_out(folder, tmp_path):
    build(request(folder), tmp_path / "one", How())
    for part in (2, 0, 1):
        build(request(folder), tmp_path / "parts", How(part=part, parts=3, workers=2))
    assert files(tmp_path / "one") == files(tmp_path / "parts")
    assert lines(tmp_path / "one") == lines(tmp_path / "parts")


def test_a_shard_of_nothing_but_duplicates_is_not_there(folder, tmp_path):
    for number in range(30):
        again = (folder / f"{number:02d}.png").read_bytes()
        (folder / f"z{number:02d}.png").write_bytes(again)
    # Pieces of 7, 2 a shard: pictures 42 to 55 of 60 are all repeats.
    manifest = build(request(folder, split="train"), tmp_path / "out", How())
    assert [shard.file for shard in manifest.splits["train"]] == [
        "train-00000",
        "train-00001",
        "train-00002",
    ]
    assert manifest.rows("train") == 26
    assert "right" in check(tmp_path / "out")


def test_memory_for_each_duplicate_is_some_tens_of_bytes(tmp_path):
    """Peak of 20,000 documents in four shards, all of one content, above that of as many different ones."""
    random = np.random.default_rng(0)
    peaks = []
    for kinds in (20_000, 1):
        contents = random.integers(0, 1 << 64, (kinds, 2), np.uint64)
        contents = np.resize(contents, (20_000, 2))
        prefixes = {number: tmp_path / f"{kinds}-{number}" for number in range(4)}
        for number, prefix in prefixes.items():
            keys = b"".join(b"item %d\0" % index for index in range(5_000))
            save_contents(prefix, contents[number::4], [keys])
        tracemalloc.start()
        with (tmp_path / "ledger").open("w") as ledger:
            dropped = list_duplicates(prefixes, ledger)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert sum(map(len, dropped.values())) == 20_000 - kinds
    assert peaks[1] - peaks[0] < 100 * 20_000


def test_equal_problems_are_all_kept(tmp_path):
    """Mathematics: easy problems come again by themselves, as in the paper."""
    raw = tmp_path / "easy.txt"
    raw.write_text("What is 1+1?\n2\n" * 500)
    manifest = build(Request("mathematics", str(raw), split="train"), tmp_path / "out", How())
    assert (manifest.builds[0].written, manifest.builds[0].duplicates) == (500, 0)


@pytest.mark.parametrize("together", [1, 7, 1 << 22])
def test_found_as_by_brute_force(tmp_path, monkeypatch, together):
    """Many shards, digests met range by range: the same as comparing all with all."""
    monkeypatch.setattr(duplicates, "_TOGETHER", together)
    random = np.random.default_rng(together)
    pool = random.integers(0, 1 << 64, (40, 2), dtype=np.uint64)
    pool[1] = [pool[0, 0], pool[1, 1]]  # equal in one half only
    pool[2], pool[3] = [0, 0], [(1 << 64) - 1, (1 << 64) - 1]
    prefixes, expected, seen = {}, [], {}
    for number in (0, 2, 5):
        chosen = random.integers(0, 40, 25) if number != 2 else np.empty(0, int)
        prefixes[number] = tmp_path / f"train-{number:05d}"
        keys = b"".join(b"item \xff %d\0" % index for index in range(len(chosen)))
        save_contents(prefixes[number], pool[chosen], [keys])
        for document, index in enumerate(chosen):
            first = seen.setdefault(int(index), (number, document))
            if first != (number, document):
                expected.append((number, document, first))
    found = [
        (shard, document, (first_shard, first_document))
        for part in find_duplicates(prefixes)
        for shard, document, first_shard, first_document in part.tolist()
    ]
    assert sorted(found) == sorted(expected)
    assert len(expected) > 10
    ledger = io.StringIO()
    dropped = list_duplicates(prefixes, ledger)
    expected.sort()
    assert [(shard, int(each)) for shard in dropped for each in dropped[shard]] == [
        (shard, document) for shard, document, _ in expected
    ]
    assert [json.loads(line) for line in ledger.getvalue().splitlines()] == [
        {
            "key": f"item \\xff {document}",
            "reason": f"a duplicate of item \\xff {first[1]}",
            "duplicate": True,
        }
        for _, document, first in expected
    ]
    assert load_keys(prefixes[5])[:2] == ["item \\xff 0", "item \\xff 1"]
    assert load_keys(prefixes[2]) == []


@pytest.mark.parametrize("copied", [1, 100, 1 << 24])
def test_documents_of_several_parts_are_copied_whole(tmp_path, monkeypatch, copied):
    monkeypatch.setattr(duplicates, "_COPIED", copied)
    here = domain("mathematics")
    random = np.random.default_rng(0)
    documents = [
        [(mode, random.integers(0, 256, random.integers(1, 30))) for mode in (0, 1)]
        for _ in range(20)
    ]
    dropped = np.array([0, 3, 4, 19])

    def write(prefix, chosen):
        with ShardWriter(prefix, here) as writer:
            for number in chosen:
                parts = documents[number]
                writer.add_block(
                    np.concatenate([tokens for _, tokens in parts]),
                    np.array([len(tokens) for _, tokens in parts]),
                    np.array([mode for mode, _ in parts]), np.array([2]),
                )  # fmt: skip
        return writer.summary

    (tmp_path / "merged").mkdir()
    (tmp_path / "wanted").mkdir()
    merged, final = tmp_path / "merged" / "train-00000", tmp_path / "train-00000"
    whole = record_of(write(merged, range(20)), here)
    record = place(Placement(merged, final, "mathematics", whole, dropped), Watch())
    wanted = write(tmp_path / "wanted" / "train-00000", set(range(20)) - set(dropped.tolist()))
    assert record == record_of(wanted, here)
    assert files(tmp_path) == files(tmp_path / "wanted")


def _build_slowly(raw, out, steps):
    """In a process of its own: the build's last steps, one file operation after another, each announced."""
    real = os.replace
    family("image-8x8")._PIECE = 7

    def announced(source, target):
        real(source, target)
        steps.put(str(target))
        time.sleep(0.05)

    os.replace = announced
    build(request(raw), out, How())


@pytest.mark.parametrize(
    ("ending", "times"), [(".bin", 1), (".idx", 3), ("refused.jsonl", 1), ("preview.png", 1)]
)
def test_killed_at_the_end_and_started_again(folder, tmp_path, ending, times):
    build(request(folder), tmp_path / "whole", How())
    out = tmp_path / "out"
    context = multiprocessing.get_context("spawn")
    steps = context.Queue()
    process = context.Process(target=_build_slowly, args=(folder, out, steps))
    process.start()
    try:
        while times:
            target = Path(steps.get(timeout=60))
            times -= target.parent == out and target.name.endswith(ending)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (out / "manifest.json").exists()
    build(request(folder), out, How())
    assert files(out) == files(tmp_path / "whole")
    assert lines(out) == lines(tmp_path / "whole")
    assert load_manifest(out).splits == load_manifest(tmp_path / "whole").splits


def test_what_two_builds_have_in_common_is_told(tmp_path, picture_folder, capsys):
    """Pictures 0, 2, 4, ... as train; then all 40, of which 20 are there already, as test."""
    out = tmp_path / "out"
    for raw, split in ((picture_folder / "class0", "train"), (picture_folder, "test")):
        arguments = ["--raw", str(raw), "--out", str(out), "--split", split, "--workers", "1"]
        assert main(["build", "image-8x8", *arguments]) == 0
    assert "about 20 documents of split test are in split train too" in capsys.readouterr().err
    assert [each.shared for each in load_manifest(out).builds] == [{}, {"train": 20}]


def test_samples_of_large_splits_tell_about_how_much_they_share(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "_SAMPLE", 4000)
    random = np.random.default_rng(0)
    contents = random.integers(0, 1 << 64, (50_000, 2), np.uint64)
    for split, chosen in (("train", slice(0, 40_000)), ("test", slice(30_000, 50_000))):
        own = contents[chosen]
        save_contents(tmp_path / split, own, [b"k\0" * len(own)])
        keep_sample(tmp_path, split, [tmp_path / split])
        assert (tmp_path / f"{split}.digests").stat().st_size < 8 * 4500
    (shared,) = shared_documents(tmp_path, "test", ["train", "valid"]).values()
    # 10,000 are shared, of which each is seen with probability 1/10: five standard deviations are 1,500.
    assert abs(shared - 10_000) < 1500
