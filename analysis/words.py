"""Numbers and sentences for people: short forms, intervals, and what a fit allows one to say."""

import math

from analysis.estimate import Estimate, Fit


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


def value_with_interval(each: Estimate, digits: int = 3) -> str:
    """`0.312 [0.284, 0.341]`; the interval only where there is one."""

    def shown(number: float) -> str:
        plain = number == 0 or 1e-2 <= abs(number) < 10
        return f"{number:.{digits}f}" if plain else short(number)

    if not (math.isfinite(each.low) and math.isfinite(each.high)):
        return shown(each.value)
    return f"{shown(each.value)} [{shown(each.low)}, {shown(each.high)}]"


def has_warning(fit: Fit, name: str) -> bool:
    """Whether a fit carries the named warning."""
    return any(text.startswith(name + ":") for text in fit.warnings)


def law_with_numbers(fit: Fit) -> str:
    """`L = 0.979 + (152/N)^0.300`."""
    symbol = {"params": "N", "tokens": "D", "flops": "C"}[fit.x or "params"]
    constant = f"{fit.value('irreducible'):.3f} + " if "irreducible" in fit.parameters else ""
    return f"L = {constant}({short(fit.value('scale'))}/{symbol})^{fit.value('exponent'):.3f}"
