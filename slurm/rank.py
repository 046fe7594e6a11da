"""One rank of a job: what srun starts once for each device, and a local job for each process.

python -m slurm.rank SUBMISSION DATA RESULTS RUN_ID...
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

from launch.console import sentence
from slurm.freeze import frozen_runs

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
PR_SET_PDEATHSIG = 1
STARTED_BY = "SCALING_STARTED_BY"  # process id, of a local job
LOST = 4  # exit status of `launch run`: a hang or a lost rank
BAD_INPUT = 2  # the exit status of every command of ours


def main(argv: list[str]) -> int:
    """Train the runs, with the other ranks; the exit status of `launch run`."""
    submission, data, results, at_a_time, *run_ids = argv
    start_rank()
    try:
        runs = frozen_runs(Path(submission), run_ids)
        if int(at_a_time) > 1:
            from launch.packing import run_packed

            return run_packed(runs, Path(data), Path(results), int(at_a_time))
        from launch.run import run_all  # torch and DeepSpeed: only now

        return run_all(runs, Path(data), Path(results))
    except (ValueError, OSError) as error:
        print(f"job: {sentence(error)}", file=sys.stderr, flush=True)
        return BAD_INPUT


def start_rank() -> None:
    """Tell torch who we are, in torchrun's words, and end with whoever started us."""
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        os.environ["RANK"] = os.environ["SLURM_PROCID"]
        os.environ["WORLD_SIZE"] = os.environ["SLURM_STEP_NUM_TASKS"]
        os.environ["LOCAL_RANK"] = os.environ["SLURM_LOCALID"]
    # Until `launch` takes over there is nothing to save: a signal ends us, even inside of C++.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.environ.get(STARTED_BY, str(os.getppid())) != str(os.getppid()):
        os._exit(LOST)  # it ended before we asked to be told


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
