"""The figures that a study's runs allow, each with the caption that says what one sees."""

from collections.abc import Sequence

import numpy as np

from analysis import figures_laws, figures_runs
from analysis.downloads import with_mid_schedule
from analysis.estimate import Fit
from analysis.figures import palette
from analysis.findings import Sample
from analysis.frontier import trace
from analysis.page import Picture, safe
from analysis.points import LossPoints
from analysis.published import PublishedCurve, PublishedDomain
from analysis.runs import Counting, StudyRuns, curve_points
from analysis.study_fits import Attempt, Convention
from analysis.variants import Correction
from analysis.views_batch import batch_pictures
from analysis.views_data import data_pictures
from analysis.views_fixed import fixed_pictures
from analysis.views_laws import law_pictures
from analysis.views_runs import run_pictures
from analysis.views_schedule import schedule_pictures
from analysis.views_shape import shape_pictures
from analysis.words import (
    has_warning,
    law_with_numbers,
    parameter_in_words,
    reservation,
    value_with_interval,
)
from data_prep.domain import domain, domain_names


def pictures(
    study: StudyRuns,
    tried: dict[str, Attempt],
    conventions: Sequence[Convention],
    counting: Counting,
    corrected: Sequence[Correction],
    known: PublishedDomain | None,
) -> list[Picture]:
    """All figures, in the order of the argument: curves, size, compute, optimum, other laws, then inside."""
    curves = curve_points(study, with_mid_schedule(counting)).points
    shown: list[Picture] = []
    if not len(curves):
        return shown
    shown += [_token_curves(curves, tried), _compute_curves(curves, tried, known)]
    shown += _loss_by_x(tried, "loss-by-params", known) + _loss_by_x(tried, "loss-by-tokens", known)
    shown += _optimum(tried, known)
    shown += law_pictures(tried, conventions, known, sample_of(study)) + fixed_pictures(tried)
    shown += data_pictures(study, counting, tried)
    shown += schedule_pictures(study, counting, corrected)
    shown += shape_pictures(study, counting) + batch_pictures(study, counting, tried)
    return shown + run_pictures(study, counting, curves)


def sample_of(study: StudyRuns) -> Sample:
    """A row of the study's domain where that is one picture, clip or pair, else a token."""
    name = str(study.runs[0].config.get("domain")) if study.runs else ""
    if name not in domain_names() or domain(name).packed:
        return Sample("token", 1.0)
    the_domain = domain(name)
    axes = [axis for axis, _ in the_domain.grid]
    kind = "clip" if "frame" in axes else "picture" if "row" in axes else "row"
    return Sample(kind, float(the_domain.seq_length))


def dark_colours(study: StudyRuns, tried: dict[str, Attempt]) -> dict[str, str]:
    """Every colour that stands for a size or a budget, and its twin on dark paper."""
    runs = len({run.counts["params_total"] for run in study.runs})
    most = max(12, runs)
    return {light: dark for count in range(1, most + 1) for light, dark in palette(count)}


def _token_curves(curves: LossPoints, tried: dict[str, Attempt]) -> Picture:
    """With L(D) where it is known (Henighan et al. 2020, figure 14)."""
    best = float(curves.loss.min())
    limits = tried.get("loss-by-tokens")
    fit = limits.fit if limits is not None else None
    caption = (
        f"<b>Learning curves against tokens.</b> Held-out loss of "
        f"{len(np.unique(curves.group))} runs, coloured by model size; the lowest reaches "
        f"{best:.3f} nats per token."
    )
    if limits is not None and fit is not None:
        caption += (
            f" Thick: {safe(limits.title)}, what so many tokens allow a large model that stops early; dotted beyond "
            "its runs."
        )
    svg = figures_runs.learning_curves(curves, "tokens", fit, None, curves, None)
    return Picture("curves-tokens", svg, caption)


def _compute_curves(
    curves: LossPoints, tried: dict[str, Attempt], known: PublishedDomain | None
) -> Picture:
    fit, own = tried["frontier"].fit, tried["frontier"].found.points
    frontier = trace(own) if fit is not None else None
    caption = "<b>The same against training compute.</b> "
    if fit is None:
        caption += f"No frontier law could be fitted: {safe(_why_none(tried))}."
    else:
        caption += (
            "The thick line is L(C), a power law plus constant forced to lie on or below the "
            f"lowest losses; exponent {_exponent(fit)}. It is "
            "thick where it was fitted, dotted beyond; shaded: 95% of bootstrap fits. Circles: "
            "where the best size changes."
        )
    row = None
    if known is not None:
        row, remark = _published_near(curves, "flops", known.flops_law(), known.source)
        caption += remark
    svg = figures_runs.learning_curves(curves, "flops", fit, frontier, own, row)
    return Picture("curves-flops", svg, caption)


def _why_none(tried: dict[str, Attempt]) -> str:
    """Why there is no frontier, in a few words."""
    gone = tried["frontier"].found.left_out
    if any(each.reason.startswith("mid-schedule") for each in gone):
        return (
            "the learning rate of these runs falls on the way, and such losses are kept out "
            "(--include mid-schedule takes them in)"
        )
    return "see what to distrust"


def _loss_by_x(
    tried: dict[str, Attempt], name: str, known: PublishedDomain | None
) -> list[Picture]:
    attempt = tried.get(name)
    if attempt is None or attempt.fit is None:
        return []
    fit, points = attempt.fit, attempt.found.points
    row, remark = (None, "")
    if known is not None and name == "loss-by-params":
        row, remark = _published_near(points, "params", known.loss_by_params, known.source)
    worst = 100 * fit.diagnostics["largest_residual"]
    return [
        Picture(
            name,
            figures_laws.loss_by_x(points, fit, law_with_numbers(fit), row),
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
    points: LossPoints, x: str, row: PublishedCurve, source: str
) -> tuple[PublishedCurve | None, str]:
    """The published curve if it comes near these losses, and what the caption says of it."""
    there = row.irreducible + (row.scale / points.x(x)) ** row.exponent
    what = "sizes" if x == "params" else "amounts of compute"
    said = f"{there.max():.2f} to {there.min():.2f} nats over these {what}"
    if there.min() > points.loss.max() or there.max() < points.loss.min():
        return None, f" The published curve ({said}) lies outside the figure."
    return row, f" Dashed: {safe(source)}, {said}."


def _optimum(tried: dict[str, Attempt], known: PublishedDomain | None) -> list[Picture]:
    fit, curves = tried["frontier"].fit, tried["frontier"].found.points
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
    return [Picture("optimum", figures_laws.optimum(curves, frontier, fit, known), caption)]
