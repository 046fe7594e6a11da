"""Results folders: which runs count, which are left out and why, what is refused."""

import json
from dataclasses import replace
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from analysis.guards import INCLUDES
from analysis.points import keep_efficient, seed_noise
from analysis.recipe import recipe, same_runs
from analysis.report import write_report
from analysis.runs import (
    Counting,
    all_points,
    curve_points,
    final_points,
    of_variant,
    read_runs,
    refuse_variants,
    warmup_tokens,
)
from analysis.study_fits import fit_study
from launch.results import read_result
from tests.analysis.planted import PlantedRun, Surface, ladder, write_run, write_study

SURFACE = Surface(a=150, b=1500, irreducible=0.9)
RUN = PlantedRun("one", hidden_size=32, num_layers=4, tokens=2e5, evaluations=8)
TWO = [RUN, replace(RUN, run_id="two", hidden_size=64, num_layers=8)]


def study(tmp_path, *more):
    return write_study(tmp_path / "study", [*TWO, *more], SURFACE)


def reasons(folder):
    return {each.point: each.reason for each in read_runs(folder).left_out}


def test_runs_from_before_a_choice_was_there_are_of_one_recipe():
    old = {"shape": {"num_layers": 2}, "model": {"family": "henighan"}, "domain": "x"}
    new = {
        "shape": {"num_layers": 2, "attention_window": 0, "position_axes": []},
        "model": {"family": "henighan", "attention": "dense", "positions": "plain"},
        "domain": "x", "blend": [],
    }  # fmt: skip
    sparse = {**new, "shape": {**new["shape"], "attention_window": 24}}
    recipes = [recipe(SimpleNamespace(config=each)) for each in (old, new, sparse)]
    assert recipes[0] == recipes[1] != recipes[2]


def test_one_final_point_for_each_run_at_its_lowest_loss(tmp_path):
    found = final_points(read_runs(study(tmp_path)), Counting(), "params")
    assert list(found.points.params) == [12288, 98304]
    tokens = found.points.tokens
    assert found.points.loss == pytest.approx(SURFACE.loss(found.points.params, tokens), rel=1e-12)
    assert found.points.flops == pytest.approx(6 * found.points.params * tokens)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"finished": False}, "unfinished: stopped at step"),
        ({"diverge_at": 0.3}, "diverged or over-fitted: last held-out loss"),
        ({"spike_at": 0.6}, "spiking: the training loss jumped at step "),
        ({"loss_at_end": float("nan")}, "diverged: a loss is not finite"),
    ],
)
def test_runs_that_are_no_measurement_are_left_out(tmp_path, changes, reason):
    bad = replace(RUN, run_id="bad", **changes)
    assert reason in reasons(study(tmp_path, bad))["bad"]


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"finished": False}, "unfinished"), ({"diverge_at": 0.3}, "diverged"),
     ({"spike_at": 0.6}, "spiking")],
)  # fmt: skip
def test_what_is_kept_out_can_be_taken_in_by_name(tmp_path, changes, name):
    folder = study(tmp_path, replace(RUN, run_id="bad", seed=1, **changes))
    others = set(INCLUDES) - {name}
    assert [each.point for each in read_runs(folder, include=others).left_out] == ["bad"]
    counting = Counting(include=(name,))
    found = all_points(read_runs(folder, include=counting.include), counting)
    assert "bad" in found.points.group
    (remark,) = found.remarks
    assert remark.startswith(f"taken_in: 1 of 3 runs are in this fit because --include asked for "
                             f"them: bad ({name}")  # fmt: skip


def test_a_loss_that_is_no_number_is_never_taken_in(tmp_path):
    folder = study(tmp_path, replace(RUN, run_id="bad", loss_at_end=float("nan")))
    assert [each.point for each in read_runs(folder, include=INCLUDES).left_out] == ["bad"]


def test_a_skipped_step_is_no_divergence_and_is_said(tmp_path):
    """guards.non_finite = "skip": the run went on, and its reader is told."""
    made = ladder(evaluations=6, sizes=2)
    folder = write_study(tmp_path / "s", [replace(made[0], skip_at=0.3), made[1]], SURFACE)
    study = read_runs(folder)
    assert [len(run.skipped) for run in study.runs] == [1, 0]
    assert len(study.runs[0].spikes) == 0
    found = all_points(study, Counting())
    (said,) = [each for each in found.remarks if each.startswith("skipped_steps: ")]
    assert f"{made[0].run_id} (1 of " in said
    assert made[1].run_id not in said


def test_runs_never_cooled_down_are_kept_from_those_that_were(tmp_path):
    """Haegele et al. 2024: a plateau's loss is too high to stand beside annealed ones."""
    folder = study(tmp_path, replace(RUN, run_id="cooled", schedule="wsd", tokens=4e5))
    found = all_points(read_runs(folder), Counting())
    assert list(found.points.group) == ["cooled"]
    assert {each.point for each in found.left_out} == {"one", "two"}
    assert all(each.reason.startswith("mid-schedule: its learning rate never fell")
               for each in found.left_out)  # fmt: skip
    counting = Counting(include=("mid-schedule",))
    assert len(all_points(read_runs(folder), counting).points) == 3


def test_the_way_down_of_a_schedule_is_no_learning_curve(tmp_path):
    """A wsd run counts up to its cool-down, a decaying one not at all, unless it is asked for."""
    folder = study(tmp_path, replace(RUN, run_id="wsd", schedule="wsd", seed=1),
                   replace(RUN, run_id="cosine", schedule="cosine", seed=2))  # fmt: skip
    runs = read_runs(folder)
    found = curve_points(runs, Counting())
    assert set(found.points.group) == {"one", "two", "wsd"}
    assert found.points.tokens[found.points.group == "wsd"].max() <= 0.8 * 2e5
    reasons = {each.reason for each in found.left_out if each.point.startswith("cosine")}
    assert any(reason.startswith("mid-schedule: its learning rate had begun") for reason in reasons)
    every = curve_points(runs, Counting(include=("mid-schedule",)))
    assert set(every.points.group) == {"one", "two", "wsd", "cosine"}
    assert every.remarks[0].startswith("mid_schedule_points: the learning rate of 2 of 4 runs")


@pytest.mark.parametrize(
    ("changes", "difference"),
    [({"vocabulary": 512}, "vocab_size 256 and 512"), ({"rows": 256}, "valid rows 512 and 256"),
     ({"data": "another tokenizer"}, "data planted and another toke"),
     ({"length": 128}, "seq_length 64 and 128")],
)  # fmt: skip
def test_tokenizers_and_evaluation_sets_never_mix(tmp_path, changes, difference):
    other = replace(RUN, run_id="other", **changes)
    with pytest.raises(ValueError, match="runs judged on different data: ") as error:
        read_runs(study(tmp_path, other))
    assert difference in str(error.value)
    assert "Move the others to a results folder of their own" in str(error.value)


def test_damaged_runs_are_left_out_one_by_one(tmp_path):
    folder = study(tmp_path)
    for name, content in (("empty", b""), ("other-kind", b"\x89PNG\r\n"),
                          ("cut", (folder / "one" / "metrics.h5").read_bytes()[:3000])):  # fmt: skip
        (folder / name).mkdir()
        (folder / name / "metrics.h5").write_bytes(content)
    (folder / "waiting").mkdir()
    (folder / "waiting" / "config.json").write_text("{}")
    (folder / "logs").mkdir()
    found = reasons(folder)
    assert set(found) == {"empty", "other-kind", "cut", "waiting"}
    assert found["waiting"] == "not begun: no metrics.h5 yet"
    for name in ("empty", "other-kind", "cut"):
        assert found[name].startswith("damaged: ")
        assert "metrics.h5" in found[name]
    assert len(read_runs(folder).runs) == 2


def test_an_evaluation_set_that_is_not_there_is_named(tmp_path):
    found = read_runs(study(tmp_path), "test")
    assert found.runs == ()
    assert found.left_out[0].reason == "no evaluation on the split 'test'"


def test_different_domains_never_mix(tmp_path):
    other = replace(RUN, run_id="other", domain="image-8x8")
    with pytest.raises(ValueError, match="differ in domain mathematics and image-8x8"):
        read_runs(study(tmp_path, other))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: f.mkdir(), "no runs (0 folders, none with a metrics.h5)"),
        (lambda f: write_study(f / "inner", [RUN], SURFACE), "Name one study in it: "),
        (lambda f: write_run_here(f), "this is one run; wanted the results folder of a study"),
    ],
)
def test_folders_that_hold_no_runs_are_refused(tmp_path, make, message):
    folder = tmp_path / "results"
    make(folder)
    with pytest.raises(ValueError, match="results: ") as error:
        read_runs(folder)
    assert message in str(error.value)


def write_run_here(folder):
    folder.mkdir()
    write_run(folder, RUN, SURFACE)


def test_counting_conventions_change_n_and_c_together(tmp_path):
    runs = read_runs(study(tmp_path))
    one = runs.runs[0]
    for name, key in (("total", "params_total"),
                      ("non-embedding-and-head", "params_non_embedding_and_head")):  # fmt: skip
        points = final_points(runs, Counting(params=name), "params").points
        assert points.params[0] == one.counts[key]
        assert points.flops == pytest.approx(6 * points.params * points.tokens)
    exact = final_points(runs, Counting(flops="exact"), "params").points
    assert exact.flops[0] == pytest.approx(one.eval_rows("valid")["flops_exact"][-1])


def test_of_several_budgets_the_largest_counts_with_every_seed(tmp_path):
    found = final_points(read_runs(study(
        tmp_path, replace(RUN, run_id="long", tokens=4e5), replace(RUN, run_id="long-s1",
                                                                  tokens=4e5, seed=1))),
        Counting(), "params")  # fmt: skip
    assert sorted(found.points.group) == ["long", "long-s1", "two"]
    assert found.left_out[-1].reason.startswith("another run of this size trained on more tokens")
    assert any(text.startswith("tokens_vary_with_size: ") for text in found.remarks)


@pytest.mark.parametrize("rising", ["one", "one-s1"])
def test_a_repeat_whose_best_evaluation_is_not_its_last_is_a_repeat_still(tmp_path, rising):
    """Else it would pass for a run of fewer tokens: left out, and the noise not measured."""
    pair = [replace(RUN, seed_noise=0.002), replace(RUN, run_id="one-s1", seed=1, seed_noise=0.002)]
    runs = [replace(run, evaluations=40, rise_at_end=0.06 * (run.run_id == rising)) for run in pair]
    study_runs = read_runs(write_study(tmp_path / "study", [*runs, TWO[1]], SURFACE))
    found = final_points(study_runs, Counting(), "params")
    assert sorted(found.points.group) == ["one", "one-s1", "two"]
    assert found.left_out == found.remarks == ()
    noise = seed_noise(found.points)
    assert noise is not None
    assert (noise.cells, noise.degrees) == (1, 1)
    run = next(each for each in study_runs.runs if each.run_id == rising)
    table = run.eval_rows("valid")
    mine = found.points.only(found.points.group == rising)
    assert mine.tokens[0] == table["tokens"][-1]
    assert mine.flops[0] == table["flops"][-1]
    assert mine.loss[0] == table["loss"][-2] < table["loss"][-1]
    assert mine.label[0] == f"{rising} step {table['step'][-2]}"
    assert len(np.unique(found.points.tokens[found.points.params == run.counts[
        "params_non_embedding"]])) == 1  # fmt: skip


def test_a_run_that_two_variants_share_is_no_second_seed(tmp_path):
    """Their equal losses would pass for seeds that do not scatter, and weigh double in a fit."""
    twin = replace(RUN, run_id="one-again")
    runs = read_runs(study(tmp_path, twin, replace(RUN, run_id="one-s1", seed=1)))
    assert same_runs(runs.runs) == {"one-again": "one"}
    for found in (final_points(runs, Counting(), "params"), curve_points(runs, Counting())):
        assert set(found.points.group) == {"one", "one-s1", "two"}
        (gone,) = [each for each in found.left_out if each.point == "one-again"]
        assert gone.reason == "the same run as one, down to the seed: it counts once"
    alone = replace(runs, runs=tuple(each for each in runs.runs if each.run_id != "one-s1"))
    assert seed_noise(all_points(alone, Counting()).points) is None
    assert seed_noise(all_points(runs, Counting()).points).degrees == 1


def test_of_two_equal_runs_the_one_that_went_farthest_counts(tmp_path):
    """With `unfinished` taken in: else half a run would hide the whole one."""
    runs = read_runs(study(tmp_path))
    table = runs.runs[0].eval
    half = replace(runs.runs[0], run_id="a-half", eval=table[: len(table) // 2])
    assert same_runs([half, *runs.runs]) == {"a-half": "one"}


def test_learning_curves_of_other_lengths_are_no_seeds(tmp_path):
    """At equal tokens a rate that falls to another end is at another place of its fall."""
    longer = replace(RUN, run_id="longer", tokens=2 * RUN.tokens, seed=1, warmup_share=1 / 800)
    runs = read_runs(study(tmp_path, longer))
    falling = tuple(
        replace(run, config=run.config | {"schedule": {"kind": "cosine"}}) for run in runs.runs
    )
    tables = [falling[at].eval_rows("valid") for at in (0, 1)]
    assert set(tables[0]["tokens"]) & set(tables[1]["tokens"])
    points = curve_points(replace(runs, runs=falling), Counting(include=("mid-schedule",))).points
    assert {"one", "longer"} <= set(points.group)
    assert seed_noise(points) is None


def test_l_of_d_uses_the_largest_size_alone(tmp_path):
    found = final_points(read_runs(study(tmp_path)), Counting(), "tokens")
    assert list(found.points.params) == [98304]
    assert "not of the largest size" in found.left_out[0].reason


def test_l_of_c_leaves_out_what_was_beaten_for_less(tmp_path):
    found = final_points(read_runs(study(tmp_path)), Counting(), "flops")
    worse = found.points.only([0, 1, 1])
    worse.loss[:] = [2.0, 1.0, 1.5]
    kept = keep_efficient(replace(found, points=worse))
    assert list(kept.points.loss) == [2.0, 1.0]
    assert "a run that cost no more did better" in kept.left_out[-1].reason


def test_curves_leave_the_warm_up_out(tmp_path):
    late = replace(RUN, run_id="late", warmup_share=0.5)
    found = curve_points(read_runs(study(tmp_path, late)), Counting())
    mine = found.points.tokens[found.points.group == "late"]
    assert mine.min() >= 1e5
    gone = [each for each in found.left_out if each.point.startswith("late step")]
    assert gone
    assert {each.reason for each in gone} == {"inside the learning-rate warm-up"}


def test_warm_up_may_be_given_in_steps(tmp_path):
    config = {"schedule": {"warmup_steps": 10, "warmup_tokens": None},
              "batch": {"train_batch_size": 4}, "shape": {"seq_length": 64}}  # fmt: skip
    assert warmup_tokens(config) == 2560
    assert warmup_tokens({"schedule": {"warmup_tokens": 5.0}}) == 5
    assert warmup_tokens({}) == 0


def test_the_planted_writer_writes_what_the_reader_reads(tmp_path):
    folder = study(tmp_path)
    run = read_result(folder / "two")
    assert run.finished
    assert run.counts["params_non_embedding"] == 98304
    assert len(ladder()) == 5


def test_runs_of_one_size_that_differ_in_shape_are_no_repeats(tmp_path):
    """N = 3 L d^2 coincides: 8 layers of 64 and 2 layers of 128. Their spread is no seed noise."""
    shapes = [(8, 64), (2, 128), (4, 128)]
    runs = [
        replace(RUN, run_id=f"l{layers}-d{width}", num_layers=layers, hidden_size=width)
        for layers, width in shapes
    ]
    found = final_points(
        read_runs(write_study(tmp_path / "s", runs, SURFACE)), Counting(), "params"
    )
    assert sorted(found.points.params)[0] == sorted(found.points.params)[1]
    assert seed_noise(found.points) is None
    (remark,) = found.remarks
    assert remark.startswith("mixed_training: runs of N = 9.83e+04 differ in shape")


def with_config(found, run_id, **changes):
    """The study with some of one run's configuration replaced."""
    runs = [
        replace(run, config={**run.config, **changes}) if run.run_id == run_id else run
        for run in found.runs
    ]
    return replace(found, runs=tuple(runs))


def test_a_trunks_measurements_are_counted_once(tmp_path):
    """A branch begins with the trunk's measurements, to the last bit."""
    found = read_runs(study(tmp_path))
    every = curve_points(found, Counting()).points
    step = int(np.sort(every.steps[every.group == "two"])[4])
    branch = with_config(found, "two", trunk={"run_id": "one", "step": step})
    points = curve_points(branch, Counting()).points
    kept = points.steps[points.group == "two"]
    assert kept.min() > step
    assert len(kept) == (every.group == "two").sum() - 5
    assert (points.group == "one").sum() == (every.group == "one").sum()
    gone = with_config(found, "two", trunk={"run_id": "elsewhere", "step": step})
    assert len(curve_points(gone, Counting()).points.loss) == len(every.loss)


def test_variants_are_not_mixed_in_a_law(tmp_path):
    plain = read_runs(study(tmp_path))
    assert of_variant(plain, None) is plain
    refuse_variants(plain, None)
    found = with_config(plain, "two", variant="large-batch")
    with pytest.raises(
        ValueError, match="runs of 2 variants in one law; wanted those of one of: , large"
    ):
        refuse_variants(found, None)
    with pytest.raises(
        ValueError, match="--variant large: no usable run of it; wanted one of: , large"
    ):
        of_variant(found, "large")
    refuse_variants(found, "large-batch")
    assert [run.run_id for run in of_variant(found, "large-batch").runs] == ["two"]
    fits = fit_study(found, Counting(), 0, 0)
    assert "loss-by-params" in fits.tried
    for each in fits.tried.values():
        if each.law != "critical-batch":
            assert each.fit is None
            assert "2 variants" in each.problem
    with h5py.File(plain.path / "two" / "metrics.h5", "r+") as file:
        config = {**json.loads(file.attrs["config"]), "variant": "large-batch"}
        file.attrs["config"] = json.dumps(config)
    lines = write_report(plain.path, tmp_path / "out", Counting(), 0, 0)
    assert any(line.startswith("L(N): not fitted: ") and "2 variants" in line for line in lines)


def test_names_of_variants_and_what_older_runs_did_unasked_make_no_other_recipe():
    old = {"domain": "x", "batch": {"train_batch_size": 4}}
    new = {**old, "variant": "a", "data": {"unique_tokens": None}}
    few = {**old, "data": {"unique_tokens": 1000}}
    recipes = [recipe(SimpleNamespace(config=each)) for each in (old, new, few)]
    assert recipes[0] == recipes[1] != recipes[2]
