"""The private Slurm: real, alone, and gone without a trace."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slurm import playground as module
from slurm.playground import playground as started
from tests.slurm.conftest import ROOT


@pytest.mark.slurm
def test_two_nodes_and_accounting(playground):
    hosts = playground.run(
        "srun", "--nodes=2", "--ntasks-per-node=2", "printenv", "SLURMD_NODENAME"
    ).split()
    assert sorted(hosts) == ["n1", "n1", "n2", "n2"]
    playground.until(
        lambda: "COMPLETED" in playground.run("sacct", "-X", "-n", "-o", "State"), "accounting"
    )


@pytest.mark.slurm
def test_the_database_is_for_its_owner_alone(playground):
    """It asks nobody for a password, so it listens on no port, and its socket is in a folder of ours."""
    assert playground.folder.stat().st_mode & 0o077 == 0
    process = Path("/proc") / str(playground.daemons["mariadbd"].pid)
    words = (process / "cmdline").read_text().split("\0")
    assert (
        f"--tmpdir={playground.folder}/temporary" in words
    )  # or two at once spoil each other's tables
    inodes = set()
    for entry in (process / "fd").iterdir():
        inodes |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(entry)))
    assert inodes, "its own socket"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        rows = [line.split() for line in Path(table).read_text().splitlines()[1:]]
        assert not inodes & {row[9] for row in rows}


@pytest.mark.slurm
def test_another_beside_it_and_nothing_left(playground, monkeypatch):
    """Another Slurm's variables are not followed, and ending one leaves the other alone."""
    monkeypatch.setenv("SLURM_CONF", "/nowhere/slurm.conf")
    with started(nodes=1, accounting=False) as other:
        assert other.idle()
        assert other.conf != playground.conf
        with pytest.raises(RuntimeError, match=r"sacct .*Slurm accounting storage is disabled"):
            other.run("sacct", "-X")
        other.run("sbatch", "--wrap", "sleep 100", "--output", "/dev/null")
        other.until(lambda: other.run("squeue", "-h", "-t", "RUNNING"), "a running job")
        assert other.processes("n1")
    assert other.processes() == []
    assert not other.folder.exists()
    playground.until(playground.idle, "the nodes of the one that goes on")


@pytest.mark.slurm
def test_a_requeued_job_starts_at_once(playground, tmp_path):
    """Slurm itself would wait for two minutes."""
    wrap = 'test -n "$SLURM_RESTART_COUNT" || sleep 100'
    out = str(tmp_path / "log")
    job = playground.run(
        "sbatch", "--parsable", "--requeue", "--wrap", wrap, "--output", out
    ).strip()
    playground.until(lambda: playground.run("squeue", "-h", "-t", "RUNNING"), "a running job")
    playground.run("scontrol", "requeue", job)
    playground.until(lambda: not playground.run("squeue", "-h", "-j", job), "its end")
    assert "Restarts=1" in playground.run("scontrol", "show", "job", job)


@pytest.mark.slurm
def test_as_a_command(playground):
    """It says what to export, and ends with a signal."""
    command = [sys.executable, "-m", "slurm.playground", "--nodes", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        # It gives up by itself where a daemon does not start: then there is an end to read, and no line.
        export, use, end = (process.stdout.readline() for _ in range(3))
        found = re.fullmatch(r"export SLURM_CONF=(\S+)\n", export)
        assert found, export
        assert "--cluster" in use
        assert end == f"# end: Ctrl-C here, or: kill {process.pid}\n"
        conf = Path(found[1])
        answer = subprocess.run(
            ["sinfo", "-h", "-o", "%D %P"],
            env=os.environ | {"SLURM_CONF": str(conf)},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert "1 main*" in answer.stdout
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 0
        assert not conf.parent.exists()
    finally:
        process.kill()  # its daemons end with it
        process.communicate()


def test_missing_programs(monkeypatch, capsys):
    monkeypatch.setattr(module, "SYSTEM_PATH", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    assert module.main(["--nodes", "1"]) == 2
    err = capsys.readouterr().err
    assert "slurmctld" in err
    assert (
        "not on this machine; wanted Slurm's programs and a database. On Debian: apt-get install"
        in err
    )


@pytest.mark.slurm
def test_accounting_that_gives_up_at_once_is_started_again(tmp_path, monkeypatch):
    """As it does where its database has just started and does not answer yet."""
    once, real = tmp_path / "once", module._which("slurmdbd")
    (tmp_path / "slurmdbd").write_text(
        f'#!/bin/sh\ntest -e {once} || {{ : >{once}; exit 1; }}\nexec {real} "$@"\n'
    )
    (tmp_path / "slurmdbd").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with started(nodes=1) as opened:
        assert once.exists()
        assert opened.answers("sacctmgr", "-n", "show", "cluster")


@pytest.mark.slurm
def test_a_daemon_that_does_not_start(monkeypatch):
    """Its last words are in the message."""
    monkeypatch.setattr(module, "START_SECONDS", 3.0)
    monkeypatch.setattr(module.Playground, "start_node", lambda *_: None)
    with (
        pytest.raises(RuntimeError, match="slurmctld and its nodes: not within 3 s") as caught,
        started(nodes=1, accounting=False),
    ):
        pass
    assert "--- slurmctld.log" in str(caught.value)
