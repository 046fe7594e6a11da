"""Steps and compute of a study as the least that its losses would have cost at another batch: S_min = S/(1 + B_crit/B)
and C_min = C/(1 + B/B_crit), with B_crit(L) of another study (Kaplan et al. 2020, section 5.1, eqs 5.3 to 5.5).

A study of B_crit(L) has one or two sizes at several batches, one of L(C) all sizes at one batch: no study is both.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from analysis.data_limits import refuse_other_data
from analysis.estimate import Fit
from analysis.laws import critical_batch, minimum_flops, minimum_steps
from analysis.points import LossPoints, PointSet
from analysis.runs import Counting, StudyRuns, read_runs, refuse_variants
from analysis.separable import CRITICAL_BATCH, FRONTIER
from analysis.sources import study_points
from analysis.study_fits import Attempt, Trial, attempt
from analysis.words import has_warning, short

OPTION = "--critical-batch"
LEAST = "frontier-least"
"""The name of the frontier in C_min among what was tried."""


def critical_batch_of(
    folder: Path, study: StudyRuns, counting: Counting, draws: int, seed: int
) -> Attempt:
    """B_crit(L) of the results in `folder`, in the place of the study's own. Raises `ValueError` for runs that were not
    judged on the data of this study, and for such as do not say how the critical batch grows."""
    other = read_runs(folder, counting.split, counting.include)
    refuse_other_data(OPTION, other, study, counting.split)
    name = folder.resolve().name
    trial = Trial("critical-batch", f"B_crit(L) of {name}", CRITICAL_BATCH, "loss")
    found = study_points(other, CRITICAL_BATCH, "loss", replace(counting, variant=None))
    done = attempt(trial, found, draws, seed)
    problem = done.problem if done.fit is None else _doubt(done.fit)
    if problem:
        raise ValueError(
            f"{OPTION} {folder}: gives no B_crit(L): {problem} Wanted learning curves of one size at three batch sizes "
            "or more, on both sides of the critical one: name another study, or leave the option out."
        )
    return done


def _doubt(fit: Fit) -> str:
    """Why nothing can be adjusted by a fit, "" if it can."""
    if has_warning(fit, "aB_not_identified"):
        return next(each for each in fit.warnings if each.startswith("aB_not_identified"))
    known = np.isfinite(fit.value("B_star") * fit.value("aB"))
    return "" if known else "no loss has a critical batch."


def least_frontier(
    study: StudyRuns, counting: Counting, batch: Attempt, draws: int, seed: int
) -> Attempt:
    """The compute-efficient frontier of the study in C_min (Kaplan et al. 2020, figures 13 and 14). Raises `ValueError`
    for runs that do not say their batch."""
    trial = Trial(LEAST, "frontier in C_min", FRONTIER, "flops")
    found = study_points(study, FRONTIER, "flops", counting)
    if len(found.points) and not found.points.known("batch"):
        raise ValueError(
            f"{OPTION}: runs of {study.path} do not say their batch; wanted train_batch_size in every configuration. "
            "Leave the option out, or the runs that are of another make."
        )
    assert batch.fit is not None
    found = replace(
        found,
        points=at_least(found.points, batch.fit),
        remarks=(*found.remarks, _remark(found, batch)),
    )
    try:
        refuse_variants(study, counting.variant)
    except ValueError as error:
        return Attempt(trial.name, trial.title, trial.law, trial.x, found, None, str(error))
    return attempt(trial, found, draws, seed)


def at_least(points: LossPoints, fit: Fit) -> LossPoints:
    """The points with the steps S_min that their losses would take at a batch far above the critical one, and the
    tokens and C_min at one far below it."""
    crit = critical_batch(points.loss, fit.value("B_star"), fit.value("aB"))
    return replace(
        points,
        flops=minimum_flops(points.flops, points.batch, crit),
        tokens=minimum_flops(points.tokens, points.batch, crit),  # E_min: C_min = 6 N E_min
        steps=minimum_steps(points.steps, points.batch, crit),
    )


def _remark(found: PointSet, batch: Attempt) -> str:
    assert batch.fit is not None
    levels = [e["loss"] for e in batch.fit.diagnostics["levels"] if e["critical_batch"]]
    loss = found.points.loss
    out = int(np.sum((loss < min(levels)) | (loss > max(levels))))
    star, exponent = batch.fit.value("B_star"), batch.fit.value("aB")
    return (
        f"compute_adjusted: C_min = C/(1 + B/B_crit(L)) with {batch.title}, "
        f"B_crit = {short(star)}/L^(1/{exponent:.3g}) rows; {out} of {len(loss)} losses lie outside those it was "
        f"measured at ({min(levels):.3g} to {max(levels):.3g} nats), where it is extrapolated. The intervals take it "
        "as exact; what its own interval does is said beside the figure of C_min."
    )
