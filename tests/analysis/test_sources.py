"""From a file or a folder to a fit of every law: columns, what is derived, predictions, bad input."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis import derived, laws
from analysis.__main__ import main
from analysis.consequences import contradiction, for_reducible
from analysis.derived import crossing, optimal_allocation, optimal_flops_of_tokens
from analysis.estimate import Estimate
from analysis.holdout import Split, reached, rolling_origin, rolling_width
from analysis.runs import Counting
from analysis.separable import LAW_NAMES, SURFACE, SURFACE_LAWS
from analysis.sources import fit_law, read_points
from analysis.words import has_warning
from tests.analysis.planted import Surface, ladder, point_set, write_study
from tests.analysis.test_surfaces import CHINCHILLA, planted


def write(path, **columns):
    rows = zip(*columns.values(), strict=True)
    text = "\n".join(",".join(map(str, row)) for row in rows)
    path.write_text(",".join(columns) + "\n" + text + "\n")
    return str(path)


@pytest.fixture
def surface_csv(tmp_path):
    points = planted(noise=0.002).points
    return write(tmp_path / "points.csv", params=points.params, tokens=points.tokens,
                 flops=6 * points.params * points.tokens, loss=points.loss)  # fmt: skip


def run(capsys, *arguments):
    assert main([str(each) for each in arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


def test_fit_says_all_that_is_required_of_it(surface_csv, tmp_path, capsys):
    target = tmp_path / "draws.csv"
    found = run(capsys, "fit", surface_csv, "--law", "surface", "--bootstrap", "60",
                "--draws", target)  # fmt: skip
    assert set(found["parameters"]) == {"E", "A", "alpha", "B", "beta"}
    assert {"a", "optimal_params", "optimal_tokens", "tokens_per_param", "loss_exponent"} == set(
        found["derived"]
    )
    needed = {"gradient_norm", "starts", "starts_agreeing", "condition_number", "bounds_active",
              "profile", "outliers", "residuals", "lack_of_fit", "holdout", "forms"}  # fmt: skip
    assert needed <= set(found["diagnostics"])
    lines = target.read_text().splitlines()
    assert lines[0].split(",")[:2] == ["E", "A"]
    assert len(lines) == 61


def test_delta_may_be_given(surface_csv, capsys):
    found = run(capsys, "fit", surface_csv, "--law", "surface", "--bootstrap", "0",
                "--delta", "0.0001")  # fmt: skip
    assert found["objective"]["delta"] == 1e-4


@pytest.mark.parametrize(
    ("target", "checks"),
    [
        ({"flops": 1e20}, lambda t: t["flops"] == pytest.approx(1e20)),
        ({"params": 1e9}, lambda t: t["params"] == pytest.approx(1e9)),
        ({"tokens": 1e10}, lambda t: t["tokens"] == pytest.approx(1e10)),
        ({"params": 1e9, "tokens": 1e10}, lambda t: t["flops"] == pytest.approx(6e19)),
        ({"flops": 6e19, "params": 1e9}, lambda t: t["tokens"] == pytest.approx(1e10)),
        ({"flops": 6e19, "tokens": 1e10}, lambda t: t["params"] == pytest.approx(1e9)),
    ],
)
def test_predict_takes_one_or_two_of_n_d_and_c(surface_csv, capsys, target, checks):
    options = [part for name, value in target.items() for part in (f"--{name}", value)]
    found = run(capsys, "predict", surface_csv, "--law", "surface", "--bootstrap", "60", *options)
    at = found["target"]
    assert checks(at)
    truth = float(laws.surface(at["params"], at["tokens"], **CHINCHILLA))
    assert found["loss"]["low"] < truth < found["loss"]["high"]
    product = 6 * found["optimal_params"]["value"] * found["optimal_tokens"]["value"]
    assert product == pytest.approx(at["flops"])
    if len(target) == 1:  # on the law's own optimum
        assert found["optimal_params"]["value"] == pytest.approx(at["params"])


def test_a_prediction_says_how_far_it_is_checked(surface_csv, capsys):
    near = run(capsys, "predict", surface_csv, "--law", "surface", "--bootstrap", "60",
               "--flops", "1e21")  # fmt: skip
    assert near["calibrated"] is True
    far = run(capsys, "predict", surface_csv, "--law", "surface", "--bootstrap", "60",
              "--flops", "1e26")  # fmt: skip
    assert far["calibrated"] is False
    assert far["decades_beyond_data"] > 5
    assert far["warnings"][0].startswith("far_from_data: ")
    assert any(text.startswith("uncalibrated: ") for text in far["warnings"])
    widths = [each["loss"]["high"] / each["loss"]["low"] for each in (near, far)]
    assert widths[1] > widths[0]


@pytest.mark.parametrize("law", ["surface", "coupled", "surface-kaplan"])
def test_the_compute_for_a_wanted_reducible_loss(surface_csv, law):
    fit = fit_law(read_points(Path(surface_csv), law, "params", Counting()), law, "params", 40, 0)
    needed = for_reducible(fit, 0.5)
    at = {name: each.value for name, each in needed.items()}
    assert 6 * at["params"] * at["tokens"] == pytest.approx(at["flops"])
    constants = {name: each.value for name, each in fit.parameters.items()}
    floor = constants.get("E", 0.0)
    function = SURFACE_LAWS[law].function
    assert function(at["params"], at["tokens"], **constants) - floor == pytest.approx(0.5)
    beside = function(at["params"] * 1.3, at["tokens"] / 1.3, **constants) - floor
    assert beside > 0.5
    assert needed["flops"].low < at["flops"] < needed["flops"].high


def test_the_size_for_a_wanted_reducible_loss(tmp_path, capsys):
    x = np.geomspace(1e4, 1e8, 12)
    noise = np.exp(0.001 * np.random.default_rng(0).standard_normal(12))
    path = write(tmp_path / "c.csv", params=x, loss=(1.5 + (1e4 / x) ** 0.4) * noise)
    found = run(capsys, "predict", path, "--law", "power-constant", "--reducible", "0.01",
                "--bootstrap", "200")  # fmt: skip
    each = found["needed"]["params"]
    assert each["low"] < 1e4 * 0.01 ** (-1 / 0.4) < each["high"]
    assert main(["predict", path, "--law", "power", "--reducible", "0"]) == 2
    assert "--reducible = 0: not a positive number" in capsys.readouterr().err
    assert main(["predict", path, "--law", "broken", "--reducible", "0.1"]) == 2
    assert "wanted a law whose reducible loss has an inverse" in capsys.readouterr().err


def test_where_two_trends_contradict_has_an_interval():
    """Kaplan et al. 2020, section 6.3, from points made of their L(C) and L(D)."""
    rng = np.random.default_rng(0)
    trends = [
        {"scale": 3.1e8 * laws.PF_DAY, "exponent": 0.050},
        {"scale": 5.4e13, "exponent": 0.095},
    ]
    optimum = {"params_scale": laws.PF_DAY * 1.3e9 ** (-1 / 0.73), "params_exponent": 0.73}
    fits = []
    for x, span, trend in zip(
        ("flops", "tokens"), ((1e16, 1e23), (1e8, 1e11)), trends, strict=True
    ):
        at = np.geomspace(*span, 12)
        loss = laws.power(at, **trend) * np.exp(0.001 * rng.standard_normal(12))
        fits.append(fit_law(point_set(loss, **{x: at}), "power", x, 200, 0))
    best = replace(
        fits[0],
        parameters={name: Estimate(value, value, value) for name, value in optimum.items()},
        draws={name: np.full(200, value) for name, value in optimum.items()},
    )
    found = contradiction(*fits, best)
    flops, loss = crossing(*trends, **optimum)
    assert found["flops"].low < flops < found["flops"].high
    assert found["loss"].low < loss < found["loss"].high


def test_a_form_that_the_points_speak_against_is_named(tmp_path, capsys):
    x = np.geomspace(1e4, 1e8, 12)
    noise = np.exp(0.001 * np.random.default_rng(0).standard_normal(12))
    path = write(tmp_path / "c.csv", params=x, loss=(1.5 + (1e4 / x) ** 0.4) * noise)
    found = run(capsys, "predict", path, "--law", "power", "--params", "1e9", "--bootstrap", "60")
    assert found["warnings"][0].startswith("unlikely_form: AICc gives 'power'")
    assert found["loss"]["low"] <= found["loss"]["value"] <= found["loss"]["high"]


def test_rolling_widths_grow_no_narrower_than_the_errors_seen():
    points = planted(noise=0.01).points
    splits = rolling_origin(points, SURFACE, 1e-3)
    assert all(split.points_below >= 8 for split in splits)
    beyond = np.array([0.2, 0.2, 0.5])  # decades of N, D and C
    half = rolling_width(splits, beyond)
    errors = np.concatenate([each.error[each.farthest <= 0.5] for each in splits])
    # between noise alone and twice the worst error, whatever the weights
    assert 0.01 < half < 1.96 * np.abs(errors).max() * 1.01
    assert np.isnan(rolling_width([], beyond))
    # one wild run of next to no weight does not widen what the others say
    first, near = splits[0], np.flatnonzero(splits[0].farthest <= 0.5)
    assert len(near) > 1
    hit = np.arange(len(first.error)) == near[0]
    wild = replace(first, error=np.where(hit, 9.0, first.error))
    light = replace(wild, weight=np.where(hit, 1e-9, first.weight))
    assert rolling_width([wild], beyond) > 1 > 0.1 > rolling_width([light], beyond)


def test_a_forecast_is_checked_only_by_enough_held_out_runs_in_every_measure():
    splits = rolling_origin(planted(noise=0.01).points, SURFACE, 1e-3)
    near = np.array([0.2, 0.2, 0.5])
    assert reached(splits, near, span=3.0)
    assert not reached(splits, near, span=1.9)  # two decades below the target are wanted,
    assert reached(splits, np.zeros(3), span=1.9)  # but not inside the data
    assert not reached(splits, np.array([0.0, 0.0, 30.0]), span=33.0)
    # no split is so far out in D, although some are in C
    farthest = np.max([each.decades.max(axis=0) for each in splits], axis=0)
    assert not reached(splits, np.array([0.0, farthest[1] + 0.1, 0.5]), span=3.0)
    rows = np.arange(6)
    apart = Split(1.0, 10, np.ones((6, 3)), np.zeros(6), np.stack([rows, rows], axis=1), np.ones(6))
    assert reached([apart], near, span=3.0)
    one_curve = replace(apart, shared=np.stack([0 * rows, rows], axis=1))
    assert not reached([one_curve], near, span=3.0)
    seeds_of_one_cell = replace(apart, shared=np.stack([rows, 0 * rows], axis=1))
    assert not reached([seeds_of_one_cell], near, span=3.0)
    three_far = replace(apart, decades=np.where(rows < 3, 1.0, 0.4)[:, None] * np.ones(3))
    assert not reached([three_far], near, span=3.0)  # 0.4 decades of C are short of 0.5
    assert reached([three_far], np.full(3, 0.4), span=3.0)


def test_seeds_of_a_cell_and_rows_of_a_curve_share_what_they_are_held_out_by():
    points = planted(noise=0.01).points
    twice = points.only(np.repeat(np.arange(len(points)), 2))
    seeds = replace(twice, trunk=np.arange(len(twice)))
    for split in rolling_origin(seeds, SURFACE, 1e-3):
        trunks, cells = (len(np.unique(kind)) for kind in split.shared.T)
        assert trunks == len(split.error) == 2 * cells


def test_a_larger_model_on_fewer_tokens_is_beyond_the_data_although_its_compute_is_not(
    tmp_path, capsys
):
    """And the compute of the data is 6 N D, whatever a column flops counts."""
    points = planted(noise=0.003).points
    columns = {"params": points.params, "tokens": points.tokens, "loss": points.loss}
    plain = write(tmp_path / "plain.csv", **columns)
    exact = write(tmp_path / "exact.csv", **columns, flops=20 * points.params * points.tokens)
    size, tokens = 100 * points.params.max(), points.tokens.min()
    target = ["--params", f"{size:g}", "--tokens", f"{tokens:g}", "--bootstrap", "60"]
    one, other = (
        run(capsys, "predict", path, "--law", "surface", *target) for path in (plain, exact)
    )
    assert one["decades_beyond"]["params"] == pytest.approx(2, abs=1e-5)
    assert one["decades_beyond"]["tokens"] == 0
    assert one["decades_beyond_data"] == one["decades_beyond"]["params"]
    assert one["calibrated"] is False
    assert one["warnings"][0].startswith(
        "far_from_data: 2.0 decades beyond the fitted range of params"
    )
    for name in ("loss", "decades_beyond", "calibrated"):
        assert other[name] == one[name]


def test_learning_curves_take_steps_or_else_tokens(tmp_path, capsys):
    params, steps = (each.ravel() for each in np.meshgrid(
        np.geomspace(1e5, 1e8, 4), np.geomspace(1e3, 1e5, 8)))  # fmt: skip
    loss = laws.learning_curve(params, steps, 6.5e13, 0.077, 2.1e3, 0.76)
    by_steps = write(tmp_path / "s.csv", params=params, steps=steps, loss=loss)
    by_tokens = write(tmp_path / "t.csv", params=params, tokens=1e5 * steps, loss=loss)
    by_flops = write(tmp_path / "f.csv", params=params, flops=6e5 * params * steps, loss=loss)
    for path, unit in ((by_steps, 1), (by_tokens, 1e5), (by_flops, 1e5)):
        found = run(capsys, "fit", path, "--law", "learning-curve", "--bootstrap", "0")
        assert found["parameters"]["Sc"]["value"] == pytest.approx(2.1e3 * unit, rel=1e-4)
        name = "steps_not_adjusted" if unit == 1 else "steps_in_tokens"
        assert any(text.startswith(name) for text in found["warnings"])


def test_unique_parameters_come_from_the_runs_of_one_epoch(tmp_path, capsys):
    params, tokens = (
        np.tile(each, 2) for each in (planted().points.params, planted().points.tokens)
    )
    unique = tokens / np.repeat([1.0, 8.0], len(tokens) // 2)
    constants = CHINCHILLA | {"params_decay": 5.3, "tokens_decay": 15.4}
    inner = {name: value for name, value in CHINCHILLA.items() if name != "E"}
    best, _ = optimal_allocation(optimal_flops_of_tokens(unique, **inner), **inner)
    once = np.arange(len(params)) < len(params) // 2
    loss = np.where(once, laws.surface(params, tokens, **CHINCHILLA), laws.data_constrained(
        params, best, tokens, unique, **constants))  # fmt: skip
    path = write(tmp_path / "r.csv", params=params, tokens=tokens, unique_tokens=unique, loss=loss)
    found = run(capsys, "fit", path, "--law", "data-constrained", "--bootstrap", "0")
    assert any("by a surface fitted to the 30 runs of at most one epoch" in text
               for text in found["warnings"])  # fmt: skip
    few = write(tmp_path / "f.csv", params=params[30:], tokens=tokens[30:],
                unique_tokens=unique[30:], loss=loss[30:])  # fmt: skip
    found = run(capsys, "fit", few, "--law", "data-constrained", "--bootstrap", "0")
    assert any("0.051 per unique token, published" in text for text in found["warnings"])


@pytest.mark.parametrize(
    ("law", "ignored"),
    [
        ("surface", False),
        ("position", False),
        ("isoflop", False),
        ("critical-batch", False),
        ("frontier", True),
    ],
)
def test_only_the_frontier_takes_no_weights_and_says_so(tmp_path, law, ignored):
    points = planted().points
    path = Path(write(tmp_path / "w.csv", params=points.params, tokens=points.tokens, loss=points.loss,
                      flops=6 * points.params * points.tokens, weight=np.arange(1.0, 31.0),
                      group=np.arange(30), position=np.arange(1.0, 31.0), batch=np.full(30, 4.0),
                      steps=points.tokens))  # fmt: skip
    found = read_points(path, law, "params", Counting())
    assert any(text.startswith("weight_ignored: ") for text in found.remarks) is ignored
    assert np.ptp(found.points.weight) == (0 if ignored else 29)


def test_few_draws_are_said_and_of_one_there_is_no_interval():
    for draws, few in ((0, False), (1, True), (39, True), (40, False)):
        fit = fit_law(planted(), "surface", "params", draws, 0, only=("a",))
        assert has_warning(fit, "few_draws") is few
        assert np.isnan(fit.parameters["E"].low) == (draws < 2)


@pytest.mark.parametrize("factor", [1e-8, 1e8])
def test_a_loss_of_any_unit_is_fitted_alike(factor):
    """As losses far from 1, the exponents of a law must not move; beyond nine decades a table leaves rows out."""
    found = planted()
    other = replace(found, points=replace(found.points, loss=found.points.loss * factor))
    one, scaled = (fit_law(each, "surface", "params", 0, 0) for each in (found, other))
    for name in ("alpha", "beta"):
        assert scaled.value(name) == pytest.approx(one.value(name), rel=1e-5)
    assert scaled.value("A") == pytest.approx(one.value("A") * factor, rel=1e-4)


@pytest.mark.parametrize("law", ["surface", "surface-kaplan", "power", "learning-curve"])
def test_a_law_of_new_tokens_says_where_they_were_met_again(tmp_path, law):
    points = planted().points
    columns = {"params": points.params, "tokens": points.tokens, "loss": points.loss}
    for epochs, rows in ((4.0, 7), (1.0, 0)):
        unique = points.tokens / np.where(np.arange(30) < 7, epochs, 1.0)
        path = Path(write(tmp_path / "e.csv", **columns, unique_tokens=unique))
        found = read_points(path, law, "params", Counting())
        said = [text for text in found.remarks if text.startswith("repeated_data: ")]
        assert len(said) == (rows > 0)
        assert not rows or f"{rows} of 30 points are of more tokens than unique_tokens" in said[0]


@pytest.fixture(scope="module")
def small_study(tmp_path_factory):
    """Four sizes at three budgets."""
    made = [
        replace(each, run_id=f"{each.run_id}-{tokens:g}")
        for tokens in (5e5, 2e6, 8e6)
        for each in ladder(tokens=tokens, evaluations=8, sizes=4)
    ]
    folder = tmp_path_factory.mktemp("results") / "study"
    return write_study(folder, made, Surface(a=150, b=1500, irreducible=0.9))


REFUSED = {
    "broken": "4 usable points at 4 different params",
    "data-constrained": "none of 12 runs met a token twice",
    "isoflop": "0 compute budgets with 3 or more sizes",
    "critical-batch": "0 losses that 3 or more batch sizes of one model size reach",
}


@pytest.mark.parametrize("law", [name for name in LAW_NAMES if name not in REFUSED])
def test_laws_are_fitted_to_a_study(small_study, law):
    fit = fit_law(read_points(small_study, law, "params", Counting()), law, "params", 0, 0)
    assert fit.law == law
    assert fit.points_used >= 4


@pytest.mark.parametrize("law", REFUSED)
def test_laws_that_a_study_cannot_carry_are_refused(small_study, law):
    with pytest.raises(ValueError, match=REFUSED[law]) as error:
        fit_law(read_points(small_study, law, "params", Counting()), law, "params", 0, 0)
    assert "wanted" in str(error.value)


@pytest.mark.parametrize(
    ("law", "columns", "message"),
    [
        ("surface", {"params": [1e6], "loss": [3]}, "no column 'tokens'"),
        ("surface", {"param": [1e6], "tokens": [1], "loss": [3]}, "The nearest is 'param'"),
        ("surface", {"params": [1e6, "x"], "tokens": [1, 2], "loss": [3, 3]}, "wanted a number"),
        ("surface", {"params": [1e6, 1e7], "tokens": [1e8, 1e9], "loss": [3, 2]}, "wanted at least"),
        ("surface", {"params": [0, -1], "tokens": [1e8, 1e9], "loss": [3, 2]}, "0 usable points"),
        ("coupled", {"params": [1e6] * 9, "tokens": list(range(1, 10)), "loss": [3] * 9},
         "all 9 points have params"),
        ("data-constrained", {"params": [1], "tokens": [1], "loss": [1]}, "'unique_tokens'"),
        ("critical-batch", {"batch": [1, 2], "steps": [3, 4], "loss": [3, 2]}, "3 or more batch"),
        ("isoflop", {"params": [1, 2], "flops": [3, 4], "loss": [3, 2]}, "0 compute budgets"),
        ("learning-curve", {"params": [1, 2], "loss": [3, 2]}, "no column 'steps'"),
    ],
)  # fmt: skip
def test_bad_tables_are_one_message(tmp_path, capsys, law, columns, message):
    path = write(tmp_path / "bad.csv", **columns)
    assert main(["fit", path, "--law", law]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err


def test_an_empty_file_and_repeated_rows(tmp_path, capsys):
    (tmp_path / "empty.csv").write_text("")
    assert main(["fit", str(tmp_path / "empty.csv"), "--law", "learning-curve"]) == 2
    assert "0 lines; wanted a CSV with a header" in capsys.readouterr().err
    points = planted().points
    twice = {"params": np.tile(points.params, 2), "tokens": np.tile(points.tokens, 2),
             "loss": np.tile(points.loss, 2)}  # fmt: skip
    path = write(tmp_path / "twice.csv", **twice)
    found = run(capsys, "fit", path, "--law", "surface", "--bootstrap", "0")
    assert found["points_used"] == 30
    assert found["points_left_out"][0]["reason"].startswith("same as twice.csv row 2")


def test_losses_that_do_not_fall_are_no_silent_law():
    params, tokens = planted().points.params, planted().points.tokens
    rising = point_set(2 + 0.1 * np.log10(params * tokens), params=params, tokens=tokens)
    fit = fit_law(rising, "surface", "params", 20, 0)
    assert has_warning(fit, "at_bound")


def test_losses_below_the_irreducible_one_are_flagged(tmp_path, capsys):
    """Two runs judged wrongly, far below what the others fall to: said, not silently fitted."""
    points = planted(noise=0.002).points
    loss = points.loss.copy()
    loss[[3, 17]] = 0.5 * CHINCHILLA["E"]
    path = write(tmp_path / "low.csv", params=points.params, tokens=points.tokens, loss=loss)
    found = run(capsys, "fit", path, "--law", "surface", "--bootstrap", "60")
    (said,) = [text for text in found["warnings"] if text.startswith("outliers: 2 points")]
    assert "low.csv row 5" in said
    assert "low.csv row 19" in said
    refit = found["diagnostics"]["refits"]["without_outliers"]
    assert refit["E"] == pytest.approx(CHINCHILLA["E"], rel=0.05)


@pytest.mark.parametrize("law", ["power", "surface", "frontier"])
def test_half_written_runs_are_listed_and_the_rest_is_fitted(small_study, tmp_path, law):
    folder = shutil.copytree(small_study, tmp_path / "study")
    names = sorted(path.name for path in folder.iterdir())
    whole = (folder / names[0] / "metrics.h5").read_bytes()
    (folder / names[0] / "metrics.h5").write_bytes(whole[: len(whole) // 2])
    (folder / names[1] / "metrics.h5").write_bytes(b"")
    found = read_points(folder, law, "params", Counting())
    fit = fit_law(found, law, "params", 0, 0)
    assert fit.points_used > 0
    gone = {each.point: each.reason for each in found.left_out}
    for name in names[:2]:
        assert gone[name].startswith("damaged: ")


def at_batches(noise=0.0, seed=0):
    """Kaplan's learning curves at five batches: L solves L = (Nc/N)^aN + (Sc/S_min(L))^aS."""
    params, batch, steps = (each.ravel() for each in np.meshgrid(
        np.geomspace(1e5, 1e8, 4), np.geomspace(16, 4096, 5), np.geomspace(1e3, 1e5, 6)))  # fmt: skip
    low, high = np.full(params.shape, 1.0), np.full(params.shape, 100.0)
    for _ in range(200):
        loss = (low + high) / 2
        above = laws.learning_curve_at_batch(params, steps, batch, loss, **BATCHES) > loss
        low, high = np.where(above, loss, low), np.where(above, high, loss)
    loss = loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(loss)))
    tokens = steps * batch * 1024
    group = np.array([f"{n:.3g} at {b:.3g}" for n, b in zip(params, batch, strict=True)])
    return {"params": params, "batch": batch, "steps": steps, "tokens": tokens,
            "flops": 6 * params * tokens, "loss": loss, "group": group}  # fmt: skip


BATCHES = {"Nc": 6.5e13, "aN": 0.077, "Sc": 2.1e3, "aS": 0.76, "B_star": 2.1e8 / 1024, "aB": 0.21}


def test_learning_curves_at_several_batches_are_fitted_with_their_critical_batch(tmp_path, capsys):
    path = write(tmp_path / "b.csv", **at_batches())
    found = run(capsys, "fit", path, "--law", "learning-curve", "--bootstrap", "0")
    assert any(text.startswith("steps_adjusted: ") for text in found["warnings"])
    for name, value in BATCHES.items():
        assert found["parameters"][name]["value"] == pytest.approx(value, rel=1e-3), name
    exponents = derived.frontier_exponents(BATCHES["aN"], BATCHES["aS"], BATCHES["aB"])
    for name, value in exponents.items():
        assert found["derived"][f"{name}_exponent"]["value"] == pytest.approx(value, rel=1e-3)
    best = derived.efficient_frontier(
        float(at_batches()["flops"].max()), **BATCHES | {"B_star": 2.1e8}
    )
    for name in ("params", "batch", "steps"):
        each = found["derived"][f"optimal_{name}"]["value"]
        assert each == pytest.approx(best[name], rel=0.02), name
    noisy = write(tmp_path / "n.csv", **at_batches(0.002))
    found = run(capsys, "fit", noisy, "--law", "learning-curve", "--bootstrap", "60")
    for name in ("aN", "aS", "aB"):
        assert found["parameters"][name]["value"] == pytest.approx(BATCHES[name], rel=0.05), name


def test_a_wanted_reducible_loss_may_be_given_per_picture(tmp_path, capsys):
    x = np.geomspace(1e4, 1e8, 12)
    path = write(tmp_path / "c.csv", params=x, loss=1.5 + (1e4 / x) ** 0.4)
    found = run(capsys, "predict", path, "--law", "power-constant", "--reducible", "19.2",
                "--per-sample", "192", "--bootstrap", "0")  # fmt: skip
    assert found["needed"]["params"]["value"] == pytest.approx(1e4 * 0.1 ** (-1 / 0.4), rel=1e-4)


@pytest.mark.long
def test_a_million_rows_are_read_and_fitted(tmp_path, capsys):
    rng = np.random.default_rng(0)
    params, tokens = 10 ** rng.uniform(6, 9, 1_000_000), 10 ** rng.uniform(8, 11, 1_000_000)
    loss = laws.surface(params, tokens, **CHINCHILLA) * np.exp(
        0.01 * rng.standard_normal(len(params))
    )
    path = write(tmp_path / "big.csv", params=params, tokens=tokens, loss=loss)
    found = run(capsys, "fit", path, "--law", "surface", "--bootstrap", "100")
    assert found["points_used"] == 1_000_000
    assert found["parameters"]["alpha"]["value"] == pytest.approx(CHINCHILLA["alpha"], abs=1e-3)


@pytest.mark.parametrize("law", ["power", "frontier", "isoflop"])
def test_a_fit_without_points_says_which_file_is_damaged(law, tmp_path, capsys):
    made = ladder(tokens=1e5, evaluations=6, sizes=2)
    folder = write_study(tmp_path / "study", made, Surface())
    for path in folder.glob("*/metrics.h5"):
        path.write_bytes(path.read_bytes()[:4000])
    assert main(["fit", str(folder), "--law", law]) == 2
    said = capsys.readouterr().err
    assert f"Left out: {made[0].run_id}: damaged: " in said
    assert "metrics.h5" in said
