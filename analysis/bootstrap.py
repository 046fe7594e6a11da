"""Bootstrap draws of the parameters of a separable law.

Rows that belong together (a run's curve, the runs of one trunk, or rows of one (N, D) cell) form a
cluster and are never torn apart. Three recipes, chosen by the points and named in the result:

`resampled cells`: clusters are drawn with replacement. Used where there are many for each parameter.
`wild cluster`: with few clusters of several rows each. Each cluster's residuals, corrected for
    leverage, are multiplied by one of Webb's six weights (Cameron, Gelbach & Miller 2008; Webb 2023).
`residual, scale drawn`: with few clusters of one row each. Normal noise is added to the fitted curve.
The last two draw the scale of the noise too, from what the degrees of freedom say about it
(chi-square), which widens percentile intervals as a t quantile would (`degrees_of_freedom`).
`sandwich`: beyond HUGE points refitting is waste: normal draws with the covariance to which resampled
    clusters tend (Huber 1967), one Newton step from the fit.
"""

from dataclasses import dataclass

import numpy as np

from analysis import solve
from analysis.points import LossPoints, distinct
from analysis.residual_tables import robust_sd
from analysis.separable import Law

MANY_CLUSTERS = 20
"""For each parameter. With fewer, resampled pairs give intervals that are too narrow."""
FEW_CLUSTERS = 12
"""Below these even wild weights are rough (Webb 2023), ..."""
CLUSTERS_PER_PARAMETER = 3
"""... and below so many for each parameter the fit takes up much of what they scatter."""
HUGE = 20_000
TOLERANCE = 1e-5
"""A draw scatters by far more than this share of itself."""
GRID_STRIDE = 3
WIDEST = 20.0
"""Of the drawn scales: the 97.5% quantile of t with one degree of freedom is 12.7."""
CHUNK_VALUES = 1_000_000
"""Draws x points handled at once: bounds the memory at about 100 MB."""
WEBB = np.sqrt(np.array([1.5, 1.0, 0.5]))


@dataclass(frozen=True)
class Draws:
    """Fitted parameters theta [draws, Q] of every bootstrap sample."""

    method: str
    theta: np.ndarray
    at_bound: float  # share of draws with a parameter at its limit
    warnings: tuple[str, ...] = ()


def clusters(points: LossPoints, law: Law) -> np.ndarray:
    """The number of each point's cluster: its run where runs are named, and for the `wsd` branches of
    one trunk all of them, since they share the trunk's weights to the last bit; for a law of several
    inputs of unnamed rows, its cell of equal inputs."""
    names, group = np.unique(points.trunk, return_inverse=True)
    named = len(names) < len(points) or bool(np.any(points.recipe != ""))
    if named or len(law.inputs) == 1:
        return group.reshape(-1)
    return distinct(*(points.x(name) for name in law.inputs))[1]


def recipe(cluster: np.ndarray, law: Law) -> str:
    """Which of the recipes these clusters call for."""
    count = int(cluster.max()) + 1
    if len(cluster) > HUGE:
        return "sandwich"
    if count >= MANY_CLUSTERS * len(law.parameters):
        return "resampled cells"
    return "wild cluster" if count < len(cluster) else "residual, scale drawn"


def degrees_of_freedom(cluster: np.ndarray, parameters: int) -> int:
    """Of the noise: clusters less one (Cameron & Miller 2015, section VI.D), but never more than points
    less constants, which is fewer where most clusters are single points; at least 1."""
    return max(min(int(cluster.max()), len(cluster) - parameters), 1)


def draw(
    cluster: np.ndarray,
    law: Law,
    data: solve.Data,
    theta: np.ndarray,
    delta: float,
    draws: int,
    seed: int,
) -> Draws:
    """Refit `law` to `draws` resampled data sets; deterministic in `seed`."""
    if draws == 0:
        return Draws("none", np.empty((0, theta.size)), 0.0)
    rng = np.random.default_rng(seed)
    method, count = recipe(cluster, law), int(cluster.max()) + 1
    if method == "sandwich":
        every = _sandwich(law, data, theta, delta, cluster, draws, rng)
    else:
        every = _refitted(law, data, theta, delta, cluster, draws, rng)
    low, high = solve.limits(law)
    bound = np.any((every <= low * 1.001) | (every >= high * 0.999), axis=1)
    enough = max(FEW_CLUSTERS, CLUSTERS_PER_PARAMETER * theta.size)
    few = count < enough and method == "wild cluster"
    said = f"few_groups: {count} runs for {len(theta)} parameters; the intervals are rough."
    return Draws(method, every, float(bound.mean()), (said,) if few else ())


def _refitted(
    law: Law,
    data: solve.Data,
    theta: np.ndarray,
    delta: float,
    cluster: np.ndarray,
    draws: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """The law fitted again to every resampled data set, some of them at a time."""
    method, count = recipe(cluster, law), int(cluster.max()) + 1
    found = []
    chunk = max(1, min(draws, CHUNK_VALUES // len(cluster)))
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        sample = (
            _resampled(data, cluster, count, size, rng)
            if method == "resampled cells"
            else _noisy(law, data, theta, cluster, size, rng)
        )
        found.append(_refit(law, sample, theta, delta))
    return np.concatenate(found)


def _refit(law: Law, sample: solve.Data, theta: np.ndarray, delta: float) -> np.ndarray:
    """From the grid or from the main fit, whichever is nearer."""
    grid = solve.grid_best(law, sample, solve.shape_grid(law, GRID_STRIDE))
    near = np.repeat(theta[None], len(sample.log_loss), 0)
    values = [
        solve.objective(solve.residuals(law, sample, each), sample.weight, delta)
        for each in (grid, near)
    ]
    start = np.where((values[0] < values[1])[:, None], grid, near)
    return solve.polish(law, sample, start, delta, tolerance=TOLERANCE)


def _noisy(
    law: Law,
    data: solve.Data,
    theta: np.ndarray,
    cluster: np.ndarray,
    draws: int,
    rng: np.random.Generator,
) -> solve.Data:
    residual, jacobian = solve.derivatives(law, data, theta[None])
    residual, weight, count = residual[0], data.weight[0], int(cluster.max()) + 1
    curve = data.log_loss[0] + residual
    alone = count == len(cluster)
    free = degrees_of_freedom(cluster, theta.size)
    drawn = np.minimum(np.sqrt(free / rng.chisquare(free, draws)), WIDEST)[:, None]
    if alone:
        spread = robust_sd(residual, weight, free) / np.sqrt(weight)
        noise = spread * rng.standard_normal((draws, residual.size))
    else:
        leverage = np.clip(_leverage(jacobian[0], weight), 0.0, 0.95)
        signs = rng.choice(np.concatenate([WEBB, -WEBB]), (draws, count))[:, cluster]
        noise = signs * residual / np.sqrt(1 - leverage)
    shape = (draws, residual.size)
    return solve.Data(data.log_x, curve + drawn * noise, np.broadcast_to(weight, shape))


def _leverage(jacobian_QP: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The diagonal of the hat matrix of the linearised fit, [P]."""
    scaled = jacobian_QP * np.sqrt(weight)
    scaled = scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-300)
    basis = np.linalg.svd(scaled, full_matrices=False)[2]
    return np.sum(basis**2, axis=0)


def _resampled(
    data: solve.Data, cluster: np.ndarray, count: int, draws: int, rng: np.random.Generator
) -> solve.Data:
    times = rng.multinomial(count, np.full(count, 1 / count), draws)
    weight = data.weight * times[:, cluster]
    return solve.Data(data.log_x, np.broadcast_to(data.log_loss, weight.shape), weight)


def _sandwich(
    law: Law,
    data: solve.Data,
    theta: np.ndarray,
    delta: float,
    cluster: np.ndarray,
    draws: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """theta + H^-1 z, z normal with the covariance sum_g score_g score_g' of the clusters' scores."""
    residual, jacobian = solve.derivatives(law, data, theta[None])
    scale = np.maximum(np.linalg.norm(jacobian[0], axis=1), 1e-300)
    unit = jacobian[0] / scale[:, None]
    score = unit * (data.weight[0] * np.clip(residual[0], -delta, delta))
    by_cluster = np.stack([np.bincount(cluster, each) for each in score])
    inside = data.weight[0] * (np.abs(residual[0]) <= delta)
    inverse = np.linalg.pinv((unit * inside) @ unit.T, rcond=1e-13)
    value, vector = np.linalg.eigh(by_cluster @ by_cluster.T)
    root = vector * np.sqrt(np.maximum(value, 0.0))
    steps = rng.standard_normal((draws, theta.size)) @ (inverse @ root).T / scale
    return np.clip(theta + steps, *solve.limits(law))
