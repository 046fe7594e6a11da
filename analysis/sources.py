"""SOURCE, as a person names it (a results folder or a CSV), -> the points that a law needs, fitted."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np

from analysis.batch_levels import FEWEST_BATCHES
from analysis.estimate import Fit
from analysis.fit import fit_separable
from analysis.fit_critical_batch import fit_critical_batch
from analysis.fit_frontier import fit_frontier
from analysis.fit_isoflop import fit_isoflop
from analysis.laws import FLOPS_PER_PARAMETER_AND_TOKEN
from analysis.points import PointSet
from analysis.positions import largest_run, positions_of
from analysis.repeated_data import remark_repeats, with_unique_params
from analysis.runs import (
    Counting,
    StudyRuns,
    all_points,
    curve_points,
    final_points,
    of_variant,
    read_runs,
    refuse_variants,
)
from analysis.separable import (
    BY_POSITION,
    CRITICAL_BATCH,
    CURVE_LAWS,
    DATA_CONSTRAINED,
    FRONTIER,
    ISOFLOP,
    LEARNING_CURVE,
    LEARNING_CURVE_AT_BATCH,
    SEPARABLE_LAWS,
    Law,
)
from analysis.table import read_header, read_table

COLUMNS = {
    FRONTIER: ("params", "flops", "loss", "group"),
    ISOFLOP: ("params", "flops", "loss"),
    CRITICAL_BATCH: ("batch", "steps", "loss"),
    DATA_CONSTRAINED.name: ("params", "tokens", "unique_tokens", "loss"),
    BY_POSITION.name: ("position", "loss"),
}
FEWEST_DRAWS = 40
COMPARES_VARIANTS = (CRITICAL_BATCH,)  # of a study: batch sizes
UNWEIGHTED = (FRONTIER,)
"""Laws that take no weights: what the lowest losses bound is no mean of them."""
CURVE_NEEDERS = (FRONTIER, LEARNING_CURVE.name, CRITICAL_BATCH)


def read_points(source: Path, law: str, x: str, counting: Counting) -> PointSet:
    """Points for one law. Raises `ValueError` for a source that is neither folder nor file."""
    if source.is_dir():
        study = read_runs(source, counting.split, counting.include)
        if law not in COMPARES_VARIANTS:
            refuse_variants(study, counting.variant)
        return study_points(study, law, x, counting)
    if not source.exists():
        raise ValueError(
            f"{source}: no such file or folder; wanted a study's results folder or a CSV. Check "
            "the path."
        )
    columns = _columns(source, law, x)
    found = read_table(source, columns, counting.include, weighs=law not in UNWEIGHTED)
    return _prepared(found, law)


def _columns(source: Path, law: str, x: str) -> tuple[str, ...]:
    if law in CURVE_LAWS:
        return (x, "loss")
    if law == LEARNING_CURVE.name:
        header = read_header(source)
        progress = next((name for name in ("steps", "tokens", "flops") if name in header), "steps")
        return ("params", progress, "loss")
    return COLUMNS.get(law, ("params", "tokens", "loss"))


def study_points(study: StudyRuns, law: str, x: str, counting: Counting) -> PointSet:
    """Learning curves for the laws of them, the places of the largest run's context for the law of them,
    one point for each run for the other laws."""
    study = of_variant(study, counting.variant)
    if law == BY_POSITION.name:
        return positions_of(largest_run(study, counting), counting.split)
    if law in CURVE_NEEDERS:
        return _prepared(curve_points(study, counting), law)
    if law in CURVE_LAWS:
        return final_points(study, counting, x)
    return _prepared(all_points(study, counting, repeats=law == DATA_CONSTRAINED.name), law)


def _prepared(found: PointSet, law: str) -> PointSet:
    """What a law needs beside the columns as they were read."""
    if law == DATA_CONSTRAINED.name:
        return with_unique_params(found)
    found = remark_repeats(found, law)
    return _with_steps(found) if law == LEARNING_CURVE.name else found


def _with_steps(found: PointSet) -> PointSet:
    """Progress in optimizer steps; where a source has none, in tokens (its own, or C/6N), which
    is the same law with another unit of Sc as long as the batch is the same."""
    points = found.points
    if _several_batches(found):
        remark = (
            f"steps_adjusted: S_min = S/(1 + B_crit(L)/B); B_crit is fitted together with the law, "
            f"from {len(np.unique(points.batch))} batch sizes, in the unit of the batch."
        )
        return replace(found, remarks=(*found.remarks, remark))
    remark = (
        "steps_not_adjusted: steps are taken as measured; S_min = S/(1 + B_crit(L)/B) is smaller "
        "where the batch is not far above the critical one (Kaplan et al. 2020, eq 5.4). Runs at "
        f"{FEWEST_BATCHES} or more batch sizes say what it is."
    )
    if points.known("steps"):
        return replace(found, remarks=(*found.remarks, remark))
    tokens = points.tokens
    if not points.known("tokens"):
        tokens = points.flops / (FLOPS_PER_PARAMETER_AND_TOKEN * points.params)
    remark = f"steps_in_tokens: no column steps, so Sc is in tokens. {remark}"
    return replace(found, points=replace(points, steps=tokens), remarks=(*found.remarks, remark))


def _several_batches(found: PointSet) -> bool:
    points = found.points
    known = points.known("steps") and points.known("batch")
    return known and len(np.unique(points.batch)) >= FEWEST_BATCHES


def law_of(name: str, x: str) -> Law | None:
    """The separable law of a name, of the column `x` if it has one variable; None for the others."""
    law = SEPARABLE_LAWS.get(name)
    return law.of(x) if law is not None and name in CURVE_LAWS else law


def fit_law(
    found: PointSet, law: str, x: str, draws: int, seed: int, delta: float | None = None,
    compare: bool = False, only: Collection[str] | None = None,
) -> Fit:  # fmt: skip
    """Fit the named law. `only` names the quantities that need the best intervals, if not all."""
    fit = _fit(found, law, x, draws, seed, delta, compare, only)
    if not 0 < draws < FEWEST_DRAWS:
        return fit
    said = (
        f"few_draws: {draws} bootstrap draws; wanted at least {FEWEST_DRAWS}, of which one lies beyond each end of a "
        "95% interval: these ends are those of the farthest draws."
    )
    return replace(fit, warnings=(*fit.warnings, said))


def _fit(
    found: PointSet, law: str, x: str, draws: int, seed: int, delta: float | None, compare: bool,
    only: Collection[str] | None,
) -> Fit:  # fmt: skip
    separable = law_of(law, x)
    if law == LEARNING_CURVE.name and _several_batches(found):
        separable = LEARNING_CURVE_AT_BATCH
    if separable is not None:
        return fit_separable(found, separable, draws, seed, delta, compare, only)
    if law == FRONTIER:
        return fit_frontier(found, draws, seed, compare)
    if law == ISOFLOP:
        return fit_isoflop(found, draws, seed, compare, routes=only is None)
    assert law == CRITICAL_BATCH, law
    return fit_critical_batch(found, draws, seed, compare)
