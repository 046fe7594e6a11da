"""Fits a separable law, checks the fit, and says how far each constant can be trusted."""

import time
from collections.abc import Collection

import numpy as np

from analysis import solve
from analysis.bootstrap import HUGE, Draws, clusters, draw, recipe
from analysis.doubts import warnings_of
from analysis.ensemble import comparison
from analysis.estimate import Estimate, Fit, interval
from analysis.points import X_SYMBOLS, LossPoints, PointSet
from analysis.profiles import profile_interval, undetermined
from analysis.quantities import Quantity, quantities_of
from analysis.residual_tables import residual_report
from analysis.separable import Law
from analysis.solution import Solution, best_solution, check_enough, named, scaled_data


def fit_curve(found: PointSet, law: Law, x: str, draws: int, seed: int) -> Fit:
    """Fit a law of one variable, of the column `x`."""
    return fit_separable(found, law.of(x), draws, seed)


def fit_separable(
    found: PointSet,
    law: Law,
    draws: int,
    seed: int,
    delta: float | None = None,
    compare: bool = False,
    only: Collection[str] | None = None,
) -> Fit:
    """Fit `law`; `draws` bootstrap fits give the 95% intervals. `compare` adds the hold-outs by
    compute and the forms beside it; `only` names the quantities that are wanted, if not all. Raises
    `ValueError` for points that cannot carry the law."""
    began = time.perf_counter()
    check_enough(found, law)
    units, data = scaled_data(found.points, law)
    solution = best_solution(law, data, delta)
    cluster = clusters(found.points, law)
    boot = draw(cluster, law, data, solution.theta, solution.delta, draws, seed)
    quantities = quantities_of(law, found.points, units)
    if only is not None:
        needed = {*only, *named(law, solution.theta[None], units)}
        quantities = {name: each for name, each in quantities.items() if name in needed}
    values = {name: float(each(solution.theta[None])[0]) for name, each in quantities.items()}
    drawn = {name: each(boot.theta) for name, each in quantities.items()}
    estimates, known = _intervals(law, data, solution, cluster, quantities, values, drawn, only)
    residual = solve.residuals(law, data, solution.theta[None])[0]
    diagnostics = _diagnostics(found.points, law, data, residual, solution, boot) | known
    diagnostics |= residual_report(
        found.points, law, data, solution.theta, residual, solution.delta, units
    )
    if compare:
        diagnostics |= comparison(found, law, solution.delta)
    names = set(named(law, solution.theta[None], units))
    parameters = {name: each for name, each in estimates.items() if name in names}
    derived = {name: each for name, each in estimates.items() if name not in names}
    said = warnings_of(found.points, law, parameters, derived, diagnostics)
    return Fit(
        law=law.name,
        formula=_formula(law),
        x=law.inputs[0] if len(law.inputs) == 1 else None,
        parameters=parameters,
        objective={
            "name": "sum of huber(log residual)",
            "delta": solution.delta,
            "value": solution.objective,
        },
        points_used=len(found.points),
        points_left_out=found.left_out,
        bootstrap={"method": boot.method, "draws": draws, "seed": seed},
        diagnostics=diagnostics,
        warnings=(*found.remarks, *said, *boot.warnings),
        seconds=time.perf_counter() - began,
        derived=derived,
        draws=drawn,
    )


def _formula(law: Law) -> str:
    symbol = X_SYMBOLS.get(law.inputs[0], "x") if len(law.inputs) == 1 else "x"
    return law.formula.replace("/x", f"/{symbol}").replace("(x/", f"({symbol}/")


def _intervals(
    law: Law,
    data: solve.Data,
    solution: Solution,
    cluster: np.ndarray,
    quantities: dict[str, Quantity],
    values: dict[str, float],
    drawn: dict[str, np.ndarray],
    only: Collection[str] | None,
) -> tuple[dict[str, Estimate], dict[str, object]]:
    """Estimates; how their intervals were found, which quantities any value fits, and the profile interval
    of the irreducible loss and of a. With few points of one row each profiles hold what they promise and
    percentiles are a little narrow; with clusters or many points the bootstrap asks less of the noise. What
    any value fits has no interval; what has no profile, being 0, has that of the bootstrap."""
    own = recipe(cluster, law) == "residual, scale drawn"
    count = len(next(iter(drawn.values())))
    loose = undetermined(law, data, solution.theta, quantities)
    every = list(quantities) if only is None else list(only)
    wanted = every if own and count else [] if only is not None else [law.irreducible, "a"]
    profile = {
        name: profile_interval(law, data, solution.theta, solution.delta, quantities[name], name)
        for name in wanted
        if name in quantities and len(cluster) <= HUGE
    }
    found = {name: interval(values[name], drawn[name]) for name in quantities}
    if own and count:
        profiled = {name: Estimate(values[name], *ends) for name, ends in profile.items()}
        found |= {name: each for name, each in profiled.items() if not np.isnan(each.low)}
    found |= {name: Estimate(values[name], np.nan, np.nan) for name in loose}
    method = "profile likelihood" if own else "bootstrap percentiles"
    return found, {
        "intervals": method if count else "none",
        "undetermined": loose,
        "profile": {
            name: list(ends)
            for name, ends in profile.items()
            if name in (law.irreducible, "a") and name not in loose
        },
    }


def _diagnostics(
    points: LossPoints,
    law: Law,
    data: solve.Data,
    residual: np.ndarray,
    solution: Solution,
    boot: Draws,
) -> dict[str, object]:
    free = len(residual) - len(law.parameters)
    ranges = {
        name: [float(points.x(name).min()), float(points.x(name).max())] for name in law.inputs
    }
    found: dict[str, object] = {
        "gradient_norm": solution.gradient_norm,
        "starts": solution.starts,
        "starts_agreeing": solution.starts_agreeing,
        "left_its_start": solution.moved,
        "bounds_active": list(solution.bounds_active),
        "condition_number": solution.condition,
        "degrees_of_freedom": free,
        "residual_sd": float(np.sqrt(np.sum(data.weight[0] * residual**2) / max(free, 1))),
        "largest_residual": float(np.abs(residual).max()),
        "ranges": ranges,
        "draws_at_a_bound": boot.at_bound,
    }
    if len(law.inputs) == 1:
        low, high = ranges[law.inputs[0]]
        found |= {"x_range": [low, high], "decades_of_x": float(np.log10(high / low))}
    elif {"params", "tokens"} <= set(law.inputs):
        flops = 6 * points.params * points.tokens
        found["flops_range"] = [float(flops.min()), float(flops.max())]
    return found
