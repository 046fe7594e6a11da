"""What follows from the laws, against the papers' own numbers."""

import numpy as np
import pytest

from analysis import derived, laws
from analysis.laws import PF_DAY

HOFFMANN = {"A": np.exp(6.0073404), "alpha": 0.33917084, "B": np.exp(6.0179186), "beta": 0.2849083}
KAPLAN = {"Nc": 6.4e13, "aN": 0.076, "Dc": 1.8e13, "aD": 0.103}  # Table 2
CURVE = {"Nc": 6.5e13, "aN": 0.077, "Sc": 2.1e3, "aS": 0.76}  # Table 3
BATCH = {"B_star": 2.1e8, "aB": 0.21}


def test_chinchillas_best_model_for_its_compute():
    params, tokens = derived.optimal_allocation(5.76e23, **HOFFMANN)
    assert params == pytest.approx(40e9, rel=0.02)
    assert tokens == pytest.approx(2.4e12, rel=0.02)
    assert derived.optimum_of("surface", HOFFMANN, 5.76e23)["a"] == pytest.approx(0.457, abs=5e-4)


def test_the_allocation_is_the_least_loss_at_its_compute():
    flops = 1e21
    best, _ = derived.optimal_allocation(flops, **HOFFMANN)
    params = best * np.geomspace(0.5, 2, 1001)
    loss = laws.surface(params, flops / 6 / params, 1.69, **HOFFMANN)
    assert np.argmin(loss) == 500
    kaplan = derived.inner_surface("surface-kaplan", KAPLAN)
    best, _ = derived.optimal_allocation(flops, **kaplan)
    params = best * np.geomspace(0.5, 2, 1001)
    assert np.argmin(laws.surface_kaplan(params, flops / 6 / params, **KAPLAN)) == 500


def test_the_compute_of_a_best_size_is_the_inverse():
    flops = derived.optimal_flops_of_params(1e9, **HOFFMANN)
    params, tokens = derived.optimal_allocation(flops, **HOFFMANN)
    assert params == pytest.approx(1e9)
    assert derived.optimal_flops_of_tokens(tokens, **HOFFMANN) == pytest.approx(flops)


def test_kaplans_excess_compute():
    """Appendix B: 0.6x to 2.2x of the best size costs at most 20% more; 2.2x needs 45% fewer
    steps."""
    cost, steps = derived.excess_compute(np.array([0.6, 1.0, 2.2]), CURVE["aN"], CURVE["aS"])
    np.testing.assert_allclose(cost, [1.16, 1.0, 1.20], atol=0.01)
    assert steps[2] == pytest.approx(0.547, abs=0.005)
    assert np.isnan(derived.excess_compute(1e-30, CURVE["aN"], CURVE["aS"])[0])


def test_the_excess_compute_of_a_surface_is_what_it_takes():
    """The wrong size, trained for the tokens that are said, has the loss of the best one."""
    flops = 1e21
    params, tokens = derived.optimal_allocation(flops, **HOFFMANN)
    best = laws.surface(params, tokens, 1.69, **HOFFMANN)
    for ratio in (0.5, 1.0, 3.0):
        cost, more = derived.excess_compute_of_surface(ratio, flops, **HOFFMANN)
        assert laws.surface(ratio * params, more * tokens, 1.69, **HOFFMANN) == pytest.approx(best)
        assert cost == pytest.approx(ratio * more)
        assert cost >= 1
    assert np.isnan(derived.excess_compute_of_surface(1e-9, flops, **HOFFMANN)[0])


def test_kaplans_tokens_against_overfitting():
    tokens = derived.tokens_against_overfitting(1e9, 0.02, **KAPLAN)
    assert tokens == pytest.approx(5.5e3 * 1e9 ** (0.076 / 0.103), rel=0.02)
    assert derived.overfitting(1e9, tokens, **KAPLAN) == pytest.approx(0.02)
    whole = laws.surface_kaplan(1e9, tokens, **KAPLAN) / laws.surface_kaplan(1e9, 1e30, **KAPLAN)
    assert whole - 1 == pytest.approx(0.02, rel=1e-6)


def test_early_stopping_bound():
    assert derived.early_stopping_step(3.0, 2.9, 2.1e3, 0.76) == pytest.approx(
        2.1e3 / 0.1 ** (1 / 0.76)
    )
    assert np.isinf(derived.early_stopping_step(2.9, 2.9, 2.1e3, 0.76))


@pytest.mark.parametrize(("loss", "batch"), [(4, 2.85e5), (3, 1.12e6), (2.5, 2.67e6), (2, 7.74e6)])
def test_kaplans_critical_batch(loss, batch):
    assert laws.critical_batch(loss, **BATCH) == pytest.approx(batch, rel=0.005)


def test_kaplans_efficient_frontier():
    """Appendix B.1: L = (C_c/C)^alpha, C_c = 6 N_c B* S_c (1 + aN/aS)^(1/aS + 1/aN)
    (aS/aN)^(1/aS)."""
    found = derived.efficient_frontier(PF_DAY, **CURVE, **BATCH)
    ratio = CURVE["aN"] / CURVE["aS"]
    inverse = 1 / CURVE["aN"], 1 / CURVE["aS"], 1 / BATCH["aB"]
    scale = 6 * CURVE["Nc"] * BATCH["B_star"] * CURVE["Sc"] * ratio ** -inverse[1]
    scale *= (1 + ratio) ** (inverse[0] + inverse[1])
    assert found["loss"] == pytest.approx((scale / PF_DAY) ** (1 / sum(inverse)))
    # Table 6 (N = 1.3e9, B = 2.0e6, S_min = 5.4e3) is another fit of theirs, to other points
    for name, value in (("params", 1.3e9), ("batch", 2.0e6), ("steps", 5.4e3)):
        assert 0.4 < found[name] / value < 2.5
    spent = 6 * found["params"] * found["batch"] * found["steps"]
    assert spent == pytest.approx(PF_DAY, rel=1e-9)
    curve = laws.learning_curve(found["params"], found["steps"], **CURVE)
    assert found["loss"] == pytest.approx(curve)
    grown = derived.efficient_frontier(10 * PF_DAY, **CURVE, **BATCH)
    exponents = derived.frontier_exponents(CURVE["aN"], CURVE["aS"], BATCH["aB"])
    assert np.log10(grown["params"] / found["params"]) == pytest.approx(exponents["params"])
    assert exponents["loss"] == pytest.approx(0.052, abs=5e-4)


def test_steps_and_compute_at_the_critical_batch_double():
    assert laws.steps_at_batch(1e6, 5e3, 1e6) == 1e4
    assert laws.minimum_steps(1e4, 1e6, 1e6) == 5e3
    assert laws.minimum_flops(2.0, 1e6, 1e6) == 1.0


def test_kaplans_contradiction():
    """Section 6.3: L(C_min) and L(D) at the frontier's tokens meet near 1e4 PF-days, 1.7 nats,
    uncertain by an order of magnitude. Their D = 2e10 C^0.27 is twice C/6N: they train at B_crit."""
    params_scale = PF_DAY * (1.3e9 / 2) ** (-1 / 0.73)  # N/2, so that C/6N is their D
    flops, loss = derived.crossing(
        {"scale": 3.1e8 * PF_DAY, "exponent": 0.050}, {"scale": 5.4e13, "exponent": 0.095},
        params_scale, 0.73,
    )  # fmt: skip
    assert 1e3 < flops / PF_DAY < 1e5
    assert loss == pytest.approx(1.7, abs=0.15)


def test_nats_per_image_and_back():
    """Henighan Table 3, 16x16: 1 nat per image at 1.7e10 PF-days, from Table 1's 1.6e-8 and 0.16."""
    flops = derived.x_for_reducible(1.0, 1.6e-8, 0.16, 768)
    assert flops == pytest.approx(1.7e10, rel=0.05)
    assert derived.reducible_per_sample(flops, 1.6e-8, 0.16, 768) == pytest.approx(1.0)
