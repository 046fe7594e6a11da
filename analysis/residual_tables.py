"""What a fit misses: residuals by N, D and C, outliers with both refits, and lack of fit.

A residual is log L_fitted - log L_measured: +0.01 means that the law is 1% too high there. How far off
a point is, and what all scatter, is told by residuals times the root of the weight (whose mean is 1), since
a weight is taken as the inverse square of a point's own noise.
"""

from typing import Any

import numpy as np
from scipy import special

from analysis import solve
from analysis.points import LossPoints, seed_noise
from analysis.separable import Law

OUTLIER_SCALES = 4.0
MOST_LISTED = 50
MOST_VALUES = 12
BINS = 6


def residual_report(
    points: LossPoints,
    law: Law,
    data: solve.Data,
    theta: np.ndarray,
    residual: np.ndarray,
    delta: float,
    units: tuple[float, ...],
) -> dict[str, Any]:
    """Diagnostics of one fit: `residuals`, `outliers`, `refits`, `lack_of_fit`."""
    weighed = residual * np.sqrt(data.weight[0])
    scale = residual_scale(weighed, theta.size)
    far = np.flatnonzero(np.abs(weighed) > OUTLIER_SCALES * max(scale, 1e-9))
    found: dict[str, Any] = {
        "residual_scale": scale,
        "residuals": {
            name: residuals_by(column, residual) for name, column in _columns(points).items()
        },
        "outliers": [
            {"point": str(points.label[i]), "residual": residual[i], "scales": weighed[i] / scale}
            for i in far[np.argsort(-np.abs(weighed[far]), kind="stable")][:MOST_LISTED]
        ],
        "outlier_count": len(far),
        "lack_of_fit": lack_of_fit(points, weighed, theta.size),
    }
    if len(far) and len(residual) - len(far) > theta.size:
        keep = np.setdiff1d(np.arange(len(residual)), far)
        found["refits"] = {
            "without_outliers": _refit(law, data, theta, delta, keep, units),
            "all_points_least_squares": _refit(
                law, data, theta, np.inf, np.arange(len(residual)), units
            ),
        }
    return found


def residual_scale(residual: np.ndarray, parameters: int) -> float:
    """The standard deviation of the noise by the median residual, corrected for the degrees of
    freedom."""
    count = len(residual)
    return (
        1.4826 * float(np.median(np.abs(residual))) * float(np.sqrt(count / max(count - parameters, 1)))
    )  # fmt: skip


WINSOR = 2.0
WINSOR_SHARE = 0.920536
"""E min(z^2, 4) of a standard normal z: 1 - 2 phi(2) (2) + (4 - 1) 2 (1 - Phi(2))."""


def robust_sd(residual: np.ndarray, weight: np.ndarray, degrees: int) -> float:
    """The standard deviation of the noise with residuals beyond two of it counted as two: s with
    sum w min(r^2/s^2, 4) = 0.9205 degrees (Huber 1981, proposal 2). A few bad points do not widen
    what all others say; for normal noise it is the usual one."""
    squares = weight * residual**2
    variance = float(squares.sum()) / degrees
    for _ in range(50):
        if variance <= 0:
            return 0.0
        clipped = np.minimum(squares, WINSOR**2 * variance)
        variance = float(clipped.sum()) / (WINSOR_SHARE * degrees)
    return float(np.sqrt(variance))


def _columns(points: LossPoints) -> dict[str, np.ndarray]:
    found = {name: points.x(name) for name in ("params", "tokens", "flops") if points.known(name)}
    if "flops" not in found and {"params", "tokens"} <= set(found):
        found["flops"] = 6 * found["params"] * found["tokens"]
    return found


def residuals_by(column: np.ndarray, residual: np.ndarray) -> list[dict[str, float]]:
    """Mean and spread of the residuals at each value, or in six equal bins of its logarithm."""
    values = np.unique(column)
    if len(values) <= MOST_VALUES:
        bins = [(value, value, column == value) for value in values]
    else:
        edges = np.geomspace(values[0], values[-1], BINS + 1)
        which = np.clip(np.searchsorted(edges, column, side="right") - 1, 0, BINS - 1)
        bins = [(edges[i], edges[i + 1], which == i) for i in range(BINS)]
    return [
        {
            "from": float(low),
            "to": float(high),
            "points": int(inside.sum()),
            "mean": float(residual[inside].mean()),
            "sd": float(residual[inside].std()),
        }
        for low, high, inside in bins
        if inside.any()
    ]


def _refit(
    law: Law,
    data: solve.Data,
    theta: np.ndarray,
    delta: float,
    keep: np.ndarray,
    units: tuple[float, ...],
) -> dict[str, float]:
    part = solve.Data(data.log_x[:, keep], data.log_loss[:, keep], data.weight[:, keep])
    end = solve.polish(law, part, theta[None], delta)
    split = len(law.constants)
    named = law.named(end[:, :split], end[:, split:], units)
    return {name: float(value[0]) for name, value in named.items()}


def lack_of_fit(
    points: LossPoints, weighed: np.ndarray, parameters: int
) -> dict[str, float] | None:
    """F test of the scatter about the law (residuals times the root of the weight) against that between repeated
    seeds; None where nothing was repeated, or too little is left beside the repeats."""
    noise = seed_noise(points) if points.known("params") and points.known("tokens") else None
    if noise is None:
        return None
    pure = noise.relative_sd**2 * noise.degrees
    free = len(weighed) - parameters - noise.degrees
    if free < 1 or pure <= 0:
        return None
    ratio = max(float(weighed @ weighed) - pure, 0.0) / free / (pure / noise.degrees)
    return {
        "f": ratio,
        "degrees": free,
        "seed_degrees": noise.degrees,
        "seed_sd": noise.relative_sd,
        "p": float(special.fdtrc(free, noise.degrees, ratio)),
    }
