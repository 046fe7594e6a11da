"""YFCC100M's table joined with folders and tars of photographs."""

import bz2
import gzip
import io
import json
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import BinaryIO

import pytest

from data_prep.domain import Block, Refusal, domain
from data_prep.domains import image
from data_prep.raw_files import Entry, close_all, read_entry
from data_prep.yfcc import list_photos, parse, photo_hash, split_raw

URL = b"http://farm7.staticflickr.com/6167/6162540254_5d22abd711.jpg"


def line(number: int, columns: int = 25, **changed: bytes) -> bytes:
    """One line of the table; `changed` names columns of the 25 as `at_9=b"..."`."""
    url = b"http://farm1.staticflickr.com/%d.jpg" % number
    fields = [b""] * 25
    fields[0], fields[1], fields[2] = (
        b"%d" % number,
        b"%d" % (1000 + number),
        photo_hash(url).encode(),
    )
    fields[8], fields[16], fields[24] = b"A+cat+%26+a+dog", url, b"0"
    for name, value in changed.items():
        fields[int(name[3:])] = value
    if columns == 23:
        del fields[2], fields[0]
    return b"\t".join(fields) + b"\n"


def place(number: int) -> str:
    name = photo_hash(b"http://farm1.staticflickr.com/%d.jpg" % number)
    return f"data/images/{name[:3]}/{name[3:6]}/{name}.jpg"


def put(folder: Path, number: int) -> None:
    path = folder / place(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"picture %d" % number)


def put_in_tar(path: Path, *numbers: int, prefix: str = "") -> None:
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            member = tarfile.TarInfo(prefix + place(number))
            member.size = len(data := b"picture %d" % number)
            tar.addfile(member, io.BytesIO(data))


def contents(table: Path, photos: Path, scratch: Path) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    opened: dict[str, BinaryIO] = {}
    for entry in list_photos(table, photos, scratch):
        found[entry.key] = entry.reason or read_entry(entry, 1000, opened)
    close_all(opened)
    return found


def test_the_hash_of_the_one_published_line():
    assert photo_hash(URL) == "4ccb23d8746b8d9d76ffd603fc7988"


def test_the_real_lines(sample_data):
    (new,) = (sample_data / "yfcc/yfcc_sample.tsv").read_bytes().splitlines()
    assert parse(new) == ("6162540254", "4ccb23d8746b8d9d76ffd603fc7988")
    old = (sample_data / "yfcc/yfcc_sample_old23.tsv").read_bytes().splitlines()
    wanted = (sample_data / "yfcc/yfcc_hash.tsv").read_text().splitlines()
    assert ["\t".join(parse(each)) for each in old] == wanted


@pytest.mark.parametrize("columns", [25, 23])
@pytest.mark.parametrize("way", ["folder", "tar", "tars"])
def test_lines_and_photographs_meet(tmp_path, columns, way):
    photos, table = tmp_path / "photos", tmp_path / "meta.tsv"
    photos.mkdir()
    table.write_bytes(b"".join(line(number, columns) for number in (3, 1, 2)))
    if way == "folder":
        for number in (1, 3, 9):
            put(photos, number)
    elif way == "tar":
        put_in_tar(photos / "a.tar", 1, 3, 9, prefix="./")
        photos = photos / "a.tar"
    else:
        put_in_tar(photos / "a.tar", 9, 1)
        put_in_tar(photos / "b.tar", 3, 1, prefix="bucket/")
    found = contents(table, photos, tmp_path)
    assert list(found.items()) == [  # in the order of the table
        ("1003", b"picture 3"),
        ("1001", b"picture 1"),
        (f"line 3, photo 1002, {place(2)}", "no such photograph"),
    ]
    assert not list(tmp_path.glob("*.sqlite3")), "the index of the tars is gone"


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_compressed_tables(tmp_path, ending, pack):
    put(tmp_path, 1)
    table = tmp_path / f"meta.tsv{ending}"
    whole = pack(line(1) * 5000)
    table.write_bytes(whole)
    assert contents(table, tmp_path, tmp_path) == {"1001": b"picture 1"}
    table.write_bytes(whole[: len(whole) // 2])
    *_, last = list_photos(table, tmp_path, tmp_path)
    assert last.damaged
    assert "cannot be read behind line" in last.reason


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (line(1, at_24=b"2"), "marker '2'; wanted a number, and 0"),
        (line(1, at_1=b""), "identifier ''"),
        (line(1, at_1=b"../1"), "identifier '../1'"),
        (b"1\t2\t3\n", "3 columns; wanted 25"),
        (line(1)[:-3] + b"\n", "24 columns"),
        (line(1, at_8=b"a\tb"), "26 columns"),
        (b"\n", "1 columns"),
        (line(1, at_9=b"100%"), "'100%' is not URL-encoded"),
        (line(1, 23, at_10=b"%zz"), "'%zz' is not URL-encoded"),
        (line(1, at_16=b"http://x/%2"), "is not URL-encoded"),
        (line(1, at_16=b"ftp://x"), "download URL 'ftp://x'"),
        (line(1, at_2=b"../../../etc/passwd"), "hash '../../../etc/passwd'; wanted 16 to 32"),
        (line(1, at_2=b"\xff\0"), r"hash '\\xff\x00'"),
        (line(1, at_9=b"x" * (3 << 20)), "longer than 1048576 bytes"),
    ],
    ids=range(14),
)
def test_lines_that_name_no_photograph(tmp_path, bad, reason):
    for number in (1, 2, 3):
        put(tmp_path, number)
    table = tmp_path / "meta.tsv"
    table.write_bytes(line(2) + bad + line(3).replace(b"\n", b"\r\n"))
    found = contents(table, tmp_path, tmp_path)
    assert list(found) == ["1002", "line 2", "1003"]
    assert reason in str(found["line 2"])


@pytest.mark.parametrize("columns", [25, 23])
def test_videos_are_passed_over(tmp_path, columns):
    """One line in 125 of the whole table is one: refused, they would eat the share that may be unusable."""
    put(tmp_path, 1)
    table = tmp_path / "meta.tsv"
    table.write_bytes(
        line(2, columns, at_24=b"1") + line(1, columns) + line(3, columns, at_24=b"1")
    )
    passed_over = Counter()
    found = list(list_photos(table, tmp_path, tmp_path, passed_over))
    assert [(entry.key, entry.reason) for entry in found] == [("1001", "")]
    assert passed_over == {"videos of the table": 2}


def test_links_and_tars_with_damage(tmp_path):
    table = tmp_path / "meta.tsv"
    table.write_bytes(line(1) + line(2))
    put(tmp_path, 2)
    (tmp_path / place(1)).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place(1)).symlink_to(tmp_path / place(2))
    found = contents(table, tmp_path, tmp_path)
    assert found["line 1, photo 1001"] == "not a plain file (link, device, socket or pipe)"
    assert found["1002"] == b"picture 2"
    put_in_tar(tmp_path / "x.tar", 1, 2)
    (tmp_path / "x.tar").write_bytes((tmp_path / "x.tar").read_bytes()[:1024])
    damaged, one, two = list_photos(table, tmp_path / "x.tar", tmp_path)
    assert damaged.damaged
    assert (one.reason, two.reason) == ("", "no such photograph")


def test_which_raw_is_a_table(tmp_path):
    assert split_raw("a/meta.tsv:/photos") == (Path("a/meta.tsv"), Path("/photos"))
    assert split_raw("a:b/yfcc.bz2:c:d") == (Path("a:b/yfcc.bz2"), Path("c:d"))
    for other in ("photos", "photos.tar", "C:photos", "a.tsv", "generator:interpolate"):
        assert split_raw(other) is None
    (tmp_path / "a.tsv:b").mkdir()
    assert split_raw(str(tmp_path / "a.tsv:b")) is None


@pytest.mark.parametrize("missing", ["meta.tsv", "photos"])
def test_paths_that_are_not_there(tmp_path, missing):
    here = domain("image-8x8")
    for name in {"meta.tsv", "photos"} - {missing}:
        (tmp_path / name).write_bytes(b"")
    raw = f"{tmp_path}/meta.tsv:{tmp_path}/photos"
    with pytest.raises(ValueError, match=rf"{missing} does not exist; wanted .*Check both paths"):
        list(image.plan(here, raw, None, tmp_path / "listing"))


def test_real_photographs_in_the_layout_of_the_bucket(sample_data, tmp_path):
    """The 14 constructed lines meet their photographs out of the caption tars, from a folder and from a tar alike."""
    lines = (sample_data / "yfcc/yfcc_like_from_coco.tsv").read_bytes().splitlines()
    wanted = {each.split(b"\t")[16].decode(): parse(each) for each in lines}
    found: dict[str, bytes] = {}
    for tar in sorted((sample_data / "captions").glob("*.tar")):
        with tarfile.open(tar) as source:
            files = {member.name: source.extractfile(member).read() for member in source}
        for name, data in files.items():
            url = name.endswith(".json") and json.loads(data).get("url")
            if url in wanted:
                photo = wanted[url].hash
                path = f"data/images/{photo[:3]}/{photo[3:6]}/{photo}.jpg"
                found[path] = files[name.removesuffix("json") + "jpg"]
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for path, data in found.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(data)
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    table = sample_data / "yfcc/yfcc_like_from_coco.tsv"
    blocks = [
        pixels(f"{table}:{photos}", tmp_path) for photos in (tmp_path, tmp_path / "photos.tar")
    ]
    assert [sorted(block) for block in blocks] == [sorted(each[0] for each in wanted.values())] * 2
    assert blocks[0] == blocks[1]


def pixels(raw: str, tmp_path: Path) -> dict[str, bytes]:
    """Key -> tokens of every photograph; none may be refused."""
    here = domain("image-16x16")
    found: dict[str, bytes] = {}
    for piece in image.plan(here, raw, None, tmp_path / "listing"):
        for each in image.read(here, piece, 0, None):
            assert isinstance(each, Block), each
            found |= {key: row.tobytes() for key, row in zip(each.keys, each.tokens, strict=True)}
    return found


def test_refusals_reach_the_reader(tmp_path):
    put(tmp_path, 1)  # no picture
    (tmp_path / "meta.tsv").write_bytes(line(1) + line(2) + line(3, at_24=b"2"))
    here, raw = domain("image-8x8"), f"{tmp_path}/meta.tsv:{tmp_path}"
    (piece,) = image.plan(here, raw, None, tmp_path / "listing")
    found = list(image.read(here, piece, 0, None))
    assert all(isinstance(each, Refusal) for each in found)
    reasons = {each.key: each.reason for each in found}
    assert reasons.keys() == {"1001", f"line 2, photo 1002, {place(2)}", "line 3"}
    assert "not a readable picture" in reasons["1001"]
    assert "marker '2'" in reasons["line 3"]


def test_an_entry_has_the_identifier_as_its_key(tmp_path):
    put(tmp_path, 7)
    (tmp_path / "meta.tsv").write_bytes(line(7))
    (entry,) = list_photos(tmp_path / "meta.tsv", tmp_path, tmp_path)
    assert entry == Entry(f"{tmp_path}/{place(7)}", 0, 9, "1007")


def test_a_full_disk_under_the_list_of_photographs_is_a_message(tmp_path):
    """A limit on file sizes stands for a full disk; SQLite needs more than 4 KiB at once."""
    table, out = tmp_path / "meta.tsv", tmp_path / "out"
    table.write_bytes(line(1))
    put_in_tar(tmp_path / "x.tar", 1)
    command = (
        f"{sys.executable} -m data_prep build image-8x8 --raw {table}:{tmp_path}/x.tar --out {out}"
    )
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 4; exec {command}"], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "SQLite cannot keep the list of photographs there" in done.stderr
    assert "Free some space, then run the same command again." in done.stderr
    assert "Traceback" not in done.stderr
