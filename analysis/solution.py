"""The best parameters of a law on a set of points, and the evidence that they are the best.

Robust loss: Huber on log residuals. delta is 1e-3 (Hoffmann et al. 2022, Besiroglu et al. 2024)
where there are many points; with fewer it is 1.345 x the residual scale if they scatter more: a
delta far below the noise turns the fit into least absolute deviations, which few points do not bear.
"""

from dataclasses import dataclass

import numpy as np

from analysis import solve
from analysis.points import LossPoints, PointSet, distinct
from analysis.residual_tables import residual_scale
from analysis.separable import Law

DELTA = 1e-3
HUBER_EFFICIENT = 1.345
"""Huber's delta in residual scales for 95% efficiency under normal noise (Huber 1981)."""

MANY_POINTS = 100
"""From so many points on the published delta is used, so that constants compare with others'."""

START_COUNT = 12
SAME_OBJECTIVE = 1e-3


@dataclass(frozen=True)
class Solution:
    """The best parameters theta [Q] of a law, and the evidence that they are the best."""

    theta: np.ndarray
    delta: float
    objective: float
    gradient_norm: float
    condition: float
    starts: int
    starts_agreeing: int
    moved: bool
    bounds_active: tuple[str, ...]


def check_enough(found: PointSet, law: Law) -> None:
    """Raise `ValueError` when the points cannot carry the parameters: as many parameters as
    distinct inputs, or an input that hardly varies."""
    points, wanted = found.points, len(law.parameters) + 1
    columns = [points.x(name) for name in law.inputs if not name.startswith("unique_")]
    names = " and ".join(name for name in law.inputs if not name.startswith("unique_"))
    for name, column in zip(law.inputs, columns, strict=False):
        least = wanted if len(columns) == 1 else 3
        values = len(np.unique(column))
        if len(points) > 1 and values == 1:
            raise ValueError(
                f"{found.source}: all {len(points)} points have {name} = {column[0]:.6g}; wanted at "
                f"least {least} different {name} for the law {law.name!r}. Add runs with other "
                f"{name}."
            )
        if len(columns) > 1 and 1 < values < least:
            raise ValueError(
                f"{found.source}: {values} different {name}; wanted at least {least} for the law "
                f"{law.name!r}. Add runs with other {name}."
            )
    count = len(distinct(*columns)[0])
    if count >= wanted:
        return
    raise ValueError(
        f"{found.source}: {len(points)} usable points at {count} different {names} "
        f"({len(found.left_out)} left out); wanted at least {wanted} different {names} for the "
        f"{len(law.parameters)} parameters of {law.name!r}. Add runs"
        + (", look at the ones left out," if found.left_out else "")
        + f" or fit a law with fewer parameters.{found.gone}"
    )


def scaled_data(points: LossPoints, law: Law) -> tuple[tuple[float, ...], solve.Data]:
    """The geometric mean of each input, and the points in units of it."""
    units = tuple(float(np.exp(np.mean(np.log(points.x(name))))) for name in law.unit_of)
    log_x = np.stack([np.log(points.x(name)) for name in law.inputs]) - np.log(units)[:, None]
    weight = np.asarray(points.weight / points.weight.mean(), float)
    return units, solve.Data(log_x, np.log(points.loss)[None], weight[None])


def best_solution(law: Law, data: solve.Data, delta: float | None = None) -> Solution:
    """The end of the best of several starts, with what speaks for and against it."""
    grid = solve.shape_grid(law)
    starts = solve.grid_starts(law, data, grid, START_COUNT)
    delta = choose_delta(law, data, starts[:1]) if delta is None else delta
    thin = data.thinned()
    ends = solve.descend(law, thin.repeated(len(starts)), starts, delta)
    values = solve.objective(solve.residuals(law, thin, ends), thin.weight, delta)
    best = int(np.argmin(values))
    slack = SAME_OBJECTIVE * values[best] + 1e-12 * delta**2
    theta = ends[[best]]
    if thin.log_loss.size < data.log_loss.size:
        theta = solve.polish(law, data, theta, delta)
    residual, jacobian = solve.derivatives(law, data, theta)
    low, high = solve.limits(law)
    slope = solve.gradient(residual, jacobian, data.weight, delta)[0]
    at_limit = (theta[0] <= low) | (theta[0] >= high)
    blocked = ((theta[0] <= low) & (slope > 0)) | ((theta[0] >= high) & (slope < 0))
    size = np.maximum(np.abs(theta[0]), 1e-12)
    scaled = (jacobian[0] * size[:, None])[~blocked]
    scaled = scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-300)
    steepest = np.abs(np.where(blocked, 0, slope * size)).max()
    return Solution(
        theta=theta[0],
        delta=delta,
        objective=float(solve.objective(residual, data.weight, delta)[0]),
        gradient_norm=float(steepest / (delta * data.weight.sum())),
        condition=float(np.linalg.cond(scaled)) if len(scaled) else 1.0,
        starts=len(starts),
        starts_agreeing=int(np.sum(values <= values[best] + slack)),
        moved=bool(np.any(ends[best] != starts[best])),
        bounds_active=tuple(np.array(law.parameters)[at_limit]),
    )


def fitted_theta(law: Law, data: solve.Data, delta: float) -> np.ndarray:
    """The constants alone, [Q]: one grid start, for the many refits of hold-outs."""
    grid = solve.shape_grid(law, 2)
    start = solve.grid_best(law, data.thinned(), grid)
    return solve.descend(law, data, start, delta)[0]


def choose_delta(law: Law, data: solve.Data, start: np.ndarray) -> float:
    """1e-3, or with fewer than MANY_POINTS 1.345 residual scales where the points scatter more
    (median-based scale of a least-squares fit, corrected for its degrees of freedom)."""
    if data.log_loss.shape[1] >= MANY_POINTS:
        return DELTA
    theta = solve.polish(law, data, start, np.inf, tolerance=solve.EARLY_TOLERANCE)
    scale = residual_scale(solve.residuals(law, data, theta)[0], len(law.parameters))
    return max(DELTA, HUBER_EFFICIENT * scale)


def named(law: Law, theta: np.ndarray, units: tuple[float, ...]) -> dict[str, np.ndarray]:
    """Constants by the names of the formula, each [B]."""
    split = len(law.constants)
    return law.named(theta[:, :split], theta[:, split:], units)
