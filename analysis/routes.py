"""Which laws of N and D the points allow, and the exponent a of N_opt ~ C^a by every route.

The routes fail in different ways, so their agreement is the evidence; a law that AICc rejects is none.
"""

import math
from collections.abc import Mapping
from itertools import combinations

import numpy as np

from analysis.ensemble import accepted, aicc_weights
from analysis.estimate import Estimate, Fit
from analysis.separable import SURFACE_LAWS
from analysis.study_fits import Attempt
from analysis.words import has_warning


def fits_of(tried: Mapping[str, Attempt]) -> dict[str, Fit]:
    """The fits that were made, by name."""
    return {name: each.fit for name, each in tried.items() if each.fit is not None}


def form_weights(tried: Mapping[str, Attempt]) -> dict[str, float]:
    """The AICc weight of each fitted law of N and D among these; NaN where the points are too few for one."""
    fits = {name: fit for name, fit in fits_of(tried).items() if name in SURFACE_LAWS}
    compared = [fit.diagnostics.get("forms", ()) for fit in fits.values()]
    rows = {row["law"]: row["aicc"] for row in max(compared, key=len, default=())}
    return aicc_weights({name: rows.get(name, math.nan) for name in SURFACE_LAWS if name in fits})


def accepted_forms(tried: Mapping[str, Attempt]) -> list[str]:
    """The fitted laws of N and D that the points do not reject, the likeliest first."""
    return accepted(form_weights(tried))


def rejected_forms(tried: Mapping[str, Attempt]) -> list[str]:
    """The others, in words with their weight."""
    weights, kept = form_weights(tried), accepted_forms(tried)
    return [form_in_words(tried[name], weights[name]) for name in weights if name not in kept]


def form_in_words(attempt: Attempt, weight: float) -> str:
    """The law with its weight beside the other laws of N and D."""
    return attempt.title + (f" (AICc weight {weight:.2g})" if math.isfinite(weight) else "")


ROUTE_OF_FORM = {
    "surface": "surface", "coupled": "coupled surface", "surface-kaplan": "surface of Kaplan",
}  # fmt: skip


ISOFLOP_ROUTES = {"envelope": "envelope of final losses"} | {
    name: f"{words} of the isoFLOP runs" for name, words in ROUTE_OF_FORM.items()
}
"""What an isoFLOP fit compares its minima with, in words."""


def routes(tried: Mapping[str, Attempt]) -> list[tuple[str, Estimate]]:
    """The exponent a of N_opt ~ C^a by every route that the study allows and no points reject."""
    fits = fits_of(tried)
    found = [(ROUTE_OF_FORM[name], fits[name].derived["a"]) for name in accepted_forms(tried)]
    if "isoflop" in fits:
        ways = {key.removeprefix("a_"): each for key, each in fits["isoflop"].derived.items()}
        # of a law that was fitted by itself the route is above, or rejected
        found += [(ISOFLOP_ROUTES.get(way, f"isoFLOP {way}"), each)
                  for way, each in ways.items() if way not in fits or way not in SURFACE_LAWS]  # fmt: skip
    if "frontier" in fits and not has_warning(fits["frontier"], "optimum_not_identified"):
        found.append(("frontier", fits["frontier"].parameters["params_exponent"]))
    if "learning-curve" in fits and "params_exponent" in fits["learning-curve"].derived:
        found.append(("learning curves", fits["learning-curve"].derived["params_exponent"]))
    return [(name, each) for name, each in found if np.isfinite(each.value)]


def disagreements(found: list[tuple[str, Estimate]]) -> list[str]:
    """Pairs of routes whose intervals do not overlap, each as a warning; one without an interval is not
    compared."""
    said = []
    for (one, first), (other, second) in combinations(found, 2):
        if first.low > second.high or second.low > first.high:
            said.append(
                f"routes_disagree: by {one} N_opt ∝ C^{first.value:.3f} [{first.low:.3f}, "
                f"{first.high:.3f}], by {other} C^{second.value:.3f} [{second.low:.3f}, "
                f"{second.high:.3f}]; quote the range of the routes, not one of them."
            )
    return said


def optimum_fit(fits: Mapping[str, Fit]) -> Fit | None:
    """A fit that knows N_opt(C) as a power law: isoFLOP minima before frontier handovers."""
    for name in ("isoflop", "frontier"):
        fit = fits.get(name)
        if fit is not None and np.isfinite(fit.parameters["params_exponent"].value):
            if has_warning(fit, "optimum_not_identified"):
                continue
            return fit
    return None
