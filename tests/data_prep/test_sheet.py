"""Sheets: every cell is where it belongs, and text that anything may have written."""

import io

import numpy as np
from PIL import Image

from data_prep.domain import Shown
from data_prep.sheet import greyed, sheet_png, sheet_text


def test_pictures_stand_in_rows_and_columns():
    colours = np.array([[[200, 0, 0], [0, 200, 0]], [[0, 0, 200], [200, 200, 0]]], np.uint8)
    rows = [[Shown("a caption", np.full((8, 8, 3), colour)) for colour in line] for line in colours]
    data = sheet_png(["given", "N = 3,072"], rows)
    assert data == sheet_png(["given", "N = 3,072"], rows)
    sheet = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    places = {}
    for number, colour in enumerate(colours.reshape(-1, 3)):
        found = np.argwhere((sheet == colour).all(2))
        assert len(found) == 192 * 192, "each pixel is a square of 24"
        places[number] = found.min(0).tolist()
    assert places[0][0] == places[1][0] < places[2][0] == places[3][0]
    assert places[0][1] == places[2][1] < places[1][1] == places[3][1]
    assert (sheet[: places[0][0]] < 128).any(), "labels above"


def test_a_large_picture_is_made_to_fit_and_a_small_one_to_be_seen():
    for side in (1, 256, 1000):
        data = sheet_png(["truth"], [[Shown(picture=np.zeros((side, side, 3), np.uint8))]])
        width, height = Image.open(io.BytesIO(data)).size
        assert (width, height < 250) == (212, True)


def test_the_lower_part_is_grey():
    found = greyed(np.zeros((8, 8, 3), np.uint8), 0.5)
    assert (found[:4] == 0).all()
    assert (found[4:] == 128).all()


def test_text_below_its_labels_without_control_characters():
    rows = [[Shown("1 + 1?"), Shown("2\x1b[31m\r\0")], [Shown("long " * 60), Shown("")]]
    lines = sheet_text(["given", "N = 12,288"], rows).splitlines()
    hidden = "\N{REPLACEMENT CHARACTER}"
    written = f"N = 12,288  2{hidden}[31m{hidden}{hidden}"
    assert lines[:3] == ["--- row 0", "given       1 + 1?", written]
    assert all(len(line) <= 112 and line.rstrip().isprintable() for line in lines)
