"""L(D) of another study in a report: where it meets L(C), and what it is refused for."""

import json
from dataclasses import replace

import pytest

from analysis.__main__ import main
from analysis.data_limits import data_limits
from analysis.findings import Sample, findings
from analysis.report import inputs_digest, write_report
from analysis.runs import Counting, read_runs
from analysis.sources import study_points
from analysis.study_fits import TRIALS, attempt
from analysis.views import _token_curves
from tests.analysis.planted import PlantedRun, Surface, write_study

SURFACE = Surface(irreducible=1.0, a=2e2, b=2e4)
SIZES = ((2, 16), (2, 32), (2, 64), (4, 96), (4, 160))
LENGTHS = (3e4, 1e5, 3e5, 1e6, 3e6)


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Learning curves of several sizes, and one large model of several lengths, each to its end."""
    root = tmp_path_factory.mktemp("limits")
    curves = [
        PlantedRun(f"c{width}", width, layers, tokens=3e6, evaluations=30)
        for layers, width in SIZES
    ]
    ends = [
        PlantedRun(f"d{i}", 512, 8, tokens=tokens, evaluations=4)
        for i, tokens in enumerate(LENGTHS)
    ]
    return write_study(root / "curves", curves, SURFACE), write_study(root / "ends", ends, SURFACE)


def test_the_law_of_data_of_another_study_meets_the_frontier(studies):
    curves, ends = studies
    study = read_runs(curves)
    limits = data_limits(ends, study, Counting(), 0, 0)
    assert limits.fit.value("exponent") == pytest.approx(SURFACE.beta, rel=0.01)
    (trial,) = [each for each in TRIALS if each.name == "frontier"]
    frontier = attempt(trial, study_points(study, trial.law, trial.x, Counting()), 0, 0)
    tried = {"frontier": frontier}
    assert not any(
        each.name.startswith("crossing") for each in findings(tried, Sample("token", 1.0))
    )
    tried["loss-by-tokens"] = limits
    found = {each.name: each.each.value for each in findings(tried, Sample("token", 1.0))}
    assert found["crossing:flops"] > 0
    drawn = _token_curves(frontier.found.points, tried)
    assert "Thick: L(D) of ends" in drawn.caption
    assert ">L(D)<" in drawn.svg
    assert ">L(D)<" not in _token_curves(frontier.found.points, {}).svg


def test_a_report_takes_it_and_knows_that_it_did(studies, tmp_path):
    curves, ends = studies
    few = tmp_path / "few"
    few.mkdir()
    for width in (16, 32):
        (few / f"c{width}").symlink_to(curves / f"c{width}")
    lines = write_report(few, tmp_path / "out", Counting(), 0, 0, ends)
    assert any(line.startswith("L(D) of ends: ") for line in lines)
    fits = json.loads((tmp_path / "out" / "fits.json").read_text())
    (own,) = [fit for fit in fits["fits"] if fit["name"] == "loss-by-tokens"]
    assert own["title"] == "L(D) of ends"
    assert "L(D)" not in fits["not_tried"]
    assert fits["digest"] != inputs_digest(few, Counting(), 0, 0)
    again = write_report(few, tmp_path / "out", Counting(), 0, 0, ends)
    assert again[0].endswith("(up to date)")


def test_a_study_of_other_data_or_without_a_law_of_data_is_refused(studies, tmp_path, capsys):
    curves, ends = studies
    study = read_runs(curves)
    missing = tmp_path / "none"
    with pytest.raises(
        ValueError, match=r"gives no L\(D\): .*different tokens.* name another study"
    ):
        data_limits(curves, study, Counting(), 0, 0)
    other = write_study(
        tmp_path / "other",
        [PlantedRun("x", 512, 8, tokens=t, data="elsewhere") for t in LENGTHS[:1]],
        SURFACE,
    )
    with pytest.raises(
        ValueError, match=r"judged on other data .*: data elsewhere, not planted; wanted one"
    ):
        data_limits(other, study, Counting(), 0, 0)
    command = ["report", str(curves), "--out", str(tmp_path / "out"), "--bootstrap", "0"]
    assert main([*command, "--data-limits", str(missing)]) == 2
    assert f"--data-limits {missing}: no such folder; wanted" in capsys.readouterr().err
    empty = replace(study, runs=())
    assert data_limits(ends, empty, Counting(), 0, 0).title == "L(D) of ends"
