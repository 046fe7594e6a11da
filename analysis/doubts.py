"""What to distrust in a fit, in words: each warning begins with its name and a colon.

A constant is called not identified by a rule that is the same for every law:
the irreducible loss, when its 95% interval reaches 0 or is wider than a quarter of the smallest loss;
an exponent, when its interval reaches a limit of the search or spans more than a factor of 3;
an amplitude or scale, when its interval reaches 0 or spans more than a factor of 100;
a share such as a = beta/(alpha + beta), when its interval is wider than 0.3;
any of them, when a term of the law is 0 in the best fit and no point depends on it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.estimate import Estimate, exponent_warning
from analysis.points import LossPoints, distinct
from analysis.separable import Law

CONVERGED = 1e-6
NO_SCATTER = 1e-9
"""Of log losses or steps: less is rounding, and no measurement repeats so well."""
WIDEST_EXPONENT = 3.0
WIDEST_SCALE = 100.0
WIDEST_SHARE = 0.3
AMPLITUDES = (
    "A", "B", "scale", "Nc", "Dc", "Sc", "break_at", "width", "B_star", "params_decay", "tokens_decay",
    "optimal_params", "optimal_tokens", "tokens_per_param",
)  # fmt: skip
SHARES = ("a",)
IN_FORMULA = {
    "amplitude": ("scale",), "level": ("scale",), "fall": ("amplitude",), "size": ("A", "Nc"), "data": ("B",),
    "steps": ("Sc",), "both": ("A", "B", "Nc", "Dc"), "logit_share": ("A", "B", "Nc", "Dc"), "ratio": ("aN",),
    "log_break": ("break_at",), "log_width": ("width",), "log_batch_ratio": ("B_star",), "inverse_aB": ("aB",),
    "log_params_decay": ("params_decay",), "log_tokens_decay": ("tokens_decay",),
}  # fmt: skip
"""What the formula calls the internal parameters that have other names."""


def warnings_of(
    points: LossPoints,
    law: Law,
    parameters: Mapping[str, Estimate],
    derived: Mapping[str, Estimate],
    diagnostics: Mapping[str, Any],
) -> list[str]:
    """Every doubt about one fit, the gravest first."""
    return [
        *_convergence(diagnostics),
        *_few_points(points, law),
        *no_scatter(diagnostics["residual_sd"]),
        *_constants(points, law, parameters, derived, diagnostics),
        *_misfit(diagnostics),
    ]


def _convergence(found: Mapping[str, Any]) -> list[str]:
    said = []
    if found["gradient_norm"] > CONVERGED:
        said.append(
            f"not_converged: the scaled gradient is {found['gradient_norm']:.1e}, wanted below "
            f"{CONVERGED:.0e}; the constants may not be the best ones."
        )
        if not found["left_its_start"]:
            said.append("did_not_move: the fit ended where it started; do not use it.")
    if found["starts_agreeing"] < found["starts"] / 2:
        said.append(
            f"starts_disagree: {found['starts_agreeing']} of {found['starts']} starts end within "
            "0.1% of the best objective; there are other minima, and the best may not be found."
        )
    return said


def _few_points(points: LossPoints, law: Law) -> list[str]:
    names = [name for name in law.inputs if not name.startswith("unique_")]
    count = len(distinct(*(points.x(name) for name in names))[0])
    if count >= len(law.parameters) + 3:
        return []
    return [
        f"few_points: {count} different {' and '.join(names)} for {len(law.parameters)} "
        "parameters; the form of the law cannot be tested with so few."
    ]


def no_scatter(spread: float) -> list[str]:
    """What is said of points that lie on a law as if they had been computed from it."""
    if not spread < NO_SCATTER:
        return []
    return [
        f"no_scatter: the points lie on the law to {spread:.1g}, which no measurement does; nothing says how much a "
        "run scatters, so the intervals hold no noise and have no width."
    ]


def _constants(
    points: LossPoints,
    law: Law,
    parameters: Mapping[str, Estimate],
    derived: Mapping[str, Estimate],
    diagnostics: Mapping[str, Any],
) -> list[str]:
    said = _undetermined(parameters, diagnostics)
    exponents = {each.name for each in law.shapes if each.is_exponent} | {"aN", "aB"}
    for name, each in (*parameters.items(), *derived.items()):
        if name in diagnostics["undetermined"]:
            continue
        if name == law.irreducible:
            said += irreducible_warning(points, each, diagnostics["profile"].get(name, []))
        elif name == "exponent" and (reached := exponent_warning(each)):
            said += reached
        elif name in SHARES and each.high - each.low > WIDEST_SHARE:
            said.append(_vague(name, each, f"is wider than {WIDEST_SHARE:g}"))
        elif name in AMPLITUDES and each.low <= 0:
            said.append(_vague(name, each, "reaches 0"))
        elif name in AMPLITUDES and _factor(each) > WIDEST_SCALE:
            said.append(_vague(name, each, f"spans more than a factor of {WIDEST_SCALE:g}"))
        elif name in exponents and _factor(each) > WIDEST_EXPONENT:
            said.append(_vague(name, each, f"spans more than a factor of {WIDEST_EXPONENT:g}"))
    if any(text.startswith("exponent_at_bound") for text in said):
        return said
    return said + _at_bound(parameters, diagnostics["bounds_active"])


def _undetermined(parameters: Mapping[str, Estimate], diagnostics: Mapping[str, Any]) -> list[str]:
    gone = [
        f"{name} = 0" for name in AMPLITUDES if name in parameters and not parameters[name].value
    ]
    why = f"with {' and '.join(gone)} no point" if gone else "no point"
    return [
        f"{name}_not_identified: {why} depends on it; any value fits these points as well."
        for name in diagnostics["undetermined"]
    ]


def _at_bound(parameters: Mapping[str, Estimate], bounds: Sequence[str]) -> list[str]:
    """`at_bound`, in the constants of the formula. That the irreducible loss is 0 is said elsewhere."""
    names = {
        printed: parameters[printed].value
        for name in bounds
        if name not in ("irreducible", "E")
        for printed in IN_FORMULA.get(name, (name,))
        if printed in parameters
    }
    if not names:
        return []
    return [
        f"at_bound: {', '.join(f'{name} = {value:.3g}' for name, value in names.items())} ended at a limit; "
        "the points do not have the shape of this law, and the other constants depend on where the limit "
        "is."
    ]


def _factor(each: Estimate) -> float:
    """How many times the lower end the upper end of an interval is; 1 where there is none."""
    if np.isnan(each.low) or np.isnan(each.high):
        return 1.0
    return each.high / each.low if each.low > 0 else float("inf")


def _vague(name: str, each: Estimate, why: str) -> str:
    return (
        f"{name}_not_identified: its 95% interval [{each.low:.3g}, {each.high:.3g}] {why}; these "
        "points do not say what it is."
    )


def irreducible_warning(points: LossPoints, each: Estimate, profile: Sequence[float]) -> list[str]:
    """`irreducible_not_identified`, from the wider of bootstrap and profile interval."""
    smallest = float(points.loss.min())
    low, high = np.nanmin([each.low, each.value]), np.nanmax([each.high, each.value])
    low, high = min([low, *profile]), max([high, *profile])
    if low > 1e-6 * smallest and high - low <= smallest / 4:
        return []
    return [
        f"irreducible_not_identified: its 95% interval is [{low:.3g}, {high:.3g}] for a smallest "
        f"loss of {smallest:.3g}; these points do not say what the loss would fall to, and the "
        "scale and exponent depend on it."
    ]


def _misfit(diagnostics: Mapping[str, Any]) -> list[str]:
    said = []
    far = diagnostics["outliers"]
    if far:
        said.append(
            f"outliers: {diagnostics['outlier_count']} points lie more than 4 residual scales off the fit "
            f"({', '.join(each['point'] for each in far[:3])}); they are in the fit with bounded "
            "weight, and diagnostics.refits shows the constants without them and at full weight."
        )
    lack = diagnostics["lack_of_fit"]
    if lack is not None and lack["p"] < 0.01:
        said.append(
            f"lack_of_fit: points scatter about the law more than repeated seeds do (F = "
            f"{lack['f']:.1f}, p = {lack['p']:.1g}); part of the residual is the form of the law "
            "or the training."
        )
    return said
