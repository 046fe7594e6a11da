"""What laws are fitted to: columns of points, and the list of what was left out and why.

A point is one measured loss: of one finished run, or of one evaluation on its learning curve.
Points are kept as columns, so that a million rows stay cheap. A column that the source does not
have is all NaN and is never used: each law names the columns that it needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

NUMBER_COLUMNS = (
    "params", "tokens", "flops", "loss", "steps", "batch", "unique_tokens", "unique_params",
    "position",
)  # fmt: skip
X_NAMES = ("params", "tokens", "flops")
X_SYMBOLS = {"params": "N", "tokens": "D", "flops": "C", "position": "T"}


TOLD = 3  # of what was left out, in an error
TELL_APART = ("unique_tokens", "batch", "steps", "position")
"""Rows of one N and D that differ in one of these are no repeats."""


@dataclass(frozen=True)
class LeftOut:
    """A point or run that no fit used, and the reason, for the reader of the report."""

    point: str
    reason: str


@dataclass(frozen=True)
class LossPoints:
    """Columns of equal length. `loss` is in nats per token; `weight` multiplies a point's loss
    term in the objective; `group` names the run; `trunk` the run that its weights began as, itself
    for most: what shares a trunk shares its luck; `label` says where a point came from; `recipe` is
    equal for runs that differ in the seed alone, length included ("" where nobody says: a CSV)."""

    params: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    loss: np.ndarray
    steps: np.ndarray
    batch: np.ndarray  # in samples or tokens, as the source counts
    unique_tokens: np.ndarray
    unique_params: np.ndarray  # compute-optimal parameters for the unique tokens
    position: np.ndarray  # of the token in its context, from 1
    weight: np.ndarray
    group: np.ndarray
    trunk: np.ndarray
    label: np.ndarray
    recipe: np.ndarray

    def __post_init__(self) -> None:
        sizes = {field.name: len(getattr(self, field.name)) for field in fields(self)}
        assert len(set(sizes.values())) == 1, f"columns of different lengths: {sizes}"

    def __len__(self) -> int:
        return len(self.loss)

    @classmethod
    def of(cls, group: np.ndarray, label: np.ndarray, **columns: np.ndarray) -> "LossPoints":
        """Points of the named columns; the others are missing, weights are 1, recipes unknown, and each
        run is its own trunk."""
        missing = {name: np.full(len(group), np.nan) for name in NUMBER_COLUMNS}
        own = {"weight": np.ones(len(group)), "recipe": np.full(len(group), ""), "trunk": group}
        given = own | columns
        return cls(**(missing | given), group=group, label=label)

    def x(self, name: str) -> np.ndarray:
        """One column that a law depends on."""
        assert name in NUMBER_COLUMNS, name
        return getattr(self, name)

    def known(self, name: str) -> bool:
        """Whether the source has this column."""
        return bool(len(self)) and bool(np.all(np.isfinite(getattr(self, name))))

    def only(self, keep: np.ndarray | slice) -> "LossPoints":
        """The points where `keep` (a mask, indices or a slice) says so."""
        return replace(
            self, **{field.name: getattr(self, field.name)[keep] for field in fields(self)}
        )


@dataclass(frozen=True)
class PointSet:
    """Points ready for a fit, with what was left out on the way and remarks that a fit's reader
    must see (each begins with its name: `mid_schedule_points: ...`)."""

    source: str
    points: LossPoints
    left_out: tuple[LeftOut, ...]
    remarks: tuple[str, ...] = ()

    @property
    def gone(self) -> str:
        """The first that were left out, each with its reason, for an error: nothing else tells of them then."""
        told = "; ".join(f"{each.point}: {each.reason}" for each in self.left_out[:TOLD])
        more = f"; and {len(self.left_out) - TOLD} more" if len(self.left_out) > TOLD else ""
        return f" Left out: {told}{more}." if told else ""

    def without(self, drop: np.ndarray, reasons: Sequence[str]) -> "PointSet":
        """The same set less the points where the mask `drop` is true; one reason for each."""
        gone = tuple(
            LeftOut(str(label), reason)
            for label, reason in zip(self.points.label[drop], reasons, strict=True)
        )
        return replace(self, points=self.points.only(~drop), left_out=self.left_out + gone)


@dataclass(frozen=True)
class SeedNoise:
    """Spread of the loss between runs that differ in the seed alone."""

    relative_sd: float  # standard deviation of log loss, pooled over cells
    degrees: int  # degrees of freedom of that estimate: runs less cells
    cells: int  # how many (params, tokens) cells had more than one run


def distinct(*columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of rows that are equal in every column: the index of the first of each kind, and the number of
    each row's kind. By sorting, so that a million rows take a second. Kinds are in rising order, the
    first column first."""
    order = np.lexsort(columns[::-1])
    new = np.zeros(len(order), bool)
    new[:1] = True
    for column in columns:
        ranked = column[order]
        new[1:] |= ranked[1:] != ranked[:-1]
    kind = np.empty(len(order), int)
    kind[order] = np.cumsum(new) - 1
    return order[new], kind


def cells(points: LossPoints) -> np.ndarray:
    """The number of each point's cell: equal params, tokens and recipe, so that its runs differ in the seed alone;
    where nobody says the recipe, equal in every known column of TELL_APART too."""
    unsaid = points.recipe == ""
    more = [np.where(unsaid, points.x(name), 0.0) for name in TELL_APART if points.known(name)]
    return distinct(points.params, points.tokens, points.recipe, *more)[1]


def seed_noise(points: LossPoints) -> SeedNoise | None:
    """Pooled spread of log loss over runs that differ in the seed alone, of a run of the mean weight; None
    without repeats."""
    if not len(points):
        return None
    cell, logs, weight = cells(points), np.log(points.loss), points.weight / points.weight.mean()
    runs = np.bincount(cell)
    mean = np.bincount(cell, weight * logs) / np.bincount(cell, weight)
    off = (logs - mean[cell]) * np.sqrt(weight)
    repeated = int(np.sum(runs > 1))
    degrees = len(points) - len(runs)
    if not degrees:
        return None
    return SeedNoise(float(np.sqrt(off @ off / degrees)), degrees, repeated)


def keep_largest_budget(found: PointSet) -> PointSet:
    """For L(N): of several token budgets of one size keep the largest (every seed of it)."""
    points = found.points
    largest = {n: points.tokens[points.params == n].max() for n in np.unique(points.params)}
    best = np.array([largest[n] for n in points.params])
    drop = points.tokens < best
    return found.without(
        drop,
        [f"another run of this size trained on more tokens ({most:.3g})" for most in best[drop]],
    )


def keep_largest_model(found: PointSet) -> PointSet:
    """For L(D): the runs of the largest size alone, since N must not move along with D."""
    if not len(found.points):
        return found
    largest = found.points.params.max()
    drop = found.points.params < largest
    reason = f"not of the largest size ({largest:.3g} parameters), which L(D) is fitted to"
    return found.without(drop, [reason] * int(drop.sum()))


def remark_mixed_budgets(found: PointSet) -> PointSet:
    """Say so where sizes were trained on different tokens: L(N) then holds part of L(D)."""
    tokens = found.points.tokens
    if not len(tokens) or tokens.max() <= 1.05 * tokens.min():
        return found
    remark = (
        f"tokens_vary_with_size: the runs saw {tokens.min():.3g} to {tokens.max():.3g} tokens, so "
        "this L(N) holds part of the effect of more data."
    )
    return replace(found, remarks=(*found.remarks, remark))


def remark_mixed_recipes(found: PointSet) -> PointSet:
    """Say where runs of one size differ in more than seed and length."""
    points = found.points
    mixed = [n for n in np.unique(points.params) if len(set(points.recipe[points.params == n])) > 1]
    if not mixed:
        return found
    sizes = ", ".join(f"{n:.3g}" for n in mixed)
    remark = (
        f"mixed_training: runs of N = {sizes} differ in shape, learning rate, batch, schedule or length; the "
        "law takes them as one, and they are no repeats of one another."
    )
    return replace(found, remarks=(*found.remarks, remark))


def keep_efficient(found: PointSet) -> PointSet:
    """For L(C) of finished runs: drop a run if one that cost no more reached a lower loss."""
    keep = pareto(found.points.flops, found.points.loss)
    drop = np.ones(len(found.points), bool)
    drop[keep] = False
    return found.without(
        drop,
        ["not on the compute-efficient frontier: a run that cost no more did better"]
        * int(drop.sum()),
    )


def pareto(flops: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Indices of the compute-efficient frontier, by rising flops: each point has a lower loss
    than every point that cost as much or less (Henighan et al. 2020, figure 5)."""
    order = np.lexsort((loss, flops))
    best_before = np.concatenate([[np.inf], np.minimum.accumulate(loss[order])[:-1]])
    return order[loss[order] < best_before]
