"""The list of small experiments is whole, its commands are those of the programs, its figures are in the docs."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from analysis import __main__ as analysis
from benchmarks import experiments
from data_prep import arguments as data_prep
from launch import arguments as launch

ROOT = Path(__file__).parent.parent
PLAN = tomllib.loads((ROOT / "benchmarks" / "experiments.toml").read_text())
LISTED = {each["study"]: each for each in PLAN["experiment"]}
STUDIES = {
    path.stem: tomllib.loads(path.read_text())
    for path in (ROOT / "launch" / "studies").glob("*.toml")
}


def test_every_small_study_is_listed():
    small = {name for name in STUDIES if name.endswith("-small")}
    assert small - {"ground-truth-small"} <= set(
        LISTED
    )  # that one is for `make test`; ground-truth is listed
    assert set(LISTED) <= set(STUDIES)


@pytest.mark.parametrize("name", LISTED)
def test_what_a_study_takes_from_others_comes_before_it(name):
    before = list(LISTED)[: list(LISTED).index(name)]
    start = STUDIES[name].get("start", {}).get("study")
    assert start is None or start in before
    assert set(re.findall(r"\{results\}/([\w-]+)", LISTED[name].get("report", ""))) <= set(before)
    assert {LISTED[name]["data"], *LISTED[name].get("needs", [])} <= set(PLAN["data"])


@pytest.mark.parametrize("name", PLAN["data"])
def test_the_commands_of_data_are_commands(name):
    recipe = PLAN["data"][name]
    assert set(recipe.get("needs", [])) <= set(PLAN["data"])
    for words in recipe["commands"]:
        program, *rest = shlex.split(words)
        assert program == "data_prep"
        data_prep.parser().parse_args(rest)
        assert "{out}" in rest


@pytest.mark.parametrize("name", LISTED)
def test_the_commands_behind_training_are_commands(name):
    experiment = LISTED[name]
    for words in experiment.get("evaluate", []):
        program, *rest = shlex.split(words)
        assert program == "launch"
        launch.parser().parse_args(rest)
    words = experiment.get("report", "").split()
    analysis._parser().parse_args(["report", "DIR", "--out", "DIR", *words])


def test_runs_stand_for_what_is_there(tmp_path, monkeypatch):
    for name in ("a", "b [1]"):
        (tmp_path / name / "checkpoints" / "step-1").mkdir(parents=True)
    asked = []
    monkeypatch.setattr(
        experiments.subprocess, "run", lambda command, **_: asked.append(command[3:])
    )
    runs = [tmp_path / "a", tmp_path / "b [1]", tmp_path / "gone"]
    experiments.do("launch evaluate {runs}/checkpoints/step-* --rows 3", runs)
    found = [str(run / "checkpoints" / "step-1") for run in runs[:2]]
    assert asked == [["evaluate", *found, "--rows", "3"]]


def test_data_are_made_in_a_new_folder_and_once(tmp_path):
    words = "data_prep build known-entropy --raw generator --rows 40 --out {out}"
    recipes = {"small": {"commands": [words]}}
    experiments.make_data("small", recipes, tmp_path / "new")
    assert (tmp_path / "new" / "data" / "small" / "manifest.json").exists()
    recipes["small"]["commands"] = ["data_prep no-such-command"]
    experiments.make_data("small", recipes, tmp_path / "new")  # is there: nothing is run


@pytest.mark.parametrize("name", LISTED)
def test_its_figures_are_in_the_docs(name):
    shown = (ROOT / "docs" / "results.md").read_text()
    for figure in LISTED[name].get("figures", []):
        file = f"{name}-{figure}.svg"
        assert (ROOT / "docs" / "figures" / file).stat().st_size > 1000
        assert f"](figures/{file})" in shown
