import contextlib
import io
import struct

import numpy as np
import pytest
from PIL import Image

from data_prep import pictures
from data_prep.pictures import decode, decode_many
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


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smoothed noise: detail at all scales, as photographs have it."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 6 + 2, width // 6 + 2, 3))
    image = Image.fromarray(small.astype(np.uint8))
    return image.resize((width, height), Image.Resampling.BICUBIC)


def decibels(one: np.ndarray, other: np.ndarray) -> float:
    return 10 * np.log10(255**2 / max(1e-9, ((one.astype(float) - other) ** 2).mean()))


PLAIN = {
    "4:2:0": {},
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "progressive": {"progressive": True},
    "restart": {"restart_marker_blocks": 3},
    "comment": {"comment": b"\xff\xda as a scan begins"},
    "rgb": {"keep_rgb": True},  # an Adobe marker that says: not YCbCr
}


@pytest.mark.parametrize("options", PLAIN.values(), ids=PLAIN)
def test_ordinary_jpegs_take_the_fast_way_to_the_same_pixels(options):
    """At its own size nothing is scaled or averaged, so that both decoders give the same, but for upsampled colours."""
    data = encode(photo(32, 32), "JPEG", quality=90, **options)
    assert pictures._decode_plain(data, 32) is not None
    assert np.array_equal(decode(data, 32), decode(data, 32, fast=False))


def test_grey_jpegs_take_the_fast_way():
    data = encode(photo(40, 40).convert("L"), "JPEG")
    assert pictures._decode_plain(data, 40) is not None
    assert np.array_equal(decode(data, 40), decode(data, 40, fast=False))


def test_a_thumbnail_in_the_exif_is_not_the_picture():
    """A small JPEG inside the EXIF, with a scan and a size of its own, near the start of the file."""
    thumbnail = encode(flat("RGB", (255, 0, 0), (8, 8)), "JPEG", quality=20, optimize=True)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0" + thumbnail
    data = encode(photo(99, 77), "JPEG", exif=exif)
    assert data.find(b"\xff\xda") < 1024
    assert pictures._decode_plain(data, 8) is not None
    assert decibels(decode(data, 8), decode(data, 8, fast=False)) > 34


@pytest.mark.parametrize(
    "data",
    [
        encode(photo(50, 50).convert("CMYK"), "JPEG"),
        encode(photo(50, 50), "PNG"),
        encode(photo(7, 50), "JPEG"),
        encode(photo(50, 50), "JPEG")[:-300],
        b"\xff\xd8" * 50,
        encode(photo(50, 50), "JPEG").replace(b"\xff\xc0", b"\xff\xc9"),  # arithmetic coding
    ],
    ids=["cmyk", "png", "narrow", "cut", "starts", "sof9"],
)
def test_what_is_not_plain_is_left_to_pillow(data):
    assert pictures._decode_plain(data, 8) is None


def test_orientation_in_xmp_is_applied():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    image = photo(64, 64)
    turned = decode(encode(image, "JPEG", xmp=xmp, quality=95), 8)
    assert decibels(turned, np.rot90(decode(encode(image), 8), -1)) > 34


@pytest.mark.parametrize(
    "size", [(33, 32), (47, 80), (100, 61), (129, 128), (333, 500), (719, 480)]
)
@pytest.mark.parametrize("side", [8, 32])
def test_areas_are_averaged_exactly(size, side):
    """Against the average over the same areas in floating point. A border between two pixels is put on the nearest
    256th of its area: summed by parts, a result of t pixels in a row is off by at most (t + 1) * 255 / 512 for each
    axis, and by 1/2 for rounding."""
    frame = pictures._frame(size[1], size[0], side)
    rows, columns = (axis.used.stop - axis.used.start for axis in (frame.rows, frame.columns))
    pixels = np.random.default_rng(0).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    found = pictures._shrink([pixels], frame)[0]
    edge = min(size)
    decoded = (frame.height, frame.width)
    scale = next(n for n in (1, 2, 4, 8) if (-(-size[1] * n // 8), -(-size[0] * n // 8)) == decoded)
    down, across = (
        exact_weights((each - edge) // 2 * scale / 8, edge * scale / 8, side, used)
        for each, used in ((size[1], rows), (size[0], columns))
    )
    exact = np.einsum("ir,rcz,jc->ijz", down, pixels.astype(float), across)
    bound = 0.5 + (len(frame.rows.index) + len(frame.columns.index) + 2) * 255 / 512
    assert np.abs(found - exact).max() <= bound
    assert np.abs(found - exact).mean() < 1


def exact_weights(start: float, length: float, side: int, pixels: int) -> np.ndarray:
    """[side, pixels]: the share of each pixel in each of `side` equal parts of [start, start + length)."""
    borders = start - np.floor(start) + length / side * np.arange(side + 1)
    ends = np.minimum(borders[1:, None], np.arange(1, pixels + 1))
    overlap = np.clip(ends - np.maximum(borders[:-1, None], np.arange(pixels)), 0, None)
    return overlap / overlap.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (48, 32), (33, 32)])
def test_pictures_that_the_decoder_shrinks_to_just_their_size(size):
    """An eighth, a quarter or half of the side: what the decoder gives is taken as it is."""
    data = encode(photo(*size), "JPEG", quality=95, subsampling=0)
    for side in (8, 16, 32):
        if min(size) % side == 0:
            assert pictures._frame(size[1], size[0], side).exact
            assert decibels(decode(data, side), decode(data, side, fast=False)) > 34


def test_white_stays_white_and_black_black():
    for size in ((33, 500), (640, 427), (1999, 1333)):
        for value in (0, 255):
            data = encode(flat("RGB", (value,) * 3, size), "JPEG", quality=100)
            assert (decode(data, 32) == value).all()


def test_many_at_once_are_as_one_by_one():
    files = [encode(photo(32, 32, seed), "JPEG") for seed in range(200)]
    files += [encode(photo(20 + 9 * seed, 130, seed), "JPEG") for seed in range(40)]
    files += [
        encode(photo(40, 40), "PNG"),
        encode(flat("L", 9), "JPEG"),
        b"",
        JPEG[:900],
        b"<html>",
    ]
    order = np.random.default_rng(0).permutation(len(files))
    files = [files[place] for place in order]
    for side in (8, 16):
        squares, refused = decode_many(files, side)
        assert squares.shape == (len(files), side, side, 3)
        assert sorted(order[place] for place in refused) == [242, 243, 244]
        for place, data in enumerate(files):
            if place in refused:
                with pytest.raises(ValueError, match="empty file|not a readable picture"):
                    decode(data, side)
            else:
                assert np.array_equal(squares[place], decode(data, side))


def test_a_jpeg_is_refused_wherever_it_is_cut_off():
    for kind in ({}, {"progressive": True}):
        data = encode(photo(300, 200), "JPEG", **kind)
        for keep in np.linspace(1, len(data) - 40, 60, dtype=int):
            with pytest.raises(ValueError, match="not a readable picture"):
                decode(data[:keep], 8)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_claims_to_be_huge(progressive):
    data = encode(photo(64, 64), "JPEG", progressive=progressive)
    place = data.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5
    data = data[:place] + struct.pack(">HH", 65500, 65500) + data[place + 4 :]
    assert pictures._decode_plain(data, 8) is None
    with pytest.raises(ValueError, match="too large to decode"):
        decode(data, 8)


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
        (
            png_claiming(15_000, 15_000),
            "too large to decode: 15000 x 15000 pixels; at most 160000000",
        ),
        (png_claiming(12_000, 12_000), "not a readable picture: OSError: .*(truncated|broken)"),
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
@pytest.mark.parametrize("side", [8, 16, 32, 64])
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


def test_a_jpeg_of_too_many_scans_is_refused():
    """Each scan goes over the whole picture: 150 KB of them would keep a worker busy for minutes."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    many = data[:-2] + data[last:-2] * 300 + data[-2:]
    assert decode(data, 8).shape == (8, 8, 3)
    with pytest.raises(ValueError, match=r"a JPEG of 3\d\d scans; at most 200 are decoded"):
        decode(many, 8)
    found, problems = decode_many([data, many], 8)
    assert list(problems) == [1]
    assert np.array_equal(found[0], decode(data, 8))


def test_pixels_that_must_all_be_decoded_have_a_limit(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_WHOLE", 99 * 100)
    buffer = io.BytesIO()
    Image.new("L", (100, 100)).save(buffer, "PNG")
    with pytest.raises(ValueError, match="too large to decode: 100 x 100 pixels; at most 9900"):
        decode(buffer.getvalue(), 8)
