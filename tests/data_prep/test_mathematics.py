import gzip
import os
from collections import Counter

import numpy as np
import pytest

from data_prep import mathematics_files
from data_prep.domain import Item, Refusal, domain, family

MATHEMATICS = domain("mathematics")
FAMILY = family("mathematics")


def read_all(path) -> list[Item | Refusal]:
    pieces = list(FAMILY.plan(MATHEMATICS, str(path), None, path.parent / "listing"))
    return [item for piece in pieces for item in FAMILY.read(MATHEMATICS, piece, 0, None)]


def texts(items) -> list[tuple[str, ...]]:
    return [tuple(part.tobytes().decode() for _, part in item.document.parts) for item in items]


def test_lines_become_problems(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"What is 1 + 1?\n2\r\nWhat is 2 + 2?\r\n4\n")
    items = read_all(path)
    assert texts(items) == [("What is 1 + 1?\n", "2\n"), ("What is 2 + 2?\n", "4\n")]
    assert [mode for mode, _ in items[0].document.parts] == [0, 1]


def test_no_newline_at_the_end(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"1 + 1?\n2")
    assert texts(read_all(path)) == [("1 + 1?\n", "2\n")]


def test_equal_problems_have_equal_content(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"a\nb\na\nb\na\nc\n")
    first, second, third = (item.content for item in read_all(path))
    assert first == second != third


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        (b"a\nb\n\n\nc\nd\n", ["", "empty question", ""]),
        (b"a\nb\n \n\r\nc\nd\n", ["", "empty question", ""]),
        (b"a\xff\nb\nc\nd\n", ["question is not UTF-8: byte 0xff at 1", ""]),
        (b"a\n\x00\nc\nd\n", ["answer holds the control character '\\x00'", ""]),
        (b"a" * 70_000 + b"\nb\nc\nd\n", ["question longer than 65536 bytes", ""]),
        (b"a" * 65_537 + b"\nb\nc\nd\n", ["question longer than 65536 bytes", ""]),
        (b"a\nb\n\n", [""]),
    ],
)
def test_bad_lines_are_refused_and_the_rest_is_read(tmp_path, text, reasons):
    path = tmp_path / "x.txt"
    path.write_bytes(text)
    assert [item.reason if isinstance(item, Refusal) else "" for item in read_all(path)] == reasons


@pytest.mark.parametrize("size", [1, 4096])
@pytest.mark.parametrize("ending", [".txt", ".txt.gz"])
@pytest.mark.parametrize(
    ("text", "good", "reason"),
    [
        (b"\na\nb\nc\nd\n", 0, "out of step from line 1 on: line 1 is empty"),
        (b"\r\na\nb\nc\nd\n", 0, "out of step from line 1 on: line 1 is empty"),
        (b"a\nb\n\nc\nd\n", 1, "out of step from line 3 on: line 3 is empty"),
        (b"a\nb\nc\n\nd\n", 1, "out of step from line 3 on: line 4 is empty"),
        (b"a\nb\nc\n \t\nd\ne\n", 1, "out of step from line 3 on: line 4 is empty"),
        (b"a\nb\n\nc\nd\n\ne\nf\n", 1, "out of step from line 3 on: line 3 is empty"),
        (b"a\nb\nc\n", 0, "the file has 3 lines, an odd number"),
        (b"a\nb\nc", 0, "the file has 3 lines, an odd number"),
    ],
)
def test_behind_a_place_out_of_step_nothing_is_used(
    tmp_path, monkeypatch, text, good, reason, ending, size
):
    monkeypatch.setattr(FAMILY, "_PIECE_PROBLEMS", size)
    path = tmp_path / f"x{ending}"
    path.write_bytes(gzip.compress(text) if ending == ".txt.gz" else text)
    *items, last = read_all(path)
    assert texts(items) == [("a\n", "b\n")][:good]
    assert isinstance(last, Refusal)
    assert last.damaged
    assert last.reason.startswith(reason)


@pytest.mark.parametrize("block", [1, 2, 3, 5, 8])
def test_an_empty_line_is_seen_across_blocks(tmp_path, monkeypatch, block):
    monkeypatch.setattr(mathematics_files, "_BLOCK", block)
    path = tmp_path / "x.txt"
    pairs = [f"question {n}\n{n}\n".encode() for n in range(9)]
    for stray in (b"\n", b"   \r\n"):
        for place in range(9):
            path.write_bytes(b"".join([*pairs[:place], stray, *pairs[place:], b"to be even\n"]))
            *items, last = read_all(path)
            assert len(items) == place
            assert f"line {2 * place + 1} is empty" in last.reason
    path.write_bytes(b"".join(pairs))
    assert len(texts(read_all(path))) == 9


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_pieces_of_any_size_read_the_same(tmp_path, monkeypatch, size):
    path = tmp_path / "x.txt"
    path.write_text("".join(f"question {n}\n{n}\n" for n in range(20)))
    whole = texts(read_all(path))
    monkeypatch.setattr(FAMILY, "_PIECE_PROBLEMS", size)
    assert len(list(FAMILY.plan(MATHEMATICS, str(path), None, tmp_path))) == -(-20 // size)
    assert texts(read_all(path)) == whole
    assert len(whole) == 20


def test_folders_and_compressed_files(tmp_path):
    (tmp_path / "train-easy").mkdir()
    (tmp_path / "train-easy" / "b.txt").write_bytes(b"b\n1\n")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a\n1\n"))
    (tmp_path / "readme.md").write_bytes(b"x\n")
    pieces = list(FAMILY.plan(MATHEMATICS, str(tmp_path), None, tmp_path))
    found = [item for piece in pieces for item in FAMILY.read(MATHEMATICS, piece, 0, None)]
    assert texts(found) == [("a\n", "1\n"), ("b\n", "1\n")]
    assert found[1].document.key == "train-easy/b.txt, byte 0"


def test_links_and_pipes_are_refused_and_other_files_counted(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "A.TXT").write_bytes(b"\xef\xbb\xbfa\n1\n")
    (tmp_path / "there.txt").write_bytes(b"b\n2\n")
    (folder / "link.txt").symlink_to(tmp_path / "there.txt")
    os.mkfifo(folder / "pipe.txt")
    (folder / "readme.md").write_bytes(b"x\n")
    passed_over = Counter()
    pieces = list(FAMILY.plan(MATHEMATICS, str(folder), None, tmp_path, passed_over))
    found = [item for piece in pieces for item in FAMILY.read(MATHEMATICS, piece, 0, None)]
    assert texts([each for each in found if isinstance(each, Item)]) == [("a\n", "1\n")]
    refused = {each.key: each.reason for each in found if isinstance(each, Refusal)}
    assert refused == {
        "link.txt": "a symbolic link: give --raw the place that it points to",
        "pipe.txt": "not a plain file (device, socket or pipe)",
    }
    assert passed_over == {".md": 1}


def test_more_rows_than_a_plan_can_hold_are_refused(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"--rows is 1000000000000000; wanted .* 1 to 1073741824 \(5.5e\+11 tokens\)",
    ):
        list(FAMILY.plan(MATHEMATICS, "generator", 10**15, tmp_path))


@pytest.mark.parametrize("damage", ["cut", "changed", "other", "empty"])
def test_a_damaged_compressed_file_is_refused(tmp_path, damage):
    path = tmp_path / "x.txt.gz"
    data = gzip.compress(b"".join(b"%d?\n%d\n" % (n, n * n) for n in range(5000)))
    half = data[: len(data) // 2]
    changed = data[:10] + bytes([data[10] | 0b110]) + data[11:]  # no kind of block
    path.write_bytes({"cut": half, "changed": changed, "other": b"no gzip", "empty": b""}[damage])
    last = read_all(path)[-1]
    assert isinstance(last, Refusal)
    assert last.damaged
    assert ("an empty file is no .gz" if damage == "empty" else "damaged or cut off") in last.reason


@pytest.mark.parametrize("ending", [".txt", ".txt.gz"])
@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_file_that_was_cut_after_it_was_listed_is_damage(tmp_path, ending, left):
    """To nothing, in the middle of an answer, behind a pair: each would look whole from inside."""
    path = tmp_path / f"x{ending}"
    pack = gzip.compress if ending.endswith(".gz") else bytes
    path.write_bytes(pack(b"a\n12\nb\n34\n"))
    (piece,) = FAMILY.plan(MATHEMATICS, str(path), None, tmp_path)
    path.write_bytes((b"", pack(b"a\n1"), pack(b"a\n12\n"))[left])
    (found,) = FAMILY.read(MATHEMATICS, piece, 0, None)
    reason = "has become shorter since it was listed: copy it again"
    assert found == Refusal(f"{tmp_path.name}/x{ending}", reason, damaged=True)


def test_a_file_that_is_cut_while_it_is_read_is_damage(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"a\n1\n" * 100_000)  # more than is read at a time
    piece = list(FAMILY.plan(MATHEMATICS, str(path), None, tmp_path))[-1]
    found = FAMILY.read(MATHEMATICS, piece, 0, None)
    assert isinstance(next(found), Item)
    os.truncate(path, piece.start)
    last = list(found)[-1]
    assert isinstance(last, Refusal)
    assert last.damaged
    assert "has become shorter" in last.reason


@pytest.mark.parametrize("name", ["nothing", "empty", "empty.txt"])
def test_nothing_to_read(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match="wanted (a text file|text files)"):
        list(FAMILY.plan(MATHEMATICS, str(tmp_path / name), None, tmp_path))


def test_rows_belong_to_the_generator(tmp_path):
    with pytest.raises(ValueError, match="--rows 5: text files are read whole"):
        list(FAMILY.plan(MATHEMATICS, str(tmp_path), 5, tmp_path))
    with pytest.raises(ValueError, match="--rows is None; wanted how many rows"):
        list(FAMILY.plan(MATHEMATICS, "generator", None, tmp_path))
    with pytest.raises(ValueError, match="--rows is 0; wanted how many rows"):
        list(FAMILY.plan(MATHEMATICS, "generator", 0, tmp_path))


def test_regimes_are_chosen_by_name(tmp_path):
    (piece,) = FAMILY.plan(MATHEMATICS, "generator:interpolate,train-easy", 1, tmp_path)
    assert piece.source == "generator:interpolate,train-easy"
    (piece,) = FAMILY.plan(MATHEMATICS, "generator", 1, tmp_path)
    assert piece.source == "generator:train-easy,train-medium,train-hard"
    with pytest.raises(ValueError, match="regime 'hard' is not known; wanted some of train-easy"):
        list(FAMILY.plan(MATHEMATICS, "generator:hard", 1, tmp_path))


def test_pieces_cover_the_rows_asked_for(tmp_path):
    for rows in (1, 15, 16, 100, 5000):
        pieces = list(FAMILY.plan(MATHEMATICS, "generator", rows, tmp_path))
        assert [piece.start for piece in pieces[1:]] == [piece.stop for piece in pieces[:-1]]
        assert (pieces[0].start, pieces[-1].stop) == (0, rows)
        sizes = [piece.stop - piece.start for piece in pieces]
        assert sizes == sorted(sizes, reverse=True), "workers end together"
        assert sizes[-1] <= 8
        assert sizes[0] <= min(256, max(1, rows // 16))


def test_generated_problems_fill_the_piece():
    piece = next(FAMILY.plan(MATHEMATICS, "generator:train-easy", 1, None))
    items = list(FAMILY.read(MATHEMATICS, piece, 1, None))
    sizes = [sum(part.size for _, part in item.document.parts) for item in items]
    assert sum(sizes) >= 512 > sum(sizes[:-1])
    assert all(text.endswith("\n") for pair in texts(items) for text in pair)


def broken(name, error):
    def make():
        raise error

    return [(name, make)]


def test_failing_problems_are_refused_then_given_up(monkeypatch):
    from data_prep import mathematics_generator

    monkeypatch.setattr(
        mathematics_generator, "choose_modules", lambda regimes: broken("bad", TypeError("odd"))
    )
    found = FAMILY.read(MATHEMATICS, next(FAMILY.plan(MATHEMATICS, "generator", 1, None)), 0, None)
    assert next(found) == Refusal("bad", "the generator failed: TypeError: odd")
    with pytest.raises(RuntimeError, match="20 problems in a row failed, the last of bad: odd"):
        list(found)


def test_rendering_marks_the_answers():
    text = "half\n1 + 1?\n2\n3 + 3?\n6"
    kinds = [1] * 5 + [0] * 7 + [1] * 2 + [0] * 7 + [1]
    tokens = np.frombuffer(text.encode(), np.uint8)
    shown = FAMILY.render(MATHEMATICS, tokens, np.array(kinds), None).text
    assert shown == "«half»\n1 + 1? «2»\n3 + 3? «6»"
