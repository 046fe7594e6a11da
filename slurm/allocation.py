"""What a job has been given, and what it may ask for: by Slurm, or on this machine.

Every question to Slurm's controller is repeated while that does not answer: it may be restarting.
"""

import os
import re
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from slurm import features, queue
from slurm.step import LocalStep, SlurmStep, Step

PATIENCE_SECONDS = 900.0  # for a controller that is down
AGAIN_SECONDS = 2.0
FITTING = "--format=%N %c %m %G %f"  # name, CPUs, MB, GPUs, features of each node
HERE, ELSEWHERE, OUT_OF_TIME, OVER = "running here", "requeued", "out of time", "over"
# Slurm's words where asking again would not help. All else may pass: a controller that is down, restarted, replaced or
# under load, and munge, have many ways to say so ("Unexpected message received" is one).
_FINAL = re.compile(
    r"invalid (?:job|node|partition|host)|denied|disabled|pending execution|batch job|already complet|not supported",
    re.I,
)


class Allocation(ABC):
    """Nodes that this process is the first of."""

    restart = 0  # how often this job was started anew
    can_requeue = False
    nodes: tuple[str, ...]
    ranks: int

    @abstractmethod
    def start(self, words: Sequence[str], log: Path, number: int) -> Step:
        """Start the ranks: `python -m WORDS` for each; `number`: of the attempt."""

    @abstractmethod
    def state(self) -> str:
        """What Slurm means this job to be: HERE, ELSEWHERE (requeued), OUT_OF_TIME, or OVER (cancelled)."""

    def can_do_without(self, exclude: Sequence[str]) -> bool:
        """Whether a requeue without these nodes, and those left out before, can ever start; True if unknown."""
        return True

    @abstractmethod
    def requeue(self, exclude: Sequence[str]) -> None:
        """Have the whole job started anew, without these nodes. Raises `OSError` with Slurm's words."""

    @abstractmethod
    def hold(self) -> None:
        """Have the job started anew when an operator releases it, on any nodes. Raises `OSError` as `requeue`."""

    @property
    def release(self) -> str:
        """What the operator types for that."""
        return ""


class Here(Allocation):
    """This machine."""

    def __init__(self, ranks: int) -> None:
        self.nodes = (socket.gethostname(),)
        self.ranks = ranks

    def start(self, words: Sequence[str], log: Path, number: int) -> Step:
        return LocalStep(words, log, os.getpid() + number, self.ranks)

    def state(self) -> str:
        return HERE

    def requeue(self, exclude: Sequence[str]) -> None:
        raise OSError("there is no Slurm to requeue this job")

    def hold(self) -> None:
        self.requeue(())


class OnSlurm(Allocation):
    """The Slurm job that this process is the batch script of."""

    can_requeue = True

    def __init__(self) -> None:
        self._number = int(os.environ["SLURM_JOB_ID"])
        # One task of an array has the array's own id for its number, which would mean all of them.
        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        self._job = f"{array}_{task}" if array else str(self._number)
        self.ranks = int(os.environ.get("SLURM_NTASKS", "1"))
        self.restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        self.nodes = tuple(
            _ask("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).split()
        )

    def start(self, words: Sequence[str], log: Path, number: int) -> Step:
        return SlurmStep(words, log, self._number + number)

    def state(self) -> str:
        answer = _ask("scontrol", "--oneliner", "show", "job", self._job)
        fields = dict(word.split("=", 1) for word in answer.split() if "=" in word)
        # While it completes a job does not say whether it was requeued; the count does.
        if int(fields.get("Restarts", "0")) > self.restart:
            return ELSEWHERE
        if fields.get("JobState") == "RUNNING":
            return HERE
        return OUT_OF_TIME if fields.get("Reason") == "TimeLimit" else OVER

    def can_do_without(self, exclude: Sequence[str]) -> bool:
        try:
            excluded = {*exclude, *self._excluded()}
            constraint = self._field("Features")
            partition = os.environ.get("SLURM_JOB_PARTITION", "")
            answer = _ask("sinfo", "--noheader", "--Node", f"--partition={partition}", FITTING)
        except OSError:
            return True
        rows = (line.split() for line in answer.splitlines())
        nodes = {node for node, *has in rows if self._fits(constraint, *has)}
        return len(nodes - excluded) >= len(self.nodes)

    def _fits(self, constraint: str, cpus: str, memory_mb: str, gpus: str, has: str) -> bool:
        """Whether a node has what this job asks of one, up or down."""
        variables = os.environ
        tasks = self.ranks // len(self.nodes)
        return (
            int(cpus.rstrip("+")) >= tasks * int(variables.get("SLURM_CPUS_PER_TASK", "1"))
            and int(memory_mb.rstrip("+")) >= int(variables.get("SLURM_MEM_PER_NODE", "0"))
            and self._gpus(gpus) >= int(variables.get("SLURM_GPUS_ON_NODE", "0"))
            and features.fits(constraint, has.split(","))
        )

    def _gpus(self, has: str) -> int:
        """The GPUs of a node; where the job asked for a type, of that."""
        kind, _, number = os.environ.get("SLURM_GPUS_PER_NODE", "").rpartition(":")
        return queue.gpu_types(has).get(kind, 0) if number and kind else queue.gpus_of(has)

    def requeue(self, exclude: Sequence[str]) -> None:
        self._start_anew("requeue")
        if exclude:  # Slurm takes it while the job is completing, not before
            # The job is requeued: who heard of a failure now would take it for over.
            try:
                self._exclude(exclude)
            except OSError as error:
                print(
                    f"job: {', '.join(exclude)} not left out: {error}", file=sys.stderr, flush=True
                )

    def hold(self) -> None:
        self._start_anew("requeuehold")
        # Those that were left out before may be the ones that are repaired.
        _ask("scontrol", "update", f"JobId={self._job}", "ExcNodeList=")

    @property
    def release(self) -> str:
        return f"scontrol release {self._job}"

    def _start_anew(self, how: str) -> None:
        """Once: Slurm refuses it for a job that waits again already, because it, or a person, was faster, or its
        answer was lost and it is asked again."""
        try:
            _ask("scontrol", how, self._job)
        except OSError:
            if self.state() != ELSEWHERE:
                raise

    def _exclude(self, nodes: Sequence[str]) -> None:
        """Leave these nodes out, and those that were left out before."""
        every = ",".join(sorted({*nodes, *self._excluded()}))
        _ask("scontrol", "update", f"JobId={self._job}", f"ExcNodeList={every}")

    def _excluded(self) -> list[str]:
        """The nodes that were left out before."""
        names = self._field("ExcNodeList")
        return _ask("scontrol", "show", "hostnames", names).split() if names else []

    def _field(self, name: str) -> str:
        """What Slurm shows of this job under a name; empty if it has none."""
        shown = _ask("scontrol", "-o", "show", "job", self._job)
        found = re.search(rf"\b{name}=(\S+)", shown)
        return found[1] if found and found[1] != "(null)" else ""


def _ask(*command: str) -> str:
    """What a command of Slurm's prints. Raises `OSError` with its words."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            status, words = done.returncode, (done.stderr or done.stdout).strip()
        except subprocess.TimeoutExpired:
            status, words = 1, "timed out"
        if status == 0:
            return done.stdout
        # A signal for the job reaches this command as well: it is asked again.
        if time.monotonic() > deadline or (status > 0 and _FINAL.search(words)):
            raise OSError(f"{' '.join(command)}: {words}")
        print(f"{' '.join(command)}: {words}: asking again", file=sys.stderr, flush=True)
        time.sleep(AGAIN_SECONDS)
