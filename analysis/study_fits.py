"""Every law that a study's runs allow, fitted; and why the others could not be."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np

from analysis.batch_levels import FEWEST_BATCHES
from analysis.estimate import Fit
from analysis.isoflop import budgets
from analysis.points import LossPoints, PointSet, SeedNoise, distinct, seed_noise
from analysis.repeated_data import ONE_EPOCH
from analysis.runs import (
    FLOP_COUNTS,
    PARAM_COUNTS,
    Counting,
    StudyRuns,
    of_variant,
    refuse_variants,
)
from analysis.separable import (
    BROKEN,
    COUPLED,
    CRITICAL_BATCH,
    DATA_CONSTRAINED,
    FRONTIER,
    ISOFLOP,
    LEARNING_CURVE,
    LOGARITHM,
    POWER,
    POWER_CONSTANT,
    SURFACE,
    SURFACE_KAPLAN,
    Law,
)
from analysis.sources import COMPARES_VARIANTS, fit_law, study_points
from analysis.words import OF_THE_OPTIMUM, has_warning


@dataclass(frozen=True)
class Attempt:
    """One law tried on one study: the points, and either the fit or the reason for none."""

    name: str
    title: str
    law: str
    x: str
    found: PointSet
    fit: Fit | None
    problem: str = ""


@dataclass(frozen=True)
class Trial:
    """A law that every report tries, or with `allows` only where the design of the study is made for
    it: what is missing for it, "" if nothing."""

    name: str
    title: str
    law: str
    x: str
    allows: Callable[[LossPoints], str] = lambda points: ""


def _for_surface(points: LossPoints) -> str:
    sizes, tokens = len(np.unique(points.params)), len(np.unique(points.tokens))
    cells = len(distinct(points.params, points.tokens)[0])
    if sizes >= 3 and tokens >= 3 and cells >= len(SURFACE.parameters) + 2:
        return ""
    return (
        f"{sizes} sizes, {tokens} token budgets, {cells} pairs of them; wanted at least 3, 3 and "
        f"{len(SURFACE.parameters) + 2} for a law of N and D"
    )


def _for_coupled(points: LossPoints) -> str:
    cells = len(distinct(points.params, points.tokens)[0])
    if cells < FEWEST_FOR_COUPLED:
        return f"{cells} pairs of size and tokens; wanted at least {FEWEST_FOR_COUPLED} for the outer exponent"
    return _for_surface(points)


def _for_form(law: Law) -> Callable[[LossPoints], str]:
    """A form of L(N) beside the power laws: enough sizes to tell it from them."""

    def allows(points: LossPoints) -> str:
        sizes, wanted = len(np.unique(points.params)), len(law.parameters) + SPARE_SIZES
        return "" if sizes >= wanted else f"{sizes} sizes; wanted at least {wanted}"

    return allows


def _for_repeats(points: LossPoints) -> str:
    repeated = int(np.sum(points.tokens > ONE_EPOCH * points.unique_tokens))
    subsets = len(np.unique(points.unique_tokens))
    runs = len(distinct(points.params, points.tokens, points.unique_tokens)[0])
    wanted = len(DATA_CONSTRAINED.parameters) + SPARE_SIZES
    if repeated >= 3 and subsets >= 3 and runs >= wanted:
        return _for_surface(points)
    return (
        f"{repeated} of {runs} different runs met tokens twice, {subsets} amounts of unique tokens; "
        f"wanted at least 3 of {wanted}, and 3"
    )


def _for_isoflop(points: LossPoints) -> str:
    count = sum(len(each.log_params) >= 3 for each in budgets(points)) if len(points) else 0
    wanted = "wanted at least 2 compute budgets with 3 or more sizes each"
    return "" if count >= 2 else f"{count} compute budgets with 3 or more sizes; {wanted}"


def _for_tokens(points: LossPoints) -> str:
    count = len(np.unique(points.tokens))
    return "" if count >= 2 else f"the largest size has {count} token budgets; wanted several"


def _for_curves(points: LossPoints) -> str:
    runs, sizes = len(np.unique(points.group)), len(np.unique(points.params))
    if sizes >= 3 and len(points) >= 3 * runs:
        return ""
    return (
        f"{len(points)} evaluations at the full learning rate, of {sizes} sizes; wanted learning "
        "curves of at least 3 sizes"
    )


def _for_batches(points: LossPoints) -> str:
    count = len(np.unique(points.batch))
    return (
        "" if count >= FEWEST_BATCHES else f"{count} batch sizes; wanted {FEWEST_BATCHES} or more"
    )


FEWEST_FOR_COUPLED = 12
SPARE_SIZES = 3  # more than constants, so that the form can be tested (`few_points`)

TRIALS = (
    Trial("loss-by-params", "L(N)", POWER_CONSTANT.name, "params"),
    Trial("loss-by-params-pure", "L(N), no constant", POWER.name, "params"),
    Trial(
        "loss-by-params-logarithm",
        "L(N), a logarithm",
        LOGARITHM.name,
        "params",
        _for_form(LOGARITHM),
    ),
    Trial("loss-by-params-broken", "L(N) with a break", BROKEN.name, "params", _for_form(BROKEN)),
    Trial("loss-by-tokens", "L(D)", POWER_CONSTANT.name, "tokens", _for_tokens),
    Trial("surface", "L(N, D)", SURFACE.name, "params", _for_surface),
    Trial("surface-kaplan", "L(N, D) of Kaplan", SURFACE_KAPLAN.name, "params", _for_surface),
    Trial("coupled", "L(N, D), coupled", COUPLED.name, "params", _for_coupled),
    Trial(
        "data-constrained",
        "L(N, D) of repeated data",
        DATA_CONSTRAINED.name,
        "params",
        _for_repeats,
    ),
    Trial("isoflop", "isoFLOP", ISOFLOP, "flops", _for_isoflop),
    Trial("frontier", "frontier", FRONTIER, "flops"),
    Trial("learning-curve", "L(N, S)", LEARNING_CURVE.name, "steps", _for_curves),
    Trial("critical-batch", "B_crit(L)", CRITICAL_BATCH, "loss", _for_batches),
)


@dataclass(frozen=True)
class StudyFits:
    """What was tried on a study, by name, and which laws its design is not made for, and why."""

    tried: dict[str, Attempt]
    not_tried: dict[str, str]


def fit_study(study: StudyRuns, counting: Counting, draws: int, seed: int) -> StudyFits:
    """Try each law of `TRIALS` that the design allows. Raises `ValueError` for a variant that has no run."""
    of_variant(study, counting.variant)  # a wrong name is no law that the design does not allow
    tried: dict[str, Attempt] = {}
    not_tried: dict[str, str] = {}
    for trial in TRIALS:
        try:
            found = study_points(study, trial.law, trial.x, counting)
            missing = trial.allows(found.points)
        except ValueError as error:  # these runs are no points of this law
            missing = str(error).removeprefix(f"{study.path}: ")
        if missing:
            not_tried[trial.title] = missing
        else:
            tried[trial.name] = _of_one_variant(study, counting, trial, found) or attempt(
                trial, found, draws, seed
            )
    return StudyFits(tried, not_tried)


def _of_one_variant(
    study: StudyRuns, counting: Counting, trial: Trial, found: PointSet
) -> Attempt | None:
    """Points of several variants are drawn, but not fitted: what says so, or None."""
    if trial.law in COMPARES_VARIANTS:
        return None
    try:
        refuse_variants(study, counting.variant)
    except ValueError as error:
        return Attempt(trial.name, trial.title, trial.law, trial.x, found, None, str(error))
    return None


def attempt(
    trial: Trial, found: PointSet, draws: int, seed: int, only: Collection[str] | None = None
) -> Attempt:
    """Fit one law, or note why it could not be. With `only`, no more than these quantities, and
    without hold-outs."""
    compare = only is None
    try:
        fit = fit_law(found, trial.law, trial.x, draws, seed, compare=compare, only=only)
        problem = ""
    except ValueError as error:
        fit, problem = None, str(error)
    return Attempt(trial.name, trial.title, trial.law, trial.x, found, fit, problem)


def study_noise(tried: dict[str, Attempt]) -> SeedNoise | None:
    """Seed noise of the lowest losses, None where no run was repeated or none is usable for L(N)."""
    by_params = tried.get("loss-by-params")
    return None if by_params is None else seed_noise(by_params.found.points)


# --- the same fits in every counting convention ---

CONVENTION_DRAWS = 200


@dataclass(frozen=True)
class Convention:
    """One exponent of one law, as it comes out in one way of counting N and C."""

    law: str  # the attempt's name
    exponent: str
    params: str
    flops: str
    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, object]:
        """As in fits.json."""
        return dict(vars(self))


EXPONENTS = {
    "loss-by-params": ("exponent",),
    "surface": ("alpha", "a"),
    "surface-kaplan": ("aN", "a"),
    "coupled": ("a",),
    "isoflop": ("params_exponent",),
    "frontier": ("exponent", "params_exponent"),
    "learning-curve": ("aN",),
}
"""Which exponents move with the convention. L(D) counts neither N nor C."""

COUNTS_FLOPS = ("isoflop", "frontier")
"""Laws of measured compute; those of N and D take C as 6 N D with the N at hand."""


def by_convention(
    study: StudyRuns,
    counting: Counting,
    fits: StudyFits,
    rejected: Collection[str],
    draws: int,
    seed: int,
) -> list[Convention]:
    """Every exponent of the fitted laws, less those that the points reject, for each N (without embeddings, with
    head, total) and C (6 N D,
    exact): one sweep gives very different ones (Porian et al. 2024; Pearce & Song 2024)."""
    rows = []
    for trial in TRIALS:
        own = fits.tried.get(trial.name)
        if trial.name not in EXPONENTS or trial.name in rejected:
            continue
        if own is None or own.fit is None:
            continue
        for params in PARAM_COUNTS:
            for flops in FLOP_COUNTS if trial.name in COUNTS_FLOPS else ("6nd",):
                other = replace(counting, params=params, flops=flops)
                fit: Fit | None = own.fit
                if other != counting:
                    found = study_points(study, trial.law, trial.x, other)
                    few, wanted = min(draws, CONVENTION_DRAWS), EXPONENTS[trial.name]
                    fit = attempt(trial, found, few, seed, wanted).fit
                rows += _rows(trial.name, fit, params, flops)
    return rows


def _rows(name: str, fit: Fit | None, params: str, flops: str) -> list[Convention]:
    nothing = (float("nan"),) * 3
    found = {} if fit is None else {**fit.parameters, **fit.derived}
    if fit is not None and has_warning(fit, "optimum_not_identified"):
        found = {key: each for key, each in found.items() if not key.startswith(OF_THE_OPTIMUM)}
    rows = []
    for exponent in EXPONENTS[name]:
        each = found.get(exponent)
        ends = nothing if each is None else (each.value, each.low, each.high)
        rows.append(Convention(name, exponent, params, flops, *ends))
    return rows
