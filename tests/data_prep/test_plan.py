"""The plan of a build: memory that does not grow with the pieces that the raw data is cut into."""

import tarfile
import tracemalloc
from pathlib import Path

import pytest

from data_prep import tar_files
from data_prep.domain import domain
from data_prep.plan import How, Request, plan_shards

FEW, MANY = 500, 2500


def videos(path: Path, pieces: int) -> str:
    """A tar of videos without a byte, four to a piece."""
    header = tarfile.TarInfo("class/video.mp4").tobuf()
    path.write_bytes(header * 4 * pieces + bytes(1024))
    return str(path)


def peak(request: Request, out: Path, pieces: int) -> int:
    """The most bytes that a plan of so many pieces holds while it is made, and while its shards are gone through."""
    work = out / ".build" / "all"
    work.mkdir(parents=True)
    tracemalloc.start()
    try:
        plan = plan_shards(request, domain(request.domain), out, work, How())
        chunks = sum(len(shard.chunks) for shard in plan.own())
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (plan.pieces, chunks) == (pieces, pieces)
    return held


@pytest.mark.parametrize("name", ["video-codes-16x16x16", "known-entropy"])
def test_memory_does_not_grow_with_the_pieces(tmp_path, monkeypatch, name):
    """A list of them would hold more than 100 bytes each."""
    monkeypatch.setattr(tar_files, "_LARGEST_READ", 1 << 14)  # else a tar is read by a megabyte

    def request(pieces: int) -> Request:
        if name.startswith("video"):
            return Request(name, videos(tmp_path / f"{pieces}.tar", pieces), chunks_per_shard=50)
        return Request(name, "generator", rows=pieces * 4096, chunks_per_shard=50)

    peak(request(50), tmp_path / "first", 50)  # imports and caches
    few = peak(request(FEW), tmp_path / "few", FEW)
    many = peak(request(MANY), tmp_path / "many", MANY)
    assert many - few < 16 * (MANY - FEW)
