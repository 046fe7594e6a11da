"""JOB.attempts.json: each start of a job's ranks, kept over requeues.

A job that Slurm starts anew, because it believes a node dead, may meet its predecessor still at work
there. JOB.restart holds how often it was started anew: the one that finds a larger number gives way.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from slurm.ledger import write_whole

ATTEMPTS_SUFFIX = ".attempts.json"


@dataclass(frozen=True)
class Attempt:
    """One start of the ranks. Times in seconds since 1970."""

    number: int
    restart: int  # how often Slurm had started the job anew
    nodes: tuple[str, ...]
    runs: tuple[str, ...]
    began: float
    log: str  # its name, in the submission's folder
    ended: float | None = None
    cause: str | None = None
    message: str = ""
    node: str | None = None  # that the end is laid to
    blamed: str | None = None  # the run that was under way
    saved: int = 0  # steps in the checkpoints of all runs of the job, afterwards
    exclude: tuple[str, ...] = ()  # nodes that the job does without from then on
    held: str = ""  # what an operator has to do before the job goes on
    given_up: dict[str, Sequence[str]] = field(default_factory=dict)  # run id: cause and message


class Attempts:
    """The attempts of one job, oldest first; every change is written at once."""

    def __init__(self, folder: Path, job: str, restart: int) -> None:
        """Raises `ValueError` for a file that is damaged."""
        self._path = folder / f"{job}{ATTEMPTS_SUFFIX}"
        self._job, self._restart = job, restart
        self._newest = folder / f"{job}.restart"
        if not self.superseded:
            write_whole(self._newest, str(restart))
        self.all = read(self._path)

    def begin(self, runs: Sequence[str], nodes: Sequence[str]) -> Attempt:
        number = len(self.all) + 1
        log = f"{self._job}.attempt-{number}.log"
        attempt = Attempt(number, self._restart, tuple(nodes), tuple(runs), time.time(), log)
        self._write([*self.all, attempt])
        return attempt

    def end(self, **fields: object) -> Attempt:
        """Fill in how the last one ended."""
        last = replace(self.all[-1], **{"ended": time.time(), **fields})  # type: ignore[arg-type]
        self._write([*self.all[:-1], last])
        return last

    @property
    def superseded(self) -> bool:
        """Whether Slurm has started this job anew since, elsewhere."""
        try:
            return int(self._newest.read_text()) > self._restart
        except (OSError, ValueError):
            return False

    def _write(self, attempts: list[Attempt]) -> None:
        self.all = attempts
        write_whole(self._path, json.dumps([asdict(attempt) for attempt in attempts], indent=1))


def read(path: Path) -> list[Attempt]:
    """Raises `ValueError` naming a file that is damaged."""
    try:
        rows = json.loads(path.read_text())
        lists = ("nodes", "runs", "exclude")
        return [Attempt(**row | {name: tuple(row[name]) for name in lists}) for row in rows]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}: not the attempts of a job ({error}); wanted what a job wrote there. Remove this file: "
            "its runs go on from their checkpoints."
        ) from None
