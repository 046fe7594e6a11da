"""Building whole datasets: splits, resume, parts, two builds at once, refused items."""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import chunks, pictures
from data_prep.__main__ import main
from data_prep.build import build, do_task
from data_prep.check import check
from data_prep.chunks import Chunk, merge, split_of, splits_of
from data_prep.dataset import TokenDataset
from data_prep.domain import domain
from data_prep.files import replacing
from data_prep.locks import lock, lock_division
from data_prep.manifest import load_manifest
from data_prep.pictures import decode
from data_prep.plan import How, Request, plan_shards
from data_prep.tokenizers import train
from data_prep.watch import Watch

HALVES = (0.5, 0.25, 0.25)


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Many small pieces, so that forty pictures make several chunks (the workers only see the pieces)."""
    from data_prep.domain import family

    monkeypatch.setattr(family("image-8x8"), "_PIECE", 7)
    monkeypatch.setattr(family("mathematics"), "_PIECE_PROBLEMS", 50)


def request(folder: Path, **changes) -> Request:
    return Request(
        "image-8x8", str(folder), **{"fractions": HALVES, "chunks_per_shard": 2, **changes}
    )


def shards(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*-?????.*"))}


def all_rows(out: Path) -> dict[str, np.ndarray]:
    manifest = load_manifest(out)
    return {
        split: TokenDataset(out, split).rows(np.arange(manifest.rows(split))).tokens
        for split in manifest.splits
    }


def test_every_picture_is_there_once(tmp_path, picture_folder):
    out = tmp_path / "out"
    build(request(picture_folder), out, How())
    found = sorted(row.tobytes() for rows in all_rows(out).values() for row in rows)
    expected = sorted(
        decode(path.read_bytes(), 8).tobytes() for path in picture_folder.rglob("*.png")
    )
    assert found == expected
    assert all(len(rows) > 3 for rows in all_rows(out).values()), "all three splits get some"
    assert "right" in check(out)
    assert (out / "preview.png").is_file()
    assert (out / "refused.jsonl").read_text() == ""
    assert sorted(path.name for path in (out / ".build").iterdir() if path.suffix != ".lock") == []


def test_workers_and_parts_give_the_same_bytes(tmp_path, picture_folder):
    build(request(picture_folder), tmp_path / "one", How(workers=1))
    build(request(picture_folder), tmp_path / "two", How(workers=2))
    for part in (1, 2, 0):
        manifest = build(request(picture_folder), tmp_path / "parts", How(part=part, parts=3))
        assert (manifest is not None) == (part == 0), "finished when the last part is"
    one = shards(tmp_path / "one")
    assert [name for name in one if name.startswith("train") and name.endswith(".idx")] == [
        f"train-0000{number}.idx" for number in range(3)
    ], "6 chunks, 2 a shard"
    assert one == shards(tmp_path / "two") == shards(tmp_path / "parts")


def test_a_whole_build_finishes_what_parts_left(tmp_path, picture_folder):
    out = tmp_path / "out"
    assert build(request(picture_folder), out, How(part=1, parts=3)) is None
    with pytest.raises(ValueError, match="holds an unfinished build; wanted a finished dataset"):
        TokenDataset(out, "train")
    merged = out / ".build" / "all" / "merged"
    before = {name: (merged / name).stat().st_mtime_ns for name in shards(merged)}
    assert any(name.endswith(".idx") for name in before)
    assert build(request(picture_folder), out, How()) is not None
    for name, mtime in before.items():
        if name.endswith((".bin", ".idx")):
            assert (out / name).stat().st_mtime_ns == mtime, "not made again"


def test_splits_are_stable_when_items_are_added(tmp_path, picture_folder):
    build(request(picture_folder), tmp_path / "before", How())
    for number in range(100, 110):
        (picture_folder / f"0{number}.png").write_bytes(png(number))
    build(request(picture_folder), tmp_path / "after", How())
    after = all_rows(tmp_path / "after")
    for split, rows in all_rows(tmp_path / "before").items():
        assert {row.tobytes() for row in rows} <= {row.tobytes() for row in after[split]}


def test_parts_of_two_divisions_do_not_build_side_by_side(tmp_path, picture_folder):
    """1/2 and 1/3 would write the same chunks at the same time."""
    out = tmp_path / "out"
    build(request(picture_folder), out, How(part=0, parts=2))
    with lock_division(out, "all", 2):
        with pytest.raises(ValueError, match="another build is writing here"):
            build(request(picture_folder), out, How(part=0, parts=3))
        with pytest.raises(ValueError, match="another build is writing here"):
            build(request(picture_folder, split="test"), out, How(part=1, parts=2))
        build(request(picture_folder), out, How(part=1, parts=2))
    assert "right" in check(out)


def test_what_a_kill_behind_the_manifest_leaves_is_removed(tmp_path, picture_folder):
    out = tmp_path / "out"
    build(request(picture_folder), out, How())
    left = out / ".build" / "all"
    left.mkdir()
    (left / "listing.jsonl").write_text("old")
    build(request(picture_folder), out, How())
    assert not left.exists()


def test_split_shares():
    shares = (("train", 0.96), ("valid", 0.02), ("test", 0.02))
    contents = [
        hashlib.blake2b(str(number).encode(), digest_size=16).digest() for number in range(20_000)
    ]
    found = splits_of(contents, shares)
    # Binomial: five standard deviations are 0.007 and 0.005.
    assert (found == 0).mean() == pytest.approx(0.96, abs=0.007)
    assert (found == 1).mean() == pytest.approx(0.02, abs=0.005)
    assert (found == 2).mean() == pytest.approx(0.02, abs=0.005)
    assert [split_of(each, shares) for each in contents] == found.tolist()


@pytest.mark.parametrize(
    ("content", "split"),
    [(bytes(16), 0), (b"\xff" * 16, 2), (b"\x7f\xff" + bytes(14), 0), (b"\x80" + bytes(15), 1)],
)
def test_the_ends_of_the_range_of_a_hash(content, split):
    shares = (("train", 0.5), ("valid", 0.25), ("test", 0.25))
    assert splits_of([content], shares)[0] == split_of(content, shares) == split


def test_one_split_after_another(tmp_path, picture_folder):
    out = tmp_path / "out"
    build(request(picture_folder / "class0", split="train"), out, How())
    identity = TokenDataset(out, "train").identity
    build(request(picture_folder / "class1", split="test"), out, How())
    assert {split: len(rows) for split, rows in all_rows(out).items()} == {"train": 20, "test": 20}
    assert TokenDataset(out, "train").identity == identity
    assert len(load_manifest(out).builds) == 2
    with pytest.raises(
        ValueError,
        match=r"already built with other settings: raw = '.*class0' there, '.*class1' now",
    ):
        build(request(picture_folder / "class1", split="train"), out, How())
    with pytest.raises(ValueError, match="split = 'train' there, None now"):
        build(request(picture_folder), out, How())
    with pytest.raises(
        ValueError, match="manifest.json: domain.*The dataset was built for another domain"
    ):
        build(Request("image-16x16", str(picture_folder), split="valid"), out, How())


def test_the_same_again_does_nothing(tmp_path, picture_folder):
    out = tmp_path / "out"
    first = build(request(picture_folder), out, How())
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert build(request(picture_folder), out, How()) == first
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_half_built_with_other_settings_is_refused(tmp_path, picture_folder):
    out = tmp_path / "out"
    build(request(picture_folder), out, How(part=0, parts=3))
    with pytest.raises(ValueError, match="half built with other settings: seed = 0 there, 1 now"):
        build(request(picture_folder, seed=1), out, How())
    with pytest.raises(
        ValueError, match="half built with other settings: split = None there, 'train' now"
    ):
        build(request(picture_folder, split="train"), out, How())
    (picture_folder / "new.png").write_bytes(png(1000))
    with pytest.raises(ValueError, match="has changed since this build"):
        build(request(picture_folder), out, How())


def test_two_builds_at_once_are_refused(tmp_path, picture_folder):
    out = tmp_path / "out"
    out.mkdir()
    with (
        lock(out, "build", shared=False),
        pytest.raises(ValueError, match="another build is writing here; wanted"),
    ):
        build(request(picture_folder), out, How())
    with lock(out, "build", shared=True):
        with pytest.raises(ValueError, match="another build is writing here"):
            build(request(picture_folder), out, How())
        assert build(request(picture_folder), out, How(part=0, parts=3)) is None, (
            "parts work side by side"
        )
    with (out / ".build" / "part-2-of-3.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another build is writing here"):
            build(request(picture_folder), out, How(part=1, parts=3))


def test_foreign_shards_are_not_overwritten(tmp_path, picture_folder):
    (tmp_path / "train-00000.idx").write_bytes(b"x")
    with pytest.raises(ValueError, match="holds .idx files but no manifest.json"):
        build(request(picture_folder), tmp_path, How())


def test_refused_items_are_listed_and_limited(tmp_path, picture_folder):
    (picture_folder / "bad.png").write_bytes(b"<html>")
    (picture_folder / "empty.png").touch()
    out = tmp_path / "out"
    with pytest.raises(
        ValueError, match=r"2 of 42 items \(4.76%\) refused; wanted at most 1.00%.*1 x empty file"
    ):
        build(request(picture_folder), out, How())
    assert not (out / "manifest.json").exists()
    assert shards(out) == {}, "a build that failed leaves none"
    manifest = build(request(picture_folder), out, How(max_refused=0.05))
    assert (manifest.builds[0].written, manifest.builds[0].refused) == (40, 2)
    listed = [json.loads(line) for line in (out / "refused.jsonl").read_text().splitlines()]
    assert [each["key"] for each in listed] == ["bad.png", "empty.png"]
    assert listed[1] == {"build": "all", "key": "empty.png", "reason": "empty file"}


def test_the_advised_share_is_enough_when_typed(tmp_path, picture_folder, capsys):
    """20 of 60: a third, which no decimal number says."""
    for number in range(20):
        (picture_folder / f"bad{number}.png").write_bytes(b"<html>")
    command = f"build image-8x8 --workers 1 --raw {picture_folder} --out {tmp_path / 'out'}"
    assert main(command.split()) == 2
    advised = re.search(r"raise --max-refused to (\S+) or more", capsys.readouterr().err)[1]
    assert advised == "0.334"
    assert main([*command.split(), "--max-refused", advised]) == 0


def test_a_folder_whose_name_is_not_utf8(tmp_path, picture_folder):
    raw = tmp_path / os.fsdecode(b"raw\xff")
    picture_folder.rename(raw)
    (raw / os.fsdecode(b"cut\xfe.tar")).write_bytes(b"no tar" * 200)
    (raw / os.fsdecode(b"other.\xfd")).touch()
    for _ in range(2):
        command = [sys.executable, "-m", "data_prep", "build", "image-8x8", "--accept-damaged"]
        command += ["--raw", raw, "--out", tmp_path / "out"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "already built" in done.stdout
    (record,) = load_manifest(tmp_path / "out").builds
    assert record.settings["raw"] == f"{tmp_path}/raw\\xff"
    assert "raw\\xff" in record.command
    assert record.damaged == ("cut\\xfe.tar",)
    assert record.passed_over == {".\\xfd": 1}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda path: path.unlink(),
            "train-00000.bin: is missing; wanted 1344 bytes, says the manifest",
        ),
        (lambda path: os.truncate(path, 100), "train-00000.bin: has 100 bytes; wanted 1344 bytes"),
    ],
)
def test_a_finished_build_whose_shards_are_gone_is_not_built(
    tmp_path, picture_folder, damage, message
):
    out = tmp_path / "out"
    build(request(picture_folder), out, How())
    damage(out / "train-00000.bin")
    with pytest.raises(ValueError, match=message):
        build(request(picture_folder), out, How())


def test_a_file_system_without_locks(tmp_path, picture_folder, monkeypatch):
    def flock(handle, mode):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ValueError, match=r"has no locks \(flock: Function not .*Give an --out on"):
        build(request(picture_folder), tmp_path / "out", How())


def deadly_chunk(chunk, watch):
    """`do_task` where the decoder crashes, as one written in C may, at pictures that begin with DIE."""
    decode_any = pictures._decode_any

    def crash(data, side, fast):
        return os._exit(139) if data.startswith(b"DIE") else decode_any(data, side, fast)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "_decode_any", crash)
        return do_task(chunk, watch)


def test_a_picture_that_crashes_its_worker_is_refused_alone(tmp_path, picture_folder, monkeypatch):
    monkeypatch.setattr("data_prep.build.do_task", deadly_chunk)
    for name in ("005x.png", "007x.png"):
        (picture_folder / "class1" / name).write_bytes(b"DIE" + name.encode())
    manifest = build(request(picture_folder), tmp_path / "out", How(max_refused=0.05))
    assert (manifest.builds[0].written, manifest.builds[0].refused) == (40, 2)
    lines = map(json.loads, (tmp_path / "out" / "refused.jsonl").read_text().splitlines())
    assert [(line["key"], line["reason"]) for line in lines] == [
        ("class1/005x.png", "given up after 2 attempts: the worker process died (exit code 139)"),
        ("class1/007x.png", "given up after 3 attempts: the worker process died (exit code 139)"),
    ]


def test_the_ledger_keeps_other_builds(tmp_path, picture_folder):
    out = tmp_path / "out"
    for split, number in (("train", 0), ("test", 1)):
        (picture_folder / f"class{number}" / "bad.png").touch()
        build(request(picture_folder / f"class{number}", split=split), out, How(max_refused=0.1))
    builds = [
        json.loads(line)["build"] for line in (out / "refused.jsonl").read_text().splitlines()
    ]
    assert builds == ["train", "test"]


def test_nothing_usable(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    with pytest.raises(
        ValueError, match="holds no pictures; wanted files or tar members ending in"
    ):
        build(request(raw), tmp_path / "out", How())
    (raw / "bad.png").touch()
    with pytest.raises(
        ValueError, match=r"1 of 1 items \(100.00%\) refused.*give --raw other data"
    ):
        build(request(raw), tmp_path / "out2", How(max_refused=1.0))


def test_a_cut_off_tar_gives_what_is_readable(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(10):
            data = png(number)
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with tarfile.open(path) as tar:
        places = [member.offset_data for member in tar]
    os.truncate(path, places[6] + 10)
    with pytest.raises(ValueError, match="1 damaged file: x.tar: the tar file is damaged after 7"):
        build(request(path), tmp_path / "out", How(max_refused=1))
    how = How(max_refused=0.5, accept_damaged=True)
    manifest = build(request(path), tmp_path / "out", how)
    assert (manifest.builds[0].written, manifest.builds[0].refused) == (6, 2)
    assert manifest.builds[0].damaged == ("x.tar",)
    assert "cut off" in (tmp_path / "out" / "refused.jsonl").read_text()


def test_many_damaged_files_are_counted(tmp_path, picture_folder):
    for number in range(5):
        (picture_folder / f"{number}.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(
        ValueError, match=r"5 damaged files: 0.tar: .*; 2.tar: .*; and 2 more; wanted"
    ):
        build(request(picture_folder), tmp_path / "out", How(max_refused=1))
    how = How(max_refused=0, accept_damaged=True)
    manifest = build(request(picture_folder), tmp_path / "out", how)
    assert manifest.builds[0].refused == len(manifest.builds[0].damaged) == 5


@pytest.mark.parametrize(
    ("changes", "how", "message"),
    [
        ({"split": "dev"}, {}, "--split dev: wanted one of train, valid, test"),
        ({"fractions": (0.5, 0.5, 0.5)}, {}, "--fractions 0.5,0.5,0.5: wanted three shares"),
        ({"fractions": (1.5, -0.5, 0)}, {}, "--fractions 1.5,-0.5,0: wanted three shares"),
        ({"fractions": (float("nan"), 0, 1)}, {}, "--fractions nan,0,1: wanted three shares"),
        ({"chunks_per_shard": 0}, {}, "--chunks-per-shard 0: wanted at least 1"),
        ({"rows": 5}, {}, "--rows 5: pictures are all taken"),
        ({}, {"workers": 0}, "--workers 0, --part 1/1: wanted at least one worker"),
        ({}, {"part": 3, "parts": 3}, "--part 4/3: wanted at least one worker and 1 <= K <= M"),
        ({}, {"max_refused": 2}, "--max-refused 2: wanted a share from 0 to 1"),
    ],
)
def test_bad_requests(tmp_path, picture_folder, changes, how, message):
    with pytest.raises(ValueError, match=message):
        build(request(picture_folder, **changes), tmp_path / "out", How(**how))


def test_text_problems_are_packed(tmp_path, problem_file):
    out = tmp_path / "out"
    manifest = build(Request("mathematics", str(problem_file), split="train"), out, How())
    dataset = TokenDataset(out, "train")
    stream = problem_file.read_bytes()
    assert (
        dataset.rows(np.arange(dataset.num_rows)).tokens.tobytes()
        == stream[: len(stream) // 512 * 512]
    )
    record = manifest.splits["train"][0]
    assert (record.documents, record.sequences, record.dropped_tokens) == (
        400,
        800,
        len(stream) % 512,
    )
    assert manifest.builds[0].reproducible
    batch = dataset.rows(np.array([0]))
    shown = "".join(chr(t) for t, k in zip(batch.tokens[0], batch.kinds[0], strict=True) if k == 1)
    assert shown.startswith("0\n8\n16\n24\n")


def test_generated_rows_are_exactly_as_many_as_asked(tmp_path):
    out = tmp_path / "out"
    wanted = Request(
        "mathematics", "generator:train-easy", rows=21, fractions=HALVES, chunks_per_shard=8
    )
    manifest = build(wanted, out, How())
    assert sum(manifest.rows(each) for each in manifest.splits) == 21
    assert len(manifest.splits["train"]) > 1  # how full a shard gets is the generator's luck
    assert not manifest.builds[0].reproducible
    assert "sha256 identify" in manifest.builds[0].reason
    assert "right" in check(out)
    rows = np.concatenate(list(all_rows(out).values()))
    problems = b"".join(rows).split(b"\n")
    assert len(set(problems)) > 0.6 * len(problems), "chunks do not repeat each other"
    assert "«" in (out / "preview.txt").read_text()


def test_too_little_for_one_row(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("1 + 1?\n2\n")
    with pytest.raises(
        ValueError, match="1 documents make 9 tokens; wanted at least one row of 512"
    ):
        build(Request("mathematics", str(path)), tmp_path / "out", How())
    assert shards(tmp_path / "out") == {}


def test_a_piece_of_many_blocks_gives_the_same_bytes(tmp_path, picture_folder, monkeypatch):
    """A piece of any size, such as a compressed file, is never in memory as a whole."""
    (picture_folder / "bad.png").touch()
    build(request(picture_folder), tmp_path / "one", How(max_refused=0.1))
    monkeypatch.setattr("data_prep.build.do_task", chunk_of_small_blocks)
    manifest = build(request(picture_folder), tmp_path / "many", How(max_refused=0.1))
    assert shards(tmp_path / "one") == shards(tmp_path / "many")
    assert (manifest.builds[0].written, manifest.builds[0].refused) == (40, 1)


def chunk_of_small_blocks(chunk, watch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "_BLOCK_TOKENS", 200)
        do_task(chunk, watch)
    if isinstance(chunk, Chunk):
        with np.load(chunk.path) as arrays:
            assert sum(name.endswith(".refused") for name in arrays.files) > 1


def test_a_part_plans_its_own_shards_only(tmp_path, picture_folder):
    wanted, out = request(picture_folder), tmp_path / "out"
    work = out / ".build" / "all"
    work.mkdir(parents=True)
    plan = plan_shards(wanted, domain("image-8x8"), out, work, How(part=1, parts=3))
    assert ([shard.number for shard in plan.own()], plan.shards) == ([1], 3)
    assert list(plan.sizes()) == [(1, 2)] == [(s.number, len(s.chunks)) for s in plan.own()]


def test_raw_data_that_is_not_all_there_leaves_the_plan_as_it_was(tmp_path, picture_folder):
    """A disk is away, the build is refused, the disk is back: parts go on with the pieces that chunks were made of."""
    out, wanted = tmp_path / "out", request(picture_folder)
    work = out / ".build" / "all"
    assert build(wanted, out, How(part=0, parts=3)) is None
    before = {name: (work / name).read_bytes() for name in ("listing.jsonl", "pieces.jsonl")}
    (picture_folder / "class1").rename(tmp_path / "away")
    with pytest.raises(ValueError, match=f"has changed since .* or delete {out} to start over"):
        build(wanted, out, How())
    assert {name: (work / name).read_bytes() for name in before} == before
    (tmp_path / "away").rename(picture_folder / "class1")
    build(wanted, out, How(part=1, parts=3))
    manifest = build(wanted, out, How(part=2, parts=3))
    assert (manifest.builds[0].usable, manifest.builds[0].refused) == (40, 0)


def test_a_listing_that_is_cut_off_is_no_empty_piece(tmp_path, picture_folder):
    out, wanted = tmp_path / "out", request(picture_folder)
    assert build(wanted, out, How(part=0, parts=3)) is None
    (out / ".build" / "all" / "listing.jsonl").write_bytes(b"")
    with pytest.raises(RuntimeError, match=r"listing.jsonl: 0 bytes from byte \d+ on; wanted \d+"):
        build(wanted, out, How(part=1, parts=3))


def test_changed_raw_data_beside_a_finished_split(tmp_path, picture_folder):
    """The advice must not cost the split that is there."""
    out = tmp_path / "out"
    build(request(picture_folder, split="train"), out, How())
    build(request(picture_folder, split="test"), out, How(part=0, parts=3))
    (picture_folder / "new.png").write_bytes(png(1000))
    with pytest.raises(ValueError, match=f"or delete {out / '.build'} to start over"):
        build(request(picture_folder, split="test"), out, How())


def test_a_dataset_in_its_own_raw_data_is_refused(tmp_path, picture_folder):
    for out in (picture_folder, picture_folder / "class1" / ".." / "out"):
        with pytest.raises(ValueError, match="lies in the raw data .*; wanted a folder outside"):
            build(request(picture_folder), out, How())
    assert not (picture_folder / "out").exists()


def test_a_damaged_chunk_is_named(tmp_path, picture_folder):
    """Opened it looks whole: the directory of the archive lies at its end."""
    out, wanted = tmp_path / "out", request(picture_folder)
    work = out / ".build" / "all"
    (work / "merged").mkdir(parents=True)
    plan = plan_shards(wanted, domain("image-8x8"), out, work, How())
    shard = next(plan.own())
    shard.chunks[0].path.parent.mkdir()
    for chunk in shard.chunks:
        do_task(chunk, Watch())
    path = shard.chunks[1].path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    paths = [chunk.path for chunk in shard.chunks]
    with pytest.raises(ValueError, match="000001.npz: .*; wanted a finished chunk .* delete this"):
        merge(work / "merged", 0, domain("image-8x8"), ("train", "valid", "test"), paths, None)


def test_equal_items_in_a_row_are_all_usable(tmp_path, picture_folder):
    """Without labels of their own, equal neighbours would look like parts of one item."""
    folder = tmp_path / "equal"
    folder.mkdir()
    for number in range(9):
        (folder / f"{number}.jpg").write_bytes(png(0))
        (folder / f"{number}.txt").write_bytes(b"the same")
    tokenizer = tmp_path / "t.model"
    (tmp_path / "t.txt").write_text("the same words again and again\n" * 50)
    train(tmp_path / "t.txt", tokenizer, 300)
    name = "text-to-image-v300"
    manifest = build(
        Request(name, str(folder), split="train", codec=tokenizer), tmp_path / "o", How()
    )
    record = manifest.builds[0]
    assert (record.usable, record.written, record.duplicates, record.refused) == (9, 1, 8, 0)


def test_workers_of_a_killed_build_do_not_touch_files_of_the_next(tmp_path):
    """Two processes write one file at the same time."""
    path = tmp_path / "000000.npz"
    pid = os.fork()
    if (
        not pid
    ):  # like a worker whose build was killed: in the middle of the file when the other one ends
        with contextlib.suppress(KeyError), replacing(path) as stream:
            stream.write(b"old" * 100_000)
            (tmp_path / "begun").touch()
            while not (tmp_path / "ended").exists():
                time.sleep(0.01)
            stream.write(b"old" * 100_000)
            raise KeyError
        os._exit(0)
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    with replacing(path) as stream:
        stream.write(b"new")
    (tmp_path / "ended").touch()
    os.waitpid(pid, 0)
    assert path.read_bytes() == b"new"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["000000.npz", "begun", "ended"]


def test_what_killed_processes_left_is_cleared(tmp_path, picture_folder):
    out = tmp_path / "out"
    assert build(request(picture_folder), out, How(part=0, parts=2)) is None
    (out / "refused.jsonl.123.tmp").touch()
    (out / "mine.tmp").touch()
    build(request(picture_folder), out, How(part=1, parts=2))
    assert [path.name for path in out.rglob("*.tmp")] == ["mine.tmp"]


PROGRAM = """
import signal
import sys
from data_prep.domain import family
family("image-8x8")._PIECE = 2
from data_prep.build import build
from data_prep.plan import How
from data_prep.plan import Request
from pathlib import Path
def tell(done, total, progress):
    if sys.argv[3:] == [str(done)]:
        print("half built", flush=True)
        signal.pause()
if __name__ == "__main__":
    request = Request("image-8x8", sys.argv[1], fractions=(0.5, 0.25, 0.25), chunks_per_shard=3)
    build(request, Path(sys.argv[2]), How(workers=2, tell=tell))
"""


def start(tmp_path: Path, raw: Path, *stop: int) -> subprocess.Popen:
    """The build in a process; with `stop` it says when so many chunks are done, and waits."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    command = [sys.executable, script, raw, tmp_path / "out", *map(str, stop)]
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def finish_killed(tmp_path: Path, raw: Path) -> None:
    """Continue to the end: the same bytes as of a build that nobody killed."""
    with start(tmp_path, raw) as process:
        pass
    assert process.returncode == 0
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    with start(undisturbed, raw) as process:
        pass
    assert process.returncode == 0
    assert shards(tmp_path / "out") == shards(undisturbed / "out")
    assert "right" in check(tmp_path / "out")


def test_killed_half_built_and_started_again(tmp_path, picture_folder):
    out = tmp_path / "out"
    for stop in (4, 14):  # of 20 chunks
        process = start(tmp_path, picture_folder, stop)
        assert process.stdout.readline() == b"half built\n"
        kill(process)
        assert list((out / ".build" / "all").glob("shard-*"))
        assert not (out / "manifest.json").exists()
    finish_killed(tmp_path, picture_folder)


@pytest.mark.long
def test_killed_many_times(tmp_path, picture_folder):
    """At any moment: what is there never looks finished when it is not."""
    for delay in np.random.default_rng(0).uniform(0.2, 1.6, 40):
        process = start(tmp_path, picture_folder)
        time.sleep(delay)
        kill(process)
        if (tmp_path / "out" / "manifest.json").exists():
            check(tmp_path / "out")
    finish_killed(tmp_path, picture_folder)


def test_a_full_disk_stops_the_build_and_the_next_one_continues(tmp_path, problem_file):
    """A limit on file sizes stands for a full disk; it holds for the worker processes too."""
    out = tmp_path / "out"
    arguments = f"build mathematics --raw {problem_file} --split train --out {out} --workers 1"
    command = f"ulimit -f 4; exec {sys.executable} -m data_prep {arguments}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert "File too large. Free some space or check the permissions" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (out / "manifest.json").exists()
    assert not list(out.rglob("*.tmp"))
    result = subprocess.run(
        [sys.executable, "-m", "data_prep", *arguments.split()], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    check(out)
