"""N_opt(C) by three routes: isoFLOP minima, the laws of N and D that AICc allows, and the envelope of all runs.

The routes fail in different ways, so their agreement is the evidence; where their intervals do not
overlap, that is said.
"""

import time
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from analysis.doubts import no_scatter
from analysis.ensemble import accepted, surface_weights
from analysis.estimate import Estimate, Fit, interval
from analysis.fit import fit_separable
from analysis.frontier import fit_optimum, lower_hull
from analysis.isoflop import FEWEST_SIZES, METHODS, Budget, budgets, minima, vertex_line
from analysis.laws import FLOPS_PER_PARAMETER_AND_TOKEN, optimal_tokens_scale
from analysis.line_holdout import line_holdouts
from analysis.points import LeftOut, LossPoints, PointSet, pareto
from analysis.separable import ISOFLOP, SURFACE, SURFACE_LAWS

FORMULA = (
    "log L = quadratic in log N for each budget; N_opt = (C/params_scale)^params_exponent through "
    "the minima; D_opt = C/(6 N_opt) = (C/tokens_scale)^tokens_exponent"
)
FEWEST_BUDGETS = 3
WHY = {
    "few_sizes": f"fewer than {FEWEST_SIZES['parabola']} sizes were trained",
    "minima_not_bracketed": "the best size is the smallest or largest that was trained",
    "minima_not_inside": "the parabola has no minimum between the sizes",
}
"""Why a budget gives no minimum: the warning, and its words."""


def fit_isoflop(
    found: PointSet, draws: int, seed: int, compare: bool = False, routes: bool = True
) -> Fit:
    """The parabola's line through the minima, with the other `routes` beside it, if wanted; `compare` adds the
    hold-outs by compute."""
    began = time.perf_counter()
    every_budget = budgets(found.points)
    known = [each for each in every_budget if len(each.log_params) >= 3]
    _check(found, known)
    trunk = np.unique(found.points.trunk, return_inverse=True)[1].reshape(-1)
    sd, free = _noise(known, trunk)
    value, drawn = {}, {}
    log_flops = np.log([each.flops for each in known])
    samples = _samples(known, trunk, (sd, free), draws, seed)
    vertices = {}
    for method in METHODS:
        own = [_bracketed(each, method, each.log_loss[None]) for each in known]
        vertices[method] = np.concatenate(own)
        value[method] = vertex_line(log_flops, vertices[method][None])
        every = [
            minima(each, method, sample) if np.isfinite(at[0]) else np.full(draws, np.nan)
            for each, sample, at in zip(known, samples, own, strict=True)
        ]
        drawn[method] = vertex_line(log_flops, np.stack(every, axis=1))
    others = _other_routes(found, draws, seed) if routes else OtherRoutes({}, {}, {})
    by_route = {
        f"a_{name}": interval(float(value[name][1][0]), drawn[name][1]) for name in METHODS
    } | others.found
    parameters, parameter_draws = _parameters(value["parabola"], drawn["parabola"])
    without = _without_minimum(every_budget, known, vertices["parabola"])
    return Fit(
        law=ISOFLOP,
        formula=FORMULA,
        x="flops",
        parameters=parameters,
        objective={"name": "scatter of log loss about the parabolas", "value": sd},
        points_used=len(found.points) - sum(len(each.rows) for each, _ in without),
        points_left_out=(*found.left_out, *_left_out(found.points, without)),
        bootstrap={"method": "residual, scale drawn", "draws": draws, "seed": seed},
        diagnostics=_diagnostics(known, vertices, found.points, compare)
        | {"forms": _forms(others.weights)},
        warnings=(
            *found.remarks,
            *_about_minima(len(every_budget), without),
            *no_scatter(sd if free else np.inf),
            *_about_surface(others.weights),
            *_disagreements(by_route),
        ),
        seconds=time.perf_counter() - began,
        derived=by_route,
        draws=parameter_draws | {f"a_{name}": drawn[name][1] for name in METHODS} | others.draws,
    )


def _check(found: PointSet, known: list[Budget]) -> None:
    if len(known) >= 2:
        return
    raise ValueError(
        f"{found.source}: {len(known)} compute budgets with 3 or more sizes, from "
        f"{len(found.points)} usable points; wanted at least 2 for a line through the minima, 3 for "
        "one to trust. Train several sizes to the same FLOPs, or fit the law surface, which needs "
        f"no equal budgets.{found.gone}"
    )


def _bracketed(budget: Budget, method: str, log_loss: np.ndarray) -> np.ndarray:
    return minima(budget, method, log_loss) if budget.is_bracketed else np.full(1, np.nan)


def _noise(known: list[Budget], trunk: np.ndarray) -> tuple[float, int]:
    """Pooled scatter of log loss about the parabolas, of a run of the mean weight, and its degrees of freedom;
    trunks less three, the constants of a parabola, where the same ones are measured at many budgets."""
    squares, free = 0.0, 0
    for each in known:
        z = each.log_params - each.log_params.mean()
        design = np.vander(z, 3) * np.sqrt(each.weight)[:, None]
        scaled = each.log_loss * np.sqrt(each.weight)
        rest = scaled - design @ np.linalg.lstsq(design, scaled, rcond=None)[0]
        squares += float(rest @ rest)
        free += max(len(z) - 3, 0)
    if not free:
        return 0.0, 0
    trunks = len(np.unique(trunk[np.concatenate([each.rows for each in known])]))
    return float(np.sqrt(squares / free)), min(free, max(trunks - 3, 1))


def _samples(
    known: list[Budget], trunk: np.ndarray, noise: tuple[float, int], draws: int, seed: int
) -> list[np.ndarray]:
    """Losses with new noise of the pooled size, which is itself drawn, [draws, sizes] a budget; that of a run
    is by its weight, the inverse square. A trunk has one draw at all its budgets: a run that is lucky at one is
    lucky at the next."""
    rng = np.random.default_rng(seed)
    sd, free = noise
    spread = sd * np.sqrt(free / rng.chisquare(free, draws)) if free else np.zeros(draws)
    luck = spread[:, None] * rng.standard_normal((draws, int(trunk.max()) + 1))
    return [
        each.log_loss
        + (luck[:, trunk[each.rows]] * np.sqrt(each.weight_of_row))
        @ np.eye(len(each.weight))[each.size_of_row]
        / each.weight
        for each in known
    ]


def _parameters(
    value: tuple[np.ndarray, np.ndarray], drawn: tuple[np.ndarray, np.ndarray]
) -> tuple[dict[str, Estimate], dict[str, np.ndarray]]:
    def named(log_scale: np.ndarray, exponent: np.ndarray) -> dict[str, np.ndarray]:
        with np.errstate(all="ignore"):
            scale = np.exp(log_scale)
            tokens = [optimal_tokens_scale(*each) for each in zip(scale, exponent, strict=True)]
        return {
            "params_scale": scale,
            "params_exponent": exponent,
            "tokens_scale": np.array(tokens),
            "tokens_exponent": 1 - exponent,
        }

    found, draws = named(*value), named(*drawn)
    return {name: interval(float(found[name][0]), draws[name]) for name in found}, draws


@dataclass(frozen=True)
class OtherRoutes:
    """The exponent a by ways that need no minima, their draws, and the AICc weights of the laws of N and D."""

    found: dict[str, Estimate]
    draws: dict[str, np.ndarray]
    weights: dict[str, float]


def _other_routes(found: PointSet, draws: int, seed: int) -> OtherRoutes:
    """By every law of N and D that AICc does not reject, fitted to all points, and by the envelope."""
    points = found.points
    if not points.known("tokens"):
        tokens = points.flops / (FLOPS_PER_PARAMETER_AND_TOKEN * points.params)
        points = replace(points, tokens=tokens)
    runs = replace(found, points=points)
    try:
        weights = surface_weights(runs)
    except ValueError:
        weights = {}  # too few points for five constants: these routes are not there
    fits = {
        f"a_{name}": fit_separable(runs, SURFACE_LAWS[name], draws, seed, only=("a",))
        for name in accepted(weights)
    }
    envelope, drawn = _envelope(points, draws, seed)
    return OtherRoutes(
        {key: fit.derived["a"] for key, fit in fits.items()} | {"a_envelope": envelope},
        {key: fit.draws["a"] for key, fit in fits.items()} | {"a_envelope": drawn},
        weights,
    )


def _forms(weights: dict[str, float]) -> list[dict[str, object]]:
    return [{"law": name, "weight": each} for name, each in weights.items()]


def _about_surface(weights: dict[str, float]) -> list[str]:
    """What is said where AICc rejects `surface`, by which the minima are usually checked."""
    kept = accepted(weights)
    if SURFACE.name not in weights or SURFACE.name in kept:
        return []
    others = " and ".join(f"{name!r} ({weights[name]:.2g})" for name in kept)
    return [
        f"surface_rejected: AICc gives 'surface' a weight of {weights[SURFACE.name]:.2g} beside {others} on these "
        "runs; its exponent is no route to N_opt, theirs is."
    ]


def _envelope(points: LossPoints, draws: int, seed: int) -> tuple[Estimate, np.ndarray]:
    """The slope through the convex hull of the lowest losses; trunks are resampled."""

    def slope(chosen: np.ndarray) -> float:
        flops, params, loss = (each[chosen] for each in (points.flops, points.params, points.loss))
        best = pareto(flops, loss)
        hull = best[lower_hull(np.log(flops[best]), np.log(loss[best]))]
        enough = len(hull) >= 2 and np.ptp(np.log(flops[hull])) > 0
        return fit_optimum(flops[hull], params[hull])[1] if enough else float("nan")

    rng = np.random.default_rng([seed, 3])
    names, trunk = np.unique(points.trunk, return_inverse=True)
    count = len(names)
    drawn = np.empty(draws)
    for index in range(draws):
        present = np.zeros(count, bool)
        present[rng.integers(count, size=count)] = True
        drawn[index] = slope(np.flatnonzero(present[trunk.reshape(-1)]))
    return interval(slope(np.arange(len(points))), drawn), drawn


def _diagnostics(
    known: list[Budget], vertices: dict[str, np.ndarray], points: LossPoints, compare: bool
) -> dict[str, object]:
    found: dict[str, object] = {
        "x_range": [float(points.flops.min()), float(points.flops.max())],
        "minima": [
            {"flops": each.flops, "sizes": len(each.log_params), "bracketed": each.is_bracketed}
            | {name: float(np.exp(vertices[name][index])) for name in METHODS}
            for index, each in enumerate(known)
        ],
    }
    if compare:
        flops = np.array([each.flops for each in known])
        found["holdout"] = line_holdouts(flops, np.exp(vertices["parabola"]), "N_opt")
    return found


def _without_minimum(
    every: list[Budget], known: list[Budget], vertices: np.ndarray
) -> list[tuple[Budget, str]]:
    """The budgets that the line does not go through, each with the name of why."""
    vertex = dict(zip((each.flops for each in known), vertices, strict=True))
    found = []
    for each in every:
        if len(each.log_params) < FEWEST_SIZES["parabola"]:
            found.append((each, "few_sizes"))
        elif not each.is_bracketed:
            found.append((each, "minima_not_bracketed"))
        elif not np.isfinite(vertex[each.flops]):
            found.append((each, "minima_not_inside"))
    return found


def _left_out(points: LossPoints, without: list[tuple[Budget, str]]) -> list[LeftOut]:
    """The runs of these budgets; the surface and the envelope have them all the same."""
    return [
        LeftOut(str(points.label[row]), f"not in N_opt: at its {each.flops:.3g} FLOPs {WHY[why]}")
        for each, why in without
        for row in each.rows
    ]


def _about_minima(count: int, without: list[tuple[Budget, str]]) -> list[str]:
    """Of `count` budgets those without a minimum by reason, and what is left for a slope."""
    said = []
    for name, words in WHY.items():
        gone = sum(why == name for _, why in without)
        if gone:
            said.append(
                f"{name}: at {gone} of {count} budgets {words}; they are left out of N_opt."
            )
    inside = count - len(without)
    if inside < FEWEST_BUDGETS:
        said.append(
            f"few_budgets: {inside} budgets have a bracketed minimum; wanted at least "
            f"{FEWEST_BUDGETS} for a slope that can be checked."
        )
    if inside < 2:
        said.append("optimum_not_identified: fewer than two minima; N_opt(C) is not measured.")
    return said


def _disagreements(routes: dict[str, Estimate]) -> list[str]:
    said = []
    for (one, first), (other, second) in combinations(routes.items(), 2):
        if first.low > second.high or second.low > first.high:
            said.append(
                f"routes_disagree: {one} = {first.value:.3f} [{first.low:.3f}, {first.high:.3f}] and "
                f"{other} = {second.value:.3f} [{second.low:.3f}, {second.high:.3f}] do not overlap; "
                "quote the range of the routes, not one of them."
            )
    return said
