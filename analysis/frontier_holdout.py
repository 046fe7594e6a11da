"""Hold-out by compute for the frontier: L(C) of what was spent below a cut, judged on the frontier above.

The same rolling origin as `analysis.holdout`, with learning curves cut off at the compute of the cut,
as if the study had stopped there.
"""

from dataclasses import replace

import numpy as np

from analysis.estimate import Estimate
from analysis.frontier import FEWEST_FRONTIER_POINTS, fit_below, trace
from analysis.holdout import LEAST_SPAN, MOST_SPLITS, SPARE_POINTS, Split, reached, rolling_width
from analysis.points import LossPoints

FEWEST_SIZES = 2
MOST_TRIED = 24
"""Cuts that are considered, evenly in log compute."""


def frontier_splits(points: LossPoints) -> list[Split]:
    """Up to MOST_SPLITS cuts, from the lowest that leaves a frontier to fit below it."""
    frontier = trace(points).efficient
    cost, log_loss = points.flops[frontier], np.log(points.loss[frontier])
    runs = np.unique(points.trunk[frontier], return_inverse=True)[1].reshape(-1, 1)
    if len(cost) < FEWEST_FRONTIER_POINTS + SPARE_POINTS:
        return []
    tried = (_split(points, cut, cost, log_loss, runs) for cut in _cuts(cost))
    found = [split for split in tried if split is not None]
    wanted = np.linspace(0, len(found) - 1, min(MOST_SPLITS, len(found)))
    return [found[round(index)] for index in wanted]


def _cuts(cost: np.ndarray) -> np.ndarray:
    """Costs of frontier points, evenly in log compute, the dearest left out."""
    wanted = np.geomspace(cost[0], cost[-1], MOST_TRIED)
    return np.unique(cost[:-1][np.searchsorted(cost[:-1], wanted).clip(max=len(cost) - 2)])


def _split(
    points: LossPoints, cut: float, cost: np.ndarray, log_loss: np.ndarray, runs: np.ndarray
) -> Split | None:
    """L(C) of all points up to the cut against the frontier above it; None where they carry none."""
    below = points.only(points.flops <= cut)
    frontier = trace(below)
    fitted = below.flops[frontier.fitted]
    if (
        len(fitted) < FEWEST_FRONTIER_POINTS + SPARE_POINTS
        or np.log10(fitted.max() / fitted.min()) < LEAST_SPAN
        or len(np.unique(below.params[frontier.efficient])) < FEWEST_SIZES
    ):
        return None
    law = fit_below(fitted, below.loss[frontier.fitted])
    above = cost > cut
    predicted = law.irreducible + (law.scale / cost[above]) ** law.exponent
    error = np.log(predicted) - log_loss[above]
    decades = np.log10(cost[above] / cut)[:, None]
    alike = np.ones(len(error))
    return Split(float(cut), len(fitted), decades, error, runs[above], alike)


def widened(
    loss: Estimate, splits: list[Split], decades: float, span: float
) -> tuple[Estimate, bool]:
    """A predicted loss with its interval widened to what hold-outs missed at most as far out as
    `decades`, and whether enough of them reach so far (`holdout.reached`)."""
    beyond = np.array([decades])
    half = rolling_width(splits, beyond)
    if not np.isfinite(half):
        return loss, False
    low = float(np.fmin(loss.low, loss.value * np.exp(-half)))
    high = float(np.fmax(loss.high, loss.value * np.exp(half)))
    return replace(loss, low=low, high=high), reached(splits, beyond, span)
