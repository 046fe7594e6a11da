"""A study that starts from the weights of another one waits for its training, or says that there is none."""

import pickle

import pytest

from launch.config import save_config
from launch.results import COUNT_NAMES, ResultWriter
from slurm.ledger import TRAIN, open_submission, submissions
from slurm.start import waited_for
from tests.slurm.conftest import runs_of, write_study
from tests.slurm.test_cancel import alive  # noqa: F401
from tests.slurm.test_messages import cluster, fake_slurm, submit  # noqa: F401


@pytest.fixture
def study(tmp_path):
    """Of one rung, which starts from that of the study `first`."""
    path = write_study(tmp_path / "tiny.toml", ((1, 16),))
    path.write_text(path.read_text() + '[start]\nstudy = "first"\n')
    return path


@pytest.fixture
def first(study, tmp_path):
    """The training of the study `first`, submitted to Slurm."""
    return open_submission(
        tmp_path / "results" / "first", "first", "slurm", [("a",), ("b",)], stage=TRAIN
    )


def test_it_waits_for_what_is_under_way(submit, fake_slurm, cluster, first, tmp_path):  # noqa: F811
    (first.folder / "0_submitted.pkl").touch()
    (fake_slurm / "squeue.out").write_text(f"{first.name}|0|55_0|RUNNING|None\n")
    status, _, err = submit("--no-report", cluster=cluster)
    assert status == 0, err
    assert "training waits for the studies that it starts from (Slurm job 55, jobs/" in err
    out = submit("--dry-run", cluster=cluster)[1]
    assert f"training waits for {first.name}, whose weights it starts from" in out
    (mine,) = submissions(tmp_path / "results" / "tiny")
    assert mine.after == (str(first.folder),)
    text = next(mine.folder.glob("*_submission.sh")).read_text()
    assert "#SBATCH --dependency=afterany:55\n" in text


def test_it_waits_for_its_data_and_for_its_start(submit, fake_slurm, cluster, first, tmp_path):  # noqa: F811
    (fake_slurm / "squeue.out").write_text(f"{first.name}|0|55_0|RUNNING|None\n")
    build = ["--raw", str(tmp_path), "--parts", "2"]
    status, _, err = submit("--no-report", *build, cluster=cluster, data=tmp_path / "new")
    assert status == 0, err
    (mine,) = submissions(tmp_path / "results" / "tiny")
    text = next(mine.folder.glob("*_submission.sh")).read_text()
    assert "#SBATCH --dependency=afterok:77,afterany:55\n" in text


def test_nothing_to_start_from_is_refused(submit, fake_slurm, cluster, first, study, tmp_path):  # noqa: F811
    """No job of it is left, and no run of it is finished."""
    status, _, err = submit(cluster=cluster)
    assert status == 2
    (run,) = runs_of(study)
    assert (
        f"{run.run_id}: [start]: no run of study 'first' with the sizes of L1-H16 is finished"
        in err
    )
    assert "and no job trains that study; wanted its weights. Submit it first, with the same" in err
    assert submissions(tmp_path / "results" / "tiny") == []
    status, out, _ = submit("--dry-run", cluster=cluster)  # what it would take may be seen before
    assert status == 0
    assert f"cannot be submitted yet: {run.run_id}: [start]: no run of study 'first'" in out


def test_what_is_finished_is_not_waited_for(study, tmp_path):
    (run,) = runs_of(study)
    before = run.model_copy(update={"study": "first", "start": None})
    folder = tmp_path / "first" / before.run_id
    save_config(before, folder)
    count = dict.fromkeys(COUNT_NAMES, 1.0)
    with ResultWriter(folder, config={}, provenance={}, counts=count, seq_length=192) as writer:
        writer.finish()
    assert waited_for(tmp_path, [run], "slurm") == {}
    (folder / "metrics.h5").write_bytes(b"not this")
    with pytest.raises(ValueError, match="no run of study 'first' with the sizes of L1-H16"):
        waited_for(tmp_path, [run], "slurm")


def test_a_job_here_waits_for_one_here(terminal, alive):  # noqa: F811
    theirs, _ = alive(terminal.results / "first", TRAIN)
    answer = terminal.run("submit")
    assert answer.status == 0, answer
    (mine,) = submissions(terminal.folder)
    assert mine.after == (str(theirs.folder),)
    (path,) = mine.folder.glob("*_submitted.pkl")
    job = pickle.loads(path.read_bytes()).function
    assert (job.after, job.only_if_well) == (mine.after, False)
    assert job.job.run_ids == mine.tasks[0]
    assert "1 jobs asked to stop" in terminal.run("cancel").out


def test_jobs_here_cannot_wait_for_those_of_slurm(submit, fake_slurm, first):  # noqa: F811
    (fake_slurm / "squeue.out").write_text(f"{first.name}|0|55_0|RUNNING|None\n")
    status, _, err = submit()
    assert status == 2
    assert "study 'first' is being trained by jobs with executor = 'slurm'; wanted the same" in err
