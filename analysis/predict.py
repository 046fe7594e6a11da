"""What a fitted law says about a run not yet made, with an interval and the distance from data.

The interval joins the spread of the constants (bootstrap draws) with the scatter of single runs
about the law. It is not calibrated: no hold-out in compute has been run to compare it with, and
such intervals cover much less than their nominal 95% a decade beyond the data. It says so.
"""

from typing import Any

import numpy as np

from analysis.estimate import CONFIDENCE, Estimate, Fit, interval
from analysis.laws import FRONTIER, optimal_params, optimal_tokens, power, power_constant

UNCALIBRATED = (
    "uncalibrated: no rolling-origin hold-out was made, so 95% is nominal; real coverage beyond "
    "the data is lower."
)


def predict(fit: Fit, at: float, seed: int) -> dict[str, Any]:
    """Loss (and N_opt, D_opt for the frontier) at x = `at`, in the fit's own unit of x."""
    if not (np.isfinite(at) and at > 0):
        raise ValueError(
            f"--{fit.x} = {at:g}: not a positive number; wanted the {fit.x} to predict for."
        )
    low, high = fit.diagnostics["x_range"]
    beyond = max(0.0, float(np.log10(at / high)), float(np.log10(low / at)))
    found: dict[str, Any] = {
        "law": fit.law,
        "target": {fit.x: at},
        "decades_beyond_data": beyond,
        "loss": _loss(fit, at, seed).as_json(),
    }
    if fit.law == FRONTIER:
        found |= _optimum(fit, at)
    warnings = [UNCALIBRATED, *fit.warnings]
    if beyond > 1:
        warnings.insert(
            0, f"far_from_data: {beyond:.1f} decades beyond the fitted range of {fit.x}."
        )
    return found | {
        "confidence": CONFIDENCE,
        "calibrated": False,
        "warnings": warnings,
        "fit": fit.as_json(),
    }


def curve(fit: Fit, x: np.ndarray) -> np.ndarray:
    """The fitted L(x)."""
    return _value(fit, {name: each.value for name, each in fit.parameters.items()}, x)


def band(fit: Fit, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95% band of the fitted L(x): spread of the constants alone. NaN without draws."""
    if not len(fit.draws.get("exponent", ())):
        return np.full(len(x), np.nan), np.full(len(x), np.nan)
    column = {name: values[:, None] for name, values in fit.draws.items()}
    with np.errstate(all="ignore"):
        values = _value(fit, column, x[None])
    each = [interval(np.nan, values[:, index]) for index in range(len(x))]
    return np.array([one.low for one in each]), np.array([one.high for one in each])


def _value(fit: Fit, constants: dict[str, Any], x: np.ndarray) -> np.ndarray:
    if "irreducible" in constants:
        return power_constant(
            x, constants["irreducible"], constants["scale"], constants["exponent"]
        )
    return power(x, constants["scale"], constants["exponent"])


def _loss(fit: Fit, at: float, seed: int) -> Estimate:
    value = float(curve(fit, np.array(at)))
    with np.errstate(all="ignore"):
        drawn = _value(fit, dict(fit.draws), np.array(at))
    sd = fit.diagnostics.get("residual_sd", 0.0)
    noise = np.random.default_rng(seed).standard_normal(np.shape(drawn))
    return interval(value, drawn * np.exp(sd * noise))


def _optimum(fit: Fit, at: float) -> dict[str, Any]:
    constants = (fit.value("params_scale"), fit.value("params_exponent"))
    known = np.isfinite(fit.parameters["params_exponent"].low)
    names = ("params_scale", "params_exponent")
    draws = [fit.draws[name] if known else np.empty(0) for name in names]
    found = {}
    with np.errstate(all="ignore"):
        for name, law in (("params", optimal_params), ("tokens", optimal_tokens)):
            value = float(law(np.array(at), *constants))
            found[f"optimal_{name}"] = interval(value, law(np.array(at), *draws)).as_json()
    return found
