"""A CSV with a header -> points. Other people's measurements come in here.

A row whose needed number is absent, NaN, infinite or not positive is left out and listed; text
where a number belongs is refused, since it usually means a wrong column or a wrong file. The file is
read in pieces, so that memory is that of the numbers and not of the text.
"""

import csv
import difflib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from analysis.guards import INCLUDES
from analysis.points import NUMBER_COLUMNS, LossPoints, PointSet, distinct

ABSENT = frozenset(("", "na", "n/a", "none", "null", "-"))
"""Cells that say "not measured" (compared in lower case); nan and inf are numbers already."""

ONE_VALUE = ("tokenizer", "evaluation", "counting")
"""Columns that, where a table has them, must hold one value: losses are comparable only on the same
tokens and rows, sizes only in the same convention."""

STATUS = "status"
"""A column that may say of a row what keeps runs out (`guards.INCLUDES`); other values say nothing."""

ROWS_AT_ONCE = 50_000


def read_table(path: Path, needs: Sequence[str], include: Collection[str] = ()) -> PointSet:
    """Points of a CSV. `needs` names the columns that the law uses; `weight`, `group`, `status` and
    those of ONE_VALUE are read if present; other known columns too, and with a remark none of one that
    does not hold a positive number in every row; unknown columns are ignored. Raises `ValueError` that
    names file and row."""
    header = read_header(path)
    _check_header(path, header, needs)
    numbers = [name for name in (*NUMBER_COLUMNS, "weight") if name in header]
    texts = [name for name in ("group", STATUS) if name in header]
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in (*numbers, *texts)}
    seen: dict[str, dict[str, int]] = {name: {} for name in ONE_VALUE if name in header}
    needed, first = {*needs, "weight"}, 2
    for rows in _pieces(path, header):
        columns = dict(zip(header, zip(*rows, strict=True), strict=True))
        for name in numbers:
            pieces[name].append(_numbers(path, name, columns[name], name in needed, first))
        for name in texts:
            pieces[name].append(np.array([cell.strip() for cell in columns[name]]))
        for name, values in seen.items():
            _note_values(path, name, columns[name], values, first)
        first += len(rows)
    if first == 2:
        raise ValueError(_too_short(path, 1))
    whole = {name: np.concatenate(parts) for name, parts in pieces.items()}
    label = np.array([f"{path.name} row {index}" for index in range(2, first)])
    group = whole.pop("group", np.arange(first - 2))
    status = whole.pop(STATUS, None)
    found = PointSet(str(path), LossPoints.of(group, label, **whole), ())
    if status is not None:
        found = _drop_by_status(found, status, include)
    for name in numbers:
        if name in needed:
            found = _drop_unusable(found, name)
    found = _drop_duplicates(found, needs, "group" in header)
    for name in numbers:
        if name not in needed:
            found = _without_column(found, name)
    return found


def read_header(path: Path) -> list[str]:
    """The column names of a CSV."""
    first = next(_lines(path), None)
    if first is None:
        raise ValueError(_too_short(path, 0))
    return [name.strip() for name in first]


def _lines(path: Path) -> Iterator[list[str]]:
    """Every row that is not empty."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield from (row for row in csv.reader(file) if row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{path}: not readable as text ({error}); wanted a CSV with a header, or a results "
            "folder. Check that this is the file you meant."
        ) from error


def _pieces(path: Path, header: list[str]) -> Iterator[list[list[str]]]:
    """The rows below the header, ROWS_AT_ONCE at a time, each as long as the header."""
    lines = _lines(path)
    next(lines)
    number = 2
    while rows := list(islice(lines, ROWS_AT_ONCE)):
        for offset, row in enumerate(rows):
            if len(row) != len(header):
                raise ValueError(
                    f"{path}: row {number + offset} has {len(row)} cells; wanted {len(header)}, as in "
                    "the header. Repair or remove this row."
                )
        yield rows
        number += len(rows)


def _too_short(path: Path, lines: int) -> str:
    return (
        f"{path}: {lines} lines; wanted a CSV with a header and at least one row of points. Check "
        "that this is the file you meant."
    )


def _check_header(path: Path, header: list[str], needs: Sequence[str]) -> None:
    missing = [name for name in needs if name not in header]
    read = {*NUMBER_COLUMNS, "weight", "group", STATUS, *ONE_VALUE}
    repeated = sorted({name for name in header if header.count(name) > 1} & read)
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


def _note_values(
    path: Path, name: str, cells: Sequence[str], values: dict[str, int], first: int
) -> None:
    """Remember where each value of a ONE_VALUE column came first; refuse a second one."""
    for value in set(cells) - set(values):
        values[value] = first + cells.index(value)
    if len(values) > 1:
        (one, at), (other, there) = sorted(values.items(), key=lambda each: each[1])[:2]
        raise ValueError(
            f"{path}: column {name!r} holds {one[:40]!r} (row {at}) and {other[:40]!r} (row {there}); "
            "wanted one value: such losses or sizes are not comparable in one fit. Split the table, "
            "or remove the column if it means something else."
        )


def _numbers(path: Path, name: str, cells: Sequence[str], needed: bool, first: int) -> np.ndarray:
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
                f"{path}: row {index + first}, column {name!r} = {cell[:40]!r}; wanted a number. "
                "Repair or remove this row."
            ) from None
    return values


def _drop_by_status(found: PointSet, status: np.ndarray, include: Collection[str]) -> PointSet:
    status = np.char.lower(status)
    drop = np.isin(status, [name for name in INCLUDES if name not in include])
    reasons = [f"{name}: as its column status says" for name in status[drop]]
    return found.without(drop, reasons)


def _drop_unusable(found: PointSet, name: str) -> PointSet:
    values = getattr(found.points, name)
    drop = ~(np.isfinite(values) & (values > 0))
    return found.without(
        drop, [f"{name} = {value:g}: not a positive number" for value in values[drop]]
    )


def _without_column(found: PointSet, name: str) -> PointSet:
    """A column that the law does not need is used (for compute, residuals, distances) only if every row
    has it; else none of it is, and a remark says so."""
    values = getattr(found.points, name)
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if not len(bad):
        return found
    points = replace(found.points, **{name: np.full(len(values), np.nan)})
    remark = (
        f"column_ignored: {name} is no positive number in {len(bad)} of {len(values)} rows (first "
        f"{found.points.label[bad[0]]}: {values[bad[0]]:g}); this law does not need it, and none of "
        "it is used."
    )
    return replace(found, points=points, remarks=(*found.remarks, remark))


def _drop_duplicates(found: PointSet, needs: Sequence[str], has_group: bool) -> PointSet:
    """Rows that repeat an earlier one in every column that counts would weigh it double."""
    points = found.points
    columns = [getattr(points, name) for name in needs if name != "group"]
    first, kind = distinct(*columns, *([points.group] if has_group else []))
    original = first[kind]
    drop = original != np.arange(len(points))
    return found.without(drop, [f"same as {points.label[i]}" for i in original[drop]])
