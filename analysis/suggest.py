"""The next runs: those that shrink a named interval most per FLOP, as a study file.

The interval is of a constant of the law (`alpha`, `E`, `a`, ...) or of the loss predicted for a target.
`analysis.design` chooses among shapes of the papers' families and numbers of tokens about those that
were trained; nothing is refitted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.design import Candidates, Design, best_design
from analysis.ensemble import mixture
from analysis.estimate import Estimate, Fit, interval, plain
from analysis.forecast import Forecaster, forecaster
from analysis.holdout import predicted_log_loss
from analysis.laws import FLOPS_PER_PARAMETER_AND_TOKEN
from analysis.points import LossPoints, PointSet, seed_noise
from analysis.predict import complete_target
from analysis.profiles import LINEAR
from analysis.runs import PARAM_COUNTS, Counting, of_variant, read_runs
from analysis.separable import CURVE_LAWS, SURFACE_LAWS, Law
from analysis.sources import fit_law, law_of, read_points
from analysis.study_file import (
    Template,
    shapes_near,
    study_text,
    template_of_domain,
    template_of_runs,
)
from megatron_ext.shape import ModelShape

SIZES_A_DECADE, BUDGETS_A_DECADE = 6, 4
BEYOND = 4.0
"""How many times the largest size and the most tokens of the data are still thought of."""
TAILS = (0.005, 0.995)
"""Draws beyond these quantiles are drawn in: a few wild ones must not choose the runs."""


@dataclass(frozen=True)
class Wish:
    """What is to be shrunk: a constant by name, or the loss at a target; and what it may cost."""

    constant: str | None
    target: Mapping[str, float]
    budget: float | None  # FLOPs of all runs together
    runs: int

    @property
    def text(self) -> str:
        """As the study's question says it."""
        if self.constant is not None:
            return self.constant
        return "the loss at " + " and ".join(f"{key} = {n:.3g}" for key, n in self.target.items())


def check_wish(law: str, wish: Wish) -> None:
    """Raise `ValueError` for a law whose next runs cannot be chosen, or for nothing or too much to
    shrink."""
    if law not in CURVE_LAWS and law not in SURFACE_LAWS:
        raise ValueError(
            f"suggest with --law {law}: this law does not say what a single run would measure; wanted "
            f"one of {', '.join((*SURFACE_LAWS, *CURVE_LAWS))}. Choose one of these."
        )
    if (wish.constant is None) == (not wish.target):
        raise ValueError(
            f"suggest: {'nothing' if wish.constant is None else 'a constant and a target'} to shrink; "
            "wanted --shrink NAME for the interval of a constant, or --flops C, --params N, --tokens D "
            "for that of a prediction. Give one of them."
        )
    if wish.budget is not None and not 0 < wish.budget < float("inf"):
        raise ValueError(
            f"--budget = {wish.budget:g}: not a positive number; wanted FLOPs for all new runs."
        )
    if wish.runs < 1:
        raise ValueError(f"--runs = {wish.runs}: wanted at least 1 run to suggest.")


def _check_draws(count: int) -> None:
    if count < 2:
        raise ValueError(
            f"suggest: {count} usable bootstrap draws; wanted at least 2, better 1000, to know what varies with what. "
            "Raise --bootstrap."
        )


def suggest(
    source: Path, law_name: str, x: str, counting: Counting, wish: Wish, draws: int, seed: int,
    domain: str | None, rate: str | None, out: Path,
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """(what to print, the study file). Raises `ValueError` where the points carry no law, no run fits
    the budget, or nobody says of which domain the runs are."""
    check_wish(law_name, wish)
    _check_draws(draws)
    law = law_of(law_name, x)
    assert law is not None
    found = read_points(source, law_name, x, counting)
    template, count = _template(source, counting, domain, rate)
    fit = fit_law(found, law_name, x, draws, seed)
    now, drawn, ready = _quantity(found, fit, law, wish, draws, seed)
    shapes, tokens = _grid(found.points, law, template, count)
    candidates = _candidates(found, ready, wish, shapes, tokens, count, drawn)
    budget = wish.budget if wish.budget is not None else float(np.max(_flops(found.points)))
    design = best_design(candidates, budget, wish.runs)
    if design is None:
        raise ValueError(
            f"--budget = {budget:.3g} FLOPs: the cheapest run thought of costs "
            f"{candidates.flops.min():.3g}; wanted at least one run. Raise --budget."
        )
    chosen = [shapes[index] for index in sorted(design.shapes)]
    budgets = [float(tokens[index]) for index in sorted(design.budgets)]
    answer = _answer(fit, wish, now, design, chosen, budgets, template, count)
    notes = [
        f"Suggested from {found.source}, law {law.name}: these runs are expected to leave "
        f"{np.sqrt(design.remaining):.0%} of the 95% interval",
        f"of {wish.text}, for {design.flops:.3g} FLOPs in all. Shapes: {answer['shapes']}.",
    ]
    question = f"How well is {wish.text} known after these runs? (law {law.name})"
    return answer, study_text(template, question, chosen, budgets, notes, out)


def _template(
    source: Path, counting: Counting, domain: str | None, rate: str | None
) -> tuple[Template, str]:
    """What the study will say beside shapes and tokens, and the attribute of a shape that N counts."""
    count = PARAM_COUNTS[counting.params]
    if source.is_dir():
        study = of_variant(read_runs(source, counting.split, counting.include), counting.variant)
        return template_of_runs(study.runs, source.resolve().name, rate), count
    if domain is None:
        raise ValueError(
            f"{source}: a table does not say of which domain its runs are; wanted --domain NAME for "
            "the study file. `python -m data_prep list` names them."
        )
    return template_of_domain(domain, source.stem, rate), count


def _quantity(
    found: PointSet, fit: Fit, law: Law, wish: Wish, draws: int, seed: int
) -> tuple[Estimate, np.ndarray, Forecaster]:
    """The interval that is to shrink (of a prediction: what constants and forms leave open), the
    draws of its quantity, and the fitted ensemble."""
    ready = forecaster(found, law, draws, seed)
    if wish.constant is None:
        target = complete_target(law, ready, wish.target)
        row = _row(**{name: np.array([value]) for name, value in target.items()})
        drawn = np.concatenate(
            [
                predicted_log_loss(each.law, theta, each.units, row)[:, 0]
                for each, theta in mixture(ready.members, draws, seed)
            ]
        )
        return interval(float(ready.at(row).loss[0]), np.exp(drawn)), drawn, ready
    known = {**fit.parameters, **fit.derived}
    if wish.constant not in known:
        raise ValueError(
            f"--shrink {wish.constant}: the law {law.name!r} has no such constant; wanted one of "
            f"{', '.join(known)}."
        )
    now = known[wish.constant]
    if wish.constant in fit.diagnostics["undetermined"]:
        raise ValueError(
            f"--shrink {wish.constant}: no point depends on it in the best fit, so it has no interval; wanted "
            "a constant that the points say something of. Shrink another one, or add runs first."
        )
    if not (np.isfinite(now.value) and (wish.constant in LINEAR or now.value > 0)):
        raise ValueError(
            f"--shrink {wish.constant}: the fitted value is {now.value:g}; wanted one that is positive and "
            "finite, so that its interval has a width in its own units. Shrink another constant, or the loss "
            "at a target."
        )
    values = fit.draws[wish.constant]
    with np.errstate(all="ignore"):
        drawn = values if wish.constant in LINEAR else np.log(values)
    return now, drawn, ready


def _row(**columns: np.ndarray) -> LossPoints:
    label = np.array([f"run {index}" for index in range(len(next(iter(columns.values()))))])
    return LossPoints.of(label, label, **columns)


def _flops(points: LossPoints) -> np.ndarray:
    return FLOPS_PER_PARAMETER_AND_TOKEN * points.params * points.tokens


def _grid(
    points: LossPoints, law: Law, template: Template, count: str
) -> tuple[list[ModelShape], np.ndarray]:
    """Shapes and numbers of tokens from the least of the data to BEYOND the most; for a law of one
    variable the other stays at its largest."""
    for name in ("params", "tokens"):
        if not points.known(name):
            raise ValueError(
                f"suggest: no {name} in the points; wanted params and tokens, so that a run and its "
                f"cost are known. Add a column {name}."
            )

    def range_of(name: str, a_decade: int) -> np.ndarray:
        low, high = float(points.x(name).min()), float(points.x(name).max())
        if name not in law.inputs:
            return np.array([high])
        steps = max(2, round(a_decade * np.log10(BEYOND * high / low)) + 1)
        return np.geomspace(low, BEYOND * high, steps)

    if law.inputs == ("flops",):
        raise ValueError(
            f"suggest with --law {law.name} --x flops: many runs have one compute; wanted --x params "
            "or --x tokens, or a law of N and D."
        )
    shapes = shapes_near(template, range_of("params", SIZES_A_DECADE), count)
    tokens = [float(f"{value:.2g}") for value in range_of("tokens", BUDGETS_A_DECADE)]
    return shapes, np.unique(tokens)


def _candidates(
    found: PointSet, ready: Forecaster, wish: Wish, shapes: list[ModelShape], tokens: np.ndarray,
    count: str, drawn: np.ndarray,
) -> Candidates:  # fmt: skip
    """What every draw of the ensemble says of every run that could be made."""
    sizes = np.array([float(getattr(each, count)) for each in shapes])
    params, budget = (each.ravel() for each in np.meshgrid(sizes, tokens, indexing="ij"))
    row = _row(params=params, tokens=budget)
    first = ready.members[0]
    parts = (
        mixture(ready.members, ready.draws, ready.seed)
        if wish.constant is None
        else [(first, first.draws)]
    )
    seen = np.concatenate(
        [predicted_log_loss(each.law, theta, each.units, row) for each, theta in parts]
    )
    usable = np.isfinite(drawn) & np.all(np.isfinite(seen), axis=1)
    _check_draws(int(usable.sum()))
    quantity = np.clip(drawn[usable], *np.quantile(drawn[usable], TAILS))
    logs = np.clip(seen[usable], *np.quantile(seen[usable], TAILS, axis=0))
    noise = seed_noise(found.points) if found.points.known("tokens") else None
    least = noise.relative_sd if noise is not None else 0.0
    shape = (len(sizes), len(tokens))
    return Candidates(
        flops=(FLOPS_PER_PARAMETER_AND_TOKEN * params * budget).reshape(shape),
        log_loss=logs.reshape(len(logs), *shape),
        quantity=quantity,
        noise_sd=max(first.residual_sd, least, 1e-6),
    )


def _answer(
    fit: Fit, wish: Wish, now: Estimate, design: Design, shapes: list[ModelShape],
    tokens: list[float], template: Template, count: str,
) -> dict[str, Any]:  # fmt: skip
    """The JSON: the interval now and as expected, the runs and what they cost."""
    share = float(np.sqrt(design.remaining))
    linear = wish.constant in LINEAR

    def shrunk(end: float) -> float:
        if linear:
            return now.value + share * (end - now.value)
        return float(now.value * (end / now.value) ** share)

    runs = [
        {
            "num_layers": shape.num_layers,
            "hidden_size": shape.hidden_size,
            "params": getattr(shape, count),
            "tokens": budget,
            "flops": FLOPS_PER_PARAMETER_AND_TOKEN * getattr(shape, count) * budget,
        }
        for shape in shapes
        for budget in tokens
    ]
    return {
        "law": fit.law,
        "shrinks": wish.text,
        "interval_now": now.as_json(),
        "interval_expected": Estimate(now.value, shrunk(now.low), shrunk(now.high)).as_json(),
        "width_expected": plain(share),
        "runs": runs,
        "flops": plain(design.flops),
        "study": template.name,
        "shapes": f"of the family {template.family} nearest to each N, hidden_size / num_layers about "
        f"{template.proportion:.3g}",
        "warnings": list(fit.warnings),
        "fit": fit.as_json(),
    }
