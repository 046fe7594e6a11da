"""What a person reads when something is wrong, and Slurm's commands as they are really called."""

import errno
import fcntl
import json
import os
import re
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from submitit.core.utils import DelayedSubmission

from data_prep.locks import NO_LOCKS
from launch.console import sentence
from launch.folder import locked
from slurm import queue
from slurm.__main__ import main
from slurm.ledger import CANCELLED, leave_outcome, me, open_submission, submissions, submit_lock
from slurm.submit import shared_limit
from tests.slurm.conftest import ROOT, runs_of, write_study

CLUSTER = """
executor = "slurm"
partition = "small"
account = "me"
qos = "low"
gpus_per_node = 1
gpu = "h100"
max_nodes = 2
notice_seconds = 60
cpus_per_task = 3
memory_gb = 2.0
max_minutes = 7
concurrent_jobs = 2
constraint = "fast"
scratch = "/scratch/$USER"
container = "apptainer exec image.sif"
setup = ["module load nothing"]
[sbatch]
comment = "a study"
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
    """Slurm's commands, which note how they were called and answer from files."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "squeue", "scancel", "scontrol", "sinfo", "srun"):
        script = folder / name
        script.write_text(
            f'#!/bin/sh\necho "{name} $*" >>{folder}/calls\n'
            f"cat {folder}/{name}.err >&2 2>/dev/null\ncat {folder}/{name}.out 2>/dev/null\n"
            f"test ! -e {folder}/{name}.err\n"
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    (folder / "sbatch.out").write_text("Submitted batch job 77\n")
    (folder / "squeue.out").write_text("")
    (folder / "scontrol.out").write_text("PrivateData             = none\n")
    (folder / "sinfo.out").write_text("small*|4:00:00|2|gpu:h100:4(S:0-1)|8|64000|fast\n")
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
    submission, report = submissions(tmp_path / "results" / "tiny")
    text = next(submission.folder.glob("*_submission.sh")).read_text()
    for line in (
        "--account=me",
        "--array=0-1%2",
        "--constraint=fast",
        "--cpus-per-task=3",
        "--gpus-per-node=1",
        f"--job-name={submission.name}",
        "--comment='a study'",
        "--kill-on-invalid-dep=yes",
        "--mem=2048MB",
        "--nodes=1",
        "--ntasks-per-node=1",
        "--requeue",
        "--partition=small",
        "--qos=low",
        "--signal=USR2@60",
        "--time=7",
    ):
        assert f"#SBATCH {line}\n" in text
    order = ["module load nothing", 'TMPDIR="/scratch/$USER"', "export OMP_NUM_THREADS=3"]
    order += ["-m submitit.core._submit"]
    places = [text.index(word) for word in order]
    assert places == sorted(places)
    code = tmp_path / "results" / "tiny" / "code" / submission.code
    assert f"cd {code}\nexport PYTHONPATH={code}" in text
    assert "export SCALING_CONTAINER='apptainer exec image.sif'" in text
    assert "CUDA_VISIBLE_DEVICES" not in text
    assert "srun" not in text  # a training job starts its ranks itself
    text = next(report.folder.glob("*_submission.sh")).read_text()
    assert "#SBATCH --dependency=afterany:77\n" in text
    assert "--gpus-per-node" not in text

    # Slurm has both tasks: nothing is started. It has lost one: that one is.
    waits = f"{submission.name}|0|77_0|PENDING|Priority\n"
    (fake_slurm / "squeue.out").write_text(f"{waits}{submission.name}|1|77_1|RUNNING|None\n")
    assert "0 started now in 0 jobs, 3 under way" in submit(cluster=cluster)[2]
    (fake_slurm / "squeue.out").write_text(waits)
    lost = len(submission.tasks[1])
    assert f"{lost} started now in {lost} jobs" in submit(cluster=cluster)[2]

    assert main(["cancel", str(study), "--results", str(tmp_path / "results")]) == 0
    assert "1 jobs asked to stop" in capsys.readouterr().out
    calls = (fake_slurm / "calls").read_text()
    assert f"scancel --state=PENDING --name {submission.name}\n" in calls
    assert f"scancel --signal=TERM --name {submission.name}\n" in calls


def test_a_study_that_was_cancelled_and_is_ending(submit, study, fake_slurm, cluster, tmp_path):
    """Its jobs would leave runs undone that submit took for being under way."""
    assert submit(cluster=cluster)[0] == 0
    training, report = submissions(tmp_path / "results" / "tiny")
    (fake_slurm / "squeue.out").write_text(queued(training, 0, 1))
    assert main(["cancel", str(study), "--results", str(tmp_path / "results")]) == 0
    for options in ([], ["--dry-run"]):
        status, _, err = submit(*options, cluster=cluster)
        assert status == 2
        assert (
            f"{training.folder}: its jobs were cancelled and are ending; wanted none of them left. Wait a moment, "
            "then run the same command again"
        ) in err
    (fake_slurm / "squeue.out").write_text("")
    assert "2 started now in 2 jobs" in submit(cluster=cluster)[2]


def test_a_report_that_was_cancelled_and_is_ending(
    submit, study, fake_slurm, cluster, tmp_path, monkeypatch
):
    assert submit(cluster=cluster)[0] == 0
    training, report = submissions(tmp_path / "results" / "tiny")
    for task in (0, 1):
        leave_outcome(training.folder, f"77_{task}", {"status": 0})
    monkeypatch.setattr("slurm.target.finished_on", lambda *_: True)
    (fake_slurm / "squeue.out").write_text(f"{report.name}|N/A|77|RUNNING|None\n")
    assert "0 started now in 0 jobs" in submit(cluster=cluster)[2]
    (report.folder / CANCELLED).touch()
    status, _, err = submit(cluster=cluster)
    assert status == 2
    assert f"{report.folder}: its jobs were cancelled and are ending; wanted none" in err
    (fake_slurm / "squeue.out").write_text("")
    assert "fits and report at the end" in submit(cluster=cluster)[2]


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_study_that_was_changed_while_its_jobs_wait(
    submit, study, fake_slurm, cluster, tmp_path, capsys, options
):
    """None of its runs has a folder yet."""
    folder = tmp_path / "results" / "tiny"
    old = runs_of(study)
    assert submit(cluster=cluster)[0] == 0
    training, _ = submissions(folder)
    (fake_slurm / "squeue.out").write_text(queued(training, 0, 1).replace("RUNNING", "PENDING"))
    write_study(study, tokens=2e5)
    status, _, err = submit(*options, cluster=cluster)
    assert status == 2
    assert f"study 'tiny' is queued in {folder} with 2 runs that are not in this file" in err
    assert f"for example {min(run.run_id for run in old)} (study file there: sha256 " in err
    assert "Give the changed study another name, or end those jobs with cancel first." in err
    assert len(submissions(folder)) == 2
    (fake_slurm / "squeue.out").write_text("")  # they were ended before they began
    assert submit(*options, cluster=cluster)[0] == 0


def by_another(submission):
    """As if somebody else had submitted it."""
    path = submission.folder / "submission.json"
    record = json.loads(path.read_text())
    assert record["user"] == me()
    path.write_text(json.dumps(record | {"user": "alice"}))


def test_jobs_of_another_user(submit, study, fake_slurm, cluster, tmp_path, capsys):
    """They are seen, and left alone."""
    folder = tmp_path / "results" / "tiny"
    assert submit("--no-report", cluster=cluster)[0] == 0
    (training,) = submissions(folder)
    by_another(training)
    assert submissions(folder)[0].user == "alice"
    (fake_slurm / "squeue.out").write_text(queued(training, 0, 1))
    status, _, err = submit("--no-report", cluster=cluster)
    assert (status, "2 under way" in err) == (0, True)
    assert "squeue --user=alice " in (fake_slurm / "calls").read_text()
    assert main(["status", str(study), "--results", str(tmp_path / "results")]) == 0
    assert "2 runs: 2 waiting\n" in capsys.readouterr().out

    (fake_slurm / "squeue.out").write_text(queued(training, 0))
    status, _, err = submit("--no-report", cluster=cluster)
    assert status == 2
    assert (
        f"{folder}: 1 jobs of this study are queued or running that alice submitted, and nobody else can end or "
        "replace them; wanted one user at a time. Let alice type this command, or wait"
    ) in err
    (fake_slurm / "squeue.out").write_text("")
    assert "2 started now" in submit("--no-report", cluster=cluster)[2]


def test_jobs_of_another_user_that_slurm_hides(
    submit, study, fake_slurm, cluster, tmp_path, capsys
):
    """Nobody knows whether they live: nothing is started, and status says why it does not know."""
    folder = tmp_path / "results" / "tiny"
    assert submit("--no-report", cluster=cluster)[0] == 0
    (training,) = submissions(folder)
    by_another(training)
    (fake_slurm / "scontrol.out").write_text("PrivateData             = jobs,usage\n")
    said = (
        f"{training.folder}: was submitted by alice, and this Slurm does not show the jobs of others (PrivateData); "
        "wanted to see whether they live, for no run may be trained twice. Let alice type this command; if"
    )
    status, _, err = submit("--no-report", cluster=cluster)
    assert (status, said in err) == (2, True)
    assert len(submissions(folder)) == 1
    assert main(["status", str(study), "--results", str(tmp_path / "results")]) == 0
    out, err = capsys.readouterr()
    assert ("2 runs: 2 waiting\n" in out, said in err) == (True, True)
    for task in (0, 1):
        leave_outcome(training.folder, f"77_{task}", {"status": 3})
    assert "2 started now" in submit("--no-report", cluster=cluster)[2]


def test_sbatch_refuses(submit, fake_slurm, cluster, tmp_path):
    (fake_slurm / "sbatch.err").write_text("invalid partition specified: small")
    status, _, err = submit(cluster=cluster)
    assert status == 2
    assert "sbatch refused the jobs: " in err
    assert "invalid partition specified: small" in err
    assert "Correct the cluster file." in err
    assert submissions(tmp_path / "results" / "tiny") == []


def test_sbatch_refuses_after_some_jobs(submit, study, fake_slurm, cluster, tmp_path, monkeypatch):
    """What is queued by then is told, and the same command again goes on from there."""
    monkeypatch.setattr("slurm.queue.LONGEST_ARRAY", 1)
    (fake_slurm / "sbatch").write_text(
        f"#!/bin/sh\nif [ -e {fake_slurm}/once ]; then echo 'sbatch: error: too many jobs' >&2; exit 1; fi\n"
        f"touch {fake_slurm}/once\ncat {fake_slurm}/sbatch.out\n"
    )
    folder = tmp_path / "results" / "tiny"
    status, _, err = submit(cluster=cluster)
    assert status == 2
    (training,) = submissions(folder)
    assert (
        "submit: sbatch refused the jobs: too many jobs; wanted values that this cluster knows. Correct the cluster "
        "file. Before that were started, and go on: training: a job of 1 runs, 1 ranks, 1 GPUs (Slurm job 77, "
        f"jobs/{training.folder.name}). What follows training is not under way: the same command again starts it."
    ) in err
    (fake_slurm / "squeue.out").write_text(f"{training.name}|N/A|77|RUNNING|None\n")
    (fake_slurm / "once").unlink()
    status, _, err = submit("--no-report", cluster=cluster)
    assert (status, "1 started now in 1 jobs, 1 under way" in err) == (0, True)


MIXED = (
    "small*|4:00:00|2|gpu:h100:4|8|64000|fast\n"
    "small*|4:00:00|1|gpu:h100:2|16|32000|fast\n"
    "small*|4:00:00|9|(null)|256|512000|fast\n"
)


@pytest.mark.parametrize(
    ("ranks", "keys", "words"),
    [
        (
            1,
            {"gpus_per_node": 4, "cpus_per_task": 17},
            "cpus_per_task = 17: partition 'small' has at most 16 CPUs on a node with 1 GPUs; wanted",
        ),
        (
            4,
            {"gpus_per_node": 4, "cpus_per_task": 3},
            "cpus_per_task = 3 x 4 tasks on a node: partition 'small' has at most 8 CPUs on a node with 4 GPUs",
        ),
        (
            4,
            {"gpus_per_node": 4, "cpus_per_task": 2, "memory_gb": 20.0},
            "memory_gb = 20 x 4 tasks on a node: partition 'small' has at most 62.5 GB of memory on a node with 4 GPUs",
        ),
        (
            2,
            {"gpus_per_node": 2, "cpus_per_task": 8, "memory_gb": 30.0},
            "memory_gb = 30 x 2 tasks on a node: partition 'small' has at most 31.25 GB of memory on a node with 2 "
            "GPUs and 16 CPUs",
        ),
        (
            4,
            {"gpus_per_node": 2, "cpus_per_task": 8},
            "max_nodes = 2: partition 'small' has at most 1 nodes with 2 GPUs and 16 CPUs; wanted no more",
        ),
    ],
)
@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_nodes_that_differ_are_judged_each_by_itself(
    submit, fake_slurm, cluster, tmp_path, ranks, keys, words, options
):
    """And for all the tasks of a node that the planned jobs have there."""
    (fake_slurm / "sinfo.out").write_text(MIXED)
    change_cluster(cluster, **keys)
    status, out, err = submit("--ranks", str(ranks), *options, cluster=cluster)
    assert (status, out) == (2, "")
    assert words in err
    assert not list(tmp_path.glob("results/tiny/jobs/*"))


@pytest.mark.parametrize(
    ("ranks", "keys"),
    [
        (1, {"gpus_per_node": 4, "cpus_per_task": 16}),  # as much as only the other nodes have
        (1, {"gpus_per_node": 4, "memory_gb": 60.0}),  # four of them would not fit on a node
        (4, {"gpus_per_node": 4, "cpus_per_task": 2, "memory_gb": 15.0}),
    ],
)
def test_what_some_nodes_can_start(submit, fake_slurm, cluster, ranks, keys):
    (fake_slurm / "sinfo.out").write_text(MIXED)
    change_cluster(cluster, **keys)
    assert submit("--ranks", str(ranks), cluster=cluster)[0] == 0
    assert "sinfo --all --exact " in (fake_slurm / "calls").read_text()


def change_cluster(path, **keys):
    """Other values of these keys."""
    text = CLUSTER
    for key, value in keys.items():
        text = re.sub(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.M)
    path.write_text(text)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            'partition = "small"',
            'partition = "smal"',
            "partition = 'smal': this Slurm has no such partition; wanted one of small, huge, slow. Corr",
        ),
        (
            'partition = "small"',
            "",
            "partition is not given, and this Slurm has no default; wanted one of small, huge, slow. Name",
        ),
        (
            "gpus_per_node = 1",
            "gpus_per_node = 8",
            "gpus_per_node = 8: partition 'small' has at most 4 GPUs on a node; wanted no more than",
        ),
        (
            "max_minutes = 7",
            "max_minutes = 241",
            "max_minutes = 241: partition 'small' has at most 240 minutes for a job; wanted no more",
        ),
        ("max_nodes = 2", "max_nodes = 3", "max_nodes = 3: partition 'small' has at most 2 nodes"),
        (
            "memory_gb = 2.0",
            "memory_gb = 63.0",
            "memory_gb = 63: partition 'small' has at most 62.5",
        ),
        (
            "max_minutes = 7",
            'max_minutes = 31\ncpu_partition = "slow"',
            "max_minutes = 31: partition 'slow' has at most 30 minutes for a job; wanted no more",
        ),
        (
            "max_minutes = 7",
            'max_minutes = 7\ncpu_max_minutes = 31\ncpu_partition = "slow"',
            "cpu_max_minutes = 31: partition 'slow' has at most 30 minutes for a job; wanted no more",
        ),
        (
            "cpus_per_task = 3",
            'cpus_per_task = 5\ncpu_partition = "slow"',
            "cpus_per_task = 5: partition 'slow' has at most 4 CPUs on a node",
        ),
        (
            "memory_gb = 2.0",
            'memory_gb = 9.0\ncpu_partition = "slow"',
            "memory_gb = 9: partition 'slow' has at most 8 GB of memory on a node",
        ),
    ],
)
@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_what_slurm_would_never_start(
    submit, fake_slurm, cluster, tmp_path, old, new, words, options
):
    line = (fake_slurm / "sinfo.out").read_text().replace("*", "")
    slow = "slow|30:00|1|(null)|4|8192|(null)\n"
    (fake_slurm / "sinfo.out").write_text(line + line.replace("small", "huge") + slow)
    cluster.write_text(CLUSTER.replace(old, new))
    status, out, err = submit(*options, cluster=cluster)
    assert (status, out) == (2, "")
    assert words in err
    assert not list(tmp_path.glob("results/tiny/jobs/*"))


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        (
            "fsat",
            "constraint = 'fsat': no node of this Slurm has the feature fsat; wanted features that nodes of 'small' "
            "have: big&fast, fast. Correct the cluster file, or leave constraint out.",
        ),
        ("fast&slow|x", "no node of this Slurm has the feature x; wanted features that"),
        (
            "slow",
            "constraint = 'slow': no nodes of partition 'small' have these features; wanted features that",
        ),
        ("big&slow", "constraint = 'big&slow': no nodes of partition 'small' have these features"),
        # What only these nodes have is then asked of them.
        ("big", "max_nodes = 2: partition 'small' has at most 1 nodes; wanted no more than that"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_features_that_no_node_has(
    submit, fake_slurm, cluster, tmp_path, constraint, words, options
):
    small, gpus = "small*|4:00:00", "gpu:h100:4|8|64000"
    (fake_slurm / "sinfo.out").write_text(
        f"{small}|2|{gpus}|fast\n{small}|1|{gpus}|fast,big\nother|4:00:00|2|{gpus}|slow\n"
    )
    cluster.write_text(CLUSTER.replace('"fast"', f'"{constraint}"'))
    status, out, err = submit(*options, cluster=cluster)
    assert (status, out) == (2, "")
    assert words in err
    assert not list(tmp_path.glob("results/tiny/jobs/*"))


def test_nodes_without_features(submit, fake_slurm, cluster):
    (fake_slurm / "sinfo.out").write_text("small*|4:00:00|2|gpu:h100:4|8|64000|(null)\n")
    status, _, err = submit(cluster=cluster)
    assert status == 2
    assert "wanted none, for the nodes of 'small' have no features. Correct" in err


def test_each_partition_has_its_own_time(submit, fake_slurm, cluster, tmp_path):
    """Training may take longer than the other partition allows."""
    with (fake_slurm / "sinfo.out").open("a") as file:
        file.write("slow|30:00|1|(null)|4|8192|(null)\n")
    more = 'max_minutes = 200\ncpu_max_minutes = 20\ncpu_partition = "slow"'
    cluster.write_text(CLUSTER.replace("max_minutes = 7", more))
    assert submit(cluster=cluster)[0] == 0
    texts = [
        next(each.folder.glob("*_submission.sh")).read_text()
        for each in submissions(tmp_path / "results" / "tiny")
    ]
    found = [re.findall(r"--(?:partition|time)=(\S+)", text) for text in texts]
    assert [sorted(each) for each in found] == [["200", "small"], ["20", "slow"]]


def test_each_partition_has_its_own_options(submit, fake_slurm, cluster, tmp_path):
    """Account, qos and the rest, where the partition without GPUs asks for others."""
    with (fake_slurm / "sinfo.out").open("a") as file:
        file.write("slow|30:00|1|(null)|4|8192|(null)\n")
    keys = 'cpu_partition = "slow"\ncpu_account = "other"\ncpu_qos = "cheap"\naccount = "me"'
    keys += "\ncheck_seconds = 77"
    text = CLUSTER.replace('account = "me"', keys) + '[cpu_sbatch]\nreservation = "night"\n'
    cluster.write_text(text)
    assert submit(cluster=cluster)[0] == 0
    made = submissions(tmp_path / "results" / "tiny")
    training, report = (next(each.folder.glob("*_submission.sh")).read_text() for each in made)
    job = DelayedSubmission.load(next(made[0].folder.glob("*_submitted.pkl"))).function
    assert job.check_seconds == 77
    wanted = re.compile(r"--(?:account|qos|comment|reservation|constraint)=(\S+)")
    assert sorted(wanted.findall(training)) == ["'a", "fast", "low", "me"]
    assert sorted(wanted.findall(report)) == ["cheap", "night", "other"]
    assert "srun --unbuffered --output" in report
    assert " --cpus-per-task=3 --export=ALL " in report


def test_gpus_of_a_type(submit, fake_slurm, cluster, tmp_path):
    """Where the nodes of a partition have several."""
    small = "small*|4:00:00|2"
    (fake_slurm / "sinfo.out").write_text(
        f"{small}|gpu:v100:4|8|64000|fast\n{small}|gpu:h100:1(S:0-1)|8|64000|fast\n"
    )
    for kind, words in (
        (
            "a100",
            "gpu_type = 'a100': no node of partition 'small' has such GPUs; wanted one of these: h100, v100.",
        ),
        ("v100", None),
        ("h100", "gpus_per_node = 2: partition 'small' has at most 1 GPUs on a node"),
    ):
        keys = f'gpus_per_node = 2\ngpu_type = "{kind}"'
        cluster.write_text(CLUSTER.replace("gpus_per_node = 1", keys))
        status, _, err = submit(cluster=cluster)
        assert status == (2 if words else 0)
        assert (words or "") in err
    training = submissions(tmp_path / "results" / "tiny")[0]
    text = next(training.folder.glob("*_submission.sh")).read_text()
    assert "#SBATCH --gpus-per-node=v100:1\n" in text


def test_another_slurm_is_not_asked(submit, study, fake_slurm, cluster, tmp_path, capsys):
    """Two clusters may see one folder: for the one the jobs of the other would be over."""

    def named(name):
        (fake_slurm / "scontrol.out").write_text(f"ClusterName             = {name}\n")
        queue._cluster_name.cache_clear()

    named("north")
    assert submit(cluster=cluster)[0] == 0
    training, report = submissions(tmp_path / "results" / "tiny")
    assert (training.slurm, report.slurm) == ("north", "north")
    named("south")
    status, _, err = submit(cluster=cluster)
    assert status == 2
    assert (
        "was submitted to the Slurm 'north', and the one that answers here is 'south'; wanted to ask"
        in err
    )
    results = str(tmp_path / "results")
    assert main(["cancel", str(study), "--results", results]) == 2
    assert "'north'" in capsys.readouterr().err
    assert main(["status", str(study), "--results", results]) == 0
    said = capsys.readouterr()
    assert "Until then its jobs are taken to be alive" in said.err
    assert "waiting" in said.out
    queue._cluster_name.cache_clear()


def test_a_study_above_the_budget(submit, study, data, fake_slurm, cluster, tmp_path, monkeypatch):
    """Evaluation counts, where nothing else is left too."""
    status, _, err = submit("--max-gpu-hours", "1e-9", cluster=cluster)
    assert status == 2
    assert "GPU-hours are expected, the most of one run" in err
    assert "wanted at most --max-gpu-hours 1e-09. Nothing was started." in err
    assert not list(tmp_path.glob("results/tiny/jobs/*"))
    assert submit("--max-gpu-hours", "1", cluster=cluster)[0] == 0
    (training, _) = submissions(tmp_path / "results" / "tiny")
    for task in (0, 1):
        leave_outcome(training.folder, f"77_{task}", {"status": 0})
    monkeypatch.setattr("slurm.target.finished_on", lambda *_: True)
    status, _, err = submit("--max-gpu-hours", "1e-9", "--evaluate", str(data), cluster=cluster)
    assert status == 2
    assert re.search(r"tiny: (\S+) GPU-hours are expected, of evaluation \1; wanted at most", err)


def test_dry_run_on_slurm(submit, study, fake_slurm, cluster, tmp_path):
    """The table with what it costs, the text that sbatch would get, and what sbatch says to that."""
    (fake_slurm / "sbatch.out").write_text("Job 5 to start at 2030-01-01T00:00:00")
    cluster.write_text(CLUSTER.replace("setup", "price_per_gpu_hour = 1e6\nsetup"))
    status, out, err = submit("--dry-run", cluster=cluster)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    head = "job runs nodes tasks GPUs minutes memory GPU-hours disk cost"
    assert lines[0].split() == head.split()
    job, number, nodes, tasks, gpus, *_, hours, _, _, cost = lines[1].split()
    assert (job, number, nodes, tasks, gpus) == ("1", "1", "1", "1", "1")
    hours, cost = float(hours), float(cost)
    assert cost == pytest.approx(1e6 * hours, rel=0.01)  # the hours are printed to three digits
    assert "2 runs in 2 jobs; " in out
    assert "#SBATCH --array=0-1%2\n" in out
    assert "--- sbatch --test-only: Job 5 to start at 2030-01-01T00:00:00" in out
    assert "sbatch --test-only" in (fake_slurm / "calls").read_text()
    assert not (tmp_path / "results").exists()


def test_dry_run_shows_what_is_left(submit, study, fake_slurm, cluster, tmp_path):
    """Not what is queued or running, as far as Slurm tells."""
    assert submit(cluster=cluster)[0] == 0
    training, report = submissions(tmp_path / "results" / "tiny")
    first, second = (task[0] for task in training.tasks)
    (fake_slurm / "squeue.out").write_text(queued(training, 0))
    status, out, err = submit("--dry-run", cluster=cluster)
    assert (status, err) == (0, "")
    assert out.startswith("1 runs are under way in another job or process: not shown\njob ")
    assert (f"    {first}\n" in out, f"    {second}\n" in out) == (False, True)
    assert "1 runs in 1 jobs; " in out

    waits = f"{report.name}|N/A|78|PENDING|Dependency\n"
    (fake_slurm / "squeue.out").write_text(queued(training, 0, 1) + waits)
    status, out, _ = submit("--dry-run", cluster=cluster)
    assert out == "2 runs are under way in another job or process: not shown\n"
    (fake_slurm / "squeue.err").write_text("Unable to contact slurm controller")
    status, out, err = submit("--dry-run", cluster=cluster)
    assert status == 0
    assert "runs that are queued or running are shown too: squeue" in err
    assert "2 runs in 2 jobs; " in out


def test_dry_run_shows_every_stage(submit, data, fake_slurm, cluster, tmp_path):
    """Each with what sbatch would get, and what it says to that."""
    new = tmp_path / "new"
    build = ["--raw", str(tmp_path), "--parts", "3", "--evaluate", str(data)]
    status, out, _ = submit("--dry-run", *build, cluster=cluster, data=new)
    assert status == 0
    assert re.findall(r"^--- sbatch \d.*", out, re.M) == [
        "--- sbatch 1: 3 parts of the data ---",
        "--- sbatch 2: their check, after them ---",
        "--- sbatch 3: training, 2 jobs, if the check went well ---",
        "--- sbatch 4: evaluation, 2 jobs, after all that is above ---",
        "--- sbatch 5: report, 1 jobs, after all that is above ---",
    ]
    texts = out.split("#!/bin/bash")[1:]
    assert ["--gpus-per-node" in text for text in texts] == [False, False, True, True, False]
    assert ["--array=0-2%2" in text for text in texts] == [True, False, False, False, False]
    assert f"--output={new}/jobs/KEY/" in texts[0]
    assert (fake_slurm / "calls").read_text().count("sbatch --test-only") == 5
    assert not new.exists()


def test_no_more_arrays_at_a_time_than_jobs(
    submit, study, fake_slurm, cluster, tmp_path, monkeypatch
):
    """Where there are more of them, the later ones wait for earlier ones."""
    monkeypatch.setattr("slurm.queue.LONGEST_ARRAY", 1)
    write_study(study, ((1, 16), (1, 32), (1, 48)))
    status, _, err = submit("--ranks", "2", "--no-report", cluster=cluster)
    assert status == 0, err
    texts = [
        next(each.folder.glob("*_submission.sh")).read_text()
        for each in submissions(tmp_path / "results" / "tiny")
    ]
    assert sorted("--dependency=afterany:77\n" in text for text in texts) == [False, False, True]


def queued(submission, *tasks: int) -> str:
    """What squeue says while these tasks of an array live."""
    return "".join(f"{submission.name}|{task}|77_{task}|RUNNING|None\n" for task in tasks)


@pytest.mark.parametrize(
    ("living", "line"), [((0, 1), "--dependency=afterany:77"), ((0,), "--array=0-1%1"), ((), "%2")]
)
def test_jobs_that_run_already_count_among_those_that_may(
    submit, study, fake_slurm, cluster, tmp_path, living, line
):
    """Two at a time: beside two that live the new array waits, beside one it may have one."""
    folder = tmp_path / "results" / "tiny"
    assert submit("--no-report", cluster=cluster)[0] == 0
    (first,) = submissions(folder)
    assert first.parallelism == 2
    (fake_slurm / "squeue.out").write_text(queued(first, *living))
    write_study(study, tuple((1, 16 * size) for size in range(1, 5)))
    status, told, _ = submit("--no-report", "--dry-run", cluster=cluster)
    taken = f"{len(living)} of concurrent_jobs = 2 are taken by jobs that are under way (77)"
    assert (status, taken in told) == (0, bool(living))
    assert ("when an array that has its place has ended" in told) == (len(living) == 2)
    status, _, err = submit("--no-report", cluster=cluster)
    assert status == 0, err
    second = submissions(folder)[-1]
    text = next(second.folder.glob("*_submission.sh")).read_text()
    assert line in text
    assert ("--dependency" in text) == (len(living) == 2)
    # What was told before is what sbatch then got, but for the ids of what it comes after.
    assert re.findall("--array.*", told) == re.findall("--array.*", text)


@pytest.mark.parametrize(
    ("most", "arrays"), [("0", [1, 1, 1]), ("2", [2, 1]), ("3", [3]), ("1001", [3])]
)
@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_arrays_are_as_long_as_this_slurm_takes(
    submit, study, fake_slurm, cluster, tmp_path, most, arrays, options
):
    """Its administrator may have made them shorter, and 0 means none."""
    (fake_slurm / "scontrol.out").write_text(f"MaxArraySize            = {most}\n")
    write_study(study, ((1, 16), (1, 32), (1, 48)))
    status, out, err = submit("--ranks", "2", "--no-report", *options, cluster=cluster)
    assert status == 0, err
    made = submissions(tmp_path / "results" / "tiny")
    told = [int(number) for number in re.findall(r"training, (\d+) jobs", out)]
    assert (told if options else [len(each.tasks) for each in made]) == arrays


def test_a_build_has_no_more_parts_than_an_array(submit, fake_slurm, cluster, tmp_path):
    (fake_slurm / "scontrol.out").write_text("MaxArraySize            = 3\n")
    raw = ["--raw", str(tmp_path), "--parts", "4"]
    status, _, err = submit(*raw, cluster=cluster, data=tmp_path / "new")
    assert status == 2
    said = "--parts 4: wanted 1 to 3, the longest array that Slurm takes. Give as many as jobs may run at a time."
    assert said in err
    assert "sbatch" not in (fake_slurm / "calls").read_text()


@pytest.mark.parametrize(
    ("lengths", "limit", "places"),
    [
        ([4, 4], 8, [4, 4]),
        ([9, 3], 4, [3, 1]),
        ([5, 5, 5], 8, [3, 3, 2]),
        ([10, 1, 1], 4, [2, 1, 1]),
        ([3, 3, 3], 2, [1, 1, 1]),
        ([2], 8, [2]),
        ([], 8, []),
        ([4, 4], 0, [1, 1]),
        ([4], -1, [1]),
    ],
)
def test_arrays_share_the_jobs_that_may_run(lengths, limit, places):
    """Rounding each by itself gave 9 of 8 to three arrays of five."""
    assert shared_limit(lengths, limit) == places
    assert sum(places) <= max(limit, len(lengths))


def test_dry_run_where_slurm_does_not_answer(submit, fake_slurm, cluster):
    (fake_slurm / "sinfo.err").write_text("Unable to contact slurm controller")
    status, out, _ = submit("--dry-run", cluster=cluster)
    assert status == 0
    assert "not compared with what Slurm has: sinfo" in out
    assert "--test-only" not in out
    status, _, err = submit(cluster=cluster)
    assert status == 2
    assert "Unable to contact slurm controller; wanted the partitions" in err


def test_an_answer_that_came_too_late_leaves_no_job(submit, fake_slurm, cluster, tmp_path):
    """sbatch gave up waiting, and Slurm may have taken the job: it is removed by its name."""
    (fake_slurm / "sbatch.err").write_text(
        "sbatch: error: Batch job submission failed: Socket timed out"
    )
    status, _, err = submit(cluster=cluster)
    assert status == 2
    assert "sbatch refused the jobs: Batch job submission failed: Socket timed out; wanted" in err
    assert "scancel --name tiny-" in (fake_slurm / "calls").read_text()
    assert submissions(tmp_path / "results" / "tiny") == []


def test_if_that_cannot_be_done_the_next_submit_asks(submit, fake_slurm, cluster, tmp_path):
    for name in ("sbatch", "scancel"):
        (fake_slurm / f"{name}.err").write_text("Socket timed out")
    assert submit(cluster=cluster)[0] == 2
    (submission,) = submissions(tmp_path / "results" / "tiny")
    for name in ("sbatch", "scancel"):
        (fake_slurm / f"{name}.err").unlink()
    # Slurm did take it. It has no work, so it is removed, and its runs are submitted again.
    (fake_slurm / "squeue.out").write_text(f"{submission.name}|0|77_0|PENDING|Priority\n")
    status, _, err = submit(cluster=cluster)
    assert status == 0
    assert "2 started now" in err
    assert f"scancel --name {submission.name}\n" in (fake_slurm / "calls").read_text()


def test_a_results_folder_that_was_moved(submit, study, fake_slurm, cluster, tmp_path):
    submit(cluster=cluster)
    submission, _ = submissions(tmp_path / "results" / "tiny")
    (fake_slurm / "squeue.out").write_text(f"{submission.name}|0|77_0|PENDING|Priority\n")
    (tmp_path / "results").rename(tmp_path / "moved")
    (tmp_path / "results").symlink_to(tmp_path / "moved")
    status, _, err = submit(cluster=cluster)
    assert status == 2
    assert (
        f"{tmp_path}/moved/tiny: was moved from {tmp_path}/results/tiny while 1 of its jobs are queued or "
        f"running, and these write to {tmp_path}/results/tiny; wanted the folder where it was"
    ) in err
    (fake_slurm / "squeue.out").write_text("")  # no job of it is left: all is well
    assert "2 started now" in submit(cluster=cluster)[2]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("50%j", "50%j': has a %, which Slurm replaces in the names of logs; wanted"),
        ("a\\b", "a\\\\b': has a backslash, which Slurm removes in the names of logs; wanted"),
        (
            "a\nb",
            "a\\nb': has a line break, which sbatch cannot read in",
        ),
        (
            "%\\",
            "has a %, which Slurm replaces and a backslash, which Slurm removes in the names of",
        ),
    ],
)
def test_a_folder_that_slurm_would_read_otherwise(study, data, tmp_path, capsys, name, words):
    folder = tmp_path / name
    of_study = ["--cluster", "local", "--data", str(data), "--results", str(folder)]
    assert main(["submit", str(study), *of_study]) == 2
    err = capsys.readouterr().err
    assert err.startswith("submit: --results '")
    assert words in err
    of_data = ["--raw", str(tmp_path), "--cluster", "local", "--out", str(folder)]
    assert main(["prepare", "image-8x8", *of_data]) == 2
    assert words in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.parametrize("results", ["/proc/results", "/sys/kernel/results"])
def test_a_results_folder_that_cannot_be_written(study, data, results, capsys):
    words = ["--cluster", "local", "--data", str(data), "--results", results]
    assert main(["submit", str(study), *words]) == 2
    err = capsys.readouterr().err
    assert results in err
    assert "Check the path and its permissions, then run the same command again." in err


def test_the_disk_is_full(submit, fake_slurm, cluster, tmp_path):
    """Nothing is half submitted: sbatch was not called, and the same command continues."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # a write beyond it fails
    try:
        status, _, err = submit(cluster=cluster)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 2
    assert f"submit: {tmp_path}/results/tiny" in err
    assert "File too large" in err
    assert "sbatch" not in (fake_slurm / "calls").read_text()
    assert submissions(tmp_path / "results" / "tiny") == []
    assert submit(cluster=cluster)[0] == 0


@pytest.mark.parametrize("number", NO_LOCKS)
def test_a_results_folder_without_locks(submit, tmp_path, monkeypatch, number):
    def flock(_file, _mode):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    status, _, err = submit()
    assert status == 2
    assert (
        f"submit: {tmp_path}/results/tiny: its file system has no locks (flock: {os.strerror(number)}); wanted one "
        "that keeps two processes from doing the same work. Use a folder on another disk, or have this one mounted"
    ) in err
    assert not list(tmp_path.glob("results/tiny/jobs/*"))
    with pytest.raises(ValueError, match="has no locks"), locked(tmp_path / "run"):
        pass


def test_a_results_folder_without_room(tmp_path):
    """Where writing fails, and not opening, the system's own error names no path."""
    with pytest.raises(OSError, match="space left") as caught, submit_lock(tmp_path / "tiny"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert sentence(caught.value).startswith(f"{tmp_path}/tiny: No space left on device. Free some")


def test_ranks_that_do_not_fit(submit, fake_slurm, cluster):
    status, _, err = submit("--ranks", "3", cluster=cluster)
    assert status == 2
    assert "3 ranks for one run; wanted 1 to 2 (max_nodes = 2 x 1 on a node)" in err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            ["--raw", "/nowhere"],
            "--raw /nowhere: no such file or folder; wanted the raw data of image-8x8",
        ),
        (["--raw", ".", "--parts", "0"], "--parts 0: wanted 1 to 1000, the longest array"),
    ],
)
def test_data_that_cannot_be_built(submit, tmp_path, more, words):
    status, _, err = submit(*more, data=tmp_path / "new")
    assert status == 2
    assert words in err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--ranks", "0"], "--ranks 0: wanted at least 1. Leave it out for the planner's choice."),
        (["--max-gpu-hours", "nan"], "--max-gpu-hours nan: wanted a number from 0. Leave it out"),
    ],
)
def test_numbers_that_are_none(submit, more, words):
    status, _, err = submit(*more)
    assert status == 2
    assert words in err


def test_a_model_that_no_device_holds_is_not_evaluated(submit, study, data, cluster, fake_slurm):
    """Told before it is trained: one device evaluates a whole model."""
    cluster.write_text(CLUSTER.replace("memory_gb = 2.0", "memory_gb = 64.0"))
    write_study(study, ((100, 10240),))
    status, _, err = submit("--evaluate", str(data), cluster=cluster)
    assert status == 2
    (run,) = runs_of(study)
    size = f"{4 * run.shape.params_total / 1e9:.3g}"
    assert (
        f"--evaluate: the weights of {run.run_id} take {size} GB; wanted at most the 80 GB" in err
    )
    assert "of a h100, for one device evaluates a whole model. Leave --evaluate out" in err


def test_information_of_what(submit, data):
    status, _, err = submit("--information")
    assert status == 2
    assert "--information: no dataset to find it on; wanted it with --evaluate. Name one" in err
    status, _, err = submit("--information", "--evaluate", str(data))
    assert status == 2
    assert "--information: was trained on image-8x8, whose rows are no pairs; wanted a model" in err


@pytest.mark.parametrize(
    "words", [[], ["STUDY"], ["STUDY", "--results", "r", "--out", "o"], ["--out", "o", "STUDY"]]
)
def test_cancel_of_what(study, capsys, words):
    assert main(["cancel", *[str(study) if word == "STUDY" else word for word in words]]) == 2
    err = capsys.readouterr().err
    assert "wanted what to end: a study, STUDY.toml --results DIR, or a build that `prepare`" in err


def test_a_results_folder_that_holds_nothing_of_the_study(study, tmp_path, capsys):
    words = [str(study), "--results", str(tmp_path / "resluts")]
    assert main(["cancel", *words]) == 2
    assert (
        f"--results {tmp_path}/resluts: nothing of tiny was ever begun there; wanted what submit was given"
        in capsys.readouterr().err
    )
    assert main(["status", *words]) == 0
    out, err = capsys.readouterr()
    assert f"{tmp_path}/resluts/tiny is not there: nothing of this study was ever begun" in err
    assert "not begun" in out


def test_an_evaluation_on_nothing(submit, tmp_path):
    status, _, err = submit("--evaluate", str(tmp_path))
    assert status == 2
    assert f"--evaluate {tmp_path}: no dataset (no manifest.json); wanted the folder of one" in err


def test_data_that_is_being_built_elsewhere(submit, fake_slurm, cluster, tmp_path):
    """Slurm's jobs cannot wait for a process of this machine."""
    out = tmp_path / "new"
    building = open_submission(out, "new", "local", [("check of new",)], stage="check")
    (building.folder / "1_submitted.pkl").touch()
    program = "import time; print('ready', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", program, "submitit.local._local", str(building.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        status, _, err = submit("--raw", ".", cluster=cluster, data=out)
        process.kill()
    assert status == 2
    assert "is being built by jobs with executor = 'local' on " in err
    assert "Wait for it to end, then run the same command again." in err


def test_prepare_refuses(tmp_path, data, capsys):
    words = ["--raw", ".", "--cluster", "local", "--out"]
    assert main(["prepare", "imag-8x8", *words, str(tmp_path / "new")]) == 2
    assert "imag-8x8" in capsys.readouterr().err
    assert main(["prepare", "image-8x8", *words, str(data)]) == 0
    assert f"{data}: already built" in capsys.readouterr().out


def test_prepare_asks_for_no_more_than_the_partition_has(
    tmp_path, cluster, fake_slurm, capsys, monkeypatch
):
    words = ["--raw", str(tmp_path), "--cluster", str(cluster), "--out", str(tmp_path / "new")]
    cluster.write_text(CLUSTER.replace("max_minutes = 7", "max_minutes = 241"))
    assert main(["prepare", "image-8x8", *words]) == 2
    said = "prepare: max_minutes = 241: partition 'small' has at most 240 minutes for a job"
    assert said in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["prepare", "image-8x8", *words]) == 2
    assert "but sbatch is not on this machine; wanted a login node" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.fixture
def on_slurm(study, tmp_path):
    """A study with a submission on Slurm."""
    run = runs_of(study)[0]
    return open_submission(tmp_path / "results" / "tiny", "tiny", "slurm", [(run.run_id,)])


def test_squeue_does_not_answer(on_slurm, study, fake_slurm, tmp_path, capsys):
    (fake_slurm / "squeue.err").write_text("Unable to contact slurm controller")
    assert main(["status", str(study), "--results", str(tmp_path / "results")]) == 0
    out, err = capsys.readouterr()
    assert ": Unable to contact slurm controller; wanted the list of your jobs" in err
    assert "Until then its jobs are taken to be alive." in err
    assert ("waiting" in out, "not begun" in out) == (True, True)


def test_no_squeue_here(on_slurm, study, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["cancel", str(study), "--results", str(tmp_path / "results")]) == 2
    assert "squeue: not found; wanted the list of your jobs" in (capsys.readouterr().err)


def test_cancel_where_nothing_can_be_written(on_slurm, study, fake_slurm, tmp_path, capsys):
    """Without the note in its folder a job that saved would be requeued: Slurm ends it."""
    (fake_slurm / "squeue.out").write_text(f"{on_slurm.name}|N/A|77|RUNNING|None\n")
    (on_slurm.folder / CANCELLED).symlink_to("/proc/nowhere/cancelled")  # not even root creates it
    assert main(["cancel", str(study), "--results", str(tmp_path / "results")]) == 0
    assert "1 jobs asked to stop" in capsys.readouterr().out
    calls = (fake_slurm / "calls").read_text().splitlines()
    assert [each for each in calls if "scancel" in each] == [f"scancel --name {on_slurm.name}"]


def test_scancel_refuses(on_slurm, study, fake_slurm, tmp_path, capsys):
    (fake_slurm / "squeue.out").write_text(f"{on_slurm.name}|N/A|77|PENDING|Priority\n")
    (fake_slurm / "scancel.err").write_text("Access denied")
    assert main(["cancel", str(study), "--results", str(tmp_path / "results")]) == 2
    assert f"--name {on_slurm.name}: Access denied; wanted to end these jobs" in (
        capsys.readouterr().err
    )


def test_status_as_json_in_a_process_of_its_own(study, tmp_path):
    command = [sys.executable, "-m", "slurm", "status", str(study), "--json", "--results"]
    done = subprocess.run(
        [*command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert [row["state"] for row in json.loads(done.stdout)["runs"]] == ["not begun"] * 2


def test_nothing_to_do_imports_neither_torch_nor_submitit(data, study, tmp_path):
    program = (
        "import sys\n"
        "from slurm.__main__ import main\n"
        "import slurm.target\n"
        "slurm.target.finished_on = lambda *_: True\n"
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
