"""IsoFLOP curves: for each compute budget the model size of least loss, by three ways of smoothing.

Approach 2 of Hoffmann et al. 2022 (2203.15556): a parabola of log L in log N. It is biased where the
curve is not symmetric about its minimum (Czech et al. 2026, 2603.22339), so a cubic and an Akima
spline (Porian et al. 2024, 2406.19146) stand beside it. A minimum counts only where it is bracketed:
the lowest measured size is not the first or last of its budget, and the fitted one lies between them.
"""

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from analysis.points import LossPoints

SAME_BUDGET = 1.05
"""Runs belong to one budget as long as each costs at most so many times the one before."""
FEWEST_SIZES = {"parabola": 4, "cubic": 5, "akima": 4}
METHODS = tuple(FEWEST_SIZES)
FINE = 400


@dataclass(frozen=True)
class Budget:
    """The sizes of one budget, rising: log N, mean log loss, and the sum of the weights of its runs (their number
    where all weigh the same); of each run its row among the points, its weight (of mean 1 over all points) and
    which of the sizes it is."""

    flops: float
    log_params: np.ndarray
    log_loss: np.ndarray
    weight: np.ndarray
    rows: np.ndarray
    weight_of_row: np.ndarray
    size_of_row: np.ndarray

    @property
    def is_bracketed(self) -> bool:
        """Whether larger and smaller sizes than the best were measured."""
        return 0 < int(np.argmin(self.log_loss)) < len(self.log_loss) - 1


def budgets(points: LossPoints) -> list[Budget]:
    """Runs gathered by compute, by rising compute; the mean of a size is by the weights of its runs."""
    if not len(points):
        return []
    weight = points.weight / points.weight.mean()
    order = np.argsort(points.flops, kind="stable")
    flops = points.flops[order]
    starts = np.flatnonzero(np.concatenate([[True], flops[1:] > flops[:-1] * SAME_BUDGET]))
    found = []
    for rows in np.split(order, starts[1:]):
        params, which = np.unique(points.params[rows], return_inverse=True)
        which, own = which.reshape(-1), weight[rows]
        total = np.bincount(which, own)
        mean = np.bincount(which, own * np.log(points.loss[rows])) / total
        middle = float(np.exp(np.mean(np.log(points.flops[rows]))))
        found.append(Budget(middle, np.log(params), mean, total, rows, own, which))
    return found


def minima(budget: Budget, method: str, log_loss_BP: np.ndarray) -> np.ndarray:
    """log N of least loss for each draw of the losses [B, P]; NaN where it is not inside the sizes
    that were measured, or where they are too few for the method."""
    x = budget.log_params
    if len(x) < FEWEST_SIZES[method]:
        return np.full(len(log_loss_BP), np.nan)
    centre, half = (x[0] + x[-1]) / 2, (x[-1] - x[0]) / 2
    z = (x - centre) / half
    if method == "akima":
        fine = np.linspace(z[0], z[-1], FINE)  # z is -1 and 1 there but for rounding
        curve = Akima1DInterpolator(z, log_loss_BP, axis=1)(fine)
        at = np.argmin(curve, axis=1)
        found = np.where((at > 0) & (at < FINE - 1), fine[at], np.nan)
    else:
        degree = 2 if method == "parabola" else 3
        design = np.vander(z, degree + 1, increasing=True) * np.sqrt(budget.weight)[:, None]
        scaled = log_loss_BP * np.sqrt(budget.weight)
        found = _lowest(np.linalg.lstsq(design, scaled.T, rcond=None)[0])
    return centre + half * found


def _lowest(c: np.ndarray) -> np.ndarray:
    """Where inside (-1, 1) the polynomial with coefficients c [degree + 1, B], lowest first, has
    its minimum: slope zero and curvature positive."""
    third = 3 * c[3] if len(c) == 4 else np.zeros(c.shape[1])
    with np.errstate(all="ignore"):
        root = np.sqrt(c[2] ** 2 - third * c[1])
        # the root of c1 + 2 c2 z + third z^2 where the slope rises, without cancellation
        at = np.where(c[2] >= 0, -c[1] / (c[2] + root), (-c[2] + root) / third)
    return np.where(np.abs(at) < 1, at, np.nan)


def vertex_line(log_flops: np.ndarray, log_params_BM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(log params_scale, exponent) of N_opt = (C/params_scale)^exponent through the minima of every
    draw [B, M]; those that are NaN are left out. NaN with fewer than two."""
    known = np.isfinite(log_params_BM)
    count = known.sum(axis=1)
    y = np.where(known, log_params_BM, 0.0)
    with np.errstate(all="ignore"):
        mean_x = (known * log_flops).sum(axis=1) / count
        mean_y = y.sum(axis=1) / count
        dx = known * (log_flops - mean_x[:, None])
        exponent = np.sum(dx * y, axis=1) / np.sum(dx**2, axis=1)
        exponent = np.where(count >= 2, exponent, np.nan)
        return mean_x - mean_y / exponent, exponent
