"""The figures of what each size reaches after the same compute, and after the same steps, beside the fitted L(N, S).

Kaplan et al. 2020 (2001.08361), figure 11, equation 5.6.
"""

from collections.abc import Mapping

import numpy as np

from analysis import figures_evaluations as figures
from analysis.laws import critical_batch, learning_curve, minimum_steps
from analysis.page import Picture
from analysis.points import LossPoints
from analysis.study_fits import Attempt
from analysis.words import short

LEVELS = 4
AFTER = {
    "flops": ("compute", "FLOPs", "too small a model is limited by its size, too large a one by its few steps"),
    "steps": ("steps", "steps", "larger models are better after each number of them"),
}  # fmt: skip


def fixed_pictures(tried: Mapping[str, Attempt]) -> list[Picture]:
    """Both, where L(N, S) is fitted and three sizes pass through the same compute or steps."""
    attempt = tried.get("learning-curve")
    if attempt is None or attempt.fit is None:
        return []
    points = attempt.found.points
    c = {name: each.value for name, each in attempt.fit.parameters.items()}
    worth = points.steps
    if "B_star" in c:
        crit = critical_batch(points.loss, c["B_star"], c["aB"])
        worth = minimum_steps(points.steps, points.batch, crit)
    inner = {name: c[name] for name in ("Nc", "aN", "Sc", "aS")}
    shown = []
    for x, (what, unit, means) in AFTER.items():
        rows, laws = [], []
        for level in _levels(points, x):
            params, loss, steps = _at(points, worth, x, level)
            if len(params) >= 3:
                name = f"{short(level)} {unit}"
                rows.append((name, params, loss))
                laws.append((name, params, learning_curve(params, steps, **inner)))
        if rows:
            caption = (
                f"<b>Loss against model size after the same {what}</b>: marks are learning curves, read off between "
                f"their evaluations, lines the fitted L(N, S). Where it holds, {means} (Kaplan et al. 2020, figure 11)."
            )
            shown.append(Picture(f"fixed-{x}", figures.against_size(rows, laws), caption))
    return shown


def _levels(points: LossPoints, x: str) -> np.ndarray:
    """Evenly spread, in logarithm, over all that three sizes or more pass through; none where no three do."""
    ends: dict[float, list[tuple[float, float]]] = {}
    for run in np.unique(points.group):
        own = points.only(points.group == run)
        ends.setdefault(float(own.params[0]), []).append((own.x(x).min(), own.x(x).max()))
    marks = np.unique([end for own in ends.values() for span in own for end in span])
    passed = [
        mark
        for mark in marks
        if sum(any(low <= mark <= high for low, high in own) for own in ends.values()) >= 3
    ]
    return np.unique(np.geomspace(passed[0], passed[-1], LEVELS)) if passed else np.empty(0)


def _at(
    points: LossPoints, worth: np.ndarray, x: str, level: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """N, loss, and what the steps were worth, of the best run of each size at this compute or number of steps."""
    best: dict[float, tuple[float, float]] = {}
    for run in np.unique(points.group):
        mine = np.flatnonzero(points.group == run)
        mine = mine[np.argsort(points.x(x)[mine], kind="stable")]
        at = points.x(x)[mine]
        if not at[0] <= level <= at[-1]:
            continue
        loss, steps = (
            float(np.exp(np.interp(np.log(level), np.log(at), np.log(each[mine]))))
            for each in (points.loss, worth)
        )
        params = float(points.params[mine[0]])
        best[params] = min(best.get(params, (np.inf, 0.0)), (loss, steps))
    sizes = np.array(sorted(best))
    found = np.array([best[size] for size in sizes]).reshape(-1, 2)
    return sizes, found[:, 0], found[:, 1]
