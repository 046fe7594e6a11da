"""Figures that not every study allows: drawn from runs made for them, absent otherwise."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.estimate import Estimate, Fit
from analysis.figures import interval_bars, paper, subplots, svg
from analysis.findings import Sample, findings
from analysis.laws import PF_DAY, learning_curve
from analysis.points import LossPoints, PointSet
from analysis.published import published
from analysis.runs import Counting, StudyRuns, read_runs
from analysis.study_fits import Attempt
from analysis.views_batch import noise_scale
from analysis.views_fixed import _at, fixed_pictures
from analysis.views_laws import _crossing
from analysis.views_runs import _by_kind, _by_split, to_reach
from analysis.views_shape import _cells
from analysis.views_shape import shapes as shapes_of
from launch.results import NOISE_COLUMNS
from tests.analysis.planted import PlantedRun, Surface, curves, point_set, write_study

SURFACE = Surface(a=150, b=1500, irreducible=0.9)
RUN = PlantedRun("one", hidden_size=64, num_layers=8, tokens=2e5, evaluations=6)


def names(pictures):
    return [each.name for each in pictures]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """One N in three proportions, N = 3 L d^2, and a size of one proportion."""
    runs = [
        replace(RUN, run_id=f"l{layers}", num_layers=layers, hidden_size=width)
        for layers, width in ((8, 64), (2, 128), (32, 32), (4, 32))
    ]
    return read_runs(write_study(tmp_path_factory.mktemp("shapes") / "s", runs, SURFACE))


def test_shapes_of_one_size_are_compared(shapes):
    (picture,) = shapes_of(shapes, Counting())
    assert "Shape at equal size" in picture.caption
    assert shapes_of(StudyRuns(shapes.path, shapes.runs[:2], ()), Counting()) == []


def test_losses_of_unequal_sizes_are_brought_together_by_the_law_of_their_domain(tmp_path):
    """Nothing but N differs between these shapes, and the law of the pictures has a constant."""
    law = published("image-8x8").loss_by_params
    surface = Surface(law.irreducible, law.scale, law.exponent, b=1e-30)
    made = [
        replace(RUN, run_id=f"l{layers}", num_layers=layers, hidden_size=width, length=192,
                domain="image-8x8")
        for layers, width in ((8, 64), (2, 126), (31, 32))
    ]  # fmt: skip
    study = read_runs(write_study(tmp_path / "study", made, surface))

    def spread(known):
        ((_, cell),) = _cells(study, Counting(), known)
        losses = [loss for _, loss in cell]
        return max(losses) / min(losses) - 1

    assert spread(published("image-8x8")) < 1e-6  # of a float32
    assert spread(published("text")) > 1e-3
    assert spread(None) > 1e-4
    (picture,) = shapes_of(study, Counting())
    assert "published L(N) = 3.12 + (80/N)^0.24" in picture.caption
    other = tuple(
        replace(run, config=run.config | {"domain": "known-entropy"}) for run in study.runs
    )
    (picture,) = shapes_of(replace(study, runs=other), Counting())
    assert "is not taken out, since no L(N) of this domain is published" in picture.caption


def test_splits_are_drawn_where_there_are_several(shapes):
    assert _by_split(shapes, Counting()) == []
    more = []
    for run in shapes.runs:
        other = run.eval.copy()
        other["split"], other["loss"] = b"test", other["loss"] * 1.1
        more.append(replace(run, eval=np.concatenate([run.eval, other])))
    assert names(_by_split(StudyRuns(shapes.path, tuple(more), ()), Counting())) == ["splits"]


def test_the_noise_scale_is_drawn_where_it_was_measured(shapes):
    assert noise_scale(shapes, Counting(), None) == []
    rows = np.zeros(8, NOISE_COLUMNS)
    # |G|^2 = 1 and tr S = 100 (McCandlish et al. 2018): a noise scale of 100 rows
    rows["batch_small"], rows["batch_big"] = 4, 8
    rows["square_small"], rows["square_big"] = 1 + 100 / 4, 1 + 100 / 8
    runs = tuple(replace(run, noise=rows) for run in shapes.runs)
    assert runs[0].noise_scale == pytest.approx(100)
    (picture,) = noise_scale(StudyRuns(shapes.path, runs, ()), Counting(), None)
    assert "Gradient noise scale" in picture.caption
    assert "Kaplan" not in picture.svg
    text = tuple(replace(run, config=run.config | {"domain": "text-v512"}) for run in runs)
    (picture,) = noise_scale(StudyRuns(shapes.path, text, ()), Counting(), None)
    assert "Kaplan" in picture.svg
    assert "a vocabulary of 50257, here of" in picture.caption


def test_an_open_end_of_an_interval_goes_to_the_edge_with_an_arrow():
    rows = [(0, Estimate(0.5, 0.4, 0.6), "k"), (1, Estimate(0.5, -np.inf, np.inf), "k"),
            (2, Estimate(0.5, 0.3, np.inf), "k"), (3, Estimate(0.5, np.nan, np.nan), "k")]  # fmt: skip
    with paper():
        drawing, axes = subplots()
        interval_bars(axes, rows)
        low, high = axes.get_xlim()
        bars = {
            float(line.get_ydata()[0]): [float(each) for each in line.get_xdata()]
            for line in axes.get_lines()
            if line.get_linestyle() == "-" and len(line.get_xdata()) == 2
        }
        marks = [line.get_marker() for line in axes.get_lines() if line.get_marker() in "<>"]
        svg(drawing)
    assert bars == {0: [0.4, 0.6], 1: [low, high], 2: [0.3, high]}
    assert low < 0.3 < 0.6 < high
    assert marks == ["<", ">", ">"]


def test_tokens_to_reach_a_loss_need_three_sizes():
    many = curves(Surface(), 1.2e4 * 4.0 ** np.arange(5), (1 / 50, 6)).points
    assert names(to_reach(many, "tokens", "tokens-to-reach", "words")) == ["tokens-to-reach"]
    assert to_reach(many.only(many.params < 1e5), "tokens", "tokens-to-reach", "words") == []


def after_steps(sizes):
    """Learning curves that follow L(N, S) exactly, and its fit."""
    c = {"Nc": 1e8, "aN": 0.08, "Sc": 50.0, "aS": 0.7}
    params, steps = (
        each.ravel() for each in np.meshgrid(sizes, 100.0 * 2.0 ** np.arange(6), indexing="ij")
    )
    group = np.array([f"N = {size:g}" for size in params])
    points = LossPoints.of(
        group, group, params=params, steps=steps, flops=6 * params * steps * 512,
        loss=learning_curve(params, steps, **c),
    )  # fmt: skip
    fit = law("steps", c)
    found = PointSet("L(N, S)", points, ())
    return points, {
        "learning-curve": Attempt("learning-curve", "L(N, S)", "", "steps", found, fit, "")
    }


def test_sizes_are_compared_after_the_same_compute_and_the_same_steps():
    sizes = 1e5 * 2.0 ** np.arange(4)
    points, tried = after_steps(sizes)
    assert names(fixed_pictures(tried)) == ["fixed-flops", "fixed-steps"]
    for x, level, steps in (
        ("steps", 400.0, np.full(4, 400.0)),
        (
            "flops",
            6 * 512 * 1e5 * 1600,
            1600 * 1e5 / sizes,
        ),  # each size for as many steps as it pays for
    ):
        params, loss, worth = _at(points, points.steps, x, level)
        np.testing.assert_array_equal(params, sizes)
        np.testing.assert_allclose(worth, steps, rtol=1e-12)
        expected = learning_curve(sizes, steps, Nc=1e8, aN=0.08, Sc=50.0, aS=0.7)
        np.testing.assert_allclose(loss, expected, rtol=1e-12)
    _, two = after_steps(sizes[:2])
    assert fixed_pictures(two) == []
    assert fixed_pictures({}) == []


def law(x, values, **diagnostics):
    parameters = {name: Estimate(value, np.nan, np.nan) for name, value in values.items()}
    return Fit("frontier", "", x, parameters, {}, 6, (), {}, diagnostics, (), 0.0,
               draws={name: np.empty(0) for name in values})  # fmt: skip


def trends(tokens_exponent):
    """L(C) = (1e15/C)^0.2, N_opt = C^0.5, L(D) = (1e7/6/D)^tokens_exponent above their constants."""
    best = {"params_scale": 1.0, "params_exponent": 0.5}
    flops = law("flops", {"irreducible": 1.0, "scale": 1e15, "exponent": 0.2} | best,
                x_range=[1e14, 1e17])  # fmt: skip
    tokens = law("tokens", {"irreducible": 1.0, "scale": 1e7 / 6, "exponent": tokens_exponent})
    found = point_set(
        np.array([2.0, 1.9]), params=np.array([1e5, 1e6]), flops=np.array([1e14, 1e17])
    )
    return {
        "frontier": Attempt("frontier", "frontier", "frontier", "flops", found, flops),
        "loss-by-tokens": Attempt("loss-by-tokens", "L(D)", "power", "tokens", found, tokens),
    }


def test_trends_that_meet_near_the_data_are_drawn_with_their_crossing():
    tried = trends(0.3)
    (picture,) = _crossing(tried)
    assert "contradict each other" in picture.caption
    found = {each.name: each.each.value for each in findings(tried, Sample("token", 1.0))}
    # D = C^0.5/6, so that (1e15/C)^0.2 = (1e7/C^0.5)^0.3 at C = 1e18
    assert found["crossing:flops"] * PF_DAY == pytest.approx(1e18)
    assert found["crossing:loss"] == pytest.approx(1e-3**0.2)


def test_trends_that_meet_nowhere_near_are_not():
    assert _crossing(trends(0.39)) == []


def test_kinds_of_token_have_the_published_law_beside_them(tmp_path):
    pairs = [
        replace(
            RUN,
            run_id=f"h{width}",
            hidden_size=width,
            domain="text-to-image",
            kinds=("text", "pixel"),
        )
        for width in (32, 64)
    ]
    study = read_runs(write_study(tmp_path / "study", pairs, SURFACE))
    (picture,) = _by_kind(study, Counting())
    assert "text: (560M/N)^0.037." in picture.caption
    assert "pixel: 2 + (5.1k/N)^0.16." in picture.caption
    assert picture.caption.count("includes padding") == 1
