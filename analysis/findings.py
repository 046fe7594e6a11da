"""What the fits of a study imply, as rows for the report: best sizes by every route, what a wrong size
costs, over-fitting, the bound on early stopping, where trends contradict each other, nats per sample.

Each bootstrap draw of the constants gives one answer; the rows hold the quantiles.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from analysis.consequences import contradiction, for_reducible
from analysis.derived import (
    early_stopping_step,
    excess_compute,
    excess_compute_of_surface,
    overfitting,
    reducible_per_sample,
)
from analysis.estimate import Estimate, Fit, interval
from analysis.laws import PF_DAY, surface
from analysis.points import LossPoints
from analysis.study_fits import Attempt
from analysis.words import has_warning

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

    def as_json(self) -> dict[str, object]:
        """As in fits.json."""
        return {"name": self.name, "what": self.words, "unit": self.unit,
                "source": self.source} | self.each.as_json()  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """What one row of a domain is, for losses per picture or clip: `tokens` 1 for running text."""

    name: str
    tokens: float


def findings(tried: Mapping[str, Attempt], sample: Sample) -> list[Finding]:
    """Every implied number that the fits at hand allow, in the order of the argument."""
    fits = {name: each.fit for name, each in tried.items() if each.fit is not None}
    found = _reducible(fits, tried, sample)
    if "surface" in fits:
        found += _of_surface(fits["surface"], tried["surface"].found.points)
    if "surface-kaplan" in fits:
        found += _of_kaplan(fits["surface-kaplan"], tried["surface-kaplan"].found.points)
    if {"surface", "learning-curve"} <= set(fits):
        points = tried["surface"].found.points
        found += _early_stopping(fits["surface"], fits["learning-curve"], points)
    if "learning-curve" in fits:
        found += _efficient(fits["learning-curve"])
    return found + _contradiction(fits)


def routes(tried: Mapping[str, Attempt]) -> list[tuple[str, Estimate]]:
    """The exponent a of N_opt ~ C^a by every route that the study allows."""
    fits = {name: each.fit for name, each in tried.items() if each.fit is not None}
    found = []
    if "surface" in fits:
        found.append(("surface", fits["surface"].derived["a"]))
    if "surface-kaplan" in fits:
        found.append(("surface of Kaplan", fits["surface-kaplan"].derived["a"]))
    if "isoflop" in fits:
        named = fits["isoflop"].derived
        found += [(f"isoFLOP {key.removeprefix('a_')}", named[key]) for key in named]
    if "frontier" in fits and not has_warning(fits["frontier"], "optimum_not_identified"):
        found.append(("frontier", fits["frontier"].parameters["params_exponent"]))
    if "learning-curve" in fits and "params_exponent" in fits["learning-curve"].derived:
        found.append(("learning curves", fits["learning-curve"].derived["params_exponent"]))
    return [(name.replace("isoFLOP surface", "surface of the isoFLOP runs")
             .replace("isoFLOP envelope", "envelope of final losses"), each)
            for name, each in found if np.isfinite(each.value)]  # fmt: skip


def disagreements(found: list[tuple[str, Estimate]]) -> list[str]:
    """Pairs of routes whose intervals do not overlap, each as a warning."""
    said = []
    for (one, first), (other, second) in combinations(found, 2):
        if first.low > second.high or second.low > first.high:
            said.append(
                f"routes_disagree: by {one} N_opt ∝ C^{first.value:.3f} [{first.low:.3f}, "
                f"{first.high:.3f}], by {other} C^{second.value:.3f} [{second.low:.3f}, "
                f"{second.high:.3f}]; quote the range of the routes, not one of them."
            )
    return said


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


def _columns(fit: Fit, names: tuple[str, ...]) -> tuple[dict[str, np.ndarray], ...]:
    """The value as a column of one, and the draws, of some constants."""
    return (
        {name: np.array([fit.value(name)]) for name in names},
        {name: fit.draws[name] for name in names},
    )


INNER = ("A", "alpha", "B", "beta")
WRONG_SIZES = (0.5, 2.0)


def _of_surface(fit: Fit, points: LossPoints) -> list[Finding]:
    """The optimum at the largest compute; the cost of wrong sizes; what more data would still buy."""
    flops = float(np.max(6 * points.params * points.tokens))
    shown = f"at C = {flops:.3g} FLOPs"
    source = "Hoffmann et al. 2022, eq 4"
    found = [
        Finding(f"surface:{name}", f"{words} {shown}", fit.derived[name], unit, source)
        for name, words, unit in (("optimal_params", "best size", "parameters"),
                                  ("optimal_tokens", "best tokens", "tokens"),
                                  ("tokens_per_param", "best tokens per parameter", ""))
    ]  # fmt: skip
    value, drawn = _columns(fit, INNER)
    with np.errstate(all="ignore"):
        for ratio in WRONG_SIZES:
            one, many = (
                excess_compute_of_surface(ratio, flops, **each)[0] for each in (value, drawn)
            )
            kaplan = float(excess_compute(ratio, **KAPLAN_CURVE)[0])
            found.append(
                Finding(f"surface:excess_compute_{ratio:g}",
                        f"compute of {ratio:g} times the best size, same loss (Kaplan: {kaplan:.2f})",
                        interval(float(one[0]), many), "times the least",
                        "as Kaplan et al. 2020, eq B.16")
            )  # fmt: skip
    return found


def _of_kaplan(fit: Fit, points: LossPoints) -> list[Finding]:
    names = ("Nc", "aN", "Dc", "aD")
    value, drawn = _columns(fit, names)
    largest = float(points.params.max())
    tokens = float(points.tokens[points.params == largest].max())
    with np.errstate(all="ignore"):
        one, many = (overfitting(largest, tokens, **each) for each in (value, drawn))
    source = "Kaplan et al. 2020, eqs 4.3, 4.4"
    return [
        Finding("surface-kaplan:overfitting", "L(N, D)/L(N, ∞) - 1 of the largest run",
                interval(float(one[0]), many), "", source),
        Finding("surface-kaplan:tokens_against_overfitting", "tokens that keep it below 0.02 there",
                fit.derived["tokens_against_overfitting"], "tokens", source),
    ]  # fmt: skip


def _early_stopping(fit: Fit, curve: Fit, points: LossPoints) -> list[Finding]:
    """The bound for the run of most compute: it need not stop sooner."""
    value, drawn = _columns(fit, ("E", *INNER))
    at = int(np.argmax(points.params * points.tokens))
    params, tokens = float(points.params[at]), float(points.tokens[at])
    count = min(len(drawn["E"]), len(curve.draws["Sc"]))

    def bound(constants: dict[str, np.ndarray], Sc: np.ndarray, aS: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return early_stopping_step(
                surface(params, tokens, **constants), surface(params, np.inf, **constants), Sc, aS
            )

    one = bound(value, np.array([curve.value("Sc")]), np.array([curve.value("aS")]))
    many = bound({name: each[:count] for name, each in drawn.items()},
                 curve.draws["Sc"][:count], curve.draws["aS"][:count])  # fmt: skip
    return [
        Finding("early_stopping", "steps before which the dearest run need not stop",
                interval(float(one[0]), many), "steps (of Sc)", "Kaplan et al. 2020, eq 5.7")
    ]  # fmt: skip


def _efficient(fit: Fit) -> list[Finding]:
    """Kaplan's exponents of the compute-efficient frontier, where B_crit was fitted."""
    source = "Kaplan et al. 2020, eqs 1.7, 1.8, section 6"
    names = [name for name in fit.derived if name.endswith("_exponent")]
    found = []
    for name in names:
        words = f"{name.removesuffix('_exponent')} ∝ C_min^"
        found.append(Finding(f"learning-curve:{name}", words, fit.derived[name], "", source))
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


def optimum_fit(fits: Mapping[str, Fit]) -> Fit | None:
    """A fit that knows N_opt(C) as a power law: isoFLOP minima before frontier handovers."""
    for name in ("isoflop", "frontier"):
        fit = fits.get(name)
        if fit is not None and np.isfinite(fit.parameters["params_exponent"].value):
            if has_warning(fit, "optimum_not_identified"):
                continue
            return fit
    return None
