"""Which laws of N and D the points allow, and the exponent a of N_opt ~ C^a by every route.

The routes fail in different ways, so their agreement is the evidence; a law that AICc rejects is none.
"""

import math
from collections.abc import Mapping
from itertools import combinations

import numpy as np

from analysis.estimate import Estimate, Fit
from analysis.separable import SURFACE, SURFACE_LAWS
from analysis.study_fits import Attempt
from analysis.words import has_warning


def fits_of(tried: Mapping[str, Attempt]) -> dict[str, Fit]:
    """The fits that were made, by name."""
    return {name: each.fit for name, each in tried.items() if each.fit is not None}


LEAST_WEIGHT = 0.05
"""A form of less AICc weight beside the others is rejected: nothing is derived from it."""


def form_weights(tried: Mapping[str, Attempt]) -> dict[str, float]:
    """The AICc weight of each fitted law of N and D among these; NaN where the points are too few for one."""
    fits = {name: fit for name, fit in fits_of(tried).items() if name in SURFACE_LAWS}
    compared = [fit.diagnostics.get("forms", ()) for fit in fits.values()]
    rows = {row["law"]: row["aicc"] for row in max(compared, key=len, default=())}
    aicc = {name: rows.get(name, math.nan) for name in fits}
    least = min((each for each in aicc.values() if math.isfinite(each)), default=math.nan)
    raw = {name: math.exp((least - each) / 2) if math.isfinite(each) else math.nan
           for name, each in aicc.items()}  # fmt: skip
    total = sum(each for each in raw.values() if math.isfinite(each))
    return {name: each / total if total else math.nan for name, each in raw.items()}


def accepted_forms(tried: Mapping[str, Attempt]) -> list[str]:
    """The fitted laws of N and D that the points do not reject, the likeliest first."""
    weights = form_weights(tried)
    kept = [name for name in SURFACE_LAWS if name in weights and not weights[name] < LEAST_WEIGHT]
    return sorted(kept, key=lambda name: -np.nan_to_num(weights[name]))


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


def routes(tried: Mapping[str, Attempt]) -> list[tuple[str, Estimate]]:
    """The exponent a of N_opt ~ C^a by every route that the study allows and no points reject."""
    fits, accepted = fits_of(tried), accepted_forms(tried)
    found = [(ROUTE_OF_FORM[name], fits[name].derived["a"]) for name in accepted]
    if "isoflop" in fits:
        named = fits["isoflop"].derived
        rejected = {"a_surface"} if SURFACE.name in fits and SURFACE.name not in accepted else set()
        found += [(f"isoFLOP {key.removeprefix('a_')}", named[key])
                  for key in named if key not in rejected]  # fmt: skip
    if "frontier" in fits and not has_warning(fits["frontier"], "optimum_not_identified"):
        found.append(("frontier", fits["frontier"].parameters["params_exponent"]))
    if "learning-curve" in fits and "params_exponent" in fits["learning-curve"].derived:
        found.append(("learning curves", fits["learning-curve"].derived["params_exponent"]))
    return [(name.replace("isoFLOP surface", "surface of the isoFLOP runs")
             .replace("isoFLOP envelope", "envelope of final losses"), each)
            for name, each in found if np.isfinite(each.value)]  # fmt: skip


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
