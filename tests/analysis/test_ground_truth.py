"""From a source of known entropy to the report: data, training, evaluation, fit, and what all of it should say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis import ground_truth
from analysis.runs import Counting, StudyRuns, read_runs
from analysis.sources import study_points
from analysis.study_fits import TRIALS, attempt, fit_study
from data_prep.__main__ import main as data_prep
from data_prep.dataset import TokenDataset
from data_prep.domain import domain, family
from data_prep.domains.known_entropy import chain
from launch.batches import evaluation_rows
from launch.run import run_all
from launch.study import expand, load_study
from tests.analysis.planted import PlantedRun, Surface, write_study

STUDY = Path(__file__).parents[2] / "launch/studies/ground-truth-small.toml"
DRAWS = 200


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The small study, trained for real on data that is built as its first line says; and the true source's loss of
    each row that was evaluated, by position."""
    folder = tmp_path_factory.mktemp("ground-truth")
    command = STUDY.read_text().splitlines()[1].split("data_prep ")[1].split()
    command[-1] = str(folder / "data")
    assert data_prep([*command, "--workers", "1"]) == 0
    study = load_study(STUDY)
    runs = sorted(expand(study, STUDY), key=lambda run: run.trunk is not None)
    assert run_all(runs, folder / "data", folder / "results") == 0
    dataset = TokenDataset(folder / "data", "valid")
    rows = dataset.rows(evaluation_rows(dataset, study.evaluation.rows))
    return read_runs(folder / "results" / study.name), chain().losses(rows.tokens)


@pytest.fixture(scope="module")
def fitted(trained):
    return fit_study(trained[0], Counting(), DRAWS, seed=0).tried


def test_no_model_beats_the_source_and_more_of_either_comes_nearer(trained):
    """On the same rows loss less true loss is an estimate of a KL divergence, which is above 0."""
    study, true = trained
    divergence = {}
    for run in study.runs:
        last = run.eval_rows("valid")[-1]
        key = run.counts["params_non_embedding"], int(last["tokens"])
        divergence[key] = float(last["loss"]) - true.mean()
    assert len(divergence) == 9
    assert min(divergence.values()) > 0
    sizes, budgets = (sorted(set(each)) for each in zip(*divergence, strict=True))
    for size in sizes:
        assert np.all(np.diff([divergence[size, tokens] for tokens in budgets]) < 0)
    at_end = [divergence[size, budgets[-1]] for size in sizes]
    assert np.all(np.diff(at_end) < 0)
    # Less is left than whoever knows pairs of symbols alone has above the source.
    pairs = chain().position_entropies(8)[1] - chain().entropy_rate
    assert at_end[-1] < 0.5 * pairs


def test_where_there_is_nothing_to_look_back_at_the_loss_is_the_true_entropy(trained):
    """The first symbol: its distribution alone is to be learned. All models are nearer to its entropy than to guessing,
    and none loses less than the entropy of the symbols that the rows happen to begin with."""
    study, true = trained
    _, counts = np.unique(true[:, 0], return_counts=True)
    shares = counts / counts.sum()
    assert len(shares) == 4
    least = -np.sum(shares * np.log(shares))
    for run in study.runs:
        first = float(run.eval_position["valid"]["loss"][-1, 0])
        assert least - 1e-6 < first < (true[:, 0].mean() + np.log(4)) / 2  # float32 rounds at 1e-7


def test_the_fitted_irreducible_loss_contains_the_true_entropy(trained, fitted):
    study, true = trained
    truth = ground_truth.truth_of(study, Counting())
    exact = chain().position_entropies(true.shape[1]).mean()
    assert truth.loss == pytest.approx(exact, abs=1e-12)
    rows = true.mean(1)
    error = rows.std(ddof=1) / np.sqrt(len(rows))
    # The standard error of a model's loss stands for that of the source's, which nobody measures in general.
    assert truth.standard_error == pytest.approx(error, rel=0.25)
    assert abs(true.mean() - truth.loss) < 5 * truth.standard_error

    on_the_same_rows = replace(truth, loss=float(true.mean()), standard_error=0.0)
    for known in (truth, on_the_same_rows):
        found = {each.title: each for each in ground_truth.comparisons(known, fitted)}
        assert found["L(N, D)"].inside, found
    measured = [float(run.eval_rows("valid")["loss"][-1]) for run in study.runs]
    wrong = replace(on_the_same_rows, loss=float(np.median(measured)))
    assert not ground_truth.comparisons(wrong, fitted)[0].inside


def test_a_wrong_truth_on_either_side_is_found_out(tmp_path):
    """So few small runs leave the constant open below. A planted ladder above the true entropy does not:
    the truth is inside, and one that is 5% off to either side is not."""
    least = domain_known_loss()
    above = Surface(irreducible=least, a=150, alpha=0.45, b=3e3, beta=0.6)
    runs = [
        PlantedRun(f"{width}-{tokens:g}", hidden_size=width, num_layers=4, tokens=tokens,
                   domain="known-entropy", seed_noise=0.001, seed=width, evaluations=4)
        for width in (16, 32, 64, 128, 256)
        for tokens in (2e5, 1e6, 5e6, 25e6)
    ]  # fmt: skip
    study = read_runs(write_study(tmp_path / "planted", runs, above))
    trial = next(each for each in TRIALS if each.name == "surface")
    found = study_points(study, trial.law, trial.x, Counting())
    tried = {trial.name: attempt(trial, found, DRAWS, seed=0, only=("E",))}
    truth = replace(ground_truth.truth_of(study, Counting()), standard_error=0.0)
    assert truth.loss == least

    def inside(factor):
        found = ground_truth.comparisons(replace(truth, loss=factor * least), tried)
        return {each.title: each.inside for each in found}["L(N, D)"]

    assert inside(1.0)
    assert not inside(0.95)
    assert not inside(1.05)


def domain_known_loss():
    return family("known-entropy").known(domain("known-entropy"))["loss"]


def test_the_fitted_reducible_loss_contains_the_true_divergence(trained, fitted):
    study, true = trained
    truth = replace(ground_truth.truth_of(study, Counting()), loss=float(true.mean()))
    rows = ground_truth.reducible(truth, fitted["surface"])
    assert len(rows) == len(study.runs)
    constants = {name: each.value for name, each in fitted["surface"].fit.parameters.items()}
    for row in rows:
        run = next(each for each in study.runs if each.run_id == row.label)
        assert row.measured == pytest.approx(run.eval_rows("valid")["loss"][-1] - true.mean())
        by_hand = (
            constants["A"] / row.params ** constants["alpha"]
            + constants["B"] / row.tokens ** constants["beta"]
        )
        assert row.fitted.value == pytest.approx(by_hand, rel=1e-12)
        assert row.fitted.low > 0  # no interval reaches down to a perfect model
    inside = [row.fitted.low <= row.measured <= row.fitted.high for row in rows]
    assert sum(inside) >= len(rows) - 1  # of nine intervals of 95% one may miss


def test_the_report_says_it_and_other_domains_say_nothing(trained, fitted):
    study, _ = trained
    text = ground_truth.section(study, Counting(), fitted)
    truth = ground_truth.truth_of(study, Counting())
    assert f"no model can lose less than {truth.loss:.4f} nats" in text
    assert "entropy rate" in text
    for run in study.runs:
        assert run.run_id in text
    said = ground_truth.as_json(study, Counting(), fitted)
    assert said["known"]["loss"] == truth.loss
    assert [each["law"] for each in said["fitted"]] == ["L(N, D)"]

    for name in ("image-8x8", "no-such-domain"):
        others = [replace(run, config={**run.config, "domain": name}) for run in study.runs]
        other = StudyRuns(study.path, tuple(others), ())
        assert ground_truth.section(other, Counting(), fitted) == ""
        assert ground_truth.as_json(other, Counting(), fitted) == {}
    assert ground_truth.section(StudyRuns(study.path, (), ()), Counting(), {}) == ""


def test_without_a_fit_the_truth_is_said_alone(trained):
    text = ground_truth.section(trained[0], Counting(), {})
    assert "No law with a constant was fitted." in text
