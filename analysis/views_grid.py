"""The figures of rows that fold up in space and time: the loss by pixel of pictures, by frame of clips, and of a clip's
last frame against N and C (Henighan et al. 2020, figures 6 and 9)."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from analysis import figures_evaluations as figures
from analysis import figures_laws, figures_runs
from analysis.estimate import Fit
from analysis.fit import fit_curve
from analysis.frontier import trace
from analysis.laws import by_position, power_constant
from analysis.page import Picture
from analysis.points import LossPoints, PointSet
from analysis.positions import lowest_by_position, one_run_a_size
from analysis.runs import Counting, StudyRuns, refuse_variants
from analysis.separable import BY_POSITION, FRONTIER, POWER_CONSTANT
from analysis.sources import fit_law, study_points
from analysis.words import has_warning, parameter_in_words, value_with_interval
from data_prep.domain import domain, domain_names
from launch.results import RunResult

Axes = Sequence[tuple[str, int]]
"""What the positions of a row fold up to, slowest first: (name, length)."""
DRAWS, SEED = 200, 0
FRAMES_SHOWN = 5
SPACE, TIME = ("row", "column"), ("frame",)


def grid_pictures(study: StudyRuns, counting: Counting) -> list[Picture]:
    """All of them that the domain's grid allows; nothing where it has none or does not fit the rows."""
    rows = []
    for run in one_run_a_size(study, counting.split):
        found = lowest_by_position(run, counting.split)
        if found is not None:
            rows.append((counting.of(run), *found))
    axes = _axes(study, len(rows[0][1])) if rows else ()
    if not axes:
        return []
    shown = _maps(rows, axes)
    if "frame" in dict(axes):
        shown += _by_frame(rows, axes) + _by_size(study, counting, axes)
    return shown


def _axes(study: StudyRuns, positions: int) -> Axes:
    """The grid of the domain, () where it is none of pictures or does not fit the rows."""
    name = str(study.runs[0].config.get("domain"))
    axes = domain(name).grid if name in domain_names() else ()
    whole = math.prod(length for _, length in axes) == positions
    return axes if whole and set(SPACE) <= {axis for axis, _ in axes} else ()


def folded(loss: np.ndarray, count: np.ndarray, axes: Axes, kept: Sequence[str]) -> np.ndarray:
    """The mean over all axes but those `kept`, of `loss` [..., positions] in nats per token, weighted with the tokens
    that counted [..., positions]; NaN where none did. As `launch.evaluation.folded_means`, of losses as runs keep them.
    """
    sides = [length for _, length in axes]
    before = np.ndim(loss) - 1
    over = tuple(before + at for at, (axis, _) in enumerate(axes) if axis not in kept)
    weight = np.where(np.isfinite(loss), count, 0).astype(float)
    total, weights = (
        each.reshape(*each.shape[:before], *sides).sum(over)
        for each in (np.where(weight > 0, loss, 0.0) * weight, weight)
    )
    mean = np.full(weights.shape, np.nan)
    np.divide(total, weights, out=mean, where=weights > 0)
    return mean


Rows = Sequence[tuple[float, np.ndarray, np.ndarray]]
"""Of each size N, the loss and the number of tokens at each position."""


def _maps(rows: Rows, axes: Axes) -> list[Picture]:
    """Henighan et al. 2020, figure 6 left."""
    chosen = [rows[i] for i in sorted({0, len(rows) // 2, len(rows) - 1})]
    maps = [(size, folded(loss, count, axes, SPACE)) for size, loss, count in chosen]
    if not any(np.isfinite(each).any() for _, each in maps):
        return []
    names = dict(axes)
    what = "pixel</b>, mean of the colours" if "colour" in names else "place in the picture</b>"
    if "frame" in names:
        what = "place in the frame</b>, mean of all frames"
    caption = f"<b>Held-out loss by {what}, from the smallest to the largest model, on one scale."
    return [Picture("positions", figures_runs.by_pixel(maps), caption)]


def _by_frame(rows: Rows, axes: Axes) -> list[Picture]:
    """Henighan et al. 2020, figure 6 right."""
    found = [(size, folded(loss, count, axes, TIME)) for size, loss, count in rows]
    lines, fit = [], None
    for size, loss in found:
        largest = size == found[-1][0]
        fit = _frame_law(loss, DRAWS if largest else 0)
        if fit is not None:
            at = np.linspace(1, len(loss), 100)
            lines.append((size, at, by_position(at, **_constants(fit))))
    caption = (
        "<b>Held-out loss by frame</b> at the lowest loss of each run, with L_t = irreducible + amplitude "
        "t^-exponent. "
    )
    if fit is None:
        caption += "Of the largest model no such law could be fitted."
    else:
        words = (f"{name} {parameter_in_words(fit, name)}" for name in fit.parameters)
        caption += f"Of the largest model: {', '.join(words)}."
    caption += (
        " Henighan et al. 2020 found this form for video, with oscillations of their encoding."
    )
    return [Picture("frames", figures_runs.by_frame(found, lines), caption)]


def _frame_law(loss: np.ndarray, draws: int) -> Fit | None:
    known = np.isfinite(loss) & (loss > 0)
    at = np.arange(1.0, len(loss) + 1)[known]
    label = np.array([f"frame {each:.0f}" for each in at], dtype=str)
    points = LossPoints.of(label, label, position=at, loss=loss[known])
    try:
        return fit_law(PointSet("frames", points, ()), BY_POSITION.name, "position", draws, SEED)
    except ValueError:
        return None


def _constants(fit: Fit) -> dict[str, float]:
    return {name: each.value for name, each in fit.parameters.items()}


# --- frames against N and C


def _by_size(study: StudyRuns, counting: Counting, axes: Axes) -> list[Picture]:
    """Henighan et al. 2020, figure 9: some frames against N, the first left out as there; the last one's reducible loss
    against N and C."""
    try:
        refuse_variants(study, counting.variant)
    except ValueError:
        return []
    frames, _ = _frames(axes)
    chosen = np.unique(np.geomspace(min(2, frames), frames, FRAMES_SHOWN).round().astype(int))
    marks, laws, said = [], [], []
    for frame in chosen:
        found = study_points(
            of_frame(study, counting, axes, frame), "power-constant", "params", counting
        )
        if not len(found.points):
            continue
        name, params = f"frame {frame}", found.points.params
        order = np.argsort(params, kind="stable")
        marks.append((name, params[order], found.points.loss[order]))
        fit = _law_of_size(found)
        if fit is not None:
            line = np.geomspace(params.min(), params.max(), 60)
            laws.append((name, line, power_constant(line, **_constants(fit))))
            said.append(f"{name}: {parameter_in_words(fit, 'exponent')}")
    if not marks:
        return []
    caption = (
        "<b>Held-out loss of some frames against model size</b>, the lowest of each run, and power laws plus constant; "
        f"exponents: {'; '.join(said) or 'none could be fitted'}. The first frame is left out, as in Henighan et al. "
        "2020."
    )
    svg = figures.against_size(marks, laws)
    return [Picture("frames-size", svg, caption), *_last_frame(study, counting, axes)]


def _frames(axes: Axes) -> tuple[int, int]:
    """How many frames a clip has, and how many tokens a frame."""
    count = dict(axes)["frame"]
    return count, math.prod(length for _, length in axes) // count


def _law_of_size(found: PointSet) -> Fit | None:
    try:
        return fit_curve(found, POWER_CONSTANT, "params", DRAWS, SEED)
    except ValueError:
        return None


def of_frame(study: StudyRuns, counting: Counting, axes: Axes, frame: int) -> StudyRuns:
    """The same runs as if only frame `frame` (from 1) had been judged: their held-out losses, in nats per token, are
    those of it. Evaluations that kept no loss by position are left out, and runs that have none."""
    runs = [_judged_on_frame(run, counting.split, axes, frame) for run in study.runs]
    kept = tuple(run for run in runs if len(run.eval_rows(counting.split)))
    return replace(study, runs=kept)


def _judged_on_frame(run: RunResult, split: str, axes: Axes, frame: int) -> RunResult:
    table = run.eval_position.get(split)
    rows = run.eval_rows(split)
    if table is None or not len(table["loss"]):
        return replace(run, eval=rows[:0])
    loss = folded(table["loss"], table["count"], axes, TIME)[:, frame - 1]
    rows = rows[np.isin(rows["step"], table["step"][np.isfinite(loss)])].copy()
    at = {int(step): value for step, value in zip(table["step"], loss, strict=True)}
    rows["loss"] = [at[int(step)] for step in rows["step"]]
    return replace(run, eval=rows[rows["loss"] > 0])


def _last_frame(study: StudyRuns, counting: Counting, axes: Axes) -> list[Picture]:
    """What is left above the constant, in nats a frame, where the constant is known."""
    frames, tokens = _frames(axes)
    last = of_frame(study, counting, axes, frames)
    shown = []
    for law, x, what in (
        (POWER_CONSTANT.name, "params", "model size"),
        (FRONTIER, "flops", "compute"),
    ):
        found = study_points(last, law, x, counting)
        try:
            fit = fit_law(found, law, x, DRAWS, SEED)
        except ValueError:
            continue
        doubtful = has_warning(fit, "irreducible_not_identified") or fit.value("irreducible") <= 0
        if doubtful or has_warning(fit, "frontier_not_separated"):
            continue
        points = found.points if x == "params" else found.points.only(trace(found.points).fitted)
        svg = figures_laws.reducible(
            points, fit, float(tokens), "reducible loss  [nats per frame]", None
        )
        caption = (
            f"<b>Reducible loss of the last frame against {what}.</b> Exponent "
            f"{parameter_in_words(fit, 'exponent')}, above the constant "
            f"{value_with_interval(fit.parameters['irreducible'])} nats per token. Henighan et al. 2020: a few nats of "
            "frame 16 are left at about 1e13 parameters and 1e4 PF-days."
        )
        shown.append(Picture(f"last-frame-{x}", svg, caption))
    return shown
