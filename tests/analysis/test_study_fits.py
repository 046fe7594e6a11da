"""Which laws a report tries: those that the design of the study can tell apart, and no others."""

import numpy as np
import pytest

from analysis import laws
from analysis.points import PointSet
from analysis.runs import Counting, read_runs
from analysis.separable import COUPLED, DATA_CONSTRAINED
from analysis.study_fits import TRIALS, attempt, fit_study, study_noise
from tests.analysis.planted import PlantedRun, Surface, point_set, write_study

TRIAL = {each.name: each for each in TRIALS}
SURFACE = (1.8, 480.0, 0.35, 2080.0, 0.37)


def grid(sizes, budgets, epochs=(1.0,)) -> PointSet:
    """Points of the data-constrained law over sizes, unique tokens and passes over them."""
    params, unique, times = (
        each.ravel()
        for each in np.meshgrid(
            np.geomspace(1e6, 1e8, sizes), np.geomspace(1e7, 1e10, budgets), np.array(epochs)
        )
    )
    tokens = unique * times
    loss = laws.data_constrained(params, 0.05 * unique, tokens, unique, *SURFACE, 5.0, 15.0)
    loss = loss * np.exp(0.001 * np.random.default_rng(0).standard_normal(len(loss)))
    return point_set(
        loss, params=params, tokens=tokens, unique_tokens=unique, unique_params=0.05 * unique
    )


@pytest.mark.parametrize(
    ("name", "enough", "few", "message"),
    [
        ("loss-by-params-logarithm", grid(5, 1), grid(4, 1), "4 sizes; wanted at least 5"),
        ("loss-by-params-broken", grid(9, 1), grid(8, 1), "8 sizes; wanted at least 9"),
        ("coupled", grid(4, 3), grid(3, 3), "9 pairs of size and tokens; wanted at least 12"),
        (
            "data-constrained",
            grid(3, 3, (1, 4)),
            grid(3, 4),
            "0 of 12 different runs met tokens twice",
        ),
        ("data-constrained", grid(4, 3, (1, 4)), grid(4, 2, (1, 4)), "2 amounts of unique tokens"),
    ],
)
def test_a_form_is_tried_where_the_points_allow_it(name, enough, few, message):
    assert TRIAL[name].allows(enough.points) == ""
    assert message in TRIAL[name].allows(few.points)


def test_the_new_trials_are_fitted_where_they_are_allowed():
    """Repeated data: the planted decay of its value comes back within its interval."""
    found = grid(4, 4, (1, 4, 16))
    tried = attempt(TRIAL["data-constrained"], found, 60, 0, only=("tokens_decay",))
    assert tried.problem == ""
    each = tried.fit.parameters["tokens_decay"]
    assert each.low <= 15.0 <= each.high
    assert tried.fit.law == DATA_CONSTRAINED.name
    fitted = attempt(TRIAL["coupled"], grid(4, 4), 0, 0, only=())
    assert fitted.fit.law == COUPLED.name


def test_a_variant_that_is_not_there_is_refused(tmp_path):
    run = PlantedRun("one", hidden_size=32, num_layers=2, tokens=2e5, evaluations=4)
    study = read_runs(write_study(tmp_path / "s", [run], Surface()))
    with pytest.raises(ValueError, match="--variant nosuch: no usable run of it"):
        fit_study(study, Counting(variant="nosuch"), 0, 0)


def test_without_points_of_sizes_there_is_no_seed_noise():
    assert study_noise({}) is None
