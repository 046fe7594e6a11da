"""Our reading of tar headers beside Python's, on tars of every format, and on damaged ones."""

import io
import os
import random
import tarfile
from pathlib import Path

import pytest

from data_prep.tar_files import BLOCK, Member, TarDamage, members

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def ours(path: Path) -> list[Member]:
    with path.open("rb") as stream:
        return list(members(stream.fileno(), path.stat().st_size))


def theirs(path: Path) -> list[Member]:
    with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as tar:
        return [
            Member(
                member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"),
                "0" if member.type in (b"0", b"\0", b"7") else member.type.decode("latin-1"),
                member.offset_data,
                member.size,
            )
            for member in tar
        ]


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(data))


def make_tar(path: Path, kind: str, seed: int) -> None:
    """Names of all lengths, all types, sizes around a block, in a random order."""
    draw = random.Random(seed)
    with tarfile.open(path, "w", format=FORMATS[kind]) as tar:
        for number in range(draw.randrange(80)):
            length = draw.choice([3, 99, 100, 101, 150] + [300] * (kind != "ustar"))
            stem = f"{number:04d}" + "/" + "ä" * draw.choice([0, 0, 0, 5]) + "n" * length
            name = stem[: 90 if kind == "ustar" else None] if draw.random() < 0.7 else f"{number}"
            size = draw.choice([0, 1, 511, 512, 513, 2000, draw.randrange(40_000)])
            type_ = draw.choice([b"0"] * 20 + [b"\0", b"7", b"1", b"2", b"3", b"5", b"6"])
            data = draw.randbytes(size) if type_ in b"0\x007" else b""
            fields = {"mtime": draw.choice([0, 1.5]), "linkname": "l" * draw.choice([1, 99])}
            add(tar, name, data, type=type_, mode=draw.randrange(0o777), **fields)


@pytest.mark.parametrize("kind", FORMATS)
def test_as_python_reads_them(tmp_path, kind):
    for seed in range(25):
        make_tar(tmp_path / "x.tar", kind, seed)
        assert ours(tmp_path / "x.tar") == theirs(tmp_path / "x.tar")


@pytest.mark.parametrize("kind", FORMATS)
def test_many_small_members_and_large_ones_between(tmp_path, kind):
    """Long runs of ordinary headers, which are read together, broken by what is not ordinary."""
    draw = random.Random(0)
    with tarfile.open(tmp_path / "x.tar", "w", format=FORMATS[kind]) as tar:
        for number in range(3000):
            name = f"{number:05d}.jpg" if draw.random() < 0.99 else f"{'d' * 90}/{number:0>90}"
            add(tar, name, bytes(draw.randrange(3000) if number % 500 else 2_000_000))
    found = ours(tmp_path / "x.tar")
    assert len(found) == 3000
    assert found == theirs(tmp_path / "x.tar")


def test_a_prefix_and_a_name_of_100_bytes(tmp_path):
    names = ["p" * 150 + "/" + "n" * 100, "n" * 100, "p" * 155 + "/n"]
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in names:
            add(tar, name)
    assert [member.name for member in ours(tmp_path / "x.tar")] == names


def test_pax_headers_for_one_and_for_all(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(
        path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "all\nof\nthem"}
    ) as tar:
        add(tar, "short", b"1", pax_headers={"path": "another name", "note": "a=b\nc"})
        add(tar, "plain", b"22")
    assert [(each.name, each.size) for each in ours(path)] == [("another name", 1), ("plain", 2)]
    assert ours(path) == theirs(path)


def header(name: bytes = b"x.jpg", size: bytes = b"00000000001\0", kind: bytes = b"0") -> bytes:
    """A header block with a right checksum."""
    fields = name.ljust(100, b"\0") + b"0000644\0" * 3 + size + b"00000000000\0"
    block = bytearray((fields + b" " * 8 + kind).ljust(BLOCK, b"\0"))
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def write(path: Path, *blocks: bytes, end: bool = True) -> Path:
    path.write_bytes(b"".join(blocks) + bytes(2 * BLOCK * end))
    return path


def test_a_size_in_base_256_of_a_member_of_9_gigabytes(tmp_path):
    """The file is sparse; only headers are read."""
    size = 9 << 30
    path = tmp_path / "x.tar"
    with path.open("wb") as stream:
        stream.write(header(size=b"\x80" + size.to_bytes(11, "big")))
        stream.seek(size, os.SEEK_CUR)
        stream.write(header(b"after") + bytes(3 * BLOCK))
    assert [(each.name, each.size) for each in ours(path)] == [("x.jpg", size), ("after", 1)]


def test_a_pax_size_of_a_member(tmp_path):
    record = b"12 size=600\n"
    extension = header(b"pax", b"00000000014\0", b"x") + record.ljust(BLOCK, b"\0")
    path = write(tmp_path / "x.tar", extension, header(), bytes(1024), header(b"after"), bytes(512))
    assert [(each.name, each.size) for each in ours(path)] == [("x.jpg", 600), ("after", 1)]
    assert ours(path) == theirs(path)


def test_sparse_members_are_known_as_such(tmp_path):
    """GNU's old form, whose map goes on in blocks of its own, and pax's."""
    old = bytearray(header(b"old", kind=b"S"))
    old[482] = 1
    old[148:156] = b" " * 8
    old[148:156] = b"%06o\0 " % sum(old)
    record = b"22 GNU.sparse.major=1\n"
    pax = header(b"pax", b"00000000026\0", b"x") + record.ljust(BLOCK, b"\0")
    path = write(
        tmp_path / "x.tar", bytes(old), *[bytes(BLOCK)] * 2, pax, header(b"new"), bytes(BLOCK)
    )
    assert [(each.name, each.kind) for each in ours(path)] == [("old", "S"), ("new", "S")]


def test_other_ways_to_write_a_checksum(tmp_path):
    signed = bytearray(header("ä".encode() * 10))
    total = sum(signed[:148] + signed[156:]) + 256
    signed[148:156] = b"%06o\0 " % (total - 256 * 20)
    padded = bytearray(header())
    padded[148:156] = b" %05o \0" % (sum(padded[:148] + padded[156:]) + 256)
    path = write(tmp_path / "x.tar", bytes(signed), bytes(512), bytes(padded), bytes(512))
    assert [member.name for member in ours(path)] == ["ä" * 10, "x.jpg"]
    assert ours(path) == theirs(path)


@pytest.mark.parametrize(
    ("blocks", "reason"),
    [
        ([header().replace(b"x.jpg", b"y.jpg"), bytes(512)], "bad checksum"),
        ([b"this is no tar" * 100], "is no number|bad checksum"),
        ([header(size=b"\xff" * 12)], "is no number"),
        ([header(size=b"0000000 008\0")], "is no number"),
        ([header(size=b"00000000_10\0")], "is no number"),
        ([header(kind=b"L", size=b"00010000000\0")], "a header of 2097152 bytes"),
        ([header(kind=b"x"), b"9".ljust(512)], "a damaged pax header"),
        ([header(kind=b"x", size=b"00000000010\0"), b"99 a=b\n".ljust(512)], "damaged pax header"),
        (
            [header(kind=b"x", size=b"00000000012\0"), b"10 size=-\n".ljust(512, b"\0"), header()],
            "a size of '-'",
        ),
    ],
)
def test_damaged_headers(tmp_path, blocks, reason):
    path = write(tmp_path / "x.tar", header(b"first"), bytes(512), *blocks)
    with path.open("rb") as stream:
        found = members(stream.fileno(), path.stat().st_size)
        assert next(found).name == "first"
        with pytest.raises(TarDamage, match=reason) as caught:
            list(found)
    assert not caught.value.cut


@pytest.mark.parametrize(
    "blocks",
    [
        [],
        [b""],
        [header()],
        [header(), bytes(512)],
        [header(), bytes(512), bytes(511)],
        [header(size=b"00000010000\0"), bytes(512)],
        [header(size=b"\x80" + b"\xff" * 11)],
        [header(kind=b"L", size=b"00000001000\0"), b"n" * 100],
        [header(kind=b"S")[:482] + b"\1" + bytes(29)],
    ],
)
def test_tars_that_end_too_early(tmp_path, blocks):
    if blocks and blocks[0][156:157] == b"S":
        block = bytearray(blocks[0])
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        blocks = [bytes(block)]
    path = write(tmp_path / "x.tar", *blocks, end=False)
    with pytest.raises(TarDamage, match="no end mark|unexpected end of data") as caught:
        ours(path)
    assert caught.value.cut == ("no end mark" in str(caught.value))


def test_a_tar_that_shrinks_while_it_is_read(tmp_path):
    path = write(tmp_path / "x.tar", header(), bytes(512), header(), bytes(512))
    with path.open("rb") as stream:
        found = members(stream.fileno(), path.stat().st_size + 10_000)
        assert len(list(found)) == 2  # the end mark is there
        os.truncate(path, 2 * BLOCK)
        with pytest.raises(TarDamage, match="no end mark"):
            list(members(stream.fileno(), 5 * BLOCK))


def mutate(tmp_path: Path, times: int) -> None:
    """Of a tar with some bytes changed, either the same members come, up to some point, or there is an error; a member
    whose header was not touched is never another one."""
    path = tmp_path / "x.tar"
    draw = random.Random(0)
    for _ in range(times):
        make_tar(path, draw.choice(list(FORMATS)), draw.randrange(10))
        good = path.read_bytes()
        before = {each.offset: each for each in ours(path)}
        data = bytearray(good)
        for _ in range(draw.randrange(1, 8)):
            if data:
                place = draw.randrange(len(data))
                data[place] = draw.choice([0, 0x30, 0x80, 0xFF, draw.randrange(256)])
        if draw.random() < 0.3:
            del data[draw.randrange(len(data) + 1) :]
        path.write_bytes(data)
        with path.open("rb") as stream:
            found = members(stream.fileno(), len(data))
            while True:
                try:
                    member = next(found, None)
                except TarDamage:
                    break
                if member is None:
                    break
                check_untouched(member, before, good, bytes(data))


def check_untouched(member: Member, before: dict[int, Member], good: bytes, data: bytes) -> None:
    """Its header passed a checksum, and if header and all that may extend it are as they were, so is the member."""
    start = max(0, member.offset - 8 * BLOCK)
    if data[start : member.offset] == good[start : member.offset] and member.offset in before:
        assert member == before[member.offset]
    block = data[member.offset - BLOCK : member.offset]
    if member.kind != "S":
        total = sum(block) - sum(block[148:156]) + 256
        stored = int(block[148:156].partition(b"\0")[0].strip() or b"0", 8)
        assert stored in (total, total - 256 * sum(b > 127 for b in block[:148] + block[156:]))


def test_mutated_tars(tmp_path):
    mutate(tmp_path, 80)


@pytest.mark.long
def test_many_mutated_tars(tmp_path):
    mutate(tmp_path, 3000)


def test_memory_is_flat(tmp_path):
    """A tar of 8 GB with large and small members: what is read at a time is bounded."""
    import tracemalloc

    path = tmp_path / "x.tar"
    with path.open("wb") as stream:
        for number in range(400):
            large = number % 4 == 0
            size = (80 << 20) if large else 100
            stream.write(header(b"%06d" % number, b"%011o\0" % size))
            stream.seek(-(-size // BLOCK) * BLOCK, os.SEEK_CUR)
        stream.write(bytes(2 * BLOCK))
    tracemalloc.start()
    with path.open("rb") as stream:
        assert sum(1 for _ in members(stream.fileno(), path.stat().st_size)) == 400
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_members_behind_the_end_mark_are_not_lost_in_silence(tmp_path):
    """Two tars in one file, as `cat` makes them: tar itself stops at the first one's end mark."""
    for name in ("a", "b"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            add(tar, f"{name}.jpg", b"x" * 700)
    both = tmp_path / "both.tar"
    both.write_bytes((tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes())
    with both.open("rb") as stream:
        found = members(stream.fileno(), both.stat().st_size)
        assert next(found).name == "a.jpg"
        with pytest.raises(TarDamage, match="data behind the end mark"):
            next(found)
    padded = tmp_path / "padded.tar"
    padded.write_bytes((tmp_path / "a.tar").read_bytes() + bytes(3_000_000))
    assert [member.name for member in ours(padded)] == ["a.jpg"]
