"""The figures that a study's runs allow, each with the caption that says what one sees."""

import math

import numpy as np

from analysis import figures
from analysis.estimate import Fit
from analysis.frontier import trace
from analysis.page import Picture, safe
from analysis.points import LossPoints, cells
from analysis.published import PublishedCurve, PublishedDomain
from analysis.runs import Counting, StudyRuns
from analysis.study_fits import Attempt
from analysis.words import (
    has_warning,
    law_with_numbers,
    parameter_in_words,
    reservation,
    short,
    value_with_interval,
)
from data_prep.domain import domain, domain_names
from launch.results import RunResult


def pictures(
    study: StudyRuns,
    tried: dict[str, Attempt],
    counting: Counting,
    known: PublishedDomain | None,
) -> list[Picture]:
    """All figures, in the order of the argument: curves, size, compute, optimum, then inside."""
    curves = tried["frontier"].found.points
    shown: list[Picture] = []
    if not len(curves):
        return shown
    shown += [_token_curves(curves), _compute_curves(curves, tried)]
    shown += _loss_by_x(tried, "loss-by-params", known) + _loss_by_x(tried, "loss-by-tokens", None)
    shown += _optimum(curves, tried, known)
    return shown + _by_position(study, counting) + _by_kind(study, counting) + _repeats(tried)


def dark_colours(tried: dict[str, Attempt]) -> dict[str, str]:
    """Every colour that stands for a size, and its twin on dark paper."""
    most = max(12, len(np.unique(tried["frontier"].found.points.params)))
    return {light: dark for count in range(1, most + 1) for light, dark in figures.palette(count)}


def _token_curves(curves: LossPoints) -> Picture:
    best = float(curves.loss.min())
    return Picture(
        "curves-tokens",
        figures.learning_curves(curves, "tokens", None, None),
        f"<b>Learning curves against tokens.</b> Held-out loss of "
        f"{len(np.unique(curves.group))} runs, coloured by model size; the lowest reaches "
        f"{best:.3f} nats per token.",
    )


def _compute_curves(curves: LossPoints, tried: dict[str, Attempt]) -> Picture:
    fit = tried["frontier"].fit
    frontier = trace(curves) if len(np.unique(curves.group)) < len(curves) else None
    caption = "<b>The same against training compute.</b> "
    if fit is None:
        caption += "No frontier law could be fitted."
    else:
        caption += (
            "The thick line is L(C), a power law plus constant forced to lie on or below the "
            f"lowest losses; exponent {_exponent(fit)}. It is "
            "thick where it was fitted, dotted beyond; shaded: 95% of bootstrap fits. Circles: "
            "where the best size changes."
        )
    return Picture("curves-flops", figures.learning_curves(curves, "flops", fit, frontier), caption)


def _loss_by_x(
    tried: dict[str, Attempt], name: str, known: PublishedDomain | None
) -> list[Picture]:
    attempt = tried.get(name)
    if attempt is None or attempt.fit is None:
        return []
    fit, points = attempt.fit, attempt.found.points
    row, remark = _published_near(points, known)
    worst = 100 * fit.diagnostics["largest_residual"]
    return [
        Picture(
            name,
            figures.loss_by_x(points, fit, law_with_numbers(fit), row),
            f"<b>{safe(attempt.title)}: lowest loss of each run and the fitted law.</b> Exponent "
            f"{_exponent(fit)}; irreducible loss "
            f"{value_with_interval(fit.parameters['irreducible'])}. Below: what the law misses, "
            f"at most {worst:.2g}%.{remark}",
        )
    ]


def _exponent(fit: Fit) -> str:
    but = reservation(fit)
    return parameter_in_words(fit, "exponent") + (f", {but}" if but else "")


def _published_near(
    points: LossPoints, known: PublishedDomain | None
) -> tuple[PublishedCurve | None, str]:
    """The published L(N) if it comes near these losses, and what the caption says of it."""
    if known is None:
        return None, ""
    row = known.loss_by_params
    there = row.irreducible + (row.scale / points.params) ** row.exponent
    said = f"{there.max():.2f} to {there.min():.2f} nats over these sizes"
    if there.min() > points.loss.max() or there.max() < points.loss.min():
        return None, f" The published curve ({said}) lies outside the figure."
    return row, f" Dashed: {safe(known.source)}, {said}."


def _optimum(
    curves: LossPoints, tried: dict[str, Attempt], known: PublishedDomain | None
) -> list[Picture]:
    fit = tried["frontier"].fit
    if fit is None:
        return []
    frontier = trace(curves)
    bracketed = int(frontier.handovers.bracketed.sum())
    changes = len(frontier.handovers.flops)
    caption = (
        f"<b>Best model size against compute.</b> The best size changes "
        f"{changes} time{'s' * (changes != 1)} along the frontier, {bracketed} of them "
        "bracketed by evaluations on both sides. "
    )
    if has_warning(fit, "optimum_not_identified"):
        caption += "Too few for a slope: hollow marks show where runs began or ended" + (
            ", and the dotted line through them is no measurement." if changes > 1 else "."
        )
    else:
        caption += f"N_opt ∝ C^{value_with_interval(fit.parameters['params_exponent'])}."
    return [Picture("optimum", figures.optimum(curves, frontier, fit, known), caption)]


def _by_position(study: StudyRuns, counting: Counting) -> list[Picture]:
    rows = []
    for run in _one_run_a_size(study):
        table = run.eval_position.get(counting.split)
        if table is not None and len(table["loss"]):
            rows.append((counting.of(run), table["loss"][-1].astype(float), table["count"][-1]))
    if not rows:
        return []
    grid = _grid(study, len(rows[0][1]))
    if grid:
        chosen = [rows[i] for i in sorted({0, len(rows) // 2, len(rows) - 1})]
        maps = [(size, np.nanmean(loss.reshape(*grid[:2], -1), axis=2)) for size, loss, _ in chosen]
        caption = (
            "<b>Held-out loss by pixel</b>, mean of the colours, from the smallest to the largest "
            "model, on one scale."
        )
        return [Picture("positions", figures.by_pixel(maps), caption)]
    window = _window(len(rows[0][1]))
    binned = [(size, _smooth(loss, count)) for size, loss, count in rows]
    caption = "<b>Held-out loss by position in the row</b> at the end of training" + (
        f", averaged over {window} neighbouring positions." if window > 1 else "."
    )
    return [Picture("positions", figures.by_position(binned), caption)]


def _grid(study: StudyRuns, positions: int) -> tuple[int, ...]:
    """The sides of the domain's picture, () where it has none or does not fit the rows."""
    name = str(study.runs[0].config.get("domain"))
    if name not in domain_names():
        return ()
    sides = tuple(side for _, side in domain(name).grid)
    return sides if len(sides) in (2, 3) and math.prod(sides) == positions else ()


def _window(positions: int) -> int:
    return max(1, positions // 64)


def _smooth(loss: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Mean over windows of positions, weighted by how many tokens counted there; NaN if none."""
    window = _window(len(loss))
    box = np.ones(window)
    weight = np.where(np.isfinite(loss), count, 0).astype(float)
    total = np.convolve(np.where(weight > 0, np.nan_to_num(loss), 0) * weight, box, "same")
    weights = np.convolve(weight, box, "same")
    return np.where(weights > 0, total / np.maximum(weights, 1e-300), np.nan)


def _by_kind(study: StudyRuns, counting: Counting) -> list[Picture]:
    found: dict[str, list[tuple[float, float]]] = {}
    for run in _one_run_a_size(study):
        mine = run.eval[run.eval["split"] == counting.split.encode()]
        last = mine[mine["step"] == mine["step"].max()]
        for row in last[last["kind"] != b"loss"]:
            found.setdefault(row["kind"].decode(), []).append((counting.of(run), row["loss"]))
    rows = [(kind, *np.array(values, float).T) for kind, values in found.items() if len(values) > 1]
    if not rows:
        return []
    caption = (
        "<b>Held-out loss by kind of token</b> at the end of training. Only some kinds may count "
        "in the objective: see the domain."
    )
    return [Picture("kinds", figures.by_kind(rows), caption)]


def _repeats(tried: dict[str, Attempt]) -> list[Picture]:
    curves = tried["frontier"].found.points
    cell = cells(curves)
    repeated = np.bincount(cell)[cell] > 1 if len(cell) else np.zeros(0, bool)
    if not repeated.any():
        return []
    chosen = curves.only(repeated)
    sizes = ", ".join(
        f"N = {short(n)} ({len(np.unique(chosen.group[chosen.params == n]))} runs)"
        for n in np.unique(chosen.params)
    )
    caption = (
        f"<b>Seed noise.</b> Runs that differ in the seed alone, {sizes}: how far the held-out "
        "loss of each is from their mean, over the course of training."
    )
    return [Picture("seeds", figures.repeats(chosen), caption)]


def _one_run_a_size(study: StudyRuns) -> list[RunResult]:
    """The longest run of every size (the first seed of it), small to large."""
    best: dict[float, RunResult] = {}
    for run in study.runs:
        size = run.counts["params_non_embedding"]
        old = best.get(size)
        if old is None or run.eval["tokens"].max() > old.eval["tokens"].max():
            best[size] = run
    return [best[size] for size in sorted(best)]
