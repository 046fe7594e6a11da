"""The critical batch from runs at several batch sizes: B_crit(L) = B*/L^(1/aB).

To reach a loss L at batch B takes S = S_min + E_min/B steps, which is the hyperbola (S/S_min -
1)(E/E_min - 1) = 1 with E = B S (McCandlish et al. 2018, 1812.06162, eq 2.11; Kaplan et al. 2020,
section 5.1). A hyperbola is of one model size: for each and each level of the loss S_min and E_min follow
by non-negative least squares of relative errors. B_crit = E_min/S_min then falls as a power of the loss,
one law for all sizes (Kaplan et al. 2020, section 5.1), from which each size's offset is reported. A B_crit
outside the batches that were trained is extrapolated: it is marked, and left out of the law where it lies
farther outside than the batches reach.
"""

import time
from typing import Any

import numpy as np

from analysis.batch_levels import FEWEST_BATCHES, Level, hyperbola, levels
from analysis.bootstrap import WEBB
from analysis.doubts import no_scatter
from analysis.estimate import Estimate, Fit, interval
from analysis.laws import critical_batch
from analysis.line_holdout import line_holdouts
from analysis.points import PointSet
from analysis.separable import CRITICAL_BATCH

SAME_BATCH = 1.1
"""A size whose critical batches are within this factor of the common law is not said to differ."""
FORMULA = "S = S_min + E_min/B at each loss; B_crit = E_min/S_min = B_star/L^(1/aB)"


def fit_critical_batch(found: PointSet, draws: int, seed: int, compare: bool = False) -> Fit:
    """B* and aB, with the S_min, E_min and B_crit of every level of the loss; `compare` adds the
    hold-outs, of lower losses than those of a fit."""
    began = time.perf_counter()
    known = levels(found.points)
    if len(known) < 2:
        raise ValueError(
            f"{found.source}: {len(known)} losses that {FEWEST_BATCHES} or more batch sizes of one model "
            "size reach; wanted at least 2. Give the steps to the same losses at several batch sizes, or "
            "learning curves with a column group that names the run of each row."
        )
    every_end = np.array([hyperbola(each.batch, each.steps, each.weight) for each in known])
    every, outside = (
        known,
        np.array([_outside(*each) for each in zip(known, every_end, strict=True)]),
    )
    near = outside <= 1
    known, ends = [each for each, kept in zip(every, near, strict=True) if kept], every_end[near]
    loss = np.array([each.loss for each in known])
    weight = np.array([each.mean_weight for each in known])
    best = _power(loss, ends, weight)
    samples = _samples(known, ends, draws, seed) if known else []
    each_draw = [_power(loss, sample, weight) for sample in samples]
    drawn = {name: np.array([one[name] for one in each_draw]) for name in best}
    inverse = interval(1 / best["aB"], 1 / drawn["aB"])
    parameters = {"B_star": interval(best["B_star"], drawn["B_star"]), "aB": _inverted(inverse)}
    sizes = _sizes(known, ends, best, samples, each_draw)
    used = int(np.sum(np.all(ends > 0, axis=1)))
    return Fit(
        law=CRITICAL_BATCH,
        formula=FORMULA,
        x="loss",
        parameters=parameters,
        objective={
            "name": "root mean square of S/S_fitted - 1",
            "value": _missed(every, every_end),
        },
        points_used=sum(len(each.batch) for each in every),
        points_left_out=found.left_out,
        bootstrap={"method": "wild cluster" if draws else "none", "draws": draws, "seed": seed},
        diagnostics={
            "levels": [
                _as_json(*each) | {"extrapolated": bool(out > 0)}
                for *each, out in zip(every, every_end, outside, strict=True)
            ],
            "sizes": sizes,
        }
        | _holdouts(loss, ends, compare),
        warnings=(
            *found.remarks,
            *no_scatter(_missed(every, every_end)),
            *_about_exponent(inverse),
            *_about_range(outside, loss, ends, weight, outside[near]),
            *_warnings(known, used, sizes),
        ),
        seconds=time.perf_counter() - began,
        draws=drawn,
    )


def _missed(levels: list[Level], ends: np.ndarray) -> float:
    """Root of the weighted mean square of S/S_fitted - 1."""
    error = np.concatenate([_residual(*each) for each in zip(levels, ends, strict=True)])
    weight = np.concatenate([each.weight for each in levels])
    return float(np.sqrt(np.average(error**2, weights=weight)))


def _holdouts(loss: np.ndarray, ends: np.ndarray, compare: bool) -> dict[str, Any]:
    with np.errstate(divide="ignore", invalid="ignore"):
        crit = np.where(np.all(ends > 0, axis=1), ends[:, 1] / ends[:, 0], np.nan)
    return {"holdout": line_holdouts(loss, crit, "B_crit", falling=True)} if compare else {}


def _as_json(level: Level, end: np.ndarray) -> dict[str, Any]:
    return {
        "params": level.params,
        "loss": level.loss,
        "batches": len(level.batch),
        "batch": level.batch,
        "steps": level.steps,
        "min_steps": float(end[0]),
        "min_samples": float(end[1]),
        "critical_batch": float(end[1] / end[0]) if end[0] > 0 else None,
    }


def _outside(level: Level, end: np.ndarray) -> float:
    """How far B_crit lies outside the batches of a level, in log, as a share of the log of their range: 0 inside, and
    where there is no B_crit."""
    if not np.all(end > 0):
        return 0.0
    at, batch = np.log(end[1] / end[0]), np.log(level.batch)
    return float(max(batch.min() - at, at - batch.max(), 0.0) / (batch.max() - batch.min()))


def _about_range(
    outside: np.ndarray, loss: np.ndarray, ends: np.ndarray, weight: np.ndarray, kept: np.ndarray
) -> list[str]:
    """What is said of critical batches that were extrapolated: of all levels, and of those in the law."""
    if not np.any(outside > 0):
        return []
    inside = _power(loss[kept == 0], ends[kept == 0], weight[kept == 0])["aB"]
    alone = (
        f"the others alone give aB = {inside:.3g}"
        if np.isfinite(inside)
        else "the others alone give no aB"
    )
    return [
        f"critical_batch_extrapolated: at {np.sum(outside > 0)} of {len(outside)} losses B_crit lies outside the "
        f"batches that were trained, at {np.sum(outside > 1)} of them farther than the batches reach, which are left "
        f"out of B*/L^(1/aB); {alone}. Train smaller or larger batches."
    ]


def _residual(level: Level, end: np.ndarray) -> np.ndarray:
    return level.steps / (end[0] + end[1] / level.batch) - 1


def _power(loss: np.ndarray, ends: np.ndarray, weight: np.ndarray) -> dict[str, float]:
    """B* and aB by weighted least squares of log B_crit on log L, over levels where both ends are known."""
    known = np.all(ends > 0, axis=1)
    if known.sum() < 2:
        return {"B_star": float("nan"), "aB": float("nan")}
    x, y, weight = np.log(loss[known]), np.log(ends[known, 1] / ends[known, 0]), weight[known]
    mean_x, mean_y = (float(np.average(each, weights=weight)) for each in (x, y))
    dx = weight * (x - mean_x)
    slope = float(np.sum(dx * (y - mean_y)) / np.sum(dx * (x - mean_x)))
    with np.errstate(over="ignore"):
        return {
            "B_star": float(np.exp(mean_y - slope * mean_x)),
            "aB": -1 / slope if slope else float("nan"),
        }


def _inverted(inverse: Estimate) -> Estimate:
    """aB from 1/aB, which the fit finds: an interval of it that holds 0 has no inverse, so that the
    percentiles of aB itself would run through a pole. aB is open where 1/aB is not known to be positive."""
    if np.isnan(inverse.low):
        ends = np.nan, np.nan
    elif inverse.low > 0:
        ends = 1 / inverse.high, 1 / inverse.low
    else:
        ends = -np.inf, np.inf
    return Estimate(1 / inverse.value, *ends)


def _about_exponent(inverse: Estimate) -> list[str]:
    least = inverse.value if np.isnan(inverse.low) else inverse.low
    if not least <= 0:
        return []
    return [
        f"aB_not_identified: the 95% interval of 1/aB = {inverse.value:.3g} [{inverse.low:.3g}, "
        f"{inverse.high:.3g}] reaches 0: these runs do not say whether the critical batch grows as the "
        "loss falls."
    ]


def _samples(known: list[Level], ends: np.ndarray, draws: int, seed: int) -> list[np.ndarray]:
    """S_min and E_min of every level in each draw [levels, 2]: each run's relative errors, at all levels
    together, times one of Webb's weights; their size is drawn too (chi-square), since runs are few."""
    rng = np.random.default_rng(seed)
    runs = int(max(each.run.max() for each in known)) + 1
    free = max(len(np.unique(np.concatenate([each.run for each in known]))) - 2, 1)
    curve = [end[0] + end[1] / each.batch for each, end in zip(known, ends, strict=True)]
    grown = [_residual(e, end) * np.sqrt(len(e.batch) / max(len(e.batch) - 2, 1))
             for e, end in zip(known, ends, strict=True)]  # fmt: skip
    found = []
    for _ in range(draws):
        weight = rng.choice(np.concatenate([WEBB, -WEBB]), runs)
        weight = weight * np.sqrt(free / rng.chisquare(free))
        sample = [
            hyperbola(each.batch, at * np.maximum(1 + weight[each.run] * error, 1e-3), each.weight)
            for each, at, error in zip(known, curve, grown, strict=True)
        ]
        found.append(np.array(sample))
    return found


def _sizes(
    known: list[Level], ends: np.ndarray, best: dict[str, float], samples: list[np.ndarray],
    each_draw: list[dict[str, float]],
) -> list[dict[str, Any]]:  # fmt: skip
    """Of each model size its levels, its own B* and aB, and the mean of log B_crit less that of the
    common law, with the 95% interval of the draws."""
    params = np.array([each.params for each in known])
    loss = np.array([each.loss for each in known])
    weight = np.array([each.mean_weight for each in known])
    found = []
    for size in np.unique(params):
        own = np.isnan(params) if np.isnan(size) else params == size

        def offset(ends: np.ndarray, law: dict[str, float], own: np.ndarray = own) -> float:
            usable = own & np.all(ends > 0, axis=1)
            if not usable.any():
                return float("nan")
            crit = ends[usable, 1] / ends[usable, 0]
            off = np.log(crit / critical_batch(loss[usable], **law))
            return float(np.average(off, weights=weight[usable]))

        drawn = np.array([offset(s, law) for s, law in zip(samples, each_draw, strict=True)])
        found.append(
            {"params": float(size), "levels": int(own.sum()), **_power(loss[own], ends[own], weight[own]),
             "offset": vars(interval(offset(ends, best), drawn))}
        )  # fmt: skip
    return found


def _warnings(known: list[Level], used: int, sizes: list[dict[str, Any]]) -> list[str]:
    said = _about_sizes(sizes)
    if used < len(known):
        said.append(
            f"levels_not_identified: at {len(known) - used} of {len(known)} losses the batches lie all "
            "far above or all far below the critical one; they are left out of B*/L^(1/aB)."
        )
    if used < 3:
        said.append(
            f"few_levels: {used} losses with a critical batch; wanted at least 3 for an exponent that "
            "can be checked."
        )
    if known and max(len(np.unique(each.batch)) for each in known) < 4:
        said.append("few_batches: three batch sizes; the hyperbola itself cannot be tested.")
    return said


def _about_sizes(sizes: list[dict[str, Any]]) -> list[str]:
    """What is assumed of model sizes, and whether the points speak against it."""
    if not sizes:
        return []
    if np.isnan(sizes[0]["params"]):
        return [
            "size_unknown: nobody says of which model size a row is (no column params), so all are taken "
            "as of one; of several sizes the critical batch would be wrong."
        ]
    if len(sizes) == 1:
        return []
    alone = "; ".join(f"N = {each['params']:.3g}: aB = {each['aB']:.3g}" for each in sizes)
    said = [
        f"sizes_pooled: each hyperbola is of one size, and B_crit(L) of all {len(sizes)} sizes is one "
        f"law, since it depends on the loss alone (Kaplan et al. 2020, section 5.1). Alone {alone}."
    ]
    off = [
        each
        for each in sizes
        if (each["offset"]["low"] > 0 or each["offset"]["high"] < 0)
        and abs(each["offset"]["value"]) > np.log(SAME_BATCH)
    ]
    if off:
        named = ", ".join(
            f"N = {each['params']:.3g} by a factor of {np.exp(each['offset']['value']):.2f}"
            for each in off
        )
        said.append(
            f"sizes_differ: the critical batch at one loss differs from that of the common law for {named} "
            "(95%); quote it by size."
        )
    return said
