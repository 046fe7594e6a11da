"""The figures of batch size: steps and examples to given losses, B_crit(L) and the gradient noise scale, and
learning curves for the least compute.

McCandlish et al. 2018 (1812.06162); Kaplan et al. 2020 (2001.08361), sections 5.1 and 6.
"""

import math
from collections.abc import Mapping

import numpy as np

from analysis import figures_runs
from analysis.estimate import Fit
from analysis.figures_variants import hyperbolas
from analysis.laws import critical_batch
from analysis.least_compute import LEAST
from analysis.page import Picture
from analysis.runs import Counting, StudyRuns
from analysis.separable import FRONTIER
from analysis.sources import study_points
from analysis.study_fits import Attempt
from analysis.views_least import least_compute, least_pictures
from analysis.words import has_warning, value_with_interval

KAPLAN_B_STAR, KAPLAN_AB = 2.1e8, 0.21  # tokens; Kaplan et al. 2020, eq 5.3
KAPLAN_VOCABULARY = 50257
LEVELS_SHOWN = 5
"""Losses of one size that a figure of hyperbolas shows."""


def batch_pictures(
    study: StudyRuns, counting: Counting, tried: Mapping[str, Attempt]
) -> list[Picture]:
    """All of them that these runs allow."""
    attempt = tried.get("critical-batch")
    fit = attempt.fit if attempt is not None else None
    shown = [] if fit is None else _hyperbolas(fit)
    shown += noise_scale(study, counting, fit)
    least = tried.get(LEAST)
    if attempt is not None and fit is not None:
        own = attempt.found if least is None else study_points(study, FRONTIER, "flops", counting)
        shown += least_compute(own.points, fit)
    if least is not None:
        shown += least_pictures(least, str(study.runs[0].config.get("domain")))
    return shown


def _hyperbolas(fit: Fit) -> list[Picture]:
    """Kaplan et al. 2020, figure 18."""
    levels = list(fit.diagnostics["levels"])
    shown = []
    for params in sorted({each["params"] for each in levels}):
        own = [each for each in levels if each["params"] == params]
        chosen = np.unique(np.linspace(0, len(own) - 1, LEVELS_SHOWN).astype(int))
        shown += [own[index] for index in chosen]
    known = sum(each["critical_batch"] is not None for each in shown)
    out = sum(each["extrapolated"] for each in levels)
    beyond = f" Dashed: B_crit outside the batches trained, at {out} of all." if out else ""
    return [
        Picture(
            "batch-hyperbolas",
            hyperbolas(shown, "rows"),
            "<b>Steps and examples to the same losses.</b> Each mark is a batch size; lines: (S/S_min - 1)"
            f"(E/E_min - 1) = 1 (McCandlish et al. 2018), through {known} of the {len(shown)} losses shown, of "
            f"{len(levels)}. Where the marks go straight up or straight across, every batch is on one side of "
            f"the critical one.{beyond}",
        )
    ]


def noise_scale(study: StudyRuns, counting: Counting, fit: Fit | None) -> list[Picture]:
    """Kaplan et al. 2020, figure 10: the gradient noise scale, measured critical batches, the fitted
    B_crit(L)."""
    runs = [(run, rows) for run in study.runs if math.isfinite(rows := run.noise_scale)]
    levels = [] if fit is None else [e for e in fit.diagnostics["levels"] if e["critical_batch"]]
    if not runs and not levels:
        return []
    loss = np.array([float(run.eval_rows(counting.split)["loss"][-1]) for run, _ in runs])
    params = np.array([counting.of(run) for run, _ in runs])
    scale = np.array([each for _, each in runs])
    ends = np.array([*loss, *(each["loss"] for each in levels)])
    line = np.geomspace(ends.min() / 1.03, ends.max() * 1.03, 40)
    laws, published = _published_batch(study, line)
    known = fit is not None and not has_warning(fit, "aB_not_identified")
    if fit is not None and known and math.isfinite(fit.value("B_star")):
        fitted = critical_batch(line, fit.value("B_star"), fit.value("aB"))
        laws.append(("B_crit(L), fitted", line, fitted, True))
    inside, outside = (
        [(each["loss"], each["critical_batch"]) for each in levels if each["extrapolated"] is out]
        for out in (False, True)
    )
    caption = (
        "<b>Gradient noise scale and critical batch</b>, in rows. "
        + (
            "Marks by size: noise scale over the second half of each run, at its last loss: batches far above "
            "it buy few steps (McCandlish et al. 2018). "
            if runs
            else "No run recorded the noise scale: it needs more than one micro-batch a step. "
        )
        + ("Diamonds: E_min/S_min of each loss. " if levels else "")
        + (
            f"Hollow, {len(outside)} of {len(levels)}: outside the batches trained, so extrapolated. "
            if outside
            else ""
        )
    )
    if fit is not None and math.isfinite(fit.value("B_star")):
        caption += f"Fitted exponent aB {value_with_interval(fit.parameters['aB'])}. "
    caption += published
    return [
        Picture(
            "noise-scale",
            figures_runs.batches(loss, scale, params, inside, outside, laws, "rows"),
            caption,
        )
    ]


def _published_batch(
    study: StudyRuns, line: np.ndarray
) -> tuple[list[tuple[str, np.ndarray, np.ndarray, bool]], str]:
    """Kaplan's curve and its caption; nothing for other data than text, whose losses are other ones."""
    config = study.runs[0].config
    if not str(config.get("domain")).startswith("text"):
        return [], ""
    shape = config.get("shape", {})
    length = float(shape.get("seq_length", np.nan))
    curve = critical_batch(line, KAPLAN_B_STAR / length, KAPLAN_AB)
    return [("Kaplan et al. 2020", line, curve, False)], (
        "Published: aB 0.21 and B* 2.1e8 tokens, for which the noise scale matched only roughly; of losses per token "
        f"of a vocabulary of {KAPLAN_VOCABULARY}, here of {shape.get('vocab_size', 'another')}."
    )
