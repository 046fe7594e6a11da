"""Numbers and sentences for people: short forms, intervals, and what a fit allows one to say."""

import math

from analysis.estimate import Estimate, Fit, limits_reached


def short(value: float) -> str:
    """Three digits and a metric letter up to a trillion, else a power of ten: 98304 -> 98.3k."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if not 1e-2 <= abs(value) < 1e15:
        return scientific(value)
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit * 0.9995:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def scientific(value: float) -> str:
    """`7.25e18`, for FLOPs, which no metric letter makes readable."""
    digits, exponent = f"{value:.2e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def value_with_interval(each: Estimate) -> str:
    """`0.312 [0.284, 0.341]`, `0.312 [0.284, ∞)` where the draws leave an end open; the interval only
    where there is one."""
    if math.isnan(each.low) or math.isnan(each.high):
        return _shown(each.value)
    low = f"[{_shown(each.low)}" if math.isfinite(each.low) else "(-∞"
    high = f"{_shown(each.high)}]" if math.isfinite(each.high) else "∞)"
    return f"{_shown(each.value)} {low}, {high}"


def _shown(number: float) -> str:
    plain = number == 0 or 1e-2 <= abs(number) < 10
    return f"{number:.3f}" if plain else short(number)


OF_THE_OPTIMUM = ("params_", "tokens_")
"""How the names of constants begin that N_opt(C) and D_opt(C) have: without a minimum that was seen they are none."""


def parameter_in_words(fit: Fit, name: str) -> str:
    """The value with its interval, or what is left of it where the interval of an exponent ends
    at a limit of the search: `not known`, `not known (at most 0.020)`; `not measured by these runs`
    for a best size that was never seen to change."""
    each = fit.parameters[name] if name in fit.parameters else fit.derived[name]
    if name.startswith(OF_THE_OPTIMUM) and has_warning(fit, "optimum_not_identified"):
        return "not measured by these runs"
    return exponent_in_words(each) if name in EXPONENTS else value_with_interval(each)


EXPONENTS = ("exponent", "alpha", "beta", "aN", "aD", "aS")
"""Names of the constants that are searched for between `EXPONENT_LIMITS`."""


def exponent_in_words(each: Estimate) -> str:
    """The value with its interval, or what is left of it where a limit of the search ends either."""
    low, high = limits_reached(each)
    if not low and not high:
        return value_with_interval(each)
    if low and not high and math.isfinite(each.high):
        return f"not known (at most {_shown(each.high)})"
    if high and not low and math.isfinite(each.low):
        return f"not known (at least {_shown(each.low)})"
    return "not known"


NOT_SEPARATED = "not separated from the learning curves of single runs"


def reservation(fit: Fit) -> str:
    """Why the exponent of a fit is no property of the domain, "" if nothing speaks against it."""
    if has_warning(fit, "exponent_at_bound"):
        return "its 95% interval reaches a limit of the search"
    if has_warning(fit, "frontier_not_separated"):
        return NOT_SEPARATED
    if has_warning(fit, "irreducible_not_identified"):
        return "depends on the irreducible loss, which these runs do not identify"
    return ""


def has_warning(fit: Fit, name: str) -> bool:
    """Whether a fit carries the named warning."""
    return any(text.startswith(name + ":") for text in fit.warnings)


def law_with_numbers(fit: Fit) -> str:
    """`L = 0.979 + (152/N)^0.300`."""
    symbol = {"params": "N", "tokens": "D", "flops": "C"}[fit.x or "params"]
    constant = f"{fit.value('irreducible'):.3f} + " if "irreducible" in fit.parameters else ""
    return f"L = {constant}({short(fit.value('scale'))}/{symbol})^{fit.value('exponent'):.3f}"
