"""The members of a tar, by reading its headers only: ustar, old V7, GNU (long names, base-256 sizes) and pax.

Where members are small and follow one another, headers are found in large pieces of the file and checked together;
large members are skipped. Nothing but one such piece is ever in memory. The layout of a header is that of POSIX.1's
`pax` and GNU tar's `tar.h`; what they leave open is done as Python's `tarfile` does it.
"""

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

BLOCK = 512
_END = bytes(BLOCK)
_SMALLEST_READ, _LARGEST_READ = 1 << 13, 1 << 20
# A header that only names the next member holds a path and some attributes; a longer one is no such thing.
_LONGEST_EXTENSION = 1 << 20
# Links, devices, folders, pipes: no data behind their header, whatever the size in it says.
_NO_DATA = "123456"
_EVEN_BYTES = np.uint64(0x00FF00FF00FF00FF)
_OCTAL_6 = 8 ** np.arange(5, -1, -1)


class Member(NamedTuple):
    """One member: `kind` is its type byte ("0" is a plain file, "5" a folder, "S" is sparse), `offset` where its data
    begin in the file and `size` how many bytes they are."""

    name: str
    kind: str
    offset: int
    size: int


class TarDamage(ValueError):
    """The tar cannot be read further. `cut`: it ends where a header or the end mark should be."""

    def __init__(self, reason: str, cut: bool = False) -> None:
        super().__init__(reason)
        self.cut = cut


def members(file: int, length: int) -> Iterator[Member]:
    """Every member of the tar with file descriptor `file`, `length` bytes long, in order; bytes of names that are no
    UTF-8 are written as \\xNN. Raises TarDamage at a damaged header, or where it ends without an end mark."""
    place, size, most = 0, _SMALLEST_READ, 4
    reader = _Reader(file)
    while True:
        if place > length:
            raise TarDamage("unexpected end of data")
        window = os.pread(file, size, place)
        if len(window) < BLOCK:
            raise TarDamage("no end mark", cut=True)
        at = count = 0
        while at + BLOCK <= len(window):
            # Numpy's calls pay for many headers only, and what stops a run would be met by the next one again.
            quick = size > _SMALLEST_READ and not reader.extended
            run, whole = _plain_run(window, at, most, place) if quick else ([], False)
            most = min(2 * most, 1 << 12) if whole else 4
            if run:
                yield from run
                at = run[-1].offset - place + _padded(run[-1].size)
                count += len(run)
                continue
            header = window[at : at + BLOCK]
            if header == _END:
                _refuse_more(file, place + at, length)
                return
            member, at = reader.read(header, place, at + BLOCK)
            if member is not None:
                yield member
            count += 1
        place += at
        size = min(2 * size, _LARGEST_READ) if count * 4096 >= size else _SMALLEST_READ


def _refuse_more(file: int, place: int, length: int) -> None:
    """Behind the end mark there may be nothing but zeros: members of a tar that was appended would be lost."""
    while place < length:
        rest = os.pread(file, min(_LARGEST_READ, length - place), place)
        if not rest:
            return  # it is shorter by now; what its members hold is all there
        if rest.count(0) != len(rest):
            raise TarDamage("data behind the end mark")
        place += len(rest)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


# --- many ordinary headers at once ---


def _plain_run(window: bytes, at: int, most: int, place: int) -> tuple[list[Member], bool]:
    """The plain files whose headers follow one another from `at` on in the window, which lies at `place` in the file:
    up to `most` of them, or the first with anything unusual in its header; and whether there was no such one."""
    starts: list[int] = []
    sizes: list[int] = []
    last = len(window) - BLOCK
    while at <= last and len(starts) < most:
        try:
            # What else Python takes for a number is found out below.
            size = int(window[at + 124 : at + 135], 8)
        except ValueError:
            break
        if window[at + 156] != 0x30 or size < 0:
            break
        starts.append(at)
        sizes.append(size)
        at += BLOCK + (size + BLOCK - 1 & -BLOCK)
    if not starts:
        return [], False
    blocks = np.frombuffer(window, np.uint8, len(window) // BLOCK * BLOCK).reshape(-1, BLOCK)
    headers = blocks[np.array(starts) // BLOCK]
    good = _ordinary(headers)
    count = len(starts) if good.all() else int(good.argmin())
    fields = np.ascontiguousarray(headers[:count, :100])
    raw = fields.view("S100").ravel().tolist()  # without the NULs at their ends
    first = place + BLOCK
    run = [
        Member(_name(each), "0", first + start, size)
        for each, start, size in zip(raw, starts, sizes, strict=False)
    ]
    return run, count == len(starts)


def _ordinary(headers: np.ndarray) -> np.ndarray:
    """Which of the headers uint8 [n, 512] have a right checksum and no prefix, their numbers written the usual way."""
    digits = headers[:, [*range(124, 135), *range(148, 154)]] - np.uint8(0x30)  # others wrap round
    stored = digits[:, 11:].astype(np.int64)
    # Bytes are added in pairs and in lanes of 16 bits, of which none overflows: 128 bytes each.
    words = headers.view("<u8")
    lanes = ((words & _EVEN_BYTES) + ((words >> np.uint64(8)) & _EVEN_BYTES)).sum(axis=1)
    sums = lanes.view("<u2").reshape(-1, 4).sum(axis=1, dtype=np.int64)
    sums += 8 * 0x20 - headers[:, 148:156].sum(axis=1, dtype=np.int64)
    usual = (digits < 8).all(axis=1) & (headers[:, 154] == 0)
    # The byte behind the size ends it; of a number that fills its field, it would be a digit.
    usual &= (headers[:, 135] == 0) | (headers[:, 135] == 0x20)
    return usual & (stored @ _OCTAL_6 == sums) & (headers[:, 345] == 0)


def _name(raw: bytes) -> str:
    """A name field up to its first NUL."""
    if b"\0" in raw:
        raw = raw.partition(b"\0")[0]
    return raw.decode("utf-8", "backslashreplace")


# --- one header of any sort ---


class _Reader:
    """Reads header by header; keeps what pax and GNU headers say of the next member, and pax ones of all others."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._next: dict[str, str] = {}
        self._all: dict[str, str] = {}

    @property
    def extended(self) -> bool:
        """Do earlier headers say something of the next member?"""
        return bool(self._next or self._all)

    def read(self, header: bytes, place: int, at: int) -> tuple[Member | None, int]:
        """The member of this header, if it is one by itself, and where the next header lies. `at` is where this one's
        data lie. Both count from `place` in the file."""
        _check_sum(header)
        size = _number(header[124:136])
        kind = chr(header[156])
        if kind in "LKxXg":
            if size > _LONGEST_EXTENSION:
                raise TarDamage(f"a header of {size} bytes")
            data = os.pread(self._file, size, place + at)
            if len(data) < size:
                raise TarDamage("no end mark", cut=True)
            self._keep(kind, data)
            return None, at + _padded(size)
        at = self._behind_sparse_map(header, place, at) if kind == "S" else at
        member = self._member(header, kind, place + at, size)
        return member, at + (0 if kind in _NO_DATA else _padded(member.size))

    def _keep(self, kind: str, data: bytes) -> None:
        said = {"path": _name(data)} if kind == "L" else {} if kind == "K" else _pax_records(data)
        said = {key: said[key] for key in said if re.fullmatch("path|size|GNU.sparse.*", key)}
        if kind == "g":
            self._all |= said
        else:
            self._next = said | self._next  # of two headers, the first has the last word

    def _member(self, header: bytes, kind: str, offset: int, size: int) -> Member:
        said, self._next = self._all | self._next, {}
        name = _name(header[:100])
        if header[257:263] == b"ustar\0" and header[345]:
            name = f"{_name(header[345:500])}/{name}"
        if kind == "\0" and name.endswith("/"):  # how tars before POSIX mark a folder
            kind = "5"
        elif kind in ("\0", "7"):
            kind = "0"
        if "size" in said:
            if not re.fullmatch("[0-9]{1,19}", said["size"]):
                raise TarDamage(f"a size of {said['size'][:40]!r}")
            size = int(said["size"])
        if any(key.startswith("GNU.sparse.") for key in said):
            kind = "S"
        name = said.get("path", name)
        return Member(name.rstrip("/") if kind == "5" else name, kind, offset, size)

    def _behind_sparse_map(self, header: bytes, place: int, at: int) -> int:
        more = header[482]
        while more:
            block = os.pread(self._file, BLOCK, place + at)
            if len(block) < BLOCK:
                raise TarDamage("no end mark", cut=True)
            more, at = block[504], at + BLOCK
        return at


def _check_sum(header: bytes) -> None:
    """TarDamage unless the checksum is right, as the sum of unsigned or, in some old tars, of signed bytes."""
    others = header[:148] + header[156:]
    total = 8 * 0x20 + sum(others)
    stored = _number(header[148:156])
    if stored != total and stored != total - 256 * sum(byte > 127 for byte in others):
        raise TarDamage("bad checksum")


def _number(field: bytes) -> int:
    """An octal number, or GNU's base-256 for large ones."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    if not re.fullmatch(b"[0-7]*", digits):
        raise TarDamage(f"{digits.decode('latin1')!r} is no number")
    return int(digits or b"0", 8)


def _pax_records(data: bytes) -> dict[str, str]:
    """Records "LENGTH key=value\\n", the length counting all of the record; NULs may follow the last."""
    records: dict[str, str] = {}
    place = 0
    while place < len(data) and data[place]:
        head = re.compile(rb"([0-9]{1,7}) ([^=\n]+)=").match(data, place)
        end = place + int(head[1]) if head else 0
        if not head or not head.end() < end <= len(data) or data[end - 1] != 0x0A:
            raise TarDamage("a damaged pax header")
        value = data[head.end() : end - 1]
        records[_name(head[2])] = value.decode("utf-8", "backslashreplace")
        place = end
    return records
