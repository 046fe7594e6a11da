"""`prepare`: the parts of a build as jobs of this machine, the check after them, and what it says."""

import os
import subprocess
import sys
import time

import pytest

from data_prep.manifest import load_manifest
from slurm.__main__ import main
from slurm.alive import end, live_tasks
from slurm.ledger import submissions
from slurm.status import UNDER_WAY, look
from tests.slurm.conftest import ROOT

PARTS = 3


@pytest.fixture
def prepare(tmp_path, data):
    """`prepare` of the pictures that the session's dataset was built from; what it says."""
    out = tmp_path / "dataset"
    words = ["prepare", "image-8x8", "--raw", str(data.parent / "raw"), "--out", str(out)]

    def call(fractions: str = "0.8,0.1,0.1") -> str:
        more = ["--build", f"--fractions {fractions}", "--parts", str(PARTS)]
        command = [sys.executable, "-m", "slurm", *words, "--cluster", "local", *more]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout

    yield call
    for each in {each.submission for each in live_tasks(submissions(out))}:
        end(each)


def ended(out) -> list[tuple[str, str]]:
    deadline = time.monotonic() + 180
    while (status := look((), out)).states & UNDER_WAY:
        assert time.monotonic() < deadline, status
        time.sleep(0.5)
    return [(stage.stage, stage.state) for stage in status.stages]


def test_the_parts_make_the_same_dataset(prepare, data, tmp_path):
    out = tmp_path / "dataset"
    assert f"{out}: {PARTS} parts and their check started" in prepare()
    said = prepare()  # while it is under way: nothing is started twice
    assert "under way since before" in said or "already built" in said
    number = len(submissions(out))
    states = ended(out)
    assert states[-1] == ("check", "finished")
    assert {state for _, state in states} == {"finished"}
    assert load_manifest(out).splits == load_manifest(data).splits
    assert "-m data_prep build image-8x8 --raw" in prepare()
    assert len(submissions(out)) == number


def test_a_part_that_fails_is_told_and_can_be_repeated(prepare, tmp_path):
    out = tmp_path / "dataset"
    prepare("0.8,0.1")
    assert {state for _, state in ended(out)} == {"failed"}
    check = look((), out).stages[-1]
    assert "--fractions 0.8,0.1: wanted three numbers" in check.cause
    said = prepare()  # the other way: what was wrong is told first
    assert "failed: check of dataset: " in said
    assert said.index("--fractions 0.8,0.1: wanted") < said.index(
        "their check started again, though"
    )
    assert {state for _, state in ended(out)} == {"finished"}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--rowz 100", "--rowz 100"),
        ("--rows many", "--rows"),
        ("--rows '3", "No closing quotation"),
    ],
)
def test_words_that_the_build_does_not_know_start_nothing(data, tmp_path, capsys, words, why):
    out = tmp_path / "new"
    where = ["--raw", str(data.parent / "raw"), "--out", str(out), "--cluster", "local"]
    assert main(["prepare", "image-8x8", *where, f"--build={words}"]) == 2
    said = capsys.readouterr().err
    assert f"prepare: --build={words!r}: " in said
    assert why in said
    assert "wanted words that `data_prep build` takes. Its --help lists them." in said
    assert not out.exists()


def test_what_is_built_is_taken_as_it_is(data, capsys):
    """And said so, whatever else was asked for; but not as another domain's."""
    words = ["--raw", str(data.parent / "raw"), "--out", str(data), "--cluster", "local"]
    assert main(["prepare", "image-8x8", *words, "--build=--rows 999999 --seed 9"]) == 0
    said = capsys.readouterr().out
    assert "--fractions 0.8,0.1,0.1. It is taken as it is: --raw, --parts and --build" in said
    assert main(["prepare", "image-16x16", *words]) == 2
    assert "holds a dataset of image-8x8; wanted image-16x16" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough(data, monkeypatch, capsys):
    """`| head` closes the pipe: no error of ours."""
    read, write = os.pipe()
    os.close(read)
    words = ["--raw", str(data.parent / "raw"), "--out", str(data), "--cluster", "local"]
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["prepare", "image-8x8", *words]) == 0
    assert capsys.readouterr().err == ""
