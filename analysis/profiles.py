"""Profile likelihood: how far a quantity can be pushed before the fit gets significantly worse.

For each trial value v of a quantity q(theta) all parameters are refitted under a spring that pulls
q towards v. Where such a fit ends, no other parameters with the same q fit better, whatever the
strength of the spring: the pair (q, objective) there lies on the profile exactly. The 95% interval
ends where the objective has risen by as much as an F quantile allows, in units of its own noise.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import special

from analysis import solve
from analysis.separable import Law

CONFIDENCE = 0.95
STEPS = np.array([0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0, 20.0, 50.0])
"""Trial values, in standard errors of the quadratic approximation."""
STIFFNESS = 100.0
"""Of the spring, in units of the profile's own curvature."""
TOLERANCE = 1e-5

Quantity = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Profile:
    """The least objective at each value of a quantity, both rising in `value`, and the cut."""

    value: np.ndarray
    objective: np.ndarray
    cut: float

    def interval(self) -> tuple[float, float]:
        """Where the profile crosses the cut; the last value tried where it never does. Between
        values the square root of the rise is taken as linear, which it nearly is."""
        best = int(np.argmin(self.objective))
        rise = np.sqrt(np.maximum(self.objective - self.objective[best], 0.0))
        limit = np.sqrt(max(self.cut - self.objective[best], 0.0))
        ends = []
        for way in (-1, 1):
            at = best
            while 0 <= at + way < len(rise) and rise[at] <= limit:
                at += way
            low, high = rise[at - way], rise[at]
            if rise[at] <= limit or high <= low:
                ends.append(float(self.value[at]))
                continue
            share = (limit - low) / (high - low)
            ends.append(
                float(self.value[at - way] + share * (self.value[at] - self.value[at - way]))
            )
        return ends[0], ends[1]


def profile(
    law: Law, data: solve.Data, theta: np.ndarray, delta: float, quantity: Quantity
) -> Profile | None:
    """The profile of a quantity about the best fit `theta` [Q]; None where it does not depend on
    the parameters that are free, or nothing is left to judge by (no degree of freedom)."""
    count, free = data.log_loss.shape[1], data.log_loss.shape[1] - len(law.parameters)
    residual, jacobian = solve.derivatives(law, data, theta[None])
    psi = np.clip(residual[0], -delta, delta)
    inside = float(np.mean(np.abs(residual) <= delta))
    if free < 1 or inside == 0:
        return None
    # Huber 1981, section 7.6: K corrects for residuals that the fit itself has made small
    correction = 1 + len(law.parameters) / count * (1 - inside) / inside
    noise = correction**2 * float(data.weight[0] @ psi**2) / free / inside
    noise = max(noise, 1e-24)
    slope = solve.gradient_of(quantity, theta[None])[0]
    information = (jacobian[0] * data.weight[0]) @ jacobian[0].T * inside
    way = _solved(information, slope)
    variance = float(slope @ way) * noise
    if not (np.isfinite(variance) and variance > 0):
        return None
    centre = float(quantity(theta[None])[0])
    offsets = np.concatenate([-STEPS[::-1], [0.0], STEPS]) * np.sqrt(variance)
    spring = solve.Spring(quantity, centre + offsets, STIFFNESS * noise / variance)
    many = data.repeated(len(offsets))
    starts = np.repeat(theta[None], len(offsets), 0)
    along = np.clip(starts + offsets[:, None] * way * noise / variance, *solve.limits(law))
    near, far = (solve.total(law, many, each, delta, spring) for each in (starts, along))
    starts = np.where((far < near)[:, None], along, starts)
    ends = solve.polish(law, many, starts, delta, tolerance=TOLERANCE, spring=spring)
    value, least = (
        quantity(ends),
        solve.objective(solve.residuals(law, many, ends), many.weight, delta),
    )
    order = np.argsort(value, kind="stable")
    cut = (
        float(least.min())
        + 0.5 * noise * special.fdtri(1, free, CONFIDENCE)
        + 1e-14 * count * delta**2
    )
    return Profile(value[order], least[order], cut)


def _solved(information: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """information^-1 slope [Q], 0 along what the points say nothing of. In units that give each parameter
    the same information: derivatives near a limit of the search differ by eight decades, beside which
    plain rounding would drop all others."""
    unit = np.sqrt(np.maximum(np.diag(information), 1e-300))
    scaled = np.linalg.pinv(information / np.outer(unit, unit), rcond=1e-13)
    return scaled @ (slope / unit) / unit


def undetermined(
    law: Law, data: solve.Data, theta: np.ndarray, quantities: Mapping[str, Quantity]
) -> list[str]:
    """Names of the quantities that change with a parameter which no point depends on, such as the exponent
    of a term that is 0 in the best fit `theta` [Q]: any value of them fits as well."""
    jacobian = solve.derivatives(law, data, theta[None])[1][0]
    silent = ~np.any(jacobian != 0, axis=1)
    if not silent.any():
        return []
    found = []
    for name, quantity in quantities.items():
        slope = solve.gradient_of(quantity, theta[None])[0][silent]
        if not np.all(slope == 0) or not np.all(np.isfinite(quantity(theta[None]))):
            found.append(name)
    return found


LINEAR = ("irreducible", "E", "a")
"""Quantities that are profiled as they are; the others, all positive, in their logarithm."""


def profile_interval(
    law: Law, data: solve.Data, theta: np.ndarray, delta: float, quantity: Quantity, name: str
) -> tuple[float, float]:
    """The 95% profile interval of a named quantity; NaN where there is none."""

    def logarithm(theta: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.log(quantity(theta))

    linear = name in LINEAR
    found = profile(law, data, theta, delta, quantity if linear else logarithm)
    if found is None:
        return float("nan"), float("nan")
    low, high = found.interval()
    with np.errstate(over="ignore"):
        return (low, high) if linear else (float(np.exp(low)), float(np.exp(high)))
