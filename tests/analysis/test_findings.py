"""What follows from the fits comes from laws that the points allow, and a number that they do not give is none."""

import math
from dataclasses import replace

import numpy as np
import pytest

from analysis import derived, laws, sections
from analysis.estimate import Estimate
from analysis.findings import Finding, Sample, findings
from analysis.laws import coupled
from analysis.routes import accepted_forms, disagreements, form_weights, rejected_forms, routes
from analysis.study_fits import TRIALS, Attempt, attempt
from tests.analysis.planted import point_set

FORMS = ("surface", "surface-kaplan", "coupled")
KAPLAN = {"Nc": 8.8e13, "aN": 0.076, "Dc": 5.4e13, "aD": 0.095}
TRUTH = {"E": 0.9, "A": 150.0, "alpha": 0.35, "B": 1500.0, "beta": 0.37}
INNER = {name: value for name, value in TRUTH.items() if name != "E"}


def fitted(loss, draws, noise=0.001) -> dict[str, Attempt]:
    """The laws of N and D on a grid of 5 x 5 points of `loss`(N, D)."""
    params, tokens = (each.ravel() for each in np.meshgrid(
        np.geomspace(1e6, 1e8, 5), np.geomspace(1e8, 1e10, 5)))  # fmt: skip
    scatter = np.exp(noise * np.random.default_rng(1).standard_normal(25))
    found = point_set(loss(params, tokens) * scatter, params=params, tokens=tokens)
    return {each.name: attempt(each, found, draws, 0) for each in TRIALS if each.name in FORMS}


@pytest.fixture(scope="module")
def of_surface():
    return fitted(lambda n, d: laws.surface(n, d, **TRUTH), 100)


def test_a_form_that_the_points_reject_implies_nothing(of_surface):
    weights = form_weights(of_surface)
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["surface-kaplan"] < 1e-6
    assert accepted_forms(of_surface)[0] == "surface"
    (said,) = rejected_forms(of_surface)
    assert said.startswith("L(N, D) of Kaplan (AICc weight ")
    found = {each.name: each for each in findings(of_surface, Sample("token", 1.0))}
    assert not any(name.startswith("surface-kaplan") for name in found)
    assert "surface of Kaplan" not in dict(routes(of_surface))
    assert "AICc weight" in found["surface:overfitting"].words
    assert "points speak against it" in sections.implied(list(found.values()), of_surface)


def test_over_fitting_and_its_data_come_back_with_the_surface(of_surface):
    found = {each.name: each.each for each in findings(of_surface, Sample("token", 1.0))}
    endless = TRUTH["E"] + TRUTH["A"] / 1e8 ** TRUTH["alpha"]
    lost = TRUTH["B"] / 1e10 ** TRUTH["beta"] / endless
    enough = (TRUTH["B"] / (0.02 * endless)) ** (1 / TRUTH["beta"])
    for name, truth in (("overfitting", lost), ("tokens_against_overfitting", enough)):
        each = found[f"surface:{name}"]
        assert each.low < truth < each.high
        assert each.value == pytest.approx(truth, rel=0.1)


def test_the_form_that_the_points_have_is_the_one_that_speaks():
    """A coupled truth: the surface is rejected, and with it its route and that of the isoFLOP runs."""
    truth = {"E": 0.5, "A": 3e3, "alpha": 0.8, "B": 2e4, "beta": 0.8, "gamma": 0.35}
    tried = fitted(lambda n, d: coupled(n, d, **truth), 0, noise=1e-4)
    assert accepted_forms(tried) == ["coupled"]
    assert "By the surface L(N, D), coupled it is N_opt" in sections.answer(tried)
    isoflop = replace(tried["surface"].fit, law="isoflop", warnings=(), derived={
        "a_parabola": Estimate(0.5, 0.4, 0.6), "a_surface": Estimate(0.9, 0.8, 1.0)})  # fmt: skip
    tried["isoflop"] = replace(tried["surface"], name="isoflop", fit=isoflop)
    assert [name for name, _ in routes(tried)] == ["coupled surface", "isoFLOP parabola"]
    assert routes(tried)[0][1].value == pytest.approx(0.5, abs=0.02)


def test_forms_that_too_few_points_judge_are_all_kept(of_surface):
    few = {
        name: replace(each, fit=replace(each.fit, diagnostics={
            "forms": [{"law": other, "aicc": math.inf} for other in FORMS]}))
        for name, each in of_surface.items()
    }  # fmt: skip
    assert accepted_forms(few) == ["surface", "coupled", "surface-kaplan"]
    assert rejected_forms(few) == []


@pytest.mark.parametrize(("params", "tokens"), [(1e6, 1e8), (1e9, 2e9)])
def test_one_law_of_over_fitting_holds_for_every_form(params, tokens):
    """Kaplan et al. 2020, eqs 4.3 and 4.4, are the general ones with E = 0, gamma = aD."""
    general = derived.as_coupled("surface-kaplan", KAPLAN)
    assert coupled(params, tokens, **general) == pytest.approx(
        laws.surface_kaplan(params, tokens, **KAPLAN)
    )
    lost = derived.overfitting_of_surface(params, tokens, **general)
    assert lost == pytest.approx(derived.overfitting(params, tokens, **KAPLAN))
    enough = derived.tokens_against_overfitting_of_surface(params, lost, **general)
    assert enough == pytest.approx(tokens)
    law = derived.as_coupled("surface", TRUTH)
    lost = derived.overfitting_of_surface(params, tokens, **law)
    assert derived.tokens_against_overfitting_of_surface(params, lost, **law) == pytest.approx(
        tokens
    )


@pytest.mark.parametrize(
    ("each", "shown"),
    [
        (Estimate(9.29e6, 2.38e-185, 5.99e149), "not identified"),
        (Estimate(18.0, 1.256, 13.2e3), "not identified"),
        (Estimate(18.0, 1.256, math.inf), "not identified"),
        (Estimate(1e-3, 0.0, 2e-3), "not identified"),
        (Estimate(math.inf, math.nan, math.nan), "not identified"),
        (Estimate(18.0, 1.8, 175.0), "18 [1.800, 175] PF-days"),
        (Estimate(18.0, math.nan, math.nan), "18 PF-days"),
    ],
)
def test_a_number_over_a_factor_of_a_hundred_is_none(each, shown):
    row = Finding("x", "what", each, "PF-days", "somebody")
    assert row.shown == shown
    assert row.as_json()["identified"] is (shown != "not identified")


def test_routes_whose_intervals_do_not_meet_are_named():
    found = [("surface", Estimate(0.5, 0.45, 0.55)), ("frontier", Estimate(0.7, 0.6, 0.8)),
             ("envelope", Estimate(0.6, 0.5, 0.7))]  # fmt: skip
    (said,) = disagreements(found)
    assert said.startswith(
        "routes_disagree: by surface N_opt ∝ C^0.500 [0.450, 0.550], by frontier"
    )


def test_a_route_without_an_interval_neither_agrees_nor_disagrees():
    near, nothing = Estimate(0.5, 0.48, 0.52), Estimate(0.95, math.nan, math.nan)
    assert disagreements([("surface", near), ("frontier", nothing)]) == []
    assert sections._agreement([("surface", near), ("frontier", nothing)]) == ""
    said = sections._agreement([("surface", near), ("cubic", near), ("frontier", nothing)])
    assert "agree within their intervals; without an interval, so not compared: frontier" in said


def test_what_lies_beyond_the_data_is_said_by_the_hold_outs(of_surface):
    splits = of_surface["surface"].fit.diagnostics["holdout"]
    missed = 100 * max(each["rms_error"] for each in splits)
    assert missed < 1
    far = max(each["decades_above"] for each in splits)
    said = sections._beyond_sentence(of_surface)
    assert f"L(N, D) missed the runs up to {far:.1f} decades beyond it by {missed:.2g}%" in said
    assert "is a guess" in sections._beyond_sentence({})
