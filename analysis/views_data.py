"""The figures of data limits: L(D) of nested subsets, over-fitting, early stopping, repeated data.

Kaplan et al. 2020 (2001.08361), sections 3.3, 4 and 5.3; Muennighoff et al. 2023 (2305.16264).
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from analysis.derived import early_stopping_step
from analysis.estimate import Fit
from analysis.figures_variants import by_data, repeated, stopping
from analysis.guards import MID_SCHEDULE, over_fitted, unique_tokens
from analysis.laws import coupled
from analysis.page import Picture, safe
from analysis.points import PointSet
from analysis.runs import Counting, StudyRuns, all_points, curve_points, only_data_varies
from analysis.separable import LEARNING_CURVE, POWER
from analysis.sources import fit_law
from analysis.study_fits import Attempt
from analysis.views_surface import form_constants, forms_of
from analysis.words import short
from launch.results import RunResult

DRAWS = 200
FEWEST_SUBSETS = 3
PUBLISHED_DECAY = 15.387756
"""R_D* of C4 (Muennighoff et al. 2023)."""


def data_pictures(
    study: StudyRuns, counting: Counting, tried: Mapping[str, Attempt]
) -> list[Picture]:
    """All of them that runs on subsets of the data allow; none where there is no such run."""
    if not any(np.isfinite(unique_tokens(run)) for run in study.runs):
        return []
    shown = _by_size(all_points(study, counting), _falling(study, counting))
    return shown + _stopping(study, counting, tried) + _repeated(study, counting, tried)


def _falling(study: StudyRuns, counting: Counting) -> str:
    """How many runs on a subset ended at their lowest loss: more steps would have lowered it."""
    tables = [
        run.eval_rows(counting.split) for run in study.runs if np.isfinite(unique_tokens(run))
    ]
    falling = sum(int(np.argmin(table["loss"])) == len(table) - 1 for table in tables)
    return f"{falling} of {len(tables)} runs on subsets were still falling: limited by steps, not by data."


def _by_size(found: PointSet, falling: str) -> list[Picture]:
    """Kaplan et al. 2020, figure 4: early-stopped loss against D, a power law for each size."""
    laws, said = [], []
    for params in np.unique(found.points.params):
        own = replace(found, points=found.points.only(found.points.params == params))
        if len(np.unique(own.points.tokens)) < FEWEST_SUBSETS:
            continue
        fit = fit_law(own, POWER.name, "tokens", DRAWS, 0, only=("exponent",))
        laws.append((float(params), fit.value("scale"), fit.value("exponent")))
        each = fit.parameters["exponent"]
        ends = f" [{each.low:.3f}, {each.high:.3f}]" if np.isfinite(each.low) else ""
        said.append(f"{each.value:.3f}{ends} at N = {short(params)}")
    if not laws:
        return []
    return [
        Picture(
            "loss-by-data",
            by_data(found.points, laws),
            "<b>Loss against unique tokens.</b> Lowest held-out loss of every run on nested subsets, and a "
            f"power law for each size: exponent {'; '.join(said)}. {falling} Kaplan et al. 2020: 0.095 for one large "
            "model; a small model flattens where its size limits it.",
        )
    ]


def _stopping(study: StudyRuns, counting: Counting, tried: Mapping[str, Attempt]) -> list[Picture]:
    """Kaplan et al. 2020, figure 16: S_stop against Sc/[L(N, D) - L(N, inf)]^(1/aS)."""
    forms, curve = forms_of(tried)[:1], _curve(study, counting)
    if not forms or curve is None:
        return []
    title, surface, _ = forms[0]
    constants = form_constants(surface)
    rows = []
    for run in study.runs:
        table = run.eval_rows(counting.split)
        if over_fitted(run, table):
            best = table[int(np.argmin(table["loss"]))]
            endless = float(coupled(counting.of(run), np.inf, **constants))
            bound = early_stopping_step(best["loss"], endless, curve.value("Sc"), curve.value("aS"))
            rows.append((float(bound), float(best["step"]), counting.of(run)))
    bound, step, params = np.array(rows, float).reshape(-1, 3).T
    known = np.isfinite(bound)
    if known.sum() < 2:
        return []
    kept = int(np.sum(step[known] >= bound[known]))
    return [
        Picture(
            "early-stopping",
            stopping(bound[known], step[known], params[known]),
            "<b>When to stop.</b> Step of the lowest held-out loss of each run that over-fits, against the "
            "bound Sc/[L(N, D) - L(N, ∞)]^(1/aS) (Kaplan et al. 2020, eq 5.7: it lies below every "
            f"measured step), with L(N, ∞) by {safe(title)}. "
            f"{kept} of {int(known.sum())} are above it here; Sc and aS are of "
            "the first passes, whatever their learning rate did.",
        )
    ]


def _curve(study: StudyRuns, counting: Counting) -> Fit | None:
    """L(N, S) of what was measured in first passes; None where they do not carry it."""
    fresh = replace(counting, include=tuple({*counting.include, MID_SCHEDULE}))
    found = curve_points(study, fresh)
    try:
        return fit_law(found, LEARNING_CURVE.name, "steps", 0, 0)
    except ValueError:
        return None


def _repeated(study: StudyRuns, counting: Counting, tried: Mapping[str, Attempt]) -> list[Picture]:
    """D'/D of each run on a subset: the fresh tokens after which the run of the same shape with most
    data had the same loss."""
    rows = []
    for run in study.runs:
        fresh = _freshest(study, run)
        if fresh is None:
            continue
        table, other = run.eval_rows(counting.split), fresh.eval_rows(counting.split)
        other = other[(other["tokens"] > 0) & (other["tokens"] <= unique_tokens(fresh))]
        subset = unique_tokens(run)
        lowest = np.minimum.accumulate(other["loss"])
        later = (table["tokens"] > subset) & (len(other) > 1)
        later &= (table["loss"] >= lowest.min(initial=np.inf)) & (
            table["loss"] <= lowest.max(initial=0)
        )
        if later.sum() >= 2:
            log_worth = np.interp(-table["loss"][later], -lowest, np.log(other["tokens"]))
            read = table["tokens"][later]
            name = f"U {short(subset)}, N {short(counting.of(run))}"
            rows.append((name, read / subset, np.exp(log_worth) / read))
    if not rows:
        return []
    fit = tried["data-constrained"].fit if "data-constrained" in tried else None
    decay = fit.parameters.get("tokens_decay") if fit is not None else None
    return [
        Picture(
            "repeated-data",
            repeated(rows, PUBLISHED_DECAY, None if decay is None else decay.value),
            "<b>What repeated tokens are worth.</b> D' is the number of fresh tokens after which the run of "
            "the same shape with most data had the same loss, read off its first pass; D the tokens read. "
            "Dashed: Muennighoff et al. 2023 (0.93 at 4 passes, 0.66 at 16), a law that cannot fall as it "
            "does where a run over-fits. Both runs' learning rates move along, so it is a reading, no fit.",
        )
    ]


def _freshest(study: StudyRuns, run: RunResult) -> RunResult | None:
    """The run of the same shape, seed and training with the most data; None if it is this one, or no
    subset is repeated."""
    if not unique_tokens(run) < float(run.eval["tokens"].max()):
        return None
    same = [
        each
        for each in study.runs
        if (each.config["shape"], each.config.get("seed"))
        == (run.config["shape"], run.config.get("seed"))
        and only_data_varies(replace(study, runs=(run, each)))
    ]
    best = max(same, key=lambda each: min(unique_tokens(each), float(each.eval["tokens"].max())))
    return None if unique_tokens(best) <= unique_tokens(run) else best
