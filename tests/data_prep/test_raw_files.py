import io
import os
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_prep.folders import walk
from data_prep.raw_files import (
    Entry,
    _ending,
    close_all,
    from_line,
    from_lines,
    list_items,
    read_batches,
    read_entry,
)

ENDINGS = frozenset({".jpg"})


def add(tar, name, data=b"", kind=tarfile.REGTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname = kind, len(data), "elsewhere"
    tar.addfile(member, io.BytesIO(data))


def make_tar(path: Path, members) -> Path:
    with tarfile.open(path, "w") as tar:
        for member in members:
            add(tar, *member)
    return path


def contents(raw: Path) -> dict[str, bytes | str]:
    """Key -> bytes, or the reason for refusing it."""
    found: dict[str, bytes | str] = {}
    for entry in list_items(raw, ENDINGS):
        opened = {}
        try:
            found[entry.key] = read_entry(from_line(entry.line()), 100, opened)
        except ValueError as error:
            found[entry.key] = str(error)
        close_all(opened)
    return found


def test_a_folder_is_walked_in_sorted_order(tmp_path):
    for name in ("b/2.jpg", "b/1.JPG", "a.jpg", "b/notes.txt", "c.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    found = contents(tmp_path)
    assert list(found) == ["a.jpg", "b/1.JPG", "b/2.jpg"]
    assert found["b/2.jpg"] == b"b/2.jpg"


def test_tars_in_a_folder_and_alone(tmp_path):
    members = [("class/1.jpg", b"one"), ("key.json", b"{}"), ("key.cls", b"7"), ("key.jpg", b"two")]
    make_tar(tmp_path / "x.tar", members)
    (tmp_path / "y.jpg").write_bytes(b"three")
    assert contents(tmp_path) == {
        "x.tar/class/1.jpg": b"one",
        "x.tar/key.jpg": b"two",
        "y.jpg": b"three",
    }
    assert contents(tmp_path / "x.tar") == {"x.tar/class/1.jpg": b"one", "x.tar/key.jpg": b"two"}
    assert contents(tmp_path / "y.jpg") == {"y.jpg": b"three"}


@pytest.mark.parametrize("name", ["inner.tar", "a/inner.TAR.gz", "more.zip", "x.tgz"])
def test_archives_inside_of_a_tar_are_damage(tmp_path, name):
    """Nobody knows how many items are in it."""
    make_tar(tmp_path / "x.tar", [("a.jpg", b"1"), (name, b"abcd"), ("b.jpg", b"2")])
    passed_over = Counter()
    found = list(list_items(tmp_path / "x.tar", ENDINGS, passed_over))
    assert [(each.key, each.damaged) for each in found] == [
        ("x.tar/a.jpg", False), (f"x.tar/{name}", True), ("x.tar/b.jpg", False),
    ]  # fmt: skip
    assert "an archive inside of a tar: unpack" in found[1].reason
    assert not passed_over


def test_long_and_strange_names(tmp_path):
    names = ["d" * 150 + "/" + "n" * 150 + ".jpg", "späße.jpg", "a b.jpg"]
    make_tar(tmp_path / "x.tar", [(name, b"1") for name in names])
    assert list(contents(tmp_path / "x.tar")) == [f"x.tar/{name}" for name in names]


def test_names_that_are_no_utf8(tmp_path):
    with tarfile.open(
        tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1"
    ) as tar:
        add(tar, "\xe9.jpg", b"1")
    assert contents(tmp_path / "x.tar") == {"x.tar/\\xe9.jpg": b"1"}


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (("../../x.jpg", b"1"), "points outside"),
        (("/etc/x.jpg", b"1"), "points outside"),
        (("a/../x.jpg", b"1"), "points outside"),
        (("x.jpg", b"", tarfile.SYMTYPE), "no plain file"),
        (("x.jpg", b"", tarfile.LNKTYPE), "no plain file"),
        (("x.jpg", b"", tarfile.CHRTYPE), "no plain file"),
        (("x.jpg", b"", tarfile.FIFOTYPE), "no plain file"),
        (("x.jpg", b"1" * 101), "101 bytes; at most 100 are read"),
    ],
)
def test_hostile_members_are_refused_and_the_rest_is_read(tmp_path, member, reason):
    make_tar(tmp_path / "x.tar", [("a.jpg", b"a"), member, ("z.jpg", b"z")])
    found = contents(tmp_path / "x.tar")
    assert len(found) == 3
    assert (found.pop("x.tar/a.jpg"), found.pop("x.tar/z.jpg")) == (b"a", b"z")
    assert reason in found.popitem()[1]
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"], "nothing is unpacked"


def test_folders_within_folders_deeper_than_python_calls(tmp_path):
    depth = sys.getrecursionlimit() + 200
    folders = [tmp_path.joinpath(*"d" * n) for n in range(1, depth + 1)]
    for folder in folders:
        folder.mkdir()
    (folders[-1] / "x.jpg").touch()
    (found,) = walk(str(tmp_path), "", lambda name: name.endswith(".jpg"), Counter())
    assert found.key == "d/" * depth + "x.jpg"
    (folders[-1] / "x.jpg").unlink()  # pytest's own way to remove folders calls itself
    for folder in reversed(folders):
        folder.rmdir()


def test_links_and_pipes_in_a_folder_are_refused(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a.jpg")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    found = contents(tmp_path)
    assert found.pop("a.jpg") == b"a"
    assert "symbolic link" in found["link.jpg"]
    assert "symbolic link" in found["loop"]
    assert "not a plain file" in found["pipe.jpg"]
    assert len(found) == 3


def test_a_file_replaced_by_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "x.jpg")
    opened = {}
    with pytest.raises(ValueError, match="not a plain file"):
        read_entry(Entry(str(tmp_path / "x.jpg"), 0, 5, "x.jpg"), 100, opened)
    close_all(opened)


def test_a_file_that_shrank_or_went_is_refused(tmp_path):
    path = tmp_path / "x.jpg"
    path.write_bytes(b"12")
    opened = {}
    with pytest.raises(ValueError, match="cut off: 2 bytes of 5"):
        read_entry(Entry(str(path), 0, 5, "x.jpg"), 100, opened)
    close_all(opened)
    path.unlink()
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_entry(Entry(str(path), 0, 5, "x.jpg"), 100, {})


@pytest.mark.parametrize("keep", [600, 1400, 1536, 1600, 2000, 2400])
def test_a_cut_off_tar_says_so(tmp_path, keep):
    """Members of 512 + 1024 bytes; wherever it is cut, a refused entry names the file."""
    data = [bytes([65 + number]) * 90 for number in range(3)]
    path = make_tar(
        tmp_path / "x.tar", [(f"{n}.jpg", each + bytes(500)) for n, each in enumerate(data)]
    )
    os.truncate(path, keep)
    entries = list(list_items(path, ENDINGS))
    (damaged,) = (entry for entry in entries if entry.damaged)
    assert damaged.key == "x.tar"
    assert "cut off" in damaged.reason or "damaged" in damaged.reason
    assert from_line(damaged.line()) == damaged
    for entry in entries:
        if not entry.reason:
            assert entry.offset + entry.size <= keep


def test_no_tar_at_all(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"this is no tar" * 100)
    (entry,) = list_items(tmp_path / "x.tar", ENDINGS)
    assert "damaged after 0 items" in entry.reason


@pytest.mark.parametrize("name", ["x.zip", "nothing", "nothing.tar"])
def test_other_paths_are_refused(tmp_path, name):
    (tmp_path / "x.zip").write_bytes(b"PK")
    with pytest.raises(
        ValueError, match="wanted a folder of pictures, a .tar, or a folder of .tar files"
    ):
        list(list_items(tmp_path / name, ENDINGS))


def test_lines_of_a_listing():
    entries = [
        Entry('a "tar"\n.tar', 512, 10**15, "späße\\\t.jpg"),
        Entry("x", 0, 0, "\udcff.jpg", 'a reason, with "quotes"'),
        Entry("x", 0, 0, "x.tar", "cut off", damaged=True),
    ]
    lines = [entry.line() for entry in entries]
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    assert [from_line(line) for line in lines] == from_lines(b"".join(lines)) == entries
    assert from_lines(b"") == []


@pytest.mark.parametrize(
    "name",
    ["a.JPG", ".jpg", "a/.jpg", "..jpg", "a..jpg", "a.jpg/b", "a.b/jpg", "jpg", "a.", "a/..jpg"],
)
def test_endings_are_those_of_the_standard_library(name):
    assert _ending(name) == os.path.splitext(name)[1].lower()


def test_items_are_read_together_as_one_by_one(tmp_path):
    """Members of a tar in one go, in any order, among files, refused entries, and ones that are no longer whole."""
    random = np.random.default_rng(0)
    make_tar(
        tmp_path / "x.tar",
        [(f"{n}.jpg", random.bytes(random.integers(0, 3000))) for n in range(700)]
        + [("large.jpg", random.bytes(3 << 20)), ("larger.jpg", random.bytes(5 << 20))]
        + [(f"z{n}.jpg", b"%d" % n) for n in range(20)],
    )
    (tmp_path / "y.jpg").write_bytes(b"alone")
    (tmp_path / "link.jpg").symlink_to("y.jpg")
    entries = list(list_items(tmp_path, ENDINGS))
    entries += [Entry(str(tmp_path / "gone.jpg"), 0, 5, "gone.jpg")]
    entries += [entries[7]._replace(offset=1 << 40), *reversed(entries[:50]), entries[3]]
    limit = 4 << 20
    good, bad = [], []
    for batch, refused in read_batches(entries, limit):
        assert len(batch) + len(refused) <= 256
        good += batch
        bad += [(entry, str(error)) for entry, error in refused]
    opened, alone, reasons = {}, [], []
    for entry in entries:
        try:
            alone.append((entry, read_entry(entry, limit, opened)))
        except ValueError as error:
            reasons.append((entry, str(error)))
    close_all(opened)
    assert good == alone
    assert bad == reasons
    assert [entry.key for entry, _ in bad] == [
        "link.jpg",
        "x.tar/larger.jpg",
        "gone.jpg",
        entries[7].key,
        "link.jpg",
    ]


def fuzz_tar(tmp_path: Path, times: int) -> None:
    """Whatever is done to a tar, listing it ends, and what is listed lies inside the file."""
    path = make_tar(tmp_path / "x.tar", [(f"{n}.jpg", bytes([n]) * (50 * n)) for n in range(8)])
    good = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(times):
        data = bytearray(good)
        for place in random.integers(0, len(data), random.integers(1, 12)):
            data[place] = random.integers(0, 256)
        path.write_bytes(
            data[: random.integers(1, len(data) + 1)] if random.random() < 0.3 else data
        )
        for entry in list_items(path, ENDINGS):
            assert (
                entry.reason
                or 0 <= entry.offset <= entry.offset + entry.size <= path.stat().st_size
            )


def test_mutated_tars(tmp_path):
    fuzz_tar(tmp_path, 200)


@pytest.mark.long
def test_many_mutated_tars(tmp_path):
    fuzz_tar(tmp_path, 5000)


def test_what_is_of_no_use_is_counted_and_archives_are_damage(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    for name in ("a.JPG", "b.txt", "c.txt", "d", "e.TAR.GZ", "f.zip"):
        (folder / name).write_bytes(b"x")
    with tarfile.open(folder / "g.tar", "w") as tar:
        add(tar, "1.jpg", b"x")
        add(tar, "1.cls", b"x")
    passed_over = Counter()
    entries = list(list_items(folder, ENDINGS, passed_over))
    assert passed_over == {".txt": 2, "no ending": 1, ".cls": 1}
    assert [entry.key for entry in entries] == ["a.JPG", "e.TAR.GZ", "f.zip", "g.tar/1.jpg"]
    assert [entry.damaged for entry in entries] == [False, True, True, False]


def test_a_name_with_a_nul_byte_is_refused(tmp_path):
    """Only a pax header can say so; keys are kept with NULs between them."""
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("ok.jpg")
        member.pax_headers = {"path": "a\0b.jpg"}
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
        add(tar, "c.jpg", b"x")
    first, second = list_items(path, ENDINGS)
    assert (first.key, first.reason) == (
        "x.tar/a\\x00b.jpg", "a tar member whose name holds a NUL byte"
    )  # fmt: skip
    assert (second.key, second.reason) == ("x.tar/c.jpg", "")
