"""Formulas, published constants and words, against the papers' own check values."""

import math

import numpy as np
import pytest

from analysis import __main__ as command
from analysis import laws, solve
from analysis.estimate import Estimate, plain
from analysis.fit import fit_curve
from analysis.laws import PF_DAY, optimal_params, power, power_constant
from analysis.points import X_NAMES
from analysis.published import HENIGHAN, caution_of_kind, published, published_of_kind
from analysis.runs import FLOP_COUNTS, PARAM_COUNTS
from analysis.separable import LAW_NAMES, LOGARITHM, SEPARABLE_LAWS
from analysis.words import short, value_with_interval
from data_prep.domain import domain_names
from tests.analysis.planted import point_set


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


def test_text_in_another_vocabulary_is_text_with_a_caution():
    row, own = published("text"), published("text-v8192")
    assert own is not None
    assert own.loss_by_params == row.loss_by_params
    assert own.domain == "text"
    assert "not 8,192" in own.caution
    assert published("text-vast") is None


@pytest.mark.parametrize(
    ("domain", "kind", "loss"),
    [("text-to-image", "text", (5.6e8 / 1e9) ** 0.037), ("image-to-text", "text", 0.7**0.039),
     ("text-to-image", "pixel", 2.0 + (5.1e3 / 1e9) ** 0.16),
     ("image-to-text", "pixel", 2.0 + (5.5e3 / 1e9) ** 0.15)],
)  # fmt: skip
def test_pairs_have_a_published_law_of_each_kind_of_token(domain, kind, loss):
    row = published_of_kind(domain, kind)
    assert power_constant(1e9, row.irreducible, row.scale, row.exponent) == pytest.approx(loss)
    whole = published(domain)
    assert "pixels alone" in whole.caution
    assert optimal_params(1.0, whole.params_scale, whole.params_exponent) == pytest.approx(
        {"text-to-image": 2.6e8, "image-to-text": 1.9e8}[domain], rel=0.05
    )
    assert published_of_kind(domain, "padding") is None


@pytest.mark.parametrize("domain", ["text-to-image", "image-to-text"])
def test_pairs_with_captions_in_another_vocabulary_keep_the_law_of_their_pixels(domain):
    """The text's row counts padding, and so stands beside none of ours without a word."""
    row, own = published(domain), published(f"{domain}-v1024")
    assert own.loss_by_params == row.loss_by_params
    assert own.caution.startswith(row.caution)
    assert "of 1,024 pieces" in own.caution
    for kind in ("text", "pixel"):
        assert published_of_kind(f"{domain}-v1024", kind) == published_of_kind(domain, kind)
        said = caution_of_kind(f"{domain}-v1024", kind)
        assert ("includes padding" in said and "1,024 pieces" in said) == (kind == "text")
    assert "includes padding, and so" in caution_of_kind(domain, "text")
    assert published("mathematics-v1024") is None
    assert published_of_kind("mathematics", "text") is None
    assert caution_of_kind("mathematics", "answer") == ""


def test_a_logarithm_of_size_beside_the_power_law_of_kaplan():
    """Their figure 23: both describe 1e6 to 1e9, and part beyond it."""
    sizes = np.geomspace(1e6, 1e9, 4)
    both = laws.logarithm(sizes, 7.1e12, 0.25), power(sizes, 8.8e13, 0.076)
    assert np.abs(both[0] / both[1] - 1).max() < 0.07
    assert laws.logarithm(7.1e12, 7.1e12, 0.25) == pytest.approx(0)
    fit = fit_curve(point_set(both[0], params=sizes), LOGARITHM, "params", 0, 0)
    assert fit.value("scale") == pytest.approx(7.1e12, rel=1e-5)
    assert fit.value("slope") == pytest.approx(0.25, rel=1e-6)


def test_a_petaflop_day():
    assert PF_DAY == 1e15 * 24 * 3600


def test_the_command_offers_exactly_what_there_is():
    assert command.LAWS == LAW_NAMES
    assert command.X_NAMES == X_NAMES
    assert tuple(PARAM_COUNTS) == command.PARAM_COUNTS
    assert tuple(FLOP_COUNTS) == command.FLOP_COUNTS
    assert all(law.source for law in SEPARABLE_LAWS.values())


def example(law):
    """A few inputs and parameters of a law, none of them special."""
    rng = np.random.default_rng(0)
    log_x = rng.normal(size=(len(law.inputs), 7))
    if law.name == "data-constrained":  # unique amounts below the whole ones
        log_x[1::2] = log_x[::2] - rng.uniform(0, 2, (2, 7))
    if law.name == "logarithm":  # inputs below the scale, where the loss is positive
        log_x /= 10
    shape = np.array([[0.5 * each.grid[len(each.grid) // 2] + 0.3 for each in law.shapes]])
    constants = rng.uniform(0.5, 1, (1, len(law.constants)))
    return log_x, np.concatenate([constants, shape], axis=1)


@pytest.mark.parametrize("law", SEPARABLE_LAWS.values(), ids=lambda law: law.name)
def test_derivatives_are_those_of_the_value(law):
    log_x, theta = example(law)
    data = solve.Data(log_x, np.zeros((1, 7)), np.ones((1, 7)))
    _, jacobian = solve.derivatives(law, data, theta)
    for column in range(theta.shape[1]):
        step = np.zeros_like(theta)
        step[0, column] = 1e-6
        up, down = (solve.residuals(law, data, theta + each) for each in (step, -step))
        np.testing.assert_allclose(jacobian[:, column], (up - down) / 2e-6, atol=1e-8)


@pytest.mark.parametrize("law", SEPARABLE_LAWS.values(), ids=lambda law: law.name)
def test_the_split_form_is_the_published_formula(law):
    """What the engine computes and the pure function of the named constants are the same law."""
    log_x, theta = example(law)
    units = tuple({name: 2.0 + i for i, name in enumerate(law.unit_of)}[n] for n in law.unit_of)
    data = solve.Data(log_x, np.zeros((1, 7)), np.ones((1, 7)))
    split = len(law.constants)
    constants = law.named(theta[:, :split], theta[:, split:], units)
    inputs = [np.exp(column) * unit for column, unit in zip(log_x, units, strict=True)]
    value = law.function(*inputs, **{name: each[0] for name, each in constants.items()})
    np.testing.assert_allclose(np.log(value), solve.residuals(law, data, theta)[0], atol=1e-12)


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
