"""Mutual information, and infogain, against model size: I = rate log(N/Nc) (Henighan et al. 2020,
2010.14701, eq 4.1, section 4 and figures 12 and 28).

A straight line in log N, by least squares weighted with the standard errors where they are known. The
draws are those of the line's own t distribution: for normal errors its quantiles are the exact
intervals, however few the sizes. I may be zero or negative, so no logarithm of it is taken.
"""

import time

import numpy as np

from analysis.estimate import Fit, interval

LAW = "mutual-information"
FORMULA = "I = rate log(N/Nc)"
FEWEST_SIZES = 3


def fit_information(
    params: np.ndarray,
    information: np.ndarray,
    standard_error: np.ndarray | None,
    draws: int,
    seed: int,
    source: str = "mutual information",
) -> Fit:
    """Rate [nats for each e-fold of N, or a share] and Nc of points [P]. Points that are not finite are
    left out by the caller. The noise is what the points scatter, and at least their standard errors.
    Raises `ValueError` for under FEWEST_SIZES different sizes, or for numbers that are none."""
    began = time.perf_counter()
    params, information = np.asarray(params, float), np.asarray(information, float)
    error = np.ones(len(params)) if standard_error is None else np.asarray(standard_error, float)
    _check(source, params, information, error)
    design = np.stack([np.ones(len(params)), np.log(params)], axis=1)
    middle = float(np.average(design[:, 1], weights=error**-2))
    design[:, 1] -= middle  # level and slope are then independent
    scaled, wanted = design / error[:, None], information / error
    covariance = np.linalg.inv(scaled.T @ scaled)
    line = covariance @ scaled.T @ wanted
    residual = information - design @ line
    free = len(params) - 2
    noise = float(np.sum((residual / error) ** 2)) / free
    if standard_error is not None:
        noise = max(noise, 1.0)
    rng = np.random.default_rng(seed)
    spread = np.sqrt(noise * free / rng.chisquare(free, draws))[:, None]
    drawn = line + spread * rng.standard_normal((draws, 2)) * np.sqrt(np.diag(covariance))
    columns = {"rate": drawn[:, 1], "Nc": _onset(drawn[:, 0], drawn[:, 1], middle)}
    best = {"rate": line[1], "Nc": _onset(line[:1], line[1:], middle)[0]}
    parameters = {name: interval(float(best[name]), columns[name]) for name in best}
    largest = float(params.max())
    at_largest = line[0] + line[1] * (np.log(largest) - middle)
    drawn_there = drawn[:, 0] + drawn[:, 1] * (np.log(largest) - middle)
    said = []
    if draws and not parameters["rate"].low > 0:
        said.append(
            f"rate_not_identified: its 95% interval [{parameters['rate'].low:.3g}, "
            f"{parameters['rate'].high:.3g}] reaches 0; these sizes do not say that the information "
            "grows with N, and Nc means nothing."
        )
    return Fit(
        law=LAW, formula=FORMULA, x="params", parameters=parameters,
        objective={
            "name": "root mean square of I - I_fitted",
            "value": float(np.sqrt(np.mean(residual**2))),
        },
        points_used=len(params), points_left_out=(),
        bootstrap={"method": "t distribution" if draws else "none", "draws": draws, "seed": seed},
        diagnostics={"degrees_of_freedom": free, "noise_over_standard_error": float(np.sqrt(noise)),
                     "x_range": [float(params.min()), largest], "log_middle": middle, "level": float(line[0])},
        warnings=tuple(said), seconds=time.perf_counter() - began,
        derived={"information_at_largest": interval(float(at_largest), drawn_there)},
        draws=columns | {"level": drawn[:, 0], "information_at_largest": drawn_there},
    )  # fmt: skip


def information_line(fit: Fit, params: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The fitted I at sizes [P], and the ends of its 95% band, by the level in the middle of the sizes: Nc
    itself overflows where the information hardly grows."""
    away = np.log(params) - fit.diagnostics["log_middle"]
    drawn = fit.draws["level"][:, None] + fit.draws["rate"][:, None] * away
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return fit.diagnostics["level"] + fit.value("rate") * away, low, high


def _onset(level: np.ndarray, rate: np.ndarray, middle: float) -> np.ndarray:
    """Nc = exp(middle - level/rate), where the line crosses zero."""
    with np.errstate(all="ignore"):
        return np.exp(middle - level / rate)


def _check(source: str, params: np.ndarray, information: np.ndarray, error: np.ndarray) -> None:
    bad = ~(np.isfinite(information) & np.isfinite(params) & (params > 0))
    bad |= ~(np.isfinite(error) & (error > 0))
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"{source}: point {at} has N = {params[at]:g}, information {information[at]:g}, standard "
            f"error {error[at]:g}; wanted finite numbers, N and the error above 0. Leave it out."
        )
    sizes = len(np.unique(params))
    if sizes < FEWEST_SIZES:
        raise ValueError(
            f"{source}: mutual information at {sizes} different sizes; wanted at least {FEWEST_SIZES} "
            "for a line and its error. Evaluate runs of other sizes."
        )
