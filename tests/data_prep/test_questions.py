"""Question sets: which there are, in what form, and what is refused. Reading them is tested with `launch answers`."""

import pytest

from data_prep import questions
from data_prep.__main__ import main
from data_prep.mathematics_generator import modules_of_level, sample, seed_everything
from data_prep.questions import Wanted, read_questions, set_names
from data_prep.watch import Watch

QUICK = {"arithmetic__add_or_sub": None, "measurement__time": None}


def test_every_module_is_in_a_level_or_has_none():
    found, without = modules_of_level(7)
    assert len(found) == 56
    assert without == {
        "measurement__conversion", "measurement__time",
        "probability__swr_p_level_set", "probability__swr_p_sequence",
    }  # fmt: skip
    assert len(questions._modules_of("level-07", all_modules=False)) == 52
    assert set(questions._modules_of("no-level", all_modules=False)) == without
    assert len(questions._modules_of("extrapolate", all_modules=False)) == 13
    assert len(questions._modules_of("extrapolate", all_modules=True)) == 15


def test_a_level_is_the_number_of_digits():
    """Entropy s means 10^s problems (Saxton et al. 2019), so sums of higher levels have longer numbers."""
    seed_everything(0)
    lengths = {
        level: sum(len(sample(modules_of_level(level)[0]["arithmetic__mul"])[1]) for _ in range(60))
        for level in (2, 6, 12)
    }
    assert lengths[2] + 120 < lengths[6] < lengths[12] - 120, "two digits more each, at least"


def test_which_sets_there_are():
    every = set_names(None, None)
    assert every == [f"level-{n:02}" for n in range(1, 20)] + [
        "no-level",
        "interpolate",
        "extrapolate",
    ]
    assert set_names("3,1-2,3", None) == ["level-01", "level-02", "level-03", "no-level"]
    assert set_names(None, "extrapolate") == ["extrapolate"]
    for levels in ("0", "20", "5-3", "x", "1,,2", "-4"):
        with pytest.raises(
            ValueError, match=f"--levels {levels}: .* wanted whole numbers from 1 to 19"
        ):
            set_names(levels, None)
    with pytest.raises(
        ValueError, match="'train' is no set; wanted some of interpolate, extrapolate"
    ):
        set_names(None, "interpolate,train")


def test_files_in_the_published_form_and_again_nothing_to_do(tmp_path, capsys, monkeypatch):
    """In worker processes; a file that is there with as many questions stays."""
    monkeypatch.setattr(questions, "_modules_of", lambda name, all_modules: QUICK)
    out = tmp_path / "q"
    words = ["questions", "--out", str(out), "--sets", "interpolate", "--workers", "1"]
    assert main([*words, "--per-module", "5"]) == 0
    assert capsys.readouterr().out == f"{out}: 2 files of 5 questions\n"
    paths = sorted(out.rglob("*.*"))
    assert [path.relative_to(out).as_posix() for path in paths] == [
        f"interpolate/{name}.txt" for name in sorted(QUICK)
    ]
    before = [path.read_bytes() for path in paths]
    assert all(each.count(b"\n") == 10 and each.isascii() for each in before)
    (first, second) = read_questions(out)
    assert (first.set_name, first.module, len(first.pairs)) == ("interpolate", min(QUICK), 5)
    assert read_questions(out / "interpolate", 3)[1].pairs == second.pairs[:3]
    assert main([*words, "--per-module", "5"]) == 0
    assert [path.read_bytes() for path in paths] == before
    paths[0].write_bytes(before[0][:-2])  # cut off
    assert main([*words, "--per-module", "5"]) == 0
    assert paths[0].read_bytes().count(b"\n") == 10
    assert paths[1].read_bytes() == before[1]


def test_a_module_without_questions_is_left_out_with_its_reason(tmp_path, monkeypatch):
    def fails():
        raise ZeroDivisionError("no such number")

    monkeypatch.setattr(questions, "_modules_of", lambda name, all_modules: {"broken": fails})
    wanted = Wanted(tmp_path, "level-19", "broken", 3, 0)
    reason = questions._make(wanted, Watch())
    assert reason == "no question in 20 tries (ZeroDivisionError: no such number)"
    assert not wanted.path.exists()


def test_bad_numbers_and_places_are_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for words, said in (
        (["--out", str(tmp_path / "file")], "is a file; wanted a folder"),
        (["--out", str(tmp_path), "--per-module", "0"], "--per-module 0"),
        (["--out", str(tmp_path), "--workers", "0"], "--workers 0: wanted whole numbers"),
    ):
        assert main(["questions", *words]) == 2
        assert said in capsys.readouterr().err
