"""`Job`: what one submitted job does. Small, so that submitit can pickle, run and requeue it."""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import submitit

from slurm.ledger import CANCELLED, FAILED, OUTCOME_SUFFIX, STOPPED


@dataclass(frozen=True)
class Job:
    """Runs of one study, one after another in this process. Its variables, the number of threads
    above all, were set by the shell that started it: before torch is imported."""

    study: str
    data: str
    results: str
    run_ids: tuple[str, ...]

    def __call__(self) -> int:
        """The exit status of `launch run`; also left as a file for those who watch."""
        if os.environ.get("SUBMITIT_EXECUTOR") == "local":
            os.setsid()  # Ctrl-C at the terminal of `submit` is for `submit`, which passes it on
        # SIGUSR2 (out of time) keeps submitit's handler, which requeues this job; `launch` calls it
        # when its checkpoint is on disk.
        for number in (signal.SIGTERM, signal.SIGINT):
            # Until `launch` takes over there is nothing to save. Submitit's would ignore SIGTERM.
            signal.signal(number, signal.default_int_handler)
        try:
            status = STOPPED if _folder(CANCELLED).exists() else self._run()
        except KeyboardInterrupt:
            status = STOPPED
        except Exception:
            _leave_outcome(FAILED)  # the log says why
            raise
        _leave_outcome(status)
        return status

    def _run(self) -> int:
        from launch.__main__ import main  # imports torch when it runs

        return main(self.command)

    @property
    def command(self) -> list[str]:
        """The arguments of `python -m launch`."""
        where = ["run", self.study, "--data", self.data, "--results", self.results]
        return [*where, *(word for run_id in self.run_ids for word in ("--run", run_id))]

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What to run after a requeue: the same; finished runs are skipped, the rest resumes."""
        return submitit.helpers.DelayedSubmission(self)


def _leave_outcome(status: int) -> None:
    path = _folder(f"{submitit.JobEnvironment().job_id}{OUTCOME_SUFFIX}")
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"status": status}))
    temporary.replace(path)


def _folder(name: str) -> Path:
    """A file in the folder of this job's submission."""
    return Path(os.environ["SUBMITIT_FOLDER"]) / name
