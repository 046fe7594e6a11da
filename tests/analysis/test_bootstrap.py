"""What is drawn together, what draws without a number do to an interval, and the likelihood of robust fits."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import integrate, stats

from analysis import laws
from analysis.bootstrap import clusters, degrees_of_freedom
from analysis.ensemble import aicc, log_likelihood
from analysis.estimate import Estimate, interval
from analysis.fit import fit_separable
from analysis.fit_frontier import fit_frontier
from analysis.runs import Counting, all_points, curve_points, read_runs
from analysis.separable import SURFACE
from analysis.words import has_warning, value_with_interval
from tests.analysis.planted import PlantedRun, Surface, point_set, write_study


@pytest.fixture(scope="module")
def branched(tmp_path_factory):
    """Four sizes, each a trunk with two branches, as a `wsd` study leaves them."""
    runs = [
        PlantedRun(f"{width}-{tokens:g}", hidden_size=width, num_layers=4, tokens=tokens)
        for width in (32, 48, 64, 96)
        for tokens in (5e5, 2e6, 8e6)
    ]
    surface = Surface(a=150, b=1500, irreducible=0.9)
    study = read_runs(write_study(tmp_path_factory.mktemp("r") / "study", runs, surface))
    tied = []
    for run in study.runs:
        width, tokens = run.run_id.split("-")
        trunk = None if float(tokens) == 8e6 else {"run_id": f"{width}-8e+06", "step": 4}
        tied.append(replace(run, config={**run.config, "trunk": trunk}))
    return replace(study, runs=tuple(tied))


def test_branches_of_one_trunk_are_one_cluster(branched):
    found = all_points(branched, Counting())
    cluster = clusters(found.points, SURFACE)
    assert len(cluster) == 12
    assert len(np.unique(cluster)) == 4
    for run, own in zip(found.points.group, cluster, strict=True):
        same = found.points.group[cluster == own]
        assert {str(each).split("-")[0] for each in same} == {str(run).split("-")[0]}
    apart = replace(branched, runs=tuple(
        replace(run, config={**run.config, "trunk": None}) for run in branched.runs))  # fmt: skip
    assert len(np.unique(clusters(all_points(apart, Counting()).points, SURFACE))) == 12
    fit = fit_separable(found, SURFACE, 20, 0)
    assert fit.bootstrap["method"] == "wild cluster"
    assert has_warning(fit, "few_groups")


@pytest.mark.parametrize(
    ("cluster", "free"),
    [
        (np.arange(12), 7),  # each its own: points less constants
        (np.repeat(np.arange(6), 5), 5),  # six trunks: one less
        (
            np.minimum(np.arange(12), 10),
            7,
        ),  # two of twelve belong together: hardly more than the first
        (np.minimum(np.arange(5), 3), 1),
    ],
)
def test_the_noise_has_no_more_degrees_of_freedom_than_the_fit_leaves(cluster, free):
    assert degrees_of_freedom(cluster, 5) == free


def test_few_groups_are_few_beside_the_constants():
    sizes = np.geomspace(1e6, 1e9, 7)
    params, tokens = np.tile(sizes, 2), np.repeat([1e9, 3e10], 7)
    loss = laws.surface(params, tokens, 1.8, 480.0, 0.35, 2080.0, 0.37)
    tokens = np.where(np.arange(14) % 3 == 0, 2 * tokens, tokens)
    twice = [np.concatenate([each, each[:1]]) for each in (loss, params, tokens)]
    found = point_set(twice[0], params=twice[1], tokens=twice[2])
    trunk = np.array([str(min(index, 13)) for index in range(15)])
    tied = replace(found, points=replace(found.points, trunk=trunk))
    assert has_warning(fit_separable(tied, SURFACE, 10, 0), "few_groups")  # 14 for 5 constants


def test_the_frontier_draws_a_trunk_with_its_branches(branched):
    """Where every run is of one trunk each sample is the whole: no scatter at all is left."""
    curves = curve_points(branched, Counting())
    one = np.full(len(curves.points), "one")
    whole = replace(curves, points=replace(curves.points, trunk=one))
    drawn = fit_frontier(whole, 10, 0).draws["exponent"]
    assert np.ptp(drawn) == 0
    assert np.ptp(fit_frontier(curves, 10, 0).draws["exponent"]) > 0


def test_luck_that_a_trunk_shares_widens_the_interval():
    """Errors that are equal within a trunk: as single runs they would look like three times as many."""
    rng = np.random.default_rng(0)
    params = np.repeat(np.geomspace(1e6, 1e9, 40), 3)
    tokens = np.tile([1e9, 1e10, 1e11], 40)
    shared = np.repeat(0.01 * rng.standard_normal(40), 3)
    loss = laws.surface(params, tokens, 1.8, 480.0, 0.35, 2080.0, 0.37) * np.exp(shared)
    found = point_set(loss, params=params, tokens=tokens)
    trunk = np.repeat([f"trunk {index}" for index in range(40)], 3)
    tied = replace(found, points=replace(found.points, trunk=trunk))
    alone, together = (
        np.std(fit_separable(each, SURFACE, 200, 0, delta=1.0).draws["alpha"])
        for each in (found, tied)
    )
    # The size's exponent rests on 40 numbers and not on 120: 3^(1/2) wider, less what 200 draws blur.
    assert together == pytest.approx(3**0.5 * alone, rel=0.2)


def test_draws_without_a_number_leave_an_interval_open():
    good = np.linspace(1.0, 2.0, 1000)
    plain = interval(1.5, good)
    assert (plain.low, plain.high) == pytest.approx((1.025, 1.975))
    few = interval(1.5, np.where(np.arange(1000) < 10, np.nan, good))
    assert np.isfinite([few.low, few.high]).all()
    many = interval(1.5, np.where(np.arange(1000) % 20 == 0, np.nan, good))
    assert (many.low, many.high) == (-np.inf, np.inf)
    above = interval(1.5, np.where(np.arange(1000) % 20 == 0, np.inf, good))
    assert above.high == np.inf
    assert 1 <= above.low < 1.1
    assert above.as_json() == {"value": 1.5, "low": pytest.approx(above.low), "high": None}
    assert interval(1.5, np.full(5, np.nan)).low == -np.inf
    assert np.isnan(interval(1.5, np.empty(0)).low)
    assert value_with_interval(Estimate(0.3, 0.25, np.inf)) == "0.300 [0.250, ∞)"
    assert value_with_interval(Estimate(0.3, -np.inf, 0.35)) == "0.300 (-∞, 0.350]"


# --- AICc of a robust fit ---

RESIDUAL = 0.01 * np.random.default_rng(0).standard_normal(200)
ONE = np.ones(200)


def test_the_likelihood_is_normal_for_a_large_delta_and_of_laplace_for_a_small_one():
    normal = stats.norm.logpdf(RESIDUAL, scale=np.sqrt(np.mean(RESIDUAL**2))).sum()
    laplace = stats.laplace.logpdf(RESIDUAL, scale=np.mean(np.abs(RESIDUAL))).sum()
    assert log_likelihood(RESIDUAL, ONE, 10.0) == pytest.approx(normal, abs=1e-3)
    assert log_likelihood(RESIDUAL, ONE, 1e-7) == pytest.approx(laplace, abs=1e-3)


@pytest.mark.parametrize("delta", [3e-3, 1e-2, 3e-2])
def test_between_them_it_is_that_of_a_density(delta):
    """The best s by the formula, and the integral of exp(-huber/s^2) by quadrature."""

    def huber(r):
        size = np.abs(r)
        return np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))

    def by_hand(s):
        inside, _ = integrate.quad(
            lambda r: np.exp(-huber(r) / s**2), -1, 1, points=[-delta, delta]
        )
        return -huber(RESIDUAL).sum() / s**2 - 200 * np.log(inside)

    best = max(by_hand(s) for s in np.geomspace(1e-3, 0.05, 2000))
    assert log_likelihood(RESIDUAL, ONE, delta) == pytest.approx(best, abs=2e-3)


def test_a_form_twice_as_far_off_counts_fully_in_the_linear_part():
    """Of Laplace's density 2 n log 2 in twice the log likelihood; half of it was counted once."""
    off = aicc(2 * RESIDUAL, ONE, 1e-6, 3) - aicc(RESIDUAL, ONE, 1e-6, 3)
    assert off == pytest.approx(2 * 200 * np.log(2), rel=1e-3)
    more = aicc(RESIDUAL, ONE, 1e-6, 4) - aicc(RESIDUAL, ONE, 1e-6, 3)
    assert more == pytest.approx(2 + 2 * 5 * 6 / 194 - 2 * 4 * 5 / 195)
    assert aicc(RESIDUAL[:5], ONE[:5], 1.0, 3) == np.inf
