"""What the report makes of evaluations of saved checkpoints: on evaluation files whose laws are planted."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from analysis.evaluations import (
    evaluations_of,
    improved,
    last_of_each_run,
    one_of_each_size,
    transfer,
)
from analysis.page import figure
from analysis.report import write_report
from analysis.runs import Counting, read_runs
from analysis.views import dark_colours
from analysis.views_answers import mathematics_pictures
from analysis.views_classes import class_pictures
from analysis.views_documents import _ends, document_pictures, law_of_size
from analysis.views_evaluations import _transfer, evaluation_pictures, unused_table
from analysis.views_information import information_pictures
from analysis.views_positions import position_pictures
from analysis.words import short
from launch.answers import ANSWER_COLUMNS
from launch.evaluation import PERCENTILES
from launch.evaluation_file import writing
from launch.information import INFORMATION
from launch.results import read_result
from tests.analysis.planted import PlantedRun, Surface, write_run

SIZES = (16, 32, 64, 128)
RATE, ONSET, EXACT = 0.5, 2e3, 3.0
OFFSET = 0.25
DOCUMENTS = 40
"""Document d of every run costs (0.5 + d/DOCUMENTS) times the run's mean loss, so every percentile does as it does."""


def _content(run, step, loss, **more):
    """A group as `launch evaluate` writes it; the documents are listed from easy to hard."""
    factor = 0.5 + (np.arange(DOCUMENTS) + 0.5) / DOCUMENTS
    cost = loss * factor
    return {
        "attributes": {"kind": "losses", "loss": loss, "standard_error": 0.01, "num_tokens": 640,
                       "step": step, "domain": "known-entropy", "split": "valid", "data": "books",
                       "data_identity": "00ff00ff"} | more.pop("attributes", {}),
        "documents/row": np.arange(DOCUMENTS), "documents/start": np.zeros(DOCUMENTS, int),
        "documents/loss_sum": cost * 16, "documents/count": np.full(DOCUMENTS, 16),
        "percentiles": np.column_stack([PERCENTILES, np.percentile(cost, PERCENTILES)]),
    } | more  # fmt: skip


def _information(params):
    told = RATE * np.log(params / ONSET)
    line = (b"right", b"left", told, 0.01, 5.0 - told, 5.0, told / 5.0, 0.002, b"right", 900, 7200)
    return np.array([line], INFORMATION)


def _answers(loss):
    """A level's accuracy is a function of the training loss alone."""
    rows = [
        (
            b"level-%02d" % level,
            module,
            100,
            round(100 * np.exp(-loss * level / 20)),
            loss * level,
            300,
        )
        for level in (3, 8, 12)
        for module in (b"algebra__a", b"numbers__b")
    ]
    return np.array(rows, ANSWER_COLUMNS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four sizes, each evaluated at its end and in the middle, and one damaged file."""
    root = tmp_path_factory.mktemp("planted")
    surface = Surface()
    for size in SIZES:
        run = PlantedRun(f"run-{size}", size, 4, tokens=2e6)
        path = root / run.run_id
        write_run(path, run, surface)
        table = read_result(path).eval_rows("valid")
        for at in (-1, len(table) // 2):
            step, own = int(table["step"][at]), float(table["loss"][at])
            content = _content(run, step, own + OFFSET, information=_information(run.params),
                               attributes={"known_mutual_information": EXACT})  # fmt: skip
            with writing(path / "evaluations" / f"step-{step}-books.h5") as add:
                add(f"{run.run_id}/step-{step}", content)
            told = {"kind": "answers", "step": step, "train_loss": own}
            with writing(path / "evaluations" / f"step-{step}-answers-own.h5") as add:
                add(f"{run.run_id}/step-{step}", {"attributes": told, "answers": _answers(own)})
    (path / "evaluations" / "broken.h5").write_bytes(b"no HDF5")
    with writing(path / "evaluations" / "other.h5") as add:
        add("x/step-1", {"attributes": {"kind": "losses", "step": 1}})
    return root


@pytest.fixture(scope="module")
def planted(folder):
    study = read_runs(folder)
    return study, evaluations_of(study, Counting())


def test_every_file_is_read_or_listed(planted):
    _, found = planted
    assert len(found.found) == len(SIZES) * 4
    reasons = {each.point: each.reason for each in found.left_out}
    broken, other = (f"run-{SIZES[-1]}/evaluations/{name}.h5" for name in ("broken", "other"))
    assert set(reasons) == {broken, f"{other}: x/step-1"}
    assert "not readable as evaluations" in reasons[broken]
    assert reasons[f"{other}: x/step-1"] == "no whole evaluation: kind 'losses', step 1"
    assert "broken.h5" in unused_table(found)
    assert unused_table(replace(found, left_out=())) == ""


def test_a_constant_offset_is_found_in_every_phase(planted):
    _, found = planted
    (rows,) = found.by_data().values()
    law = transfer(rows)
    assert law.offset == pytest.approx(OFFSET, abs=1e-12)
    assert law.spread < 1e-12
    assert (law.slope, law.level) == (pytest.approx(1, abs=1e-9), pytest.approx(OFFSET, abs=1e-9))
    assert [each.run.run_id for each in one_of_each_size(rows)] == [f"run-{n}" for n in SIZES]
    assert len(last_of_each_run(rows)) == len(SIZES)


def test_what_depends_on_the_phase_is_seen(planted):
    """Earlier checkpoints half a nat above the line of the last ones."""
    _, found = planted
    (rows,) = found.by_data().values()
    last = last_of_each_run(rows)
    own = np.mean([each.own_loss for each in last])
    off = replace(last[0], step=1, own_loss=float(own))
    off = replace(off, content=off.content | {"attributes": {"loss": own + OFFSET + 0.5}})
    law = transfer([*last, off])
    assert (law.earlier, law.off_line) == (1, pytest.approx(0.5, abs=1e-9))


def _on(each, tokens, loss=None, **attributes):
    """The same evaluation as of a choice of rows with so many tokens."""
    attributes = {"num_tokens": tokens, "loss": each.loss if loss is None else loss} | attributes
    return replace(
        each, content=each.content | {"attributes": each.content["attributes"] | attributes}
    )


def test_one_checkpoint_evaluated_twice_is_no_phase_of_training(planted):
    """With and without the information of pairs, and on fewer rows: another loss, but no earlier checkpoint."""
    _, found = planted
    (rows,) = found.by_data().values()
    last = last_of_each_run(rows)
    fewer = [_on(each, 64, each.loss + 0.5) for each in last]
    twice = replace(found, found=(*fewer, *last, *last))
    for along in (False, True):
        (kept,) = twice.by_data(along=along).values()
        assert [each.loss for each in kept] == [each.loss for each in last]
    assert transfer(kept).earlier == 0
    assert np.isnan(transfer(kept).off_line)


def test_phases_are_compared_on_equal_rows(planted):
    """Checkpoints on the way on few rows, half a nat off, the ends on those and on more."""
    _, found = planted
    (rows,) = found.by_data().values()
    last = last_of_each_run(rows)
    few = [_on(each, 64, each.loss + 0.5) for each in rows]
    both = replace(found, found=(*few, *last))
    (along,) = both.by_data(along=True).values()
    assert {each.choice for each in along} == {64}
    law = transfer(along)
    assert law.earlier > 0
    assert law.off_line < 1e-9
    (ends,) = both.by_data().values()
    assert {each.choice for each in ends} == {640}
    (picture,) = _transfer(both)
    assert "books: +0.250 nats" in picture.caption


def test_the_runs_own_held_out_rows_are_no_other_data(planted):
    """Another split of their own data is drawn, by name."""
    _, found = planted
    own = [_on(each, 640, own_data=True, data="own") for each in found.found]
    own[0] = _on(own[0], 640, own_data=False)  # of an older file, which does not say
    test = [_on(each, 640, own_data=True, data="own", split="test") for each in found.found]

    assert _transfer(replace(found, found=tuple(own))) == []
    (picture,) = _transfer(replace(found, found=(*found.found, *own)))
    assert "own: +" not in picture.caption
    (picture,) = _transfer(replace(found, found=(*found.found, *test)))
    assert "own (own data): +0.250 nats" in picture.caption


def test_losses_on_other_data_have_a_law_of_their_own(planted):
    """Of the planted ladder with an offset the exponent of the runs' own losses, and another constant."""
    (picture,) = _transfer(planted[1])
    said = picture.caption.partition("plus constant: ")[2].partition(". Kaplan")[0]
    books, own = said.split("; ")
    assert books.startswith("books 0.")
    assert books.split()[1] == own.removeprefix("own held-out rows ").split()[0]


def test_single_documents_are_drawn_where_all_sizes_were_judged_on_them(planted, tmp_path):
    """Each of the planted ones does as the mean, times a factor of its own."""
    _, found = planted
    drawn = {each.name: each.caption for each in document_pictures(found)}
    exponents = drawn["documents"].partition("the names: ")[2].partition(". Single")[0].split("; ")
    assert len(exponents) == 8
    assert len({each.split()[0] for each in exponents}) == 1
    content = _content(found.found[0].run, 1, 2.0)
    with writing(tmp_path / "others.h5") as add:
        add("run-128/step-1", content | {"documents/row": content["documents/row"] + 1})
    moved = {"path": tmp_path / "others.h5", "name": "run-128/step-1"}
    other = (
        replace(each, **moved) if each.run.run_id == "run-128" else each for each in found.found
    )
    drawn = [each.name for each in document_pictures(replace(found, found=tuple(other)))]
    assert drawn == ["percentiles"]


def test_documents_are_compared_where_they_are_the_same(planted):
    _, found = planted
    first, *_, last = one_of_each_size(next(iter(found.by_data().values())))
    table = improved(first, last)
    assert table is not None
    np.testing.assert_allclose(table["ratio"], first.loss / last.loss, rtol=1e-12)
    attributes = last.content["attributes"] | {"data_identity": "another"}
    assert improved(first, replace(last, content=last.content | {"attributes": attributes})) is None


def test_figures_say_the_planted_numbers(planted):
    study, found = planted
    drawn = {each.name: each for each in evaluation_pictures(study, Counting(), found)}
    assert set(drawn) == {"information", "information-curves", "transfer", "percentiles", "documents",
                          "mathematics-collapse", "mathematics-levels", "mathematics-levels-size",
                          "mathematics-modules", "mathematics-modules-2",
                          "mathematics-modules-size", "mathematics-modules-size-2"}  # fmt: skip
    dark = dark_colours(study, {})
    assert all(figure(each, dark).startswith("<figure><svg") for each in drawn.values())
    told = drawn["information"].caption
    assert f"rate {RATE}" in told
    assert "Exact: 3.0000 nats" in told
    assert "books: +0.250 nats" in drawn["transfer"].caption
    assert "50: 0." in drawn["percentiles"].caption
    assert "Most, by nats per token: 39:0 (" in drawn["percentiles"].caption
    assert "were not judged on the same documents" not in drawn["percentiles"].caption


def test_percentiles_that_are_none_are_left_out(planted):
    """NaN where no document of a size lies whole in a row: of two sizes left a figure, of one none."""
    _, found = planted
    whole = found.found

    def without(sizes):
        nothing = np.column_stack([PERCENTILES, np.full(len(PERCENTILES), np.nan)])
        rows = [
            replace(each, content=each.content | {"percentiles": nothing})
            if each.run.run_id in sizes and "percentiles" in each.content
            else each
            for each in whole
        ]
        shown = document_pictures(replace(found, found=tuple(rows)))
        return [each.caption for each in shown if each.name == "percentiles"]

    (left,) = without({"run-16", "run-128"})
    params = {each.run.run_id: each.params for each in whole}
    between = f"From N = {short(params['run-32'])} to {short(params['run-64'])}"
    assert between in left
    assert without({"run-16", "run-32", "run-64"}) == []


def test_documents_without_a_ratio_head_no_list():
    """One that cost nothing in either model has the ratio NaN, in the larger one alone infinity."""
    found = {
        "row": np.arange(4), "start": np.zeros(4, int), "ratio": np.array([np.nan, 1.5, np.inf, 1.2]),
        "difference": np.array([0.0, 0.1, 0.4, 0.2]),
    }  # fmt: skip
    assert _ends(found, "ratio") == ("1:0 (1.5), 3:0 (1.2)", "3:0 (1.2), 1:0 (1.5)")
    most, least = _ends(found, "difference")
    assert most == "2:0 (0.4), 3:0 (0.2), 1:0 (0.1), 0:0 (0)"
    assert least.startswith("0:0 (0), 1:0 (0.1)")
    assert _ends(found | {"ratio": np.full(4, np.nan)}, "ratio") == ("none", "none")


def test_answers_without_a_loss_draw_no_level(planted):
    """No token was counted: there is no logarithm of any loss."""
    _, found = planted
    rows = []
    for each in found.found:
        if "answers" in each.content:
            table = each.content["answers"].copy()
            table["num_tokens"] = 0
            rows.append(replace(each, content=each.content | {"answers": table}))
    drawn = mathematics_pictures(replace(found, found=rows))
    assert [each.name for each in drawn] == ["mathematics-modules", "mathematics-modules-2"]


def test_a_share_has_no_exact_line(planted):
    """The known nats are no known share: the largest model's own loss is not the entropy of the whole."""
    _, found = planted
    drawn = information_pictures(found)[0]
    rows = [each for each in found.found if "information" in each.content]
    nothing = [replace(each, content=each.content | {"attributes": {
        key: value for key, value in each.content["attributes"].items()
        if key != "known_mutual_information"}}) for each in rows]  # fmt: skip
    plain = information_pictures(replace(found, found=nothing))[0]
    dashes = [each.svg.count("stroke-dasharray") for each in (drawn, plain)]
    assert dashes[0] - dashes[1] == 2  # the line of the left panel and its name


def test_a_study_without_evaluations_draws_none(folder, planted):
    study, found = planted
    assert evaluation_pictures(study, Counting(), replace(found, found=())) == []
    assert mathematics_pictures(replace(found, found=())) == []


def test_pretrained_and_scratch_have_a_law_each(tmp_path):
    """Every loss of a planted run is the surface's; here without a constant and nearly without a term in D."""
    surface = Surface(irreducible=0.0, a=1.0, alpha=0.1, b=1e-30)
    for size in SIZES:
        run = PlantedRun(
            f"run-{size}", size, 4, tokens=2e6, domain="image-8x8-classes", kinds=("class", "error")
        )
        write_run(tmp_path / run.run_id, run, surface)
    study = read_runs(tmp_path)
    started = [replace(run, config=run.config | {"start": {"study": "x"}}) for run in study.runs]
    both = replace(study, runs=(*study.runs, *started))
    drawn = {each.name: each.caption for each in class_pictures(both, Counting())}
    assert set(drawn) == {"classes-loss", "classes-error", "classes-curves"}
    assert "solid: pretrained and dashed: from scratch" not in drawn["classes-curves"]
    assert "dashed: from scratch and solid: pretrained" in drawn["classes-curves"]
    (alone,) = [each for each in class_pictures(study, Counting()) if each.name == "classes-curves"]
    assert "nothing to compare with" in alone.caption
    assert "nothing to compare with" not in drawn.pop("classes-curves")
    for caption in drawn.values():
        assert "from scratch: exponent 0.100" in caption
        assert "pretrained: exponent 0.100" in caption
        assert "reached 0" not in caption
    table = study.runs[0].eval.copy()
    table["loss"][table["kind"] == b"error"] = 0.0
    mixed = replace(both, runs=(replace(both.runs[0], eval=table), *both.runs[1:]))
    drawn = {each.name: each.caption for each in class_pictures(mixed, Counting())}
    assert "1 of 8 runs reached 0" in drawn["classes-error"]
    assert "reached 0" not in drawn["classes-loss"]


def test_the_law_of_the_place_is_drawn_for_one_stream(folder, planted):
    """Planted losses are L (0.9 + 0.8 T^-0.7) at place T, exactly."""
    study, _ = planted
    assert position_pictures(study, Counting()) == []
    text = tuple(replace(run, config=run.config | {"domain": "text-v512"}) for run in study.runs)
    (picture,) = position_pictures(replace(study, runs=text), Counting())
    assert "exponent 0.700" in picture.caption
    assert "32 tokens tell" in picture.caption


def test_the_report_is_made_again_when_an_evaluation_comes(folder, tmp_path):
    """Of one run, for what is fitted does not matter here."""
    results, out = tmp_path / "results", tmp_path / "out"
    run = folder / f"run-{SIZES[-1]}"
    shutil.copytree(run, results / run.name)
    first = write_report(results, out, Counting(), 0, 0)
    assert write_report(results, out, Counting(), 0, 0)[0].endswith("(up to date)")
    assert "What left tells of right" in (out / "report.html").read_text()
    (results / run.name / "evaluations" / "more.h5").write_bytes(b"no HDF5")
    assert write_report(results, out, Counting(), 0, 0)[0] == first[0]
    assert "more.h5" in (out / "report.html").read_text()


@pytest.mark.parametrize("draws", [0, 50])
def test_a_limit_of_the_search_is_no_exponent(draws):
    """Losses that do not fall with size have no exponent, with draws or without."""
    loss = np.array([4.0, 4.01, 4.0, 4.01])
    _, words = law_of_size("median", 1e3 * 4.0 ** np.arange(4), loss, draws)
    assert words.startswith("not known")
