"""Formulas, published constants and words, against the papers' own check values."""

import math

import numpy as np
import pytest

from analysis import __main__ as command
from analysis.estimate import Estimate, plain
from analysis.laws import CURVE_LAWS, LAW_NAMES, PF_DAY, optimal_params, power, power_constant
from analysis.points import X_NAMES
from analysis.published import HENIGHAN, published
from analysis.runs import FLOP_COUNTS, PARAM_COUNTS
from analysis.words import short, value_with_interval
from data_prep.domain import domain_names


@pytest.mark.parametrize(
    ("domain", "losses"),
    [
        ("image-8x8", (3.301, 3.180, 3.140)),
        ("image-32x32", (2.584, 2.411, 2.316)),
        ("video-codes-16x16x16", (1.798, 1.271, 1.096)),
        ("mathematics", (0.983, 0.616, 0.441)),
    ],
)
def test_henighan_l_of_n_check_values(domain, losses):
    row = HENIGHAN[domain].loss_by_params
    found = power_constant(np.array([1e5, 1e7, 1e9]), row.irreducible, row.scale, row.exponent)
    np.testing.assert_allclose(found, losses, atol=6e-4)


@pytest.mark.parametrize(
    ("domain", "size"), [("image-8x8", 3.1e8), ("image-16x16", 3.1e8), ("mathematics", 1.1e8),
                         ("video-codes-16x16x16", 3.0e8), ("text", 1.6e9)]
)  # fmt: skip
def test_n_opt_at_one_pf_day(domain, size):
    row = published(domain)
    assert row is not None
    found = optimal_params(np.array(1.0), row.params_scale, row.params_exponent)
    assert found == pytest.approx(size, rel=0.05)


def test_kaplan_check_values():
    row = published("text")
    assert row is not None
    size = row.loss_by_params
    assert power(np.array(1.5e9), size.scale, size.exponent) == pytest.approx(2.304, abs=5e-4)
    compute = row.loss_by_flops
    assert power(np.array(1.0), compute.scale, compute.exponent) == pytest.approx(2.574, abs=5e-4)


def test_published_rows_are_of_domains_that_exist_or_will():
    assert published("nonsense") is None
    assert {"mathematics", "image-8x8"} <= set(HENIGHAN) & set(domain_names())


def test_a_petaflop_day():
    assert PF_DAY == 1e15 * 24 * 3600


def test_the_command_offers_exactly_what_there_is():
    assert command.LAWS == LAW_NAMES
    assert command.X_NAMES == X_NAMES
    assert tuple(PARAM_COUNTS) == command.PARAM_COUNTS
    assert tuple(FLOP_COUNTS) == command.FLOP_COUNTS
    assert all(law.source for law in CURVE_LAWS.values())


@pytest.mark.parametrize("law", CURVE_LAWS.values(), ids=lambda law: law.name)
def test_slopes_are_the_derivatives_of_terms(law):
    u, at = np.array([0.3, 1.0, 5.0]), np.array([[0.4]])
    difference = (law.terms(u, at + 1e-6) - law.terms(u, at - 1e-6)) / 2e-6
    np.testing.assert_allclose(law.slopes(u, at)[..., 0], difference, atol=1e-8)


@pytest.mark.parametrize(
    ("value", "text"),
    [(98304, "98.3k"), (2e6, "2M"), (5.03e7, "50.3M"), (999_990, "1M"), (1.5e17, "1.5e17"),
     (2.3e-12, "2.3e-12"), (0, "0"), (0.25, "0.25"), (math.nan, "–")],
)  # fmt: skip
def test_short_numbers(value, text):
    assert short(value) == text


def test_intervals_in_words_and_json():
    assert value_with_interval(Estimate(0.3, 0.25, 0.35)) == "0.300 [0.250, 0.350]"
    assert value_with_interval(Estimate(152.3, 83.12, 232.1)) == "152 [83.1, 232]"
    assert value_with_interval(Estimate(0.3, math.nan, math.nan)) == "0.300"
    assert plain(math.inf) is None
    assert plain(1 / 3) == 0.3333333333
