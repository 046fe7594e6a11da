"""The figures of the least compute: L(C_min), the best size at it, and the least tokens to given losses.

Kaplan et al. 2020 (2001.08361), sections 5.1 and 6, figures 13, 14 and 19.
"""

import math
from collections.abc import Sequence

import numpy as np

from analysis import figures_laws
from analysis.estimate import Fit, interval
from analysis.figures_variants import adjusted
from analysis.frontier import trace
from analysis.laws import critical_batch, minimum_flops, minimum_steps
from analysis.page import Picture
from analysis.points import LossPoints, pareto
from analysis.published import KAPLAN_LEAST
from analysis.study_fits import Attempt
from analysis.views_runs import to_reach
from analysis.words import has_warning, short, value_with_interval

KAPLAN_NAIVE, KAPLAN_ADJUSTED = 0.057, 0.050  # exponents of L(C), L(C_min): eqs 1.1, 1.3
KAPLAN_STEPS = 0.03  # S_min ~ C_min^0.03: Table 6
MOST_DRAWS = 200


def least_compute(points: LossPoints, fit: Fit) -> list[Picture]:
    """Kaplan et al. 2020, figure 13: L(C) beside L(C_min), by a fitted B_crit(L)."""
    if has_warning(fit, "aB_not_identified") or not math.isfinite(
        fit.value("B_star") * fit.value("aB")
    ):
        return []
    crit = critical_batch(points.loss, fit.value("B_star"), fit.value("aB"))
    least = minimum_flops(points.flops, points.batch, crit)
    lines, said = [], []
    for name, cost, published in (
        ("L(C)", points.flops, KAPLAN_NAIVE),
        ("L(C_min)", least, KAPLAN_ADJUSTED),
    ):
        found = _power(points, cost)
        if found is None:
            return []
        slope, height, on = found
        line = np.geomspace(cost[on].min(), cost[on].max(), 40)
        shown = np.exp(height + slope * np.log(line))
        lines.append((f"{name} ∝ C^{slope:.3f}", line, shown, name == "L(C_min)"))
        said.append(f"{name} ∝ C^{slope:.3f} (published -{published:.3f})")
    many = len(np.unique(points.batch)) > 1
    return [
        Picture(
            "least-compute",
            adjusted(_as_spent(points), _by_size(points, least), lines),
            "<b>Compute as spent and the least compute.</b> C_min = C/(1 + B/B_crit(L)) is what each loss would "
            "have cost at a batch far below the critical one; grey: every run as it was. Power laws through the "
            f"lowest losses of both: {'; '.join(said)}{_by_draws(points, fit)}.{_steps(points, least, crit)} "
            + (
                "L(C) here is the frontier over all batch sizes, the published one at one fixed batch. "
                if many
                else ""
            )
            + "They describe these sizes and hold no constant.",
        )
    ]


def _power(points: LossPoints, cost: np.ndarray) -> tuple[float, float, np.ndarray] | None:
    """Slope and height of log L against log cost along the lowest losses, and which points these are."""
    on = pareto(cost, points.loss)
    if len(on) < 3:
        return None
    slope, height = np.polyfit(np.log(cost[on]), np.log(points.loss[on]), 1)
    return float(slope), float(height), on


def _by_draws(points: LossPoints, fit: Fit) -> str:
    """What the interval of B_crit(L) does to the exponent of L(C_min), in words; "" without draws."""
    slopes = []
    draws = zip(fit.draws.get("B_star", ()), fit.draws.get("aB", ()), strict=True)
    for star, exponent in list(draws)[:MOST_DRAWS]:
        if not (math.isfinite(star * exponent) and star > 0):
            continue
        crit = critical_batch(points.loss, star, exponent)
        found = _power(points, minimum_flops(points.flops, points.batch, crit))
        slopes += [] if found is None else [found[0]]
    if len(slopes) < 2:
        return ""
    ends = interval(float(np.median(slopes)), np.array(slopes))
    return f", {ends.low:.3f} to {ends.high:.3f} over the draws of B_crit(L)"


def _steps(points: LossPoints, least: np.ndarray, crit: np.ndarray) -> str:
    """How S_min grows along the lowest losses."""
    on = pareto(least, points.loss)
    if not points.known("steps") or len(on) < 3:
        return ""
    steps = minimum_steps(points.steps, points.batch, crit)[on]
    slope = np.polyfit(np.log(least[on]), np.log(steps), 1)[0]
    return f" Along the latter S_min ∝ C_min^{slope:.2f} (published {KAPLAN_STEPS})."


def _as_spent(points: LossPoints) -> list[tuple[str, np.ndarray, np.ndarray]]:
    found = []
    for run in np.unique(points.group):
        mine = np.flatnonzero(points.group == run)
        mine = mine[np.argsort(points.flops[mine], kind="stable")]
        found.append((str(run), points.flops[mine], points.loss[mine]))
    return found


def _by_size(points: LossPoints, least: np.ndarray) -> list[tuple[str, np.ndarray, np.ndarray]]:
    found = []
    for params in np.unique(points.params):
        mine = np.flatnonzero(points.params == params)
        mine = mine[pareto(least[mine], points.loss[mine])]
        found.append((f"C_min, N = {short(params)}", least[mine], points.loss[mine]))
    return found


def least_pictures(attempt: Attempt, domain: str) -> list[Picture]:
    """Of a study whose compute was adjusted by B_crit(L) of another: N_opt(C_min), the least tokens and steps."""
    points, fit = attempt.found.points, attempt.fit
    if not len(points):
        return []
    tokens = (
        "<b>Least tokens to reach a loss</b>, by model size: E_min = E/(1 + B/B_crit(L)), what it takes at a batch far "
        "below the critical one (Kaplan et al. 2020, figure 19)."
    )
    steps = (
        "<b>Least steps to reach a loss</b>, by model size: S_min = S/(1 + B_crit(L)/B), what it takes at a batch far "
        "above the critical one (Kaplan et al. 2020, figure 19)."
    )
    shown = to_reach(points, "tokens", "tokens-to-reach-least", tokens)
    shown += to_reach(points, "steps", "steps-to-reach-least", steps)
    return shown if fit is None else [*_optimum(points, fit, domain), *shown]


def _optimum(points: LossPoints, fit: Fit, domain: str) -> Sequence[Picture]:
    """Kaplan et al. 2020, figure 14 left."""
    if has_warning(fit, "optimum_not_identified"):
        said = "Too few changes of the best size are bracketed for a slope."
    else:
        said = f"N_opt ∝ C_min^{value_with_interval(fit.parameters['params_exponent'])}."
    known = KAPLAN_LEAST if domain.startswith("text") and not domain.startswith("text-to") else None
    published = (
        "" if known is None else " Dashed: Kaplan et al. 2020, Table 6, 1.3e9 (C_min/PF-day)^0.73."
    )
    svg = figures_laws.optimum(points, trace(points), fit, known)
    caption = f"<b>Best model size against the least compute</b> C_min. {said}{published}"
    return [Picture("optimum-least", svg, caption)]
