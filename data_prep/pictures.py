"""One picture file -> a small square of RGB, as a person sees it. The only place where pictures are decoded.

Order: refuse absurd sizes, decode (JPEGs may be decoded at 1/2, 1/4 or 1/8 scale inside the DCT where that keeps at
least `OVERSAMPLING` times the wanted side), apply the EXIF orientation, bring every colour mode to 8-bit RGB on white,
cut the centre square, shrink by averaging areas (Pillow's BOX filter).
"""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

# Twice the largest photographs that people take (200 Mpx sensors exist); a bomb claims thousands of times more.
MAX_PIXELS = 400_000_000
# Pillow raises from twice its own limit on, when it opens a picture, and only warns below that.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
MAX_BYTES = 1 << 28
# JPEG is decoded at a scale that leaves this many times the wanted side: 2 costs 3 to 4 dB more (docs/data.md).
OVERSAMPLING = 4
EXTENSIONS = frozenset(
    f".{ending}"
    for ending in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "gif", "bmp", "webp", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm", "jp2", "avif"),
    )
)
_WHITE = (255, 255, 255, 255)


def decode(data: bytes, side: int, fast: bool = True) -> np.ndarray:
    """The picture in `data` as uint8 [side, side, 3]; `fast=False` decodes every pixel (the reference in tests).

    ValueError says why it cannot be used, whatever the decoder tripped over.
    """
    if not data:
        raise ValueError("empty file")
    try:
        with warnings.catch_warnings():
            # Pillow warns of half of MAX_PIXELS; the rest are remarks on odd metadata.
            warnings.simplefilter("ignore")
            return _decode(data, side, fast)
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


def _decode(data: bytes, side: int, fast: bool) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        if fast:
            _draft(image, side)
        image.load()
        upright = _upright(image)
        rgb = _to_rgb(upright)
    edge = min(rgb.size)
    left, top = (rgb.width - edge) // 2, (rgb.height - edge) // 2
    small = rgb.resize((side, side), Image.Resampling.BOX, box=(left, top, left + edge, top + edge))
    return np.asarray(small, np.uint8)


def _draft(image: Image.Image, side: int) -> None:
    """Ask the JPEG decoder for the smallest scale that leaves OVERSAMPLING * side; no effect on other formats."""
    edge = min(image.size)
    wanted = OVERSAMPLING * side
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
