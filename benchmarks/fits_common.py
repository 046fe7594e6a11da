"""What the parts of `benchmarks.fits` share: a row of the table, and reading tables of points."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.points import LossPoints, PointSet


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    ours: str
    bar: str
    met: bool | None = None

    def text(self) -> str:
        """As a line of Markdown."""
        met = {None: "–", True: "yes", False: "no"}[self.met]
        return f"| {self.what} | {self.ours} | {self.bar} | {met} |"


def points_of(params: np.ndarray, tokens: np.ndarray, loss: np.ndarray) -> PointSet:
    """A point set of columns, each row its own group."""
    label = np.array([f"row {index}" for index in range(len(loss))])
    columns = LossPoints.of(label, label, params=params, tokens=tokens, loss=loss)
    return PointSet("benchmark", columns, ())


def columns(rows: list[dict], *names: str) -> list[np.ndarray]:
    """Columns of a table as numbers."""
    return [np.array([float(row[name]) for row in rows]) for name in names]


def read(path: Path) -> list[dict]:
    """Rows of a CSV or of JSON lines."""
    with path.open(newline="") as file:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in file]
        return list(csv.DictReader(file))
