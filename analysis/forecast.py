"""Losses of runs not yet made, with intervals that hold-outs have checked.

The interval of a prediction joins four things: the spread of the constants (bootstrap draws), the
choice of law (`analysis.ensemble`), the scatter of single runs about the law, and the error that the
same law made when it was fitted below a cut in compute and judged above it (`analysis.holdout`).
Without the last, nominal 95% intervals cover far fewer of the next decade's runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.ensemble import Member, members, mixture, thinned
from analysis.estimate import QUANTILES
from analysis.holdout import (
    Split,
    cost,
    decades_above_least,
    decades_beyond,
    measures,
    predicted_log_loss,
    reached,
    rolling_origin,
    rolling_width,
)
from analysis.points import LossPoints, PointSet
from analysis.separable import Law


@dataclass(frozen=True)
class Forecast:
    """Per target point [P]: the loss by the asked law, its 95% interval, the decades beyond the data in
    each of `holdout.measures`, and whether hold-outs say enough so far out."""

    loss: np.ndarray
    low: np.ndarray
    high: np.ndarray
    decades: dict[str, np.ndarray]
    calibrated: np.ndarray


@dataclass(frozen=True)
class Forecaster:
    """A fitted ensemble with its hold-outs, ready for any target."""

    points: LossPoints
    law: Law
    members: list[Member]
    splits: Sequence[Split]
    draws: int
    seed: int

    def at(self, targets: LossPoints) -> Forecast:
        """The loss at each target; its columns are the law's inputs."""
        first = self.members[0]
        theta = first.solution.theta[None]
        value = predicted_log_loss(first.law, theta, first.units, targets)[0]
        low, high = self._mixed(targets, value)
        decades = decades_beyond(self.points, targets, self.law)
        half = np.array([rolling_width(self.splits, each) for each in decades])
        low, high = np.fmin(low, value - half), np.fmax(high, value + half)
        spans = decades_above_least(self.points, targets, self.law)
        enough = [
            reached(self.splits, each, span) for each, span in zip(decades, spans, strict=True)
        ]
        named = dict(zip(measures(self.points, self.law), decades.T, strict=True))
        return Forecast(np.exp(value), np.exp(low), np.exp(high), named, np.array(enough, bool))

    def _mixed(self, targets: LossPoints, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([self.seed, 2])
        known, wanted = (np.log(cost(each, self.law)) for each in (self.points, targets))
        drawn = []
        for each, theta in mixture(self.members, self.draws, self.seed):
            noise = np.array([each.scatter_near(known, at) for at in wanted])
            normal = rng.standard_normal((len(theta), 1))
            curve = predicted_log_loss(each.law, theta, each.units, targets)
            drawn.append(curve + noise * normal)
        if not drawn:
            return value, value
        low, high = np.quantile(np.concatenate(drawn), QUANTILES, axis=0)
        return np.minimum(low, value), np.maximum(high, value)


def forecaster(found: PointSet, law: Law, draws: int, seed: int) -> Forecaster:
    """Fit the ensemble and make its hold-outs."""
    found = thinned(found)
    fitted = members(found, law, draws, seed)
    splits = rolling_origin(found.points, law, fitted[0].solution.delta)
    return Forecaster(found.points, law, fitted, splits, draws, seed)
