"""The next runs: a study file that is taken, and intervals that shrink as was said."""

import json
import tomllib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from analysis import laws
from analysis.__main__ import main
from analysis.design import Candidates, best_design
from analysis.fit import fit_separable
from analysis.separable import SURFACE
from analysis.study_file import _common_rate, _toml, template_of_runs
from launch.study import expand, load_study
from tests.analysis.planted import Surface, ladder, point_set, write_study

TRUTH = {"E": 1.8, "A": 480.0, "alpha": 0.35, "B": 2080.0, "beta": 0.37}
NOISE = 0.004


def measured(params, tokens, seed):
    noise = np.exp(NOISE * np.random.default_rng(seed).standard_normal(len(params)))
    return laws.surface(params, tokens, **TRUTH) * noise


def grid():
    params, ratio = np.meshgrid(np.geomspace(1e6, 1e8, 5), np.geomspace(5, 80, 5))
    return params.ravel(), (params * ratio).ravel()


@pytest.fixture
def table(tmp_path):
    params, tokens = grid()
    rows = zip(params, tokens, measured(params, tokens, 0), strict=True)
    path = tmp_path / "points.csv"
    path.write_text("params,tokens,loss\n" + "\n".join(",".join(map(str, row)) for row in rows))
    return path


def suggest(capsys, source, out, *options):
    command = ["suggest", source, "--out", out, "--bootstrap", 200, *options]
    assert main([str(each) for each in command]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "wish", [("--shrink", "alpha"), ("--shrink", "E"), ("--shrink", "a"), ("--flops", "1e20")]
)
def test_a_table_gives_a_study_that_expands(table, tmp_path, capsys, wish):
    out = tmp_path / "next.toml"
    answer = suggest(capsys, table, out, "--law", "surface", "--domain", "mathematics", *wish)
    study = load_study(out)
    runs = expand(study, out)
    assert study.name == "points-next"
    assert len(runs) == len(answer["runs"]) <= 8
    assert sum(run.flops for run in runs) == pytest.approx(answer["flops"], rel=0.01)
    params, tokens = grid()
    assert answer["flops"] <= np.max(6 * params * tokens)
    assert 0 < answer["width_expected"] < 1
    assert "of the family henighan nearest to each N" in answer["shapes"]


def test_the_interval_shrinks_as_was_said(table, tmp_path, capsys):
    """The suggested runs are made, on the planted law, and the law is fitted again."""
    out = tmp_path / "next.toml"
    answer = suggest(capsys, table, out, "--law", "surface", "--shrink", "beta", "--domain",
                     "mathematics", "--runs", 6)  # fmt: skip
    params, tokens = grid()
    more = np.array([[run["params"], run["tokens"]] for run in answer["runs"]]).T

    def width(sizes, budgets, seed):
        loss = measured(sizes, budgets, seed)
        found = point_set(loss, params=sizes, tokens=budgets)
        return np.std(np.log(fit_separable(found, SURFACE, 200, seed).draws["beta"]))

    before = np.mean([width(params, tokens, seed) for seed in range(3)])
    joined = np.concatenate([params, more[0]]), np.concatenate([tokens, more[1]])
    after = np.mean([width(*joined, seed) for seed in range(3)])
    # a standard deviation from three data sets of 200 draws is known to about 10%
    assert after / before == pytest.approx(answer["width_expected"], rel=0.3)
    assert after < before


def test_a_results_folder_gives_its_own_recipe(tmp_path, capsys):
    made = [
        replace(each, run_id=f"{each.run_id}-{tokens:g}", seed_noise=0.003)
        for tokens in (5e5, 2e6, 8e6)
        for each in ladder(tokens=tokens, evaluations=6, sizes=4)
    ]
    folder = write_study(tmp_path / "planted", made, Surface(a=150, b=1500, irreducible=0.9))
    out = tmp_path / "next.toml"
    answer = suggest(capsys, folder, out, "--law", "surface", "--shrink", "alpha", "--runs", 4)
    study = load_study(out)
    assert study.name == "planted-next"
    assert study.seeds == [1]  # another seed than any run has: the same one would tell nothing new
    assert study.optimizer.learning_rate == "henighan"
    assert study.batch.train_batch_size == 4
    assert len(expand(study, out)) == len(answer["runs"]) <= 4


def test_a_next_study_takes_over_all_that_changes_a_loss():
    """A study on a subset, from weights of another study, with weights of kinds: so are its next runs."""
    parts = {
        "data": {"unique_tokens": 30_000, "blanked": {"part": "text", "share": 0.5}},
        "start": {"study": "before", "variant": None},
        "loss": {"weights": {"image": 9.0, "text": 1.0}},
    }
    shape = {"num_layers": 4, "hidden_size": 32}
    config = {
        "domain": "mathematics",
        "shape": shape,
        "optimizer": {"learning_rate": 1e-3},
        **parts,
    }
    run = SimpleNamespace(config=config, counts={"params_non_embedding": 12288})
    template = template_of_runs([run], "old", None)
    assert {name: template.parts[name] for name in parts} == parts
    written = tomllib.loads(_toml(parts))
    assert written["loss"] == parts["loss"]
    assert written["data"] == parts["data"]
    assert written["start"] == {"study": "before"}


def test_the_best_run_of_a_known_problem_is_chosen():
    """Of three runs one measures the quantity itself, at the same cost: that one."""
    rng = np.random.default_rng(0)
    wanted = rng.standard_normal(500)
    log_loss = 0.01 * rng.standard_normal((500, 3, 1))
    log_loss[:, 1, 0] = 0.01 * wanted
    candidates = Candidates(np.ones((3, 1)), log_loss, wanted, noise_sd=0.01)
    design = best_design(candidates, budget=1.0, runs=3)
    assert (design.shapes, design.budgets) == ((1,), (0,))
    # signal and noise have equal variance: half is left, with the spread of 500 draws' variance
    assert design.remaining == pytest.approx(0.5, abs=3 * np.sqrt(2 / 500) / 2)
    assert best_design(candidates, 0.5, 3) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--law", "surface"], "nothing to shrink; wanted --shrink NAME"),
        (["--law", "surface", "--shrink", "E", "--flops", "1e20"], "a constant and a target"),
        (["--law", "isoflop", "--shrink", "a"], "does not say what a single run would measure"),
        (["--law", "surface", "--shrink", "gamma", "--domain", "text"],
         "has no such constant; wanted one of E, A"),
        (["--law", "surface", "--shrink", "E"], "wanted --domain NAME for the study file"),
        (["--law", "surface", "--shrink", "E", "--domain", "poetry"], "poetry"),
        (["--law", "surface", "--shrink", "E", "--domain", "text", "--budget", "1"],
         "the cheapest run thought of costs"),
        (["--law", "surface", "--shrink", "E", "--budget", "-1"], "--budget = -1: not a positive"),
        (["--law", "surface", "--shrink", "E", "--runs", "0"], "--runs = 0: wanted at least 1"),
        (["--law", "surface", "--shrink", "E", "--domain", "text", "--learning-rate", "fast"],
         "--learning-rate = fast: wanted a positive number, or one of henighan, kaplan"),
        (["--law", "power", "--x", "tokens", "--shrink", "scale", "--domain", "text",
          "--bootstrap", "0"], "usable bootstrap draws; wanted at least 2"),
        (["--law", "surface", "--flops", "1e24", "--domain", "text", "--bootstrap", "0"],
         "suggest: 0 usable bootstrap draws; wanted at least 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_suggested_is_refused_and_nothing_is_written(
    table, tmp_path, capsys, options, message
):
    out = tmp_path / "next.toml"
    command = ["suggest", str(table), "--out", str(out), "--bootstrap", "20", *options]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_table_without_tokens_does_not_say_what_a_run_costs(tmp_path, capsys):
    x = np.geomspace(1e5, 1e8, 8)
    path = tmp_path / "n.csv"
    path.write_text("params,loss\n" + "\n".join(f"{n},{1 + n**-0.2}" for n in x))
    command = ["suggest", str(path), "--law", "power-constant", "--shrink", "exponent",
               "--domain", "text", "--out", str(tmp_path / "x.toml"), "--bootstrap", "20"]  # fmt: skip
    assert main(command) == 2
    assert "no tokens in the points; wanted params and tokens" in capsys.readouterr().err


def test_one_compute_is_not_one_run(table, tmp_path, capsys):
    path = tmp_path / "c.csv"
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    path.write_text("params,tokens,flops,loss\n" + "\n".join(
        f"{n},{d},{6 * float(n) * float(d)},{loss}" for n, d, loss in rows))  # fmt: skip
    command = ["suggest", str(path), "--law", "power", "--x", "flops", "--shrink", "exponent",
               "--domain", "text", "--out", str(tmp_path / "x.toml"), "--bootstrap", "20"]  # fmt: skip
    assert main(command) == 2
    assert "many runs have one compute; wanted --x params or --x tokens" in capsys.readouterr().err


def test_learning_rates_without_a_rule_are_asked_for():
    def run(rate, params):
        config = {"optimizer": {"learning_rate": rate}}
        return SimpleNamespace(config=config, counts={"params_non_embedding": params})

    rule = [run(0.02828 * n**-0.25, n) for n in (1e4, 1e6)]
    assert _common_rate(rule) == "henighan"
    assert _common_rate([run(1e-3, 1e4), run(1e-3, 1e6)]) == 1e-3
    with pytest.raises(ValueError, match="neither one number nor a rule") as error:
        _common_rate([run(1e-3, 1e4), run(2e-3, 1e6)])
    assert "Give --learning-rate" in str(error.value)


@pytest.fixture
def no_optimum(tmp_path):
    """A loss that rises a little with the data, so that B of its surface is 0."""
    path = tmp_path / "hurts.csv"
    rows = [
        f"{n},{d},{1.8 + 400 / n**0.34 + 0.002 * np.log(d / 1e8)}"
        for n in np.geomspace(1e6, 1e8, 5)
        for d in np.geomspace(1e8, 1e10, 4)
    ]
    path.write_text("params,tokens,loss\n" + "\n".join(rows))
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["predict", "--flops", "1e20"], "the fitted law has no optimum: B = 0; wanted a loss that falls"),
        (["predict", "--params", "1e9"], "Give two of --params, --tokens and --flops"),
        (["suggest", "--tokens", "1e9"], "--tokens = 1e+09 with --law surface: the fitted law has no optimum"),
        (["suggest", "--shrink", "beta"], "--shrink beta: no point depends on it in the best fit"),
        (["suggest", "--shrink", "B"], "--shrink B: the fitted value is 0; wanted one that is positive"),
    ],
)  # fmt: skip
def test_without_an_optimum_one_number_says_no_run(no_optimum, tmp_path, capsys, options, message):
    command, *rest = options
    more = ["--domain", "text", "--out", str(tmp_path / "x.toml")] if command == "suggest" else []
    assert (
        main([command, str(no_optimum), "--law", "surface", "--bootstrap", "20", *rest, *more]) == 2
    )
    assert message in capsys.readouterr().err


def test_without_an_optimum_two_numbers_say_a_run(no_optimum, capsys):
    target = ["--params", "1e8", "--tokens", "1e10", "--bootstrap", "20"]
    assert main(["predict", str(no_optimum), "--law", "surface", *target]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"]["value"] == pytest.approx(1.8 + 400 / 1e8**0.34, rel=0.01)
    assert found["optimal_params"]["value"] is None
