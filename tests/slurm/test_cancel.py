"""Ending one study's jobs leaves alone what others wait for."""

import subprocess
import sys
from contextlib import ExitStack

import pytest

from slurm.cancel import cancel
from slurm.ledger import CANCELLED, CHECK, DATA, TRAIN, open_submission, want

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
