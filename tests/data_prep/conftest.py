"""Small inputs that every test of data_prep makes for itself; real pictures only where SAMPLE_DATA points at some."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.domain import Document
from data_prep.shards import ShardWriter


def picture_bytes(number: int, side: int = 12, kind: str = "PNG") -> bytes:
    """An encoded random picture, another one for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def picture_folder(tmp_path: Path) -> Path:
    """40 pictures in two class folders."""
    folder = tmp_path / "pictures"
    for number in range(40):
        path = folder / f"class{number % 2}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture_bytes(number))
    return folder


def add_member(
    tar: tarfile.TarFile, name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE
) -> None:
    """Append one member of any type to an open tar."""
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname = kind, len(data), "elsewhere"
    tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def problem_file(tmp_path: Path) -> Path:
    """400 problems as the published text files have them: a question line, an answer line."""
    path = tmp_path / "problems.txt"
    path.write_text("".join(f"What is {n} + {n * 7}?\n{n * 8}\n" for n in range(400)))
    return path


def add_document(writer: ShardWriter, document: Document) -> None:
    """Append one document to an open shard; its arrays may have any integer dtype."""
    arrays = [np.asarray(part).ravel() for _, part in document.parts]
    writer.add_block(
        np.concatenate(arrays),
        np.array([part.size for part in arrays], np.int64),
        np.array([mode for mode, _ in document.parts], np.int64),
        np.array([len(arrays)], np.int64),
    )
