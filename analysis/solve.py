"""Robust least squares for separable laws, many fits at once.

Minimises  sum_i w_i huber_delta(log f(x_i) - log L_i)  over non-negative constants and bounded
shape parameters. On a dense grid of shapes the constants follow exactly (variable projection, see
`analysis.separable`); the best grid points start a damped Newton polish with exact derivatives.
delta is lowered in stages, because the small-delta objective has false minima.

Every array has a leading batch axis B, so that a thousand bootstrap fits cost one loop. Suffixes:
B batch (draws), G grid of shapes, P points, K constants, S shapes, Q all parameters, constants first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from analysis.separable import Law

FIRST_DELTA = 3e-2
MAX_ITERATIONS = 200
EARLY_TOLERANCE = 1e-3
STEP_TOLERANCE = 1e-9
"""A polish ends when no parameter moves by more than this share of itself."""

CHUNK_VALUES = 1_000_000
"""Grid shapes x points or draws handled at once: bounds the memory at about 100 MB."""
BLOCK_VALUES = 40_000
"""Draws x points polished at once, so that they stay in the processor's cache."""
GRID_POINTS = 2_000
"""Of more points than this an even share is enough to find where to start."""
SMALLEST = 1e-100
"""A value of a law is never below this, so that its logarithm and its square exist."""


@dataclass(frozen=True)
class Data:
    """log inputs [I, P] in units of their geometric means; log_loss and weight are [B, P]."""

    log_x: np.ndarray
    log_loss: np.ndarray
    weight: np.ndarray

    def rows(self, chosen: np.ndarray | slice) -> "Data":
        """The chosen draws."""
        return Data(self.log_x, self.log_loss[chosen], self.weight[chosen])

    def repeated(self, count: int) -> "Data":
        """One draw, `count` times, without copying."""
        shape = (count, self.log_loss.shape[1])
        loss, weight = (np.broadcast_to(each, shape) for each in (self.log_loss, self.weight))
        return Data(self.log_x, loss, weight)

    def thinned(self) -> "Data":
        """At most GRID_POINTS points, evenly taken."""
        keep = slice(None, None, -(-self.log_loss.shape[1] // GRID_POINTS))
        return Data(self.log_x[:, keep], self.log_loss[:, keep], self.weight[:, keep])


@dataclass(frozen=True)
class Spring:
    """Adds stiffness/2 (quantity(theta) - target)^2 to the objective; target is [B]. Gives
    profiles."""

    quantity: Callable[[np.ndarray], np.ndarray]
    target: np.ndarray
    stiffness: float

    def rows(self, chosen: np.ndarray | slice) -> "Spring":
        """The springs of the chosen draws."""
        return Spring(self.quantity, self.target[chosen], self.stiffness)

    def energy(self, theta: np.ndarray) -> np.ndarray:
        """[B]; infinite where the quantity is not defined."""
        with np.errstate(all="ignore"):
            energy = 0.5 * self.stiffness * (self.quantity(theta) - self.target) ** 2
        return np.where(np.isfinite(energy), energy, np.inf)

    def pull(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gradient [B, Q] and curvature [B, Q, Q]."""
        slope = gradient_of(self.quantity, theta)
        with np.errstate(all="ignore"):
            stretch = self.stiffness * (self.quantity(theta) - self.target)
        slope = np.where(np.isfinite(slope), slope, 0.0)
        stretch = np.where(np.isfinite(stretch), stretch, 0.0)
        return stretch[:, None] * slope, self.stiffness * slope[:, :, None] * slope[:, None]


def gradient_of(quantity: Callable[[np.ndarray], np.ndarray], theta: np.ndarray) -> np.ndarray:
    """Central differences of a quantity by every parameter, [B, Q]."""
    slopes = np.zeros_like(theta)
    for column in range(theta.shape[1]):
        step = 1e-6 * np.maximum(np.abs(theta[:, column]), 1e-6)
        up, down = theta.copy(), theta.copy()
        up[:, column] += step
        down[:, column] -= step
        with np.errstate(all="ignore"):
            slopes[:, column] = (quantity(up) - quantity(down)) / (2 * step)
    return slopes


def shape_grid(law: Law, stride: int = 1) -> np.ndarray:
    """Every combination of the laws' grid values, [G, S]; of each axis every `stride`-th."""
    axes = [each.grid[(stride - 1) // 2 :: stride] or each.grid[:1] for each in law.shapes]
    return np.array(list(product(*axes)))


def delta_stages(delta: float) -> list[float]:
    """From FIRST_DELTA down to the wanted delta, each a third of the one before."""
    stages = [max(FIRST_DELTA, delta)]
    while stages[-1] > delta * 1.0001:
        stages.append(max(delta, stages[-1] / 3))
    return stages


def descend(law: Law, data: Data, theta: np.ndarray, delta: float) -> np.ndarray:
    """Polish through the falling deltas; only the last one to full precision."""
    *early, last = delta_stages(delta)
    for stage in early:
        theta = polish(law, data, theta, stage, tolerance=EARLY_TOLERANCE)
    return polish(law, data, theta, last)


def grid_starts(law: Law, data: Data, grid: np.ndarray, count: int) -> np.ndarray:
    """The best grid point of one draw and `count` - 1 others spread over the whole grid, with
    their best constants, best first: [count, Q]."""
    data = data.thinned()
    chunk = max(1, CHUNK_VALUES // (data.log_loss.size * len(law.constants)))
    found = [project(law, data, part) for part in np.array_split(grid, -(-len(grid) // chunk))]
    constants = np.concatenate([each[0] for each in found])[:, 0]
    values = np.concatenate([each[1] for each in found])[:, 0]
    spread = np.linspace(0, len(grid) - 1, count + 1).astype(int)[1:-1]
    chosen = np.concatenate([[int(np.argmin(values))], spread])
    return np.column_stack([constants[chosen], grid[chosen]])


def grid_best(law: Law, data: Data, grid: np.ndarray) -> np.ndarray:
    """The best grid point of every draw with its constants, [B, Q]."""
    draws = np.arange(len(data.log_loss))
    best = np.full(len(draws), np.inf)
    theta = np.zeros((len(draws), len(law.parameters)))
    size = max(len(draws), data.log_loss.shape[1]) * len(law.constants) ** 2
    chunk = max(1, CHUNK_VALUES // size)
    for part in np.array_split(grid, -(-len(grid) // chunk)):
        constants, objective = project(law, data, part)
        winner = np.argmin(objective, axis=0)
        better = objective[winner, draws] < best
        best = np.where(better, objective[winner, draws], best)
        found = np.column_stack([constants[winner, draws], part[winner]])
        theta = np.where(better[:, None], found, theta)
    return theta


def project(law: Law, data: Data, shapes_GS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Non-negative constants [G, B, K] that minimise sum w (f/L - 1)^2 at every shape of a grid
    G, and that minimum [G, B]. Exact: every subset of the (few) constants is tried."""
    terms_GKP = law.terms(data.log_x, shapes_GS)
    grid, count, points = terms_GKP.shape
    first, second = np.triu_indices(count)
    products = (terms_GKP[:, first] * terms_GKP[:, second]).reshape(-1, points)
    relative = np.exp(-data.log_loss)
    right = (data.weight * relative) @ terms_GKP.reshape(-1, points).T
    right = right.reshape(-1, grid, count).swapaxes(0, 1)
    packed = (data.weight * relative**2) @ products.T
    normal = np.empty((*right.shape, count))
    packed = packed.reshape(-1, grid, len(first)).swapaxes(0, 1)
    normal[..., first, second] = packed
    normal[..., second, first] = packed
    total = data.weight.sum(axis=1)
    ridge = 1e-14 * (data.weight * relative**2).sum(axis=1)  # in the unit of the losses
    best = np.full(right.shape[:2], np.inf)
    constants = np.zeros_like(right)
    for size in range(1, count + 1):
        for subset in combinations(range(count), size):
            index = list(subset)
            block = normal[:, :, index][:, :, :, index]
            block = block + np.eye(size) * ridge[:, None, None]
            found = np.linalg.solve(block, right[:, :, index, None])[..., 0]
            value = total - np.einsum("gbk,gbk->gb", found, right[:, :, index])
            better = (value < best) & np.all(found >= 0, axis=2)
            best = np.where(better, value, best)
            padded = np.zeros_like(right)
            padded[:, :, index] = found
            constants = np.where(better[:, :, None], padded, constants)
    return constants, best


def residuals(law: Law, data: Data, theta: np.ndarray) -> np.ndarray:
    """log f - log L, [B, P]."""
    return _log_value(law, data, theta)[0] - data.log_loss


def derivatives(law: Law, data: Data, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log f - log L [B, P] and its derivative by every parameter [B, Q, P]."""
    split = len(law.constants)
    log_value, value, terms = _log_value(law, data, theta)
    slopes = law.slopes(data.log_x, theta[:, split:], theta[:, :split], terms)
    jacobian = np.concatenate([terms, slopes], axis=1)
    jacobian /= value[:, None]
    return log_value - data.log_loss, jacobian


def _log_value(law: Law, data: Data, theta: np.ndarray) -> tuple[np.ndarray, ...]:
    split = len(law.constants)
    terms = law.terms(data.log_x, theta[:, split:])
    value = np.maximum((theta[:, None, :split] @ terms)[:, 0], SMALLEST)
    return np.log(value), value, terms


def objective(residual: np.ndarray, weight: np.ndarray, delta: float) -> np.ndarray:
    """Sum (not mean: Besiroglu et al. 2024) of weighted Huber losses, [B]."""
    size = np.abs(residual)
    near = np.minimum(size, delta) if np.isfinite(delta) else size
    return np.sum(weight * near * (size - 0.5 * near), axis=1)


def gradient(
    residual: np.ndarray, jacobian: np.ndarray, weight: np.ndarray, delta: float
) -> np.ndarray:
    """Of the objective by every parameter, [B, Q]."""
    return (jacobian @ (weight * np.clip(residual, -delta, delta))[:, :, None])[..., 0]


def limits(law: Law) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper limit of every parameter."""
    low = [0.0] * len(law.constants) + [each.limits[0] for each in law.shapes]
    high = [np.inf] * len(law.constants) + [each.limits[1] for each in law.shapes]
    return np.array(low), np.array(high)


def polish(
    law: Law,
    data: Data,
    theta: np.ndarray,
    delta: float,
    tolerance: float = STEP_TOLERANCE,
    spring: Spring | None = None,
) -> np.ndarray:
    """Damped Newton inside the limits; never makes a draw worse."""
    low, high = limits(law)
    theta = np.clip(theta, low, high)
    block = max(8, BLOCK_VALUES // data.log_loss.shape[1])
    for start in range(0, len(theta), block):
        part = slice(start, start + block)
        pull = None if spring is None else spring.rows(part)
        theta[part] = _polish_block(law, data.rows(part), theta[part], delta, tolerance, pull)
    return theta


def _polish_block(
    law: Law,
    data: Data,
    theta: np.ndarray,
    delta: float,
    tolerance: float,
    spring: Spring | None,
) -> np.ndarray:
    low, high = limits(law)
    theta = theta.copy()
    damping, outer = np.full(len(theta), 1e-3), np.ones(len(theta))
    active = np.arange(len(theta))
    value = total(law, data, theta, delta, spring)
    for _ in range(MAX_ITERATIONS):
        now, part = theta[active], data.rows(active)
        pull = None if spring is None else spring.rows(active)
        residual, jacobian = derivatives(law, part, now)
        slope = gradient(residual, jacobian, part.weight, delta)
        robust = _curvature_weights(residual, part.weight, delta, outer[active])
        curvature = (jacobian * robust[:, None]) @ jacobian.swapaxes(1, 2)
        if pull is not None:
            more_slope, more_curvature = pull.pull(now)
            slope, curvature = slope + more_slope, curvature + more_curvature
        free = ~(((now <= low) & (slope > 0)) | ((now >= high) & (slope < 0)))
        step = _step(curvature, np.where(free, slope, 0.0), free, damping[active])
        trial = np.clip(now + step, low, high)
        after = total(law, part, trial, delta, pull)
        better = after <= value[active]
        moved = np.abs(trial - now) <= tolerance * np.maximum(np.abs(trial), 1e-6)
        done = np.all(moved, axis=1) | (damping[active] > 1e9)
        theta[active[better]] = trial[better]
        value[active[better]] = after[better]
        damping[active] *= np.where(better, 0.1, 10.0)
        outer[active] = np.clip(outer[active] * np.where(better, 0.3, 10.0), 1e-4, 1.0)
        active = active[~done]
        if not len(active):
            break
    return theta


def total(
    law: Law, data: Data, theta: np.ndarray, delta: float, spring: Spring | None
) -> np.ndarray:
    """The objective with its spring, [B]."""
    value = objective(residuals(law, data, theta), data.weight, delta)
    return value if spring is None else value + spring.energy(theta)


def _curvature_weights(
    residual: np.ndarray, weight: np.ndarray, delta: float, outer: np.ndarray
) -> np.ndarray:
    """Huber's curvature: 1 inside delta. Outside it is 0, which may leave too few points for a
    step, so there a share `outer` of the safe delta/|r| (iteratively reweighted least squares),
    falling as steps succeed: Newton's method near the end."""
    size = np.maximum(np.abs(residual), 1e-300)
    return weight * np.where(size <= delta, 1.0, outer[:, None] * (delta / size))


def _step(
    curvature: np.ndarray, slope: np.ndarray, free: np.ndarray, damping: np.ndarray
) -> np.ndarray:
    curvature = np.where(free[:, :, None] & free[:, None, :], curvature, 0.0)
    diagonal = np.einsum("bjj->bj", curvature)
    lift = np.where(free, damping[:, None] * diagonal + 1e-300, 1.0)
    lift = np.where(diagonal + lift > 0, lift, 1.0)
    identity = np.eye(free.shape[1])
    system = curvature + lift[:, :, None] * identity
    scale = 1 / np.sqrt(np.einsum("bjj->bj", system))
    scaled = system * scale[:, :, None] * scale[:, None, :] + 1e-13 * identity
    return -scale * np.linalg.solve(scaled, (slope * scale)[..., None])[..., 0]
