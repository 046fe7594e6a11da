"""SOURCE, as a person names it (a results folder or a CSV), -> the points that a law needs."""

from pathlib import Path

from analysis.estimate import Fit
from analysis.fit import fit_curve
from analysis.fit_frontier import fit_frontier
from analysis.laws import CURVE_LAWS, FRONTIER
from analysis.points import PointSet
from analysis.runs import Counting, StudyRuns, curve_points, final_points, read_runs
from analysis.table import read_table

FRONTIER_COLUMNS = ("params", "flops", "loss", "group")


def read_points(source: Path, law: str, x: str, counting: Counting) -> PointSet:
    """Points for one law. Raises `ValueError` for a source that is neither folder nor file."""
    if source.is_dir():
        return study_points(read_runs(source, counting.split), law, x, counting)
    if not source.exists():
        raise ValueError(
            f"{source}: no such file or folder; wanted a study's results folder or a CSV. Check "
            "the path."
        )
    return read_table(source, FRONTIER_COLUMNS if law == FRONTIER else (x, "loss"))


def study_points(study: StudyRuns, law: str, x: str, counting: Counting) -> PointSet:
    """Learning curves for the frontier, one point for each run for the other laws."""
    if law == FRONTIER:
        return curve_points(study, counting)
    return final_points(study, counting, x)


def fit_law(found: PointSet, law: str, x: str, draws: int, seed: int) -> Fit:
    """Fit the named law."""
    if law == FRONTIER:
        return fit_frontier(found, draws, seed)
    return fit_curve(found, CURVE_LAWS[law], x, draws, seed)
