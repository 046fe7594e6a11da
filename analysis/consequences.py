"""What fitted laws imply, with intervals: the size or compute for a wanted loss, and where L(C) and
L(D) contradict each other. Each bootstrap draw of the constants gives one answer."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.derived import (
    as_coupled,
    crossing,
    inner_surface,
    optimal_allocation,
    x_for_reducible,
)
from analysis.estimate import Estimate, Fit, interval
from analysis.laws import FLOPS_PER_PARAMETER_AND_TOKEN, surface
from analysis.separable import FRONTIER, POWER, POWER_CONSTANT, SURFACE_LAWS

CURVES = (POWER.name, POWER_CONSTANT.name, FRONTIER)


def for_reducible(fit: Fit, wanted: float, tokens_per_sample: float = 1.0) -> dict[str, Estimate]:
    """What it takes for a reducible loss of `wanted` nats per image or clip of `tokens_per_sample`
    tokens (1: per token): the N, D or C of a law of one variable; C, N and D on the optimum of a law
    of N and D. Raises `ValueError` for other laws, and for no positive number."""
    if not (np.isfinite(wanted) and wanted > 0):
        raise ValueError(
            f"--reducible = {wanted:g}: not a positive number; wanted nats above the irreducible "
            "loss."
        )
    if fit.law not in CURVES and fit.law not in SURFACE_LAWS:
        raise ValueError(
            f"--reducible with --law {fit.law}; wanted a law whose reducible loss has an inverse: "
            f"{', '.join((*CURVES, *SURFACE_LAWS))}. Choose one of these."
        )
    value = {name: np.array([each.value]) for name, each in fit.parameters.items()}
    with np.errstate(all="ignore"):
        found, drawn = (
            _inverse(fit, each, wanted / tokens_per_sample) for each in (value, fit.draws)
        )
    return {name: interval(float(found[name][0]), drawn[name]) for name in found}


def _inverse(fit: Fit, constants: Mapping[str, Any], wanted: float) -> dict[str, np.ndarray]:
    if fit.law in CURVES:
        scale, exponent = constants["scale"], constants["exponent"]
        return {str(fit.x): x_for_reducible(wanted, scale, exponent)}
    # on the optimum both terms fall as C^-(alpha beta/(alpha + beta)), and so does their sum
    inner, power = inner_surface(fit.law, constants), as_coupled(fit.law, constants)["gamma"]
    at = float(FLOPS_PER_PARAMETER_AND_TOKEN * 1e18)
    params, tokens = optimal_allocation(at, **inner)
    there = surface(params, tokens, 0.0, **inner) ** power
    exponent = inner["alpha"] * inner["beta"] / (inner["alpha"] + inner["beta"]) * power
    flops = at * (there / wanted) ** (1 / exponent)
    params, tokens = optimal_allocation(flops, **inner)
    return {"flops": flops, "params": params, "tokens": tokens}


def contradiction(flops_fit: Fit, tokens_fit: Fit, optimum: Fit) -> dict[str, Estimate]:
    """Where the reducible L(C) meets the reducible L(D) at the tokens of the best size: `flops` and
    the reducible `loss` there. `optimum` holds params_scale and params_exponent (frontier, isoflop).
    The three fits are taken as independent: their draws, which one seed may have made alike, are
    shuffled. NaN where the trends are parallel."""
    fits = (flops_fit, tokens_fit, optimum)
    count = min(len(next(iter(fit.draws.values()), ())) for fit in fits)
    names = (("scale", "exponent"), ("scale", "exponent"), ("params_scale", "params_exponent"))
    value, drawn = [], []
    for number, (fit, own) in enumerate(zip(fits, names, strict=True)):
        order = np.random.default_rng(number).permutation(count)
        value.append({name: fit.value(name) for name in own})
        drawn.append({name: fit.draws[name][order] for name in own if count})
    best = crossing(value[0], value[1], *value[2].values())
    draws = crossing(drawn[0], drawn[1], *drawn[2].values()) if count else (np.empty(0),) * 2
    return {
        name: interval(float(one), many)
        for name, one, many in zip(("flops", "loss"), best, draws, strict=True)
    }
