"""`python -m analysis`, as a person types it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from analysis.__main__ import main
from tests.analysis.planted import Surface, curves

ROOT = Path(__file__).parents[2]
SIZES = np.geomspace(1e4, 1e7, 8)


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "points.csv"
    loss = 1.2 + (3e4 / SIZES) ** 0.3
    rows = "\n".join(f"{n},{value}" for n, value in zip(SIZES, loss, strict=True))
    path.write_text("params,loss\n" + rows)
    return str(path)


@pytest.fixture
def curve_csv(tmp_path):
    points = curves(Surface(), 1.2e4 * 4.0 ** np.arange(6), (1 / 50, 6), noise=0.001).points
    path = tmp_path / "curves.csv"
    lines = ["group,params,flops,loss"]
    for row in zip(points.group, points.params, points.flops, points.loss, strict=True):
        lines.append(",".join(map(str, row)))
    path.write_text("\n".join(lines))
    return str(path)


def test_fit_prints_json_on_stdout_alone(csv, capsys):
    assert main(["fit", csv, "--law", "power-constant", "--bootstrap", "50"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["parameters"]["exponent"]["value"] == pytest.approx(0.3, rel=1e-5)
    assert err == ""


def test_fit_writes_a_file_where_asked(csv, tmp_path, capsys):
    target = tmp_path / "new" / "fit.json"
    assert main(["fit", csv, "--law", "power", "--bootstrap", "0", "--json", str(target)]) == 0
    assert capsys.readouterr().out == ""
    found = json.loads(target.read_text())
    assert found["bootstrap"]["method"] == "none"
    assert found["parameters"]["exponent"]["low"] is None


def test_fit_frontier_of_a_csv(curve_csv, capsys):
    assert main(["fit", curve_csv, "--law", "frontier", "--bootstrap", "20"]) == 0
    found = json.loads(capsys.readouterr().out)
    value = found["parameters"]["params_exponent"]["value"]
    assert value == pytest.approx(Surface().params_exponent, abs=0.05)
    assert found["diagnostics"]["sizes_on_hull"] == 6


def test_predict_gives_loss_interval_and_distance(csv, capsys):
    command = ["predict", csv, "--law", "power-constant", "--params", "1e9", "--bootstrap", "50"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"]["value"] == pytest.approx(1.2 + (3e4 / 1e9) ** 0.3, rel=1e-5)
    assert found["decades_beyond_data"] == pytest.approx(2)
    assert found["calibrated"] is False
    assert found["warnings"][0].startswith("far_from_data: 2.0 decades")
    assert found["warnings"][1].startswith("uncalibrated: ")


def test_predict_inside_the_data_has_no_distance(csv, capsys):
    main(["predict", csv, "--law", "power", "--params", "1e5", "--bootstrap", "50"])
    found = json.loads(capsys.readouterr().out)
    assert found["decades_beyond_data"] == 0
    assert found["loss"]["low"] < found["loss"]["value"] < found["loss"]["high"]


def test_a_logarithm_says_nothing_where_it_has_fallen_to_zero(tmp_path, capsys):
    params = np.geomspace(1e4, 1e7, 9)
    path = tmp_path / "log.csv"
    rows = [f"{n:.17g},{-0.25 * np.log(n / 1e9):.17g}" for n in params]
    path.write_text("\n".join(["params,loss", *rows]) + "\n")
    command = ["predict", str(path), "--law", "logarithm", "--bootstrap", "50", "--params"]
    assert main([*command, "1e8"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"]["value"] == pytest.approx(0.25 * np.log(10), rel=1e-6)
    assert [each["law"] for each in found["forms"]] == ["logarithm", "power", "power-constant"]
    assert main([*command, "1e10"]) == 2
    said = capsys.readouterr().err
    assert "--params = 1e+10 with --law logarithm: the fitted loss is zero at 1e+09" in said
    assert "choose the law power" in said


def test_predict_for_compute_gives_the_best_size_and_tokens(curve_csv, capsys):
    surface, size = Surface(), 5e6
    flops = 6 * size * float(surface.best_tokens(size))
    main(["predict", curve_csv, "--law", "frontier", "--flops", str(flops), "--bootstrap", "40"])
    found = json.loads(capsys.readouterr().out)
    assert found["optimal_params"]["value"] == pytest.approx(size, rel=0.3)
    product = 6 * found["optimal_params"]["value"] * found["optimal_tokens"]["value"]
    assert product == pytest.approx(flops, rel=1e-9)
    assert found["loss"]["value"] == pytest.approx(
        float(surface.loss(size, surface.best_tokens(size))), rel=0.01)  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "absent.csv", "--law", "power"], "absent.csv: no such file or folder; wanted"),
        (["fit", "CSV", "--law", "power", "--x", "flops"], "no column 'flops'; found params, loss"),
        (["fit", "CSV", "--law", "frontier"], "no column 'flops', 'group'"),
        (["predict", "CSV", "--law", "frontier", "--params", "1e9"], "wanted --flops C"),
        (["predict", "CSV", "--law", "power", "--params", "-1"], "--params = -1: not a positive"),
        (["predict", "CSV", "--law", "power", "--params", "nan"], "--params = nan: not a positive"),
        (["predict", "CSV", "--law", "power"], "no target; wanted --flops C, --params N or"),
        (
            ["predict", "CSV", "--law", "power", "--params", "1", "--tokens", "1"],
            "a law of one variable; wanted one of them",
        ),
        (
            [
                "predict",
                "CSV",
                "--law",
                "surface",
                "--params",
                "1",
                "--tokens",
                "1",
                "--flops",
                "1",
            ],
            "C = 6 N D leaves no room for all three",
        ),
        (
            ["predict", "CSV", "--law", "isoflop", "--flops", "1"],
            "this law says nothing of a run by",
        ),
        (["report", "absent", "--out", "OUT"], "absent: no such folder; wanted a study's results"),
    ],
)
def test_bad_input_is_one_message_and_status_2(csv, tmp_path, capsys, arguments, message):
    named = {"CSV": csv, "OUT": str(tmp_path / "out")}
    assert main([named.get(each, each) for each in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [["fit", "x", "--law", "parabola"], ["fit", "x", "--law", "power", "--bootstrap", "-1"], [],
     ["fit", "x", "--law", "power", "--delta", "0"]],
)  # fmt: skip
def test_bad_arguments_end_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert capsys.readouterr().err


def test_the_names_that_help_shows_are_those_that_the_code_knows():
    from analysis import __main__, guards, runs

    assert guards.INCLUDES == __main__.INCLUDES
    assert tuple(runs.PARAM_COUNTS) == __main__.PARAM_COUNTS
    assert tuple(runs.FLOP_COUNTS) == __main__.FLOP_COUNTS


def test_a_frontier_prediction_is_checked_on_held_out_compute(curve_csv, capsys):
    surface = Surface()
    best = 6 * 5e6 * float(surface.best_tokens(5e6))
    command = ["predict", curve_csv, "--law", "frontier", "--bootstrap", "40", "--flops"]
    main([*command, str(best)])
    found = json.loads(capsys.readouterr().out)
    assert found["calibrated"] is True
    assert not any(text.startswith("uncalibrated") for text in found["warnings"])
    truth = float(surface.loss(5e6, surface.best_tokens(5e6)))
    assert found["loss"]["low"] < truth < found["loss"]["high"]
    main([*command, str(best * 1e8)])
    far = json.loads(capsys.readouterr().out)
    assert far["calibrated"] is False
    assert any(text.startswith("uncalibrated: ") for text in far["warnings"])


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys, analysis.__main__ as m\n"
        "try: m.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'numpy','scipy','matplotlib','torch','h5py'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "report" in done.stdout
    assert "suggest" in done.stdout
