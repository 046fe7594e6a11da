"""What a job asks a real Slurm about itself."""

import pytest

from slurm import allocation
from slurm.allocation import ELSEWHERE, OnSlurm


@pytest.fixture
def job_on_n1(playground, monkeypatch):
    """`start(OPTIONS...)`: a job on node n1, seen from within."""
    monkeypatch.setenv("SLURM_CONF", str(playground.conf))
    started = []

    def start(*options: str) -> OnSlurm:
        words = ["--parsable", "--nodelist=n1", "--output=/dev/null", "--wrap", "sleep 60"]
        job = playground.run("sbatch", *options, *words).strip()
        started.append(job)
        playground.until(
            lambda: playground.run("squeue", "-h", "-j", job, "-t", "RUNNING"), "a running job"
        )
        for name, value in (("JOB_ID", job), ("JOB_NODELIST", "n1"), ("JOB_PARTITION", "main")):
            monkeypatch.setenv(f"SLURM_{name}", value)
        return OnSlurm()

    yield start
    playground.run("scancel", *started)
    playground.until(lambda: not playground.run("squeue", "-h").strip(), "the end of all jobs")


@pytest.mark.slurm
def test_whether_enough_nodes_are_left(job_on_n1, monkeypatch):
    """Of two nodes one may be left out; one that is too small, or was left out before, does not count."""
    job = job_on_n1("--mem=100")
    assert job.can_do_without(["n1"])
    assert not job.can_do_without(["n1", "n2"])
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "17000")
    assert not job.can_do_without([])
    monkeypatch.delenv("SLURM_MEM_PER_NODE")
    again = job_on_n1("--mem=100", "--exclude=n2")
    assert again.can_do_without([])
    assert not again.can_do_without(["n1"])


@pytest.mark.slurm
def test_a_job_is_held_until_an_operator_releases_it(job_on_n1, playground):
    """Then it may have every node, those too that it did without before."""
    job = job_on_n1("--mem=100", "--exclude=n2")
    job.hold()
    number = job.release.removeprefix("scontrol release ")
    show = ("squeue", "-h", "-j", number, "-o", "%T|%r")
    held = "PENDING|job requeued in held state\n"
    playground.until(lambda: playground.run(*show) == held, "a job that is held")
    assert "ExcNodeList=(null)" in playground.run("scontrol", "show", "job", number)


@pytest.mark.slurm
@pytest.mark.parametrize("how", ["requeue", "hold"])
def test_what_slurm_has_done_already_is_no_error(job_on_n1, how):
    """Its answer was lost and it is asked again, or a person was faster."""
    job = job_on_n1("--mem=100")
    job.requeue(())
    assert job.state() == ELSEWHERE
    if how == "requeue":
        job.requeue(())
    else:
        job.hold()


@pytest.mark.slurm
def test_a_job_that_slurm_does_not_know(playground, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(playground.conf))
    monkeypatch.setenv("SLURM_JOB_ID", "999999")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n1")
    with pytest.raises(OSError, match="Invalid job id specified"):
        OnSlurm().requeue(())


@pytest.mark.parametrize(
    "said",
    [
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "slurm_load_jobs error: Zero Bytes were transmitted or received",
        "scontrol: error: slurm_update error: Slurm backup controller in standby mode",
        "slurm_load_jobs error: Protocol authentication error",
        "scontrol: error: If munged is up, restart with --num-threads=10",
        "slurm_load_jobs error: Resource temporarily unavailable",
        "slurm_load_jobs error: Message receive failure",
        "Unexpected message received for job 1",
    ],
)
def test_what_may_pass_is_asked_again(said, tmp_path, monkeypatch):
    """Slurm's words of a controller that is restarted, replaced or under load."""
    once = tmp_path / "once"
    program = tmp_path / "scontrol"
    program.write_text(
        f"#!/bin/sh\n[ -e {once} ] && echo answered && exit\n: > {once}\necho '{said}' >&2; exit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(allocation, "AGAIN_SECONDS", 0.0)
    assert allocation._ask(str(program)) == "answered\n"


@pytest.mark.parametrize(
    "said",
    [
        "Access/permission denied for job 1",
        "slurm_load_jobs error: Invalid job id specified",
        "Requested operation is presently disabled for job 1",
        "Job is pending execution for job 1",
        "Only batch jobs are accepted or processed for job 1",
    ],
)
def test_what_will_not_pass_is_told(said, tmp_path):
    program = tmp_path / "scontrol"
    program.write_text(f"#!/bin/sh\necho '{said}' >&2; exit 1\n")
    program.chmod(0o755)
    with pytest.raises(OSError, match=said):
        allocation._ask(str(program))
