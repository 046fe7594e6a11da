"""The steps to equal losses at several batch sizes, and the hyperbola through those of one loss.

To reach a loss L at batch B takes S = S_min + E_min/B steps, which is the hyperbola (S/S_min -
1)(E/E_min - 1) = 1 with E = B S (McCandlish et al. 2018, 1812.06162, eq 2.11; Kaplan et al. 2020,
section 5.1). A hyperbola is of one model size.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls

from analysis.points import LossPoints

FEWEST_BATCHES = 3
LEVELS = 10


@dataclass(frozen=True)
class Level:
    """Steps to one loss at several batches, of models of one size (NaN where nobody says it); `run`
    numbers the run that each came from, `weight` is the inverse square of its noise (of mean 1 over all points)."""

    params: float
    loss: float
    batch: np.ndarray
    steps: np.ndarray
    run: np.ndarray
    weight: np.ndarray

    @property
    def mean_weight(self) -> float:
        """What the critical batch of this loss weighs beside those of others."""
        return float(self.weight.mean())


def levels(points: LossPoints) -> list[Level]:
    """Of every model size (all rows as of one, where nobody says it): losses that rows of several
    batches share; else such levels cut from the learning curves."""
    points = replace(points, weight=points.weight / points.weight.mean())
    _, run = np.unique(points.group, return_inverse=True)
    run = run.reshape(-1)
    if not points.known("params"):
        return _of_size(points, run, float("nan"))
    sizes = [(n, points.params == n) for n in np.unique(points.params)]
    return [each for n, own in sizes for each in _of_size(points.only(own), run[own], float(n))]


def _of_size(points: LossPoints, run: np.ndarray, params: float) -> list[Level]:
    values, which = np.unique(points.loss, return_inverse=True)
    shared = [
        Level(params, float(value), points.batch[rows], points.steps[rows], run[rows], points.weight[rows])
        for value, rows in ((value, np.flatnonzero(which == i)) for i, value in enumerate(values))
        if len(np.unique(points.batch[rows])) >= FEWEST_BATCHES
    ] if len(values) <= len(points) // FEWEST_BATCHES else []  # fmt: skip
    return shared if len(shared) >= 2 else _from_curves(points, run, params)


def _from_curves(points: LossPoints, run: np.ndarray, params: float) -> list[Level]:
    """LEVELS losses, evenly in log, and the steps at which each run first reaches them (linear in
    log loss and log steps between evaluations; so is 1/weight, the square of the noise)."""
    curves = []
    for index in np.unique(run):
        rows = np.flatnonzero(run == index)
        rows = rows[np.argsort(points.steps[rows], kind="stable")]
        lowest = np.minimum.accumulate(points.loss[rows])
        keep = np.concatenate([[True], lowest[1:] < lowest[:-1]])
        if keep.sum() >= 2:
            rows = rows[keep]
            noise = 1 / points.weight[rows]
            curves.append((index, points.batch[rows[0]], points.steps[rows], lowest[keep], noise))
    if len(curves) < FEWEST_BATCHES:
        return []
    low, high = min(c[3].min() for c in curves), min(c[3].max() for c in curves)
    found = []
    for loss in np.geomspace(low, high, LEVELS + 2)[1:-1]:
        there = [c for c in curves if c[3][-1] <= loss <= c[3][0]]
        batch = np.array([c[1] for c in there])
        if len(np.unique(batch)) < FEWEST_BATCHES:
            continue
        steps, noise = (
            np.array([np.interp(-np.log(loss), -np.log(c[3]), column(c)) for c in there])
            for column in (lambda c: np.log(c[2]), lambda c: c[4])
        )
        runs = np.array([c[0] for c in there])
        found.append(Level(params, float(loss), batch, np.exp(steps), runs, 1 / noise))
    return found


def hyperbola(
    batch: np.ndarray, steps: np.ndarray, weight: np.ndarray | None = None
) -> tuple[float, float]:
    """(S_min, E_min) of S = S_min + E_min/B by non-negative least squares of S_fitted/S - 1, each square times
    its `weight` (1)."""
    root = np.ones(len(batch)) if weight is None else np.sqrt(weight)
    scale = float(np.exp(np.mean(np.log(batch))))
    design = np.stack([np.ones(len(batch)), scale / batch], axis=1) * (root / steps)[:, None]
    norm = np.linalg.norm(design, axis=0)
    found = nnls(design / norm, root)[0] / norm
    return float(found[0]), float(found[1] * scale)
