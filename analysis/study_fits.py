"""Every law that a study's runs allow, fitted; and why the others could not be."""

from dataclasses import dataclass

import numpy as np

from analysis.estimate import Fit
from analysis.points import PointSet, SeedNoise, seed_noise
from analysis.runs import Counting, StudyRuns
from analysis.separable import FRONTIER, POWER, POWER_CONSTANT
from analysis.sources import fit_law, study_points


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


ATTEMPTS = (
    ("loss-by-params", "L(N)", POWER_CONSTANT.name, "params"),
    ("loss-by-params-pure", "L(N), no constant", POWER.name, "params"),
    ("loss-by-tokens", "L(D)", POWER_CONSTANT.name, "tokens"),
    ("frontier", "frontier", FRONTIER, "flops"),
)


def fit_study(study: StudyRuns, counting: Counting, draws: int, seed: int) -> dict[str, Attempt]:
    """Try each law of `ATTEMPTS`; L(D) only where the largest size has several token budgets."""
    tried = {}
    for name, title, law, x in ATTEMPTS:
        found = study_points(study, law, x, counting)
        if x == "tokens" and len(np.unique(found.points.tokens)) < 2:
            continue
        try:
            fit, problem = fit_law(found, law, x, draws, seed, compare=True), ""
        except ValueError as error:
            fit, problem = None, str(error)
        tried[name] = Attempt(name, title, law, x, found, fit, problem)
    return tried


def study_noise(tried: dict[str, Attempt]) -> SeedNoise | None:
    """Seed noise of the lowest losses, None where no run was repeated."""
    return seed_noise(tried["loss-by-params"].found.points)
