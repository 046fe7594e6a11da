"""What is queued is kept as it was: the code, once; the configurations, to the last open field."""

import errno
import resource
import subprocess
import sys

import pytest

from launch.study import expand, load_study
from slurm.freeze import COMMIT_FILE, PACKAGES, ROOT, freeze_code, freeze_runs, frozen_runs
from tests.slurm.conftest import runs_of

WSD = """
name = "s"
question = "?"
domain = "image-8x8"
budget.tokens = [2e5, 1e6]
optimizer.learning_rate = 0.001
batch.train_batch_size = 4
schedule.kind = "wsd"
parallel.zero_stage = 1
[[ladder]]
num_layers = 1
hidden_size = 16
"""


@pytest.fixture
def checkout(tmp_path):
    """A small tree of the shape of ours."""
    for package in PACKAGES:
        (tmp_path / "checkout" / package / "__pycache__").mkdir(parents=True)
        (tmp_path / "checkout" / package / "code.py").write_text(f"NAME = {package!r}\n")
        (tmp_path / "checkout" / package / "__pycache__" / "code.pyc").write_text("compiled")
    return tmp_path / "checkout"


def test_the_same_code_is_kept_once_and_edits_change_nothing(checkout, tmp_path):
    first = freeze_code(tmp_path / "study", checkout)
    inode = (first / "launch" / "code.py").stat().st_ino
    assert freeze_code(tmp_path / "study", checkout) == first
    assert (first / "launch" / "code.py").stat().st_ino == inode
    assert not list(first.rglob("*.pyc"))
    (checkout / "launch" / "code.py").write_text("NAME = 'edited'\n")
    second = freeze_code(tmp_path / "study", checkout)
    assert second != first
    assert (first / "launch" / "code.py").read_text() == "NAME = 'launch'\n"
    assert (second / "launch" / "code.py").read_text() == "NAME = 'edited'\n"
    assert sorted(path.name for path in first.parent.iterdir()) == sorted([first.name, second.name])


def test_the_copy_of_our_own_code_runs_by_itself(tmp_path):
    """From another folder, with nothing but the copy on the path; it knows the commit it came from."""
    folder = freeze_code(tmp_path / "study")
    program = (
        "import slurm.submit, launch.study, pathlib; print(pathlib.Path(slurm.submit.__file__))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(folder / "slurm" / "submit.py")
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode == 0:
        assert (folder / COMMIT_FILE).read_text().removesuffix("+changes") == head.stdout.strip()


def test_a_full_disk_leaves_no_half_a_copy(checkout, tmp_path):
    (checkout / "launch" / "code.py").write_text("x" * 4096)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # a write beyond it fails
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            freeze_code(tmp_path / "study", checkout)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert list((tmp_path / "study" / "code").iterdir()) == []
    assert freeze_code(tmp_path / "study", checkout).exists()


def test_runs_come_back_as_they_were(tmp_path):
    """With their trunk, and with what the study left open still open."""
    (tmp_path / "s.toml").write_text(WSD)
    runs = expand(load_study(tmp_path / "s.toml"), "s.toml")
    freeze_runs(tmp_path, runs)
    back = frozen_runs(tmp_path, [run.run_id for run in runs])
    assert back == runs
    assert [run.run_id for run in back] == [run.run_id for run in runs]
    assert [run.trunk is not None for run in back] == [True, False]
    assert {frozenset(run.parallel.model_fields_set) for run in back} == {frozenset({"zero_stage"})}


def test_runs_that_are_not_there(study, tmp_path):
    runs = runs_of(study)
    with pytest.raises(
        ValueError, match=r"runs.json: does not hold run .*; wanted what `slurm submit`"
    ):
        frozen_runs(tmp_path, [runs[0].run_id])
    freeze_runs(tmp_path, runs[:1])
    with pytest.raises(ValueError, match="KeyError"):
        frozen_runs(tmp_path, [runs[1].run_id])
    (tmp_path / "runs.json").write_text('{"cut off')
    with pytest.raises(ValueError, match="Submit the study again"):
        frozen_runs(tmp_path, [runs[0].run_id])
