"""The figures of what is inside the runs: by position, kind and split, and the noise of seeds; each with its caption.
Of pictures and clips see `analysis.views_grid`."""

import math

import numpy as np

from analysis import figures_runs
from analysis.page import Picture
from analysis.points import LossPoints, cells
from analysis.positions import lowest_by_position, one_run_a_size
from analysis.published import caution_of_kind, published_of_kind
from analysis.runs import Counting, StudyRuns
from analysis.views_grid import grid_pictures
from analysis.words import short

MOST_POSITIONS = 6


def run_pictures(study: StudyRuns, counting: Counting, curves: LossPoints) -> list[Picture]:
    """All of them that these runs allow."""
    shown = _by_position(study, counting) + _by_kind(study, counting) + _by_split(study, counting)
    words = "<b>Tokens to reach a loss</b>, by model size: larger models learn more from a token."
    return shown + to_reach(curves, "tokens", "tokens-to-reach", words) + _repeats(curves)


def _by_split(study: StudyRuns, counting: Counting) -> list[Picture]:
    """Kaplan et al. 2020, figure 8: the same models on each split that was evaluated."""
    found: dict[str, list[tuple[float, float]]] = {}
    for run in one_run_a_size(study, counting.split):
        for split in np.unique(run.eval["split"]):
            table = run.eval_rows(split.decode())
            if len(table):
                found.setdefault(split.decode(), []).append((counting.of(run), table["loss"].min()))
    rows = [(name, *np.array(each, float).T) for name, each in found.items() if len(each) > 1]
    if len(rows) < 2:
        return []
    caption = "<b>Lowest held-out loss on each split</b>, for one run of every size."
    return [Picture("splits", figures_runs.by_kind(rows), caption)]


LOSS_LEVELS = 5


def to_reach(curves: LossPoints, x: str, name: str, caption: str) -> list[Picture]:
    """As Kaplan et al. 2020, figure 19, in tokens or steps as the points have them: losses that several
    sizes reach."""
    crossed = []
    for run in np.unique(curves.group):
        mine = curves.only(curves.group == run)
        order = np.argsort(mine.x(x), kind="stable")
        lowest = np.minimum.accumulate(mine.loss[order])
        crossed.append((float(mine.params[0]), mine.x(x)[order], lowest))
    starts = sorted(lowest[0] for *_, lowest in crossed)
    ends = sorted(lowest[-1] for *_, lowest in crossed)
    low, high = ends[len(ends) // 2], starts[len(starts) // 2]
    if not low < high:
        return []
    shown = []
    for level in np.geomspace(high, low, LOSS_LEVELS + 1)[1:]:
        best: dict[float, float] = {}
        for params, spent, lowest in crossed:
            if lowest[-1] <= level <= lowest[0]:
                at = float(np.exp(np.interp(-level, -lowest, np.log(spent))))
                best[params] = min(at, best.get(params, math.inf))
        if len(best) >= 3:
            sizes = np.array(sorted(best))
            shown.append((float(level), sizes, np.array([best[n] for n in sizes])))
    if not shown:
        return []
    return [Picture(name, figures_runs.to_reach(shown, x), caption)]


def _by_position(study: StudyRuns, counting: Counting) -> list[Picture]:
    folded = grid_pictures(study, counting)
    if folded:
        return folded
    rows = []
    for run in one_run_a_size(study, counting.split):
        found = lowest_by_position(run, counting.split)
        if found is not None:
            rows.append((counting.of(run), found[0].astype(float), found[1]))
    if not rows:
        return []
    return _along_the_row(rows)


def _along_the_row(rows: list[tuple[float, np.ndarray, np.ndarray]]) -> list[Picture]:
    """By position, one curve a size; and by size, one curve a position (Kaplan et al. 2020, figures 20
    and 21)."""
    window = _window(len(rows[0][1]))
    binned = [(size, _smooth(loss, count)) for size, loss, count in rows]
    caption = "<b>Held-out loss by position in the row</b> at the lowest loss of each run" + (
        f", averaged over {window} neighbouring positions." if window > 1 else "."
    )
    found = [Picture("positions", figures_runs.by_position(binned), caption)]
    last = len(binned[0][1]) - 1
    chosen = np.unique(np.geomspace(1, last + 1, MOST_POSITIONS).astype(int) - 1)
    sizes = np.array([size for size, _ in binned])
    lines = [
        (f"position {at + 1}", sizes, np.array([loss[at] for _, loss in binned])) for at in chosen
    ]
    lines = [each for each in lines if np.isfinite(each[2]).all()]
    if len(sizes) > 1 and lines:
        words = "<b>Held-out loss at some positions, by model size.</b>"
        found.append(Picture("positions-size", figures_runs.by_kind(lines), words))
    return found


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
    for run in one_run_a_size(study, counting.split):
        mine = run.eval[run.eval["split"] == counting.split.encode()]
        table = run.eval_rows(counting.split)
        best = mine[mine["step"] == table["step"][int(np.argmin(table["loss"]))]]
        for row in best[best["kind"] != b"loss"]:
            found.setdefault(row["kind"].decode(), []).append((counting.of(run), row["loss"]))
    rows = [(kind, *np.array(values, float).T) for kind, values in found.items() if len(values) > 1]
    if not rows:
        return []
    caption = (
        "<b>Held-out loss by kind of token</b> at the lowest loss of each run. Only some kinds may count "
        "in the objective: see the domain."
    )
    name = str(study.runs[0].config.get("domain"))
    known = {kind: row for kind in found if (row := published_of_kind(name, kind)) is not None}
    for kind, row in known.items():
        start = f"{row.irreducible:g} + " if row.irreducible else ""
        caption += f" Henighan et al. 2020, {kind}: {start}({short(row.scale)}/N)^{row.exponent:g}."
        caption += caution_of_kind(name, kind)
    return [Picture("kinds", figures_runs.by_kind(rows), caption)]


def _repeats(curves: LossPoints) -> list[Picture]:
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
        f"<b>Seed noise.</b> Runs of one training and length that differ in the seed alone, {sizes}: how far the "
        "held-out loss of each is from their mean, over the course of training."
    )
    return [Picture("seeds", figures_runs.repeats(chosen), caption)]
