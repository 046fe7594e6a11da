"""The unique parameters U_N that Muennighoff's law of repeated data needs beside the unique tokens."""

from dataclasses import replace

import numpy as np

from analysis.derived import optimal_allocation, optimal_flops_of_tokens
from analysis.laws import UNIQUE_PARAMS_PER_TOKEN
from analysis.points import LossPoints, PointSet
from analysis.separable import SURFACE
from analysis.solution import best_solution, check_enough, named, scaled_data

ONE_EPOCH = 1.001
"""Tokens over unique tokens up to which a run counts as one of a single epoch."""


def _met_again(points: LossPoints) -> np.ndarray:
    """Which points are of more tokens than there were, [P]."""
    return points.tokens > ONE_EPOCH * points.unique_tokens


def remark_repeats(found: PointSet, law: str) -> PointSet:
    """Say so where a table has runs of several epochs: all laws but one take each token for a new one. (Of a
    results folder D counts a subset once.)"""
    points = found.points
    if not (points.known("tokens") and points.known("unique_tokens")):
        return found
    again = int(np.sum(_met_again(points)))
    if not again:
        return found
    remark = (
        f"repeated_data: {again} of {len(points)} points are of more tokens than unique_tokens; the law "
        f"{law} takes tokens that were met again for new ones. Leave these rows out, or fit "
        "data-constrained."
    )
    return replace(found, remarks=(*found.remarks, remark))


def with_unique_params(found: PointSet) -> PointSet:
    """U_N, the compute-optimal N for D = U: as the source gives it, else by the surface fitted to
    the runs of at most one epoch, else by the published ratio, with a remark. Raises `ValueError`
    where nobody says how many tokens are unique, or no run met one twice."""
    points = found.points
    if not points.known("unique_tokens"):
        raise ValueError(
            f"{found.source}: no unique tokens; wanted for each run the tokens that it saw once or "
            "more, for the law 'data-constrained'. Give a CSV with a column unique_tokens."
        )
    once = ~_met_again(points)
    if once.all():
        raise ValueError(
            f"{found.source}: none of {len(points)} runs met a token twice; wanted runs of more tokens "
            "than unique ones, for the law 'data-constrained'. Train on a subset (data.unique_tokens), "
            "or fit the law surface."
        )
    if points.known("unique_params"):
        return found
    single = replace(found, points=points.only(once))
    try:
        check_enough(single, SURFACE)
        units, data = scaled_data(single.points, SURFACE)
        theta = best_solution(SURFACE, data).theta[None]
        constants = {
            name: float(value[0])
            for name, value in named(SURFACE, theta, units).items()
            if name != "E"
        }
        flops = optimal_flops_of_tokens(points.unique_tokens, **constants)
        unique, _ = optimal_allocation(flops, **constants)
        if not np.all(np.isfinite(unique) & (unique > 0)):
            raise ValueError("the single-epoch runs have no optimum")
        remark = (
            f"unique_params: U_N is the best size for the unique tokens by a surface fitted to the "
            f"{int(once.sum())} runs of at most one epoch."
        )
    except ValueError:
        unique = UNIQUE_PARAMS_PER_TOKEN * points.unique_tokens
        remark = (
            f"unique_params: too few runs of at most one epoch ({int(once.sum())}) for a surface, so "
            "U_N is 0.051 per unique token, published for C4 (Muennighoff et al. 2023)."
        )
    return replace(
        found, points=replace(points, unique_params=unique), remarks=(*found.remarks, remark)
    )
