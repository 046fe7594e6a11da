"""What the report makes of answered questions: nothing is counted twice, sets of several folders stay apart, and sizes
are told apart in every figure."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from analysis.answers import QuestionSet, answered, labels, last_answers
from analysis.evaluations import Evaluation, Evaluations
from analysis.views_answers import mathematics_pictures
from data_prep.mathematics_generator import EXCLUDED
from launch.answers import ANSWER_COLUMNS

MODULES = ("algebra__linear_1d", "numbers__gcd", "numbers__lcm")
SIZES = (1e4, 1e5, 1e6, 1e7)
RATES = dict(zip(MODULES, (0.1, 0.2, 0.3), strict=True))


def table(rows):
    """(set, module, questions, correct, loss per token), ten tokens an answer."""
    made = [(s.encode(), m.encode(), n, k, loss * 10 * n, 10 * n) for s, m, n, k, loss in rows]
    return np.array(made, ANSWER_COLUMNS)


def asked(params, folder, rows, step=100, train_loss=1.0):
    content = {
        "answers": table(rows),
        "attributes": {"kind": "answers", "questions": folder, "train_loss": train_loss},
    }
    run = SimpleNamespace(run_id=f"run-{params:g}")
    return Evaluation(run, params, 1.0, step, None, "x", content)


def rows_of(name, params, questions=40):
    """The loss of each module falls with N by its own exponent; the largest is right the most often."""
    right = int(np.log10(params)) * 5
    return [(name, m, questions, right, params ** -RATES[m] * 10) for m in MODULES]


def test_the_published_set_and_ones_own_stay_apart():
    own = asked(1e4, "questions", [("interpolate", "numbers__gcd", 10, 1, 2.0)])
    official = asked(
        1e4, "mathematics_dataset-v1.0/interpolate", [("interpolate", "numbers__gcd", 30, 27, 1.0)]
    )
    (both,) = answered([own, official])
    first, second = (
        QuestionSet("mathematics_dataset-v1.0", "interpolate"),
        QuestionSet("questions", "interpolate"),
    )
    assert set(both.tables) == {first, second}
    assert both.of(second) == (10.0, pytest.approx(2.0))
    assert both.of(first) == (90.0, pytest.approx(1.0))
    assert labels([first, second])[second] == "interpolate (questions)"
    assert labels([second])[second] == "interpolate"


def test_questions_that_were_asked_twice_count_once():
    few = asked(1e4, "questions", rows_of("interpolate", 1e4, 20))
    full = asked(1e4, "/data/questions/interpolate", rows_of("interpolate", 1e4, 400))
    for order in ([few, full], [full, few]):
        (both,) = answered(order)
        ((name, found),) = both.tables.items()
        assert name == QuestionSet("/data/questions", "interpolate")
        assert found["questions"].tolist() == [400] * 3


def test_two_folders_of_one_name_are_two():
    one, other = (asked(1e4, f"{a}/questions", rows_of("level-01", 1e4)) for a in "ab")
    bare = asked(1e4, "questions", rows_of("level-01", 1e4))
    (both,) = answered([one, other, bare])
    assert [each.folder for each in sorted(both.tables)] == [
        "a/questions",
        "b/questions",
        "questions",
    ]
    assert labels(both.tables)[QuestionSet("a/questions", "level-01")] == "level-01 (a/questions)"


def test_the_modules_that_the_paper_leaves_out_are_in_no_sum():
    rows = rows_of("extrapolate", 1e4) + [("extrapolate", m, 1000, 0, 9.0) for m in EXCLUDED]
    (found,) = answered([asked(1e4, "official/extrapolate", rows)])
    right, loss = found.of(QuestionSet("official", "extrapolate"))
    assert right == pytest.approx(100 * 20 / 40)
    assert loss < 9
    drawn = mathematics_pictures(Evaluations((asked(1e4, "official/extrapolate", rows),), ()))
    assert all("swr_p_level_set" not in each.svg for each in drawn)
    assert "In no figure: the two modules that the paper leaves out" in drawn[0].caption
    assert (
        mathematics_pictures(Evaluations((asked(1e4, "official/extrapolate", rows[3:]),), ())) == []
    )


@pytest.fixture(scope="module")
def drawn():
    """Four sizes, each at two checkpoints, on one official file and three levels."""
    every = []
    for params in SIZES:
        for step, train in ((50, 2.0), (100, 1.0)):
            levels = [row for s in (3, 8, 12) for row in rows_of(f"level-{s:02}", params)]
            every.append(asked(params, "questions", levels, step, train + 1e4 / params))
            official = rows_of("interpolate", params)
            every.append(
                asked(params, "official/interpolate", official, step, train + 1e4 / params)
            )
    found = Evaluations(tuple(every), ())
    assert [each.checkpoint.step for each in last_answers(answered(found.found))] == [100] * 4
    return {each.name: each for each in mathematics_pictures(found)}


def test_every_figure_is_there(drawn):
    assert set(drawn) == {"mathematics-collapse", "mathematics-levels", "mathematics-levels-size",
                          "mathematics-modules", "mathematics-modules-size"}  # fmt: skip


def test_sizes_are_told_apart_against_training_loss(drawn):
    svg = drawn["mathematics-collapse"].svg
    assert all(f"N = {name}" in svg for name in ("10k", "100k", "1M", "10M"))
    assert all(f">{name}<" in svg for name in ("level-03 (questions)", "interpolate (official)"))
    assert "at one checkpoint alone" not in drawn["mathematics-collapse"].caption
    assert "In no figure" not in drawn["mathematics-collapse"].caption


def test_one_checkpoint_of_each_size_is_said_to_show_nothing():
    every = tuple(asked(params, "questions", rows_of("interpolate", params)) for params in SIZES)
    (picture, *_) = mathematics_pictures(Evaluations(every, ()))
    assert "at one checkpoint alone" in picture.caption
    unknown = tuple(replace(each, content=each.content | {"attributes": {"questions": "questions"}})
                    for each in every)  # fmt: skip
    names = [each.name for each in mathematics_pictures(Evaluations(unknown, ()))]
    assert names == ["mathematics-modules", "mathematics-modules-size"]


def test_modules_are_named_and_have_laws_of_their_own(drawn):
    bars, sizes = drawn["mathematics-modules"], drawn["mathematics-modules-size"]
    assert all(f">{module}<" in bars.svg for module in MODULES)
    assert "by module of interpolate (official)" in bars.caption
    assert "of 120 questions" in bars.caption
    for module, rate in RATES.items():
        assert all(f">{part}<" in sizes.svg for part in module.split("__"))
        assert f"exponent {rate:.3f}" in sizes.svg
    assert "of 3 of 3 modules" in sizes.caption


def test_levels_have_laws_in_size(drawn):
    assert "3: 0." in drawn["mathematics-levels-size"].caption
    assert "12: 0." in drawn["mathematics-levels-size"].caption
    assert ">level 12<" in drawn["mathematics-levels-size"].svg
