"""Robust least squares for separable laws, many fits at once.

Minimises  sum_i w_i huber_delta(log f(x_i) - log L_i)  over non-negative constants and bounded
exponents. For each exponent on a dense grid the constants follow from a linear problem, solved
exactly with non-negativity (variable projection: Golub & Pereyra 1973; for scaling laws Czech et
al. 2026, 2603.22339); the best grid point starts a damped Gauss-Newton polish with exact
derivatives. delta is lowered in stages, because the small-delta objective has false minima.

Every array has a leading batch axis B, so that a thousand bootstrap fits cost one loop.
Suffixes: B batch (draws), G grid of exponents, P points, K constants, Q all parameters, constants first.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from analysis.laws import EXPONENT_LIMITS, Law

EXPONENT_GRID = np.geomspace(*EXPONENT_LIMITS, 160)

FIRST_DELTA = 3e-2
MAX_ITERATIONS = 200
EARLY_TOLERANCE = 1e-5
CHUNK_VALUES = 1_000_000
"""Grid exponents x draws x points handled at once: bounds the memory at about 100 MB."""
STEP_TOLERANCE = 1e-9
"""A polish ends when no parameter moves by more than this share of itself."""


@dataclass(frozen=True)
class Data:
    """u [P] is x over its geometric mean; log_loss and weight are [B, P]."""

    u: np.ndarray
    log_loss: np.ndarray
    weight: np.ndarray

    def rows(self, chosen: np.ndarray) -> "Data":
        """The chosen draws."""
        return Data(self.u, self.log_loss[chosen], self.weight[chosen])


def solve(law: Law, data: Data, delta: float) -> np.ndarray:
    """Best parameters [B, Q] for each draw: grid, then polish through falling deltas."""
    return descend(law, data, grid_start(law, data), delta)


def descend(law: Law, data: Data, theta: np.ndarray, delta: float) -> np.ndarray:
    """Polish through the falling deltas; only the last one to full precision."""
    *early, last = delta_stages(delta)
    for stage in early:
        theta = polish(law, data, theta, stage, tolerance=EARLY_TOLERANCE)
    return polish(law, data, theta, last)


def delta_stages(delta: float) -> list[float]:
    """From FIRST_DELTA down to the wanted delta, each a third of the one before."""
    stages = [max(FIRST_DELTA, delta)]
    while stages[-1] > delta * 1.0001:
        stages.append(max(delta, stages[-1] / 3))
    return stages


def grid_start(law: Law, data: Data, grid: np.ndarray = EXPONENT_GRID) -> np.ndarray:
    """Least squares of relative residuals at every exponent of the grid; the best one, [B, Q]."""
    draws = np.arange(len(data.log_loss))
    best = np.full(len(draws), np.inf)
    theta = np.zeros((len(draws), len(law.parameters)))
    chunk = max(1, CHUNK_VALUES // data.log_loss.size)
    for part in np.array_split(grid, -(-len(grid) // chunk)):
        constants, objective = project(law, data, part[:, None])
        winner = np.argmin(objective, axis=0)
        better = objective[winner, draws] < best
        best = np.where(better, objective[winner, draws], best)
        found = np.column_stack([constants[winner, draws], part[winner]])
        theta = np.where(better[:, None], found, theta)
    return theta


def project(law: Law, data: Data, exponents_GE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Non-negative constants [G, B, K] that minimise sum w (f/L - 1)^2 at every exponent of a grid
    G, and that minimum [G, B]. Exact: every subset of the (few) constants is tried."""
    terms_GPK = law.terms(data.u, exponents_GE)
    relative = np.exp(-data.log_loss)
    products = np.einsum("gpj,gpk->gpjk", terms_GPK, terms_GPK)
    normal = np.tensordot(data.weight * relative**2, products, axes=(1, 1)).swapaxes(0, 1)
    right = np.tensordot(data.weight * relative, terms_GPK, axes=(1, 1)).swapaxes(0, 1)
    total = data.weight.sum(axis=1)
    best = np.full(right.shape[:2], np.inf)
    constants = np.zeros_like(right)
    count = right.shape[2]
    for size in range(1, count + 1):
        for subset in combinations(range(count), size):
            index = list(subset)
            block = normal[:, :, index][:, :, :, index]
            block = block + 1e-14 * np.eye(size) * total[:, None, None]
            found = np.linalg.solve(block, right[:, :, index, None])[..., 0]
            value = total - np.einsum("gbk,gbk->gb", found, right[:, :, index])
            better = (value < best) & np.all(found >= 0, axis=2)
            best = np.where(better, value, best)
            padded = np.zeros_like(right)
            padded[:, :, index] = found
            constants = np.where(better[:, :, None], padded, constants)
    return constants, best


def residuals(law: Law, data: Data, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log f - log L [B, P] and its derivative by every parameter [B, P, Q]."""
    split = len(law.constants)
    constants, exponents = theta[:, :split], theta[:, split:]
    terms = law.terms(data.u, exponents)
    value = np.maximum(np.einsum("bpk,bk->bp", terms, constants), 1e-300)
    by_exponent = np.einsum("bpke,bk->bpe", law.slopes(data.u, exponents), constants)
    jacobian = np.concatenate([terms, by_exponent], axis=2) / value[:, :, None]
    return np.log(value) - data.log_loss, jacobian


def objective(residual: np.ndarray, weight: np.ndarray, delta: float) -> np.ndarray:
    """Sum (not mean: Besiroglu et al. 2024) of weighted Huber losses, [B]."""
    size = np.abs(residual)
    huber = np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))
    return np.sum(weight * huber, axis=1)


def gradient(
    residual: np.ndarray, jacobian: np.ndarray, weight: np.ndarray, delta: float
) -> np.ndarray:
    """Of the objective by every parameter, [B, Q]."""
    return np.einsum("bp,bpq->bq", weight * np.clip(residual, -delta, delta), jacobian)


def limits(law: Law) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper limit of every parameter."""
    low = [0.0] * len(law.constants) + [EXPONENT_GRID[0]] * len(law.exponents)
    high = [np.inf] * len(law.constants) + [EXPONENT_GRID[-1]] * len(law.exponents)
    return np.array(low), np.array(high)


def polish(
    law: Law,
    data: Data,
    theta: np.ndarray,
    delta: float,
    frozen: tuple[int, ...] = (),
    tolerance: float = STEP_TOLERANCE,
) -> np.ndarray:
    """Damped Gauss-Newton (Huber by reweighting) inside the limits; never makes a draw worse.
    `frozen` parameters keep their values, which gives profiles."""
    low, high = limits(law)
    theta = np.clip(theta, low, high)
    damping = np.full(len(theta), 1e-4)
    active = np.arange(len(theta))
    for _ in range(MAX_ITERATIONS):
        part = data.rows(active)
        residual, jacobian = residuals(law, part, theta[active])
        before = objective(residual, part.weight, delta)
        free, slope = _free_gradient(law, part, theta[active], delta, frozen, residual, jacobian)
        step = _step(residual, jacobian, part.weight, delta, free, damping[active], slope)
        trial = np.clip(theta[active] + step, low, high)
        after = objective(residuals(law, part, trial)[0], part.weight, delta)
        better = after <= before
        moved = np.abs(trial - theta[active]) <= tolerance * np.maximum(np.abs(trial), 1e-6)
        done = np.all(moved, axis=1) | (damping[active] > 1e9)
        theta[active[better]] = trial[better]
        damping[active] = np.where(better, damping[active] / 10, damping[active] * 10)
        active = active[~done]
        if not len(active):
            break
    return theta


def _free_gradient(
    law: Law,
    data: Data,
    theta: np.ndarray,
    delta: float,
    frozen: tuple[int, ...],
    residual: np.ndarray,
    jacobian: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Which parameters may move (not frozen, not pushed against a limit), and their gradient."""
    low, high = limits(law)
    slope = gradient(residual, jacobian, data.weight, delta)
    free = ~(((theta <= low) & (slope > 0)) | ((theta >= high) & (slope < 0)))
    free[:, list(frozen)] = False
    return free, np.where(free, slope, 0.0)


def _step(
    residual: np.ndarray,
    jacobian: np.ndarray,
    weight: np.ndarray,
    delta: float,
    free: np.ndarray,
    damping: np.ndarray,
    slope: np.ndarray,
) -> np.ndarray:
    robust = weight * np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300))
    curvature = np.einsum("bp,bpj,bpk->bjk", robust, jacobian, jacobian)
    both = free[:, :, None] & free[:, None, :]
    curvature = np.where(both, curvature, 0.0)
    diagonal = np.einsum("bjj->bj", curvature)
    lift = np.where(free, damping[:, None] * diagonal + 1e-300, 1.0)
    lift = np.where(diagonal + lift > 0, lift, 1.0)
    system = curvature + lift[:, :, None] * np.eye(free.shape[1])
    scale = 1 / np.sqrt(np.einsum("bjj->bj", system))
    scaled = system * scale[:, :, None] * scale[:, None, :]
    scaled += 1e-13 * np.eye(free.shape[1])
    return -scale * np.linalg.solve(scaled, (slope * scale)[..., None])[..., 0]
