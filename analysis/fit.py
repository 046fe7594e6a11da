"""Fits a law of one variable, checks the fit, and says how far each constant can be trusted.

Robust loss: Huber on log residuals. delta is 1e-3 (Hoffmann et al. 2022, Besiroglu et al. 2024)
unless the points scatter more than that, then 1.345 x the residual scale: a delta far below the
noise turns the fit into least absolute deviations, which few points do not bear.
"""

import time
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from analysis import solve
from analysis.bootstrap import Draws, draw
from analysis.estimate import CONFIDENCE, Estimate, Fit, exponent_warning, interval
from analysis.laws import POWER_CONSTANT, Law
from analysis.points import X_SYMBOLS, PointSet

DELTA = 1e-3
HUBER_EFFICIENT = 1.345
"""Huber's delta in residual scales for 95% efficiency under normal noise (Huber 1981)."""

START_COUNT = 12
SAME_OBJECTIVE = 1e-3
CONVERGED = 1e-6


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


def fit_curve(found: PointSet, law: Law, x: str, draws: int, seed: int) -> Fit:
    """Fit `law` of the column `x`; `draws` bootstrap fits give the 95% intervals."""
    began = time.perf_counter()
    check_enough(found, law, x)
    middle, data = scaled_data(found, x)
    solution = best_solution(law, data)
    residual = solve.residuals(law, data, solution.theta[None])[0][0]
    boot = draw(found.points, law, data, solution.theta, solution.delta, draws, seed)
    values = named(law, solution.theta[None], middle)
    drawn = named(law, boot.theta, middle)
    parameters = {name: interval(values[name][0], drawn[name]) for name in values}
    profile = profiles(law, data, solution)
    return Fit(
        law=law.name,
        formula=law.formula.replace("/x", f"/{X_SYMBOLS[x]}"),
        x=x,
        parameters=parameters,
        objective={
            "name": "sum of huber(log residual)",
            "delta": solution.delta,
            "value": solution.objective,
        },
        points_used=len(found.points),
        points_left_out=found.left_out,
        bootstrap={"method": boot.method, "draws": draws, "seed": seed},
        diagnostics=_diagnostics(found, x, residual, law, solution, boot, profile),
        warnings=(
            *found.remarks,
            *_warnings(found, law, x, parameters, solution, residual, boot, profile),
        ),
        seconds=time.perf_counter() - began,
        draws=drawn,
    )


def check_enough(found: PointSet, law: Law, x: str) -> None:
    """Raise `ValueError` when the law has as many parameters as there are distinct x."""
    distinct = len(np.unique(found.points.x(x))) if len(found.points) else 0
    wanted = len(law.parameters) + 1
    if distinct >= wanted:
        return
    if distinct == 1 and len(found.points) > 1:
        raise ValueError(
            f"{found.source}: all {len(found.points)} points have {x} = "
            f"{found.points.x(x)[0]:.6g}; wanted at least {wanted} different {x} for the law "
            f"{law.name!r}. Add runs with other {x}."
        )
    raise ValueError(
        f"{found.source}: {len(found.points)} usable points at {distinct} different {x} "
        f"({len(found.left_out)} left out); wanted at least {wanted} different {x} for the "
        f"{len(law.parameters)} parameters of {law.name!r}. Add runs"
        + (", look at the ones left out," if found.left_out else "")
        + " or fit a law with fewer parameters."
    )


def scaled_data(found: PointSet, x: str) -> tuple[float, solve.Data]:
    """The geometric mean of x, and the points in units of it (a fit must not depend on units)."""
    values = found.points.x(x)
    middle = float(np.exp(np.mean(np.log(values))))
    weight = found.points.weight / found.points.weight.mean()
    return middle, solve.Data(
        values / middle, np.log(found.points.loss)[None], np.asarray(weight, float)[None]
    )


def best_solution(law: Law, data: solve.Data) -> Solution:
    """Grid, polish, exact-gradient check, and the same from starts all over the grid."""
    delta = choose_delta(law, data)
    best = solve.solve(law, data, delta)
    best = _exact_polish(law, data, best, delta)
    starts = np.quantile(solve.EXPONENT_GRID, np.linspace(0.05, 0.95, START_COUNT))
    many = data.rows(np.zeros(START_COUNT, int))
    constants = solve.project(law, data, starts[:, None])[0][:, 0]
    ends = solve.descend(law, many, np.column_stack([constants, starts]), delta)
    candidates = np.concatenate([best, ends])
    values = np.array([_objective(law, data, theta[None], delta) for theta in candidates])
    theta = candidates[[int(np.argmin(values))]]
    least = float(values.min())
    slack = SAME_OBJECTIVE * least + 1e-12 * delta**2
    residual, jacobian = solve.residuals(law, data, theta)
    low, high = solve.limits(law)
    slope = solve.gradient(residual, jacobian, data.weight, delta)[0]
    blocked = ((theta[0] <= low) & (slope > 0)) | ((theta[0] >= high) & (slope < 0))
    size = np.maximum(np.abs(theta[0]), 1e-12)
    scaled = (jacobian[0] * size)[:, ~blocked]
    scaled = scaled / np.maximum(np.linalg.norm(scaled, axis=0), 1e-300)
    return Solution(
        theta=theta[0],
        delta=delta,
        objective=least,
        gradient_norm=float(
            np.abs(np.where(blocked, 0, slope * size)).max() / (delta * data.weight.sum())
        ),
        condition=float(np.linalg.cond(scaled)),
        starts=len(starts),
        starts_agreeing=int(np.sum(values[1:] <= least + slack)),
    )


def choose_delta(law: Law, data: solve.Data) -> float:
    """1e-3, or 1.345 residual scales where the points scatter more (median-based scale of a
    least-squares fit, corrected for its degrees of freedom)."""
    theta = solve.polish(law, data, solve.grid_start(law, data), np.inf)
    residual = np.abs(solve.residuals(law, data, theta)[0][0])
    count, free = len(residual), len(residual) - len(law.parameters)
    scale = 1.4826 * float(np.median(residual)) * np.sqrt(count / max(free, 1))
    return max(DELTA, HUBER_EFFICIENT * scale)


def named(law: Law, theta: np.ndarray, middle: float) -> dict[str, np.ndarray]:
    """Parameters by the names of the formula: amplitude a of a u^-e becomes scale = x0 a^(1/e)."""
    column = dict(zip(law.parameters, theta.T, strict=True))
    with np.errstate(all="ignore"):
        scale = middle * column["amplitude"] ** (1 / column["exponent"])
    found = {"irreducible": column["irreducible"]} if "irreducible" in column else {}
    return {**found, "scale": scale, "exponent": column["exponent"]}


def profiles(law: Law, data: solve.Data, solution: Solution) -> dict[str, list[float]]:
    """Profile-likelihood 95% intervals (least squares, F quantile) of the irreducible loss."""
    count, free = data.u.size, data.u.size - len(law.parameters)
    if law is not POWER_CONSTANT or free < 1:
        return {}
    best = solve.polish(law, data, solution.theta[None], np.inf)
    least = float(solve.objective(solve.residuals(law, data, best)[0], data.weight, np.inf)[0])
    top = float(np.exp(data.log_loss.min()))
    trial = np.concatenate([np.linspace(0, 0.995 * top, 160), best[:, 0]])
    trial = np.sort(trial)
    many = solve.Data(
        data.u, np.repeat(data.log_loss, len(trial), 0), np.repeat(data.weight, len(trial), 0)
    )
    theta = np.repeat(best, len(trial), 0)
    theta[:, 0] = trial
    theta[:, 1] = np.maximum(np.exp(data.log_loss).mean() - trial, 1e-6)
    theta = solve.polish(law, many, theta, np.inf, frozen=(0,))
    squares = solve.objective(solve.residuals(law, many, theta)[0], many.weight, np.inf)
    cut = least * (1 + special.fdtri(1, free, CONFIDENCE) / free) + 1e-14 * count
    return {"irreducible": _crossings(trial, squares, cut)}


def _crossings(trial: np.ndarray, squares: np.ndarray, cut: float) -> list[float]:
    """Where the profile rises above the cut on either side, between grid points."""
    inside = np.flatnonzero(squares <= cut)
    first, last = int(inside[0]), int(inside[-1])
    ends = [float(trial[first]), float(trial[last])]
    for side, (near, far) in enumerate(((first, first - 1), (last, last + 1))):
        if 0 <= far < len(trial):
            share = (cut - squares[near]) / (squares[far] - squares[near])
            ends[side] += float(share * (trial[far] - trial[near]))
    return ends


def _objective(law: Law, data: solve.Data, theta: np.ndarray, delta: float) -> float:
    residual = solve.residuals(law, data, theta)[0]
    return float(solve.objective(residual, data.weight, delta)[0])


def _exact_polish(law: Law, data: solve.Data, theta: np.ndarray, delta: float) -> np.ndarray:
    """L-BFGS-B with the exact gradient, on the objective in units of delta^2 (an objective of
    1e-6 would meet the default tolerance at the start: the failure of Hoffmann et al. 2022)."""
    size = np.maximum(np.abs(theta[0]), 1e-6)

    def scaled(z: np.ndarray) -> tuple[float, np.ndarray]:
        residual, jacobian = solve.residuals(law, data, (z * size)[None])
        value = solve.objective(residual, data.weight, delta)[0] / delta**2
        slope = solve.gradient(residual, jacobian, data.weight, delta)[0] * size / delta**2
        return float(value), slope

    low, high = solve.limits(law)
    bounds = list(zip(low / size, high / size, strict=True))
    options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 500}
    end = optimize.minimize(
        scaled, theta[0] / size, jac=True, method="L-BFGS-B", bounds=bounds, options=options
    )
    return np.clip(end.x * size, low, high)[None]


def _diagnostics(
    found: PointSet,
    x: str,
    residual: np.ndarray,
    law: Law,
    solution: Solution,
    boot: Draws,
    profile: dict[str, list[float]],
) -> dict[str, object]:
    values = found.points.x(x)
    free = len(residual) - len(law.parameters)
    return {
        "gradient_norm": solution.gradient_norm,
        "starts": solution.starts,
        "starts_agreeing": solution.starts_agreeing,
        "condition_number": solution.condition,
        "degrees_of_freedom": free,
        "residual_sd": float(np.sqrt(np.sum(residual**2) / max(free, 1))),
        "largest_residual": float(np.abs(residual).max()),
        "decades_of_x": float(np.log10(values.max() / values.min())),
        "x_range": [float(values.min()), float(values.max())],
        "draws_at_a_bound": boot.at_bound,
        "profile": profile,
    }


def _warnings(
    found: PointSet,
    law: Law,
    x: str,
    parameters: dict[str, Estimate],
    solution: Solution,
    residual: np.ndarray,
    boot: Draws,
    profile: dict[str, list[float]],
) -> list[str]:
    said = []
    distinct = len(np.unique(found.points.x(x)))
    if distinct < len(law.parameters) + 3:
        said.append(
            f"few_points: {distinct} different {x} for {len(law.parameters)} parameters; the form "
            "of the law cannot be tested with so few."
        )
    if solution.gradient_norm > CONVERGED:
        said.append(
            f"not_converged: the scaled gradient is {solution.gradient_norm:.1e}, wanted below "
            f"{CONVERGED:.0e}; the constants may not be the best ones."
        )
    said += exponent_warning(parameters["exponent"])
    said += _irreducible_warning(found, parameters, profile)
    outliers = found.points.label[
        np.abs(residual) > 4 * max(solution.delta / HUBER_EFFICIENT, 1e-9)
    ]
    if len(outliers):
        said.append(
            f"outliers: {len(outliers)} points lie more than 4 residual scales off the fit "
            f"({', '.join(map(str, outliers[:3]))}); they are in the fit with bounded weight."
        )
    return [*said, *boot.warnings]


def _irreducible_warning(
    found: PointSet, parameters: dict[str, Estimate], profile: dict[str, list[float]]
) -> list[str]:
    if "irreducible" not in parameters:
        return []
    smallest = float(found.points.loss.min())
    each = parameters["irreducible"]
    low, high = np.nanmin([each.low, each.value]), np.nanmax([each.high, each.value])
    if "irreducible" in profile:
        low, high = min(low, profile["irreducible"][0]), max(high, profile["irreducible"][1])
    if low > 1e-6 * smallest and high - low <= smallest / 4:
        return []
    return [
        f"irreducible_not_identified: its 95% interval is [{low:.3g}, {high:.3g}] for a smallest "
        f"loss of {smallest:.3g}; these points do not say what the loss would fall to, and the "
        "scale and exponent depend on it."
    ]
