"""Pictures with captions: which belong together, in tars, folders and tables; hostile ones are refused with reasons."""

import json
import os
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_prep.caption_table import LONGEST_LINE
from data_prep.domain import Refusal
from data_prep.pairs import MAX_CAPTION, MAX_CAPTIONS, Captioned, plan_pairs, read_pairs
from tests.data_prep.conftest import add_member, picture_bytes


def read(raw: Path) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """(key -> captions, key -> reason) of everything below `raw`, the pieces in turn."""
    pairs: dict[str, tuple[str, ...]] = {}
    refused: dict[str, str] = {}
    listing = raw.parent / "listing.jsonl"
    for piece in plan_pairs(raw, listing):
        for found in read_pairs(piece):
            if isinstance(found, Refusal):
                assert found.key not in refused
                refused[found.key] = found.reason
            else:
                assert found.key not in pairs
                pairs[found.key] = found.captions
    return pairs, refused


def folder_of(tmp_path: Path, files: dict[str, bytes]) -> Path:
    folder = tmp_path / "raw"
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            add_member(tar, name, data)
    return path


PICTURE = picture_bytes(0)
WHOLE = {
    "0.jpg": PICTURE, "0.txt": b"a dog\n", "0.json": b'{"caption": "a dog", "captions": ["a dog", "ein Hund"]}',
    "1.png": picture_bytes(1), "1.txt": "été".encode(),
    "2.JPEG": picture_bytes(2), "2.json": b'{"caption": "a cat", "width": 3}',
}  # fmt: skip
EXPECTED = {"0.jpg": ("a dog", "ein Hund"), "1.png": ("été",), "2.JPEG": ("a cat",)}


@pytest.mark.parametrize("how", ["folder", "tar", "folder of tars", "classes"])
def test_files_of_one_name_belong_together(tmp_path, how):
    if how == "folder":
        raw, prefix = folder_of(tmp_path, WHOLE), ""
    elif how == "classes":
        raw, prefix = (
            folder_of(tmp_path, {f"a.b/c/{name}": WHOLE[name] for name in WHOLE}),
            "a.b/c/",
        )
    else:
        raw = tmp_path / "tars"
        raw.mkdir()
        prefix, tar = "shard.tar/", tar_of(raw / "shard.tar", WHOLE)
        raw = tar if how == "tar" else raw
    pairs, refused = read(raw)
    assert refused == {}
    assert pairs == {prefix + name: captions for name, captions in EXPECTED.items()}


def test_the_bytes_are_those_of_the_picture(tmp_path):
    raw = tar_of(tmp_path / "x.tar", WHOLE)
    found = [each for piece in plan_pairs(raw, tmp_path / "listing") for each in read_pairs(piece)]
    assert [each.picture for each in found if isinstance(each, Captioned)] == [
        WHOLE["0.jpg"], WHOLE["1.png"], WHOLE["2.JPEG"]
    ]  # fmt: skip


def test_pieces_never_cut_a_pair(tmp_path):
    files = {}
    for number in range(600):
        files |= {f"{number:04d}.png": b"x", f"{number:04d}.txt": f"caption {number}".encode()}
    raw = tar_of(tmp_path / "x.tar", files)
    pieces = list(plan_pairs(raw, tmp_path / "listing"))
    assert len(pieces) == 3
    found = [list(read_pairs(piece)) for piece in pieces]
    assert [len(each) for each in found] == [256, 256, 88]
    flat = [each.captions for each in sum(found, [])]
    assert flat == [(f"caption {number}",) for number in range(600)]


@pytest.mark.parametrize(
    ("files", "key", "reason"),
    [
        ({"a.jpg": PICTURE}, "a.jpg", "a picture without a caption"),
        ({"a.jpg": PICTURE, "a.json": b'{"caption": null}'}, "a.jpg", "a picture without a caption"),
        ({"a.txt": b"words"}, "a.txt", "no picture beside it"),
        ({"a.jpg": PICTURE, "a.txt": b"a\xffb"}, "a.txt", "not UTF-8: byte 0xff at 1"),
        ({"a.jpg": PICTURE, "a.txt": b"a\0b"}, "a.txt", "a caption with a NUL character"),
        ({"a.jpg": PICTURE, "a.txt": b" \n"}, "a.txt", "a caption that is empty"),
        ({"a.jpg": PICTURE, "a.txt": b""}, "a.txt", "a caption that is empty"),
        ({"a.jpg": PICTURE, "a.txt": b"x" * (MAX_CAPTION + 1)}, "a.txt", "65537 bytes; at most 65536 are read"),
        ({"a.jpg": PICTURE, "a.json": b'{"caption": '}, "a.json", "broken JSON: "),
        ({"a.jpg": PICTURE, "a.json": b"[" * 200_000}, "a.json", "broken JSON: "),
        ({"a.jpg": PICTURE, "a.json": b'{"caption": 1' + b"0" * 5000 + b"}"}, "a.json", "broken JSON: "),
        ({"a.jpg": PICTURE, "a.json": b'{"caption": "\xff"}'}, "a.json", "not UTF-8: byte 0xff at 13"),
        ({"a.jpg": PICTURE, "a.json": b'["a dog"]'}, "a.json", "JSON that holds a list; wanted an object"),
        ({"a.jpg": PICTURE, "a.json": b'{"captions": ""}'}, "a.json", "JSON whose `captions` is a str; wanted a list"),
        ({"a.jpg": PICTURE, "a.json": b'{"caption": 3}'}, "a.json", "a caption of type int; wanted text"),
        ({"a.jpg": PICTURE, "a.json": b'{"caption": "\\ud83d"}'}, "a.json", "a caption with half a surrogate pair"),
        ({"a.jpg": PICTURE, "a.json": b" " * (1 << 20) + b"{}"}, "a.json", "1048578 bytes; at most 1048576 are read"),
    ],
)  # fmt: skip
def test_what_is_no_pair_is_refused_once(tmp_path, files, key, reason):
    pairs, refused = read(folder_of(tmp_path, files))
    assert pairs == {}
    assert list(refused) == [key]
    assert reason in refused[key]


def test_a_bad_caption_does_not_cost_the_good_ones(tmp_path):
    captions = ["one", "", "two", 3, "one", " two "]
    files = {"a.jpg": PICTURE, "a.json": json.dumps({"captions": captions}).encode()}
    listing = tmp_path / "listing"
    (piece,) = plan_pairs(folder_of(tmp_path, files | {"a.txt": b"\xff"}), listing)
    found = list(read_pairs(piece))
    assert [each.captions for each in found if isinstance(each, Captioned)] == [("one", "two")]
    refused = [each for each in found if isinstance(each, Refusal)]
    assert [each.reason for each in refused] == [
        "a caption that is empty", "a caption of type int; wanted text",
        "a caption that is not UTF-8: byte 0xff at 0",
    ]  # fmt: skip
    assert all(each.partial for each in refused), "the raw item counts as usable"


def test_a_picture_whose_captions_are_all_bad_is_refused_once(tmp_path):
    files = {"a.jpg": PICTURE, "a.json": b'{"captions": ["", 3, "\\ud83d"]}'}
    (piece,) = plan_pairs(folder_of(tmp_path, files), tmp_path / "listing")
    assert [each.partial for each in read_pairs(piece)] == [False, True, True]


def test_every_line_of_a_table_is_a_raw_item(tmp_path):
    lines = ["p/a.jpg\tone", "p/a.jpg\ttwo", "p/a.jpg", "p/none\tone", "p/none\ttwo"]
    table = table_of(tmp_path, lines)
    found = [each for piece in plan_pairs(table, tmp_path / "x") for each in read_pairs(piece)]
    (pair,) = (each for each in found if isinstance(each, Captioned))
    refused = [each for each in found if isinstance(each, Refusal)]
    assert len(pair.captions) + len(refused) == len(lines)
    assert not any(pair.continues(number) for number in range(2))
    assert [each.reason for each in refused if "p/none" in each.key] == [
        "no such picture below the folder of the table"
    ] * 2
    starts = [sum(len(line) + 1 for line in ["image\tcaption", *lines[:n]]) for n in range(5)]
    assert [each.key for each in refused] == [
        f"pairs.tsv, byte {starts[2]}",
        f"pairs.tsv, byte {starts[3]}, p/none", f"pairs.tsv, byte {starts[4]}, p/none",
    ]  # fmt: skip
    unreadable = pair.refused("no picture")
    assert [each.key for each in unreadable] == [
        f"pairs.tsv, byte {n}, p/a.jpg" for n in starts[:2]
    ]


def test_a_table_that_became_shorter_is_damage(tmp_path):
    table = table_of(tmp_path, ["p/a.jpg\tone"] * 9)
    (piece,) = plan_pairs(table, tmp_path / "listing")
    os.truncate(table, 60)
    (found,) = read_pairs(piece)
    assert found.damaged
    assert "become shorter" in found.reason


def test_a_second_picture_of_a_name_and_a_flood_of_captions_are_refused(tmp_path):
    many = json.dumps({"captions": [f"c{n}" for n in range(MAX_CAPTIONS + 1)]}).encode()
    raw = folder_of(tmp_path, {"a.jpg": PICTURE, "a.png": PICTURE, "b.jpg": PICTURE, "b.json": many,
                               "a.txt": b"x"})  # fmt: skip
    pairs, refused = read(raw)
    assert refused == {
        "a.png": "a second picture of this name beside a.jpg",
        "b.json": f"the picture has {MAX_CAPTIONS} captions before this one",
    }
    assert len(pairs["b.jpg"]) == MAX_CAPTIONS


def test_a_caption_of_two_gigabytes_is_refused_unread(tmp_path):
    """Holes in the files: as long as it says, but on no disk, and never in memory."""
    size = 1 << 31
    tar = tmp_path / "x.tar"
    with tar.open("wb") as stream:
        for name, length in (("a.txt", size), ("b.jpg", len(PICTURE)), ("b.txt", 3)):
            member = tarfile.TarInfo(name)
            member.size = length
            stream.write(member.tobuf())
            data = {"b.jpg": PICTURE, "b.txt": b"dog"}.get(name, b"")
            stream.write(data)
            stream.seek(-(-length // 512) * 512 - len(data), os.SEEK_CUR)
        stream.write(bytes(1024))
    pairs, refused = read(tar)
    assert pairs == {"x.tar/b.jpg": ("dog",)}
    assert refused == {"x.tar/a.txt": f"{size} bytes; at most {MAX_CAPTION} are read"}


def test_links_and_bad_names_are_refused(tmp_path):
    raw = folder_of(tmp_path, {"a.txt": b"x", "b.jpg": PICTURE, "b.txt": b"y"})
    os.symlink("/etc/passwd", raw / "a.jpg")
    with tarfile.open(raw / "x.tar", "w") as tar:
        add_member(tar, "../c.jpg", PICTURE)
        add_member(tar, "c.txt", b"z")
        add_member(tar, "d.jpg", kind=tarfile.SYMTYPE)
    pairs, refused = read(raw)
    assert pairs == {"b.jpg": ("y",)}
    assert "symbolic link" in refused["a.jpg"]
    assert "points outside the archive" in refused["x.tar/../c.jpg"]
    assert refused["x.tar/c.txt"].startswith("no picture beside it")
    assert "no plain file" in refused["x.tar/d.jpg"]


def test_a_tar_that_is_cut_off_is_damage(tmp_path):
    whole = tar_of(tmp_path / "x.tar", WHOLE).read_bytes()
    (tmp_path / "x.tar").write_bytes(whole[:3000])
    pieces = list(plan_pairs(tmp_path / "x.tar", tmp_path / "listing"))
    assert any(each.damaged for piece in pieces for each in piece.damage)
    found = [each for piece in pieces for each in read_pairs(piece)]
    assert any(isinstance(each, Refusal) and each.damaged for each in found)


@pytest.mark.parametrize("name", ["nothing", "x.parquet"])
def test_raw_data_without_pairs_is_refused(tmp_path, name):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(
        ValueError, match=f"{name}: (holds no pictures with captions|does not exist); wanted"
    ):
        list(plan_pairs(tmp_path / name, tmp_path / "listing"))  # fmt: skip


# --- tables


def table_of(tmp_path: Path, lines: list[str] | bytes, header: str = "image\tcaption") -> Path:
    folder = folder_of(tmp_path, {"p/a.jpg": PICTURE, "p/b.png": picture_bytes(1)})
    data = lines if isinstance(lines, bytes) else "".join(line + "\n" for line in lines).encode()
    path = folder / "pairs.tsv"
    path.write_bytes(header.encode() + b"\n" + data)
    return path


def test_a_table_names_pictures_with_or_without_their_ending(tmp_path):
    lines = ["p/a.jpg\ta dog", "p/a.jpg\tein Hund", "", 'p/b\ta "cat"', "p/a\ta dog, again"]
    pairs, refused = read(table_of(tmp_path, lines))
    assert refused == {}
    assert pairs == {
        "p/a.jpg": ("a dog", "ein Hund"), "p/b": ('a "cat"',), "p/a": ("a dog, again",),
    }  # fmt: skip


def test_columns_may_come_in_any_order_beside_others(tmp_path):
    header = "\ufeffurl\tcaption\timage\r"
    pairs, refused = read(table_of(tmp_path, ["http://x\ta dog\tp/a.jpg\r"], header))
    assert (pairs, refused) == ({"p/a.jpg": ("a dog",)}, {})


def test_hostile_lines_of_a_table_are_refused(tmp_path):
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(PICTURE)
    lines = [
        b"p/a.jpg", b"p/a.jpg\ta\tb", b"p/none.jpg\tx", b"../outside.jpg\tx", str(outside).encode() + b"\tx",
        b"p/link.jpg\tx", b"q/a.jpg\tx", b"p\tx", b"p/a.jpg\t\xff", b"p/a.jpg\ta\0b", b"p/a\0.jpg\tx", b"\tx",
        b"p/a.jpg\t ",
        b"n" * 5000 + b"\tx", b"p/a.jpg\t" + b"x" * LONGEST_LINE, b"p/a.jpg\t" + b"x" * (MAX_CAPTION + 1),
        b"p/a.jpg\tgood",
    ]  # fmt: skip
    table = table_of(tmp_path, b"\n".join(lines))
    os.symlink(outside, table.parent / "p/link.jpg")
    os.symlink(table.parent / "p", table.parent / "q")
    pairs, refused = read(table)
    assert pairs == {"p/a.jpg": ("good",)}
    assert list(refused.values()) == [
        "1 columns; the header has 2", "3 columns; the header has 2",
        "no such picture below the folder of the table", "a path that points outside the folder of the table",
        "a path that points outside the folder of the table", "not a plain file (link, device, socket or pipe)",
        "not a plain file (link, device, socket or pipe)", "no such picture below the folder of the table",
        "a caption that is not UTF-8: byte 0xff at 0", "a caption with a NUL character", "a path with a NUL character",
        "a path that is empty", "a caption that is empty", "no such picture below the folder of the table",
        f"a line of {LONGEST_LINE} bytes or more",
        f"a caption of {MAX_CAPTION + 1} characters; at most {MAX_CAPTION} are read",
    ]  # fmt: skip


def test_every_line_of_a_table_is_in_one_piece(tmp_path):
    """Long and short lines, with and without a last newline: cuts fall into lines and between them."""
    for seed, end in ((0, b""), (1, b"\n")):
        lengths = [(seed + 7919 * number) % 997 for number in range(400)]
        lines = [f"p/a.jpg\t{number} {'x' * length}" for number, length in enumerate(lengths)]
        table = table_of(tmp_path, "\n".join(lines).encode() + end)
        pieces = list(plan_pairs(table, tmp_path / "listing"))
        assert len(pieces) > 4
        found = [each for piece in pieces for each in read_pairs(piece)]
        captions = [caption for each in found for caption in each.captions]
        assert captions == [line.split("\t")[1].strip() for line in lines]


def test_a_line_of_two_gigabytes_is_refused_unread(tmp_path):
    table = table_of(tmp_path, b"p/a.jpg\tfirst\np/a.jpg\t")
    with table.open("r+b") as stream:
        stream.seek(1 << 31)
        stream.write(b"\np/b.png\tlast\n")
    pieces = list(plan_pairs(table, tmp_path / "listing"))
    assert len(pieces) == 2, "no piece lies inside of it"
    ends = [each for piece in pieces for each in read_pairs(piece)]
    assert [getattr(each, "captions", None) or each.reason for each in ends] == [
        ("first",), f"a line of {LONGEST_LINE} bytes or more", ("last",)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("image\tcaptions", r"columns 'image', 'captions'; wanted one 'image' and one 'caption', and there are 0 "
                            r"called 'caption'\. Separate them by tabs and rename column 'captions'"),
        ("image_path\tcaption", r"rename column 'image_path'"),
        ("image,caption", r"columns 'image,caption'; wanted"),
        ("a\tb", r"name them in its first line"),
        ("image\tcaption\tcaption", r"there are 2 called 'caption'"),
    ],
)  # fmt: skip
def test_a_table_without_the_columns_is_refused(tmp_path, header, said):
    with pytest.raises(ValueError, match=said):
        list(plan_pairs(table_of(tmp_path, ["p/a.jpg\tx"], header), tmp_path / "listing"))


def test_an_empty_table_and_a_missing_one_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no line below its header; wanted pairs"):
        list(plan_pairs(table_of(tmp_path, []), tmp_path / "listing"))
    with pytest.raises(ValueError, match=r"none\.tsv: does not exist; wanted a \.tsv"):
        list(plan_pairs(tmp_path / "none.tsv", tmp_path / "listing"))


def test_mutated_tars_give_pairs_or_reasons(tmp_path):
    """Random bytes changed anywhere: no crash and no hang."""
    random = np.random.default_rng(0)
    good, said = tar_of(tmp_path / "x.tar", WHOLE).read_bytes(), []
    for _ in range(150):
        data = bytearray(good)
        for place in random.integers(0, len(data), random.integers(1, 8)):
            data[place] = random.integers(0, 256)
        cut = random.integers(0, len(data)) if random.random() < 0.3 else len(data)
        (tmp_path / "x.tar").write_bytes(data[:cut])
        try:
            pieces = list(plan_pairs(tmp_path / "x.tar", tmp_path / "listing"))
        except ValueError as error:
            said.append(str(error))
            continue
        for found in (each for piece in pieces for each in read_pairs(piece)):
            assert found.reason if isinstance(found, Refusal) else found.captions
    assert all("x.tar: holds no pictures" in each for each in said)


def test_equal_lines_of_a_table_are_all_there(tmp_path):
    """A build then counts them as duplicates: nothing vanishes."""
    pairs, _ = read(table_of(tmp_path, ["p/a.jpg\ta dog", "p/a.jpg\ta dog", "p/a.jpg\tein Hund"]))
    assert pairs == {"p/a.jpg": ("a dog", "a dog", "ein Hund")}


def test_names_with_several_dots_meet_by_all_but_the_last_ending(tmp_path):
    """In a folder also where another name of the same beginning lies between them in the order of letters."""
    files = {"a.jpg": PICTURE, "a.k.jpg": PICTURE, "a.k.txt": b"two", "a.txt": b"one"}
    pairs, refused = read(folder_of(tmp_path, files))
    assert (pairs, refused) == ({"a.jpg": ("one",), "a.k.jpg": ("two",)}, {})


def test_files_of_a_pair_that_are_no_neighbours_in_a_tar_are_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, data in (
            ("a.jpg", PICTURE),
            ("b.jpg", PICTURE),
            ("a.txt", b"x"),
            ("b.txt", b"y"),
        ):
            add_member(tar, name, data)
    pairs, refused = read(tmp_path / "x.tar")
    assert pairs == {}
    assert sorted(refused) == [f"x.tar/{name}" for name in ("a.jpg", "a.txt", "b.jpg", "b.txt")]
    assert all("files of a pair follow one another" in reason for reason in refused.values())


def test_files_of_other_kinds_are_counted(tmp_path):
    raw = folder_of(tmp_path, {"a.jpg": PICTURE, "a.txt": b"x", "a.cls": b"3", "README": b"x"})
    passed_over = Counter()
    list(plan_pairs(raw, tmp_path / "listing", passed_over))
    assert passed_over == {".cls": 1, "no ending": 1}
