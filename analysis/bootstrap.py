"""Bootstrap draws for laws of one variable.

Two recipes, chosen by the points and named in the result:

`resampled groups`: rows of one run are not independent, so whole runs are drawn with replacement.
    Used from 20 groups on.
`residual, scale drawn`: with few points resampling pairs understates the error badly (nominal 95%
    covers about half of new points). Instead each draw adds normal noise to the fitted curve; its
    standard deviation is itself drawn from what (points - parameters) residuals say about it
    (chi-square), which widens the percentile interval as a t quantile would.
"""

from dataclasses import dataclass

import numpy as np

from analysis import solve
from analysis.laws import Law
from analysis.points import LossPoints

MANY_GROUPS = 20
TOLERANCE = 1e-6
"""A draw scatters by far more than this share of itself."""

CHUNK_VALUES = 4_000_000
"""Draws x points handled at once: bounds the memory at about 200 MB."""


@dataclass(frozen=True)
class Draws:
    """Fitted parameters theta [draws, Q] of every bootstrap sample."""

    method: str
    theta: np.ndarray
    at_bound: float  # share of draws with a parameter at its limit
    warnings: tuple[str, ...] = ()


def draw(
    points: LossPoints,
    law: Law,
    data: solve.Data,
    theta: np.ndarray,
    delta: float,
    draws: int,
    seed: int,
) -> Draws:
    """Refit `law` to `draws` resampled data sets; deterministic in `seed`."""
    rng = np.random.default_rng(seed)
    names, group = np.unique(points.group, return_inverse=True)
    clustered = len(names) < len(points)
    method = (
        "resampled groups" if clustered or len(names) >= MANY_GROUPS else ("residual, scale drawn")
    )
    if draws == 0:
        return Draws("none", np.empty((0, theta.size)), 0.0)
    found = []
    chunk = max(1, min(draws, CHUNK_VALUES // len(points)))
    for start in range(0, draws, chunk):
        count = min(chunk, draws - start)
        sample = (
            _resampled(data, group.reshape(-1), len(names), count, rng)
            if method == "resampled groups"
            else _noisy(law, data, theta, count, rng)
        )
        found.append(_refit(law, sample, theta, delta))
    every = np.concatenate(found)
    low, high = solve.limits(law)
    bound = np.any((every <= low * 1.001) | (every >= high * 0.999), axis=1)
    few = (
        (f"few_groups: {len(names)} runs were resampled; intervals from so few are too narrow.",)
        if method == "resampled groups" and len(names) < MANY_GROUPS
        else ()
    )
    return Draws(method, every, float(bound.mean()), few)


def _refit(law: Law, sample: solve.Data, theta: np.ndarray, delta: float) -> np.ndarray:
    """From the grid and from the main fit; the better end counts."""
    grid = solve.grid_start(law, sample, solve.EXPONENT_GRID[::4])
    ends = solve.polish(law, sample, grid, delta, tolerance=TOLERANCE)
    near = np.repeat(theta[None], len(sample.log_loss), 0)
    near = solve.polish(law, sample, near, delta, tolerance=TOLERANCE)
    values = [
        solve.objective(solve.residuals(law, sample, each)[0], sample.weight, delta)
        for each in (ends, near)
    ]
    return np.where((values[0] <= values[1])[:, None], ends, near)


def _noisy(
    law: Law, data: solve.Data, theta: np.ndarray, count: int, rng: np.random.Generator
) -> solve.Data:
    residual = solve.residuals(law, data, theta[None])[0][0]
    free = max(residual.size - theta.size, 1)
    spread = np.sqrt(np.sum(data.weight[0] * residual**2) / rng.chisquare(free, count))
    noise = rng.standard_normal((count, residual.size)) / np.sqrt(data.weight[0])
    curve = data.log_loss[0] + residual
    return solve.Data(data.u, curve + spread[:, None] * noise, np.repeat(data.weight, count, 0))


def _resampled(
    data: solve.Data, group: np.ndarray, groups: int, count: int, rng: np.random.Generator
) -> solve.Data:
    times = rng.multinomial(groups, np.full(groups, 1 / groups), count)
    weight = data.weight * times[:, group]
    return solve.Data(data.u, np.repeat(data.log_loss, count, 0), weight)
