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
from analysis.points import NUMBER_COLUMNS, X_SYMBOLS, LossPoints, PointSet, distinct

ABSENT = frozenset(("", "na", "n/a", "none", "null", "-"))
"""Cells that say "not measured" (compared in lower case); nan and inf are numbers already."""

ONE_VALUE = ("tokenizer", "evaluation", "counting")
"""Columns that, where a table has them, must hold one value: losses are comparable only on the same
tokens and rows, sizes only in the same convention."""

STATUS = "status"
"""A column that may say of a row what keeps runs out (`guards.INCLUDES`); other values say nothing."""

ROWS_AT_ONCE = 50_000
LARGEST_LOSS = 1e9
LEAST_LOSS = 1e-9
"""No measured loss is anywhere near these; beyond them the search for the best constants loses its footing."""

LEAST_WEIGHT = 1e-6
"""Of the largest weight: a row of a thousand times the noise of the best one says nothing, and what is drawn for it
leaves the range of numbers."""

SYMBOLS = X_SYMBOLS | {"loss": "L", "steps": "S", "batch": "B", "unique_tokens": "U"}
UNITS = {"params": "parameters", "tokens": "tokens", "flops": "FLOPs", "unique_tokens": "tokens"}


def read_table(
    path: Path, needs: Sequence[str], include: Collection[str] = (), weighs: bool = True
) -> PointSet:
    """Points of a CSV. `needs` names the columns that the law uses; `weight` (where the law `weighs`; else
    a remark), `group`, `status` and those of ONE_VALUE are read if present; other known columns too, and
    with a remark none of one that does not hold a positive number in every row; unknown columns tell rows
    apart, no more. Raises `ValueError` that names file and row."""
    header = read_header(path)
    _check_header(path, header, needs)
    weights = ["weight"] if weighs and "weight" in header else []
    numbers = [*(name for name in NUMBER_COLUMNS if name in header), *weights]
    needed = [name for name in numbers if name in needs or name in weights]
    label, rest, whole = _columns_of(path, header, numbers, needed)
    group = whole.pop("group", np.arange(len(label)))
    status = whole.pop(STATUS, None)
    found = PointSet(str(path), LossPoints.of(group, label, **whole), ())
    if "weight" in header and not weighs:
        found = _with_remark(
            found,
            "weight_ignored: this law counts every row alike, being bounded by the lowest losses; the column weight "
            "is not used.",
        )
    found = _drop_duplicates(found, needed, rest)
    if status is not None:
        found = _drop_by_status(found, status, include)
    for name in needed:
        found = _remark_units(_drop_unusable(found, name), name)
    if weights:
        found = _drop_weightless(found)
    for name in numbers:
        if name not in needed:
            found = _without_column(found, name)
    return found


def _columns_of(
    path: Path, header: list[str], numbers: Sequence[str], needed: Collection[str]
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """The label of each row; a number that is equal for rows whose cells outside `needed` are the same
    text; and the columns of `numbers`, `group` and STATUS."""
    texts = [name for name in ("group", STATUS) if name in header]
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in (*numbers, *texts)}
    seen: dict[str, dict[str, int]] = {name: {} for name in ONE_VALUE if name in header}
    others = [index for index, name in enumerate(header) if name not in needed]
    label, rest = [], []
    for at, rows in _pieces(path, header):
        columns = dict(zip(header, zip(*rows, strict=True), strict=True))
        for name in numbers:
            pieces[name].append(_numbers(path, name, columns[name], name in needed, at))
        for name in texts:
            pieces[name].append(np.array([cell.strip() for cell in columns[name]]))
        for name, values in seen.items():
            _note_values(path, name, columns[name], values, at)
        label.append(np.array([f"{path.name} row {number}" for number in at]))
        rest.append(np.array([hash(tuple(row[index].strip() for index in others)) for row in rows]))
    if not label:
        raise ValueError(_too_short(path, 1))
    whole = {name: np.concatenate(parts) for name, parts in pieces.items()}
    return np.concatenate(label), np.concatenate(rest), whole


def read_header(path: Path) -> list[str]:
    """The column names of a CSV."""
    first = next(_lines(path), None)
    if first is None:
        raise ValueError(_too_short(path, 0))
    return [name.strip() for name in first[1]]


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Every row that is not empty, with its number in the file, from 1."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield from ((number, row) for number, row in enumerate(csv.reader(file), 1) if row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{path}: not readable as text ({error}); wanted a CSV with a header, or a results "
            "folder. Check that this is the file you meant."
        ) from error


def _pieces(path: Path, header: list[str]) -> Iterator[tuple[list[int], list[list[str]]]]:
    """The numbers and cells of the rows below the header, ROWS_AT_ONCE at a time, each as long as the
    header."""
    lines = _lines(path)
    next(lines)
    while numbered := list(islice(lines, ROWS_AT_ONCE)):
        for number, row in numbered:
            if len(row) != len(header):
                raise ValueError(
                    f"{path}: row {number} has {len(row)} cells; wanted {len(header)}, as in the header. "
                    "Repair or remove this row."
                )
        yield [number for number, _ in numbered], [row for _, row in numbered]


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
    hint = _nearest(missing, [column for column in header if column not in read])
    if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
        hint = "Its header looks separated by another character: write it with commas."
    raise ValueError(
        f"{path}: no column {', '.join(map(repr, missing))}; found {', '.join(header)}; wanted "
        f"{', '.join(needs)}. {hint}"
    )


def _nearest(missing: Sequence[str], unused: list[str]) -> str:
    """What to do about missing columns, by those that mean nothing yet: their symbol, or a name alike."""
    lower = [column.lower() for column in unused]
    near, units = [], []
    for name in missing:
        alike = difflib.get_close_matches(name, lower, n=1, cutoff=0.4)
        column = SYMBOLS.get(name) if SYMBOLS.get(name) in unused else None
        if column is None and alike:
            column = unused[lower.index(alike[0])]
        if column is not None:
            near.append(f"{column!r} for {name!r}" if len(missing) > 1 else repr(column))
            units += [UNITS[name]] if name in UNITS else []
    if not near:
        return "Add it, or choose a law that does not need it."
    plain = f" Count single {' and '.join(dict.fromkeys(units))}, not millions." if units else ""
    return f"The nearest is {', '.join(near)}: rename it if that is it.{plain}"


def _note_values(
    path: Path, name: str, cells: Sequence[str], values: dict[str, int], at: Sequence[int]
) -> None:
    """Remember in which row each value of a ONE_VALUE column came first; refuse a second one."""
    for value in set(cells) - set(values):
        values[value] = at[cells.index(value)]
    if len(values) > 1:
        (one, here), (other, there) = sorted(values.items(), key=lambda each: each[1])[:2]
        raise ValueError(
            f"{path}: column {name!r} holds {one[:40]!r} (row {here}) and {other[:40]!r} (row {there}); "
            "wanted one value: such losses or sizes are not comparable in one fit. Split the table, "
            "or remove the column if it means something else."
        )


def _numbers(
    path: Path, name: str, cells: Sequence[str], needed: bool, at: Sequence[int]
) -> np.ndarray:
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
                f"{path}: row {at[index]}, column {name!r} = {cell[:40]!r}; wanted a number. "
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
    least, most = (LEAST_LOSS, LARGEST_LOSS) if name == "loss" else (0.0, np.inf)
    drop = ~(np.isfinite(values) & (values > 0) & (values >= least) & (values <= most))
    reasons = [
        f"{name} = {value:g}: "
        + (
            f"above {most:g}"
            if most < value < np.inf
            else f"below {least:g}"
            if 0 < value < least
            else "not a positive number"
        )
        for value in values[drop]
    ]
    return found.without(drop, reasons)


def _drop_weightless(found: PointSet) -> PointSet:
    weight = found.points.weight
    drop = weight < LEAST_WEIGHT * weight.max(initial=0.0)
    reasons = [
        f"weight = {each:g}: less than {LEAST_WEIGHT:g} of the largest, {weight.max():g}, so the row says nothing"
        for each in weight[drop]
    ]
    return found.without(drop, reasons)


def _remark_units(found: PointSet, name: str) -> PointSet:
    """Say so where a size is less than one parameter, or the like: the column has another unit."""
    values = getattr(found.points, name)
    if name not in UNITS or not np.any(values < 1):
        return found
    return _with_remark(
        found,
        f"units: {name} = {values.min():.3g}, which is less than one; wanted single {UNITS[name]}, not millions, "
        "billions or PF-days: constants have the unit of the column, and C = 6 N D is in FLOPs only then.",
    )


def _with_remark(found: PointSet, remark: str) -> PointSet:
    return replace(found, remarks=(*found.remarks, remark))


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
    return _with_remark(replace(found, points=points), remark)


def _drop_duplicates(found: PointSet, needed: Sequence[str], rest: np.ndarray) -> PointSet:
    """Rows that repeat an earlier one in every cell, the numbers that are `needed` however they are written,
    would weigh it double. Rows that differ in any column, a seed say, are measurements of their own."""
    points = found.points
    first, kind = distinct(*(np.nan_to_num(getattr(points, name)) for name in needed), rest)
    original = first[kind]
    drop = original != np.arange(len(points))
    return found.without(drop, [f"same as {points.label[i]}" for i in original[drop]])
