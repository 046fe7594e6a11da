"""Pictures from folders and tars to blocks of tokens."""

import io
import tarfile
from collections import Counter
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.domain import Block, Piece, Refusal, domain
from data_prep.domains import image
from data_prep.pictures import decode


def jpeg(number: int, size: tuple[int, int] = (32, 32)) -> bytes:
    random = np.random.default_rng(number)
    pixels = random.integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def make_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def read(raw: Path, scratch: Path, name: str = "image-8x8") -> tuple[list[tuple], dict[str, str]]:
    """(key, content, tokens) of every picture, in order, and the reasons for what is refused."""
    here = domain(name)
    items: list[tuple] = []
    refused: dict[str, str] = {}
    for piece in image.plan(here, str(raw), None, scratch / "listing"):
        for found in image.read(here, piece, 0, None):
            if isinstance(found, Refusal):
                refused[found.key] = found.reason
                continue
            assert isinstance(found, Block)
            assert found.tokens.shape == (len(found.keys), here.seq_length)
            items += zip(found.keys, found.contents, found.tokens.tolist(), strict=True)
    return items, refused


def test_every_picture_of_a_tar_becomes_a_row(tmp_path):
    """More than one piece of work and one batch, with other pictures and broken ones between."""
    files = {f"class{n % 3}/{n:05d}.jpg": jpeg(n % 50) for n in range(2500)}
    files["class0/large.jpg"] = jpeg(1, (300, 200))
    files["class0/broken.jpg"] = jpeg(1)[:400]
    files["class1/none.jpg"] = b""
    names = sorted(files)
    raw = make_tar(tmp_path / "x.tar", {name: files[name] for name in names})
    items, refused = read(raw, tmp_path)
    assert refused.keys() == {"x.tar/class0/broken.jpg", "x.tar/class1/none.jpg"}
    assert [key for key, _, _ in items] == [
        f"x.tar/{name}" for name in names if f"x.tar/{name}" not in refused
    ]
    for key, content, tokens in items:
        data = files[key.removeprefix("x.tar/")]
        assert content == blake2b(data, digest_size=16).digest()
        assert tokens == decode(data, 8).ravel().tolist()


def test_the_same_bytes_whatever_the_pieces(tmp_path):
    for number in range(30):
        size = (32, 32) if number % 3 else (60 + number, 50)
        (tmp_path / f"{number:02d}.jpg").write_bytes(jpeg(number, size))
    here, listing = domain("image-16x16"), tmp_path / "listing"
    (whole,) = image.plan(here, str(tmp_path), None, listing)
    lines = listing.read_bytes().splitlines(keepends=True)
    borders = np.cumsum([0, *(len(line) for line in lines)])
    single = [
        Piece(whole.source, int(a), int(b)) for a, b in zip(borders, borders[1:], strict=False)
    ]
    (block,) = image.read(here, whole, 0, None)
    apart = [next(iter(image.read(here, piece, 0, None))) for piece in single]
    assert np.array_equal(block.tokens, np.concatenate([each.tokens for each in apart]))
    assert block.keys == tuple(each.keys[0] for each in apart)


@pytest.mark.parametrize("caption", ["cls", "txt", "json"])
def test_of_webdataset_samples_only_the_picture_is_taken(tmp_path, caption):
    files = {}
    for number in range(20):
        files[f"{number:04d}.jpg"] = jpeg(number)
        files[f"{number:04d}.{caption}"] = b"7"
    items, refused = read(make_tar(tmp_path / "x.tar", files), tmp_path)
    assert [key for key, _, _ in items] == [f"x.tar/{number:04d}.jpg" for number in range(20)]
    assert not refused


def test_damage_is_in_the_plan_and_in_what_is_read(tmp_path):
    raw = make_tar(tmp_path / "x.tar", {f"{n}.jpg": jpeg(n) for n in range(5)})
    raw.write_bytes(raw.read_bytes()[: 3 * 512])
    (piece,) = image.plan(domain("image-8x8"), str(raw), None, tmp_path / "listing")
    assert [each.key for each in piece.damage] == ["x.tar"]
    found = list(image.read(domain("image-8x8"), piece, 0, None))
    refused = [each for each in found if isinstance(each, Refusal)]
    assert [(each.key, each.damaged) for each in refused] == [("x.tar", True)]


def test_wrong_requests_are_refused(tmp_path):
    here = domain("image-8x8")
    with pytest.raises(ValueError, match="--rows 5: pictures are all taken; wanted no --rows"):
        list(image.plan(here, str(tmp_path), 5, tmp_path / "listing"))
    with pytest.raises(
        ValueError, match="holds no pictures; wanted files or tar members ending in"
    ):
        list(image.plan(here, str(tmp_path), None, tmp_path / "listing"))


def test_a_row_is_shown_as_its_picture(tmp_path):
    (tmp_path / "x.jpg").write_bytes(jpeg(3))
    ((_, _, tokens),), _ = read(tmp_path / "x.jpg", tmp_path, "image-16x16")
    row = np.array(tokens, np.int64)
    shown = image.render(domain("image-16x16"), row, np.zeros(row.size, np.int8), None)
    assert shown.picture.dtype == np.uint8
    assert np.array_equal(shown.picture, decode(jpeg(3), 16))


def test_versions_of_what_decides_the_pixels():
    notes = image.notes(domain("image-8x8"), "x", None)
    assert notes.reproducible
    assert notes.versions.keys() == {"simplejpeg", "pillow", "numpy"}


def test_real_shards_and_awkward_files(sample_data, tmp_path):
    items, refused = read(sample_data / "images", tmp_path, "image-32x32")
    assert refused.keys() == {f"edge/{name}.jpg" for name in ("truncated", "empty", "not_an_image")}
    counts = Counter(key.partition("/")[0] for key, _, _ in items)
    assert counts == {"edge": 9, "photos-000000.tar": 40, "photos-000001.tar": 28}


def test_real_small_pictures(sample_data, tmp_path):
    items, refused = read(sample_data / "labelled" / "tinyimagenet10-val-000000.tar", tmp_path)
    assert (len(items), refused) == (250, {})
