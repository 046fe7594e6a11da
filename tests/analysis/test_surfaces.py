"""Laws of N and D: planted constants, published fits on real points, intervals, what is flagged."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis import laws, solve
from analysis.bootstrap import clusters, draw
from analysis.estimate import draws_csv, to_text
from analysis.fit import fit_separable
from analysis.separable import (
    BROKEN,
    COUPLED,
    DATA_CONSTRAINED,
    LEARNING_CURVE,
    SURFACE,
    SURFACE_KAPLAN,
)
from analysis.solution import best_solution, scaled_data
from analysis.words import has_warning
from tests.analysis.planted import point_set

FITS = Path(os.environ.get("FITS_DATA", "no-fits-data"))
CHINCHILLA = {"E": 1.8172, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658}
"""Besiroglu et al. 2024 (2404.10102)."""
KAPLAN = {"Nc": 6.4e13, "aN": 0.076, "Dc": 1.8e13, "aD": 0.103}
"""Kaplan et al. 2020, Table 2."""
real = pytest.mark.usefixtures("fits_data")


def grid(sizes=6, budgets=5):
    """N over three decades, each trained on 5 to 80 tokens a parameter."""
    params, ratio = np.meshgrid(np.geomspace(1e6, 1e9, sizes), np.geomspace(5, 80, budgets))
    return params.ravel(), (params * ratio).ravel()


def planted(function=laws.surface, constants=CHINCHILLA, noise=0.0, seed=0, sizes=6, budgets=5):
    params, tokens = grid(sizes, budgets)
    scatter = np.exp(noise * np.random.default_rng(seed).standard_normal(len(params)))
    return point_set(function(params, tokens, **constants) * scatter, params=params, tokens=tokens)


@pytest.mark.parametrize(
    ("law", "function", "constants"),
    [
        (SURFACE, laws.surface, CHINCHILLA),
        (SURFACE_KAPLAN, laws.surface_kaplan, KAPLAN),
        (COUPLED, laws.coupled, CHINCHILLA | {"gamma": 0.6, "A": 9e3, "B": 4e4}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_exact_points_give_back_the_planted_constants(law, function, constants):
    fit = fit_separable(planted(function, constants), law, 0, 0)
    for name, each in fit.parameters.items():
        # The objective is quadratic in the error: double precision leaves about 1e-8 of the log
        # loss, which amplitudes N0^alpha from the data magnify a thousandfold.
        assert each.value == pytest.approx(constants[name], rel=1e-4)
    assert fit.diagnostics["gradient_norm"] < 1e-6
    assert fit.diagnostics["starts_agreeing"] >= 6


def test_learning_curves_give_back_kaplans_constants():
    constants = {"Nc": 6.5e13, "aN": 0.077, "Sc": 2.1e3, "aS": 0.76}
    params, steps = np.meshgrid(np.geomspace(1e5, 1e9, 5), np.geomspace(1e3, 1e5, 8))
    params, steps = params.ravel(), steps.ravel()
    found = point_set(laws.learning_curve(params, steps, **constants), params=params, steps=steps)
    fit = fit_separable(found, LEARNING_CURVE, 0, 0)
    for name, each in fit.parameters.items():
        assert each.value == pytest.approx(constants[name], rel=1e-4)


def test_one_break_is_found():
    constants = {"irreducible": 0.5, "scale": 1e3, "exponent": 0.1, "exponent_after": 0.4,
                 "break_at": 1e6, "width": 0.5}  # fmt: skip
    x = np.geomspace(1e3, 1e9, 25)
    fit = fit_separable(point_set(laws.broken(x, **constants), params=x), BROKEN.of("params"), 0, 0)
    for name, each in fit.parameters.items():
        assert each.value == pytest.approx(constants[name], rel=1e-3)


def test_repeated_data_gives_back_the_planted_decay():
    constants = CHINCHILLA | {"params_decay": 5.3, "tokens_decay": 15.4}
    params, tokens = grid()
    params, tokens = np.tile(params, 3), np.tile(tokens, 3)
    unique = tokens / np.repeat([1.0, 4.0, 40.0], len(tokens) // 3)
    columns = {"params": params, "unique_params": 0.05 * unique, "tokens": tokens,
               "unique_tokens": unique}  # fmt: skip
    found = point_set(laws.data_constrained(**columns, **constants), **columns)
    fit = fit_separable(found, DATA_CONSTRAINED, 0, 0)
    for name, each in fit.parameters.items():
        assert each.value == pytest.approx(constants[name], rel=1e-3)


@real
def test_muennighoffs_published_loss():
    value = laws.data_constrained(
        6.34e9, 0.051 * 25e9, 242e9, 25e9, np.exp(0.6254804), np.exp(6.255414), 0.3526596,
        np.exp(7.3049974), 0.3526596, 5.309743, 15.387756,
    )  # fmt: skip
    # 0.051 is U_N/U_D rounded to two digits: 2% of U_N moves the loss by less than 1e-3.
    assert value == pytest.approx(2.2256440889984477, abs=1e-3)


def read(name):
    with (FITS / name).open() as file:
        return list(csv.DictReader(file))


@real
def test_chinchilla_is_fitted_better_than_published():
    rows = read("chinchilla_isoflop_234.csv")
    params, tokens, loss = (np.array([float(r[k]) for r in rows]) for k in ("N", "D", "loss"))
    fit = fit_separable(point_set(loss, params=params, tokens=tokens), SURFACE, 0, 0)
    residual = np.log(laws.surface(params, tokens, 1.70044, 185.388, 0.28923, 1627.0, 0.35560))
    published = solve.objective((residual - np.log(loss))[None], np.ones(len(loss)), 1e-3)[0]
    assert fit.objective["delta"] == 1e-3
    assert fit.objective["value"] <= published
    assert fit.diagnostics["starts_agreeing"] == fit.diagnostics["starts"]


@real
@pytest.mark.parametrize("delta", [1e-3, 1e-4])
def test_gemstones_is_fitted_no_worse_than_published(delta):
    with (FITS / "gemstones_hot.jsonl").open() as file:
        rows = [json.loads(line) for line in file]
    columns = ("params_active_precise", "tokens", "final_loss")
    params, tokens, loss = (np.array([float(r[k]) for r in rows]) for k in columns)
    name = f"parameters_delta{int(np.log10(delta))}/approach_3_parameters_grid_search_0_hot.json"
    row = next(r for r in read("gemstones_published_fits.csv") if r["file"] == name)
    fit = fit_separable(point_set(loss, params=params, tokens=tokens), SURFACE, 0, 0, delta=delta)
    assert fit.objective["value"] <= float(row["objective_sum_huber"])


def test_intervals_cover_about_nominally():
    hits = []
    for seed in range(40):
        fit = fit_separable(planted(noise=0.003, seed=seed), SURFACE, 20, seed)
        assert fit.diagnostics["intervals"] == "profile likelihood"
        hits.append([fit.parameters[k].low <= v <= fit.parameters[k].high
                     for k, v in CHINCHILLA.items()])  # fmt: skip
    # 95% of 40 has a standard error of 3.4%: four of them below would be 81%.
    assert np.all(np.mean(hits, axis=0) >= 0.81)


@pytest.mark.long
def test_intervals_cover_nominally():
    hits = []
    for seed in range(500):
        fit = fit_separable(planted(noise=0.003, seed=seed), SURFACE, 20, seed)
        hits.append([fit.parameters[k].low <= v <= fit.parameters[k].high
                     for k, v in CHINCHILLA.items()])  # fmt: skip
    covered = np.mean(hits, axis=0)
    # One standard error is 1%: two of them beside the aim of 93% to 97%.
    assert np.all((covered >= 0.91) & (covered <= 0.99)), covered


def test_the_exponent_a_is_quoted_with_its_profile():
    fit = fit_separable(planted(noise=0.003), SURFACE, 20, 0)
    truth = CHINCHILLA["beta"] / (CHINCHILLA["alpha"] + CHINCHILLA["beta"])
    low, high = fit.diagnostics["profile"]["a"]
    assert (low, high) == (fit.derived["a"].low, fit.derived["a"].high)
    assert low < truth < high
    params, tokens = (fit.derived[f"optimal_{name}"].value for name in ("params", "tokens"))
    assert 6 * params * tokens == pytest.approx(fit.diagnostics["flops_range"][1])


def test_what_one_decade_does_not_say_is_flagged():
    """Sizes within a factor 3 and 1% of noise: the amplitudes and the constant are free."""
    params, ratio = np.meshgrid(np.geomspace(1e6, 3e6, 5), np.geomspace(5, 20, 5))
    params, tokens = params.ravel(), (params * ratio).ravel()
    noise = np.exp(0.01 * np.random.default_rng(0).standard_normal(25))
    loss = laws.surface(params, tokens, **CHINCHILLA) * noise
    fit = fit_separable(point_set(loss, params=params, tokens=tokens), SURFACE, 20, 0)
    for name in ("irreducible", "A", "alpha", "a"):
        assert has_warning(fit, f"{name}_not_identified"), name


def test_rows_of_one_cell_are_one_cluster():
    found = planted(noise=0.003)
    twice = found.points.only(np.repeat(np.arange(len(found.points)), 2))
    loss = twice.loss * np.exp(0.003 * np.random.default_rng(1).standard_normal(len(twice)))
    labels = np.arange(len(twice)).astype(str)
    fit = fit_separable(
        replace(found, points=replace(twice, loss=loss, group=labels)), SURFACE, 30, 0
    )
    assert fit.bootstrap["method"] == "wild cluster"


def test_many_cells_are_resampled():
    fit = fit_separable(planted(noise=0.003, sizes=15, budgets=8), SURFACE, 200, 0)
    assert fit.bootstrap["method"] == "resampled cells"
    assert fit.diagnostics["intervals"] == "bootstrap percentiles"
    profile, drawn = fit.diagnostics["profile"]["a"], fit.derived["a"]
    # Two ways to the same interval; 200 draws give its ends to about 10% of its width.
    assert drawn.high - drawn.low == pytest.approx(profile[1] - profile[0], rel=0.4)


def test_a_huge_table_is_fitted_without_refits():
    params, tokens = grid(200, 125)
    noise = np.exp(0.01 * np.random.default_rng(0).standard_normal(len(params)))
    found = point_set(laws.surface(params, tokens, **CHINCHILLA) * noise,
                      params=params, tokens=tokens)  # fmt: skip
    fit = fit_separable(found, SURFACE, 100, 0)
    assert fit.bootstrap["method"] == "sandwich"
    spread = fit.parameters["alpha"].high - fit.parameters["alpha"].low
    assert 0 < spread < 0.01
    assert fit.value("alpha") == pytest.approx(CHINCHILLA["alpha"], abs=0.005)


def test_sandwich_draws_scatter_as_refits_do(monkeypatch):
    """The linearised draws of huge tables against full refits, on a table small enough for both."""
    found = planted(noise=0.003, sizes=20, budgets=10)
    _, data = scaled_data(found.points, SURFACE)
    theta = best_solution(SURFACE, data).theta
    cluster = clusters(found.points, SURFACE)
    whole = draw(cluster, SURFACE, data, theta, 0.004, 400, 0)
    monkeypatch.setattr("analysis.bootstrap.HUGE", 10)
    step = draw(cluster, SURFACE, data, theta, 0.004, 400, 0)
    assert (whole.method, step.method) == ("resampled cells", "sandwich")
    # 400 draws give a standard deviation to 3.5%; three of the difference's.
    np.testing.assert_allclose(step.theta.std(axis=0), whole.theta.std(axis=0), rtol=0.15)


def test_outliers_are_listed_and_both_refits_shown():
    found = planted(noise=0.003)
    loss = found.points.loss.copy()
    loss[3] *= 1.2
    fit = fit_separable(replace(found, points=replace(found.points, loss=loss)), SURFACE, 0, 0)
    assert [each["point"] for each in fit.diagnostics["outliers"]] == ["row 3"]
    refits = fit.diagnostics["refits"]
    least_squares = refits["all_points_least_squares"]["alpha"]
    without = refits["without_outliers"]["alpha"]
    assert abs(without - CHINCHILLA["alpha"]) < abs(least_squares - CHINCHILLA["alpha"])


def test_residuals_are_tabled_by_size_data_and_compute():
    table = fit_separable(planted(noise=0.003), SURFACE, 0, 0).diagnostics["residuals"]
    assert set(table) == {"params", "tokens", "flops"}
    assert [row["points"] for row in table["params"]] == [5] * 6
    assert sum(row["points"] for row in table["flops"]) == 30


def test_a_wrong_form_shows_where_seeds_repeat():
    """A coupled law with gamma far from 1, repeated with little noise, is no surface."""
    constants = CHINCHILLA | {"gamma": 0.3, "E": 0.5, "A": 9e3, "B": 4e4}
    params, tokens = (np.tile(each, 2) for each in grid())
    noise = np.exp(1e-4 * np.random.default_rng(0).standard_normal(len(params)))
    found = point_set(laws.coupled(params, tokens, **constants) * noise, params=params,
                      tokens=tokens)  # fmt: skip
    assert has_warning(fit_separable(found, SURFACE, 0, 0), "lack_of_fit")
    assert not has_warning(fit_separable(found, COUPLED, 0, 0), "lack_of_fit")


def test_same_points_and_seed_give_the_same_bytes_and_draws():
    def made(seed):
        fit = fit_separable(planted(noise=0.003), SURFACE, 30, seed, compare=True)
        return to_text(fit.as_json() | {"seconds": 0}), draws_csv(fit)

    assert made(0) == made(0)
    assert made(0)[1] != made(1)[1]
    assert len(made(0)[1].splitlines()) == 31


def test_hold_outs_and_forms_stand_side_by_side():
    found = fit_separable(planted(noise=0.003), SURFACE, 20, 0, compare=True).diagnostics
    assert all(each["points_above"] > 0 for each in found["holdout"])
    assert [each["law"] for each in found["forms"]] == ["surface", "coupled"]
    assert sum(each["weight"] for each in found["forms"]) == pytest.approx(1)
    # 0.3% of noise, extrapolated over up to a few decades: well below 5%, well above nothing.
    assert 1e-3 < found["forms"][0]["holdout_rms"] < 0.05


@pytest.mark.parametrize(
    ("params", "tokens", "message"),
    [
        ([1e6, 2e6], [1e8, 2e8], "2 different params; wanted at least 3"),
        ([1e6] * 8, np.geomspace(1e7, 1e9, 8), "all 8 points have params = 1e\\+06"),
        ([1e6, 2e6] * 4, np.geomspace(1e7, 1e9, 8), "2 different params; wanted at least 3"),
        ([1e6, 2e6, 4e6], [1e7, 2e7, 4e7], "3 usable points at 3 different params and tokens"),
        ([], [], "0 usable points"),
    ],
)
def test_points_that_cannot_carry_a_surface_are_refused(params, tokens, message):
    params, tokens = np.array(params, float), np.array(tokens, float)
    found = point_set(3 + np.arange(len(params)) * 0.01, params=params, tokens=tokens)
    with pytest.raises(ValueError, match=message) as error:
        fit_separable(found, SURFACE, 0, 0)
    assert "Add runs" in str(error.value)


def test_losses_below_the_rest_do_not_become_a_silent_constant():
    """One run of a loss far below all others: listed as an outlier, the fit holds."""
    found = planted(noise=0.003)
    loss = found.points.loss.copy()
    loss[-1] = 0.3
    fit = fit_separable(replace(found, points=replace(found.points, loss=loss)), SURFACE, 0, 0)
    assert has_warning(fit, "outliers")
    assert fit.value("alpha") == pytest.approx(CHINCHILLA["alpha"], abs=0.05)


def weak(tokens_term, seed, noise):
    """5 sizes x 4 budgets of a loss in which the data hardly matter, or do harm."""
    params, tokens = (
        each.ravel() for each in np.meshgrid(np.geomspace(1e6, 1e8, 5), np.geomspace(1e8, 1e10, 4))
    )
    scatter = np.exp(noise * np.random.default_rng(seed).standard_normal(20))
    loss = (1.8 + 400 / params**0.34 + tokens_term(tokens)) * scatter
    return point_set(loss, params=params, tokens=tokens)


def test_an_exponent_at_its_limit_takes_no_width_from_the_other_intervals():
    """beta ends at 8, where the derivative by it is eight decades above all others."""
    fit = fit_separable(weak(lambda tokens: 0 * tokens, 4, 0.003), SURFACE, 20, 0)
    assert "beta" in fit.diagnostics["bounds_active"]
    for name, truth in (("E", 1.8), ("A", 400), ("alpha", 0.34)):
        each = fit.parameters[name]
        assert each.low < truth < each.high, name
        # twenty runs of 0.3% noise cannot say more than 0.3%/20^0.5 of a loss, 0.07%
        assert each.high - each.low > 7e-4 * truth, name


def test_what_no_point_depends_on_is_not_identified():
    found = weak(lambda tokens: 0.002 * np.log(tokens / 1e8), 3, 0.001)
    fit = fit_separable(found, SURFACE, 40, 0)
    assert fit.value("B") == 0
    known = fit.parameters | fit.derived
    for name in ("beta", "a", "optimal_params", "loss_exponent"):
        assert np.isnan([known[name].low, known[name].high]).all(), name
        assert any(
            text.startswith(f"{name}_not_identified: with B = 0 no point depends on it")
            for text in fit.warnings
        ), name
    assert known["B"].low == 0
    assert has_warning(fit, "B_not_identified")
    assert not has_warning(fit, "alpha_not_identified")
    assert any(text.startswith("at_bound: B = 0 ended at a limit") for text in fit.warnings)


def test_budgets_that_differ_by_rounding_are_one_and_no_hold_out_is_empty():
    """An isoFLOP table with D = C/(6 N) in full: 6 N D of the dearest runs are not equal to the last bit."""
    params = np.geomspace(1e7, 1e9, 7)
    flops = np.repeat(np.geomspace(1e17, 1e20, 5), 7)
    params = np.tile(params, 5) * (flops / 1e17) ** 0.5
    tokens = flops / 6 / params
    dearest = (6 * params * tokens)[-7:]
    assert len(np.unique(dearest)) > 1
    noise = np.exp(0.003 * np.random.default_rng(0).standard_normal(35))
    loss = laws.surface(params, tokens, **CHINCHILLA) * noise
    found = point_set(loss, params=params, tokens=tokens)
    fit = fit_separable(found, SURFACE, 0, 0, compare=True)
    splits = fit.diagnostics["holdout"]
    assert splits
    assert all(each["points_above"] % 7 == 0 and each["points_above"] for each in splits)
    assert all(np.isfinite(each["rms_error"]) for each in splits)
