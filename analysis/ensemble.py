"""Several laws on the same points, weighted by what they explain for their parameters.

No single form wins on held-out runs, so a prediction mixes the forms that the points allow: AICc
weights (Burnham & Anderson 2002), each law with its bootstrap draws and its residual noise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import optimize, special

from analysis import solve
from analysis.bootstrap import HUGE, clusters, draw
from analysis.holdout import Split, rolling_origin
from analysis.points import PointSet
from analysis.separable import (
    BROKEN,
    COUPLED,
    LOGARITHM,
    POWER,
    POWER_CONSTANT,
    SURFACE,
    SURFACE_KAPLAN,
    SURFACE_LAWS,
    Law,
)
from analysis.solution import Solution, best_solution, check_enough, named, scaled_data

BESIDE = {
    POWER.name: (POWER_CONSTANT,),
    POWER_CONSTANT.name: (POWER,),
    LOGARITHM.name: (POWER, POWER_CONSTANT),
    BROKEN.name: (POWER_CONSTANT,),
    SURFACE.name: (COUPLED,),
    COUPLED.name: (SURFACE,),
    SURFACE_KAPLAN.name: (SURFACE, COUPLED),
}
"""Which forms a law is mixed with."""

LEAST_WEIGHT = 0.05
"""A form of less AICc weight beside the others is rejected: nothing is derived from it."""


@dataclass(frozen=True)
class Member:
    """One law of an ensemble: its fit, its draws [draws, Q] and its AICc weight."""

    law: Law
    units: tuple[float, ...]
    solution: Solution
    draws: np.ndarray
    residual: np.ndarray  # (log fitted - log measured) sqrt(weight), of mean weight 1 [P]
    aicc: float
    weight: float

    @property
    def residual_sd(self) -> float:
        """Scatter about the law of points of the mean weight, corrected for its degrees of freedom."""
        return scatter(self.residual, len(self.residual), len(self.solution.theta))

    def scatter_near(self, log_cost: np.ndarray, target: float) -> float:
        """The same over the half of the points whose log cost [P] is nearest the target: a law that
        bends away from cheap runs must not widen what it says of dear ones, nor the other way."""
        nearest = np.argsort(np.abs(log_cost - target), kind="stable")[: -(-len(log_cost) // 2)]
        return scatter(self.residual[nearest], len(log_cost), len(self.solution.theta))

    def constants(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """By the names of the formula, each [B]."""
        return named(self.law, theta, self.units)


def scatter(residual: np.ndarray, points: int, parameters: int) -> float:
    """Root mean square of some residuals of a fit of `parameters` to `points`."""
    free = max(points - parameters, 1)
    return float(np.sqrt(np.mean(residual**2) * points / free))


def aicc(residual: np.ndarray, weight: np.ndarray, delta: float, parameters: int) -> float:
    """-2 log likelihood + 2 k + 2 k (k + 1)/(n - k - 1), k = parameters + 1 for the size of the noise
    (Burnham & Anderson 2002, section 2.4). The likelihood is that of which the Huber objective is the
    exponent, `log_likelihood`: normal for a large delta, of Laplace for a small one, so that the linear
    part counts in full. Infinite where n does not exceed k + 1."""
    count, k = len(residual), parameters + 1
    if count <= k + 1:
        return float("inf")
    return -2 * log_likelihood(residual, weight, delta) + 2 * k + 2 * k * (k + 1) / (count - k - 1)


LEAST_NOISE = 1e-12
"""Of log losses: below it residuals are rounding."""


def log_likelihood(residual: np.ndarray, weight: np.ndarray, delta: float) -> float:
    """The greatest over s of sum_i log f(r_i), f = exp(-w huber_delta(r)/s^2)/Z, the density whose
    maximum likelihood the robust fit is (Huber 1981, section 4.5). Inside delta/w it is normal, so
    Z = (s/w^(1/2)) (2 pi)^(1/2) (2 Phi(z) - 1) + 2 s^2/(w delta) exp(-z^2/2), z = w^(1/2) delta/s."""
    energy = float(solve.objective(residual[None], weight[None], delta)[0])
    weights, times = np.unique(weight, return_counts=True)

    def minus(log_s: float) -> float:
        s = np.exp(log_s) / np.sqrt(weights)
        z = delta / s
        inside = np.log(2 * np.pi) / 2 + np.log(np.maximum(special.erf(z / np.sqrt(2)), 1e-300))
        tail = np.log(2 / np.maximum(z, 1e-300)) - z**2 / 2
        log_z = np.log(s) + np.logaddexp(inside, tail)
        return energy / np.exp(2 * log_s) + float(times @ log_z)

    spread = max(float(np.sqrt(np.mean(residual**2))), LEAST_NOISE)
    ends = np.log(min(spread, np.sqrt(spread * delta))) - 3, np.log(max(spread, LEAST_NOISE)) + 3
    return -float(optimize.minimize_scalar(minus, bounds=ends, method="bounded").fun)


def thinned(found: PointSet) -> PointSet:
    """At most HUGE points, evenly taken: enough to judge forms and hold-outs by."""
    step = -(-len(found.points) // HUGE) if len(found.points) > HUGE else 1
    return found if step == 1 else replace(found, points=found.points.only(slice(None, None, step)))


def members(found: PointSet, law: Law, draws: int, seed: int) -> list[Member]:
    """`law` first, then those beside it that the points can carry, with their weights."""
    fitted = []
    for each in (law, *BESIDE.get(law.name, ())):
        one = each.of(law.inputs[0]) if each.inputs == ("x",) else each
        if one is not law:
            try:
                check_enough(found, one)
            except ValueError:
                continue  # the form needs more points; the asked law is judged without it
        units, data = scaled_data(found.points, one)
        fitted.append((one, units, data, best_solution(one, data)))
    common = max(solution.delta for *_, solution in fitted)
    kept = []
    for one, units, data, solution in fitted:
        residual = solve.residuals(one, data, solution.theta[None])[0]
        cluster = clusters(found.points, one)
        boot = draw(cluster, one, data, solution.theta, solution.delta, draws, seed)
        criterion = aicc(residual, data.weight[0], common, len(solution.theta))
        weighed = residual * np.sqrt(data.weight[0])
        kept.append(Member(one, units, solution, boot.theta, weighed, criterion, 0.0))
    least = min(each.aicc for each in kept)
    if not np.isfinite(least):
        return [replace(each, weight=float(each is kept[0])) for each in kept]
    raw = [float(np.exp(-0.5 * (each.aicc - least))) for each in kept]
    return [replace(each, weight=one / sum(raw)) for each, one in zip(kept, raw, strict=True)]


def aicc_weights(aicc: Mapping[str, float]) -> dict[str, float]:
    """exp(-AICc/2) as a share of the sum over these forms (Burnham & Anderson 2002, section 2.9); NaN for one
    whose AICc is not finite, the points being too few for it."""
    least = min((each for each in aicc.values() if np.isfinite(each)), default=np.nan)
    raw = {name: float(np.exp((least - each) / 2)) if np.isfinite(each) else np.nan
           for name, each in aicc.items()}  # fmt: skip
    total = float(np.nansum(list(raw.values())))
    return {name: each / total if total else np.nan for name, each in raw.items()}


def accepted(weights: Mapping[str, float]) -> list[str]:
    """The forms of at least LEAST_WEIGHT, the likeliest first; one of no known weight is kept, as the last."""
    kept = [name for name in weights if not weights[name] < LEAST_WEIGHT]
    return sorted(kept, key=lambda name: -np.nan_to_num(weights[name]))


def surface_weights(found: PointSet) -> dict[str, float]:
    """The AICc weight of each law of N and D that the points can carry, in the order of SURFACE_LAWS. Raises
    `ValueError` for points that cannot carry `surface`."""
    check_enough(found, SURFACE)
    compared = members(thinned(found), SURFACE_KAPLAN, 0, 0)
    aicc_of = {each.law.name: each.aicc for each in compared}
    return aicc_weights({name: aicc_of[name] for name in SURFACE_LAWS if name in aicc_of})


def mixture(members: list[Member], draws: int, seed: int) -> list[tuple[Member, np.ndarray]]:
    """Which draws of each member enter the mixture: counts by weight, the first law rounding up."""
    rng = np.random.default_rng([seed, 1])
    counts = rng.multinomial(draws, [each.weight for each in members])
    return [
        (each, each.draws[rng.integers(len(each.draws), size=count)])
        for each, count in zip(members, counts, strict=True)
        if count and len(each.draws)
    ]


def comparison(found: PointSet, law: Law, delta: float) -> dict[str, Any]:
    """For the diagnostics of a fit: its hold-outs by compute, and beside each form its AICc, its
    weight and its mean hold-out error. No form is chosen by in-sample residuals alone."""
    found = thinned(found)
    rows: list[dict[str, Any]] = []
    own: list[Split] = []
    for each in members(found, law, 0, 0):
        splits = rolling_origin(found.points, each.law, delta)
        own = splits if each.law.name == law.name else own
        squares = [float(np.mean(split.error**2)) for split in splits]
        rows.append(
            {
                "law": each.law.name,
                "aicc": each.aicc,
                "weight": each.weight,
                "residual_sd": each.residual_sd,
                "holdout_rms": float(np.sqrt(np.mean(squares))) if squares else None,
            }
        )
    return {"holdout": [each.as_json() for each in own], "forms": rows}
