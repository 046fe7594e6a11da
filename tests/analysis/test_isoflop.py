"""N_opt by three routes, and the critical batch: planted values come back, doubts are said."""

from dataclasses import replace

import numpy as np
import pytest

from analysis import laws
from analysis.batch_levels import hyperbola
from analysis.derived import optimal_allocation
from analysis.estimate import draws_csv, to_text
from analysis.fit_critical_batch import fit_critical_batch
from analysis.fit_isoflop import _noise, _samples, fit_isoflop
from analysis.isoflop import budgets
from analysis.line_holdout import line_holdouts
from analysis.routes import routes
from analysis.separable import SURFACE_LAWS
from analysis.study_fits import Attempt
from analysis.tables import _holdout_text
from analysis.words import has_warning
from tests.analysis.planted import point_set

TRUTH = {"E": 1.8, "A": 480.0, "alpha": 0.35, "B": 2080.0, "beta": 0.37}
INNER = {name: value for name, value in TRUTH.items() if name != "E"}
A_TRUE = 0.37 / 0.72


def study(count=5, sizes=7, noise=0.0, span=4.0, shift=1.0, seed=0):
    flops = np.geomspace(1e17, 1e20, count)
    params = optimal_allocation(flops, **INNER)[0][:, None] * shift
    params = params * np.geomspace(1 / span, span, sizes)
    flops = np.broadcast_to(flops[:, None], params.shape).ravel()
    params = params.ravel()
    scatter = np.exp(noise * np.random.default_rng(seed).standard_normal(len(params)))
    loss = laws.surface(params, flops / 6 / params, **TRUTH) * scatter
    return point_set(loss, params=params, flops=flops)


def test_the_planted_exponent_comes_back_by_every_route():
    fit = fit_isoflop(study(), 0, 0)
    assert fit.derived["a_surface"].value == pytest.approx(A_TRUE, abs=1e-4)
    for name in ("parabola", "cubic", "akima", "envelope"):
        assert fit.derived[f"a_{name}"].value == pytest.approx(A_TRUE, abs=0.01), name
    params = laws.optimal_params(1e20, fit.value("params_scale"), fit.value("params_exponent"))
    assert params == pytest.approx(optimal_allocation(1e20, **INNER)[0], rel=0.05)
    product = 6 * params * (1e20 / fit.value("tokens_scale")) ** fit.value("tokens_exponent")
    assert product == pytest.approx(1e20)


def test_intervals_cover_the_planted_exponent():
    hits = []
    for seed in range(12):
        fit = fit_isoflop(study(noise=0.003, seed=seed), 100, seed)
        each = fit.parameters["params_exponent"]
        hits.append(each.low <= A_TRUE <= each.high)
    # 95% of 12 has a standard error of 6.3%: three of them below would be 76%.
    assert np.mean(hits) >= 0.75


def test_a_run_that_is_lucky_at_one_budget_is_lucky_at_the_next():
    flops, params = np.repeat([1e17, 1e18], 6), np.tile([1e7, 2e7, 4e7, 4e7, 8e7, 16e7], 2)
    points = point_set(np.full(12, 2.0), params=params, flops=flops).points
    known, run = budgets(points), np.tile(np.arange(6), 2)
    first, second = (
        sample - each.log_loss
        for sample, each in zip(_samples(known, run, (0.01, 1000), 4000, 0), known, strict=True)
    )
    np.testing.assert_array_equal(first, second)
    # Of two runs of a size the mean; the error of a standard deviation of 4000 is 1.1%, four of them 4.5%.
    assert first.std(axis=0) == pytest.approx(0.01 / np.sqrt([1, 1, 2, 1, 1]), rel=0.045)
    apart = _samples(known, np.arange(12), (0.01, 1000), 4000, 0)
    both = np.corrcoef(apart[0][:, 0], apart[1][:, 0])[0, 1]
    assert abs(both) < 4 / 4000**0.5  # four standard errors of no correlation
    assert _noise(known, run)[1] == min(2 * 2, 6 - 3)
    assert _noise(known, np.arange(12))[1] == 2 * 2


def test_a_grid_beside_the_optimum_is_not_believed():
    fit = fit_isoflop(study(shift=20.0), 20, 0)
    assert has_warning(fit, "minima_not_bracketed")
    assert has_warning(fit, "few_budgets")
    assert has_warning(fit, "optimum_not_identified")
    assert np.isnan(fit.value("params_exponent"))


def test_minima_and_batches_that_were_computed_are_told_from_measured_ones():
    made = study()
    parabola = 0.05 * np.tile(np.linspace(-1, 1, 7), 5) ** 2
    exact = point_set(np.exp(1 + parabola), params=made.points.params, flops=made.points.flops)
    assert has_warning(fit_isoflop(exact, 0, 0, routes=False), "no_scatter")
    assert not has_warning(fit_isoflop(made, 0, 0, routes=False), "no_scatter")
    assert has_warning(fit_critical_batch(at_levels(), 0, 0), "no_scatter")
    assert not has_warning(fit_critical_batch(at_levels(0.01), 0, 0), "no_scatter")


def test_two_budgets_are_flagged():
    assert has_warning(fit_isoflop(study(count=2), 0, 0), "few_budgets")


def test_a_law_that_the_runs_reject_is_no_route():
    """The same rule as that of the report: the forms of N and D that AICc leaves are compared with the minima."""
    whole = study(noise=1e-4).points
    truth = {"E": 0.5, "A": 3e3, "alpha": 0.8, "B": 2e4, "beta": 0.7, "gamma": 0.35}
    noise = np.exp(1e-4 * np.random.default_rng(0).standard_normal(len(whole)))
    loss = laws.coupled(whole.params, whole.flops / 6 / whole.params, **truth) * noise
    fit = fit_isoflop(point_set(loss, params=whole.params, flops=whole.flops), 30, 0)
    ways = [name for name in fit.derived if name.removeprefix("a_") in SURFACE_LAWS]
    assert ways == ["a_coupled"]
    assert fit.derived["a_coupled"].value == pytest.approx(0.7 / 1.5, abs=0.01)
    (text,) = [text for text in fit.warnings if text.startswith("surface_rejected: ")]
    assert "beside 'coupled' (1)" in text
    weights = {each["law"]: each["weight"] for each in fit.diagnostics["forms"]}
    assert set(weights) == set(SURFACE_LAWS)
    assert weights["surface"] < 0.05 < weights["coupled"]
    bare = fit_isoflop(study(), 0, 0, routes=False)
    assert set(bare.derived) == {"a_parabola", "a_cubic", "a_akima"}
    kept = fit_isoflop(study(noise=0.003), 0, 0)
    assert "a_surface" in kept.derived
    assert not has_warning(kept, "surface_rejected")
    tried = {"isoflop": Attempt("isoflop", "isoFLOP", "isoflop", "flops", study(), kept)}
    assert "surface of the isoFLOP runs" in dict(routes(tried))


def test_routes_that_disagree_are_named():
    """Grids that start above the optimum and drift away from it: the envelope follows the grid, the
    surface the loss."""
    flops = np.geomspace(1e17, 1e20, 5)
    best = optimal_allocation(flops, **INNER)[0]
    params = best[:, None] * 1.6 ** np.arange(3, 8)[:, None] * np.geomspace(1, 4, 7)
    flops = np.broadcast_to(flops[:, None], params.shape).ravel()
    params = params.ravel()
    loss = laws.surface(params, flops / 6 / params, **TRUTH)
    fit = fit_isoflop(point_set(loss, params=params, flops=flops), 200, 0)
    assert fit.derived["a_surface"].value == pytest.approx(A_TRUE, abs=1e-3)
    assert fit.derived["a_envelope"].value > A_TRUE + 0.1
    text = next(text for text in fit.warnings if text.startswith("routes_disagree: "))
    assert "do not overlap; quote the range of the routes" in text


def test_one_budget_is_refused():
    with pytest.raises(ValueError, match="1 compute budgets with 3 or more sizes") as error:
        fit_isoflop(study(count=1), 0, 0)
    assert "Train several sizes to the same FLOPs" in str(error.value)


def test_runs_without_a_minimum_are_listed_each_with_its_reason():
    """One budget of one size, one of three, one whose best size is the smallest; four that count."""
    whole, beside = study(count=4).points, study(count=1, shift=20.0).points
    edge = replace(beside, flops=beside.flops * 1e5)
    few = replace(whole.only(np.array([2, 3, 4])), flops=np.full(3, 3e18))
    alone = replace(whole.only(np.array([3])), flops=np.full(1, 7e18))
    parts = (whole, edge, few, alone)
    columns = {name: np.concatenate([each.x(name) for each in parts])
               for name in ("loss", "params", "flops")}  # fmt: skip
    fit = fit_isoflop(point_set(columns.pop("loss"), **columns), 0, 0)
    assert fit.points_used == 28
    reasons = [each.reason for each in fit.points_left_out]
    assert len(reasons) == 7 + 3 + 1
    assert sum("the best size is the smallest or largest" in each for each in reasons) == 7
    assert sum("fewer than 4 sizes were trained" in each for each in reasons) == 4
    assert "not in N_opt: at its 7e+18 FLOPs fewer than 4 sizes were trained" in reasons
    said = {text.split(":")[0]: text for text in fit.warnings}
    assert "at 2 of 7 budgets fewer than 4" in said["few_sizes"]
    assert "at 1 of 7 budgets the best size" in said["minima_not_bracketed"]


def test_a_parabola_without_a_minimum_between_its_sizes_is_said():
    """The lowest of seven is the second, but on the whole the curve bends downwards."""
    points = study(count=3).points
    loss = points.loss.copy()
    own = points.flops == points.flops.min()
    loss[own] = np.exp([0.31, 0.30, 0.9, 1.0, 0.9, 0.5, 0.32])
    fit = fit_isoflop(point_set(loss, params=points.params, flops=points.flops), 0, 0)
    assert fit.points_used == 14
    assert has_warning(fit, "minima_not_inside")
    assert "the parabola has no minimum between the sizes" in fit.points_left_out[0].reason


def test_every_route_keeps_its_draws():
    fit = fit_isoflop(study(noise=0.003), 40, 0)
    for name, each in fit.derived.items():
        assert len(fit.draws[name]) == 40, name
        if name.removeprefix("a_") not in SURFACE_LAWS:  # whose interval is a profile
            assert np.quantile(fit.draws[name], [0.025, 0.975]) == pytest.approx(
                [each.low, each.high]
            )
    assert len(draws_csv(fit).splitlines()) == 41


def test_budgets_above_a_cut_are_held_out():
    fit = fit_isoflop(study(noise=0.003), 0, 0, compare=True)
    splits = fit.diagnostics["holdout"]
    assert [each["points_below"] for each in splits] == [3, 4]
    assert [each["decades_above"] for each in splits] == pytest.approx([1.5, 0.75])
    assert all(0 < each["rms_error"] < 0.2 for each in splits)
    assert "holdout" not in fit_isoflop(study(), 0, 0).diagnostics
    tried = {"isoflop": Attempt("isoflop", "isoFLOP", "isoflop", "flops", study(), fit)}
    assert _holdout_text(tried).startswith("isoFLOP of N_opt: at most ")


def test_a_line_is_held_out_by_what_lies_beyond_it():
    x = np.array([1.0, 10.0, 100.0, 1e3, 1e4, np.nan])
    y = 2 * x**0.5 * np.array([1, 1, 1, 1.1, 1, 1])
    first, second = line_holdouts(x, y, "y")
    assert (first["cut"], first["points_below"], first["points_above"]) == pytest.approx(
        (100, 3, 2)
    )
    # the line through the first three is exact: log 2 x^0.5 less the log of 1.1 that was measured
    assert first["mean_error"] == pytest.approx(-np.log(1.1) / 2)
    assert first["rms_error"] == pytest.approx(np.log(1.1) / 2**0.5)
    assert first["decades_above"] == pytest.approx(2)
    assert second["points_below"] == 4
    falling = line_holdouts(1 / x, y, "y", falling=True)
    assert falling[0] == pytest.approx(first | {"cut": 0.01})
    assert line_holdouts(x[:3], y[:3], "y") == []
    assert line_holdouts(np.full(5, 2.0), y[:5], "y") == []


def test_repeats_of_a_size_are_averaged():
    one = budgets(point_set(np.array([2.0, 8.0, 3.0]), params=np.array([1.0, 1.0, 2.0]),
                            flops=np.array([1.0, 1.01, 1.02])).points)  # fmt: skip
    assert len(one) == 1
    np.testing.assert_allclose(np.exp(one[0].log_loss), [4.0, 3.0])


def test_same_points_and_seed_give_the_same_bytes():
    def text():
        return to_text(fit_isoflop(study(noise=0.003), 50, 3).as_json() | {"seconds": 0})

    assert text() == text()


# --- the critical batch ---

BATCHES = np.array([1e4, 1e5, 4e5, 1e6, 1e7])
KAPLAN = {"B_star": 2.1e8, "aB": 0.21}


def at_levels(noise=0.0, seed=0, losses=(4.0, 3.5, 3.0, 2.7)):
    rng = np.random.default_rng(seed)
    rows = [(loss, batch) for loss in losses for batch in BATCHES]
    loss, batch = np.array(rows).T
    steps = laws.steps_at_batch(batch, 1e3 * (4 / loss) ** 5, laws.critical_batch(loss, **KAPLAN))
    steps = steps * np.exp(noise * rng.standard_normal(len(loss)))
    return point_set(loss, batch=batch, steps=steps, group=batch.astype(str))


def test_the_planted_critical_batch_comes_back():
    fit = fit_critical_batch(at_levels(), 0, 0)
    for name, value in KAPLAN.items():
        assert fit.value(name) == pytest.approx(value, rel=1e-6)
    assert [each["loss"] for each in fit.diagnostics["levels"]] == [2.7, 3.0, 3.5, 4.0]
    (split,) = fit_critical_batch(at_levels(), 0, 0, compare=True).diagnostics["holdout"]
    assert (split["cut"], split["points_below"]) == (
        pytest.approx(3.0),
        3,
    )  # the lowest is held out
    assert split["rms_error"] < 1e-6


def test_noise_is_covered():
    hits = []
    for seed in range(40):
        each = fit_critical_batch(at_levels(0.02, seed), 100, seed).parameters["aB"]
        hits.append(each.low <= 0.21 <= each.high)
    assert np.mean(hits) >= 0.81


def test_an_exponent_whose_inverse_may_be_zero_is_open():
    """Percentiles of aB itself would run through the pole, and past their own estimate."""
    rng = np.random.default_rng(3)
    loss = np.repeat([3.1, 3.0, 2.9], 5)
    batch = np.tile(BATCHES, 3)
    steps = laws.steps_at_batch(batch, 1e3 * (4 / loss) ** 5, laws.critical_batch(loss, 1e6, 2.5))
    steps = steps * np.exp(0.1 * rng.standard_normal(15))
    fit = fit_critical_batch(point_set(loss, batch=batch, steps=steps, group=np.arange(15)), 200, 0)
    each, drawn = fit.parameters["aB"], fit.draws["aB"]
    assert np.any(drawn > 0)
    assert np.any(drawn < 0)
    assert (each.low, each.high) == (-np.inf, np.inf)
    assert has_warning(fit, "aB_not_identified")
    known = fit_critical_batch(at_levels(0.01), 200, 0)
    assert not has_warning(known, "aB_not_identified")
    each = known.parameters["aB"]
    assert 0 < each.low < each.value < each.high
    inverse = np.quantile(1 / known.draws["aB"], [0.025, 0.975])
    assert (1 / each.high, 1 / each.low) == pytest.approx(inverse)


def test_learning_curves_at_several_batches_are_cut_at_common_losses():
    loss, batch, steps, group = [], [], [], []
    for each in BATCHES:
        curve = np.geomspace(4.5, 2.6, 60)
        needed = laws.steps_at_batch(each, 1e3 * (4 / curve) ** 5,
                                     laws.critical_batch(curve, **KAPLAN))  # fmt: skip
        loss.append(curve * (1 + 1e-9 * each / 1e4))  # no two runs share a loss
        batch.append(np.full(60, each))
        steps.append(needed)
        group.append(np.full(60, f"{each:g}"))
    columns = {"batch": batch, "steps": steps, "group": group}
    found = point_set(np.concatenate(loss), **{k: np.concatenate(v) for k, v in columns.items()})
    fit = fit_critical_batch(found, 20, 0)
    # Linear interpolation between evaluations 0.9% of the loss apart.
    assert fit.value("aB") == pytest.approx(0.21, rel=0.01)
    assert fit.value("B_star") == pytest.approx(2.1e8, rel=0.05)


def at_sizes(shift, noise=0.01, seed=0):
    """Two sizes, the larger one faster to every loss, its critical batch `shift` times that of the law."""
    rng = np.random.default_rng(seed)
    rows = [(n, loss, b) for n in (1e6, 1e8) for loss in (4.0, 3.5, 3.0, 2.7) for b in BATCHES]
    params, loss, batch = np.array(rows).T
    crit = laws.critical_batch(loss, **KAPLAN) * np.where(params > 1e7, shift, 1.0)
    least = 1e3 * (4 / loss) ** 5 * np.where(params > 1e7, 0.1, 1.0)
    steps = laws.steps_at_batch(batch, least, crit) * np.exp(noise * rng.standard_normal(len(loss)))
    group = np.array([f"{n:g} {b:g}" for n, _, b in rows])
    return point_set(loss, params=params, batch=batch, steps=steps, group=group)


def test_a_hyperbola_is_of_one_model_size():
    """Sizes reach a loss in a tenth of the steps: as one hyperbola they would have no critical batch."""
    fit = fit_critical_batch(at_sizes(shift=1.0, noise=0.0), 0, 0)
    assert fit.value("aB") == pytest.approx(KAPLAN["aB"], rel=1e-6)
    assert fit.value("B_star") == pytest.approx(KAPLAN["B_star"], rel=1e-5)
    assert [each["params"] for each in fit.diagnostics["levels"]] == [1e6] * 4 + [1e8] * 4
    assert [each["aB"] for each in fit.diagnostics["sizes"]] == pytest.approx([0.21, 0.21])
    assert has_warning(fit, "sizes_pooled")
    assert has_warning(fit_critical_batch(at_levels(), 0, 0), "size_unknown")


def test_sizes_that_contradict_one_law_of_the_critical_batch_are_named():
    same, other = (fit_critical_batch(at_sizes(shift), 100, 0) for shift in (1.0, 4.0))
    assert not has_warning(same, "sizes_differ")
    assert has_warning(other, "sizes_differ")
    offsets = [each["offset"]["value"] for each in other.diagnostics["sizes"]]
    assert offsets[1] - offsets[0] == pytest.approx(np.log(4), rel=0.1)


@pytest.mark.parametrize(("least", "said"), [(2.0, "at 2 of them"), (64.0, "at 0 of them")])
def test_a_critical_batch_outside_the_batches_trained_is_flagged(least, said):
    """B_crit is 16 at loss 3, 8 and less above it; the batches reach from `least` times a half to 16 times that."""
    loss, batch = (each.reshape(-1) for each in np.meshgrid(
        [3.0, 3.5, 4.0, 4.5], least / 2 * np.array([1.0, 2.0, 4.0, 16.0]), indexing="ij"))  # fmt: skip
    crit = np.array([0.01, 0.05, 8.0, 6.0] if least < 10 else [40.0, 36.0, 20.0, 16.0])
    steps = laws.steps_at_batch(batch, 1e3, np.repeat(crit, 4))
    fit = fit_critical_batch(point_set(loss, batch=batch, steps=steps), 20, 0)
    (text,) = [each for each in fit.warnings if each.startswith("critical_batch_extrapolated: ")]
    assert "at 2 of 4 losses B_crit lies outside the batches that were trained" in text
    assert said in text
    known = {each["loss"]: each for each in fit.diagnostics["levels"]}
    assert [known[each]["extrapolated"] for each in (3.0, 3.5, 4.0, 4.5)] == (
        [True, True, False, False] if least < 10 else [False, False, True, True])  # fmt: skip
    used = [2, 3] if least < 10 else [0, 1, 2, 3]
    slope = np.polyfit(np.log([3.0, 3.5, 4.0, 4.5])[used], np.log(crit[used]), 1)[0]
    assert fit.value("aB") == pytest.approx(-1 / slope, rel=1e-6)


def test_batches_all_above_the_critical_one_are_flagged():
    batch, loss = np.tile([1e9, 2e9, 4e9], 2), np.repeat([3.0, 4.0], 3)
    steps = np.where(loss == 3, 2e3, 1e3) * np.tile([1.0, 1.001, 1.002], 2)  # rising: E_min = 0
    fit = fit_critical_batch(point_set(loss, batch=batch, steps=steps), 10, 0)
    assert has_warning(fit, "levels_not_identified")
    assert has_warning(fit, "few_levels")
    assert has_warning(fit, "few_batches")
    assert np.isnan(fit.value("B_star"))


def test_one_loss_is_refused():
    with pytest.raises(
        ValueError, match="1 losses that 3 or more|0 losses that 3 or more"
    ) as error:
        fit_critical_batch(at_levels(losses=(3.0,)), 0, 0)
    assert "steps to the same losses at several batch sizes" in str(error.value)


def test_the_hyperbola_never_has_a_negative_end():
    assert hyperbola(np.array([1.0, 2.0, 4.0]), np.array([1.0, 1.1, 1.2]))[1] == 0
    assert hyperbola(np.array([1.0, 2.0, 4.0]), np.array([4.0, 2.0, 1.0])) == pytest.approx((0, 4))


def test_no_budget_is_lost_to_rounding():
    """The unit of a spline's abscissa is -1 to 1 but for rounding, outside of which it is no number."""
    fit = fit_isoflop(study(count=40, sizes=9, span=6.0), 0, 0)
    assert all(np.isfinite(each["akima"]) for each in fit.diagnostics["minima"])
