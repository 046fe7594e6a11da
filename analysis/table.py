"""A CSV with a header -> points. Other people's measurements come in here.

A row whose needed number is absent, NaN, infinite or not positive is left out and listed; text
where a number belongs is refused, since it usually means a wrong column or a wrong file.
"""

import csv
import difflib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from analysis.points import NUMBER_COLUMNS, LossPoints, PointSet

ABSENT = frozenset(("", "na", "n/a", "none", "null", "-"))
"""Cells that say "not measured" (compared in lower case); nan and inf are numbers already."""


def read_table(path: Path, needs: Sequence[str]) -> PointSet:
    """Points of a CSV. `needs` names the columns that the law uses; `weight` and `group` are read
    if present; every other column is ignored. Raises `ValueError` that names file and row."""
    header, rows = _read_rows(path)
    _check_header(path, header, needs)
    wanted = [name for name in (*NUMBER_COLUMNS, "weight") if name in header]
    needed = {*needs, "weight"}
    columns = {
        name: _numbers(path, name, [row[header.index(name)] for row in rows], name in needed)
        for name in wanted
    }
    group = (
        np.array([row[header.index("group")].strip() for row in rows])
        if "group" in header
        else np.array([f"row {index + 2}" for index in range(len(rows))])
    )
    label = np.array([f"{path.name} row {index + 2}" for index in range(len(rows))])
    points = LossPoints.of(group, label, **columns)
    found = PointSet(str(path), points, ())
    for name in (*NUMBER_COLUMNS, "weight"):
        if name not in needed or name not in header:
            continue
        found = _drop_unusable(found, name)
    return _drop_duplicates(found, needs, "group" in header)


def read_header(path: Path) -> list[str]:
    """The column names of a CSV."""
    return [name.strip() for name in _read_rows(path)[0]]


def _read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{path}: not readable as text ({error}); wanted a CSV with a header, or a results "
            "folder. Check that this is the file you meant."
        ) from error
    if len(rows) < 2:
        raise ValueError(
            f"{path}: {len(rows)} lines; wanted a CSV with a header and at least one row of "
            "points. Check that this is the file you meant."
        )
    header = [name.strip() for name in rows[0]]
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise ValueError(
                f"{path}: row {number} has {len(row)} cells; wanted {len(header)}, as in the "
                "header. Repair or remove this row."
            )
    return header, rows[1:]


def _check_header(path: Path, header: list[str], needs: Sequence[str]) -> None:
    missing = [name for name in needs if name not in header]
    repeated = sorted({name for name in header if header.count(name) > 1} & set(NUMBER_COLUMNS))
    if repeated:
        raise ValueError(
            f"{path}: column {repeated[0]!r} appears {header.count(repeated[0])} times; wanted it "
            "once. Rename or remove the others."
        )
    if not missing:
        return
    name = missing[0]
    lower = [column.lower() for column in header]
    near = difflib.get_close_matches(name, lower, n=1, cutoff=0.4)
    hint = (
        f"The nearest is {header[lower.index(near[0])]!r}: rename it if that is it."
        if near
        else "Add it, or choose a law that does not need it."
    )
    if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
        hint = "Its header looks separated by another character: write it with commas."
    raise ValueError(
        f"{path}: no column {', '.join(map(repr, missing))}; found {', '.join(header)}; wanted "
        f"{', '.join(needs)}. {hint}"
    )


def _numbers(path: Path, name: str, cells: list[str], needed: bool) -> np.ndarray:
    try:
        return np.array(cells, float)
    except ValueError:
        pass
    values = np.full(len(cells), np.nan)
    for index, cell in enumerate(cells):
        if cell.strip().lower() in ABSENT:
            continue
        try:
            values[index] = float(cell)
        except ValueError:
            if not needed:
                continue
            raise ValueError(
                f"{path}: row {index + 2}, column {name!r} = {cell[:40]!r}; wanted a number. "
                "Repair or remove this row."
            ) from None
    return values


def _drop_unusable(found: PointSet, name: str) -> PointSet:
    values = getattr(found.points, name)
    drop = ~(np.isfinite(values) & (values > 0))
    return found.without(
        drop, [f"{name} = {value:g}: not a positive number" for value in values[drop]]
    )


def _drop_duplicates(found: PointSet, needs: Sequence[str], has_group: bool) -> PointSet:
    """Rows that repeat an earlier one in every column that counts would weigh it double."""
    points = found.points
    columns = [getattr(points, name) for name in needs]
    if has_group:
        columns.append(np.unique(points.group, return_inverse=True)[1].astype(float))
    if not len(points):
        return found
    _, first, which = np.unique(
        np.stack(columns, axis=1), axis=0, return_index=True, return_inverse=True
    )
    original = first[which.reshape(-1)]
    drop = original != np.arange(len(points))
    return found.without(drop, [f"same as {points.label[i]}" for i in original[drop]])
