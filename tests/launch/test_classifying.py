"""Classifiers: from labelled pictures to no error, stopped and resumed, from scratch and from a trunk."""

import numpy as np
import pytest
import torch
from PIL import Image

from launch.activations import Share, rows_of_logits
from launch.batches import open_dataset
from launch.checkpoint_files import newest_path
from launch.config import Parallel
from launch.devices import GPUS
from launch.evaluate import evaluate_all
from launch.evaluation_file import read_evaluations
from launch.folder import run_folder
from launch.planner import choose
from launch.results import read_result
from launch.run import run_all
from launch.start import start_of, take_weights
from launch.study import expand, load_study
from launch.universal import whole_weights
from tests.launch.conftest import build
from tests.launch.small import assert_same_bits, config, expanded, train_alone, train_until
from tests.launch.test_paper_studies import STUDIES

CLASSES = {"red": (200, 40, 40), "blue": (40, 40, 200)}
STEPS = 60
CLASSIFY = {
    "name": "classify",
    "domain": "image-8x8-classes",
    "model": {"classes": 2},
    "batch": {"train_batch_size": 16},
    "budget": {"tokens": float(STEPS * 16 * 192)},
    "evaluation": {"rows": 40, "points_per_decade": 3},
}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """240 noisy pictures, red and blue."""
    folder = tmp_path_factory.mktemp("labelled")
    draw = np.random.default_rng(0)
    for name, colour in CLASSES.items():
        (folder / "raw" / name).mkdir(parents=True)
        for number in range(120):
            pixels = (np.array(colour) + draw.integers(0, 30, (8, 8, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "raw" / name / f"{number:03}.png")
    return build("image-8x8-classes", folder / "raw", folder / "data")


@pytest.fixture(scope="module")
def trained(labelled, tmp_path_factory):
    """A run to its end, and its results folder."""
    results = tmp_path_factory.mktemp("trained")
    run = config(**CLASSIFY)
    return run, train_alone(run, labelled, results), results


def test_it_learns_to_tell_colours_apart(trained):
    run, result, _ = trained
    table = result.eval[result.eval["step"] == STEPS]
    found = {row["kind"].decode(): row for row in table}
    assert set(found) == {"loss", "class", "error"}, "pixels are only read"
    assert found["error"]["loss"] == 0.0, "no picture is wrong"
    assert found["class"]["loss"] == found["loss"]["loss"] < 0.3 < result.train["loss"][0]
    assert result.train["loss"][0] == pytest.approx(np.log(2), abs=0.1), "it begins by guessing"
    assert found["loss"]["num_tokens"] == found["loss"]["num_rows"], "one answer a picture"
    first = result.eval[(result.eval["kind"] == b"error") & (result.eval["step"] < STEPS)][0]
    assert 0 <= first["loss"] <= 1
    assert result.train["tokens"][-1] == run.tokens == STEPS * 16 * 192, "pixels that are read"
    assert result.counts["params_total"] == run.shape.params_total


@pytest.mark.parametrize("parallel", [{}, pytest.param({"zero_stage": 3}, marks=pytest.mark.long)])
def test_a_stop_changes_no_bit(parallel, labelled, trained, tmp_path):
    run = config(**CLASSIFY, parallel=parallel)
    assert not train_until(run, labelled, tmp_path, step=5)
    resumed = train_alone(run, labelled, tmp_path)
    alone = train_alone(run, labelled, tmp_path / "alone") if parallel else trained[1]
    assert_same_bits(resumed, alone)


def test_evaluation_measures_what_training_measured(trained, labelled, tmp_path):
    run, result, results = trained
    out = tmp_path / "found.h5"
    evaluate_all([run_folder(results, run)], labelled, "valid", 40, out)
    ((_, found),) = read_evaluations(out).items()
    measured = result.eval[result.eval["step"] == STEPS]
    kinds = found["kinds"]
    assert kinds["kind"].tolist() == measured["kind"].tolist() == [b"loss", b"class", b"error"]
    assert kinds["loss"] == pytest.approx(measured["loss"], rel=1e-5)


# --- from a trunk


def test_it_starts_from_a_trunk_and_trains_all_of_it(labelled, pictures, tmp_path):
    trunk = expanded(4, name="pictures")
    assert run_all(trunk, pictures, tmp_path) == 0
    variants = [{"name": "pretrained", "start": {"study": "pictures"}}, {"name": "scratch"}]
    short = {"budget": {"tokens": 6.0 * 16 * 192}, "variants": variants}
    runs = expanded(**(CLASSIFY | short))
    assert run_all(runs, labelled, tmp_path) == 0
    source = newest_path(run_folder(tmp_path, trunk[0]))
    by_name = {run.variant: run for run in runs}
    pretrained = by_name["pretrained"]
    assert start_of(pretrained, pretrained.start, tmp_path)[1] == source.parents[1]
    results = {name: read_result(run_folder(tmp_path, run)) for name, run in by_name.items()}
    assert results["pretrained"].provenance[0]["started_from"].endswith("/step-4")
    assert results["pretrained"].train["loss"][0] != results["scratch"].train["loss"][0]
    after = dict(whole_weights(newest_path(run_folder(tmp_path, pretrained)), pretrained.shape))
    before = dict(whole_weights(source, trunk[0].shape))
    assert after.keys() - before.keys() == {"gpt.class_layer.weight", "gpt.class_layer.bias"}
    for name in before.keys() & after.keys():
        assert not torch.equal(before[name], after[name]), f"{name} is trained"


def test_the_first_weights_are_the_trunk_s(pictures, tmp_path):
    from launch.checkpoint_files import verify
    from launch.engine import start_process
    from megatron_ext.classifier import build_classifier

    (trunk,) = expanded(4, name="pictures")
    train_alone(trunk, pictures, tmp_path)
    source = newest_path(run_folder(tmp_path, trunk))
    of = config(**CLASSIFY).shape
    model = build_classifier(of, seed=1, init_std=0.02, device=start_process())
    drawn = {name: p.clone() for name, p in model.named_parameters()}
    take_weights(model, verify(source), trunk)
    there = dict(whole_weights(source, trunk.shape))
    for name, parameter in model.named_parameters():
        wanted = drawn if name in model.new_parameters else there
        assert torch.equal(parameter, wanted[name]), name


# --- what is planned


def test_shares_count_one_answer_a_row_and_one_table():
    run = config(**CLASSIFY)
    share = Share(run.shape, "fp32", Parallel(), micro_batch=16)
    assert share.parameters == run.shape.params_total
    assert rows_of_logits(share) == 16 * 2


def test_the_paper_s_largest_classifier_is_planned_without_tensor_parallelism():
    path = STUDIES / "henighan-classify.toml"
    runs = expand(load_study(path), path)
    plan = choose(runs[-1], GPUS["h100"], 64)
    assert plan.parallel.tensor_model_parallel_size == 1
    assert {run.batch.train_batch_size for run in runs} == {1024}
    assert {run.variant for run in runs} == {"pretrained", "scratch"}


@pytest.mark.parametrize("name", ["henighan-classify", "henighan-classify-small"])
def test_the_study_s_sizes_are_those_that_it_starts_from(name):
    path = STUDIES / f"{name}.toml"
    runs = expand(load_study(path), path)
    source = STUDIES / f"{runs[0].start.study}.toml"
    there = {run.shape for run in expand(load_study(source), source)}
    from dataclasses import replace

    assert {replace(run.shape, classes=0) for run in runs} <= there


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {}}, "no model.classes: rows of domain image-8x8-classes are to be classified; wanted"),
        ({"domain": "image-8x8"}, "model.classes = 2: rows of domain image-8x8 have no class; wanted"),
        ({"parallel": {"tensor_model_parallel_size": 2}}, "size = 2 with model.classes; wanted 1"),
        ({"model": {"classes": 1}}, "classes"),
        ({"model": {"classes": 65_537}}, "classes"),
    ],
)  # fmt: skip
def test_studies_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        expanded(**(CLASSIFY | changes))


def test_another_number_of_classes_is_refused(labelled):
    run = config(**(CLASSIFY | {"model": {"classes": 10}}))
    with pytest.raises(
        ValueError, match=r"holds 2 classes; wanted model.classes = 10, as image-8x8"
    ):
        open_dataset(labelled, "train", run)


def test_evaluation_refuses_pictures_without_a_class(trained, labelled, pictures, tmp_path):
    run, _, results = trained
    with pytest.raises(ValueError, match="rows of 192 tokens; wanted 256 and 194"):
        evaluate_all([run_folder(results, run)], pictures, "valid", None, tmp_path / "x.h5")


def test_the_number_of_classes_is_part_of_what_a_run_is():
    """Of a language model's digest it is no part: the names in `test_config` would change."""
    other = config(**(CLASSIFY | {"model": {"classes": 3}}))
    assert config(**CLASSIFY).digest != other.digest
