"""A fitted law as a value: constants with intervals, how it was found, and what to distrust.

`Fit.as_json` is the outer contract; nothing in it depends on the clock except `seconds`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis.laws import EXPONENT_LIMITS
from analysis.points import LeftOut

CONFIDENCE = 0.95
QUANTILES = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
BEYOND = 1e300
"""Stands for an infinite draw while quantiles are taken between draws, ..."""
OPEN = 1e290
"""... and from here on a quantile holds a share of one."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval; the interval is NaN where no bootstrap was asked for, and an end is
    infinite where the draws leave it open."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, Any]:
        """Three numbers of ten significant digits; null for what is not known or infinite."""
        return {name: plain(getattr(self, name)) for name in ("value", "low", "high")}


@dataclass(frozen=True)
class Fit:
    """One law fitted to one set of points. `draws` holds each parameter's bootstrap values."""

    law: str
    formula: str
    x: str | None  # the column that a law of one variable was fitted against
    parameters: Mapping[str, Estimate]
    objective: Mapping[str, Any]
    points_used: int
    points_left_out: tuple[LeftOut, ...]
    bootstrap: Mapping[str, Any]
    diagnostics: Mapping[str, Any]
    warnings: tuple[str, ...]
    seconds: float
    derived: Mapping[str, Estimate] = field(default_factory=dict)  # what follows from them
    draws: Mapping[str, np.ndarray] = field(repr=False, default_factory=dict)

    def value(self, name: str) -> float:
        """The point estimate of one parameter."""
        return self.parameters[name].value

    def as_json(self) -> dict[str, Any]:
        """The contract's JSON object."""
        return {
            "law": self.law,
            "formula": self.formula,
            "x": self.x,
            "parameters": {name: each.as_json() for name, each in self.parameters.items()},
            "derived": {name: each.as_json() for name, each in self.derived.items()},
            "objective": rounded(self.objective),
            "points_used": self.points_used,
            "points_left_out": [
                {"point": each.point, "reason": each.reason} for each in self.points_left_out
            ],
            "bootstrap": rounded(self.bootstrap),
            "confidence": CONFIDENCE,
            "diagnostics": rounded(self.diagnostics),
            "warnings": list(self.warnings),
            "seconds": round(self.seconds, 3),
        }


def interval(value: float, draws: np.ndarray) -> Estimate:
    """The value with the percentile interval of its bootstrap draws. Infinite draws count as what they
    are, and those that are no number as lying beyond both ends: more than 2.5% of them leave an end
    open, which is then infinite. NaN without draws, and of a single one."""
    if len(draws) < 2:
        return Estimate(float(value), float("nan"), float("nan"))
    ends = []
    for beyond, at in zip((-BEYOND, BEYOND), QUANTILES, strict=True):
        ranked = np.nan_to_num(draws, nan=beyond, posinf=BEYOND, neginf=-BEYOND)
        end = float(np.quantile(ranked, at))
        ends.append(end if abs(end) < OPEN else math.copysign(math.inf, end))
    return Estimate(float(value), *ends)


def limits_reached(each: Estimate) -> tuple[bool, bool]:
    """Whether an exponent or its interval reaches the lower, the upper limit of the search."""
    low, high = EXPONENT_LIMITS
    return (
        min(each.value, np.nan_to_num(each.low, nan=each.value)) <= low * 1.001,
        max(each.value, np.nan_to_num(each.high, nan=each.value)) >= high * 0.999,
    )


def exponent_warning(each: Estimate) -> list[str]:
    """`exponent_at_bound` where the search, not the points, sets the exponent or its interval."""
    reached = [
        limit for limit, hit in zip(EXPONENT_LIMITS, limits_reached(each), strict=True) if hit
    ]
    if not reached:
        return []
    if any(abs(math.log(each.value / limit)) < 1e-3 for limit in reached):
        return [
            f"exponent_at_bound: the exponent ended at its limit {each.value:.3g}; the points do "
            "not have the shape of this law."
        ]
    return [
        f"exponent_at_bound: its 95% interval [{each.low:.3g}, {each.high:.3g}] reaches the limit "
        f"{' and the limit '.join(f'{limit:g}' for limit in reached)} of the search; these points "
        "do not say what the exponent is."
    ]


def plain(value: float) -> float | None:
    """Ten significant digits, so that the same input gives the same bytes; null if not finite."""
    return float(f"{value:.10g}") if math.isfinite(value) else None


def rounded(value: object) -> Any:
    """`plain` applied through mappings and sequences."""
    if isinstance(value, Mapping):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [rounded(each) for each in value]
    if isinstance(value, (float, np.floating)):
        return plain(float(value))
    return value.item() if isinstance(value, np.generic) else value


def to_text(value: Mapping[str, Any]) -> str:
    """JSON text, as printed and as written to files."""
    return json.dumps(rounded(value), indent=2, allow_nan=False) + "\n"


def draws_csv(fit: Fit) -> str:
    """Every bootstrap draw of every quantity, one row a draw, ten significant digits."""
    known = {name: values for name, values in fit.draws.items() if len(values)}
    rows = [",".join(known)]
    for row in zip(*(values.tolist() for values in known.values()), strict=True):
        rows.append(",".join(f"{value:.10g}" for value in row))
    return "\n".join(rows) + "\n"
