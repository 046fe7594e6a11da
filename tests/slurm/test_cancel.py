"""Ending one study's jobs leaves alone what others wait for."""

import subprocess
import sys
from contextlib import ExitStack

import pytest

from slurm.__main__ import main
from slurm.cancel import cancel, cancel_build
from slurm.cluster import load_cluster
from slurm.ledger import CANCELLED, CHECK, DATA, TRAIN, open_submission, want
from slurm.prepare import Build, prepare

SLEEPER = "import time; print('ready', flush=True); time.sleep(60)"


@pytest.fixture
def alive():
    """`start(...)`: the record of a local submission that a process of this machine seems to work on."""
    with ExitStack() as opened:

        def start(folder, stage, *before):
            after = tuple(str(each.folder) for each in before)
            made = open_submission(folder, "x", "local", [("a",)], stage=stage, after=after)
            command = [sys.executable, "-c", SLEEPER, "submitit.local._local", str(made.folder)]
            process = opened.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            )
            opened.callback(process.kill)
            assert process.stdout.readline() == "ready\n"
            return made, process

        yield start


def ended(*made) -> list[bool]:
    return [(each.folder / CANCELLED).exists() for each in made]


def test_a_build_goes_on_while_another_study_waits_for_it(alive, tmp_path):
    mine, theirs, out = (tmp_path / name for name in ("mine", "theirs", "data"))
    part, _ = alive(out, DATA)
    check, _ = alive(out, CHECK, part)
    (first, _), (second, process) = (alive(study, TRAIN, check) for study in (mine, theirs))
    for study in (mine, theirs):
        want(check, study)
    done = cancel(mine)
    assert ended(part, check, first, second) == [False, False, True, False]
    assert done.kept == (f"the build of {out} goes on: {theirs} waits for it",)
    process.kill()
    process.wait()
    assert cancel(mine).kept == ()
    assert ended(part, check, second) == [True, True, False]


def test_a_build_that_was_typed_by_hand_goes_on(alive, tmp_path):
    out = tmp_path / "data"
    check, _ = alive(out, CHECK)
    training, _ = alive(tmp_path / "mine", TRAIN, check)
    want(check, out)
    want(check, tmp_path / "mine")
    assert cancel(tmp_path / "mine").kept == (f"the build of {out} goes on: {out} waits for it",)
    assert ended(check, training) == [False, True]


def test_a_build_that_was_typed_by_hand_is_cancelled_by_its_folder(alive, tmp_path, capsys):
    """And is not taken for one that is under way while it ends."""
    out = tmp_path / "data"
    part, _ = alive(out, DATA)
    check, process = alive(out, CHECK, part)
    (check.folder / "1_submitted.pkl").touch()
    want(check, out)
    assert main(["cancel", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said == "2 jobs asked to stop; the same prepare again goes on with what is built\n"
    assert ended(part, check) == [True, True]
    build = Build("image-8x8", str(tmp_path), out, 2)
    with pytest.raises(ValueError, match=r"were cancelled and are ending .*; wanted none of them"):
        prepare(build, load_cluster("local"), out)


def test_a_build_that_a_study_waits_for_ends_with_that_study(alive, tmp_path):
    out, study = tmp_path / "data", tmp_path / "mine"
    check, _ = alive(out, CHECK)
    training, _ = alive(study, TRAIN, check)
    for who in (out, study):
        want(check, who)
    said = f"the build goes on: {study} waits for it. Cancel that study first."
    assert cancel_build(out).kept == (said,)
    assert ended(check, training) == [False, False]
    assert cancel(study).kept == ()
    assert ended(check, training) == [True, True]


def test_the_training_that_a_study_starts_from_goes_on(alive, tmp_path):
    """It is a study of its own."""
    theirs, _ = alive(tmp_path / "theirs", TRAIN)
    mine, _ = alive(tmp_path / "mine", TRAIN, theirs)
    cancel(tmp_path / "mine")
    assert ended(theirs, mine) == [False, True]


def test_no_build_to_cancel(tmp_path):
    with pytest.raises(ValueError, match="no job was ever started to build this dataset; wanted"):
        cancel_build(tmp_path)
