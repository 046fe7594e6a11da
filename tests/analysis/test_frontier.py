"""The compute-efficient frontier against surfaces whose frontier is known in closed form."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.estimate import to_text
from analysis.fit_frontier import fit_frontier
from analysis.frontier import fit_below, fit_optimum, lower_hull
from analysis.laws import optimal_params, optimal_tokens, optimal_tokens_scale
from analysis.points import LossPoints, PointSet, pareto
from analysis.words import has_warning
from tests.analysis.planted import Surface, curves, point_set

SURFACES = [Surface(), Surface(alpha=0.25, beta=0.4), Surface(alpha=0.4, beta=0.3, irreducible=2)]
SIZES = 1.2e4 * 4.0 ** np.arange(6)


@pytest.mark.parametrize("surface", SURFACES)
def test_planted_exponents_come_back(surface):
    fit = fit_frontier(curves(surface, SIZES, (1 / 50, 6)), 0, 0)
    # Handovers are exact but for the spacing of evaluations, 1.16x here; L(C) sees the scallops
    # between sizes, which bend it by about 2% of the exponent.
    assert fit.value("params_exponent") == pytest.approx(surface.params_exponent, abs=0.01)
    assert fit.value("tokens_exponent") == pytest.approx(1 - surface.params_exponent, abs=0.01)
    assert fit.value("exponent") == pytest.approx(surface.flops_exponent, abs=0.015)
    assert fit.value("irreducible") == pytest.approx(surface.irreducible, rel=0.03)
    assert not has_warning(fit, "optimum_not_identified")
    assert not has_warning(fit, "frontier_not_separated")


def test_n_opt_itself_is_the_planted_one():
    surface = Surface()
    fit = fit_frontier(curves(surface, SIZES, (1 / 50, 6)), 0, 0)
    size = 2e5
    cost = 6 * size * float(surface.best_tokens(size))
    found = optimal_params(np.array(cost), fit.value("params_scale"), fit.value("params_exponent"))
    assert found == pytest.approx(size, rel=0.05)


@pytest.mark.parametrize("span", [(1 / 300, 0.3), (3, 300)])
def test_curves_cut_before_or_after_their_optimum_are_not_believed(span):
    """Equal shares of the optimum: the hull still has a slope, but no handover is bracketed."""
    fit = fit_frontier(curves(Surface(), SIZES, span), 30, 0)
    assert has_warning(fit, "handovers_not_bracketed")
    assert has_warning(fit, "optimum_not_identified")
    assert has_warning(fit, "frontier_not_separated")
    assert np.isnan(fit.parameters["params_exponent"].low)


def test_unbracketed_handovers_are_left_out_where_enough_others_remain():
    """The largest size stops early: without the rule the exponent would be off."""
    surface = Surface()
    whole = curves(surface, SIZES, (1 / 50, 6))
    points = whole.points
    keep = (points.params < SIZES[-2]) | (points.tokens < 0.5 * surface.best_tokens(points.params))
    fit = fit_frontier(point_set(points.loss[keep], params=points.params[keep],
                                 flops=points.flops[keep], group=points.group[keep]), 0, 0)  # fmt: skip
    assert has_warning(fit, "handovers_not_bracketed")
    assert fit.value("params_exponent") == pytest.approx(surface.params_exponent, abs=0.02)


def test_intervals_cover_the_planted_exponents():
    surface, hits = Surface(), []
    for seed in range(12):
        fit = fit_frontier(curves(surface, SIZES, (1 / 50, 6), 30, 0.002, seed), 60, seed)
        truth = {"params_exponent": surface.params_exponent, "exponent": surface.flops_exponent}
        hits.append([fit.parameters[k].low <= v <= fit.parameters[k].high
                     for k, v in truth.items()])  # fmt: skip
    # Resampling few runs is conservative: 0.75 of 12 would be four standard errors below 0.95.
    assert np.all(np.mean(hits, axis=0) >= 0.75)


def test_the_fit_lies_below_and_touches():
    found = curves(Surface(), SIZES, (1 / 50, 6), noise=0.003)
    best = pareto(found.points.flops, found.points.loss)
    cost, loss = found.points.flops[best], found.points.loss[best]
    law = fit_below(cost, loss)
    below = law.irreducible + (law.scale / cost) ** law.exponent
    assert np.all(below <= loss * (1 + 1e-9))
    assert np.sum(below > loss * (1 - 1e-7)) >= 2


def test_the_closest_curve_below_is_found():
    """Against brute force over exponents with a linear program at each."""
    from scipy.optimize import linprog

    rng = np.random.default_rng(3)
    cost = np.geomspace(1, 1e4, 25)
    loss = np.minimum.accumulate((0.5 + cost**-0.3) * np.exp(0.02 * rng.random(25)))
    law = fit_below(cost, loss)
    x = np.log(cost)
    edges = np.concatenate([x[:1], (x[1:] + x[:-1]) / 2, x[-1:]])
    share = np.diff(edges) / np.ptp(x)
    gaps = []
    for exponent in np.geomspace(0.01, 3, 300):
        terms = np.stack([np.ones(25), cost**-exponent], axis=1)
        end = linprog(-(share / loss) @ terms, A_ub=terms, b_ub=loss, bounds=(0, None))
        gaps.append(1 + end.fun)
    assert law.gap <= min(gaps) + 1e-9
    assert law.gap == pytest.approx(min(gaps), abs=1e-4)


def test_pareto_and_hull_on_a_hand_made_example():
    flops = np.array([1.0, 2, 2, 3, 4, 5])
    loss = np.array([5.0, 4, 3, 3.5, 3, 1])
    assert list(pareto(flops, loss)) == [0, 2, 5]
    assert list(lower_hull(np.array([0.0, 1, 2, 3]), np.array([3.0, 0.5, 1, 0]))) == [0, 1, 3]
    assert list(lower_hull(np.array([0.0, 1, 2]), np.array([2.0, 1, 0]))) == [0, 2]


def test_optimum_laws_multiply_to_the_compute():
    scale, beta = fit_optimum(np.array([1e12, 1e15]), np.array([1e5, 1e7]))
    cost = np.array([1e12, 1e13, 1e18])
    product = 6 * optimal_params(cost, scale, beta) * optimal_tokens(cost, scale, beta)
    np.testing.assert_allclose(product, cost, rtol=1e-12)
    np.testing.assert_allclose(
        optimal_tokens(cost, scale, beta),
        (cost / optimal_tokens_scale(scale, beta)) ** (1 - beta), rtol=1e-9)  # fmt: skip
    assert np.isnan(fit_optimum(np.array([1e12]), np.array([1e5]))[1])


def test_same_curves_and_seed_give_the_same_bytes():
    def text():
        found = curves(Surface(), SIZES, (1 / 50, 6), 20, 0.002)
        return to_text(fit_frontier(found, 30, 5).as_json() | {"seconds": 0})

    assert text() == text()


def test_two_sizes_are_flagged():
    fit = fit_frontier(curves(Surface(), SIZES[:2], (1 / 50, 6)), 0, 0)
    assert has_warning(fit, "few_sizes_on_hull")
    assert has_warning(fit, "optimum_not_identified")
    assert has_warning(fit, "frontier_not_separated")


def test_single_points_and_single_sizes_are_refused():
    alone = curves(Surface(), SIZES[:1], (1 / 50, 6))
    with pytest.raises(ValueError, match="wanted learning curves .* of at least 2 sizes"):
        fit_frontier(alone, 0, 0)
    loose = point_set(np.array([3.0, 2, 1]), params=SIZES[:3], flops=SIZES[:3])
    with pytest.raises(ValueError, match="a column group that names the run"):
        fit_frontier(loose, 0, 0)
    short = point_set(np.array([3.0, 2, 4, 3.5]), params=SIZES[[0, 0, 1, 1]],
                      flops=np.arange(1.0, 5), group=np.array(["a", "a", "b", "b"]))  # fmt: skip
    with pytest.raises(ValueError, match="Evaluate more often"):
        fit_frontier(short, 0, 0)


def test_forth_and_back_between_two_sizes_is_no_slope():
    """Sizes 2% apart that lead by turns, as in a study of shapes: two handovers, one place."""
    flops = 1e10 * 1.5 ** np.arange(16)
    best = 2 + (1e11 / flops) ** 0.3
    leads = np.repeat([0, 1, 0, 1], 4)
    params, group = np.repeat([24_000.0, 24_576.0], 16), np.repeat(["a", "b"], 16)
    loss = np.concatenate([best * np.where(leads == run, 1, 1.05) for run in (0, 1)])
    points = LossPoints.of(group, group, params=params, flops=np.tile(flops, 2), loss=loss,
                           tokens=np.tile(flops, 2) / (6 * params))  # fmt: skip
    fit = fit_frontier(PointSet("shapes", points, ()), 20, 0)
    assert sum(each["bracketed"] for each in fit.diagnostics["handovers"]) >= 2
    assert has_warning(fit, "optimum_not_identified")


def test_a_run_of_two_sizes_is_refused():
    """As of a table whose group names the study: one run resampled would give intervals of no width."""
    found = curves(Surface(), np.array([1e4, 1e5, 1e6]), (1 / 50, 6))
    group = np.where(found.points.params < 1e6, "both", "large")
    mixed = replace(found, points=replace(found.points, group=group, trunk=group))
    with pytest.raises(
        ValueError, match=r"group 'both' holds 2 sizes; wanted one, .* Name each run"
    ):
        fit_frontier(mixed, 0, 0)
