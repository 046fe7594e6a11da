"""What the figures of L(N, D) draw is what the tables beside them derive: the forms that the points allow."""

from dataclasses import replace

import numpy as np
import pytest

from analysis import figures_laws, laws, views_surface
from analysis.derived import excess_compute_of_surface, tokens_against_overfitting
from analysis.estimate import Estimate, Fit
from analysis.findings import Finding, Sample, findings
from analysis.laws import coupled
from analysis.routes import accepted_forms, form_weights
from analysis.runs import Counting, read_runs
from analysis.study_fits import StudyFits, by_convention
from analysis.views_laws import _conventions
from analysis.views_surface import RATIOS, _rule, excess_pictures, surface_pictures
from analysis.words import short
from tests.analysis.planted import Surface, ladder, point_set, write_study
from tests.analysis.test_findings import INNER, KAPLAN, TRUTH, fitted

COUPLED = {"E": 0.5, "A": 3e3, "alpha": 0.8, "B": 2e4, "beta": 0.7, "gamma": 0.35}


@pytest.fixture(scope="module")
def of_coupled():
    """Surface and Kaplan's law are rejected."""
    return fitted(lambda n, d: coupled(n, d, **COUPLED), 40, noise=1e-4)


@pytest.fixture(scope="module")
def of_surface():
    return fitted(lambda n, d: laws.surface(n, d, **TRUTH), 40)


@pytest.fixture(scope="module")
def of_kaplan():
    """The coupled law with E = 0 is this one with an exponent more."""
    return fitted(lambda n, d: laws.surface_kaplan(n, d, **KAPLAN), 40)


@pytest.fixture
def drawn(monkeypatch):
    """What the figures are given."""
    seen = {}

    def spy(name):
        def draw(*given):
            seen.setdefault(name, []).append(given)
            return real[name](*given)

        return draw

    real = {name: getattr(figures_laws, name) for name in ("by_tokens", "overfit", "excess")}
    for name in real:
        monkeypatch.setattr(figures_laws, name, spy(name))
    return seen


def captions(pictures):
    return {each.name: each.caption for each in pictures}


def test_a_rejected_form_is_drawn_nowhere(of_coupled, drawn):
    shown = captions(surface_pictures(of_coupled) + excess_pictures(of_coupled))
    assert set(shown) == {
        "surface",
        "overfit",
        "excess",
    }  # and no ellipse of the surface's exponents
    for name, text in shown.items():
        assert "L(N, D), coupled (AICc weight 1)" in text, name
        assert "Rejected, so not drawn: L(N, D) (AICc weight" in text, name
    ((_, _, fitted_loss, _),) = drawn["by_tokens"]
    points = of_coupled["surface"].found.points
    truth = coupled(points.params, points.tokens, **COUPLED)
    # noise of 1e-4 and 6 constants in 25 points: no fitted value is off by ten of it
    assert np.max(np.abs(fitted_loss / truth - 1)) < 1e-3


def test_over_fitting_is_drawn_by_the_form_that_the_points_have(of_coupled, drawn):
    (picture,) = [each for each in surface_pictures(of_coupled) if each.name == "overfit"]
    ((points, along, excess, lines, little, label),) = drawn["overfit"]
    endless = coupled(points.params, np.inf, **COUPLED)
    few = points.tokens == points.tokens.min()
    assert excess[few] == pytest.approx((points.loss / endless - 1)[few], rel=0.05)
    assert [rank for rank, _, _ in lines] == list(range(5))  # with a constant no curve of all sizes
    assert label == "N^(alpha/beta) / D"
    # the curve of a size goes through its points, as far as these follow the law
    for rank, x, law in lines:
        own = points.params == np.unique(points.params)[rank]
        through = np.interp(np.log(along[own]), np.log(x), law)
        assert through == pytest.approx(excess[own], abs=5e-4)
    assert "a curve for each size" in picture.caption
    rows = {each.name: each for each in findings(of_coupled, Sample("token", 1.0))}
    enough = rows["coupled:tokens_against_overfitting"]
    assert f"stays below 0.02 from {enough.shown} on" in picture.caption
    assert little == 0.02


def test_a_wrong_size_costs_what_the_table_says(of_coupled, drawn):
    excess_pictures(of_coupled)
    (((_, rows, _),)) = drawn["excess"]
    ((name, cost, ends),) = rows
    assert name == "L(N, D), coupled"
    table = {each.name: each.each for each in findings(of_coupled, Sample("token", 1.0))}
    for ratio in (0.5, 2.0):
        at = int(np.argmin(np.abs(np.log(RATIOS / ratio))))
        assert RATIOS[at] == pytest.approx(ratio)
        each = table[f"coupled:excess_compute_{ratio:g}"]
        assert cost[at] == pytest.approx(each.value, rel=1e-9)
        assert ends[0, at] <= each.value <= ends[1, at]
    flops = float(np.max(6 * of_coupled["surface"].found.points.params * 1e10))
    surface = excess_compute_of_surface(
        RATIOS, flops, **{n: of_coupled["surface"].fit.value(n) for n in INNER}
    )[0]
    assert np.nanmax(np.abs(cost / surface - 1)) > 0.02  # the rejected form says something else


def test_every_form_that_is_left_is_drawn(of_surface, drawn):
    """A surface is a coupled law with gamma = 1, so that AICc leaves both."""
    shown = captions(surface_pictures(of_surface) + excess_pictures(of_surface))
    assert set(shown) == {"surface", "ellipse", "overfit", "overfit-coupled", "excess"}
    assert "at each size the likeliest law, L(N, D) (AICc weight" in shown["surface"]
    assert "alpha 0." in shown["surface"]
    assert [name for name, *_ in drawn["excess"][0][1]] == ["L(N, D)", "L(N, D), coupled"]
    assert "Rejected, so not drawn: L(N, D) of Kaplan (AICc weight" in shown["excess"]
    assert views_surface.surface_pictures({}) == views_surface.excess_pictures({}) == []


def test_kaplans_law_is_one_curve_and_gives_his_rule(of_kaplan, drawn):
    shown = captions(surface_pictures(of_kaplan))
    given = {each[5]: each for each in drawn["overfit"]}
    assert [rank for rank, _, _ in given["N^(aN/aD) / D"][3]] == [None]
    text = next(
        text for text in shown.values() if "by L(N, D) of Kaplan" in text and "too few" in text
    )
    assert "one curve for all sizes" in text
    assert ", by D > " in text


def test_without_draws_the_curves_have_no_band(of_coupled, drawn):
    bare = {name: replace(each, fit=replace(each.fit, draws={n: np.empty(0) for n in each.fit.draws}))
            for name, each in of_coupled.items()}  # fmt: skip
    (picture,) = excess_pictures(bare)
    assert "shaded" not in picture.caption
    assert len(drawn["excess"][0][1][0][2]) == 0
    assert "excess" in captions(excess_pictures(bare))


def test_the_rule_for_tokens_has_an_interval_at_the_largest_size():
    constants = {"Nc": 1e13, "aN": 0.076, "Dc": 5e13, "aD": 0.1}
    draws = {name: value * np.ones(9) for name, value in constants.items()}
    draws["Dc"] = 5e13 * np.geomspace(0.5, 2, 9)
    fit = Fit(
        "surface-kaplan", "", None, {n: Estimate(v, v, v) for n, v in constants.items()},
        {}, 9, (), {}, {}, (), 0.0, draws=draws,
    )  # fmt: skip
    points = point_set(np.ones(1), params=np.array([1e9]), tokens=np.array([1e10])).points
    value = float(tokens_against_overfitting(1e9, 0.02, **constants))
    ends = np.quantile(tokens_against_overfitting(1e9, 0.02, **draws), [0.025, 0.975])
    shown = Finding("", "", Estimate(value, *ends), "tokens", "").shown
    factor = short(float(tokens_against_overfitting(1.0, 0.02, **constants)))
    said = _rule(fit, points, "law")
    assert said == f"At N = 1G it stays below 0.02 from {shown} on, by D > {factor} N^0.76."
    wide = replace(fit, draws=draws | {"Dc": 5e13 * np.geomspace(0.01, 100, 9)})
    assert _rule(wide, points, "law") == (
        "The tokens that keep it below 0.02 at N = 1G are not identified."
    )
    assert "gives no rule" in _rule(replace(fit, warnings=("at_bound: Dc",)), points, "law")


def test_the_exponent_of_a_rejected_form_is_counted_in_no_convention(tmp_path, of_coupled):
    study = read_runs(write_study(tmp_path / "s", ladder(tokens=2e5, evaluations=4), Surface()))
    fits = StudyFits(of_coupled, {})
    rejected = set(form_weights(of_coupled)) - set(accepted_forms(of_coupled))
    assert rejected == {"surface", "surface-kaplan"}
    rows = by_convention(study, Counting(), fits, rejected, 0, 0)
    assert {(each.law, each.exponent) for each in rows} == {("coupled", "a")}
    many = [replace(rows[0], params=name, value=0.5) for name in ("non-embedding", "total")]
    (picture,) = _conventions(many)
    assert picture.name == "conventions"
