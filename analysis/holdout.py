"""Hold-out by compute: fit the cheap runs, predict the dear ones, and see how wrong that is.

Every fit is repeated on the points below a cut in compute (rolling origin) and judged on those above
it. These errors, not the residuals, say what a prediction beyond the data is worth.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis import solve
from analysis.laws import FLOPS_PER_PARAMETER_AND_TOKEN
from analysis.points import LossPoints, distinct
from analysis.separable import Law
from analysis.solution import fitted_theta, scaled_data

MEASURED = ("params", "tokens", "flops", "steps", "position")
MOST_SPLITS = 5
MOST_TRIED = 100
"""Cuts that are considered, evenly among the costs: no table is walked through once per point."""
SPARE_POINTS = 3
"""A split is fitted on at least so many distinct inputs more than the law has parameters."""
NEAR = 0.3
"""Decades: errors so near a cut count for predictions inside the data too."""
LEAST_SPAN = 0.5
"""Decades of compute that the points below a cut must span."""


FEWEST_HELD_OUT = 4
"""A forecast is called checked by at least so many different held-out runs: of three normal errors the
root mean square may be a quarter of the true one (chi-square, 95%), of one a thirtieth."""
LEAST_BELOW = 2.0
"""Decades of compute below the target that the points must reach down to, as in the published sets on
which widening by hold-outs was found to cover."""


@dataclass(frozen=True)
class Split:
    """One cut: log predicted - log measured of the points above it [points], how far each lies beyond
    those below, in decades of each of `measures` [points, measures], and numbers of what it shares its
    error with, the same in every split [points, kinds]: its trunk, and the points of equal inputs."""

    cut: float
    points_below: int
    decades: np.ndarray
    error: np.ndarray
    shared: np.ndarray
    weight: np.ndarray  # of each point above the cut

    @property
    def farthest(self) -> np.ndarray:
        """[points]: in the measure in which a point is farthest out."""
        return self.decades.max(axis=1)

    def as_json(self) -> dict[str, Any]:
        """The split as the report shows it."""
        return {
            "cut": self.cut,
            "points_below": self.points_below,
            "points_above": len(self.error),
            "decades_above": float(self.farthest.max()),
            "rms_error": float(np.sqrt(np.mean(self.error**2))),
            "mean_error": float(self.error.mean()),
        }


def cost(points: LossPoints, law: Law) -> np.ndarray:
    """What runs are ordered by, [P]: C = 6 N D for a law of N and D, whatever convention a column of
    compute may follow; else the variable itself."""
    if {"params", "tokens"} <= set(law.inputs):
        return FLOPS_PER_PARAMETER_AND_TOKEN * points.params * points.tokens
    if len(law.inputs) == 1:
        return points.x(law.inputs[0])
    return points.params * points.x(law.inputs[1])


def measures(points: LossPoints, law: Law) -> dict[str, np.ndarray]:
    """In what a target can lie beyond the data, each [P]: every variable of the law, and C = 6 N D for
    a law of N and D."""
    found = {name: points.x(name) for name in law.inputs if name in MEASURED}
    if {"params", "tokens"} <= set(found):
        found["flops"] = cost(points, law)
    return found


def decades_beyond(known: LossPoints, targets: LossPoints, law: Law) -> np.ndarray:
    """How far each target lies outside the range of the known points, [targets, measures]; 0 inside."""
    inside, wanted = measures(known, law), measures(targets, law)
    found = [
        np.maximum(np.log10(wanted[name] / values.max()), np.log10(values.min() / wanted[name]))
        for name, values in inside.items()
    ]
    return np.maximum(np.stack(found, axis=1), 0.0)


def decades_above_least(known: LossPoints, targets: LossPoints, law: Law) -> np.ndarray:
    """Decades of compute from the cheapest known point to each target, [targets]. A law of N or of D
    alone: twice those of its variable, as C ~ N^2 ~ D^2 along the optimum."""
    twice = 2.0 if law.inputs in (("params",), ("tokens",)) else 1.0
    return twice * np.log10(cost(targets, law) / cost(known, law).min())


def rolling_origin(points: LossPoints, law: Law, delta: float) -> list[Split]:
    """Up to MOST_SPLITS cuts, from the lowest that leaves enough points below to half the range."""
    order = cost(points, law)
    trunk = np.unique(points.trunk, return_inverse=True)[1].reshape(-1)
    cell = distinct(*(points.x(name) for name in law.inputs))[1]
    shared = np.stack([trunk, cell], axis=1)
    found = []
    for cut in _cuts(points, law, order):
        below = order <= cut * (1 + 1e-9)
        units, data = scaled_data(points.only(below), law)
        theta = fitted_theta(law, data, delta)
        above = points.only(~below)
        predicted = predicted_log_loss(law, theta[None], units, above)[0]
        found.append(
            Split(
                cut=float(cut),
                points_below=int(below.sum()),
                decades=decades_beyond(points.only(below), above, law),
                error=predicted - np.log(above.loss),
                shared=shared[~below],
                weight=above.weight,
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
    below = order <= cut * (
        1 + 1e-9
    )  # runs of one budget, whose 6 N D differ by rounding, are one cost
    if below.all() or np.log10(cut / order.min()) < LEAST_SPAN:
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


def rolling_width(splits: Sequence[Split], decades: np.ndarray) -> float:
    """Half the width of a 95% interval of log loss by the errors of splits at most as far out as the
    target's `decades` [measures]. NaN where there is no split. A held-out point counts by its weight, and a
    split by the points that it was fitted on: one of few points says little of a fit of all."""
    if not splits:
        return float("nan")
    nearest = min(float(each.farthest.min()) for each in splits)
    reach = max(float(np.max(decades)), NEAR, nearest)
    near = [(each, each.farthest <= reach) for each in splits]
    squares = [
        (np.average(split.error[chosen] ** 2, weights=split.weight[chosen]), split.points_below)
        for split, chosen in near
        if chosen.any()
    ]
    mean_square, _ = np.average(squares, axis=0, weights=[count for _, count in squares])
    return 1.96 * float(np.sqrt(mean_square))


def reached(splits: Sequence[Split], decades: np.ndarray, span: float) -> bool:
    """Whether hold-outs say enough of a target at `decades` [measures] beyond the data, `span` decades
    above their lowest compute: FEWEST_HELD_OUT held-out points that lie as far beyond a cut in every
    measure, of different trunks and different inputs (rows of one curve, or seeds of one cell, are one),
    and for a target outside the data LEAST_BELOW decades to learn from."""
    if not splits or (np.any(decades > 0) and span < LEAST_BELOW - 1e-9):
        return False
    far = [each.shared[np.all(each.decades >= decades - 1e-9, axis=1)] for each in splits]
    judged = np.concatenate(far)
    return min(len(np.unique(kind)) for kind in judged.T) >= FEWEST_HELD_OUT
