import dataclasses
import resource
import struct

import numpy as np
import pytest

from data_prep.domain import Document, TokenRange, domain
from data_prep.files import write_file
from data_prep.shard_index import read_header
from data_prep.shards import ShardWriter
from tests.data_prep.conftest import add_document

MATHEMATICS = domain("mathematics")


def problem(question: str, answer: str) -> Document:
    parts = tuple(
        (mode, np.frombuffer(text.encode(), np.uint8))
        for mode, text in enumerate((question, answer))
    )
    return Document("key", parts)


def test_the_bytes_are_megatrons(tmp_path):
    """The worked example of the format: uint16, documents [[5, 6], [7, 8, 9]] with modes 0, 1 and [[1]] with mode 0."""
    kinds = (TokenRange("a", 0, 1000), TokenRange("b", 0, 1000))
    here = dataclasses.replace(MATHEMATICS, vocab_size=1000, kinds=kinds)
    with ShardWriter(tmp_path / "x", here) as writer:
        add_document(writer, Document("1", ((0, np.array([5, 6])), (1, np.array([7, 8, 9])))))
        add_document(writer, Document("2", ((0, np.array([1])),)))
    assert (tmp_path / "x.bin").read_bytes().hex() == "050006000700080009000100"
    expected = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 3, 3)
    expected += struct.pack("<3i3q3q3b", 2, 3, 1, 0, 4, 10, 0, 2, 3, 0, 1, 0)
    assert (tmp_path / "x.idx").read_bytes() == expected
    assert len(expected) == 97


def test_summary_counts(tmp_path):
    with ShardWriter(tmp_path / "x", MATHEMATICS) as writer:
        add_document(writer, problem("1+1?\n", "2\n"))
        add_document(writer, problem("2+2?\n", "4\n"))
    summary = writer.summary
    assert (summary.sequences, summary.documents, summary.tokens) == (4, 2, 14)
    assert summary.bin_bytes == (tmp_path / "x.bin").stat().st_size
    assert summary.idx_bytes == (tmp_path / "x.idx").stat().st_size
    header = read_header(tmp_path / "x.idx")
    assert (header.sequences, header.documents, header.has_modes, header.dtype) == (
        4,
        2,
        True,
        np.uint8,
    )


def test_an_exception_leaves_nothing(tmp_path):
    def interrupted():
        with ShardWriter(tmp_path / "x", MATHEMATICS) as writer:
            add_document(writer, problem("1+1?\n", "2\n"))
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path):
    """A limit on the size of a file stands for a full disk: both are an OSError in the middle of a write."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with (
            pytest.raises(OSError, match="File too large"),
            ShardWriter(tmp_path / "x", MATHEMATICS) as writer,
        ):
            add_document(writer, problem("7" * 100_000, "2\n"))
        with pytest.raises(OSError, match="File too large"):
            write_file(tmp_path / "y", b"7" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def write_pictures(prefix, count):
    with ShardWriter(prefix, domain("image-8x8")) as writer:
        for _ in range(count):
            add_document(writer, Document("key", ((0, np.zeros(192, np.uint8)),)))


@pytest.mark.parametrize(
    ("limit", "documents"), [(100_000, 1000), (100_000, 521), (4000, 30), (100, 30)]
)
def test_a_disk_that_is_full_again_when_the_file_is_closed_leaves_nothing(
    tmp_path, limit, documents
):
    """What is still in the buffer is written at the end, and fails once more."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_pictures(tmp_path / "x", documents)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def refuse(tmp_path, tokens, lengths, modes, parts, here=MATHEMATICS):
    with ShardWriter(tmp_path / "x", here) as writer:
        writer.add_block(np.array(tokens), np.array(lengths), np.array(modes), np.array(parts))


@pytest.mark.parametrize("token", [-1, 256, 70000])
def test_ids_out_of_range_are_refused(tmp_path, token):
    with pytest.raises(ValueError, match=f"question ids from .*{token}.*wanted 0 to 255"):
        refuse(tmp_path, [token, 5], [2], [0], [1])
    assert list(tmp_path.iterdir()) == []


def test_ids_of_another_kind_are_refused(tmp_path):
    here = dataclasses.replace(
        MATHEMATICS, kinds=(TokenRange("text", 0, 100), TokenRange("pixel", 100, 256))
    )
    refuse(tmp_path, [5, 200], [1, 1], [0, 1], [2], here)
    with pytest.raises(ValueError, match="pixel ids from 5 to 5; wanted 100 to 255"):
        refuse(tmp_path, [5, 5], [1, 1], [0, 1], [2], here)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2], [3], [0], [1]), "wanted sums that agree"),
        (([1, 2], [2], [0, 0], [1]), "wanted sums that agree"),
        (([1, 2], [2], [0], [2]), "wanted sums that agree"),
        (([1, 2], [2, 0], [0, 0], [2]), "a sequence of 0 to 2 tokens"),
        (([1, 2], [2], [2], [1]), "mode 2; wanted 0 to 1"),
        (([1.5, 2], [2], [0], [1]), "float64; wanted integers"),
    ],
)
def test_what_does_not_add_up_is_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        refuse(tmp_path, *arguments)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "starts with b'' and is 0 bytes long"),
        (b"<html>" + b" " * 100, "starts with b'<html>   '"),
        (b"MMIDIDX\0\0" + struct.pack("<QBQQ", 2, 1, 0, 1) + b" " * 8, "version 2, dtype code 1"),
        (b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 6, 0, 1) + b" " * 8, "version 1, dtype code 6"),
        (b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 1, 9, 1) + b" " * 8, "cut off or damaged"),
        (b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 1, 1 << 63, 1 << 62), "cut off or damaged"),
    ],
)
def test_bad_headers_are_refused(tmp_path, data, message):
    path = tmp_path / "x.idx"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        read_header(path)
    assert str(path) in str(error.value)
