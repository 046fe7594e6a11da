"""B_crit(L) of another study in a report: it brings compute to C_min, and what it is refused for."""

import json

import numpy as np
import pytest

from analysis.__main__ import main
from analysis.laws import FLOPS_PER_PARAMETER_AND_TOKEN
from analysis.least_compute import LEAST, critical_batch_of, least_frontier
from analysis.published import published
from analysis.runs import Counting, read_runs
from analysis.sources import study_points
from analysis.tables import _published
from analysis.views_batch import batch_pictures
from tests.analysis.planted import PlantedRun, Surface, write_study

SURFACE = Surface(irreducible=1.0, a=2e2, b=2e4)
CRITICAL = (400.0, 0.4)
SIZES = ((2, 16), (2, 32), (2, 64), (4, 96))


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Learning curves of several sizes at one batch, and of one size at several, where B_crit(L) is planted."""
    root = tmp_path_factory.mktemp("least")
    curves = [
        PlantedRun(f"c{width}", width, layers, tokens=3e6, evaluations=25, batch=16, critical=CRITICAL,
                   domain="text-v256")
        for layers, width in SIZES
    ]  # fmt: skip
    scan = [
        PlantedRun(f"b{batch}", 64, 2, tokens=2e6 * (1 + batch / 64), evaluations=40, batch=batch,
                   critical=CRITICAL, domain="text-v256")
        for batch in (2, 16, 64, 256)
    ]  # fmt: skip
    return write_study(root / "curves", curves, SURFACE), write_study(root / "scan", scan, SURFACE)


@pytest.fixture(scope="module")
def done(studies):
    curves, scan = studies
    study = read_runs(curves)
    batch = critical_batch_of(scan, study, Counting(), 20, 0)
    return study, batch, least_frontier(study, Counting(), batch, 0, 0)


def test_compute_comes_to_what_a_small_batch_would_have_cost(done):
    """The planted loss is a function of N and of E_min alone."""
    study, batch, least = done
    assert batch.title == "B_crit(L) of scan"
    assert batch.fit.value("aB") == pytest.approx(CRITICAL[1], rel=0.05)
    points = least.found.points
    assert points.loss == pytest.approx(SURFACE.loss(points.params, points.tokens), rel=0.01)
    spent = study_points(study, "frontier", "flops", Counting()).points
    assert np.all(points.flops < spent.flops)
    ratio = points.flops / (FLOPS_PER_PARAMETER_AND_TOKEN * points.params * points.tokens)
    assert ratio == pytest.approx(1)
    assert points.flops / spent.flops + points.steps / spent.steps == pytest.approx(1)
    (remark,) = [each for each in least.fit.warnings if each.startswith("compute_adjusted")]
    assert "of 100 losses lie outside those it was measured at" in remark


def test_the_figures_of_the_least_compute_are_of_the_study_that_is_reported(done):
    study, batch, least = done
    tried = {"critical-batch": batch, LEAST: least}
    drawn = {each.name: each for each in batch_pictures(study, Counting(), tried)}
    assert {
        "least-compute",
        "optimum-least",
        "tokens-to-reach-least",
        "steps-to-reach-least",
    } <= set(drawn)
    told = drawn["least-compute"].caption
    assert "over the draws of B_crit(L)" in told
    assert "S_min ∝ C_min^" in told
    assert "over all batch sizes" not in told
    assert "C_min, N = 111k" in drawn["least-compute"].svg
    assert "0.73" in drawn["optimum-least"].caption
    assert _published(least, "exponent", published("text-v256")) == "0.05"
    assert _published(least, "exponent", published("image-8x8")) == "–"


def test_a_report_takes_it_and_knows_that_it_did(studies, tmp_path, capsys):
    curves, scan = studies
    few = tmp_path / "few"
    few.mkdir()
    for _, width in SIZES[1:3]:
        (few / f"c{width}").symlink_to(curves / f"c{width}")
    command = ["report", str(few), "--out", str(tmp_path / "out"), "--bootstrap", "0"]
    assert main([*command, "--critical-batch", str(scan)]) == 0
    told = capsys.readouterr().out
    assert "L(C_min): exponent " in told
    assert "N_opt(C_min): exponent " in told
    fits = json.loads((tmp_path / "out" / "fits.json").read_text())
    titles = {fit["name"]: fit["title"] for fit in fits["fits"]}
    assert (titles["critical-batch"], titles[LEAST]) == ("B_crit(L) of scan", "frontier in C_min")
    assert "B_crit(L)" not in fits["not_tried"]
    assert main([*command, "--critical-batch", str(scan)]) == 0
    assert "(up to date)" in capsys.readouterr().out
    assert main([*command, "--critical-batch", str(tmp_path / "none")]) == 2
    assert (
        f"--critical-batch {tmp_path / 'none'}: no such folder; wanted" in capsys.readouterr().err
    )


def test_what_says_nothing_of_the_critical_batch_is_refused(studies, tmp_path):
    curves, scan = studies
    study = read_runs(curves)
    with pytest.raises(
        ValueError, match=r"--critical-batch .*: gives no B_crit\(L\): .*name another"
    ):
        critical_batch_of(curves, study, Counting(), 0, 0)
    flat = [
        PlantedRun(f"b{batch}", 64, 2, tokens=2e6, evaluations=10, batch=batch, domain="text-v256")
        for batch in (2, 8, 32)
    ]
    with pytest.raises(ValueError, match="no loss has a critical batch. Wanted learning curves"):
        critical_batch_of(write_study(tmp_path / "flat", flat, SURFACE), study, Counting(), 0, 0)
    other = write_study(tmp_path / "other", [PlantedRun("x", 64, 2, tokens=1e5, data="elsewhere",
                                             domain="text-v256")], SURFACE)  # fmt: skip
    with pytest.raises(ValueError, match=r"--critical-batch .*judged on other data .* elsewhere"):
        critical_batch_of(other, study, Counting(), 0, 0)
