"""The figures of L(N, D): the law itself, its exponents, what too few tokens and what a wrong size cost.

They draw the forms that the points allow by AICc, as the report's tables do (`analysis.routes`), and name the rest.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from analysis import figures_laws
from analysis.derived import (
    as_coupled,
    excess_compute,
    excess_compute_of_surface,
    overfitting_of_surface,
)
from analysis.estimate import QUANTILES, Fit
from analysis.findings import INNER, KAPLAN_CURVE, constants_of, over_fitting
from analysis.laws import coupled
from analysis.page import Picture, safe
from analysis.points import LossPoints
from analysis.published import SURFACES
from analysis.quantities import OVERFITTING
from analysis.routes import accepted_forms, form_in_words, form_weights, rejected_forms
from analysis.separable import SURFACE, SURFACE_KAPLAN
from analysis.study_fits import Attempt
from analysis.words import has_warning, parameter_in_words, short, value_with_interval

Form = tuple[str, Fit, LossPoints]
"""A law of N and D that was not rejected: its title with its AICc weight, the fit, what it was fitted to."""


def forms_of(tried: Mapping[str, Attempt]) -> list[Form]:
    """The likeliest first."""
    weights = form_weights(tried)
    found = []
    for name in accepted_forms(tried):
        each = tried[name]
        if each.fit is not None:
            found.append((form_in_words(each, weights[name]), each.fit, each.found.points))
    return found


def form_constants(fit: Fit) -> dict[str, float]:
    """E, A, alpha, B, beta and gamma of a law of N and D, written as `coupled`."""
    value = {name: each.value for name, each in fit.parameters.items()}
    return {name: float(each) for name, each in as_coupled(fit.law, value).items()}


def _not_drawn(tried: Mapping[str, Attempt]) -> str:
    """Which forms the points reject, for a caption."""
    gone = rejected_forms(tried)
    return f" Rejected, so not drawn: {safe('; '.join(gone))}." if gone else ""


def surface_pictures(tried: Mapping[str, Attempt]) -> list[Picture]:
    """L(N, D) by its likeliest form, the exponents of `surface` if it is one, over-fitting by every form."""
    forms = forms_of(tried)
    if not forms:
        return []
    shown = [_surface(*forms[0], _not_drawn(tried))]
    for title, fit, _ in forms:
        if fit.law == SURFACE.name and len(fit.draws.get("alpha", ())) > 2:
            shown.append(
                Picture(
                    "ellipse",
                    figures_laws.ellipse(fit, SURFACES),
                    f"<b>The exponents of the surface {safe(title)}</b> are known together better than one by "
                    "one. Published ones are of text, with embeddings counted.",
                )
            )
    for rank, form in enumerate(forms):
        shown += _overfit("overfit" + (f"-{form[1].law}" if rank else ""), *form, _not_drawn(tried))
    return shown


def _surface(title: str, fit: Fit, points: LossPoints, others: str) -> Picture:
    constants = form_constants(fit)
    at = np.geomspace(points.tokens.min(), points.tokens.max(), 60)
    sizes = np.unique(points.params)
    lines = [(rank, at, coupled(size, at, **constants)) for rank, size in enumerate(sizes)]
    exponents = "" if fit.law != SURFACE.name else (
        f"alpha {parameter_in_words(fit, 'alpha')}, beta "
        f"{parameter_in_words(fit, 'beta')}, so "
    )  # fmt: skip
    return Picture(
        "surface",
        figures_laws.by_tokens(points, fit, coupled(points.params, points.tokens, **constants), lines),
        f"<b>L(N, D).</b> Final losses against tokens, and at each size the likeliest law, {safe(title)}: {exponents}"
        f"N_opt ∝ C^a with a = {value_with_interval(fit.derived['a'])}. Below: what the law misses.{others}",
    )  # fmt: skip


def _overfit(name: str, title: str, fit: Fit, points: LossPoints, others: str) -> list[Picture]:
    """Kaplan et al. 2020, figure 9, by one form: only where data limit the loss visibly. In a law without a constant
    over-fitting is one curve of N^(alpha/beta)/D, else one for each size."""
    constants = form_constants(fit)
    ratio = constants["alpha"] / constants["beta"]
    with np.errstate(all="ignore"):
        excess = points.loss / coupled(points.params, np.inf, **constants) - 1
        along = points.params**ratio / points.tokens
    if not (np.any(excess > 0) and np.all(np.isfinite(along) & (along > 0))):
        return []
    sizes, one = np.unique(points.params), constants["E"] == 0
    lines = []
    for rank, size in [(None, sizes[-1])] if one else list(enumerate(sizes)):
        own = along if one else along[points.params == size]
        x = np.geomspace(own.min(), own.max(), 80)
        lines.append((rank, x, overfitting_of_surface(size, size**ratio / x, **constants)))
    kaplans = fit.law == SURFACE_KAPLAN.name
    axis = "N^(aN/aD) / D" if kaplans else "N^(alpha/beta) / D"
    curves = "one curve for all sizes" if one else "a curve for each size, since it has a constant"
    return [
        Picture(
            name,
            figures_laws.overfit(points, along, excess, lines, OVERFITTING, axis),
            f"<b>What too few tokens cost</b>, relative to the loss for endless data by {safe(title)}: {curves}. "
            f"{_rule(fit, points, title)} Kaplan et al. 2020: below {OVERFITTING:g} (dashed) where D > 5e3 N^0.74."
            f"{others}",
        )
    ]


def _rule(fit: Fit, points: LossPoints, title: str) -> str:
    """The fewest tokens that keep over-fitting little for the largest model, as in the table; of the rule's
    constants none is known as well as what they give together."""
    if has_warning(fit, "at_bound"):
        return "Constants of this fit end at a limit of the search, so it gives no rule."
    largest = float(points.params.max())
    enough = over_fitting(fit, points, title)[1]
    if not enough.is_identified:
        return f"The tokens that keep it below {OVERFITTING:g} at N = {short(largest)} are not identified."
    at = f"At N = {short(largest)} it stays below {OVERFITTING:g} from {enough.shown} on"
    c = form_constants(fit)
    if c["E"] > 0:
        return f"{at}."
    ratio = c["alpha"] / c["beta"]
    return f"{at}, by D > {short(enough.each.value / largest**ratio)} N^{ratio:.2f}."


RATIOS = np.geomspace(0.25, 4, 81)
FARTHEST_UP = 1e3
"""Where an end of a band is drawn that is infinite: far above the figure."""


def excess_pictures(tried: Mapping[str, Attempt]) -> list[Picture]:
    """Kaplan et al. 2020, figure 12, by every form that the points allow."""
    forms = forms_of(tried)
    if not forms:
        return []
    rows = [(tried[fit.law].title, *_excess(fit, points)) for _, fit, points in forms]
    flops = _largest_compute(forms)
    shaded = "; shaded: 95% of bootstrap fits" if any(len(ends) for *_, ends in rows) else ""
    return [
        Picture(
            "excess",
            figures_laws.excess(RATIOS, rows, excess_compute(RATIOS, **KAPLAN_CURVE)[0]),
            f"<b>What a wrong size costs.</b> Compute for the loss of the best model of {flops:.2g} FLOPs, with a "
            f"larger or smaller one, by {safe('; '.join(title for title, *_ in forms))}{shaded}.{_not_drawn(tried)}",
        )
    ]


def _largest_compute(forms: Sequence[Form]) -> float:
    points = forms[0][2]
    return float(np.max(6 * points.params * points.tokens))


def _excess(fit: Fit, points: LossPoints) -> tuple[np.ndarray, np.ndarray]:
    """Compute over the least [R], and the ends of its 95% band [2, R], of no row without draws. An equal loss is
    an equal A/N^alpha + B/D^beta in all of these laws."""
    flops = float(np.max(6 * points.params * points.tokens))
    value, drawn = constants_of(fit)
    with np.errstate(all="ignore"):
        cost, every = (
            excess_compute_of_surface(
                RATIOS, flops, **{name: np.reshape(each[name], (-1, 1)) for name in INNER}
            )[0]
            for each in (value, drawn)
        )
    if len(every) < 2:  # a constant alone, or nothing
        return cost[0], np.empty((0, len(RATIOS)))
    ends = np.quantile(
        np.where(np.isfinite(every), every, np.inf), QUANTILES, axis=0, method="nearest"
    )
    return cost[0], np.where(np.isfinite(ends), ends, FARTHEST_UP)
