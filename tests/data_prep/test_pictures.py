import contextlib
import io
import struct

import numpy as np
import pytest
from PIL import Image

from data_prep.pictures import decode
from data_prep.raw_files import list_items, read_entry


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def flat(mode: str, colour, size=(20, 20)) -> Image.Image:
    return Image.new(mode, size, colour)


def test_centre_square_and_area_average():
    """A 12 x 8 picture to 2 x 2: columns 2 to 9 are kept, each result is the mean of 4 x 4 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    found = decode(encode(Image.fromarray(pixels)), 2)
    means = pixels[:, 2:10].reshape(2, 4, 2, 4, 3).mean(axis=(1, 3))
    assert np.abs(found - means).max() <= 1


def test_same_size_is_unchanged():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(decode(encode(Image.fromarray(pixels)), 8), pixels)


def test_smaller_is_enlarged():
    found = decode(encode(flat("RGB", (9, 8, 7), (1, 30))), 8)
    assert np.array_equal(found, np.broadcast_to(np.array([9, 8, 7], np.uint8), (8, 8, 3)))


GREY16 = Image.fromarray(np.full((20, 20), 200 * 257, np.uint16))
PALETTE = flat("RGB", (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE)


@pytest.mark.parametrize(
    ("data", "colour"),
    [
        (encode(flat("L", 77)), (77, 77, 77)),
        (encode(flat("1", 1)), (255, 255, 255)),
        (encode(GREY16), (200, 200, 200)),
        (encode(PALETTE, "GIF"), (10, 200, 30)),
        (encode(flat("RGBA", (10, 20, 30, 0))), (255, 255, 255)),
        (encode(flat("RGBA", (0, 0, 0, 128))), (127, 127, 127)),
        (encode(flat("LA", (0, 0))), (255, 255, 255)),
        (encode(flat("RGB", (1, 2, 3)), transparency=(1, 2, 3)), (255, 255, 255)),
        (encode(flat("CMYK", (0, 255, 255, 0)), "JPEG", quality=100), (255, 0, 0)),
        (encode(flat("RGB", (10, 200, 30)), "WEBP", lossless=True), (10, 200, 30)),
        (encode(flat("RGB", (10, 200, 30)), "TIFF"), (10, 200, 30)),
    ],
    ids=[
        "grey",
        "1-bit",
        "16-bit",
        "palette",
        "clear",
        "half-clear",
        "grey-alpha",
        "colour-key",
        "cmyk",
        "webp",
        "tiff",
    ],
)
def test_every_colour_mode_is_as_a_person_sees_it(data, colour):
    found = decode(data, 8).astype(int)
    assert np.abs(found - np.array(colour)).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    """Four coloured quarters, stored turned; all come out as the upright picture does."""
    upright = np.zeros((64, 64, 3), np.uint8)
    upright[:32, :32], upright[:32, 32:], upright[32:, :32] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    stored = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # how a camera that turned it has stored it
    image = Image.fromarray(upright)
    if orientation > 1:
        image = image.transpose(Image.Transpose(stored[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(encode(image, "JPEG", quality=100, subsampling=0, exif=exif), 2).astype(int)
    expected = upright.reshape(2, 32, 2, 32, 3)[:, 16, :, 16].astype(int)
    assert np.abs(found - expected).max() <= 12, f"orientation {orientation}"


def test_broken_exif_counts_as_none():
    data = encode(flat("RGB", (9, 9, 9)), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode(data, 4).shape == (4, 4, 3)


def test_the_fast_path_is_close_to_the_reference():
    smooth = np.add.outer(np.arange(400), np.arange(500)) % 512 // 2
    picture = np.stack([smooth, smooth[::-1], 255 - smooth], axis=-1).astype(np.uint8)
    data = encode(Image.fromarray(picture), "JPEG", quality=90)
    for side in (8, 16, 32):
        fast, slow = decode(data, side).astype(float), decode(data, side, fast=False).astype(float)
        assert 10 * np.log10(255**2 / max(1e-9, ((fast - slow) ** 2).mean())) > 30


def png_claiming(width: int, height: int) -> bytes:
    """A tiny PNG whose header promises width x height pixels."""
    import zlib

    def block(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + block(b"IHDR", head)
        + block(b"IDAT", zlib.compress(b"\0"))
        + block(b"IEND", b"")
    )


JPEG = encode(Image.effect_noise((200, 200), 80).convert("RGB"), "JPEG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (JPEG[: len(JPEG) // 2], "not a readable picture: OSError: image file is truncated"),
        (
            b"<html><body>404</body></html>",
            "not a readable picture: UnidentifiedImageError: cannot identify image file",
        ),
        (png_claiming(100_000, 100_000), "too large to decode"),
        (png_claiming(20_000, 20_001), "too large to decode"),
        (png_claiming(15_000, 15_000), "not a readable picture: OSError: .*(truncated|broken)"),
        (
            encode(Image.fromarray(np.full((9, 9), 70_000, np.int32)), "TIFF"),
            "32-bit pixels from 70000 to 70000",
        ),
        (
            encode(Image.fromarray(np.full((9, 9), 0.5, np.float32)), "TIFF"),
            "floating-point pixels",
        ),
    ],
)
def test_bad_pictures_give_their_reason(data, reason):
    with pytest.raises(ValueError, match=reason) as error:
        decode(data, 8)
    assert "0x" not in str(error.value), "no addresses that differ from run to run"


@pytest.mark.long
def test_a_photograph_of_200_million_pixels_is_read():
    """More than twice Pillow's own limit, less than ours."""
    assert (decode(encode(flat("1", 1, (20_000, 10_000))), 8) == 255).all()


def test_mutated_pictures_never_crash():
    random = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(JPEG)
        for place in random.integers(0, len(data), 8):
            data[place] = random.integers(0, 256)
        with contextlib.suppress(ValueError):
            assert decode(bytes(data), 8).shape == (8, 8, 3)


@pytest.mark.long
def test_real_awkward_pictures(sample_data):
    usable = {}
    for path in sorted((sample_data / "images" / "edge").iterdir()):
        try:
            usable[path.name] = decode(path.read_bytes(), 8).shape == (8, 8, 3)
        except ValueError:
            usable[path.name] = False
    bad = {name for name, good in usable.items() if not good}
    assert bad == {"truncated.jpg", "empty.jpg", "not_an_image.jpg"}


@pytest.mark.long
@pytest.mark.parametrize("side", [8, 16, 32])
def test_real_photographs_come_within_34_db(sample_data, side):
    ratios = []
    for tar in sorted((sample_data / "images").glob("*.tar")):
        for entry in list_items(tar, frozenset({".jpg"})):
            opened = {}
            data = read_entry(entry, 1 << 28, opened)
            for stream in opened.values():
                stream.close()
            error = decode(data, side).astype(float) - decode(data, side, fast=False)
            ratios.append(10 * np.log10(255**2 / max(1e-9, (error**2).mean())))
    assert len(ratios) == 68
    assert np.median(ratios) > 34
