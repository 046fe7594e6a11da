"""submitit's launchers: one submission handed to Slurm as an array, or started as a process here.

Both get the same lines before Python: the cluster file's, then the frozen code and the variables.
"""

import contextlib
import math
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slurm import queue
from slurm.alive import live_tasks
from slurm.cluster import Cluster
from slurm.ledger import EVALUATE, TRAIN, Submission
from slurm.resources import Shape
from slurm.traces import CONTROLLER_LOG, SETUP_FAILED


@dataclass(frozen=True)
class Order:
    """What all tasks of a submission share."""

    cluster: Cluster
    stage: str
    shape: Shape
    code: Path
    environment: tuple[tuple[str, str], ...] = ()
    parallelism: int = 1  # tasks of the array that may run at a time
    dependency: str | None = None  # as sbatch wants it

    @property
    def slurm(self) -> str:
        """The name of the Slurm that it is for; empty where it is for none."""
        return queue.cluster_name() if self.cluster.executor == "slurm" else ""


def launch(submission: Submission, order: Order, jobs: Sequence[Callable[[], int]]) -> str:
    """Start the jobs; Slurm's id of them, or a process id. Raises `ValueError` with sbatch's words."""
    if order.cluster.executor == "local":
        return _start_here(submission, order, jobs)
    import submitit  # here, so that a study with nothing to do does not pay for it

    refuse_without_slurm()
    # submitit lets a job requeue itself three times; a long run meets its time limit far more often.
    executor = submitit.SlurmExecutor(submission.folder, max_num_timeout=1_000_000)
    executor.update_parameters(**slurm_parameters(submission.name, order))
    try:
        return executor.submit_array(list(jobs))[0].job_id.split("_")[0]
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        _withdraw(submission)
        raise ValueError(
            f"sbatch refused the jobs: {_words(error)}; wanted values that this cluster knows. Correct "
            "the cluster file."
        ) from None


def script(name: str, folder: Path, order: Order, tasks: int) -> str:
    """The text that sbatch would get, without Slurm being there."""
    from submitit.slurm.slurm import _make_sbatch_string

    command = (
        f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    )
    parameters = slurm_parameters(name, order) | ({"map_count": tasks} if tasks > 1 else {})
    return _make_sbatch_string(command, folder, **parameters)


def refuse_without_slurm() -> None:
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise ValueError(
            "executor = 'slurm' in the cluster file, but sbatch is not on this machine; wanted a "
            "login node of a Slurm cluster. Submit there, or use --cluster local."
        )


def slurm_parameters(name: str, order: Order) -> dict[str, Any]:
    """sbatch's options, in submitit's words."""
    cluster, shape = order.cluster, order.shape
    training = order.stage in (TRAIN, EVALUATE)  # of models: where the GPUs are
    apart = not training and cluster.cpu_partition is not None
    options = cluster.cpu_sbatch if apart and cluster.cpu_sbatch is not None else cluster.sbatch
    # A dependency that can never be met ends the job: `status` then says why, and nothing waits for ever.
    more = {"requeue": True, "kill-on-invalid-dep": "yes", **options}
    chosen = {
        "partition": cluster.cpu_partition if apart else cluster.partition,
        "account": apart and cluster.cpu_account or cluster.account,
        "qos": apart and cluster.cpu_qos or cluster.qos,
        "constraint": cluster.constraint if training else None,
        "gpus_per_node": _gpus(shape.gpus_per_node, cluster.gpu_type),
        "dependency": order.dependency,
    }
    return {name: value for name, value in chosen.items() if value is not None} | {
        "job_name": name,
        "time": cluster.max_minutes if training else cluster.cpu_minutes,
        "nodes": shape.nodes,
        "ntasks_per_node": shape.tasks_per_node,
        "cpus_per_task": cluster.cpus_per_task,
        "mem": f"{math.ceil(1024 * cluster.memory_gb * shape.tasks_per_node)}MB",
        "signal_delay_s": cluster.notice_seconds,
        "array_parallelism": order.parallelism,
        "stderr_to_stdout": True,
        # A training job starts its ranks itself, with srun, so that losing one does not end it.
        "use_srun": order.stage != TRAIN,
        # Neither is inherited: CPUs since Slurm 22.05, the variables where sbatch was given --export.
        "srun_args": [f"--cpus-per-task={cluster.cpus_per_task}", "--export=ALL"],
        "setup": _slurm_setup(order),
        "additional_parameters": more,
    }


def _gpus(number: int, kind: str | None) -> int | str | None:
    """As sbatch wants them."""
    return f"{kind}:{number}" if number and kind else number or None


def _slurm_setup(order: Order) -> list[str]:
    """In bash: it must outlive the signals that are meant for the job, and stop at a line that fails."""
    failed = f"""trap 'echo "{SETUP_FAILED} $BASH_COMMAND" >&2; exit 1' ERR"""
    return ["trap : TERM USR2 INT", failed, *order.cluster.setup, *_ours(order), "trap - ERR"]


def _ours(order: Order) -> list[str]:
    """The frozen code, found before any other; the folder for temporary files; the variables."""
    code, cluster = shlex.quote(str(order.code)), order.cluster
    lines = [f"cd {code}", f'export PYTHONPATH={code}"${{PYTHONPATH:+:$PYTHONPATH}}"']
    if cluster.scratch:
        # In double quotes: $USER and $SLURM_JOB_ID are for the node to fill in.
        lines += [f'export TMPDIR="{cluster.scratch}"', 'mkdir -p "$TMPDIR"']
    if cluster.container:
        lines.append(f"export SCALING_CONTAINER={shlex.quote(cluster.container)}")
    return lines + [f"export {name}={shlex.quote(value)}" for name, value in order.environment]


def _words(error: Exception) -> str:
    """What sbatch said, out of submitit's account of it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("sbatch: error:")]
    return "; ".join(line.removeprefix("sbatch: error: ") for line in said) or " ".join(lines)


def _withdraw(submission: Submission) -> None:
    """Forget a submission that failed; Slurm may have taken it all the same, where its answer was late.

    If that cannot be found out the record stays, and the next `submit` asks again.
    """
    with contextlib.suppress(OSError):
        queue.remove(submission.name)
        shutil.rmtree(submission.folder, ignore_errors=True)


# --- here ---


def _start_here(submission: Submission, order: Order, jobs: Sequence[Callable[[], int]]) -> str:
    import submitit

    executor = submitit.LocalExecutor(submission.folder, max_num_timeout=1_000_000)
    executor.update_parameters(
        timeout_min=order.cluster.max_minutes,
        signal_delay_s=order.cluster.notice_seconds,
        stderr_to_stdout=True,
        setup=_local_setup(submission, order),
    )
    (job,) = executor.submit_array(list(jobs))
    _await_visible(submission)
    return job.job_id


def _local_setup(submission: Submission, order: Order) -> list[str]:
    """A closed terminal or a Ctrl-C there must not end jobs, nor may they keep a pipe open that `submit`
    writes to. submitit joins these lines with && before its own command, for sh."""
    log = shlex.quote(str(submission.folder / CONTROLLER_LOG))
    guarded = [
        f"{{ {line}\n}} || {{ echo {shlex.quote(f'{SETUP_FAILED} {line}')} >&2; exit 1; }}"
        for line in order.cluster.setup
    ]
    folder, python = shlex.quote(str(submission.folder)), shlex.quote(sys.executable)
    instead = f"{python} -m slurm.controller {folder}; exit"  # before submitit's own, which ends after six lives
    return ["trap '' HUP INT", f"exec </dev/null >>{log} 2>&1", *guarded, *_ours(order), instead]


def _await_visible(submission: Submission) -> None:
    """Until the job can be seen: a process that was just started has no command line for a moment
    (seen on a busy machine), and would be taken for dead."""
    for _ in range(200):
        if live_tasks([submission]):
            return
        time.sleep(0.01)
