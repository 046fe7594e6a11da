"""Which next runs shrink an interval most per FLOP: optimal design by the ensemble's own covariance.

Every draw of a fitted law says what each possible run would measure and what the wanted quantity is.
Measuring runs R with noise of variance s^2 then leaves of the variance of that quantity q

    Var(q | R) = Var(q) - Cov(q, R) (Cov(R, R) + s^2 I)^-1 Cov(R, q),

exact for normal draws (MacKay 1992, "Information-based objective functions for active data selection";
the ensemble Kalman update). So nothing is fitted again, whatever the number of candidates.

A study trains every shape for every budget, so a design is grown by whole rows and columns of that grid.
"""

from dataclasses import dataclass

import numpy as np

LEAST_SHARES = (0.0, 0.003, 0.03, 0.1, 0.3)
"""Designs are grown of runs that cost at least this share of the budget. Per FLOP the cheapest runs
often win, until there are as many as one cares to start; the best design of all shares is taken."""


@dataclass(frozen=True)
class Design:
    """Indices of shapes and of budgets; their product is what is trained. `remaining` is the share
    of the variance that is expected to be left, `flops` what all of it costs."""

    shapes: tuple[int, ...]
    budgets: tuple[int, ...]
    remaining: float
    flops: float


@dataclass(frozen=True)
class Candidates:
    """What could be trained: cost of each shape at each budget [S, T], and of each draw the log loss
    there [draws, S, T] and the wanted quantity [draws]."""

    flops: np.ndarray
    log_loss: np.ndarray
    quantity: np.ndarray
    noise_sd: float

    def remaining(self, shapes: tuple[int, ...], budgets: tuple[int, ...]) -> float:
        """Var(q | R)/Var(q) of the design."""
        measured = self.log_loss[:, shapes][:, :, budgets].reshape(len(self.quantity), -1)
        offset = measured - measured.mean(axis=0)
        centred = self.quantity - self.quantity.mean()
        variance = float(centred @ centred)
        if variance <= 0:
            return 1.0
        own = offset.T @ offset + len(centred) * self.noise_sd**2 * np.eye(offset.shape[1])
        shared = centred @ offset
        explained = float(shared @ np.linalg.solve(own, shared))
        return float(np.clip(1 - explained / variance, 0.0, 1.0))


def best_design(candidates: Candidates, budget: float, runs: int) -> Design | None:
    """The design of at most `runs` runs and `budget` FLOPs that leaves least; None where not one run
    fits the budget."""
    found = [
        design
        for share in LEAST_SHARES
        if (design := _grown(candidates, budget, runs, share * budget)) is not None
    ]
    return min(found, key=lambda each: (each.remaining, each.flops)) if found else None


def _grown(candidates: Candidates, budget: float, runs: int, least: float) -> Design | None:
    """Add the shape or the budget that explains most per FLOP until nothing fits or helps."""
    allowed = candidates.flops >= least
    design: Design | None = None
    while True:
        moves = [
            each
            for each in _moves(candidates, allowed, design)
            if each.flops <= budget and len(each.shapes) * len(each.budgets) <= runs
        ]
        before = (1.0, 0.0) if design is None else (design.remaining, design.flops)
        gains = [(before[0] - each.remaining) / (each.flops - before[1]) for each in moves]
        if not gains or max(gains) <= 0:
            return design
        design = moves[int(np.argmax(gains))]


def _moves(candidates: Candidates, allowed: np.ndarray, design: Design | None) -> list[Design]:
    if design is None:
        cells = np.argwhere(allowed)
        return [_design(candidates, (int(s),), (int(t),)) for s, t in cells]
    found = []
    for shape in range(allowed.shape[0]):
        if shape not in design.shapes and allowed[shape, list(design.budgets)].all():
            found.append(_design(candidates, (*design.shapes, shape), design.budgets))
    for budget in range(allowed.shape[1]):
        if budget not in design.budgets and allowed[list(design.shapes), budget].all():
            found.append(_design(candidates, design.shapes, (*design.budgets, budget)))
    return found


def _design(candidates: Candidates, shapes: tuple[int, ...], budgets: tuple[int, ...]) -> Design:
    flops = float(candidates.flops[np.ix_(shapes, budgets)].sum())
    return Design(shapes, budgets, candidates.remaining(shapes, budgets), flops)
