"""The words of the report, made from the numbers: nothing here says what the fits and
their warnings do not support."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import special

from analysis.estimate import Estimate, Fit
from analysis.findings import Finding
from analysis.laws import PF_DAY
from analysis.page import card, safe, table, warning
from analysis.points import LossPoints, SeedNoise
from analysis.routes import accepted_forms, disagreements, rejected_forms, routes
from analysis.runs import StudyRuns
from analysis.study_fits import Attempt, Convention
from analysis.words import (
    NOT_SEPARATED,
    has_warning,
    law_with_numbers,
    parameter_in_words,
    reservation,
    scientific,
    short,
    value_with_interval,
)

N_FIT, PURE_FIT, FRONTIER_FIT = "loss-by-params", "loss-by-params-pure", "frontier"


def answer(tried: Mapping[str, Attempt]) -> str:
    """The headline: what the laws say, with intervals, in sentences."""
    size, pure, frontier = (_fit(tried, name) for name in (N_FIT, PURE_FIT, FRONTIER_FIT))
    said = []
    if size is not None:
        said.append(_size_sentence(size, tried[N_FIT].found.points))
        if has_warning(size, "irreducible_not_identified") and pure is not None:
            said.append(f"Without a constant the exponent is {_interval(pure, 'exponent')}.")
    if frontier is not None:
        said.append(_compute_sentence(frontier))
        said.append(_optimum_sentence(frontier))
    for name in accepted_forms(tried)[:1]:  # the likeliest law of N and D
        both = _fit(tried, name)
        if both is not None and not has_warning(both, "a_not_identified"):
            by = tried[name].title
            said.append(f"By the surface {by} it is N_opt ∝ C^{_interval(both, 'a')}.")
    missing = [attempt.title for attempt in tried.values() if attempt.fit is None]
    if missing:
        said.append(f"Not fitted: {', '.join(missing)} (reasons below).")
    return " ".join(said)


def _size_sentence(size: Fit, points: LossPoints) -> str:
    """The law with its numbers; where its exponent is not known, what was measured instead."""
    but = reservation(size)
    if not has_warning(size, "exponent_at_bound"):
        return (
            f"The held-out loss falls with model size as {law_with_numbers(size)}: exponent "
            f"{_interval(size, 'exponent')}{but and f'; it {but}'}."
        )
    sizes = np.unique(points.params)
    losses = [float(np.mean(points.loss[points.params == each])) for each in sizes]
    least = int(np.argmin(losses))
    steady = "falls" if least == len(sizes) - 1 else "does not fall all the way"
    turn = "" if steady == "falls" else f" (lowest: {losses[least]:.3f} at {short(sizes[least])})"
    return (
        f"The held-out loss {steady} with model size: {losses[0]:.3f} nats per token at "
        f"N\u00a0=\u00a0{short(sizes[0])}, {losses[-1]:.3f} at {short(sizes[-1])}{turn}. The "
        f"exponent of L(N) is {_interval(size, 'exponent')}: {but}."
    )


def _compute_sentence(frontier: Fit) -> str:
    if has_warning(frontier, "frontier_not_separated"):
        reach = f"{frontier.diagnostics['sizes_on_hull']} of {frontier.diagnostics['sizes']}"
        return f"L(C) is {NOT_SEPARATED}: {reach} sizes reach the hull of the frontier."
    but = reservation(frontier)
    start = "Along the compute-efficient frontier the exponent of L(C) is "
    join = ": " if has_warning(frontier, "exponent_at_bound") else "; it "
    return f"{start}{_interval(frontier, 'exponent')}{but and join + but}."


def _optimum_sentence(frontier: Fit) -> str:
    if has_warning(frontier, "optimum_not_identified"):
        return (
            "How the best model size grows with compute cannot be read from these learning curves: too "
            "few changes of the best size are bracketed."
        )
    if not math.isfinite(frontier.parameters["params_exponent"].low):
        return (
            f"Few changes of the best size are bracketed; they put N_opt near "
            f"C^{frontier.value('params_exponent'):.3f}, with no interval to trust it by."
        )
    return (
        "The best model size grows with compute as N_opt ∝ C^"
        f"{_interval(frontier, 'params_exponent')}, the tokens as D_opt ∝ C^"
        f"{_interval(frontier, 'tokens_exponent')}."
    )


def cards(tried: Mapping[str, Attempt], noise: SeedNoise | None) -> str:
    """The constants at a glance."""
    size, frontier = _fit(tried, N_FIT), _fit(tried, FRONTIER_FIT)
    shown = []
    if size is not None:
        shown.append(_exponent_card("exponent of L(N)", size))
        shown.append(_irreducible_card(size))
    if frontier is not None:
        shown.append(_exponent_card("exponent of L(C)", frontier))
        if has_warning(frontier, "optimum_not_identified"):
            shown.append(card("exponent of N_opt(C)", "–", "not measured by these runs"))
        else:
            shown.append(_card("exponent of N_opt(C)", frontier.parameters["params_exponent"]))
    if noise is not None:
        shown.append(
            card(
                "seed noise of the loss",
                f"{100 * noise.relative_sd:.2f}%",
                f"{noise.cells} repeated size(s), {noise.degrees} degrees of freedom",
            )
        )
    return f'<div class="cards">{"".join(shown)}</div>' if shown else ""


def _exponent_card(label: str, fit: Fit) -> str:
    """No number where the interval is the search's own or the law is single runs' curves."""
    but = reservation(fit)
    if has_warning(fit, "exponent_at_bound"):
        return card(label, "–", but, "not known")
    if has_warning(fit, "frontier_not_separated"):
        return card(label, "–", but)
    return _card(label, fit.parameters["exponent"], but)


def _irreducible_card(size: Fit) -> str:
    each = size.parameters["irreducible"]
    if not has_warning(size, "irreducible_not_identified"):
        return _card("irreducible loss", each)
    return card("irreducible loss", "–", _below(each), "not identified")


def _card(label: str, each: Estimate, tag: str = "") -> str:
    return card(label, f"{each.value:.3f}", _below(each), tag)


def _below(each: Estimate) -> str:
    known = math.isfinite(each.low) and math.isfinite(each.high)
    return f"95% interval {each.low:.3f} to {each.high:.3f}" if known else "no interval"


def noise_text(noise: SeedNoise | None, tried: Mapping[str, Attempt]) -> str:
    """What the repeats say about the scatter of single runs."""
    if noise is None:
        return (
            "<p>No run was repeated with another seed, so the scatter between seeds is not "
            "measured; the intervals use the scatter about the fitted law instead.</p>"
        )
    size = _fit(tried, N_FIT)
    text = (
        f"Runs that differ in the seed alone scatter by {100 * noise.relative_sd:.2f}% of the "
        f"loss (standard deviation, degrees of freedom: {noise.degrees}"
        + ("; a rough figure)." if noise.degrees < 5 else ").")
    )
    if size is not None:
        text += " " + _lack_of_fit(size, noise)
    return f"<p>{safe(text)}</p>"


def _lack_of_fit(size: Fit, noise: SeedNoise) -> str:
    """The scatter about L(N) against that of seeds: an F test at 5%."""
    spread, free = size.diagnostics["residual_sd"], size.diagnostics["degrees_of_freedom"]
    start = f"About the fitted L(N) single runs scatter by {100 * spread:.2f}%"
    if spread**2 > special.fdtri(free, noise.degrees, 0.95) * noise.relative_sd**2:
        return start + ": more than seeds explain, so part of it is the law or the training."
    if noise.degrees < 5:
        return start + "; with so few repeats that cannot be told from seed noise (F test at 5%)."
    return start + ", which the seeds alone may explain (F test at 5%)."


def implied(rows: Sequence[Finding], tried: Mapping[str, Attempt]) -> str:
    """What follows from the fits, and how far the routes to N_opt agree."""
    found = routes(tried)
    if not rows and len(found) < 2:
        return ""
    cells = [(each.words, each.shown, each.source) for each in rows]
    cells += [
        (f"a of N_opt ∝ C^a, by {name}", value_with_interval(each), "") for name, each in found
    ]
    note = "".join(warning(text) for text in disagreements(found)) or _agreement(found)
    for each in rejected_forms(tried):
        note += f"<p>Nothing is derived from {safe(each)}: the points speak against it.</p>"
    return f"<h2>What follows</h2>{table(('what', 'value [95% interval]', 'after'), cells)}{note}"


def _agreement(found: Sequence[tuple[str, Estimate]]) -> str:
    """Of routes none of which contradicts another; one without an interval neither agrees nor not."""
    open_ended = [name for name, each in found if not math.isfinite(each.high - each.low)]
    if len(found) - len(open_ended) < 2:
        return ""
    but = f"; without an interval, so not compared: {', '.join(open_ended)}" if open_ended else ""
    return f"<p>The routes to the best size agree within their intervals{safe(but)}.</p>"


def counted(rows: Sequence[Convention]) -> str:
    """The same fits in every counting convention, one line for each convention."""
    if not rows:
        return ""
    columns = list(dict.fromkeys((each.law, each.exponent) for each in rows))
    lines = list(dict.fromkeys((each.params, each.flops) for each in rows))
    known = {(each.law, each.exponent, each.params, each.flops): each for each in rows}

    def cell(column: tuple[str, str], line: tuple[str, str]) -> str:
        each = known.get((*column, *line))
        if each is None or not math.isfinite(each.value):
            return "–"
        return value_with_interval(Estimate(each.value, each.low, each.high))

    header = ("N", "C", *(f"{EXPONENT_WORDS.get(each, ' '.join(each))}" for each in columns))
    body = [(*line, *(cell(column, line) for column in columns)) for line in lines]
    return (
        "<h2>The same runs, counted differently</h2>"
        f"{table(header, body)}<p>N without embeddings, with the output head, or every trained number; C "
        "as 6 N D with that N, or exact. A dash: not measured in that convention (budgets of equal C "
        "in one are unequal in another), or the same as with 6 N D.</p>"
    )


EXPONENT_WORDS = {
    ("loss-by-params", "exponent"): "L(N)",
    ("surface", "alpha"): "alpha of L(N, D)",
    ("surface", "a"): "a by L(N, D)",
    ("surface-kaplan", "aN"): "aN of L(N, D) of Kaplan",
    ("surface-kaplan", "a"): "a by L(N, D) of Kaplan",
    ("coupled", "a"): "a by L(N, D), coupled",
    ("isoflop", "params_exponent"): "a by isoFLOP",
    ("frontier", "exponent"): "L(C)",
    ("frontier", "params_exponent"): "a by frontier",
    ("learning-curve", "aN"): "aN of L(N, S)",
}


def doubts(tried: Mapping[str, Attempt], not_tried: Mapping[str, str]) -> str:
    """Laws that could not be fitted, every warning of those that were, and the laws that the design of
    the study is not made for."""
    shown = [
        warning(f"{each.title} not fitted: {each.problem}")
        for each in tried.values()
        if each.fit is None
    ]
    for each in tried.values():
        if each.fit is not None:
            shown += [warning(f"{each.title}, {text}") for text in each.fit.warnings]
    other = "; ".join(f"{title} ({why})" for title, why in not_tried.items())
    note = f"<p>Not made for by the design of this study: {safe(other)}.</p>" if other else ""
    return ("".join(shown) or "<p>No warning was raised by any fit.</p>") + note


def limits_text(study: StudyRuns, tried: Mapping[str, Attempt], noise: SeedNoise | None) -> str:
    """What a study of this size can show, from its own reach and interval widths."""
    points = tried[N_FIT].found.points
    if not len(points):
        return "<p>No run is usable yet, so this study shows nothing yet.</p>"
    sizes = np.unique(points.params)
    decades = float(np.log10(sizes.max() / sizes.min())) if len(sizes) > 1 else 0.0
    cost = [float(run.counts["flops_6nd"]) for run in study.runs]
    text = [
        f"This study covers {len(sizes)} sizes over {decades:.1f} decades of N "
        f"({short(sizes.min())} to {short(sizes.max())}) and runs of up to {scientific(max(cost))} "
        f"FLOPs, {short(max(cost) / PF_DAY)} PF-days. The papers' ladders span about five decades "
        "of N, from 1e4 to 1e9 parameters."
    ]
    size, pure = _fit(tried, N_FIT), _fit(tried, PURE_FIT)
    if size is not None:
        text += _exponent_sentence(size)
        if has_warning(size, "irreducible_not_identified"):
            text.append(
                "What the loss would fall to is not known, and with it the split between constant "
                "and power law: within these sizes the curve is described, beyond them it is not."
            )
    if size is not None and pure is not None:
        text.append(_form_sentence(size, pure))
    frontier = _fit(tried, FRONTIER_FIT)
    if frontier is not None and has_warning(frontier, "frontier_not_separated"):
        text.append("What more compute buys is not measured: see L(C) among the doubts below.")
    unmeasured = frontier is not None and has_warning(frontier, "optimum_not_identified")
    if unmeasured and not routes(tried):
        text.append("The best size for a given compute is not measured.")
    if noise is None:
        text.append("Nothing was repeated, so luck of the seed is not separated from size.")
    text.append(_beyond_sentence(tried))
    return f"<p>{safe(' '.join(text))}</p>"


def _beyond_sentence(tried: Mapping[str, Attempt]) -> str:
    """What a prediction beyond the data is worth, by the hold-outs of the likeliest law that has some."""
    for name in (*accepted_forms(tried), FRONTIER_FIT, N_FIT):
        fit = _fit(tried, name)
        splits = fit.diagnostics.get("holdout") if fit is not None else None
        if splits:
            far = max(each["decades_above"] for each in splits)
            missed = 100 * max(each["rms_error"] for each in splits)
            return (
                f"Fitted below a cut, {tried[name].title} missed the runs up to {far:.1f} decades beyond it "
                f"by {missed:.2g}% (root mean square of the worst cut). No prediction farther beyond the data "
                "was checked."
            )
    return (
        "No law could be fitted below a cut and judged above it: a prediction beyond the data is a guess "
        "with an optimistic interval."
    )


def _exponent_sentence(size: Fit) -> list[str]:
    """How well the exponent of L(N) is known; nothing where no interval was made."""
    each = size.parameters["exponent"]
    if has_warning(size, "exponent_at_bound"):
        return [f"The exponent of L(N) is {_interval(size, 'exponent')}: {reservation(size)}."]
    if not math.isfinite(each.low):
        return []
    share = 50 * (each.high - each.low) / each.value
    if share > 50:
        return [f"The exponent of L(N) is known only to lie between {each.low:.2g} and "
                f"{each.high:.2g}."]  # fmt: skip
    return [f"The exponent of L(N) is known to about ±{share:.0f}% of itself."]


def _form_sentence(size: Fit, pure: Fit) -> str:
    with_constant = 100 * float(size.diagnostics["residual_sd"])
    without = 100 * float(pure.diagnostics["residual_sd"])
    start = (
        f"A power law with a constant leaves residuals of {with_constant:.2f}%, one without "
        f"{without:.2f}%"
    )
    if without > 2 * with_constant:
        return start + ": the bend is visible."
    return start + ": these runs hardly tell the two forms apart."


def _fit(tried: Mapping[str, Attempt], name: str) -> Fit | None:
    return tried[name].fit if name in tried else None


def _interval(fit: Fit, name: str) -> str:
    return parameter_in_words(fit, name)
