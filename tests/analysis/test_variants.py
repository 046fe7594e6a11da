"""Experiments from variants: data limits, schedules, corrections of the exponent, shape and batch."""

from dataclasses import replace

import numpy as np
import pytest

from analysis import views_data, views_schedule, views_shape
from analysis.estimate import Estimate
from analysis.guards import over_fitted, unique_tokens, unusable
from analysis.laws import critical_batch, minimum_flops, steps_at_batch
from analysis.published import published
from analysis.runs import (
    Counting,
    StudyRuns,
    all_points,
    curve_points,
    final_points,
    only_data_varies,
    read_runs,
    refuse_variants,
)
from analysis.sources import fit_law, study_points
from analysis.study_fits import Attempt
from analysis.variants import (
    CONSTANT,
    HORIZON,
    TOO_FEW_MEET,
    WARM_UP,
    Correction,
    _place,
    at_equal_compute,
    corrections,
    schedules_compared,
    summed_rate,
)
from analysis.views_batch import batch_pictures
from tests.analysis.planted import LENGTH, PlantedRun, Surface, ladder, point_set, write_study

SURFACE = Surface(a=150, b=1500, irreducible=0.9)
RUN = PlantedRun("one", hidden_size=64, num_layers=8, tokens=2e5, evaluations=12)


def changed(run, variant="", counts=None, **tables):
    """A run with other tables in its configuration."""
    config = run.config | {"variant": variant}
    for name, table in tables.items():
        config[name] = (config.get(name) or {}) | table if isinstance(table, dict) else table
    return replace(run, config=config, counts=counts or run.counts)


def limited(run, unique, rise=0.0):
    """A run on a subset: held-out loss as of so many tokens at most, rising after its first passes."""
    table = run.eval.copy()
    seen = np.minimum(table["tokens"], unique)
    table["loss"] = SURFACE.loss(run.counts["params_non_embedding"], seen)
    table["loss"] *= 1 + rise * np.maximum(table["tokens"] / unique - 2, 0)
    name = f"{run.run_id}-{unique:g}"
    made = changed(run, f"{unique:g}", data={"unique_tokens": int(unique)})
    return replace(made, eval=table, run_id=name)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Three sizes of a constant rate, and one of them with another seed."""
    runs = [
        replace(RUN, run_id=f"h{width}", hidden_size=width, num_layers=width // 8)
        for width in (32, 64, 128)
    ]
    return read_runs(write_study(tmp_path_factory.mktemp("base") / "s", runs, SURFACE))


@pytest.fixture(scope="module")
def subsets(base):
    """Every size on three subsets, over-fitted on the smaller two, and on fresh data."""
    runs = [
        limited(run, unique, rise)
        for run in base.runs
        for unique, rise in ((6400, 0.02), (25600, 0.02), (102400, 0.0), (1e9, 0.0))
    ]
    return StudyRuns(base.path, tuple(runs), ())


def test_a_subset_counts_once_as_tokens(subsets):
    found = all_points(subsets, Counting()).points
    assert set(found.tokens) == {6400, 25600, 102400, 199936}
    for run, tokens in zip(subsets.runs, found.tokens, strict=True):
        assert tokens == min(unique_tokens(run), run.eval["tokens"][-1])
    repeats = all_points(subsets, Counting(), repeats=True).points
    assert np.all(repeats.tokens >= repeats.unique_tokens)
    assert np.any(repeats.tokens > repeats.unique_tokens)
    assert repeats.loss == pytest.approx(found.loss)


def test_one_law_of_size_and_data_crosses_subsets_and_finds_the_planted_one(subsets):
    assert only_data_varies(subsets)
    refuse_variants(subsets, None)
    fit = fit_law(study_points(subsets, "surface", "params", Counting()), "surface", "params", 0, 0)
    assert fit.value("beta") == pytest.approx(SURFACE.beta, rel=1e-3)
    assert any(text.startswith("early_stopped: 6 of 12 runs") for text in fit.warnings)
    by_tokens = final_points(subsets, Counting(), "tokens").points
    assert len(by_tokens) == 4
    assert len(set(by_tokens.params)) == 1


def test_ways_to_train_are_still_kept_apart(subsets):
    other = changed(subsets.runs[0], "warm", optimizer={"learning_rate": 1.0})
    mixed = replace(subsets, runs=(*subsets.runs, other))
    assert not only_data_varies(mixed)
    with pytest.raises(ValueError, match="variants in one law"):
        refuse_variants(mixed, None)


def test_over_fitting_by_design_is_no_divergence(subsets, base):
    run = limited(base.runs[0], 6400, rise=0.1)
    assert over_fitted(run, run.eval_rows("valid"))
    assert unusable(run, "valid", ()) is None
    endless = replace(run, config={**run.config, "data": {"unique_tokens": None}})
    assert "diverged or over-fitted" in str(unusable(endless, "valid", ()))
    train = run.train.copy()
    train["loss"][-40:] *= 3  # it did not learn its subset by heart: it diverged
    assert "diverged or over-fitted" in str(unusable(replace(run, train=train), "valid", ()))


def test_later_passes_are_no_learning_curve_of_fresh_data(subsets):
    found = curve_points(subsets, Counting())
    for run in subsets.runs:
        own = found.points.tokens[found.points.group == run.run_id]
        assert len(own) == 0 or own.max() <= unique_tokens(run)
    assert any(each.reason.startswith("repeated: ") for each in found.left_out)
    every = curve_points(subsets, Counting(include=("repeated",)))
    assert len(every.points) > len(found.points)


def test_the_bound_on_early_stopping_is_by_the_form_that_the_points_have(subsets):
    tried = {}
    for name in ("surface", "surface-kaplan"):
        found = study_points(subsets, name, "params", Counting())
        fit = fit_law(found, name, "params", 0, 0, compare=True)
        tried[name] = Attempt(name, f"law {name}", name, "params", found, fit)
    shown = {each.name: each for each in views_data.data_pictures(subsets, Counting(), tried)}
    assert "with L(N, ∞) by law surface (AICc weight 1)" in shown["early-stopping"].caption
    bare = {name: each for name, each in tried.items() if name == "surface"}
    assert {each.name for each in views_data.data_pictures(subsets, Counting(), bare)} == set(shown)


def test_data_limits_are_drawn(subsets, base):
    found = study_points(subsets, "surface-kaplan", "params", Counting())
    fit = fit_law(found, "surface-kaplan", "params", 0, 0)
    tried = {"surface-kaplan": Attempt("surface-kaplan", "", fit.law, "params", found, fit)}
    shown = {each.name: each for each in views_data.data_pictures(subsets, Counting(), tried)}
    assert set(shown) == {"loss-by-data", "early-stopping", "repeated-data"}
    assert "Kaplan et al. 2020: 0.095" in shown["loss-by-data"].caption
    # the three largest subsets were hardly read through; endless ones are no subset
    falling = sum(run.eval["loss"].argmin() == 11 for run in subsets.runs)
    assert f"{falling} of 12 runs on subsets were still falling" in shown["loss-by-data"].caption
    assert views_data.data_pictures(base, Counting(), tried) == []


def test_a_subset_is_compared_with_fresh_data_of_the_same_training(subsets):
    """Another learning rate is another run, however much data it saw; a row at 0 tokens has no logarithm."""
    small, fresh = subsets.runs[0], subsets.runs[3]
    assert views_data._freshest(subsets, small) is fresh
    other = changed(fresh, "other", optimizer={"learning_rate": 1.0})
    middle = subsets.runs[2]
    mixed = replace(subsets, runs=(small, middle, other))
    assert views_data._freshest(mixed, small) is middle
    table = fresh.eval.copy()
    table["tokens"][0] = 0
    begun = replace(subsets, runs=(small, replace(fresh, eval=table)))
    assert len(views_data._repeated(begun, Counting(), {})) == 1


def decayed(run, variant, rate, loss):
    """A run of one schedule: its peak rate, and the loss at its end."""
    train, table = run.train.copy(), run.eval.copy()
    train["learning_rate"] = rate
    table["loss"][-1] = loss
    made = changed(run, variant, optimizer={"learning_rate": rate}, schedule={"kind": "cosine"})
    return replace(made, train=train, eval=table, run_id=f"{run.run_id}-{variant}")


def test_schedules_are_compared_on_the_largest_shape_that_all_trained(base):
    ways = [decayed(run, name, rate, loss) for run in base.runs[1:]
            for name, rate, loss in (("slow", 1e-4, 2.0), ("fast", 1e-3, 1.9))]  # fmt: skip
    study = StudyRuns(base.path, (*ways, decayed(base.runs[0], "slow", 1e-4, 1.0)), ())
    compared = {each.variant: each for each in schedules_compared(study, "valid")}
    assert {name: list(each.loss) for name, each in compared.items()} == {
        "slow": [2.0],
        "fast": [1.9],
    }
    steps = len(base.runs[2].train)
    assert compared["fast"].summed_rate[0] == pytest.approx(steps * 1e-3)
    assert summed_rate(ways[0]) == pytest.approx(len(ways[0].train) * 1e-4)
    table = views_schedule.schedule_table(study, Counting())
    assert table.index("fast") < table.index("slow")
    assert "5.26%" in table
    names = [each.name for each in views_schedule.schedule_pictures(study, Counting(), [])]
    assert names == ["schedules"]
    assert views_schedule.schedule_table(base, Counting()) == ""


@pytest.fixture(scope="module")
def corrected(tmp_path_factory):
    """A ladder whose learning curves follow one surface: both of its variants must find the planted
    exponent, and what they differ in must be said in Porian's words."""
    runs = ladder(tokens=4e6, sizes=6, evaluations=60)
    runs = [
        replace(run, hidden_size=16 * (index + 2), num_layers=4) for index, run in enumerate(runs)
    ]
    study = read_runs(write_study(tmp_path_factory.mktemp("ladder") / "s", runs, SURFACE))
    long = [
        changed(run, "long", schedule={"kind": "cosine", "warmup_tokens": 2e3})
        for run in study.runs
    ]
    scaled = [
        changed(run, "scaled", schedule={
            "kind": "constant", "warmup_tokens": 0.1 * run.counts["params_non_embedding"]
        })
        for run in study.runs
    ]  # fmt: skip
    study = replace(study, runs=(*scaled, *long))  # the ladder is by corrections
    return study, corrections(study, Counting(), 40, 0)


def test_each_correction_has_an_exponent_in_each_way_of_counting(corrected):
    study, found = corrected
    assert [(each.variant, each.how) for each in found] == [
        ("long", ""),
        ("scaled", "warm-up by size, constant rate"),
    ]
    own = found[0].exponents["N and C without the head"]
    assert own.value == pytest.approx(SURFACE.params_exponent, abs=0.05)
    assert own.low <= own.value <= own.high
    assert [each.value for each in found[0].published().values()] == [0.835, 0.706, 0.717]
    table = views_schedule.corrections_table(found)
    assert "(published 0.835)" in table
    assert "(published 0.497)" in table
    (picture,) = views_schedule._ladder(found)
    assert "0.497 and 0.505 at a constant rate are of rate, batch and beta2" in picture.caption
    assert "Not measured" not in table
    assert corrections(study, Counting(variant="long"), 0, 0) == []


def test_a_correction_that_was_not_measured_says_why(corrected):
    """Losses that rise with size: the smallest is the best at every budget."""
    study, _ = corrected
    worse = tuple(
        replace(run, eval=rising(run.eval, run.counts["params_non_embedding"]))
        for run in study.runs
    )
    found = corrections(replace(study, runs=worse), Counting(), 0, 0)
    assert not any(each.is_measured for each in found)
    assert all("the best size is the smallest or largest" in each.problem for each in found)
    assert views_schedule._ladder(found) == []
    table = views_schedule.corrections_table(found)
    assert "<p>Not measured for long: at " in table
    assert "the best size is the smallest or largest that was trained" in table


def test_sizes_whose_curves_do_not_meet_measure_no_correction(corrected):
    study, _ = corrected
    apart = tuple(replace(run, eval=run.eval[-1:]) for run in study.runs)  # one loss of each size
    found = corrections(replace(study, runs=apart), Counting(), 0, 0)
    assert {each.problem for each in found} == {TOO_FEW_MEET}


def rising(table, params):
    made = table.copy()
    made["loss"] = table["loss"] * (params / 1e4) ** 0.3
    return made


def test_the_ladder_goes_from_the_least_corrected_to_the_constant_rate():
    """The names of the runs have another order."""
    hows = ["", WARM_UP, f"{WARM_UP}, {HORIZON}", f"{WARM_UP}, {CONSTANT}"]
    steps = [Correction(name, how, {}) for name, how in zip("dcba", hows, strict=True)]
    mixed = [steps[k] for k in (2, 0, 3, 1)]
    assert sorted(mixed, key=_place) == steps


def test_curves_are_read_at_equal_compute_where_four_sizes_are():
    params = np.repeat([1e3, 2e3, 4e3, 8e3], 20)
    flops = np.tile(np.geomspace(1e9, 1e12, 20), 4)
    made = at_equal_compute(point_set(flops**-0.1, params=params, flops=flops), params.astype(str))
    assert made.points.loss == pytest.approx(made.points.flops**-0.1)
    assert list(made.points.group) == [str(each) for each in made.points.params]
    budgets = np.unique(np.round(np.log2(made.points.flops), 6))
    assert np.diff(budgets) == pytest.approx(1.0, abs=1e-5)  # rounded to six places
    three = params < 8e3
    found = point_set(flops[three] ** -0.1, params=params[three], flops=flops[three])
    assert len(at_equal_compute(found, params[three].astype(str)).points) == 0


def test_cool_downs_stand_beside_cosines_of_the_same_length(base):
    ends = [
        replace(changed(run, kind, schedule={"kind": kind, "cooldown_fraction": 0.2}),
                run_id=f"{run.run_id}-{kind}")
        for run in base.runs for kind in ("wsd", "cosine")
    ]  # fmt: skip
    (picture,) = views_schedule._branches(StudyRuns(base.path, tuple(ends), ()), Counting())
    assert "At 3 lengths and sizes the cool-down ends +0.00% from the cosine" in picture.caption
    assert views_schedule._branches(base, Counting()) == []


def shaped(run, layers, width, feed, heads, loss):
    table = run.eval.copy()
    table["loss"] = loss
    params = 2.0 * width * layers * (2 * width + feed)
    shape = {"num_layers": layers, "hidden_size": width, "ffn_hidden_size": feed,
             "num_attention_heads": heads, "kv_channels": width // heads}  # fmt: skip
    made = changed(run, shape=shape, counts=run.counts | {"params_non_embedding": params})
    return replace(made, eval=table, run_id=f"{layers}-{width}-{feed}-{heads}")


def test_each_proportion_is_compared_with_the_others_as_usual(base):
    """The ladder of `kaplan-shape-small`: three scans through one shape."""
    ladder = [(1, 90, 360, 2), (2, 64, 256, 2), (4, 45, 180, 1), (8, 32, 128, 2), (2, 90, 90, 2),
              (2, 50, 400, 2), (2, 64, 256, 1), (2, 64, 256, 8)]  # fmt: skip
    runs = tuple(shaped(base.runs[0], *shape, loss=2.0) for shape in ladder)
    (picture,) = views_shape.shapes(StudyRuns(base.path, runs, ()), Counting())
    ((_, cell),) = views_shape._cells(StudyRuns(base.path, runs, ()), Counting(), None)
    panels = {label: sorted(found) for label, found in views_shape._panels(cell).items()}
    assert panels == {
        "aspect ratio d / layers": [4.0, 11.25, 32.0, 90.0],
        "feed-forward ratio d_ff / d": [1.0, 4.0, 8.0],
        "attention heads": [1.0, 2.0, 8.0],
    }
    assert "Shape at equal size" in picture.caption


def test_the_aspect_ratio_is_drawn_at_the_heads_that_most_depths_share(base):
    """As in `kaplan-shape`: the scan of feed-forward ratios has 4 heads, and so most runs; most depths 8."""
    ladder = [(2, 64, 256, 8), (4, 45, 180, 9), (8, 32, 128, 8), (16, 24, 96, 8),
              *((8, 32, feed, 4) for feed in (32, 64, 128, 256, 320, 384))]  # fmt: skip
    runs = [shaped(base.runs[0], *shape, loss=2.0) for shape in ladder]
    cell = [(run, float(run.config["shape"]["num_attention_heads"])) for run in runs]
    aspect = views_shape._panels(cell)["aspect ratio d / layers"]
    assert aspect == {32.0: [8.0], 11.25: [9.0], 4.0: [8.0], 1.5: [8.0]}


def test_what_is_left_of_a_difference_in_size_is_taken_out(base):
    runs = tuple(
        shaped(
            base.runs[0], layers, width, 4 * width, 2, 3.0 * (12.0 * layers * width**2) ** -0.076
        )
        for layers, width in ((2, 64), (8, 32), (1, 90))
    )
    ((_, cell),) = views_shape._cells(StudyRuns(base.path, runs, ()), Counting(), published("text"))
    losses = [loss for _, loss in cell]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-12)


def test_batches_are_drawn_with_their_hyperbolas_and_the_least_compute(base):
    """Steps to a loss at four batches by a planted B_crit(L) = B*/L^(1/aB)."""
    loss = np.geomspace(4.0, 2.5, 12)
    crit, least = critical_batch(loss, 2e3, 0.25), 1e4 * loss**-3
    batch = np.repeat([2.0, 8.0, 32.0, 128.0], 12)
    steps = steps_at_batch(batch, np.tile(least, 4), np.tile(crit, 4))
    found = point_set(
        np.tile(loss, 4), batch=batch, steps=steps, params=np.full(48, 1e6),
        flops=6e6 * LENGTH * steps * batch, group=batch.astype(str),
    )  # fmt: skip
    fit = fit_law(found, "critical-batch", "loss", 0, 0)
    assert fit.value("aB") == pytest.approx(0.25, rel=1e-6)
    tried = {"critical-batch": Attempt("critical-batch", "", "critical-batch", "loss", found, fit)}
    names = [each.name for each in batch_pictures(base, Counting(), tried)]
    assert names == ["batch-hyperbolas", "noise-scale", "least-compute"]
    levels = len(fit.diagnostics["levels"])
    shown = {each.name: each.caption for each in batch_pictures(base, Counting(), tried)}
    assert f"through 5 of the 5 losses shown, of {levels}." in shown["batch-hyperbolas"]
    assert "at one fixed batch" in shown["least-compute"]
    cost = minimum_flops(found.points.flops, batch, np.tile(crit, 4)).reshape(4, 12)
    assert cost == pytest.approx(np.tile(6e6 * LENGTH * least * crit, (4, 1)))
    assert batch_pictures(base, Counting(), {}) == []


def test_an_exponent_that_was_not_measured_is_a_dash():
    nothing = Estimate(np.nan, np.nan, np.nan)
    assert views_schedule._with_published(nothing, None) == "–"
