"""What the variants of one ladder are compared by: how each was trained, the losses of equal shapes, and the
exponent of N_opt(C) after each correction of the training and in each way of counting.

Porian et al. 2024 (2406.19146) go from Kaplan's exponent to Hoffmann's by such corrections. Here, as there,
every learning curve gives its loss at budgets a factor 2 apart (interpolated in log C and log L), and the
minima of isoFLOP curves through these give N_opt; where the rate was planned for each length, the ends
of the runs take the place of learning curves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.downloads import with_mid_schedule
from analysis.estimate import Estimate
from analysis.fit_isoflop import WHY, fit_isoflop
from analysis.guards import DECAYING, schedule_kind
from analysis.points import LossPoints, PointSet
from analysis.runs import (
    Counting,
    StudyRuns,
    all_points,
    curve_points,
    of_variant,
    only_data_varies,
    variants_of,
    warmup_tokens,
)
from launch.results import RunResult

FEWEST_SIZES = 4
DRAWS = 200
NOTHING = Estimate(np.nan, np.nan, np.nan)
TOO_FEW_MEET = (
    f"at none of the budgets, a factor 2 apart, is there a loss of {FEWEST_SIZES} sizes. Train the small "
    "sizes longer, or choose sizes nearer to each other."
)
COUNTINGS = {
    "N and C without the head": ("non-embedding", "6nd"),
    "with the head": ("non-embedding-and-head", "6nd"),
    "with head and attention": ("non-embedding-and-head", "exact"),
}
"""What is counted -> `Counting.params`, `Counting.flops`: Kaplan's, Porian's, and with attention too."""

WARM_UP, HORIZON, CONSTANT = "warm-up by size", "rate to horizon", "constant rate"
"""What a correction is called, in the order in which Porian et al. make them."""

PLAIN, HEAD, EXACT = COUNTINGS
PUBLISHED: dict[tuple[str, str], Estimate] = {
    ("", PLAIN): Estimate(0.835, 0.824, 0.846),
    ("", HEAD): Estimate(0.706, 0.691, 0.717),
    ("", EXACT): Estimate(0.717, np.nan, np.nan),
    ("warm-up by size", HEAD): Estimate(0.602, 0.591, 0.617),
    ("warm-up by size", EXACT): Estimate(0.622, np.nan, np.nan),
    ("warm-up by size, rate to horizon", HEAD): Estimate(0.571, 0.560, 0.589),
    ("warm-up by size, rate to horizon", EXACT): Estimate(0.577, np.nan, np.nan),
    ("warm-up by size, constant rate", HEAD): Estimate(0.497, 0.491, 0.505),
    ("warm-up by size, constant rate", EXACT): Estimate(0.505, np.nan, np.nan),
}
"""(how it was trained, what is counted) -> a on RefinedWeb with its 95% interval (Porian et al. 2024; the
last of these with rate, batch and beta2 tuned for each size)."""


@dataclass(frozen=True)
class Correction:
    """One way to train the ladder: what sets it apart, and a of N_opt ~ C^a in each way of counting.

    `problem`: why an exponent was not measured, "" where all were.
    """

    variant: str
    how: str
    exponents: Mapping[str, Estimate]
    problem: str = ""

    @property
    def is_measured(self) -> bool:
        """Whether there is an exponent in at least one way of counting."""
        return any(np.isfinite(each.value) for each in self.exponents.values())

    def published(self) -> dict[str, Estimate]:
        """The published exponents of runs that were trained so."""
        return {
            name: PUBLISHED[self.how, name] for name in COUNTINGS if (self.how, name) in PUBLISHED
        }

    def as_json(self) -> dict[str, object]:
        """As in fits.json."""
        shown = {name: each.as_json() for name, each in self.exponents.items()}
        return {
            "variant": self.variant,
            "how": self.how,
            "exponents": shown,
            "problem": self.problem,
        }


@dataclass(frozen=True)
class Trained:
    """One variant on the shapes that all variants share: one entry of each column a run."""

    variant: str
    runs: tuple[RunResult, ...]
    summed_rate: np.ndarray
    loss: np.ndarray  # at the end


def by_variant(study: StudyRuns) -> dict[str, list[RunResult]]:
    """The usable runs of each variant, in the order of first runs' names."""
    found: dict[str, list[RunResult]] = {}
    for run in study.runs:
        found.setdefault(str(run.config.get("variant", "")), []).append(run)
    return found


def schedules_compared(study: StudyRuns, split: str) -> list[Trained]:
    """Variants that differ in schedule or rate, on the largest shape that all of them trained: what
    figure 22 of Kaplan et al. 2020 compares. Empty where there are fewer than two."""
    groups = by_variant(study)
    ways = {
        str([runs[0].config.get(name) for name in ("schedule", "optimizer")])
        for runs in groups.values()
    }
    batches = {str(run.config.get("batch")) for run in study.runs}
    if len(groups) < 2 or len(ways) < 2 or len(batches) > 1 or only_data_varies(study):
        return []
    sizes = set.intersection(*({_size(run) for run in runs} for runs in groups.values()))
    if not sizes:
        return []
    largest = max(sizes)
    found = []
    for name, runs in groups.items():
        own = tuple(run for run in runs if _size(run) == largest)
        rates = np.array([summed_rate(run) for run in own])
        ends = np.array([float(run.eval_rows(split)["loss"][-1]) for run in own])
        found.append(Trained(name, own, rates, ends))
    return found


def _size(run: RunResult) -> tuple[float, float]:
    return run.counts["params_non_embedding"], float(run.config.get("tokens", 0))


def summed_rate(run: RunResult) -> float:
    """The learning rate summed over the steps of a run (Kaplan et al. 2020, figure 22)."""
    return float(np.sum(run.train["learning_rate"]))


def in_words(run: RunResult) -> str:
    """Schedule and warm-up of a run."""
    schedule = run.config.get("schedule", {})
    kind = schedule_kind(run) or "?"
    if kind == "wsd":
        kind += f", last {100 * float(schedule.get('cooldown_fraction', 0.2)):.0f}% down"
    if kind in DECAYING:
        kind += f" to {float(schedule.get('final_fraction', 0)):g}"
    return kind


def corrections(study: StudyRuns, counting: Counting, draws: int, seed: int) -> list[Correction]:
    """N_opt's exponent of each variant of a ladder of at least four sizes, in each way of counting, the
    least corrected first; none where the variants are no ways to train."""
    if counting.variant is not None or len(variants_of(study)) < 2 or only_data_varies(study):
        return []
    found = []
    for name, runs in by_variant(study).items():
        own = of_variant(study, name)
        if len({run.counts["params_non_embedding"] for run in runs}) < FEWEST_SIZES:
            continue
        exponents, problem = {}, ""
        for words, (params, flops) in COUNTINGS.items():
            way = replace(counting, params=params, flops=flops)
            exponents[words], why = _exponent(own, way, min(draws, DRAWS), seed)
            problem = problem or why
        found.append(Correction(name, _how(runs), exponents, problem))
    return sorted(found, key=_place)


def _place(each: Correction) -> tuple[int, bool, str]:
    """Where a variant stands in the ladder: by the number of its corrections, a constant rate last."""
    made = each.how.split(", ") if each.how else []
    return len(made), CONSTANT in made, each.variant


def _how(runs: Sequence[RunResult]) -> str:
    """How a variant was trained, in the words of `PUBLISHED`."""
    sizes = {run.counts["params_non_embedding"] for run in runs}
    warm = {(run.counts["params_non_embedding"], warmup_tokens(run.config)) for run in runs}
    said = [WARM_UP] if len({tokens for _, tokens in warm}) >= len(sizes) else []
    kinds = {schedule_kind(run) for run in runs}
    if kinds <= {"constant", "wsd"}:
        said.append(CONSTANT)
    elif _planned_for_lengths(runs):
        said.append(HORIZON)
    return ", ".join(said)


def _planned_for_lengths(runs: Sequence[RunResult]) -> bool:
    """Whether most sizes were trained to several lengths, each with its own decay."""
    decaying = [run for run in runs if schedule_kind(run) in DECAYING]
    sizes = {run.counts["params_non_embedding"] for run in decaying}
    lengths = {_size(run) for run in decaying}
    return bool(sizes) and len(lengths) >= 2 * len(sizes)


def _exponent(study: StudyRuns, counting: Counting, draws: int, seed: int) -> tuple[Estimate, str]:
    """The exponent, or why there is none."""
    if _planned_for_lengths(study.runs):
        found = all_points(study, counting)
        curve = np.array([f"{params}" for params in found.points.params])
    else:
        found = curve_points(study, with_mid_schedule(counting))
        curve = found.points.group
    equal = at_equal_compute(found, curve)
    if not len(equal.points):
        return NOTHING, TOO_FEW_MEET
    try:
        fit = fit_isoflop(equal, draws, seed, routes=False)
    except ValueError as error:
        return NOTHING, str(error)
    exponent = fit.parameters["params_exponent"]
    if np.isfinite(exponent.value):
        return exponent, ""
    named = [warning.partition(": ") for warning in fit.warnings]
    return exponent, " ".join(words for name, _, words in named if name in WHY)


def at_equal_compute(found: PointSet, curve: np.ndarray) -> PointSet:
    """The loss of each curve [rows of `found`] at budgets a factor 2 apart, where at least four sizes
    were measured on both sides of the budget. What is of one curve shares its luck: it is of one group."""
    points = found.points
    columns: dict[str, list[np.ndarray]] = {"params": [], "flops": [], "loss": []}
    curves = []
    if not len(points):
        return replace(found, points=points)
    grid = np.arange(np.log(points.flops.min()), np.log(points.flops.max()), np.log(2.0))
    for name in np.unique(curve):
        own = points.only(curve == name)
        order = np.argsort(own.flops, kind="stable")
        cost = np.log(own.flops[order])
        inside = grid[(grid >= cost[0]) & (grid <= cost[-1])]
        lowest = np.minimum.accumulate(own.loss[order])
        columns["flops"].append(np.exp(inside))
        columns["loss"].append(np.exp(np.interp(inside, cost, np.log(lowest))))
        columns["params"].append(np.full(len(inside), own.params[0]))
        curves.append(np.full(len(inside), str(name)))
    made = {name: np.concatenate(values) for name, values in columns.items()}
    labels = np.array(
        [f"{n:.3g} at {c:.3g}" for n, c in zip(made["params"], made["flops"], strict=True)]
    )
    tokens = made["flops"] / (6 * made["params"])
    every = LossPoints.of(np.concatenate(curves), labels, tokens=tokens, **made)
    budget = np.round(np.log(made["flops"]), 6)
    enough = [
        at
        for at in np.unique(budget)
        if len(np.unique(made["params"][budget == at])) >= FEWEST_SIZES
    ]
    return replace(found, points=every.only(np.isin(budget, enough)))
