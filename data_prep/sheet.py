"""Sheets: rows as a person sees them, side by side in labelled columns, as a PNG or as text."""

import io
import textwrap
from collections.abc import Sequence

import numpy as np

from data_prep.domain import Shown

# Longest side of a picture on a sheet, and the room around everything, in screen pixels.
_SIDE, _GAP = 192, 10
_FONT, _LINE = 13, 17
_CHARACTERS = 30  # of text in a line below a picture
_MOST_LINES = 10
_GREY = 128
_WIDTH = 100  # characters of a line of a sheet of text


def sheet_png(columns: Sequence[str], rows: Sequence[Sequence[Shown]]) -> bytes:
    """A PNG with a column for each label; a cell is a picture, enlarged to a visible square, its text below."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(_FONT)
    heads = [textwrap.wrap(label, _CHARACTERS) for label in columns]
    heights = [max(_height(cell) for cell in row) for row in rows]
    top = _GAP + max(map(len, heads)) * _LINE
    width = _GAP + len(columns) * (_SIDE + _GAP)
    sheet = Image.new("RGB", (width, top + _GAP + sum(heights) + _GAP * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)

    def write(lines: Sequence[str], left: int, above: int) -> None:
        for number, line in enumerate(lines):
            draw.text((left, above + number * _LINE), line, "black", font)

    for column, head in enumerate(heads):
        write(head, _GAP + column * (_SIDE + _GAP), _GAP // 2)
    above = top + _GAP // 2
    for height, row in zip(heights, rows, strict=True):
        for column, cell in enumerate(row):
            left, below = _GAP + column * (_SIDE + _GAP), above
            if cell.picture is not None:
                large = _enlarged(cell.picture)
                sheet.paste(Image.fromarray(large), (left, above))
                below += len(large) + _GAP // 2
            write(_wrapped(cell.text), left, below)
        above += height + _GAP
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def sheet_text(columns: Sequence[str], rows: Sequence[Sequence[Shown]]) -> str:
    """The same as text, for rows without pictures: each label and what stands below it, row after row."""
    room = 2 + max(map(len, columns))
    blocks = []
    for number, row in enumerate(rows):
        lines = [f"--- row {number}"]
        for label, cell in zip(columns, row, strict=True):
            wrapped = [
                part for line in _lines(cell.text) for part in (textwrap.wrap(line, _WIDTH) or [""])
            ]
            lines.append(f"{label:{room}}{wrapped[0]}".rstrip())
            lines += [" " * room + line if line else "" for line in wrapped[1:]]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def greyed(picture: np.ndarray, given: float) -> np.ndarray:
    """A copy of a picture [H, W, 3] whose lower part, all but the share `given`, is grey."""
    part = picture.copy()
    part[round(len(part) * given) :] = _GREY
    return part


def _enlarged(picture: np.ndarray) -> np.ndarray:
    """Every pixel as a square of whole screen pixels; a picture that is larger than a cell loses some."""
    longest = max(picture.shape[:2])
    picture = picture[:: -(-longest // _SIDE), :: -(-longest // _SIDE)]
    scale = max(1, _SIDE // max(picture.shape[:2]))
    return np.ascontiguousarray(picture.repeat(scale, 0).repeat(scale, 1))


def _height(cell: Shown) -> int:
    picture = 0 if cell.picture is None else len(_enlarged(cell.picture)) + _GAP // 2
    return picture + len(_wrapped(cell.text)) * _LINE


def _wrapped(text: str) -> list[str]:
    lines = [part for line in _lines(text) for part in textwrap.wrap(line, _CHARACTERS)]
    return lines[:_MOST_LINES] + ["..."] * (len(lines) > _MOST_LINES)


def _lines(text: str) -> list[str]:
    """The lines of a text, at least one, without control characters: what a model wrote may hold any."""
    return [
        "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in line)
        for line in text.split("\n")
    ]
