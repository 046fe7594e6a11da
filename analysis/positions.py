"""The loss by place in the context as points, for the law L_T = irreducible + amplitude T^-exponent
(Kaplan et al. 2020, appendix D.5): of one run, or of the largest run of a study. And the runs that figures show."""

import numpy as np

from analysis.points import LossPoints, PointSet
from analysis.runs import Counting, StudyRuns
from launch.results import RunResult


def positions_of(run: RunResult, split: str) -> PointSet:
    """The points of one run at its last evaluation: T = 1, 2, ..., weighted by how many tokens counted
    there; places where none did are no points. Neighbouring places are judged on the same rows, so
    intervals hold the law's misfit and not the choice of the rows. Raises `ValueError` where the run
    has no loss by position."""
    table = run.eval_position.get(split)
    if table is None or not len(table["loss"]):
        raise ValueError(
            f"{run.path}: no loss by position on the split {split!r}; wanted an evaluation that kept "
            "it. Choose another split or run, or give a CSV with the columns position and loss."
        )
    loss, count = np.asarray(table["loss"][-1], float), np.asarray(table["count"][-1], float)
    keep = np.isfinite(loss) & (loss > 0) & (count > 0)
    place = np.arange(1.0, len(loss) + 1)[keep]
    label = np.array([f"{run.run_id} position {at:.0f}" for at in place], dtype=str)
    points = LossPoints.of(label, label, position=place, loss=loss[keep], weight=count[keep])
    return PointSet(str(run.path), points, ())


def largest_run(study: StudyRuns, counting: Counting) -> RunResult:
    """Of the runs with a loss by position that of the most parameters, then of the most tokens."""
    having = [run for run in study.runs if len(run.eval_position.get(counting.split, {}))]
    if not having:
        raise ValueError(
            f"{study.path}: no run has a loss by position on the split {counting.split!r}; wanted one. "
            "Choose another split, or give a CSV with the columns position and loss."
        )
    return max(having, key=lambda run: (counting.of(run), run.config.get("tokens", 0), run.run_id))


def one_run_a_size(study: StudyRuns) -> list[RunResult]:
    """The longest run of every size (the first seed of it), small to large."""
    best: dict[float, RunResult] = {}
    for run in study.runs:
        size = run.counts["params_non_embedding"]
        old = best.get(size)
        if old is None or run.eval["tokens"].max() > old.eval["tokens"].max():
            best[size] = run
    return [best[size] for size in sorted(best)]
