"""Laws of what is inside a run: mutual information against size, and the loss by place in the context."""

from dataclasses import replace

import numpy as np
import pytest

from analysis import derived, laws
from analysis.fit_information import fit_information, information_line
from analysis.positions import largest_run, one_run_a_size, positions_of
from analysis.runs import Counting, StudyRuns, read_runs
from analysis.sources import fit_law
from analysis.words import has_warning
from tests.analysis.planted import PlantedRun, Surface, write_study

SIZES = np.geomspace(1e4, 1e8, 7)
TRUE = {"rate": 0.5, "Nc": 3e3}


def measured(noise, seed=0):
    exact = laws.mutual_information(SIZES, **TRUE)
    return exact + noise * np.random.default_rng(seed).standard_normal(len(SIZES))


def test_the_planted_line_comes_back():
    fit = fit_information(SIZES, measured(0.0), None, 0, 0)
    for name, value in TRUE.items():
        assert fit.value(name) == pytest.approx(value, rel=1e-9)
    at_end = fit.derived["information_at_largest"].value
    assert at_end == pytest.approx(laws.mutual_information(1e8, **TRUE))


def test_henighans_two_shares_give_their_rate():
    """Papers' check: 10% at 1e9 and 20% at 3e12 are 0.0125 for each e-fold, from about 3e5 on."""
    sizes = np.array([1e9, 3e12, np.sqrt(1e9 * 3e12)])
    fit = fit_information(sizes, np.array([0.10, 0.20, 0.15]), None, 0, 0)
    assert fit.value("rate") == pytest.approx(0.0125, rel=0.01)
    assert fit.value("Nc") == pytest.approx(3e5, rel=0.2)


def test_intervals_of_the_line_cover_as_they_say():
    """t quantiles are exact for normal noise: of 400 studies 95% have a standard error of 1.1%."""
    hits = []
    for seed in range(400):
        fit = fit_information(SIZES, measured(0.3, seed), None, 300, seed)
        hits.append([fit.parameters[k].low <= v <= fit.parameters[k].high for k, v in TRUE.items()])
    assert np.all(np.abs(np.mean(hits, axis=0) - 0.95) < 0.04)


def test_three_points_that_lie_on_a_line_by_luck_are_no_surer_than_their_standard_errors():
    sizes, exact = SIZES[:3], measured(0.0)[:3]
    sure = fit_information(sizes, exact, None, 500, 0).parameters["rate"]
    fair = fit_information(sizes, exact, np.full(3, 0.1), 500, 0).parameters["rate"]
    assert sure.high - sure.low < 1e-9
    assert fair.high - fair.low > 0.1


def test_information_that_does_not_grow_is_said():
    flat = 1 + 0.1 * np.random.default_rng(0).standard_normal(7)
    assert has_warning(fit_information(SIZES, flat, None, 200, 0), "rate_not_identified")
    assert not fit_information(SIZES, measured(0.01), None, 200, 0).warnings


def test_the_band_is_finite_where_the_onset_overflows():
    """Nc = exp(middle - level/rate) of a rate near 0 is no number; the line and its band are."""
    flat = 1 + 1e-4 * np.random.default_rng(0).standard_normal(7)
    fit = fit_information(SIZES, flat, None, 200, 0)
    assert not np.all(np.isfinite(fit.draws["Nc"]))
    middle, low, high = information_line(fit, SIZES)
    assert np.all((low < middle) & (middle < high))
    assert middle == pytest.approx(np.ones(7), abs=4e-4)  # four standard deviations
    sure = fit_information(SIZES, measured(0.0), None, 20, 0)
    for each in information_line(sure, SIZES):
        assert each == pytest.approx(laws.mutual_information(SIZES, **TRUE))


@pytest.mark.parametrize(
    ("params", "information", "error", "message"),
    [
        ([1e4, 1e5], [1.0, 2.0], None, "at 2 different sizes; wanted at least 3"),
        ([1e4, 1e5, 0.0], [1.0, 2.0, 3.0], None, "point 2 has N = 0"),
        ([1e4, 1e5, 1e6], [1.0, np.nan, 3.0], None, "point 1 has N = 100000, information nan"),
        ([1e4, 1e5, 1e6], [1.0, 2.0, 3.0], [0.1, 0.0, 0.1], "standard error 0; wanted finite"),
    ],
)
def test_points_that_carry_no_line_are_refused(params, information, error, message):
    error = None if error is None else np.array(error)
    with pytest.raises(ValueError, match="study X: ") as said:
        fit_information(np.array(params), np.array(information), error, 0, 0, "study X")
    assert message in str(said.value)


# --- the loss by place ---


def test_two_halves_of_a_text_by_hand():
    """H by hand for T = 2, p = 1: H_2 = 3/2, H_4 = 25/12."""
    assert derived.harmonic(4, 1.0) == pytest.approx(25 / 12)
    assert derived.information_of_halves(2, 3.0, 1.2, 1.0) == pytest.approx((3 - 25 / 12) * 1.2)
    whole = 2 * 3.0 + (25 / 12 - 3 / 2) * 1.2
    share = derived.infogain_of_halves(2, 3.0, 1.2, 1.0)
    assert share == pytest.approx((3 - 25 / 12) * 1.2 / whole)
    # what the second half loses less for knowing the first, summed place by place
    place = np.arange(1, 5)
    curve = laws.by_position(place, 3.0, 1.2, 1.0)
    assert curve[:2].sum() - curve[2:].sum() == pytest.approx((3 - 25 / 12) * 1.2)
    columns = derived.information_of_halves(8, 3.0, np.ones(5), np.full(5, 0.6))
    assert columns.shape == (5,)


@pytest.fixture
def planted_run(tmp_path):
    runs = [
        PlantedRun(name, hidden_size=width, num_layers=2, tokens=2e5)
        for name, width in (("small", 32), ("large", 64))
    ]
    study = read_runs(write_study(tmp_path / "study", runs, Surface()))
    place = np.arange(1.0, 257)
    noise = np.exp(0.004 * np.random.default_rng(0).standard_normal(256))
    table = {
        "step": np.array([1, 2]),
        "loss": np.stack([np.full(256, 9.0), laws.by_position(place, 2.3, 5.4, 0.62) * noise]),
        "count": np.full((2, 256), 7),
    }
    table["loss"][1, 40], table["count"][1, 40] = np.nan, 0
    for run in study.runs:
        run.eval_position["valid"] = table
    return study


def test_the_loss_by_place_of_the_largest_run_is_fitted(planted_run):
    """Kaplan et al. 2020, figure 20: 2.3 + 5.4 T^-0.62, planted; a place where no token counts is none."""
    run = largest_run(planted_run, Counting())
    assert run.run_id == "large"
    found = positions_of(run, "valid")
    assert len(found.points) == 255
    fit = fit_law(found, "position", "position", 100, 0)
    for name, value in (("irreducible", 2.3), ("amplitude", 5.4), ("exponent", 0.62)):
        each = fit.parameters[name]
        assert each.low <= value <= each.high
        assert each.value == pytest.approx(value, rel=0.05)


def _after(run, run_id, unique, factors):
    """A run on a subset of so many tokens, whose losses by place and held-out losses are times these factors."""
    table = run.eval_position["valid"]
    held_out = run.eval.copy()
    held_out["loss"][-len(factors) :] = 3.0 * np.array(factors)
    places = {
        "step": held_out["step"][-len(factors) :],
        "loss": np.stack([table["loss"][-1] * factor for factor in factors]),
        "count": np.stack([table["count"][-1]] * len(factors)),
    }
    config = run.config | {"data": {"unique_tokens": unique}}
    return replace(
        run, run_id=run_id, config=config, eval=held_out, eval_position={"valid": places}
    )


def test_the_loss_by_place_is_not_that_of_an_over_fitted_run(planted_run):
    """Of equal sizes and lengths the most data counts, not the last name; of a run the lowest loss, not the last."""
    large = largest_run(planted_run, Counting())
    few = _after(large, "z-few", 1000, (1.5, 1.0, 3.0))
    most = _after(large, "a-most", 100_000, (1.2, 1.0, 1.1))
    study = replace(planted_run, runs=(most, few))
    assert largest_run(study, Counting()).run_id == "a-most"
    assert [each.run_id for each in one_run_a_size(study, "valid")] == ["a-most"]
    (alone,) = one_run_a_size(replace(study, runs=(few,)), "valid")
    np.testing.assert_array_equal(
        positions_of(alone, "valid").points.loss, positions_of(large, "valid").points.loss
    )


def test_runs_without_a_loss_by_place_are_refused(planted_run):
    with pytest.raises(ValueError, match="no loss by position on the split 'test'"):
        positions_of(planted_run.runs[0], "test")
    with pytest.raises(ValueError, match="no run has a loss by position") as said:
        largest_run(StudyRuns(planted_run.path, (), ()), Counting())
    assert "columns position and loss" in str(said.value)
