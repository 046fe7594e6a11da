"""The ranks of one attempt: started by srun on the nodes of a job, or as processes of this machine.

srun's own words name the node and the rank of each end that was not well, and Slurm's reason; so the
cause is known without accounting.
"""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slurm.rank import STARTED_BY

WAIT_SECONDS = 60  # for the others once a rank has ended: each may have a word to say
CLEAR_SECONDS = 20.0  # for ranks that outlive their srun
POLL_SECONDS = 0.5
STOP_AGAIN_SECONDS = 10.0  # a rank that is just starting may not have heard
STEP = "SCALING_STEP"  # a variable of the ranks that were started together
PORTS = range(20_000, 30_000)  # below those that the system gives out by itself

TAIL_BYTES = 65_536
_SLURMSTEPD = re.compile(r"(\d+: )?slurmstepd\S*: error: ")
_TASK = re.compile(r"srun: error: (?P<node>\S+): tasks? (?P<ranks>[\d,-]+): (?P<how>.+)")
_EXITED = re.compile(r"Exited with exit code (\d+)")
_OUT_OF_MEMORY = re.compile(r"oom[-_ ]kill|out of memory|exceeded (?:job )?memory limit", re.I)
_SIGNALS = {text: number for number in signal.Signals if (text := signal.strsignal(number))}
_LOST = re.compile(r"srun: error: (?:Node failure on|Task launch for \S+ failed on node)", re.I)
_UNSTARTED = re.compile(
    r"srun: (?:fatal: |error: (?:Unable to|Only allocated|Invalid|.*launch failed|timeout waiting for task launch))",
    re.I,
)


@dataclass(frozen=True)
class End:
    """Ranks that did not end with status 0."""

    node: str
    ranks: str  # "0", "1-3"
    status: int  # minus the signal that killed them

    @property
    def words(self) -> str:
        how = f"exit status {self.status}"
        if self.status < 0:
            how = f"killed by {signal.Signals(-self.status).name}"
        return f"rank {self.ranks} on {self.node}: {how}"


@dataclass(frozen=True)
class Ended:
    """How the ranks of an attempt ended, the first of them first."""

    status: int  # of all together: 0 only if each ended well
    ends: tuple[End, ...] = ()
    out_of_memory: str = ""  # who said so
    lost: str = ""  # Slurm's words about a node
    unstarted: str = ""  # its words about ranks that it could not start, and no node is to blame
    said: str = ""  # srun's last line
    timed_out: bool = False  # killed by us, as they took too long


class Step(ABC):
    """Ranks that were started together."""

    @abstractmethod
    def poll(self) -> Ended | None:
        """None while they work."""

    @abstractmethod
    def stop(self) -> None:
        """Ask every rank to save at its next step and end."""

    @abstractmethod
    def kill(self) -> None:
        """End every rank now."""

    def wait(
        self, stop: Callable[[], bool], kill: Callable[[], bool], seconds: float = float("inf")
    ) -> Ended:
        """Until they have ended; `stop` and `kill` are asked all the time. After `seconds` they are killed."""
        asked, deadline = -STOP_AGAIN_SECONDS, time.monotonic() + seconds
        timed_out = False
        while (ended := self.poll()) is None:
            now = time.monotonic()
            timed_out = timed_out or now > deadline
            if timed_out or kill():
                self.kill()
            elif now - asked >= STOP_AGAIN_SECONDS and stop():
                self.stop()
                asked = now
            time.sleep(POLL_SECONDS)
        return replace(ended, timed_out=timed_out)


class SlurmStep(Step):
    """By srun, within the job that this process is the batch script of."""

    def __init__(self, words: Sequence[str], log: Path, seed: int) -> None:
        self._log = log
        # Not the job's id: another Slurm may have the same on this machine.
        self._mark = f"{log} {os.environ.get('SLURM_RESTART_COUNT', '0')}"
        environment = os.environ | rendezvous(seed) | {STEP: self._mark}
        # --gpu-bind: each rank sees all GPUs of its node and takes the one of its LOCAL_RANK.
        srun = ["srun", "--kill-on-bad-exit=0", f"--wait={WAIT_SECONDS}", "--distribution=block"]
        srun += [f"--output={log}", "--open-mode=append", "--gpu-bind=none", "--overlap"]
        srun.append("--export=ALL")  # also where sbatch was given less
        if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):
            srun.append(f"--cpus-per-task={cpus}")  # srun has not inherited it since Slurm 22.05
        if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
            srun.append("--label")
        self._process = subprocess.Popen(
            [*srun, *python(), *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._killing = False

    def poll(self) -> Ended | None:
        status = self._process.poll()
        if status is None:
            # The others can only wait for one that a signal ended: they have nothing more to say.
            if not self._killing and any(end.status < 0 for end in ends_of(self._said)):
                self.kill()
            return None
        self._reader.join(5.0)
        self._clear()
        return ended(status, [*self._said, *slurm_lines(self._log)])

    def stop(self) -> None:
        self._process.send_signal(signal.SIGUSR2)  # which srun passes on to every rank

    def kill(self) -> None:
        self._killing = True
        self._process.terminate()  # srun then has the ranks killed
        self._signal(signal.SIGKILL)

    def _clear(self) -> None:
        """srun may end before the ranks, when Slurm believes the node dead: they may save, and then end.

        Those of this node: rank 0 is one of them, and without it the others end by themselves.
        """
        deadline = time.monotonic() + CLEAR_SECONDS
        while self._signal(signal.SIGTERM) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> bool:
        """To the ranks of this node, whether slurmd lives or not; whether there were any."""
        pids = [pid for pid in _marked(f"{STEP}={self._mark}") if pid != self._process.pid]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return bool(pids)

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._said.append(line.rstrip("\n"))
            print(line, end="", file=sys.stderr, flush=True)


class LocalStep(Step):
    """As processes of this machine."""

    def __init__(self, words: Sequence[str], log: Path, seed: int, ranks: int) -> None:
        self._first_end: float | None = None
        self._order: list[int] = []  # ranks, as they ended
        self.processes = []
        foreign = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
        kept = {name: text for name, text in os.environ.items() if name not in foreign}
        kept[STARTED_BY] = str(os.getpid())
        if ranks > 1:
            kept |= rendezvous(seed) | {"MASTER_ADDR": "127.0.0.1"}
            kept |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
        with log.open("ab") as file:
            for rank in range(ranks):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
                self.processes.append(
                    subprocess.Popen(
                        [*python(), *words],
                        env=kept | own,
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=file,
                    )
                )

    def poll(self) -> Ended | None:
        for rank, process in enumerate(self.processes):
            if process.poll() is not None and rank not in self._order:
                self._order.append(rank)
        statuses = {rank: self.processes[rank].returncode for rank in self._order}
        if len(statuses) < len(self.processes):
            self._hurry(statuses)
            return None
        host = socket.gethostname()
        ends = tuple(End(host, str(rank), statuses[rank]) for rank in self._order if statuses[rank])
        return Ended(ends[0].status if ends else 0, ends)

    def stop(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGUSR2)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()

    def _hurry(self, statuses: dict[int, int]) -> None:
        """What srun does: wait so long for the others of one that has ended."""
        if statuses and self._first_end is None:
            self._first_end = time.monotonic()
        waited = time.monotonic() - self._first_end if self._first_end else 0.0
        if waited > WAIT_SECONDS or any(status < 0 for status in statuses.values()):
            self.kill()


def _marked(variable: str) -> Iterator[int]:
    """The processes of this machine that were started with this variable."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if variable.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)


def python() -> list[str]:
    """The Python of the ranks: in the container and by the name that the cluster file gives, if any."""
    container = shlex.split(os.environ.get("SCALING_CONTAINER", ""))
    return [*container, os.environ.get("SCALING_PYTHON") or sys.executable, "-m"]


def rendezvous(seed: int) -> dict[str, str]:
    """Where the ranks meet: on this node, which is the first of the job, at a port from the job's id.

    If somebody has that port, the next free one.
    """
    for number in range(len(PORTS)):
        port = PORTS[(seed * 7 + number) % len(PORTS)]
        with socket.socket() as tried:
            try:
                tried.bind(("", port))
            except OSError:
                continue
        return {"MASTER_ADDR": socket.gethostname(), "MASTER_PORT": str(port)}
    raise OSError(f"no free port between {PORTS.start} and {PORTS.stop} on {socket.gethostname()}")


def ended(status: int, said: Sequence[str]) -> Ended:
    """From srun's exit status and its words."""
    memory = next((line for line in said if _OUT_OF_MEMORY.search(line)), "")
    lost = next((line for line in said if _LOST.match(line)), "")
    unstarted = next((line for line in said if _UNSTARTED.match(line)), "")
    last = next((line for line in reversed(said) if line.startswith("srun: ")), "")
    return Ended(status, tuple(ends_of(said)), memory, lost, "" if lost else unstarted, last)


def slurm_lines(log: Path) -> list[str]:
    """What Slurm has written among the last words of the ranks: of memory it speaks there alone."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(-min(TAIL_BYTES, log.stat().st_size), os.SEEK_END)
        lines = file.read().decode(errors="replace").splitlines()
        return [line for line in lines if _SLURMSTEPD.match(line)]
    return []


def ends_of(said: Sequence[str]) -> list[End]:
    """The ranks that srun says did not end well; one that ran out of memory counts as killed."""
    found = []
    for line in list(said):
        if match := _TASK.match(line):
            how = match["how"].removesuffix(" (core dumped)")
            exited = _EXITED.match(how)
            status = int(exited[1]) if exited else -_SIGNALS.get(how, signal.SIGKILL)
            found.append(End(match["node"], match["ranks"], status))
    return found
