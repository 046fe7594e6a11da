"""The report: complete, self-contained, reproducible, honest about what could not be fitted."""

import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest

from analysis import sections, study_fits, tables
from analysis.__main__ import main
from analysis.estimate import Estimate, Fit
from analysis.report import inputs_digest, write_report
from analysis.runs import Counting, read_runs
from analysis.study_fits import Attempt, fit_study
from analysis.words import parameter_in_words
from tests.analysis.planted import LENGTH, PlantedRun, Surface, ladder, point_set, write_study

SURFACE = Surface(a=150, b=1500, irreducible=0.9)
DRAWS = 60


def runs():
    made = ladder(tokens=2e6, evaluations=14, seed_noise=0.002, kinds=("question", "answer"))
    return [
        *made,
        replace(made[2], run_id="repeat-s1", seed=1),
        replace(made[1], run_id="stopped", finished=False, seed=2),
    ]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("results") / "planted", runs(), SURFACE)


@pytest.fixture(scope="module")
def report(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    lines = write_report(study, out, Counting(), DRAWS, 0)
    return out, lines, (out / "report.html").read_text()


def test_it_prints_the_path_and_the_exponents(report):
    out, lines, _ = report
    assert lines[0] == str(out / "report.html")
    assert lines[1] == "6 runs used, 1 left out"
    assert any(re.match(r"L\(N\): exponent 0\.\d+ \[0\.\d+, 0\.\d+\]", line) for line in lines)
    assert any(line.startswith("N_opt(C): exponent") for line in lines)


def test_an_optimum_that_was_not_seen_has_no_number():
    """Runs of equal tokens meet only where they end: the slope between those points is no law."""
    estimate = Estimate(1.0, math.nan, math.nan)
    said = ("optimum_not_identified: 0 bracketed handovers, wanted at least 2",)
    fit = SimpleNamespace(parameters={"params_exponent": estimate}, warnings=said)
    assert parameter_in_words(fit, "params_exponent") == "not measured by these runs"
    assert (
        parameter_in_words(SimpleNamespace(**vars(fit) | {"warnings": ()}), "params_exponent")
        == "1.000"
    )
    fit.derived = {}
    for warnings, shown in ((said, [None]), ((), [1.0])):
        fit.warnings = warnings
        rows = study_fits._rows("isoflop", fit, "total", "exact")
        assert [None if math.isnan(row.value) else row.value for row in rows] == shown


def test_the_planted_exponent_is_inside_its_interval(report):
    out, _, _ = report
    fits = {fit["name"]: fit for fit in json.loads((out / "fits.json").read_text())["fits"]}
    each = fits["loss-by-params"]["parameters"]["exponent"]
    assert each["low"] <= SURFACE.alpha <= each["high"]


class Resources(HTMLParser):
    """Collects every address that a browser would fetch, and tags left open."""

    def __init__(self):
        super().__init__()
        self.fetched, self.open = [], []

    def handle_starttag(self, tag, attributes):
        self.fetched += [v for k, v in attributes if k in ("src", "href", "xlink:href", "srcset")]
        if tag not in ("meta", "br", "path", "use", "rect", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("path", "use", "rect"):
            assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_nothing_of_the_network(report):
    _, _, text = report
    page = Resources()
    page.feed(text)
    assert page.open == []
    assert page.fetched
    assert all(each.startswith(("#", "data:")) for each in page.fetched)
    assert "http:" not in text
    assert "https:" not in text
    assert "<script" not in text
    assert "@import" not in text
    assert "url(#" in text
    assert not re.search(r"url\((?!#)", text)


def test_every_id_is_unique_and_every_reference_resolves(report):
    _, _, text = report
    names = re.findall(r'\bid="([^"]+)"', text)
    assert len(names) == len(set(names))
    assert set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", text)) <= set(names)


@pytest.mark.parametrize(
    "words",
    [
        "Does the fit find the planted law?",
        "The held-out loss falls with model size",
        "Henighan et al. 2020, Table 1",
        "Tokenisation, masking of the loss",
        "unfinished: stopped at step",
        "Runs that differ in the seed alone scatter by",
        "5 sizes over 3.6 decades of N",
        "What to distrust",
        "few_points",
        "Held-out loss by position",
        "Held-out loss by kind of token",
        "extrapolation error",
        'download="fits.json"',
        'download="points.csv"',
        'download="runs.csv"',
        'download="constants.csv"',
        'download="conventions.csv"',
        "The same runs, counted differently",
        "Not made for by the design of this study: L(N)",
        "; L(D) (the largest size has 1 token budgets",
        "What N counts",
        "Tokens to reach a loss",
    ],
)
def test_it_says(report, words):
    assert words in report[2]


def test_published_constants_stand_beside_ours(report):
    rows = re.findall(r"<tr>(.*?)</tr>", report[2])
    row = next(row for row in rows if "L(N)</td>" in row and ">exponent<" in row)
    assert row.endswith("<td>0.16</td>")


def test_the_same_again_says_up_to_date_at_once(study, report):
    out, lines, text = report
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    again = write_report(study, out, Counting(), DRAWS, 0)
    assert again == [f"{out / 'report.html'} (up to date)", *lines[1:]]
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}


def test_the_same_input_gives_the_same_bytes(study, report, tmp_path):
    out, _, text = report
    (tmp_path / "figures").mkdir()
    for stale in ("draws-of-a-law-no-longer-fitted.csv", "figures/not-drawn-any-more.svg"):
        (tmp_path / stale).write_text("stale")
    write_report(study, tmp_path, Counting(), DRAWS, 0)

    def written(folder):
        files = (path for kind in ("*.csv", "figures/*.svg") for path in folder.glob(kind))
        return sorted(str(path.relative_to(folder)) for path in files)

    tables = written(out)
    assert tables == written(tmp_path)
    assert {"points.csv", "runs.csv", "constants.csv", "conventions.csv"} < set(tables)
    assert "draws-frontier.csv" in tables
    for name in tables:
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes(), name

    def timeless(folder):
        return re.sub(r'"seconds": [\d.]+', "", (folder / "fits.json").read_text())

    assert timeless(tmp_path) == timeless(out)
    embedded = r'href="data:application/json;base64,[^"]*"'
    again = (tmp_path / "report.html").read_text()
    assert re.sub(embedded, "", again) == re.sub(embedded, "", text)


def test_each_figure_is_a_file_of_its_own(report):
    out, _, text = report
    files = list((out / "figures").glob("*.svg"))
    assert len(files) == text.count("<figure>")  # so no two share a name
    for path in files:
        root = ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert list(
            root.iter("{http://www.w3.org/2000/svg}text")
        )  # text as text, to edit and to search


def test_anything_that_changes_is_noticed(study, tmp_path):
    copy = shutil.copytree(study, tmp_path / "planted")
    digests = {inputs_digest(copy, Counting(), DRAWS, 0)}
    digests.add(inputs_digest(copy, Counting(params="total"), DRAWS, 0))
    digests.add(inputs_digest(copy, Counting(), DRAWS + 1, 0))
    digests.add(inputs_digest(copy, Counting(), DRAWS, 1))
    with (copy / "stopped" / "metrics.h5").open("ab") as file:
        file.write(b"x")
    digests.add(inputs_digest(copy, Counting(), DRAWS, 0))
    shutil.rmtree(copy / "stopped")
    digests.add(inputs_digest(copy, Counting(), DRAWS, 0))
    assert len(digests) == 6


def test_points_csv_can_be_fitted_again(report, capsys):
    out, _, _ = report
    command = ["fit", str(out / "points.csv"), "--law", "frontier", "--bootstrap", "0"]
    assert main(command) == 0
    again = json.loads(capsys.readouterr().out)["parameters"]["exponent"]["value"]
    fits = {fit["name"]: fit for fit in json.loads((out / "fits.json").read_text())["fits"]}
    assert again == pytest.approx(fits["frontier"]["parameters"]["exponent"]["value"], rel=1e-6)


def test_a_study_with_one_finished_run_still_gets_a_report(tmp_path):
    made = ladder(tokens=1e5, evaluations=6, sizes=3)
    broken = [made[0], replace(made[1], finished=False), replace(made[2], finished=False)]
    folder = write_study(tmp_path / "study", broken, SURFACE)
    lines = write_report(folder, tmp_path / "out", Counting(), DRAWS, 0)
    assert "L(N): not fitted:" in " ".join(lines)
    text = (tmp_path / "out" / "report.html").read_text()
    assert "1 usable points at 1 different params (2 left out)" in text
    assert "Not fitted: L(N), L(N), no constant, frontier" in text
    assert json.loads((tmp_path / "out" / "fits.json").read_text())["fits"] == []


def test_a_study_with_no_finished_run_gets_a_report_and_an_error(tmp_path):
    made = [replace(run, finished=False) for run in ladder(tokens=1e5, evaluations=6, sizes=2)]
    folder = write_study(tmp_path / "study", made, SURFACE)
    for _ in range(2):  # made, and up to date
        with pytest.raises(
            ValueError, match=r"0 runs used, 2 left out; wanted at least one .*--include"
        ):
            write_report(folder, tmp_path / "out", Counting(), DRAWS, 0)
    said = json.loads((tmp_path / "out" / "fits.json").read_text())["summary"]
    assert said[1].startswith(f"left out: {made[0].run_id}: unfinished: stopped at step ")
    assert "this study shows nothing yet" in (tmp_path / "out" / "report.html").read_text()


@pytest.fixture(scope="module")
def full_report(tmp_path_factory):
    """A study whose design allows nearly every law: budgets of equal compute, learning curves at a
    constant rate, several batches."""
    made = [
        PlantedRun(
            f"r{i}{j}", hidden_size=width, num_layers=4, tokens=flops / 6 / (12 * width**2),
            domain="image-8x8", length=192, evaluations=10, seed_noise=0.002, seed=i,
            batch=(2, 4, 8)[(i + j) % 3],
        )
        for i, (flops, widths) in enumerate((
            (1e11, (32, 48, 64, 88, 128)), (1e12, (64, 88, 120, 168, 240)),
            (1e13, (112, 160, 224, 312, 448)),
        ))
        for j, width in enumerate(widths)
    ]  # fmt: skip
    root = tmp_path_factory.mktemp("full")
    study = write_study(root / "study", made, SURFACE)
    write_report(study, root / "out", Counting(), DRAWS, 0)
    return json.loads((root / "out" / "fits.json").read_text()), (root / "out")


def test_every_law_that_the_design_allows_is_in_the_report(full_report):
    fits, out = full_report
    names = {fit["name"] for fit in fits["fits"]}
    assert {"loss-by-params", "surface", "surface-kaplan", "isoflop", "learning-curve"} <= names
    assert {"B_star", "aB"} < set(next(fit["parameters"] for fit in fits["fits"]
                                       if fit["name"] == "learning-curve"))  # fmt: skip
    text = (out / "report.html").read_text()
    for caption in ("L(N, D).", "IsoFLOP curves.", "The exponents of the surface", "L(N, S).",
                    "The best size by every route.", "What a wrong size costs.",
                    "What too few tokens cost", "The same runs, counted differently."):  # fmt: skip
        assert f"<b>{caption}" in text, caption


def test_the_routes_to_the_best_size_stand_side_by_side(full_report):
    fits, _ = full_report
    assert {"surface", "isoFLOP parabola", "envelope of final losses"} <= set(fits["routes"])
    truth = SURFACE.params_exponent
    each = fits["routes"]["surface"]
    assert each["low"] <= truth <= each["high"]


def test_the_counting_conventions_stand_side_by_side(full_report):
    fits, out = full_report
    rows = [row for row in fits["conventions"] if (row["law"], row["exponent"]) == ("surface", "a")]
    assert [row["params"] for row in rows] == ["non-embedding", "non-embedding-and-head", "total"]
    values = [row["value"] for row in rows]
    assert len(set(values)) == 3
    text = (out / "conventions.csv").read_text()
    assert text.splitlines()[0] == "law,exponent,params,flops,value,low,high"
    assert len(text.splitlines()) == 1 + len(fits["conventions"])


def test_what_follows_has_intervals(full_report):
    fits, _ = full_report
    found = {each["name"]: each for each in fits["findings"]}
    for name in ("surface:optimal_params", "surface:excess_compute_2", "surface:overfitting",
                 "early_stopping", "learning-curve:loss_exponent"):  # fmt: skip
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"], name
    assert found["surface:excess_compute_2"]["value"] > 1


def test_constants_csv_holds_every_constant(full_report):
    fits, out = full_report
    lines = (out / "constants.csv").read_text().splitlines()[1:]
    wanted = sum(len(fit["parameters"]) + len(fit["derived"]) for fit in fits["fits"])
    assert len(lines) == wanted


def fitted(values, warnings=(), x="params", **diagnostics):
    """A fit as the sentences see it."""
    parameters = {name: Estimate(*value) for name, value in values.items()}
    return Fit("power-constant", "", x, parameters, {}, 6, (), {}, diagnostics, warnings, 0.0)


def attempt(fit, name="loss-by-params", title="L(N)", x="params"):
    sizes = np.array([1e4, 1e5, 1e6])
    found = point_set(np.array([2.1, 2.0, 1.9]), params=sizes)
    return {name: Attempt(name, title, fit.law, x, found, fit)}


SIZE = {"irreducible": (1.0, 0.9, 1.1), "scale": (1e3, 9e2, 2e3), "exponent": (0.3, 0.28, 0.33)}
COMPUTE = SIZE | {"params_exponent": (0.5, 0.4, 0.6), "tokens_exponent": (0.5, 0.4, 0.6)}


def test_a_clean_law_is_stated_without_reservation():
    tried = attempt(fitted(SIZE))
    assert sections.answer(tried).endswith(": exponent 0.300 [0.280, 0.330].")
    assert "<b>0.300</b>" in sections.cards(tried, None)
    assert "tag" not in sections.cards(tried, None)
    assert tables.constants_note(tried) == ""


@pytest.mark.parametrize(
    ("ends", "said"),
    [((0.005, 8.0), "not known: "), ((0.005, 0.4), "not known (at most 0.400): "),
     ((0.2, 8.0), "not known (at least 0.200): ")],
)  # fmt: skip
def test_an_exponent_whose_interval_the_search_cut_is_not_quoted(ends, said):
    fit = fitted(SIZE | {"exponent": (0.3, *ends)}, ("exponent_at_bound: x",), residual_sd=0.01)
    tried = attempt(fit)
    text = sections.answer(tried)
    assert f"The exponent of L(N) is {said}its 95% interval reaches a limit" in text
    assert "falls with model size: 2.100 nats per token at N\u00a0=\u00a010k, 1.900 at 1M." in text
    assert "0.300" not in text
    shown = sections.cards(tried, None)
    assert "<b>0.300</b>" not in shown
    assert '<span class="tag">not known</span>' in shown
    assert "±" not in " ".join(sections._exponent_sentence(fit))
    assert "not known" in tables.constants_table(tried, None)
    assert "L(N) (its 95% interval reaches" in tables.constants_note(tried)


def test_a_loss_that_turns_up_again_is_not_said_to_fall():
    each = attempt(fitted(SIZE | {"exponent": (0.3, 0.005, 4.0)}, ("exponent_at_bound: x",)))
    each["loss-by-params"].found.points.loss[:] = [2.1, 1.9, 2.0]
    text = sections.answer(each)
    assert "does not fall all the way with model size: 2.100 nats per token" in text
    assert "2.000 at 1M (lowest: 1.900 at 100k)." in text


def test_a_wide_exponent_is_not_given_as_plus_or_minus_more_than_half():
    said = sections._exponent_sentence(fitted(SIZE | {"exponent": (0.3, 0.05, 0.9)}))
    assert said == ["The exponent of L(N) is known only to lie between 0.05 and 0.9."]
    assert sections._exponent_sentence(fitted(SIZE)) == [
        "The exponent of L(N) is known to about ±8% of itself."
    ]


def test_an_exponent_that_hangs_on_an_unknown_constant_says_so():
    tried = attempt(fitted(SIZE, ("irreducible_not_identified: x",)))
    words = "depends on the irreducible loss, which these runs do not identify"
    assert f"exponent 0.300 [0.280, 0.330]; it {words}." in sections.answer(tried)
    assert f'<span class="tag">{words}</span>' in sections.cards(tried, None)
    assert words in tables.constants_note(tried)
    assert "<b>1.000</b>" not in sections.cards(tried, None)  # the constant itself


def test_a_frontier_of_single_runs_gives_no_exponent_of_compute():
    names = ("frontier_not_separated: x", "optimum_not_identified: x")
    fit = fitted(COMPUTE, names, "flops", sizes_on_hull=2, sizes=6)
    tried = attempt(fit, "frontier", "frontier", "flops")
    text = sections.answer(tried)
    assert "L(C) is not separated from the learning curves of single runs: 2 of 6 sizes" in text
    assert "0.300" not in text
    assert sections.cards(tried, None).count("<b>–</b>") == 2
    assert "L(C) (not separated from" in tables.constants_note(tried)
    other = fitted(COMPUTE, (), "flops", sizes_on_hull=4, sizes=6)
    other = attempt(other, "frontier", "frontier", "flops")
    assert "exponent of L(C) is 0.300 [0.280, 0.330]." in sections.answer(other)
    assert "<b>–</b>" not in sections.cards(other, None)


def test_equal_tokens_for_every_size_are_not_sold_as_a_law_of_compute(tmp_path):
    """Decaying rates and one budget: the whole report, from files to words."""
    made = ladder(tokens=1e5, evaluations=8, sizes=5, schedule="cosine", seed_noise=0.01)
    folder = write_study(tmp_path / "study", made, SURFACE)
    without = fit_study(read_runs(folder), Counting(), 0, 0).tried["frontier"]
    assert without.fit is None
    assert any(each.reason.startswith("mid-schedule: its learning rate had begun to fall")
               for each in without.found.left_out)  # fmt: skip
    counting = Counting(include=("mid-schedule",))
    lines = write_report(folder, tmp_path / "out", counting, DRAWS, 0)
    fits = json.loads((tmp_path / "out" / "fits.json").read_text())["fits"]
    warnings = next(fit["warnings"] for fit in fits if fit["name"] == "frontier")
    assert any(text.startswith("frontier_not_separated: ") for text in warnings)
    assert any("not separated from the learning curves of single runs" in x for x in lines)
    text = (tmp_path / "out" / "report.html").read_text()
    assert "L(C) is not separated from the learning curves of single runs" in text
    assert "the exponent of L(C) is" not in text


def test_pictures_get_a_map_by_pixel(tmp_path):
    made = [
        PlantedRun(f"p{i}", hidden_size=32 * 2**i, num_layers=4, tokens=1e5, domain="image-8x8",
                   evaluations=6, length=192)
        for i in range(4)
    ]  # fmt: skip
    folder = write_study(tmp_path / "study", made, SURFACE)
    write_report(folder, tmp_path / "out", Counting(), DRAWS, 0)
    text = (tmp_path / "out" / "report.html").read_text()
    assert "Held-out loss by pixel" in text
    assert "<image" not in text
    assert LENGTH != 192


def chromium():
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@pytest.mark.skipif(chromium() is None, reason="no chromium to draw the page with")
@pytest.mark.parametrize("size", ["390,2400", "1200,2400"])
def test_a_browser_draws_it(report, tmp_path, size):
    """Not blank, in colour, and no wider than the window."""
    from PIL import Image

    out, _, _ = report
    shot = tmp_path / "shot.png"
    width = max(int(size.split(",")[0]), 500)  # headless Chromium has no narrower window
    subprocess.run(
        [chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         "--disable-background-networking", f"--window-size={size}", f"--screenshot={shot}",
         f"--user-data-dir={tmp_path / 'profile'}", Path(out / "report.html").as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[1] in (width, int(size.split(",")[0]))
    grey = np.ptp(pixels, axis=2)
    assert (grey > 60).mean() > 0.002  # the coloured curves
    assert pixels.std() > 10
