"""The cases of `benchmarks/data_prep.py`: one module for each kind of work, each with its peer beside it."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """Two ways to do the same work. Each call does it once and returns how many `unit`s that were.

    `bar` is the ratio of our rate to the peer's that we want at least.
    """

    name: str
    unit: str
    bar: float
    peer: Callable[[], int]
    ours: Callable[[], int]
