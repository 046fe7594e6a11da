"""The weight of a row is the inverse square of its own noise, for every law that can use it."""

from dataclasses import replace

import numpy as np
import pytest

from analysis import laws
from analysis.__main__ import main
from analysis.batch_levels import hyperbola, levels
from analysis.fit_critical_batch import fit_critical_batch
from analysis.fit_isoflop import _noise, _samples, fit_isoflop
from analysis.isoflop import budgets
from analysis.points import LossPoints, PointSet, seed_noise
from analysis.residual_tables import lack_of_fit
from tests.analysis.planted import point_set
from tests.analysis.test_isoflop import BATCHES, KAPLAN, at_levels, study

NOTHING = 1e-12
"""A weight that leaves a row no say: what it moves is 1e-12 of what the others say."""


def joined(*parts: LossPoints) -> PointSet:
    """Points of several sets as one, each row with its weight and group."""
    columns = {name: np.concatenate([getattr(each, name) for each in parts])
               for name in ("loss", "params", "flops", "tokens", "steps", "batch", "weight", "group")}  # fmt: skip
    return point_set(columns.pop("loss"), **columns)


def weighing(found: PointSet, weight: float, wrong: float = 1.0) -> LossPoints:
    """The same rows, each of this weight, with losses that are `wrong` times theirs."""
    points = found.points
    return replace(points, weight=np.full(len(points), weight), loss=points.loss * wrong)


def constants(fit):
    return [each.value for each in (*fit.parameters.values(), *fit.derived.values())]


def test_isoflop_rows_of_no_weight_move_no_minimum():
    whole = study(noise=0.003)
    wild = replace(whole, points=whole.points.only(np.arange(len(whole.points)) % 3 == 0))
    fit = fit_isoflop(joined(whole.points, weighing(wild, NOTHING, wrong=1.2)), 0, 0)
    alone = fit_isoflop(whole, 0, 0)
    for way in (
        "parabola",
        "cubic",
        "akima",
    ):  # the mean that a spline goes through is weighted too
        value, expected = (each.derived[f"a_{way}"].value for each in (fit, alone))
        assert value == pytest.approx(expected, rel=1e-6), way
    both = fit_isoflop(joined(whole.points, weighing(wild, 1.0, wrong=1.2)), 0, 0)
    assert abs(both.derived["a_parabola"].value - alone.derived["a_parabola"].value) > 0.01


def test_an_isoflop_row_of_twice_the_weight_counts_as_two():
    whole = study(noise=0.003)
    twice = np.arange(len(whole.points)) % 2 == 0
    weighed = replace(whole.points, weight=np.where(twice, 2.0, 1.0))
    repeated = joined(whole.points, whole.points.only(twice))
    one, other = (fit_isoflop(each, 0, 0, routes=False)
                  for each in (replace(whole, points=weighed), repeated))  # fmt: skip
    assert constants(one) == pytest.approx(constants(other), rel=1e-9)


def test_the_noise_of_an_isoflop_row_is_by_its_weight():
    """Runs of weight w scatter by sd/w^(1/2), their weighted mean by sd over the root of the sum."""
    params, weight = np.array([1e7, 2e7, 4e7, 4e7, 8e7, 16e7]), np.array([4, 1, 1, 3, 1, 2.0])
    points = point_set(np.full(6, 2.0), params=params, flops=np.full(6, 1e17), weight=weight).points
    (known,) = budgets(points)
    (sample,) = _samples([known], np.arange(6), (0.01, 1000), 4000, 0)
    expected = 0.01 / np.sqrt(np.array([4, 1, 4, 1, 2]) / weight.mean())
    # The error of a standard deviation of 4000 is 1.1%, four of them 4.5%.
    assert (sample - known.log_loss).std(axis=0) == pytest.approx(expected, rel=0.045)


def test_the_scatter_of_isoflop_rows_is_that_of_the_mean_weight():
    """2,000 budgets whose first size is measured three times as well: the pooled noise is that of weight 1."""
    rng, sizes = np.random.default_rng(0), 1e7 * 2.0 ** np.arange(6)
    weight = np.array([9.0, 1, 1, 1, 1, 1])
    weight = weight / weight.mean()
    known = []
    for index in range(2000):
        loss = 2 * np.exp(0.01 * rng.standard_normal(6) / np.sqrt(weight))
        points = point_set(loss, params=sizes, flops=np.full(6, 1e17), weight=weight).points
        known += [replace(budgets(points)[0], rows=np.arange(6) + 6 * index)]
    sd, free = _noise(known, np.arange(12000))
    assert free == 6000
    assert sd == pytest.approx(0.01, rel=4 / np.sqrt(2 * free))  # four standard errors


@pytest.mark.parametrize("law", ["levels", "curves"])
def test_batches_of_no_weight_move_no_critical_batch(law):
    """Of one batch the steps are wrong by half: at shared losses, and as a learning curve."""
    found = at_levels() if law == "levels" else curves()
    wild = found.points.only(found.points.batch == BATCHES[1])
    wild = replace(wild, batch=wild.batch * 2, steps=wild.steps * 1.5,
                   group=np.full(len(wild), "wild"))  # fmt: skip
    alone = fit_critical_batch(found, 0, 0)
    light, heavy = (
        fit_critical_batch(joined(found.points, replace(wild, weight=np.full(len(wild), weight))), 0, 0)
        for weight in (NOTHING, 1.0)
    )  # fmt: skip
    for name in KAPLAN:
        assert light.value(name) == pytest.approx(alone.value(name), rel=1e-6)
    assert abs(heavy.value("B_star") / alone.value("B_star") - 1) > 0.05
    # 25 rows that fit and 5 of no weight: what they miss is not in the figure
    assert light.objective["value"] < 1e-3 < heavy.objective["value"]


def curves() -> PointSet:
    """Learning curves at five batches, whose evaluations share no loss."""
    curve = np.geomspace(4.5, 2.6, 60)
    parts = []
    for each in BATCHES:
        least, crit = 1e3 * (4 / curve) ** 5, laws.critical_batch(curve, **KAPLAN)
        parts.append(point_set(
            curve * (1 + 1e-9 * each / 1e4), batch=np.full(60, each), group=np.full(60, f"{each:g}"),
            steps=laws.steps_at_batch(each, least, crit)).points)  # fmt: skip
    return joined(*parts)


def test_a_row_of_twice_the_weight_counts_as_two_in_a_hyperbola():
    batch, steps = np.array([1.0, 2, 4, 8]), np.array([11.0, 6.5, 3.4, 2.3])
    twice = np.array([0, 0, 1, 2, 3, 3])
    one = hyperbola(batch, steps, np.array([2.0, 1, 1, 2]))
    assert one == pytest.approx(hyperbola(batch[twice], steps[twice]), rel=1e-9)


def test_a_reading_between_two_evaluations_has_the_noise_between_theirs():
    found = curves()
    rise = np.tile(np.geomspace(1, 100, 60), len(BATCHES))
    points = replace(found.points, weight=1 / rise)
    mean = points.weight.mean()
    for level in levels(points):
        at = np.searchsorted(-points.loss[:60], -level.loss)
        low, high = rise[at - 1] * mean, rise[at] * mean
        assert np.all((low <= 1 / level.weight) & (1 / level.weight <= high))


def test_losses_that_were_measured_better_say_more_of_the_exponent():
    """At the highest loss the steps of all batches are as if its critical batch were twice the law's."""
    found = at_levels(losses=(4.0, 3.5, 3.0, 2.7))
    points, top = found.points, found.points.loss == 4.0
    crit = laws.critical_batch(4.0, **KAPLAN)
    steps = np.where(top, laws.steps_at_batch(points.batch, 1e3, 2 * crit), points.steps)
    light = replace(points, steps=steps, weight=np.where(top, NOTHING, 1.0))
    fit = fit_critical_batch(replace(found, points=light), 0, 0)
    for name, value in KAPLAN.items():
        assert fit.value(name) == pytest.approx(value, rel=1e-6)


def test_seeds_of_unequal_noise_are_pooled_by_their_weights():
    """Noise of a third at weight 9: both the spread between seeds and the F test are of the mean weight."""
    rng, cells = np.random.default_rng(1), 4000
    weight = np.tile([9.0, 1.0], cells)
    weight = weight / weight.mean()
    noise = 0.01 * rng.standard_normal(2 * cells) / np.sqrt(weight)
    params = np.repeat(np.arange(1.0, cells + 1), 2)
    points = point_set(2 * np.exp(noise), params=params, tokens=params, weight=weight).points
    found = seed_noise(points)
    # Four standard errors of a standard deviation.
    assert found.relative_sd == pytest.approx(0.01, rel=4 / np.sqrt(2 * cells))
    tested = lack_of_fit(points, -noise * np.sqrt(weight), 0)
    assert tested["f"] == pytest.approx(1, abs=4 * np.sqrt(4 / cells))


def test_weights_of_any_range_give_a_fit_or_a_reason(tmp_path, capsys):
    """Sixteen decades, as of standard errors that somebody squared twice: what is left is fitted."""
    rng, found = np.random.default_rng(0), study(noise=0.003).points
    path = tmp_path / "w.csv"
    rows = zip(found.params, found.flops / 6 / found.params, found.flops, found.loss,
               10.0 ** rng.integers(-8, 8, len(found)), strict=True)  # fmt: skip
    lines = [
        "params,tokens,flops,loss,weight",
        *(",".join(f"{x:.9g}" for x in row) for row in rows),
    ]
    path.write_text("\n".join(lines) + "\n")
    for law in ("surface", "isoflop"):
        status = main(["fit", str(path), "--law", law, "--bootstrap", "20"])
        said = capsys.readouterr()
        if status:
            assert "wanted at least" in said.err
            assert "less than 1e-06 of the largest" in said.err
        else:
            assert "less than 1e-06 of the largest" in said.out
