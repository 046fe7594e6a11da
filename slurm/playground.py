"""A private Slurm on this machine: to try `--cluster` on, and for the tests.

    python -m slurm.playground            (or: make slurm-playground)

munge, slurmdbd on a MariaDB of its own, slurmctld and one slurmd for each node, all with their own
ports, keys and files in one temporary folder, which is removed at the end. Nothing of a Slurm that the
machine has already is read or touched. Needs Debian's packages slurm-wlm, slurmdbd, munge and
mariadb-server, and an account that may run them: root, or any other that then owns all jobs.
"""

import argparse
import getpass
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from slurm.playground_files import write_files

PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch")
PACKAGES = "slurm-wlm slurmdbd munge mariadb-server"
SYSTEM_PATH = "/usr/sbin:/sbin"  # daemons are there, which is not on everybody's PATH

START_SECONDS = 90.0
HELD_SECONDS = 4.0  # a requeued job
END_SECONDS = 15.0
_PARENT = re.compile(r"^PPid:\s+(\d+)", re.M)
MARK = "SLURM_PLAYGROUND"  # a variable of our daemons and of what they start


def missing_programs() -> list[str]:
    """What the playground needs and this machine has not."""
    return [name for name in PROGRAMS if _which(name) is None]


@dataclass
class Playground:
    """A running private Slurm. Its commands need one variable, SLURM_CONF (`environment`)."""

    folder: Path
    nodes: tuple[str, ...]
    daemons: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def cluster_file(self) -> Path:
        """For `--cluster`."""
        return self.folder / "cluster.toml"

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"SLURM_CONF": str(self.conf)}

    def run(self, *command: str) -> str:
        """What one of Slurm's commands prints. Raises `RuntimeError` with its words if it fails."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def start(self, name: str, *command: str) -> None:
        """Start a daemon in the foreground, its words in NAME.log; it ends with this process."""
        program = _which(command[0])
        assert program is not None, command[0]
        mark = {MARK: f"{self.folder} {name}", "SLURM_CONF": str(self.conf)}
        mark["MYSQL_UNIX_PORT"] = str(self.folder / "database.socket")  # where slurmdbd looks
        with (self.folder / f"{name}.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", program, *command[1:]],
                env=_clean_environment() | mark,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_controller(self) -> None:
        self.start("slurmctld", "slurmctld", "-D", "-f", str(self.conf))

    def start_node(self, node: str) -> None:
        self.start(node, "slurmd", "-D", "-N", node, "-f", str(self.conf))

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a daemon a signal, and wait until it is gone."""
        daemon = self.daemons[name]
        daemon.send_signal(number)
        daemon.wait(END_SECONDS)

    def until(self, holds: Callable[[], bool], what: str, seconds: float | None = None) -> None:
        """Wait for something. Raises `RuntimeError` with the daemons' last words if it does not come."""
        limit = seconds or START_SECONDS
        deadline = time.monotonic() + limit
        while not holds():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what}: not within {limit:.0f} s.\n{self.last_words()}")
            time.sleep(0.1)

    def answers(self, *command: str) -> bool:
        with suppress(RuntimeError, subprocess.TimeoutExpired):
            self.run(*command)
            return True
        return False

    def idle(self) -> bool:
        """Whether every node is up."""
        with suppress(RuntimeError, subprocess.TimeoutExpired):
            states = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%t").split()
            return len(states) == len(self.nodes) and set(states) == {"idle"}
        return False

    def last_words(self) -> str:
        """The ends of all logs, for an error message."""
        ends = {path.name: path.read_text(errors="replace")[-1500:] for path in self._logs()}
        return "\n".join(f"--- {name}\n{text}" for name, text in ends.items())

    def _logs(self) -> list[Path]:
        return sorted(self.folder.glob("*.log"))

    def close(self) -> None:
        """End the jobs, then the daemons, then whatever of them is left."""
        with suppress(RuntimeError, subprocess.TimeoutExpired):
            self.run("scancel", "--user", getpass.getuser(), "--signal=KILL", "--full")
            self.run("scancel", "--user", getpass.getuser())
        for name in reversed(self.daemons):
            self.daemons[name].terminate()
        deadline = time.monotonic() + END_SECONDS
        for daemon in self.daemons.values():
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(max(0.1, deadline - time.monotonic()))
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for daemon in self.daemons.values():
            daemon.wait()

    def crash(self, node: str) -> None:
        """Kill a node's daemon and all that runs there at once, as if its power had failed."""
        for pid in self.processes(node):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.daemons[node].wait()

    def processes(self, node: str | None = None) -> list[int]:
        """Our daemons and every process of a job, those first that would tell of the others' end; or
        those of one node. They are known by their variables, so that none is overlooked."""
        daemons = [f"{MARK}={self.folder} {name}" for name in ([node] if node else self.daemons)]
        conf, there = f"SLURM_CONF={self.conf}", f"SLURMD_NODENAME={node}"
        first, others = set(), []
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            variables = _proc(pid, "environ").split("\0")
            in_job = conf in variables and any(
                each.startswith("SLURM_JOB_ID=") for each in variables
            )
            if any(each in variables for each in daemons):
                first.add(pid)
            elif in_job and (node is None or there in variables):
                others.append(pid)
        parents = {
            int(found[1]) for pid in others if (found := _PARENT.search(_proc(pid, "status")))
        }
        first |= {pid for pid in parents if _proc(pid, "cmdline").startswith("slurmstepd")}
        return [*sorted(first), *(pid for pid in others if pid != os.getpid())]


@contextmanager
def playground(
    nodes: int = 2, *, cpus: int = 4, memory_mb: int = 16_000, accounting: bool = True
) -> Iterator[Playground]:
    """A private Slurm of so many nodes, up and idle; gone without a trace afterwards.

    `cpus` and `memory_mb` are each node's, and may be more than the machine has: nothing is bound to
    cores. Raises `ValueError` where programs are missing, `RuntimeError` where a daemon does not start.
    """
    if missing := missing_programs():
        raise ValueError(
            f"{', '.join(missing)}: not on this machine; wanted Slurm's programs and a database. On "
            f"Debian: apt-get install {PACKAGES}"
        )
    folder = Path(tempfile.mkdtemp(prefix="slurm-playground-"))
    names = tuple(f"n{number}" for number in range(1, nodes + 1))
    opened = Playground(folder, names)
    try:
        write_files(folder, nodes, cpus=cpus, memory_mb=memory_mb, accounting=accounting)
        _start(opened, accounting)
        with _hurried(opened):
            yield opened
    finally:
        opened.close()
        shutil.rmtree(folder, ignore_errors=True)


def _start(of: Playground, accounting: bool) -> None:
    folder = of.folder
    munge = ["--foreground", "--force", f"--socket={folder}/munge.socket"]
    munge += [f"--key-file={folder}/munge.key", f"--pid-file={folder}/munged.pid"]
    munge += [f"--seed-file={folder}/munged.seed", f"--log-file={folder}/munged.log"]
    of.start("munged", "munged", *munge)
    of.until((folder / "munge.socket").exists, "munged")
    if accounting:
        _start_database(of)
        _start_accounting(of)
        of.run("sacctmgr", "-i", "add", "cluster", "playground")
    of.start_controller()
    for node in of.nodes:
        of.start_node(node)
    of.until(of.idle, "slurmctld and its nodes")


def _start_database(of: Playground) -> None:
    """MariaDB without passwords on a socket in our folder, which only this user may enter; no network."""
    where = [f"--datadir={of.folder}/database", f"--user={getpass.getuser()}"]
    # Its own: as it starts it removes everybody's temporary tables there.
    temporary = of.folder / "temporary"
    temporary.mkdir()
    where.append(f"--tmpdir={temporary}")
    install = ["mariadb-install-db", "--no-defaults", *where, "--skip-test-db"]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"mariadb-install-db: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    small = ["--innodb-buffer-pool-size=64M", "--innodb-log-file-size=16M", "--skip-log-bin"]
    small += ["--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900"]
    here = ["--skip-networking", f"--socket={of.folder}/database.socket"]
    here += ["--skip-grant-tables", f"--pid-file={of.folder}/mariadbd.pid"]
    of.start("mariadbd", "mariadbd", "--no-defaults", *where, *here, *small)
    of.until((of.folder / "database.socket").exists, "mariadbd")


def _start_accounting(of: Playground) -> None:
    """slurmdbd ends for good where one of its first questions goes wrong, and on a busy machine a database that has
    just started has answered nothing ("We should have gotten a result: 'No error'", once in some twenty starts): it is
    then started again."""

    def answers() -> bool:
        if "slurmdbd" not in of.daemons or of.daemons["slurmdbd"].poll() is not None:
            of.start("slurmdbd", "slurmdbd", "-D")
        return of.answers("sacctmgr", "-n", "show", "cluster")

    of.until(answers, "slurmdbd")


@contextmanager
def _hurried(of: Playground) -> Iterator[None]:
    """Slurm keeps a requeued job back for two minutes; here for a few seconds.

    Not less: a node that has just revoked the job's credential refuses the next one of the same second, and
    Slurm then ends the job ("Job credential revoked").
    """
    over = threading.Event()
    seen: dict[tuple[str, str], float] = {}

    def hurry() -> None:
        while not over.wait(1.0):
            with suppress(RuntimeError, ValueError, subprocess.TimeoutExpired):
                answer = of.run(
                    "squeue", "-h", "-r", "-t", "PENDING", "-O", "JobID:20,Reason:40,RestartCnt:9"
                )
                for line in answer.splitlines():
                    job, reason, restarts = line.split()[:3]
                    if reason != "BeginTime" or restarts == "0":
                        continue
                    first = seen.setdefault((job, restarts), time.monotonic())
                    if time.monotonic() - first >= HELD_SECONDS:
                        of.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    thread = threading.Thread(target=hurry, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _proc(pid: int, name: str) -> str:
    """A file of a process; empty if it has gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    return ""


def _which(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}")


def _clean_environment() -> dict[str, str]:
    """Ours without what another Slurm may have put there."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("SLURM")}
    return kept | {"PATH": f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"}


def main(argv: list[str] | None = None) -> int:
    """Start it, say how to use it, and stay until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m slurm.playground", description=__doc__)
    parser.add_argument("--nodes", type=int, default=2, metavar="N", help="default 2")
    parser.add_argument("--cpus", type=int, default=4, metavar="N", help="of each node; default 4")
    arguments = parser.parse_args(argv)
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    try:
        with playground(arguments.nodes, cpus=arguments.cpus) as opened:
            print(f"export SLURM_CONF={opened.conf}", flush=True)
            print(f"# then, in that shell: sinfo; ... --cluster {opened.cluster_file}", flush=True)
            print(f"# end: Ctrl-C here, or: kill {os.getpid()}", flush=True)
            over.wait()
    except (ValueError, RuntimeError) as error:
        print(f"playground: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
