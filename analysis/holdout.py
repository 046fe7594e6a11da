"""Hold-out by compute: fit the cheap runs, predict the dear ones, and see how wrong that is.

Every fit is repeated on the points below a cut in compute (rolling origin) and judged on those above
it. These errors, not the residuals, say what a prediction beyond the data is worth.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis import solve
from analysis.points import LossPoints, distinct
from analysis.separable import Law
from analysis.solution import fitted_theta, scaled_data

MOST_SPLITS = 5
MOST_TRIED = 100
"""Cuts that are considered, evenly among the costs: no table is walked through once per point."""
SPARE_POINTS = 3
"""A split is fitted on at least so many distinct inputs more than the law has parameters."""
NEAR = 0.3
"""Decades: errors so near a cut count for predictions inside the data too."""
LEAST_SPAN = 0.5
"""Decades of compute that the points below a cut must span."""


@dataclass(frozen=True)
class Split:
    """One cut: log predicted - log measured of the points above it, and how far above they are."""

    cut: float
    points_below: int
    decades: np.ndarray  # log10(C/cut) of each point above
    error: np.ndarray

    def as_json(self) -> dict[str, Any]:
        """The split as the report shows it."""
        return {
            "cut": self.cut,
            "points_below": self.points_below,
            "points_above": len(self.error),
            "decades_above": float(self.decades.max()),
            "rms_error": float(np.sqrt(np.mean(self.error**2))),
            "mean_error": float(self.error.mean()),
        }


def cost(points: LossPoints, law: Law) -> np.ndarray:
    """What runs are ordered by: compute for a law of N and D, else the variable itself. [P]"""
    if {"params", "tokens"} <= set(law.inputs):
        return points.flops if points.known("flops") else 6 * points.params * points.tokens
    if len(law.inputs) == 1:
        return points.x(law.inputs[0])
    return points.params * points.x(law.inputs[1])


def rolling_origin(points: LossPoints, law: Law, delta: float) -> list[Split]:
    """Up to MOST_SPLITS cuts, from the lowest that leaves enough points below to half the range."""
    order = cost(points, law)
    found = []
    for cut in _cuts(points, law, order):
        below = order <= cut * (1 + 1e-9)
        units, data = scaled_data(points.only(below), law)
        theta = fitted_theta(law, data, delta)
        predicted = predicted_log_loss(law, theta[None], units, points.only(~below))[0]
        found.append(
            Split(
                cut=float(cut),
                points_below=int(below.sum()),
                decades=np.log10(order[~below] / cut),
                error=predicted - np.log(points.loss[~below]),
            )
        )
    return found


def _cuts(points: LossPoints, law: Law, order: np.ndarray) -> np.ndarray:
    """Costs to cut at, evenly spaced in log cost between the two ends that allow a split."""
    values = np.unique(order)[:-1]
    if not len(values):
        return values
    values = values[np.unique(np.linspace(0, len(values) - 1, MOST_TRIED).astype(int))]
    allowed = [value for value in values if _enough(points, law, order, value)]
    if not allowed:
        return np.empty(0)
    wanted = np.geomspace(allowed[0], allowed[-1], MOST_SPLITS)
    nearest = [min(allowed, key=lambda value: abs(np.log(value / each))) for each in wanted]
    return np.unique(nearest)


def _enough(points: LossPoints, law: Law, order: np.ndarray, cut: float) -> bool:
    below = order <= cut * (1 + 1e-9)
    if np.log10(cut / order.min()) < LEAST_SPAN:
        return False
    columns = [points.x(name)[below] for name in law.inputs if not name.startswith("unique_")]
    spread = len(columns) == 1 or all(len(np.unique(each)) >= 3 for each in columns)
    return spread and len(distinct(*columns)[0]) >= len(law.parameters) + SPARE_POINTS


def predicted_log_loss(
    law: Law, theta: np.ndarray, units: tuple[float, ...], points: LossPoints
) -> np.ndarray:
    """log L of each parameter set at each point, [B, P]."""
    log_x = np.stack([np.log(points.x(name)) for name in law.inputs]) - np.log(units)[:, None]
    empty = np.zeros((1, log_x.shape[1]))
    return solve.residuals(law, solve.Data(log_x, empty, empty), theta)


def rolling_width(splits: Sequence[Split], decades: float) -> tuple[float, bool]:
    """Half the width of a 95% interval of log loss by the errors of splits at most as far out as
    `decades`, and whether any split reaches that far. NaN where there is no split. A split counts
    by the points that it was fitted on: one of few points says little of a fit of all."""
    if not splits:
        return float("nan"), False
    reach = max(decades, NEAR, min(float(each.decades.min()) for each in splits))
    near = [(each, each.error[each.decades <= reach]) for each in splits]
    squares = [(np.mean(error**2), split.points_below) for split, error in near if len(error)]
    mean_square, _ = np.average(squares, axis=0, weights=[count for _, count in squares])
    farthest = max(float(each.decades.max()) for each in splits)
    return 1.96 * float(np.sqrt(mean_square)), farthest >= decades
