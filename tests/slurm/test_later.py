"""What follows training is started again until it has ended well."""

import pickle
import re

import pytest

from data_prep.manifest import load_manifest
from launch.devices import GPUS
from slurm import later
from slurm.__main__ import main
from slurm.describe import code_bytes
from slurm.evaluation import evaluation_seconds
from slurm.freeze import COMMIT_FILE, freeze_code
from slurm.ledger import (
    EVALUATE,
    EVERY_CHECKPOINT,
    EVERY_RUN,
    REPORT,
    TRAIN,
    leave_outcome,
    submissions,
)
from slurm.resources import JOB_SECONDS, RUN_SECONDS
from slurm.status import look
from slurm.target import Wishes, target
from tests.slurm.conftest import runs_of
from tests.slurm.test_messages import cluster, fake_slurm, submit  # noqa: F401


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "results" / "tiny"


@pytest.fixture
def trained(submit, fake_slurm, cluster, folder, monkeypatch):  # noqa: F811
    """Training has ended well; what came after it has left nothing."""
    assert submit(cluster=cluster)[0] == 0
    training, _ = submissions(folder)
    for task in range(len(training.tasks)):
        leave_outcome(training.folder, f"77_{task}", {"status": 0})
    monkeypatch.setattr("slurm.target.finished_on", lambda *_: True)

    def again(*more):
        status, out, err = submit(*more, cluster=cluster)
        assert status == 0, err
        return out + err

    return again


def stages(folder):
    return [each.stage for each in submissions(folder)]


def test_a_report_that_failed_is_made_again(trained, folder):
    leave_outcome(submissions(folder)[-1].folder, "77", {"status": 1})
    assert "fits and report at the end (Slurm job 77" in trained()
    assert stages(folder) == [TRAIN, REPORT, REPORT]
    leave_outcome(submissions(folder)[-1].folder, "77", {"status": 0})
    assert trained() == "2 of 2 runs are finished: nothing to do\n"


def test_a_report_that_sbatch_refused_is_made_then(trained, submit, fake_slurm, cluster, folder):  # noqa: F811
    """The training that was taken before it goes on."""
    leave_outcome(submissions(folder)[-1].folder, "77", {"status": 1})
    (fake_slurm / "sbatch.err").write_text("sbatch: error: too many jobs")
    status, _, err = submit(cluster=cluster)
    assert status == 2
    assert "sbatch refused the jobs: too many jobs; wanted" in err
    assert "What follows training is not under way: the same command again starts it." in err
    assert stages(folder) == [TRAIN, REPORT]
    (fake_slurm / "sbatch.err").unlink()
    assert "fits and report" in trained()


def test_a_report_that_waits_is_not_made_twice(trained, fake_slurm, folder):  # noqa: F811
    report = submissions(folder)[-1]
    (fake_slurm / "squeue.out").write_text(f"{report.name}|N/A|77|PENDING|Dependency\n")
    assert "0 started now in 0 jobs" in trained()
    assert stages(folder) == [TRAIN, REPORT]


def test_datasets_of_now_are_evaluated_in_an_array_then_reported(trained, data, folder, study):
    """Each task has its share of the runs, and a report is made of what they find."""
    leave_outcome(submissions(folder)[-1].folder, "77", {"status": 0})
    assert "evaluation after it: 2 jobs" in trained("--evaluate", str(data))
    assert stages(folder) == [TRAIN, REPORT, EVALUATE, REPORT]
    *_, evaluation, report = submissions(folder)
    assert evaluation.tasks == tuple((f"evaluation {k} of 2", str(data)) for k in (1, 2))
    assert report.after == (str(evaluation.folder),)
    text = next(evaluation.folder.glob("*_submission.sh")).read_text()
    assert "--array=0-1%2\n" in text
    assert "--gpus-per-node=1\n" in text
    for task in (0, 1):
        leave_outcome(evaluation.folder, f"77_{task}", {"status": task})
    leave_outcome(report.folder, "77", {"status": 0})
    assert "evaluation after it" in trained("--evaluate", str(data)), "one of its jobs failed"
    assert stages(folder)[-2:] == [EVALUATE, REPORT]
    shown = [stage.name.partition(",")[0] for stage in look(runs_of(study), folder).stages]
    assert shown == ["evaluation 1 of 2", "evaluation 2 of 2", "report"]


def test_what_is_asked_of_an_evaluation_makes_it_another_one(trained, data, folder, monkeypatch):
    """The information of pairs, and every checkpoint; each job gets the word."""
    monkeypatch.setattr("slurm.target.refuse_evaluation", lambda *_, **__: None)
    for stage in submissions(folder):
        for task in range(len(stage.tasks)):
            leave_outcome(
                stage.folder, f"77_{task}" if len(stage.tasks) > 1 else "77", {"status": 0}
            )
    for more, known_by, which in (
        ([], [], EVERY_RUN),
        (["--information"], ["--information"], EVERY_RUN),
        (["--every-checkpoint"], [EVERY_CHECKPOINT], EVERY_CHECKPOINT),
    ):
        assert "evaluation after it" in trained("--evaluate", str(data), *more)
        evaluation = submissions(folder)[-2]
        assert evaluation.tasks[0][1:] == (str(data), *known_by)
        job = pickle.loads((evaluation.folder / "77_0_submitted.pkl").read_bytes())
        asked = ["--information"] if "--information" in more else []
        wanted = ("launch", "evaluate", which, "--data", str(data), "--missing", *asked)
        assert job.function.commands == (wanted,)
        for task in (0, 1):
            leave_outcome(evaluation.folder, f"77_{task}", {"status": 0})
        leave_outcome(submissions(folder)[-1].folder, "77", {"status": 0})


def test_each_run_is_in_one_share(study, data, tmp_path):
    """On this machine as many jobs as it holds."""
    wishes = Wishes(evaluate=(data,))
    of = target(study, "local", data, tmp_path / "results", wishes)
    found = [run_id for share in later.shares(of) for run_id in share.run_ids]
    assert sorted(found) == sorted(run.run_id for run in of.runs)
    assert all("CUDA_VISIBLE_DEVICES" in dict(share.environment) for share in later.shares(of))


def test_an_evaluation_has_its_price(submit, cluster, study, data, tmp_path, fake_slurm):  # noqa: F811
    """Of `--dry-run`: a start for each job and each run, and all rows through every model."""
    of = target(study, str(cluster), data, tmp_path / "results", Wishes(evaluate=(data, data)))
    hours = later.gpu_hours(of, later.wanted(of))
    starts = JOB_SECONDS * len(later.shares(of)) + 2 * RUN_SECONDS * len(of.runs)
    rows, gpu = load_manifest(data).rows("valid"), GPUS["h100"]
    forward = [run.shape.flops_per_token_exact / 3 * run.shape.seq_length for run in of.runs]
    passes = 2 * rows * sum(forward) / (gpu.efficiency * gpu.fp32)
    assert passes > 0
    assert hours == pytest.approx((starts + passes) / 3600, rel=1e-12)
    assert later.gpu_hours(of, (REPORT,)) == 0
    on_cpu = target(study, "local", data, tmp_path / "results", Wishes(evaluate=(data,)))
    assert later.gpu_hours(on_cpu, later.wanted(on_cpu)) == 0

    status, out, _ = submit("--dry-run", "--evaluate", str(data), cluster=cluster)
    assert status == 0
    of = target(study, str(cluster), data, tmp_path / "results", Wishes(evaluate=(data,)))
    told = later.gpu_hours(of, later.wanted(of))
    in_all, of_these = re.search(
        r"; ([\d.]+) GPU-hours \(([\d.]+) of them evaluation\)", out
    ).groups()
    assert float(of_these) == pytest.approx(told, rel=5e-3)  # three digits
    assert float(in_all) > told + 2 * JOB_SECONDS / 3600
    assert (
        f"GPU-hours count steps, the evaluations along them, {JOB_SECONDS:g} s for each job" in out
    )


def test_every_checkpoint_has_its_price(study, data):
    run = runs_of(study)[0]
    kept = run.model_copy(
        update={"checkpoint": run.checkpoint.model_copy(update={"keep_every": 10})}
    )
    words = {"gpu": GPUS["a100"], "datasets": [data]}
    one = evaluation_seconds(kept, information=False, every=False, **words)
    every = evaluation_seconds(kept, information=False, every=True, **words)
    assert every == pytest.approx(one * (kept.train_steps // 10 + kept.checkpoint.keep_last))
    assert one < evaluation_seconds(kept, information=True, every=False, **words) < 2 * one


def test_the_copy_of_the_code_is_counted(tmp_path):
    kept = freeze_code(tmp_path)
    copied = [path for path in kept.rglob("*") if path.is_file() and path.name != COMMIT_FILE]
    assert code_bytes() == sum(path.stat().st_size for path in copied)


def test_nothing_was_ever_submitted(study, data, tmp_path, monkeypatch, capsys):
    """Who trains by hand writes the report by hand."""
    monkeypatch.setattr("slurm.target.finished_on", lambda *_: True)
    words = ["--cluster", "local", "--data", str(data), "--results", str(tmp_path / "results")]
    assert main(["submit", str(study), *words]) == 0
    assert capsys.readouterr().out == "2 of 2 runs are finished: nothing to do\n"
