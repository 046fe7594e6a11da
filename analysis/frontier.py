"""The compute-efficient frontier of learning curves: L(C), N_opt(C) and D_opt(C).

Follows Henighan et al. 2020 (2010.14701, sections 2-3, figures 2 and 5): L(C) is a power law plus
constant forced to lie below the Pareto frontier of all learning curves; N_opt(C) is a power law
through the convex hull of that frontier in log loss and log compute.

What is ours, because it decides whether the exponents mean anything: of the hull only the
handovers are used, the edges where the best size changes; each gives one point, the geometric
middle of both sizes and of both computes. A handover is bracketed if both of its ends lie inside
their learning curves. One that touches a curve's first or last evaluation says only where the
measurement began or stopped: with equal tokens for every size it gives N ~ C whatever the truth.
On planted surfaces bracketed handovers return the true exponent within 0.02-0.04, all hull points
together miss it by up to 0.5 (tests/analysis/test_frontier.py).
"""

from dataclasses import dataclass

import numpy as np

from analysis.laws import EXPONENT_LIMITS
from analysis.points import LossPoints, pareto

EXPONENT_GRID = np.geomspace(*EXPONENT_LIMITS, 90)
ZOOMS = 4
FEWEST_FRONTIER_POINTS = 4  # the three constants of L(C), and one to spare


@dataclass(frozen=True)
class Handovers:
    """Where the frontier passes from one size to the next, by rising compute."""

    left: np.ndarray  # index of the last hull point of the smaller share of compute
    right: np.ndarray  # index of the first hull point of the next size
    flops: np.ndarray  # geometric middle of both
    params: np.ndarray  # geometric middle of both sizes
    bracketed: np.ndarray  # neither end is the first or last evaluation of its curve

    @property
    def used(self) -> np.ndarray:
        """The bracketed ones if they give a slope (two or more), else all."""
        enough = int(self.bracketed.sum()) >= 2
        return self.bracketed if enough else np.ones(len(self.flops), bool)


@dataclass(frozen=True)
class Frontier:
    """Indices into the learning-curve points, by rising compute."""

    efficient: np.ndarray
    hull: np.ndarray
    handovers: Handovers
    fitted: np.ndarray  # the part of `efficient` that L(C) is fitted to


@dataclass(frozen=True)
class Envelope:
    """L(C) = irreducible + (scale/C)^exponent, nowhere above the frontier points it came from."""

    irreducible: float
    scale: float
    exponent: float
    gap: float  # mean of 1 - L(C_i)/L_i over the frontier, each point by the log-compute it covers


def trace(points: LossPoints) -> Frontier:
    """Pareto frontier, convex hull, handovers, and the stretch of frontier that they bracket."""
    efficient = pareto(points.flops, points.loss)
    hull = efficient[lower_hull(np.log(points.flops[efficient]), np.log(points.loss[efficient]))]
    handovers = _handovers(points, hull)
    fitted = efficient
    if handovers.bracketed.sum() >= 2:
        ends = points.flops[
            np.concatenate([handovers.left, handovers.right])[np.tile(handovers.bracketed, 2)]
        ]
        cost = points.flops[efficient]
        inside = efficient[(cost >= ends.min()) & (cost <= ends.max())]
        fitted = inside if len(inside) >= FEWEST_FRONTIER_POINTS else efficient
    return Frontier(efficient, hull, handovers, fitted)


def lower_hull(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Indices of the lower convex hull of points already in rising order of x (monotone chain)."""
    hull: list[int] = []
    for i in range(len(x)):
        while len(hull) >= 2:
            a, b = hull[-2], hull[-1]
            if (x[b] - x[a]) * (y[i] - y[a]) > (y[b] - y[a]) * (x[i] - x[a]):
                break
            hull.pop()
        hull.append(i)
    return np.array(hull, int)


def _handovers(points: LossPoints, hull: np.ndarray) -> Handovers:
    sizes = points.params[hull]
    change = np.flatnonzero(sizes[1:] != sizes[:-1])
    left, right = hull[change], hull[change + 1]
    ends = _curve_ends(points)
    return Handovers(
        left=left,
        right=right,
        flops=np.sqrt(points.flops[left] * points.flops[right]),
        params=np.sqrt(points.params[left] * points.params[right]),
        bracketed=~(np.isin(left, ends) | np.isin(right, ends)),
    )


def _curve_ends(points: LossPoints) -> np.ndarray:
    """Indices of the first and last point of every run."""
    _, group = np.unique(points.group, return_inverse=True)
    order = np.lexsort((points.flops, group.reshape(-1)))
    sorted_group = group.reshape(-1)[order]
    first = np.flatnonzero(np.diff(sorted_group, prepend=-1) != 0)
    last = np.append(first[1:] - 1, len(order) - 1)
    return order[np.concatenate([first, last])]


def fit_optimum(flops: np.ndarray, params: np.ndarray) -> tuple[float, float]:
    """(c0, beta) of N_opt = (C/c0)^beta by least squares of log N on log C; NaN below two points."""
    if len(flops) < 2:
        return float("nan"), float("nan")
    x, y = np.log(flops), np.log(params)
    beta = float(np.sum((x - x.mean()) * (y - y.mean())) / np.sum((x - x.mean()) ** 2))
    if beta == 0:
        return float("nan"), 0.0
    with np.errstate(over="ignore", under="ignore"):
        return float(np.exp(x.mean() - y.mean() / beta)), beta


def fit_below(flops: np.ndarray, loss: np.ndarray) -> Envelope:
    """The power law plus constant that is nowhere above the points and, so bounded, closest to
    them: it minimises `Envelope.gap`. For a given exponent that is a linear program in two
    unknowns, solved exactly; the exponent comes from a dense grid, refined around its best."""
    middle = float(np.exp(np.mean(np.log(flops))))
    u = flops / middle
    share = _log_shares(u)
    grid = EXPONENT_GRID
    for zoom in range(ZOOMS + 1):
        gap, irreducible, amplitude = _supporting_lines(u, loss, share, grid)
        best = int(np.argmin(gap))
        if zoom == ZOOMS:
            break
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
        grid = np.geomspace(low, high, 21)
    exponent = float(grid[best])
    with np.errstate(over="ignore", under="ignore"):
        scale = float(middle * amplitude[best] ** (1 / exponent))
    return Envelope(float(irreducible[best]), scale, exponent, float(gap[best]))


def _log_shares(u: np.ndarray) -> np.ndarray:
    """The share of the log-compute range that each point stands for (trapezoid rule)."""
    x = np.log(u)
    edges = np.concatenate([x[:1], (x[1:] + x[:-1]) / 2, x[-1:]])
    return np.diff(edges) / (x[-1] - x[0])


def _supporting_lines(
    u: np.ndarray, loss: np.ndarray, share: np.ndarray, exponents: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each exponent e (axis E), the line irreducible + amplitude u^-e at or below all points
    (axis P) of least gap; its gap, irreducible and amplitude, each [E].

    In the plane (u^-e, loss) that line carries the hull edge over the weighted mean of u^-e. It
    is found by turning the line about its left, then its right touching point until all points
    lie above it."""
    term_EP = np.exp(-exponents[:, None] * np.log(u))
    weight = share / loss
    mean = term_EP @ weight / weight.sum()
    is_left = term_EP <= mean[:, None]
    rows = np.arange(len(exponents))
    i = np.argmax(np.where(is_left, term_EP, -np.inf), axis=1)
    j = np.zeros_like(i)
    for _ in range(len(u)):
        before = (i, j)
        j = np.argmin(_slopes(term_EP, loss, i, ~is_left, np.inf), axis=1)
        i = np.argmax(_slopes(term_EP, loss, j, is_left, -np.inf), axis=1)
        if np.array_equal(before[0], i) and np.array_equal(before[1], j):
            break
    amplitude = (loss[j] - loss[i]) / (term_EP[rows, j] - term_EP[rows, i])
    irreducible = loss[i] - amplitude * term_EP[rows, i]
    through_zero = irreducible < 0
    amplitude = np.where(through_zero, np.min(loss / term_EP, axis=1), amplitude)
    irreducible = np.where(through_zero, 0.0, irreducible)
    value = irreducible[:, None] + amplitude[:, None] * term_EP
    return (1 - value / loss) @ share, irreducible, amplitude


def _slopes(
    term_EP: np.ndarray, loss: np.ndarray, pivot: np.ndarray, allowed: np.ndarray, other: float
) -> np.ndarray:
    """Slope from each exponent's pivot to every allowed point; `other` elsewhere."""
    run = term_EP - term_EP[np.arange(len(pivot)), pivot][:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (loss - loss[pivot][:, None]) / run
    return np.where(allowed & (run != 0), slope, other)
