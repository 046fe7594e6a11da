"""Documents out of text files: plain, compressed, damaged, hostile; cut for workers without losing a byte."""

import gzip
import io
import json
import os
import random
import struct
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
import zstandard

from data_prep import documents
from data_prep.documents import Text, plan_documents, read_piece, read_stretch, stretches
from data_prep.domain import Refusal

ENDINGS = ["", ".gz", ".zst"]


def pack(ending: str, data: bytes) -> bytes:
    if ending == ".gz":
        return gzip.compress(data)
    return zstandard.ZstdCompressor().compress(data) if ending == ".zst" else data


def read(raw: Path) -> list[Text | Refusal]:
    return [found for stretch in stretches(raw) for found in read_stretch(stretch)]


def texts(raw: Path) -> list[str]:
    return [found.text for found in read(raw) if isinstance(found, Text)]


def reasons(raw: Path) -> list[str]:
    """ "file, line N: reason" of what is refused, ! for damaged."""
    refused = [found for found in read(raw) if isinstance(found, Refusal)]
    return [f"{'!' * each.damaged}{each.key}: {each.reason}" for each in refused]


def lines_of(*texts: str) -> bytes:
    return b"".join(json.dumps({"id": 1, "text": text}).encode() + b"\n" for text in texts)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_line_of_json_is_a_document(tmp_path, ending):
    path = tmp_path / f"x.jsonl{ending}"
    path.write_bytes(pack(ending, lines_of("one\ntwo", " \u00e9\u4e2d ", "three").rstrip(b"\n")))
    assert read(path) == [
        Text("x.jsonl" + ending + ", line 1", "one\ntwo"),
        Text("x.jsonl" + ending + ", line 2", " \u00e9\u4e2d "),
        Text("x.jsonl" + ending + ", line 3", "three"),
    ]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_small_text_file_is_one_document_as_it_is(tmp_path, ending):
    path = tmp_path / f"x.txt{ending}"
    path.write_bytes(pack(ending, b"  a\r\n\r\n\tb \n\n"))
    assert texts(path) == ["  a\r\n\r\n\tb \n\n"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_large_text_file_is_cut_behind_lines(tmp_path, ending, monkeypatch):
    monkeypatch.setattr(documents, "PART", 10)
    path = tmp_path / f"x.txt{ending}"
    path.write_bytes(pack(ending, b"one\ntwo\nthree\n\nfour\nfive and six\nseven"))
    assert texts(path) == ["one\ntwo\nthree\n", "\nfour\nfive and six\n", "seven"]
    assert [found.key.split(", ")[1] for found in read(path)] == ["line 1", "line 4", "line 7"]


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl"])
def test_cutting_a_file_for_workers_loses_nothing(tmp_path, name, monkeypatch):
    """Every stretch begins with a line, and knows its number; the documents of .jsonl do not depend on the cuts."""
    draw = random.Random(0)
    made = ["x" * draw.choice([1, 5, 40, 300]) + str(number) for number in range(200)]
    path = tmp_path / name
    path.write_bytes(lines_of(*made) if name == "x.jsonl" else "\n".join(made).encode())
    monkeypatch.setattr(documents, "PART", 30)
    whole = read(path)
    for size in (1, 64, 256, 5000):
        monkeypatch.setattr(documents, "_STRETCH", size)
        cut = list(stretches(path))
        assert (cut[0].start, cut[-1].stop) == (0, path.stat().st_size)
        assert all(a.stop == b.start for a, b in zip(cut, cut[1:], strict=False))
        assert len(cut) > 1
        if name == "x.jsonl":
            assert read(path) == whole
        assert "".join(texts(path)) == ("".join(made) if name == "x.jsonl" else "\n".join(made))
        for found in read(path):
            number = int(found.key.split("line ")[1]) - 1
            assert found.text.startswith(made[number])


def test_folders_are_read_in_order(tmp_path):
    for name in (
        "b/2.txt",
        "b/10.txt",
        "a.jsonl",
        "c.txt.gz",
        "other.csv",
        "d.tar.gz",
        "b/e.txt.zst",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        ending = path.suffix if path.suffix in ENDINGS else ""
        path.write_bytes(pack(ending, lines_of(name) if "jsonl" in name else name.encode()))
    assert texts(tmp_path) == ["a.jsonl", "b/10.txt", "b/2.txt", "b/e.txt.zst", "c.txt.gz"]
    assert read(tmp_path)[1].key == f"{tmp_path.name}/b/10.txt, line 1"


def test_pieces_hold_all_stretches_once(tmp_path, monkeypatch):
    folder, listing = tmp_path / "raw", tmp_path / "listing"
    folder.mkdir()
    for number in range(50):
        (folder / f"{number:02d}.txt").write_bytes(b"x" * 30)
    (folder / "10.txt").write_bytes(b"")
    (folder / "20.txt.gz").write_bytes(b"")
    monkeypatch.setattr(documents, "_STRETCH", 100)
    monkeypatch.setattr(documents, "_MOST_FILES", 3)
    pieces = list(plan_documents(folder, listing))
    assert len(pieces) == 17
    assert [found for piece in pieces for found in read_piece(piece)] == read(folder)
    assert [each.key for piece in pieces for each in piece.damage] == ["raw/20.txt.gz"]
    first = listing.read_bytes()
    assert list(plan_documents(folder, listing)) == pieces
    assert listing.read_bytes() == first


# --- what is no document


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a', "not JSON: Invalid control character at character 12"),
        (b'{"text": "a\x00b"}', "NUL byte in line 2"),
        (b'{"text": "a\xffb"}', "not UTF-8: byte 0xff in line 2"),
        (b'{"text": "a\\u0000b"}', "holds a NUL character"),
        (b'{"text": "a\\ud800b"}', "half a surrogate pair: no valid Unicode"),
        (b'{"text": ""}', "empty document"),
        (b'{"text": " \\n\\t"}', "empty document"),
        (b'{"text": 7}', 'field "text" is no text but a int'),
        (b'{"text": null}', 'field "text" is no text but a NoneType'),
        (b'{"body": "a", "id": 1}', 'no field "text"; there are: body, id'),
        (b"{}", 'no field "text"; there are: none'),
        (b'["text"]', "JSON that is no object but a list"),
        (b"[" * 100_000, "JSON that is nested too deeply"),
        (b'{"text": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (b'\xef\xbb\xbf{"text": "a"}', "not JSON: Unexpected UTF-8 BOM"),
    ],
)
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_bad_line_is_refused_with_its_number_and_the_rest_is_read(tmp_path, line, reason, ending):
    path = tmp_path / f"x.jsonl{ending}"
    path.write_bytes(pack(ending, lines_of("before") + line + b"\n  \n" + lines_of("behind")))
    assert texts(path) == ["before", "behind"]
    (refused,) = reasons(path)
    assert refused.startswith(f"x.jsonl{ending}, line 2: {reason}")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "x.txt: empty file"),
        (b" \n\n", "x.txt, line 1: empty document"),
        (b"one\ntwo \xc3\n", "x.txt, line 1: not UTF-8: byte 0xc3 in line 2"),
        (b"one\n\ntwo \x00\n", "x.txt, line 1: NUL byte in line 3"),
        ("utf-16".encode("utf-16"), "x.txt, line 1: NUL byte in line 1"),
    ],
)
def test_a_bad_text_file_is_refused(tmp_path, data, reason):
    path = tmp_path / "x.txt"
    path.write_bytes(data)
    assert reasons(path) == [reason]
    assert texts(path) == []


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", ["x.jsonl", "x.txt"])
def test_a_huge_line_is_refused_without_holding_it(tmp_path, name, ending, monkeypatch):
    monkeypatch.setattr(documents, "LONGEST", 1 << 16)
    monkeypatch.setattr(documents, "PART", 1 << 10)
    path = tmp_path / f"{name}{ending}"
    good = lines_of("good") if name == "x.jsonl" else b"good\n" * 300
    path.write_bytes(pack(ending, good + b"x" * (64 << 20) + b"\n" + good))
    tracemalloc.start()
    try:
        found = read(path)
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    refused = [each for each in found if isinstance(each, Refusal)]
    assert [each.reason for each in refused] == ["longer than 65536 bytes"]
    behind = 3 if name == "x.jsonl" else 302
    assert found[-1].key.endswith(f"line {behind}") or name == "x.txt"
    assert "".join(each.text for each in found if isinstance(each, Text)).endswith(
        "good" + "\n" * (name == "x.txt")
    )
    assert held < 64 << 20


def test_links_and_pipes_are_refused(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    (tmp_path / "there.txt").write_text("there")
    (folder / "link.txt").symlink_to(tmp_path / "there.txt")
    (folder / "linked").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.txt")
    assert texts(folder) == []
    assert [each.split(": ")[1][:15] for each in reasons(folder)] == [
        "a symbolic link", "a symbolic link", "not a plain fil",
    ]  # fmt: skip
    # Named by the user it is meant.
    assert texts(folder / "link.txt") == ["there"]


def test_endings_in_capitals_count_and_other_files_are_counted(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "A.TXT").write_text("a")
    (folder / "B.Jsonl.GZ").write_bytes(gzip.compress(b'{"text": "b"}'))
    (folder / "c.md").write_text("c")
    assert texts(folder) == ["a", "b"]
    passed_over = Counter()
    list(plan_documents(folder, tmp_path / "listing", passed_over))
    assert passed_over == {".md": 1}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(("name", "data"), [("x.txt", "word"), ("x.jsonl", '{"text": "word"}')])
def test_a_mark_at_the_beginning_of_a_file_is_no_text(tmp_path, ending, name, data):
    """What Windows' editors put there; further behind it is a character as any other."""
    path = tmp_path / (name + ending)
    path.write_bytes(pack(ending, f"\ufeff{data}\n".encode()))
    assert [text.strip() for text in texts(path)] == ["word"]


@pytest.mark.parametrize("name", ["missing.txt", "x.csv"])
def test_no_text_at_all(tmp_path, name):
    (tmp_path / "x.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"; wanted a file ending in \.txt .*Give --raw"):
        read(tmp_path / name)
    with pytest.raises(ValueError, match=r"holds no text; wanted files ending in .*Give --raw"):
        read(tmp_path)


# --- damage


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.999])
def test_a_cut_off_file_is_damaged(tmp_path, ending, kept):
    draw = random.Random(0)
    made = [str(draw.random()) * 20 for _ in range(3000)]
    data = pack(ending, lines_of(*made))
    path = tmp_path / f"x.jsonl{ending}"
    path.write_bytes(data[: int(kept * len(data))])
    assert reasons(path)[-1].startswith(f"!x.jsonl{ending}: ")
    found = texts(path)
    assert found == made[: len(found)]
    assert len(found) < len(made)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_mutated_compressed_files_are_read_or_refused(tmp_path, ending):
    draw = random.Random(3)
    whole = pack(ending, lines_of(*(f"document {draw.random()}" for _ in range(50))))
    path = tmp_path / f"x.jsonl{ending}"
    damaged = 0
    for _ in range(300):
        data = bytearray(whole)
        data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data)
        damaged += any(isinstance(each, Refusal) and each.damaged for each in read(path))
    assert damaged > 100


def test_a_file_that_is_no_compressed_file(tmp_path):
    for ending in (".gz", ".zst"):
        (tmp_path / f"x.txt{ending}").write_bytes(b"only text")
    first, second = reasons(tmp_path)
    assert first.startswith(f"!{tmp_path.name}/x.txt.gz: damaged or cut off (Not a gzipped file")
    assert second.startswith(f"!{tmp_path.name}/x.txt.zst: damaged or cut off (zstd")


def test_frames_and_members_in_a_row_are_one_file(tmp_path):
    """As pigz, pzstd and cat make them; zstd's skippable frames hold no text."""
    skipped = struct.pack("<II", 0x184D2A50, 4) + b"skip"
    parts = [lines_of("one"), lines_of("two"), lines_of("three")]
    (tmp_path / "x.jsonl.gz").write_bytes(b"".join(pack(".gz", each) for each in parts))
    frames = b"".join(skipped + pack(".zst", each) for each in parts) + skipped
    (tmp_path / "x.jsonl.zst").write_bytes(frames)
    assert texts(tmp_path) == ["one", "two", "three"] * 2


def test_a_zstd_bomb_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "LONGEST", 1 << 16)
    bomb = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(bomb, closefd=False) as stream:
        for _ in range(256):
            stream.write(bytes(1 << 20))
    path = tmp_path / "x.txt.zst"
    path.write_bytes(bomb.getvalue())
    tracemalloc.start()
    try:
        assert reasons(path) == ["x.txt.zst, line 1: longer than 65536 bytes"]
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A bite of input makes at most a quarter as many blocks of 2^17 bytes, which zstandard holds twice while joining
    # them; and the line is skipped by 1 MiB, which readline too holds twice.
    assert held < 2 * documents._BITE // 4 * (1 << 17) + 2 * (1 << 20) + (1 << 18)


@pytest.mark.parametrize("packed", [".gz", ".zst"])
@pytest.mark.parametrize("left", ["nothing", "a whole part"])
def test_a_compressed_file_cut_between_its_parts_is_damaged(tmp_path, packed, left):
    """Such a file looks whole from inside: several .gz or .zst one after another are one, and none are an empty one."""
    path = tmp_path / f"x.jsonl{packed}"
    first = pack(packed, lines_of("one"))
    path.write_bytes(first + pack(packed, lines_of("two")))
    (stretch,) = stretches(path)
    assert [found.text for found in read_stretch(stretch)] == ["one", "two"]
    path.write_bytes(first if left == "a whole part" else b"")
    *good, last = read_stretch(stretch)
    assert [found.text for found in good] == (["one"] if left == "a whole part" else [])
    assert last.damaged
    assert "it has become shorter since it was listed" in last.reason


def test_a_file_that_changed_since_the_plan_is_damaged(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(lines_of("one", "two", "three"))
    (stretch,) = stretches(path)
    path.write_bytes(lines_of("one"))
    found = list(read_stretch(stretch))
    assert [type(each) for each in found] == [Text, Refusal]
    assert found[1].damaged
    assert "it has become shorter" in found[1].reason
    path.unlink()
    (gone,) = read_stretch(stretch)
    assert gone == Refusal("x.jsonl", "cannot be read: No such file or directory", damaged=True)
    os.mkfifo(path)
    (pipe,) = read_stretch(stretch)
    assert pipe.damaged
