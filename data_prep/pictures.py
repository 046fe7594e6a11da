"""One picture file -> a small square of RGB, as a person sees it. The only place where pictures are decoded.

Ordinary JPEGs take the fast way: libjpeg-turbo decodes them at 1/2, 1/4 or 1/8 scale inside the DCT where at least
`OVERSAMPLING` times the wanted side remains, and the centre square of the full picture, which need not begin or end at
a whole pixel of the scaled one, is averaged over exact areas. Everything else goes to Pillow, which has the last word
on what is damaged: refuse absurd sizes, decode, apply the EXIF orientation, bring every colour mode to 8-bit RGB on
white, cut the centre square, shrink by averaging areas (Pillow's BOX filter).
"""

import functools
import io
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps

# Twice the largest photographs that people take (200 Mpx sensors exist); a bomb claims thousands of times more.
MAX_PIXELS = 400_000_000
# Pillow raises from twice its own limit on, when it opens a picture, and only warns below that.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
MAX_BYTES = 1 << 28
# What Pillow decodes whole, several copies of it at 4 to 8 bytes a pixel: the largest cameras have 150 million.
MAX_WHOLE = 160_000_000
# Each scan of a progressive JPEG goes over all of its pixels; encoders write 6 to 20. Hostile files have thousands.
MAX_SCANS = 200
_SCAN = b"\xff\xda"
# A JPEG is decoded at a scale that leaves this many times the wanted side: enough for 37 dB (docs/data.md has what
# others would give), and little enough for the commonest photographs, of 500 x 375, to reach 32 pixels from 1/8 scale.
OVERSAMPLING = 1.4
# The same for Pillow, whose filter takes whole pixels only and so needs more of them.
_PILLOW_OVERSAMPLING = 4
EXTENSIONS = frozenset(
    f".{ending}"
    for ending in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "gif", "bmp", "webp", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm", "jp2", "avif"),
    )
)
_WHITE = (255, 255, 255, 255)
# Pictures of one size are shrunk together up to this many bytes: one by one, numpy's calls would cost more than the
# work; many more would not fit into a core's cache.
_TOGETHER = 1 << 16


def decode(data: bytes, side: int, fast: bool = True) -> np.ndarray:
    """The picture in `data` as uint8 [side, side, 3]; `fast=False` decodes every pixel (the reference in tests).

    ValueError says why it cannot be used, whatever the decoder tripped over.
    """
    plain = _decode_plain(data, side) if fast else None
    if plain is None:
        return _decode_any(data, side, fast)
    pixels, frame = plain
    return _shrink([pixels], frame)[0]


def decode_many(files: Sequence[bytes], side: int) -> tuple[np.ndarray, dict[int, ValueError]]:
    """`decode` of each, byte for byte, as uint8 [len(files), side, side, 3], and why those at some positions are
    refused (their rows are zeros). Small pictures of one size are shrunk together."""
    squares = np.zeros((len(files), side, side, 3), np.uint8)
    refused: dict[int, ValueError] = {}
    waiting: dict[_Frame, tuple[list[int], list[np.ndarray]]] = {}
    for index, data in enumerate(files):
        try:
            plain = _decode_plain(data, side)
            if plain is None:
                squares[index] = _decode_any(data, side, fast=True)
                continue
        except ValueError as error:
            refused[index] = error
            continue
        pixels, frame = plain
        places, group = waiting.setdefault(frame, ([], []))
        places.append(index)
        group.append(pixels)
        if len(group) * pixels.size >= _TOGETHER:
            squares[places] = _shrink(group, frame)
            del waiting[frame]
    for frame, (places, group) in waiting.items():
        squares[places] = _shrink(group, frame)
    return squares, refused


# --- the fast way ---


class _Layout(NamedTuple):
    """What the header of a JPEG says; `tagged`: it may say how to turn the picture."""

    height: int
    width: int
    tagged: bool


@dataclass(frozen=True, eq=False)
class _Taps:
    """What each of `side` results takes from the pixels of one axis: `index` and `weight`, both [taps, side], within
    the stretch `used` of the axis. The weights of a result are 256ths and add up to 256."""

    used: slice
    index: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True, eq=False)
class _Frame:
    """How one size of picture becomes a square: the size [height, width] to decode it to, and how that is averaged;
    `exact`: it has the wanted size already."""

    height: int
    width: int
    rows: _Taps
    columns: _Taps
    exact: bool

    @functools.cached_property
    def shape(self) -> tuple[int, int, int]:
        """Of the decoded picture."""
        return self.height, self.width, 3

    @functools.cached_property
    def whole(self) -> bool:
        """Nothing is cut off or averaged."""
        return self.exact and self.height == self.width


def _decode_plain(data: bytes, side: int) -> tuple[np.ndarray, _Frame] | None:
    """The part of an ordinary JPEG that its square touches, uint8 [rows, columns, 3]; None leaves it to Pillow."""
    frame = _plain_frame(data, side)
    # A scan takes 10 bytes at least.
    if frame is None or (len(data) > 10 * MAX_SCANS and data.count(_SCAN) > MAX_SCANS):
        return None
    try:
        pixels = simplejpeg.decode_jpeg(data, min_height=frame.height, min_width=frame.width)
    except (ValueError, MemoryError):  # strict: a warning, such as for a file that is cut off, too
        return None
    if pixels.shape != frame.shape:
        return None
    return (pixels if frame.whole else pixels[frame.rows.used, frame.columns.used]), frame


def _plain_frame(data: bytes, side: int) -> _Frame | None:
    """How to decode what the bytes before a JPEG's first scan describe; None if it is not plainly an upright 8-bit
    picture, grey or in colour, that has to be shrunk."""
    end = data.find(_SCAN) + 4
    # Small pictures of one source share their header to the byte, so what follows from it is kept.
    known = _known_frame(data[:end], side) if 4 <= end < 1024 else None
    if known is not None:
        return known
    layout = _read_layout(data)  # EXIF may hold a thumbnail, with a scan of its own
    if layout is None or (layout.tagged and _turned(data)):
        return None
    return _frame_of(layout, side)


def _read_layout(data: bytes) -> _Layout | None:
    if data[:2] != b"\xff\xd8":
        return None
    place, size, tagged = 2, None, False
    while place + 10 <= len(data):
        start, marker, length = struct.unpack_from(">BBH", data, place)
        if start != 0xFF or length < 2:
            return None
        if marker == 0xDA:  # start of scan
            return _Layout(*size, tagged) if size else None
        if marker in (0xC0, 0xC1, 0xC2):  # start of frame: baseline, extended, progressive
            precision, height, width, components = struct.unpack_from(">BHHB", data, place + 4)
            if size or precision != 8 or components not in (1, 3):
                return None
            size = (height, width)
        elif marker not in (0xC4, 0xDB, 0xDD, 0xFE) and marker & 0xF0 != 0xE0:
            return None  # neither a table or comment nor of an application
        tagged = tagged or marker == 0xE1  # EXIF or XMP
        place += 2 + length
    return None


@functools.lru_cache(maxsize=1024)
def _known_frame(header: bytes, side: int) -> _Frame | None:
    layout = _read_layout(header + bytes(10))
    return None if layout is None or layout.tagged else _frame_of(layout, side)


def _frame_of(layout: _Layout, side: int) -> _Frame | None:
    small = side > min(layout.height, layout.width)
    if small or layout.height * layout.width > MAX_PIXELS:
        return None
    return _frame(layout.height, layout.width, side)


def _turned(data: bytes) -> bool:
    """Does EXIF or XMP ask for another orientation, or is Pillow itself needed to find out?"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data))
        except Exception:  # it will be opened again, where the reason is kept
            return True
        try:
            return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
        except Exception:  # hostile EXIF raises anything; broken EXIF counts as none
            return False


@functools.lru_cache(maxsize=256)
def _frame(height: int, width: int, side: int) -> _Frame:
    """For pictures of this size, the scale being n/8. A scaled picture ends with the pixel that is begun."""
    edge, border = min(height, width), abs(height - width) // 2
    # Where the parts are whole pixels of the scaled picture, the DCT has averaged over just their areas.
    fits = (n for n in (1, 2, 4) if edge * n == 8 * side and border * n % 8 == 0)
    enough = (n for n in (1, 2, 4) if edge * n >= 8 * OVERSAMPLING * side)
    scale = next(fits, 0) or next(enough, 8)
    rows = _taps((height - edge) // 2, edge, scale, side)
    columns = _taps((width - edge) // 2, edge, scale, side)
    exact = edge * scale == 8 * side and border * scale % 8 == 0
    return _Frame(-(-height * scale // 8), -(-width * scale // 8), rows, columns, exact)


def _taps(start: int, edge: int, scale: int, side: int) -> _Taps:
    """The shares of the scaled pixels in each of `side` equal parts of [start, start + edge) of the full picture."""
    # In units in which a scaled pixel is `pixel` long and a part `part`.
    pixel, part = 8 * side, edge * scale
    begins = side * start * scale + part * np.arange(side)
    first_pixels, end_pixels = begins // pixel, -(-(begins + part) // pixel)
    counter = np.arange((end_pixels - first_pixels).max() + 1)[:, None]
    covered = np.clip((first_pixels + counter) * pixel - begins, 0, part)
    weight = np.diff((512 * covered + part) // (2 * part), axis=0)
    first, last = int(first_pixels[0]), int(end_pixels[-1])
    index = np.minimum(first_pixels + counter[:-1], last - 1) - first
    return _Taps(slice(first, last), index, weight)


def _shrink(pictures: list[np.ndarray], frame: _Frame) -> np.ndarray:
    """Average n x uint8 [rows, columns, 3] over areas to uint8 [n, side, side, 3], halves rounded up.

    In whole numbers, so that the result does not depend on how many are shrunk together, or on the processor.
    """
    if frame.exact:
        # As np.stack, which takes ten times as long for small pictures.
        return np.concatenate(pictures).reshape(-1, *pictures[0].shape)
    lines = np.stack(pictures, axis=1)  # [rows, n, columns, 3]
    bands = _average(lines, frame.rows, np.uint16)  # at most 255 * 256
    sums = _average(bands.transpose(2, 0, 1, 3), frame.columns, np.uint32)
    return ((sums + (1 << 15)) >> 16).astype(np.uint8).transpose(2, 1, 0, 3)


def _average(lines: np.ndarray, taps: _Taps, dtype: type[np.unsignedinteger]) -> np.ndarray:
    """256 times the average of the lines [length, ...] that each tap takes: [side, ...] of `dtype`."""
    flat = lines.astype(dtype).reshape(len(lines), -1)
    weight = taps.weight.astype(dtype)[:, :, None]
    total = flat[taps.index[0]] * weight[0]
    for index, share in zip(taps.index[1:], weight[1:], strict=True):
        total += flat[index] * share
    return total.reshape(-1, *lines.shape[1:])


# --- Pillow ---


def _decode_any(data: bytes, side: int, fast: bool) -> np.ndarray:
    """Any format, by Pillow; all of its errors as ValueErrors."""
    if not data:
        raise ValueError("empty file")
    if data.startswith(b"\xff\xd8") and (scans := data.count(_SCAN)) > MAX_SCANS:
        raise ValueError(f"a JPEG of {scans} scans; at most {MAX_SCANS} are decoded")
    try:
        with warnings.catch_warnings():
            # Pillow warns of half of MAX_PIXELS; the rest are remarks on odd metadata.
            warnings.simplefilter("ignore")
            return _decode_with_pillow(data, side, fast)
    except (MemoryError, Image.DecompressionBombError) as error:
        raise ValueError(f"too large to decode: {error}") from None
    except ValueError:
        raise
    except (
        Exception
    ) as error:  # Pillow's readers raise all sorts (struct.error, SyntaxError, KeyError...)
        raise ValueError(
            f"not a readable picture: {type(error).__name__}: {_clean(error)}"
        ) from None


def _decode_with_pillow(data: bytes, side: int, fast: bool) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        if fast:
            _draft(image, side)
        if image.width * image.height > MAX_WHOLE:
            raise ValueError(
                f"too large to decode: {image.width} x {image.height} pixels; at most {MAX_WHOLE} in all"
            )
        image.load()
        upright = _upright(image)
        rgb = _to_rgb(upright)
    edge = min(rgb.size)
    left, top = (rgb.width - edge) // 2, (rgb.height - edge) // 2
    small = rgb.resize((side, side), Image.Resampling.BOX, box=(left, top, left + edge, top + edge))
    return np.asarray(small, np.uint8)


def _draft(image: Image.Image, side: int) -> None:
    """Ask the JPEG decoder for the smallest scale that leaves enough; no effect on other formats."""
    edge = min(image.size)
    wanted = _PILLOW_OVERSAMPLING * side
    if edge > wanted:
        # draft keeps both sides at least as long as asked for.
        image.draft(None, (image.width * wanted // edge, image.height * wanted // edge))


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says; broken EXIF counts as none, as in viewers."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # hostile EXIF raises anything; the pixels are fine
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode as RGB: transparency on white, 16-bit scaled to 8, CMYK and palettes converted."""
    mode = image.mode
    if mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"32-bit pixels from {values.min()} to {values.max()}: what is white is not stated"
            )
        return Image.fromarray((values / 257).round().astype(np.uint8)).convert("RGB")
    if mode == "F":
        raise ValueError("floating-point pixels: what is white is not stated")
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        solid = image.convert("LA" if mode == "La" else "RGBA").convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", solid.size, _WHITE), solid).convert("RGB")
    return image if mode == "RGB" else image.convert("RGB")


def _clean(error: Exception) -> str:
    """An error's text without the memory addresses that differ from run to run."""
    text = str(error)
    return text.split(" <_io")[0].split(" at 0x")[0][:200]
