"""`prepare`: the parts of a build as jobs of this machine, the check after them, and what it says."""

import subprocess
import sys
import time

import pytest

from data_prep.manifest import load_manifest
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
    assert "already built" in prepare()
    assert len(submissions(out)) == number


def test_a_part_that_fails_is_told_and_can_be_repeated(prepare, tmp_path):
    out = tmp_path / "dataset"
    prepare("0.8,0.1")
    assert {state for _, state in ended(out)} == {"failed"}
    check = look((), out).stages[-1]
    assert "--fractions 0.8,0.1: wanted three numbers" in check.cause
    assert "started" in prepare()
    assert {state for _, state in ended(out)} == {"finished"}
