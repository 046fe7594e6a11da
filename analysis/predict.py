"""What a fitted law says about a run not yet made, with an interval and the distance from data.

For a law of N and D a target of compute alone, of N alone or of D alone lies on the law's own optimum;
two of the three say the run. A law of one variable takes its own. The interval is that of
`analysis.forecast`; where no hold-out reaches as far as the target it is said to be uncalibrated.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.derived import (
    inner_surface,
    optimal_allocation,
    optimal_flops_of_params,
    optimal_flops_of_tokens,
    optimum_of,
)
from analysis.ensemble import LEAST_WEIGHT, mixture
from analysis.estimate import CONFIDENCE, Estimate, Fit, interval
from analysis.fit_frontier import known_draws
from analysis.forecast import Forecaster, forecaster
from analysis.frontier_holdout import frontier_splits, widened
from analysis.holdout import FEWEST_HELD_OUT, LEAST_BELOW
from analysis.laws import (
    FLOPS_PER_PARAMETER_AND_TOKEN,
    optimal_params,
    optimal_tokens,
    power,
    power_constant,
)
from analysis.points import LossPoints, PointSet
from analysis.separable import CURVE_LAWS, FRONTIER, LOGARITHM, SURFACE_LAWS, Law

UNCALIBRATED = (
    "uncalibrated: too few held-out runs reach as far beyond the data as this target (wanted "
    f"{FEWEST_HELD_OUT}, and outside the data {LEAST_BELOW:g} decades of compute below it), so 95% is "
    "nominal: no hold-out has checked it."
)
FAR = 1.0
"""Decades beyond the data from which on a prediction is called far."""


def predict(
    found: PointSet, fit: Fit, law: Law | None, wanted: Mapping[str, float], draws: int, seed: int
) -> dict[str, Any]:
    """Loss, and N_opt and D_opt where the law has them, for the target `wanted` ({"flops": 1e20},
    {"params": 1e9, "tokens": 2e10}, ...). `law` is None for the frontier."""
    check_target(fit.law, wanted)
    if law is None:
        return _frontier(found, fit, wanted["flops"])
    ready = forecaster(found, law, draws, seed)
    target = complete_target(law, ready, wanted)
    if law.name == LOGARITHM.name:
        _check_positive(fit, target)
    row = LossPoints.of(
        np.array(["target"]), np.array(["target"]), **{k: np.array([v]) for k, v in target.items()}
    )
    said = ready.at(row)
    answer: dict[str, Any] = {
        "loss": Estimate(float(said.loss[0]), *_ends(said.low[0], said.high[0], draws)).as_json()
    }
    if law.name in SURFACE_LAWS:
        answer |= _optimum(ready, float(target["flops"]))
    forms: list[dict[str, Any]] = [
        {"law": each.law.name, "aicc": each.aicc, "weight": each.weight} for each in ready.members
    ]
    calibrated = bool(said.calibrated[0] and draws)
    decades = {name: float(each[0]) for name, each in said.decades.items()}
    found_answer = _answer(fit, target, decades, answer, calibrated)
    if forms[0]["weight"] < LEAST_WEIGHT:
        best = max(forms, key=lambda each: each["weight"])
        found_answer["warnings"].insert(
            0,
            f"unlikely_form: AICc gives {law.name!r} a weight of {forms[0]['weight']:.2g} beside "
            f"{best['law']!r} ({best['weight']:.2g}); the interval is mostly that law's.",
        )
    return found_answer | {"forms": forms}


def check_target(law: str, wanted: Mapping[str, float]) -> None:
    """Raise `ValueError` for a target that the law does not take, or that is no number above 0."""
    for name, value in wanted.items():
        if not (np.isfinite(value) and value > 0):
            raise ValueError(
                f"--{name} = {value:g}: not a positive number; wanted the {name} to predict for."
            )
    given = " and ".join(f"--{name}" for name in wanted)
    if law == FRONTIER and set(wanted) != {"flops"}:
        raise ValueError(
            f"{given} with --law frontier; wanted --flops C, since the frontier is a law of compute. "
            "Give --flops, or choose the law power or power-constant."
        )
    if law in CURVE_LAWS and len(wanted) != 1:
        raise ValueError(
            f"{given} with --law {law}, a law of one variable; wanted one of them. Give one, or "
            "choose the law surface."
        )
    if law in SURFACE_LAWS and len(wanted) > 2:
        raise ValueError(
            f"{given}: C = 6 N D leaves no room for all three; wanted one or two. Leave one out."
        )
    if law not in CURVE_LAWS and law not in SURFACE_LAWS and law != FRONTIER:
        raise ValueError(
            f"predict with --law {law}: this law says nothing of a run by its size, data and compute "
            "alone; wanted power, power-constant, logarithm, broken, surface, coupled, surface-kaplan or "
            "frontier. Choose one of these."
        )


def _check_positive(fit: Fit, target: Mapping[str, float]) -> None:
    """Raise `ValueError` for a target at which a logarithm has fallen to zero."""
    scale = fit.value("scale")
    for name, at in target.items():
        if at >= scale:
            raise ValueError(
                f"--{name} = {at:g} with --law {fit.law}: the fitted loss is zero at {scale:.3g} and negative "
                "beyond; wanted a target below it. Give a smaller one, or choose the law power or "
                "power-constant."
            )


def complete_target(law: Law, ready: Forecaster, wanted: Mapping[str, float]) -> dict[str, float]:
    """params, tokens and flops of the target; for laws of one variable the target as it is. Raises
    `ValueError` for one number alone where the fitted law has no optimum to complete it by."""
    if law.name in CURVE_LAWS:
        return dict(wanted)
    first = ready.members[0]
    inner = inner_surface(law.name, first.constants(first.solution.theta[None]))
    six = FLOPS_PER_PARAMETER_AND_TOKEN
    params, tokens, flops = (wanted.get(name, np.nan) for name in ("params", "tokens", "flops"))
    if len(wanted) == 1:
        if "params" in wanted:
            flops = float(np.squeeze(optimal_flops_of_params(params, **inner)))
        elif "tokens" in wanted:
            flops = float(np.squeeze(optimal_flops_of_tokens(tokens, **inner)))
        best = optimal_allocation(flops, **inner)
        params, tokens = (float(np.squeeze(each)) for each in best)
        _check_optimum(law, wanted, inner, params, tokens)
    elif "params" not in wanted:
        params = flops / (six * tokens)
    elif "tokens" not in wanted:
        tokens = flops / (six * params)
    return {"params": params, "tokens": tokens, "flops": six * params * tokens}


def _check_optimum(
    law: Law, wanted: Mapping[str, float], inner: Mapping[str, Any], params: float, tokens: float
) -> None:
    """Raise `ValueError` where size or data has no effect, or so little that no number holds the best one."""
    flops = FLOPS_PER_PARAMETER_AND_TOKEN * params * tokens
    if all(0 < each < np.inf for each in (params, tokens, flops)):
        return
    found = " and ".join(name for name in ("A", "B") if not np.all(inner[name] > 0))
    what = f"{found} = 0" if found else f"N_opt = {params:g} and D_opt = {tokens:g}"
    ((name, value),) = wanted.items()
    raise ValueError(
        f"--{name} = {value:g} with --law {law.name}: the fitted law has no optimum: {what}; wanted a loss "
        "that falls with size and with data, so that one number says the run. Give two of --params, "
        "--tokens and --flops, or add runs that differ more in both."
    )


def _optimum(ready: Forecaster, flops: float) -> dict[str, Any]:
    """N_opt, D_opt and D_opt/N_opt at `flops`: by the asked law, the interval by all forms."""
    first = ready.members[0]
    best = optimum_of(first.law.name, first.constants(first.solution.theta[None]), flops)
    drawn = [
        optimum_of(each.law.name, each.constants(theta), flops)
        for each, theta in mixture(ready.members, ready.draws, ready.seed)
    ]
    found = {}
    for name in ("optimal_params", "optimal_tokens", "tokens_per_param"):
        draws = np.concatenate([each[name] for each in drawn]) if drawn else np.empty(0)
        found[name] = interval(float(best[name][0]), draws).as_json()
    return found


def _ends(low: float, high: float, draws: int) -> tuple[float, float]:
    return (float(low), float(high)) if draws else (float("nan"), float("nan"))


def _answer(
    fit: Fit,
    target: Mapping[str, float],
    decades: Mapping[str, float],
    found: dict[str, Any],
    calibrated: bool,
) -> dict[str, Any]:
    warnings = [] if calibrated else [UNCALIBRATED]
    what = max(decades, key=lambda name: decades[name])
    if decades[what] > FAR:
        warnings.insert(
            0, f"far_from_data: {decades[what]:.1f} decades beyond the fitted range of {what}."
        )
    return {
        "law": fit.law,
        "target": dict(target),
        "decades_beyond_data": decades[what],
        "decades_beyond": dict(decades),
        **found,
        "confidence": CONFIDENCE,
        "calibrated": calibrated,
        "warnings": [*warnings, *fit.warnings],
        "fit": fit.as_json(),
    }


# --- the frontier, and curves for the figures ---


def curve(fit: Fit, x: np.ndarray) -> np.ndarray:
    """The fitted L(x)."""
    return _value({name: each.value for name, each in fit.parameters.items()}, x)


def band(fit: Fit, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95% band of the fitted L(x): spread of the constants alone. NaN without draws."""
    if not len(fit.draws.get("exponent", ())):
        return np.full(len(x), np.nan), np.full(len(x), np.nan)
    column = {name: values[:, None] for name, values in fit.draws.items()}
    with np.errstate(all="ignore"):
        values = _value(column, x[None])
    each = [interval(np.nan, values[:, index]) for index in range(len(x))]
    return np.array([one.low for one in each]), np.array([one.high for one in each])


def _value(constants: dict[str, Any], x: np.ndarray) -> np.ndarray:
    if "irreducible" in constants:
        return power_constant(
            x, constants["irreducible"], constants["scale"], constants["exponent"]
        )
    return power(x, constants["scale"], constants["exponent"])


def _frontier(found: PointSet, fit: Fit, at: float) -> dict[str, Any]:
    low, high = fit.diagnostics["x_range"]
    decades = max(0.0, float(np.log10(at / high)), float(np.log10(low / at)))
    with np.errstate(all="ignore"):
        drawn = _value(dict(fit.draws), np.array(at))
    loss = interval(float(curve(fit, np.array(at))), drawn)
    calibrated = False
    if len(drawn):
        span = float(np.log10(at / low))
        loss, calibrated = widened(loss, frontier_splits(found.points), decades, span)
    constants = (fit.value("params_scale"), fit.value("params_exponent"))
    known = np.isfinite(fit.parameters["params_exponent"].low)
    names = ("params_scale", "params_exponent")
    draws = [fit.draws[name] if known else np.empty(0) for name in names]
    answer: dict[str, Any] = {"loss": loss.as_json()}
    with np.errstate(all="ignore"):
        for name, law in (("params", optimal_params), ("tokens", optimal_tokens)):
            value = float(law(np.array(at), *constants))
            drawn = known_draws(law(np.array(at), *draws))
            answer[f"optimal_{name}"] = interval(value, drawn).as_json()
    return _answer(fit, {"flops": at}, {"flops": decades}, answer, calibrated)
