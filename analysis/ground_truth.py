"""What is known exactly of a study's source, beside what was fitted to its runs.

Of the sources of `data_prep.domains.known_entropy` the least possible loss is computed, not measured. A fitted
irreducible loss should contain it, and the reducible loss of each run should contain loss - least loss, the KL
divergence of source and model (Henighan et al. 2020, eq 1.2).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.estimate import Estimate, interval
from analysis.page import definitions, safe, table
from analysis.points import LossPoints
from analysis.runs import Counting, StudyRuns
from analysis.separable import Law
from analysis.sources import law_of
from analysis.study_fits import Attempt
from analysis.words import short, value_with_interval
from data_prep.domain import domain, domain_names, family

NORMAL_95 = 1.96  # half-width of a 95% interval in standard errors


@dataclass(frozen=True)
class Truth:
    """The least possible mean loss of a whole row, in nats per token; `standard_error` says how far the held-out rows
    that were measured may lie from it, by their luck. `known` holds all exact numbers of the source."""

    loss: float
    standard_error: float
    known: Mapping[str, float | tuple[float, ...]]


@dataclass(frozen=True)
class Comparison:
    """A law's irreducible loss beside the truth; `inside`: its interval, widened by the luck of the rows, has it."""

    title: str
    fitted: Estimate
    inside: bool


@dataclass(frozen=True)
class Reducible:
    """One point of a fit: measured loss less the least one, and what the law has above its constant there."""

    label: str
    params: float
    tokens: float
    measured: float
    fitted: Estimate


def truth_of(study: StudyRuns, counting: Counting) -> Truth | None:
    """What is known of the source that a study's runs learn from; None of most."""
    names = {str(run.config.get("domain")) for run in study.runs}
    name = names.pop() if len(names) == 1 else ""
    if name not in domain_names() or not hasattr(family(name), "known"):
        return None
    known = family(name).known(domain(name))
    least = known["loss"]
    errors = [float(run.eval_rows(counting.split)["standard_error"][-1]) for run in study.runs]
    return Truth(least, min(errors), known)


def comparisons(truth: Truth, tried: Mapping[str, Attempt]) -> list[Comparison]:
    """Every fitted law that has a constant."""
    found = []
    slack = NORMAL_95 * truth.standard_error
    for each in tried.values():
        law = law_of(each.law, each.x)
        if each.fit is None or law is None or law.irreducible is None:
            continue
        fitted = each.fit.parameters[law.irreducible]
        inside = fitted.low - slack <= truth.loss <= fitted.high + slack
        found.append(Comparison(each.title, fitted, inside))
    return found


def reducible(truth: Truth, each: Attempt) -> list[Reducible]:
    """Every point that a law with a constant was fitted to, its reducible loss with the 95% interval of the draws."""
    law = law_of(each.law, each.x)
    if each.fit is None or law is None or law.irreducible is None:
        return []
    points = each.found.points
    names = list(each.fit.parameters)
    value = _above(law, points, {name: each.fit.value(name) for name in names})
    drawn = _above(law, points, {name: each.fit.draws[name][:, None] for name in names})
    return [
        Reducible(
            str(points.group[at]),
            float(points.params[at]),
            float(points.tokens[at]),
            float(points.loss[at]) - truth.loss,
            interval(float(value[at]), drawn[:, at]),
        )
        for at in range(len(points))
    ]


def _above(law: Law, points: LossPoints, constants: dict[str, Any]) -> np.ndarray:
    """The law at the points without its constant: [points], or [draws, points] for columns of draws."""
    assert law.irreducible is not None
    none = constants | {law.irreducible: np.zeros_like(constants[law.irreducible])}
    with np.errstate(all="ignore"):
        return np.asarray(law.function(*(points.x(name) for name in law.inputs), **none))


def as_json(study: StudyRuns, counting: Counting, tried: Mapping[str, Attempt]) -> dict[str, Any]:
    """For fits.json; {} where nothing is known of the source."""
    truth = truth_of(study, counting)
    if truth is None:
        return {}
    fitted = [
        {"law": each.title, "irreducible": each.fitted.as_json(), "inside": each.inside}
        for each in comparisons(truth, tried)
    ]
    return {"known": dict(truth.known), "standard_error": truth.standard_error, "fitted": fitted}


def section(study: StudyRuns, counting: Counting, tried: Mapping[str, Attempt]) -> str:
    """The section of the report, its heading included; "" where nothing is known of the source."""
    truth = truth_of(study, counting)
    if truth is None:
        return ""
    compared = comparisons(truth, tried)
    rows = [
        (each.title, value_with_interval(each.fitted), f"{each.fitted.value - truth.loss:+.4f}",
         "yes" if each.inside else "no")
        for each in compared
    ]  # fmt: skip
    known = [
        (name.replace("_", " "), f"{value:.6f} nats")
        for name, value in truth.known.items()
        if isinstance(value, float)
    ]
    parts = [
        "<h2>Ground truth</h2>",
        f"<p>The source is known exactly: no model can lose less than {truth.loss:.4f} nats per token on "
        f"average. The held-out rows that were measured may differ from that by their luck, with a "
        f"standard error of {truth.standard_error:.4f}.</p>",
        definitions(known),
        table(("law", "irreducible loss [95% interval]", "less the truth", "contains it"), rows)
        if rows
        else "<p>No law with a constant was fitted.</p>",
        _reducible_table(truth, tried),
    ]
    return "".join(parts)


def _reducible_table(truth: Truth, tried: Mapping[str, Attempt]) -> str:
    """Of the law of N and D where there is one, else of L(N)."""
    each = tried.get("surface") or tried.get("loss-by-params")
    rows = reducible(truth, each) if each else []
    if not rows or each is None:
        return ""
    shown = [
        (row.label, short(row.params), short(row.tokens), f"{row.measured:.4f}",
         value_with_interval(row.fitted))
        for row in rows
    ]  # fmt: skip
    header = ("run", "N", "tokens", "loss less the least", "fitted reducible loss [95%]")
    return (
        f"<p>Loss above the least possible one, the KL divergence of source and model, and what "
        f"{safe(each.title)} says of it:</p>{table(header, shown, tall=len(shown) > 14)}"
    )
