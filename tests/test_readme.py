"""What the README and the shipped files promise is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from launch.study import expand, load_study

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
STUDIES = sorted((ROOT / "launch/studies").glob("*.toml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_a_shipped_study_is_valid_and_named_after_its_file(path):
    """`make study` finds its results under the name of the file."""
    study = load_study(path)
    assert study.name == path.stem
    assert expand(study, path)


def test_the_study_in_the_readme_is_valid(tmp_path):
    (block,) = re.findall(r"```toml\n(.*?)```", README, re.S)
    path = tmp_path / "study.toml"
    path.write_text(block)
    runs = expand(load_study(path), path)
    assert [run.seed for run in runs] == [0, 0, 1]
    assert runs[0].run_id.startswith("mathematics-L2-H64-2e6tok-s0-")


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`?\bmake ([a-z-]+)", README))))
def test_make_has_what_the_readme_types(target):
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{target}:", makefile, re.M)


def test_the_commands_have_the_words_that_the_readme_lists():
    listed = re.findall(r"^python -m (\w+)  +([a-z |-]+)$", README, re.M)
    assert len(listed) == 4
    for package, words in listed:
        command = [sys.executable, "-m", package, "--help"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        offered = set(re.findall(r"^    ([\w-]+)(?: |$)", done.stdout, re.M))
        assert offered == set(words.split(" | ")), package


def test_the_tree_is_the_tree():
    tree = set(re.findall(r"^(\w+)/ ", README, re.M))
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    folders = {name.split("/")[0] for name in tracked.stdout.splitlines() if "/" in name}
    assert tree == {name for name in folders if not name.startswith(".")}


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()


def test_every_requirement_has_its_reason():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    names = {line.split("==")[0] for line in lines if "==" in line}
    table = re.findall(r"^\| ([\w, -]+) \| ", README.split("## Dependencies")[1], re.M)
    explained = {name for cell in table for name in cell.split(", ")}
    assert names <= explained
