"""What a job asks a real Slurm about itself."""

import pytest

from slurm.allocation import OnSlurm


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
