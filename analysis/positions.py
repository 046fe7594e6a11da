"""The loss by place in the context as points, for the law L_T = irreducible + amplitude T^-exponent
(Kaplan et al. 2020, appendix D.5): of one run, or of the largest run of a study. And the runs that figures show."""

import numpy as np

from analysis.guards import over_fitted, unique_tokens
from analysis.points import LossPoints, PointSet
from analysis.runs import Counting, StudyRuns
from launch.results import RunResult


def positions_of(run: RunResult, split: str) -> PointSet:
    """The points of one run at its lowest loss: T = 1, 2, ..., weighted by how many tokens counted
    there; places where none did are no points. Neighbouring places are judged on the same rows, so
    intervals hold the law's misfit and not the choice of the rows. Raises `ValueError` where the run
    has no loss by position."""
    found = lowest_by_position(run, split)
    if found is None:
        raise ValueError(
            f"{run.path}: no loss by position on the split {split!r}; wanted an evaluation that kept "
            "it. Choose another split or run, or give a CSV with the columns position and loss."
        )
    loss, count = (np.asarray(each, float) for each in found)
    keep = np.isfinite(loss) & (loss > 0) & (count > 0)
    place = np.arange(1.0, len(loss) + 1)[keep]
    label = np.array([f"{run.run_id} position {at:.0f}" for at in place], dtype=str)
    points = LossPoints.of(label, label, position=place, loss=loss[keep], weight=count[keep])
    return PointSet(str(run.path), points, ())


def lowest_by_position(run: RunResult, split: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Loss and number of tokens [seq_length] by position, of the evaluation whose mean loss is lowest: a run on a
    subset ends over-fitted. None where the run has none."""
    table = run.eval_position.get(split)
    if table is None or not len(table["loss"]):
        return None
    known = np.isfinite(table["loss"])
    count = np.where(known, table["count"], 0)
    total = np.sum(np.where(known, table["loss"], 0).astype(float) * count, axis=1)
    best = int(
        np.argmin(np.where(count.any(axis=1), total / np.maximum(count.sum(axis=1), 1), np.inf))
    )
    return table["loss"][best], table["count"][best]


def largest_run(study: StudyRuns, counting: Counting) -> RunResult:
    """Of the runs with a loss by position that of the most parameters; of several the one that saw most of the data."""
    having = [run for run in study.runs if lowest_by_position(run, counting.split) is not None]
    if not having:
        raise ValueError(
            f"{study.path}: no run has a loss by position on the split {counting.split!r}; wanted one. "
            "Choose another split, or give a CSV with the columns position and loss."
        )
    return max(having, key=lambda run: (counting.of(run), *_seen(run, counting.split)))


def one_run_a_size(study: StudyRuns, split: str) -> list[RunResult]:
    """Of every size the run that saw most of the data (the first seed of it), small to large."""
    best: dict[float, RunResult] = {}
    for run in study.runs:
        size = run.counts["params_non_embedding"]
        old = best.get(size)
        if old is None or _seen(run, split) > _seen(old, split):
            best[size] = run
    return [best[size] for size in sorted(best)]


def _seen(run: RunResult, split: str) -> tuple[bool, float, float]:
    """What sets runs of one size apart: not over-fitted, different tokens, all tokens."""
    table = run.eval_rows(split)
    tokens = float(table["tokens"][-1])
    return not over_fitted(run, table), min(unique_tokens(run), tokens), tokens
