"""What a fitted separable law is asked for: its constants by name, and what follows from them.

Each is a function of the fitted parameters theta [B, Q], so that the same code gives the value, the
bootstrap draws and the profile.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from analysis.derived import (
    OPTIMUM,
    as_coupled,
    efficient_frontier,
    frontier_exponents,
    optimum_of,
    tokens_against_overfitting,
)
from analysis.points import LossPoints
from analysis.profiles import Quantity
from analysis.separable import LEARNING_CURVE_AT_BATCH, SURFACE_KAPLAN, SURFACE_LAWS, Law
from analysis.solution import named

OVERFITTING = 0.02
"""Relative excess loss that Kaplan et al. 2020 (section 4.3) keep their data above."""

Derived = Callable[[Mapping[str, Any]], Any]


def quantities_of(law: Law, points: LossPoints, units: tuple[float, ...]) -> dict[str, Quantity]:
    """Every constant of a law, then what follows from them at the ends of the data."""
    names = list(named(law, _middle(law), units))

    def of(derived: Derived) -> Quantity:
        def value(theta: np.ndarray) -> np.ndarray:
            with np.errstate(all="ignore"):
                return np.asarray(derived(named(law, theta, units)))

        return value

    wanted: dict[str, Derived] = {name: _constant(name) for name in names}
    wanted |= _of_surface(law, points) | _of_batches(law, points)
    return {name: of(each) for name, each in wanted.items()}


def _constant(name: str) -> Derived:
    return lambda constants: constants[name]


def _of_surface(law: Law, points: LossPoints) -> dict[str, Derived]:
    """Laws of N and D: a and the optimum at the largest compute, the exponent of the reducible L(C),
    and for Kaplan's the tokens that keep the largest size from over-fitting."""
    if law.name not in SURFACE_LAWS:
        return {}
    flops = float(np.max(6 * points.params * points.tokens))

    def optimum(name: str) -> Derived:
        return lambda constants: optimum_of(law.name, constants, flops)[name]

    found: dict[str, Derived] = {name: optimum(name) for name in OPTIMUM}

    def loss_exponent(constants: Mapping[str, Any]) -> Any:
        c = as_coupled(law.name, constants)
        return c["gamma"] * c["alpha"] * c["beta"] / (c["alpha"] + c["beta"])

    found["loss_exponent"] = loss_exponent
    if law.name == SURFACE_KAPLAN.name:
        largest = float(points.params.max())
        found["tokens_against_overfitting"] = lambda constants: tokens_against_overfitting(
            largest, OVERFITTING, **constants
        )
    return found


def _of_batches(law: Law, points: LossPoints) -> dict[str, Derived]:
    """Learning curves at several batches: Kaplan's exponents of the efficient frontier, and the best
    size, batch and steps at the largest compute (section 6; batch in the unit of the points, taken
    as tokens where the points know how many tokens a step has)."""
    if law is not LEARNING_CURVE_AT_BATCH:
        return {}

    def exponent(name: str) -> Derived:
        return lambda c: frontier_exponents(c["aN"], c["aS"], c["aB"])[name]

    found = {f"{name}_exponent": exponent(name) for name in ("loss", "params", "batch", "steps")}
    if not (points.known("tokens") and points.known("flops")):
        return found
    tokens_a_batch = float(np.median(points.tokens / (points.steps * points.batch)))
    flops = float(points.flops.max())

    def best(name: str) -> Derived:
        def value(c: Mapping[str, Any]) -> Any:
            constants = {key: c[key] for key in ("Nc", "aN", "Sc", "aS", "aB")}
            star = c["B_star"] * tokens_a_batch
            return efficient_frontier(flops, B_star=star, **constants)[name]

        return value

    found |= {f"optimal_{name}": best(name) for name in ("params", "batch", "steps")}
    return found


def _middle(law: Law) -> np.ndarray:
    return np.array([[1.0] * len(law.constants) + [each.grid[0] for each in law.shapes]])
