"""What a person reads when something is wrong, and Slurm's commands as they are really called."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from slurm.__main__ import main
from slurm.ledger import open_submission, submissions
from tests.slurm.conftest import ROOT, runs_of, write_study

CLUSTER = """
executor = "slurm"
partition = "small"
account = "me"
qos = "low"
gpus_per_node = 1
cpus_per_task = 3
memory_gb = 2.0
max_minutes = 7
concurrent_jobs = 2
setup = ["module load nothing"]
[sbatch]
constraint = "fast"
"""


@pytest.fixture
def submit(study, data, tmp_path, capsys):
    """`submit` in this process; returns (exit status, stdout, stderr)."""

    def call(*more, cluster="local", study=study, data=data):
        results = str(tmp_path / "results")
        where = ["--cluster", str(cluster), "--data", str(data), "--results", results]
        status = main(["submit", str(study), *where, *more])
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch):
    """sbatch, squeue, scancel and srun that note how they were called and answer from files."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "squeue", "scancel", "srun"):
        script = folder / name
        script.write_text(
            f'#!/bin/sh\necho "{name} $*" >>{folder}/calls\n'
            f"cat {folder}/{name}.err >&2 2>/dev/null\ncat {folder}/{name}.out 2>/dev/null\n"
            f"test ! -e {folder}/{name}.err\n"
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    (folder / "sbatch.out").write_text("Submitted batch job 77\n")
    (folder / "squeue.out").write_text("")
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


@pytest.fixture
def cluster(tmp_path):
    path = tmp_path / "cluster.toml"
    path.write_text(CLUSTER)
    return path


def test_no_data(submit, tmp_path):
    status, out, err = submit(data=tmp_path / "nowhere")
    assert (status, out) == (2, "")
    assert err == (
        f"submit: --data {tmp_path}/nowhere: no such folder; wanted the image-8x8 dataset of this "
        "study. Build it with: python -m data_prep build image-8x8 --raw PATH --out "
        f"{tmp_path}/nowhere\n"
    )


def test_no_study(submit, tmp_path):
    status, _, err = submit(study=tmp_path / "nowhere.toml")
    assert status == 2
    assert "nowhere.toml: no such file; wanted a study file in TOML. Check the path." in err


def test_a_damaged_run_is_run_again(submit, study, tmp_path):
    """It counts as unfinished, and goes on from its checkpoint, which holds a copy."""
    run = runs_of(study)[0]
    path = tmp_path / "results" / "tiny" / run.run_id / "metrics.h5"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not this")
    status, out, _ = submit("--dry-run")
    assert status == 0
    assert f"    {run.run_id}\n" in out


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_another_study_of_the_name_is_refused(submit, study, tmp_path, options):
    run = runs_of(study)[0]
    folder = tmp_path / "results" / "tiny"
    (folder / run.run_id).mkdir(parents=True)
    (folder / run.run_id / "config.json").write_text("{}")
    (folder / "study.toml").write_text(study.read_text())
    write_study(study, ((1, 64),))
    status, _, err = submit(*options)
    assert status == 2
    assert f"study 'tiny' has begun in {folder} with 1 runs that are not in this file" in err
    assert f"for example {run.run_id} (study file there: sha256 " in err
    assert "Give the changed study another name, or move that folder away." in err


def test_dry_run_starts_nothing(submit, study, tmp_path):
    status, out, err = submit("--dry-run")
    assert (status, err) == (0, "")
    for run in runs_of(study):
        assert f"    {run.run_id}\n" in out
    assert "OMP_NUM_THREADS=1" in out
    assert not (tmp_path / "results").exists()


def test_the_results_folder_cannot_be_written(submit, tmp_path):
    (tmp_path / "results").write_text("a file")
    status, _, err = submit()
    assert status == 2
    assert str(tmp_path / "results") in err


def test_no_slurm_here(submit, cluster, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    status, _, err = submit(cluster=cluster)
    assert status == 2
    assert "executor = 'slurm' in the cluster file, but sbatch is not on this machine" in err
    assert "Submit there, or use --cluster local." in err
    assert submissions(tmp_path / "results" / "tiny") == []


def test_what_sbatch_is_asked_for(submit, study, fake_slurm, cluster, tmp_path, capsys):
    """One array for the study, with every key of the cluster file; and not twice."""
    write_study(study, ((1, 16), (1, 32), (1, 48)))
    status, _, err = submit(cluster=cluster)
    assert status == 0, err
    assert "3 started now in 2 jobs" in err
    (submission,) = submissions(tmp_path / "results" / "tiny")
    text = next(submission.folder.glob("*_submission.sh")).read_text()
    for line in (
        "--account=me",
        "--array=0-1%2",
        "--constraint=fast",
        "--cpus-per-task=3",
        "--gpus-per-node=1",
        f"--job-name={submission.name}",
        "--mem=2GB",
        "--partition=small",
        "--qos=low",
        "--signal=USR2@90",
        "--time=7",
    ):
        assert f"#SBATCH {line}\n" in text
    setup, command = text.index("module load nothing"), text.index("submitit.core._submit")
    assert setup < text.index("export OMP_NUM_THREADS=3") < command
    assert "CUDA_VISIBLE_DEVICES" not in text

    # Slurm has both tasks: nothing is started. It has lost one: that one is.
    (fake_slurm / "squeue.out").write_text(f"{submission.name}|0\n{submission.name}|1\n")
    assert "0 started now in 0 jobs, 3 under way" in submit(cluster=cluster)[2]
    (fake_slurm / "squeue.out").write_text(f"{submission.name}|0\n")
    lost = len(submission.tasks[1])
    assert f"{lost} started now in {lost} jobs" in submit(cluster=cluster)[2]

    assert main(["cancel", str(study), "--results", str(tmp_path / "results")]) == 0
    assert "1 jobs asked to stop" in capsys.readouterr().out
    assert f"scancel --name {submission.name}\n" in (fake_slurm / "calls").read_text()


def test_sbatch_refuses(submit, fake_slurm, cluster, tmp_path):
    (fake_slurm / "sbatch.err").write_text("invalid partition specified: small")
    status, _, err = submit(cluster=cluster)
    assert status == 2
    assert "sbatch refused the jobs: " in err
    assert "invalid partition specified: small" in err
    assert "Correct the cluster file." in err
    assert submissions(tmp_path / "results" / "tiny") == []


@pytest.fixture
def on_slurm(study, tmp_path):
    """A study with a submission on Slurm."""
    run = runs_of(study)[0]
    return open_submission(tmp_path / "results" / "tiny", "tiny", "slurm", [(run.run_id,)])


def test_squeue_does_not_answer(on_slurm, study, fake_slurm, tmp_path, capsys):
    (fake_slurm / "squeue.err").write_text("Unable to contact slurm controller")
    assert main(["status", str(study), "--results", str(tmp_path / "results")]) == 0
    out, err = capsys.readouterr()
    assert "squeue: Unable to contact slurm controller; wanted the list of your jobs" in err
    assert "Until then its jobs are taken to be alive." in err
    assert ("waiting" in out, "not begun" in out) == (True, True)


def test_no_squeue_here(on_slurm, study, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["cancel", str(study), "--results", str(tmp_path / "results")]) == 2
    assert "squeue: not found; wanted it to ask about this study's Slurm jobs" in (
        capsys.readouterr().err
    )


def test_scancel_refuses(on_slurm, study, fake_slurm, tmp_path, capsys):
    (fake_slurm / "squeue.out").write_text(f"{on_slurm.name}|N/A\n")
    (fake_slurm / "scancel.err").write_text("Access denied")
    assert main(["cancel", str(study), "--results", str(tmp_path / "results")]) == 2
    assert f"scancel --name {on_slurm.name}: Access denied; wanted to end these jobs" in (
        capsys.readouterr().err
    )


def test_status_as_json_in_a_process_of_its_own(study, tmp_path):
    command = [sys.executable, "-m", "slurm", "status", str(study), "--json", "--results"]
    done = subprocess.run(
        [*command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert [row["state"] for row in json.loads(done.stdout)] == ["not begun"] * 2


def test_nothing_to_do_imports_neither_torch_nor_submitit(data, study, tmp_path):
    program = (
        "import sys\n"
        "from slurm.__main__ import main\n"
        "import slurm.submit\n"
        "slurm.submit.finished_on = lambda *_: True\n"
        "status = main(sys.argv[1:])\n"
        "assert not {'torch', 'submitit'} & set(sys.modules)\n"
        "sys.exit(status)\n"
    )
    words = ["submit", str(study), "--cluster", "local", "--data", str(data)]
    done = subprocess.run(
        [sys.executable, "-c", program, *words, "--results", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2 of 2 runs are finished: nothing to do\n"
    assert list(Path(tmp_path).iterdir()) == [study]
