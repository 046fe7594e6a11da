"""What the fits of a study imply, as rows for the report: best sizes by every route, what a wrong size
costs, over-fitting, the bound on early stopping, where trends contradict each other, nats per sample.

Each bootstrap draw of the constants gives one answer; the rows hold the quantiles. Of the laws of N and D
only those speak that the points do not reject by AICc.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from analysis.consequences import contradiction, for_reducible
from analysis.derived import (
    as_coupled,
    early_stopping_step,
    excess_compute,
    excess_compute_of_surface,
    overfitting_of_surface,
    reducible_per_sample,
    tokens_against_overfitting_of_surface,
)
from analysis.doubts import WIDEST_EXPONENT, WIDEST_SCALE
from analysis.estimate import Estimate, Fit, interval
from analysis.laws import PF_DAY, coupled
from analysis.points import LossPoints
from analysis.quantities import OVERFITTING
from analysis.routes import accepted_forms, fits_of, form_in_words, form_weights, optimum_fit
from analysis.separable import SURFACE_KAPLAN
from analysis.study_fits import Attempt
from analysis.words import has_warning, value_with_interval

KAPLAN_CURVE = {"aN": 0.077, "aS": 0.76}
"""Kaplan et al. 2020, Table 3."""


@dataclass(frozen=True)
class Finding:
    """One implied number: its name in fits.json, in words, with its interval, unit and source."""

    name: str
    words: str
    each: Estimate
    unit: str
    source: str
    widest: float = WIDEST_SCALE

    @property
    def is_identified(self) -> bool:
        """Whether there is a number, and no interval of it that spans more than a factor of `widest` (the
        rule of `analysis.doubts` for scales, or for exponents)."""
        if not math.isfinite(self.each.value):
            return False
        return not (self.each.low <= 0 or self.each.high > self.widest * self.each.low)

    @property
    def shown(self) -> str:
        """With interval and unit, or that it is not known."""
        if not self.is_identified:
            return "not identified"
        return f"{value_with_interval(self.each)} {self.unit}".strip()

    def as_json(self) -> dict[str, object]:
        """As in fits.json."""
        return {"name": self.name, "what": self.words, "unit": self.unit, "source": self.source,
                "identified": self.is_identified} | self.each.as_json()  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """What one row of a domain is, for losses per picture or clip: `tokens` 1 for running text."""

    name: str
    tokens: float


def findings(tried: Mapping[str, Attempt], sample: Sample) -> list[Finding]:
    """Every implied number that the fits at hand allow, in the order of the argument."""
    fits = fits_of(tried)
    found = _reducible(fits, tried, sample)
    weights, accepted = form_weights(tried), accepted_forms(tried)
    for name in accepted:
        found += _of_form(tried[name], fits[name], form_in_words(tried[name], weights[name]))
    if "learning-curve" in fits:
        if accepted:
            found += _early_stopping(tried[accepted[0]], fits[accepted[0]], fits["learning-curve"])
        found += _efficient(fits["learning-curve"])
    return found + _contradiction(fits)


def _reducible(
    fits: Mapping[str, Fit], tried: Mapping[str, Attempt], sample: Sample
) -> list[Finding]:
    """Reducible loss per sample at the end of the data, and what half of it, or one nat, takes."""
    found = []
    for name, unit, scale in (
        ("loss-by-params", "parameters", 1.0),
        ("frontier", "PF-days", PF_DAY),
    ):
        fit = fits.get(name)
        if fit is None or has_warning(fit, "irreducible_not_identified"):
            continue
        if has_warning(fit, "frontier_not_separated"):
            continue
        x = tried[name].found.points.x(str(fit.x))
        most, symbol = float(x.max()), {"params": "N", "flops": "C"}[str(fit.x)]
        value, drawn = (
            reducible_per_sample(most, each["scale"], each["exponent"], sample.tokens)  # type: ignore[arg-type]
            for each in ({key: np.array([fit.value(key)]) for key in fit.parameters}, fit.draws)
        )
        source = "Henighan et al. 2020, Table 3"
        found.append(
            Finding(f"{name}:reducible", f"reducible loss at the largest {symbol}",
                    interval(float(value[0]), drawn), f"nats per {sample.name}", source)
        )  # fmt: skip
        # A steep law may leave nothing at the end of the data: there is no half of that.
        wanted = {"half of that": float(value[0]) / 2} if value[0] > 0 else {}
        if sample.tokens > 1:
            wanted[f"1 nat per {sample.name}"] = 1.0
        for words, nats in wanted.items():
            each = for_reducible(fit, nats, sample.tokens)[str(fit.x)]
            each = Estimate(each.value / scale, each.low / scale, each.high / scale)
            key = f"{name}:{symbol}_for_{words.replace(' ', '_')}"
            found.append(Finding(key, f"{symbol} for {words}", each, unit, source))
    return found


INNER = ("A", "alpha", "B", "beta")
WRONG_SIZES = (0.5, 2.0)


def _of_form(attempt: Attempt, fit: Fit, title: str) -> list[Finding]:
    """By one law of N and D: the best size at the largest compute, what wrong sizes cost, over-fitting."""
    points = attempt.found.points
    flops = float(np.max(6 * points.params * points.tokens))
    source = "Hoffmann et al. 2022, eq 4"
    optimum = [
        Finding(f"{fit.law}:{name}", f"{words} at C = {flops:.3g} FLOPs, by {title}",
                _known_interval(fit, name), unit, source)
        for name, words, unit in (("optimal_params", "best size", "parameters"),
                                  ("optimal_tokens", "best tokens", "tokens"),
                                  ("tokens_per_param", "best tokens per parameter", ""))
    ]  # fmt: skip
    return [
        *optimum,
        *_wrong_sizes(fit.law, *constants_of(fit), flops, title),
        *over_fitting(fit, points, title),
    ]


def _known_interval(fit: Fit, name: str) -> Estimate:
    """As the fit has it; where it has no end (a profile through no optimum), that of the draws."""
    each = fit.derived[name]
    return interval(each.value, fit.draws[name]) if math.isnan(each.low) else each


def constants_of(fit: Fit) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The value as a column of one, and the draws, of E, A, alpha, B, beta and gamma (`as_coupled`)."""
    value = {name: np.array([each.value]) for name, each in fit.parameters.items()}
    drawn = {name: fit.draws[name] for name in value}
    with np.errstate(all="ignore"):
        return as_coupled(fit.law, value), as_coupled(fit.law, drawn)


def _wrong_sizes(
    law: str, value: dict[str, np.ndarray], drawn: dict[str, np.ndarray], flops: float, title: str
) -> list[Finding]:
    """The same for every law of N and D: an equal loss is an equal A/N^alpha + B/D^beta."""
    found = []
    for ratio in WRONG_SIZES:
        with np.errstate(all="ignore"):
            one, many = (
                excess_compute_of_surface(ratio, flops, **{name: of[name] for name in INNER})[0]
                for of in (value, drawn)
            )
        kaplan = float(excess_compute(ratio, **KAPLAN_CURVE)[0])
        words = f"compute of {ratio:g} times the best size, same loss (Kaplan: {kaplan:.2f}), by {title}"
        found.append(
            Finding(f"{law}:excess_compute_{ratio:g}", words, interval(float(one[0]), many),
                    "times the least", "as Kaplan et al. 2020, eq B.16")
        )  # fmt: skip
    return found


def over_fitting(fit: Fit, points: LossPoints, title: str) -> list[Finding]:
    """What the largest model loses for want of data, and the data that it would take, by one law of N and D."""
    law, (value, drawn) = fit.law, constants_of(fit)
    largest = float(points.params.max())
    tokens = float(points.tokens[points.params == largest].max())
    with np.errstate(all="ignore"):
        lost = [overfitting_of_surface(largest, tokens, **each) for each in (value, drawn)]
        data = [
            tokens_against_overfitting_of_surface(largest, OVERFITTING, **each)
            for each in (value, drawn)
        ]
    source = "Kaplan et al. 2020, eqs 4.3, 4.4"
    source = source if law == SURFACE_KAPLAN.name else f"as {source}"
    return [
        Finding(f"{law}:overfitting", f"L(N, D)/L(N, ∞) - 1 of the largest run, by {title}",
                interval(float(lost[0][0]), lost[1]), "", source),
        Finding(f"{law}:tokens_against_overfitting",
                f"tokens that keep it below {OVERFITTING:g} there, by {title}",
                interval(float(data[0][0]), data[1]), "tokens", source),
    ]  # fmt: skip


def _early_stopping(attempt: Attempt, fit: Fit, curve: Fit) -> list[Finding]:
    """The bound for the run of most compute, by one law of N and D: it need not stop sooner."""
    points, (value, drawn) = attempt.found.points, constants_of(fit)
    at = int(np.argmax(points.params * points.tokens))
    params, tokens = float(points.params[at]), float(points.tokens[at])
    count = min(len(next(iter(fit.draws.values()))), len(curve.draws["Sc"]))

    def bound(constants: dict[str, np.ndarray], Sc: np.ndarray, aS: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return early_stopping_step(
                coupled(params, tokens, **constants), coupled(params, np.inf, **constants), Sc, aS
            )

    one = bound(value, np.array([curve.value("Sc")]), np.array([curve.value("aS")]))
    few = {name: each if np.ndim(each) == 0 else each[:count] for name, each in drawn.items()}
    many = bound(few, curve.draws["Sc"][:count], curve.draws["aS"][:count])
    return [
        Finding("early_stopping", f"steps before which the dearest run need not stop, by {attempt.title}",
                interval(float(one[0]), many), "steps (of Sc)", "Kaplan et al. 2020, eq 5.7")
    ]  # fmt: skip


def _efficient(fit: Fit) -> list[Finding]:
    """Kaplan's exponents of the compute-efficient frontier, where B_crit was fitted."""
    source = "Kaplan et al. 2020, eqs 1.7, 1.8, section 6"
    names = [name for name in fit.derived if name.endswith("_exponent")]
    found = []
    for name in names:
        words = f"{name.removesuffix('_exponent')} ∝ C_min^"
        found.append(
            Finding(f"learning-curve:{name}", words, fit.derived[name], "", source, WIDEST_EXPONENT)
        )
    return found


def _contradiction(fits: Mapping[str, Fit]) -> list[Finding]:
    """Where L(C) and L(D) would meet, if all three fits are there and N_opt was measured."""
    optimum = optimum_fit(fits)
    if not {"frontier", "loss-by-tokens"} <= set(fits) or optimum is None:
        return []
    met = contradiction(fits["frontier"], fits["loss-by-tokens"], optimum)
    flops = met["flops"]
    source = "Henighan et al. 2020, section 6; Kaplan et al. 2020, eq 6.8"
    days = Estimate(flops.value / PF_DAY, flops.low / PF_DAY, flops.high / PF_DAY)
    return [
        Finding("crossing:flops", "compute where L(C) and L(D) contradict each other", days, "PF-days",
                source),
        Finding("crossing:loss", "reducible loss there", met["loss"], "nats per token", source),
    ]  # fmt: skip
