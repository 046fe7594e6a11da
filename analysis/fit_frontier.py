"""Fits the frontier laws to learning curves, with intervals from resampled runs, and flags what
the sweep does not bracket."""

import time

import numpy as np

from analysis.estimate import Estimate, Fit, exponent_warning, interval
from analysis.frontier import (
    FEWEST_FRONTIER_POINTS,
    Envelope,
    Frontier,
    fit_below,
    fit_optimum,
    trace,
)
from analysis.frontier_holdout import frontier_splits
from analysis.laws import optimal_tokens_scale
from analysis.points import LossPoints, PointSet, distinct
from analysis.separable import FRONTIER

FORMULA = (
    "L = irreducible + (scale/C)^exponent; N_opt = (C/params_scale)^params_exponent; "
    "D_opt = C/(6 N_opt) = (C/tokens_scale)^tokens_exponent"
)
FEW_RUNS = 8
NONE = np.empty(0)
MOST_FAILED = 1 / 3  # of the bootstrap samples, without handovers to fit


def fit_frontier(found: PointSet, draws: int, seed: int, compare: bool = False) -> Fit:
    """L(C), N_opt(C) and D_opt(C) of grouped learning curves; `compare` adds the hold-outs."""
    began = time.perf_counter()
    _check_enough(found)
    frontier = trace(found.points)
    best, envelope = _constants(found.points, frontier)
    drawn, failed = _draws(found.points, draws, seed)
    trusted = _optimum_interval_known(frontier, failed, draws)
    parameters = {
        name: interval(best[name], known_draws(drawn[name]) if trusted or "_" not in name else NONE)
        for name in best
    }
    return Fit(
        law=FRONTIER,
        formula=FORMULA,
        x="flops",
        parameters=parameters,
        objective={"name": "mean relative gap below the frontier", "value": envelope.gap},
        points_used=len(found.points),
        points_left_out=found.left_out,
        bootstrap={
            "method": "resampled runs" if draws else "none",
            "draws": draws,
            "seed": seed,
            "draws_without_handovers": failed,
        },
        diagnostics=_diagnostics(found.points, frontier) | _holdouts(found.points, compare),
        warnings=(*found.remarks, *_warnings(found.points, frontier, parameters, failed, draws)),
        seconds=time.perf_counter() - began,
        draws=drawn,
    )


def known_draws(drawn: np.ndarray) -> np.ndarray:
    """The draws less those of samples without handovers, whose share `draws_failed` says: that so few
    runs can leave none says nothing of where the optimum is."""
    return drawn[np.isfinite(drawn)]


def _optimum_interval_known(frontier: Frontier, failed: int, draws: int) -> bool:
    """Two handovers give a slope but no scatter about it, and an interval from the few samples
    that still have handovers would be far too narrow: then none is given."""
    enough = frontier.handovers.bracketed.sum() >= 3
    return bool(enough and failed <= MOST_FAILED * draws)


def _constants(points: LossPoints, frontier: Frontier) -> tuple[dict[str, float], Envelope]:
    envelope = fit_below(points.flops[frontier.fitted], points.loss[frontier.fitted])
    used = frontier.handovers.used
    scale, beta = fit_optimum(frontier.handovers.flops[used], frontier.handovers.params[used])
    return {
        "irreducible": envelope.irreducible,
        "scale": envelope.scale,
        "exponent": envelope.exponent,
        "params_scale": scale,
        "params_exponent": beta,
        "tokens_scale": optimal_tokens_scale(scale, beta),
        "tokens_exponent": 1 - beta,
    }, envelope


def _check_enough(found: PointSet) -> None:
    points = found.points
    runs, sizes = len(np.unique(points.group)), len(np.unique(points.params))
    if sizes < 2 or runs == len(points):
        raise ValueError(
            f"{found.source}: {len(points)} usable points in {runs} runs of {sizes} sizes "
            f"({len(found.left_out)} left out); wanted learning curves (several points for each "
            "group) of at least 2 sizes for the law 'frontier'. Add runs of other sizes, or a "
            f"column group that names the run of each row.{found.gone}"
        )
    run = points.group[distinct(points.group, points.params)[0]]
    mixed = run[1:][run[1:] == run[:-1]]
    if len(mixed):
        held = len(np.unique(points.params[points.group == mixed[0]]))
        raise ValueError(
            f"{found.source}: group {str(mixed[0])!r} holds {held} sizes; wanted one, since a group is one run and its "
            "rows one learning curve. Name each run in the column group."
        )
    frontier = trace(points)
    if len(frontier.efficient) < FEWEST_FRONTIER_POINTS:
        raise ValueError(
            f"{found.source}: {len(frontier.efficient)} points on the compute-efficient frontier; "
            f"wanted at least {FEWEST_FRONTIER_POINTS} for the three constants of L(C). Evaluate "
            "more often during the runs."
        )


def _draws(points: LossPoints, draws: int, seed: int) -> tuple[dict[str, np.ndarray], int]:
    """Constants of each bootstrap sample; NaN where a sample has no handover to fit."""
    rng = np.random.default_rng(seed)
    names, group = np.unique(points.trunk, return_inverse=True)
    rows = [np.flatnonzero(group.reshape(-1) == index) for index in range(len(names))]
    wants_bracketed = trace(points).handovers.bracketed.sum() >= 2
    found: list[dict[str, float]] = []
    failed = 0
    for _ in range(draws):
        sample = _sample(points, rows, rng)
        frontier = trace(sample)
        if len(frontier.efficient) < FEWEST_FRONTIER_POINTS:
            failed += 1
            continue
        constants, _ = _constants(sample, frontier)
        if wants_bracketed and frontier.handovers.bracketed.sum() < 2:
            constants |= {name: float("nan") for name in constants if "_" in name}
        failed += int(not np.isfinite(constants["params_exponent"]))
        found.append(constants)
    keys = (
        "irreducible",
        "scale",
        "exponent",
        "params_scale",
        "params_exponent",
        "tokens_scale",
        "tokens_exponent",
    )
    return {key: np.array([each[key] for each in found]) for key in keys}, failed


def _sample(points: LossPoints, rows: list[np.ndarray], rng: np.random.Generator) -> LossPoints:
    """As many trunks as there are, drawn with replacement; each keeps its whole curve and those of its
    branches. A curve drawn twice changes no frontier, so it is taken once."""
    chosen = np.unique(rng.integers(len(rows), size=len(rows)))
    return points.only(np.concatenate([rows[index] for index in chosen]))


def _holdouts(points: LossPoints, compare: bool) -> dict[str, object]:
    return {"holdout": [each.as_json() for each in frontier_splits(points)]} if compare else {}


def _diagnostics(points: LossPoints, frontier: Frontier) -> dict[str, object]:
    handovers = frontier.handovers
    cost = points.flops[frontier.fitted]
    return {
        "frontier_points": len(frontier.efficient),
        "frontier_points_fitted": len(frontier.fitted),
        "x_range": [float(cost.min()), float(cost.max())],
        "decades_of_x": float(np.log10(cost.max() / cost.min())),
        "sizes": len(np.unique(points.params)),
        "sizes_on_hull": len(np.unique(points.params[frontier.hull])),
        "handovers": [
            {"flops": flops, "params": params, "bracketed": bool(bracketed)}
            for flops, params, bracketed in zip(
                handovers.flops, handovers.params, handovers.bracketed, strict=True
            )
        ],
    }


def _warnings(
    points: LossPoints,
    frontier: Frontier,
    parameters: dict[str, Estimate],
    failed: int,
    draws: int,
) -> list[str]:
    said = []
    on_hull = len(np.unique(points.params[frontier.hull]))
    handovers = frontier.handovers
    bracketed = int(handovers.bracketed.sum())
    if on_hull < 3:
        said.append(
            f"few_sizes_on_hull: {on_hull} sizes reach the convex hull of the frontier; wanted at "
            "least 3 for a slope of N_opt(C)."
        )
    if bracketed < len(handovers.flops):
        said.append(
            f"handovers_not_bracketed: {len(handovers.flops) - bracketed} of "
            f"{len(handovers.flops)} changes of the best size touch the first or last evaluation "
            "of a run, so they show where measuring began or stopped, not where the sizes are "
            "equally good" + ("; they are left out of N_opt." if bracketed >= 2 else ".")
        )
    places = len(np.unique(handovers.params[handovers.bracketed]))
    if places < 2:  # forth and back between two sizes is one place
        said.append(
            f"optimum_not_identified: {bracketed} bracketed handovers at {places} sizes, wanted at least 2 at "
            "2; N_opt and D_opt are not measured by these runs. Train the small sizes longer past their "
            "optimum, and evaluate earlier."
        )
    if on_hull < 3 or bracketed < 2:
        said.append(
            "frontier_not_separated: L(C) is not separated from the learning curves of single "
            f"runs ({on_hull} sizes on the hull, {bracketed} bracketed handovers; wanted 3 and 2); "
            "its constants describe those curves, not what more compute buys."
        )
    said += exponent_warning(parameters["exponent"])
    smallest = float(points.loss.min())
    low, high = parameters["irreducible"].low, parameters["irreducible"].high
    wide = not high - low <= smallest / 4
    if parameters["irreducible"].value <= 1e-6 * smallest or low <= 1e-6 * smallest or wide:
        said.append(
            f"irreducible_not_identified: its 95% interval is [{low:.3g}, {high:.3g}] for a "
            f"smallest loss of {smallest:.3g}; the scale and exponent of L(C) depend on it."
        )
    runs = len(np.unique(points.group))
    if draws and runs < FEW_RUNS:
        said.append(f"few_runs: {runs} runs were resampled; intervals from so few are rough.")
    if draws and bracketed >= 2 and not _optimum_interval_known(frontier, failed, draws):
        said.append(
            f"optimum_interval_unknown: {bracketed} bracketed handovers, and {failed} of {draws} "
            "bootstrap samples had too few to fit; no interval is given for N_opt and D_opt."
        )
    elif failed > draws / 40:  # of 95% intervals more than one end
        said.append(
            f"draws_failed: {failed} of {draws} bootstrap samples had too few bracketed handovers "
            "and are not in the intervals of N_opt and D_opt, which are therefore too narrow."
        )
    return said
