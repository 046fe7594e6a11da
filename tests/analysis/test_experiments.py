"""docs/experiments.md: its report commands can be typed, and those for L(C) draw it of runs as the papers had them."""

import re
import shlex
from pathlib import Path

from analysis.__main__ import _counting, _parser
from analysis.runs import read_runs
from analysis.study_fits import TRIALS, attempt, study_points
from tests.analysis.planted import Surface, ladder, write_study

PAGE = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text()
COMMANDS = re.findall(r"python -m analysis (report [^`]+)`", PAGE.replace("\n", " "))


def rows():
    """Figure -> the last cell of its row."""
    table = [line.strip("| \n").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[-1] for cells in table}


def test_every_report_command_is_one():
    assert len(COMMANDS) >= 3
    for command in COMMANDS:
        assert _parser().parse_args(shlex.split(command)).name == "reporting"


def test_what_is_said_of_decaying_rates_draws_the_frontier(tmp_path):
    made = ladder(tokens=2e6, evaluations=14, schedule="linear")
    study = read_runs(
        write_study(tmp_path / "study", made, Surface(a=150, b=1500, irreducible=0.9))
    )
    (trial,) = [each for each in TRIALS if each.name == "frontier"]
    (command,) = [each for each in COMMANDS if each.endswith("--include mid-schedule")]
    told, untold = (
        _counting(_parser().parse_args(shlex.split(each)))
        for each in (command, command.partition(" --include")[0])
    )
    known, unknown = (
        attempt(trial, study_points(study, trial.law, trial.x, counting), 0, 0)
        for counting in (told, untold)
    )
    assert known.fit is not None
    assert unknown.fit is None
    for figure in ("Henighan 1, 5, 18, 19; 2, 16", "Kaplan 2", "Kaplan 14"):
        assert "with `--include mid-schedule`" in rows()[figure]


def test_every_figure_of_the_papers_is_somewhere():
    """Henighan et al. 2020 have 32 figures, Kaplan et al. 2020 have 24."""
    said = " ".join(rows()) + PAGE[PAGE.index("Not here:") :].replace("figures", "")
    for paper, most in (("Henighan", 32), ("Kaplan", 24)):
        listed = re.findall(rf"{paper} ([\d, ]+(?:; [\d, ]+)*)", said)
        numbers = {int(each) for text in listed for each in re.findall(r"\d+", text)}
        gone = re.findall(rf"([\d]+) and ([\d]+) of {paper}", said)
        numbers |= {int(each) for pair in gone for each in pair}
        assert set(range(1, most + 1)) - numbers == set(), paper
