"""One rank of a job: what srun starts once for each device, and a local job for each process.

python -m slurm.rank SUBMISSION DATA RESULTS AT_A_TIME RUN_ID...
"""

import os
import sys
from pathlib import Path

from launch.console import sentence
from launch.exits import BAD_INPUT, end_with
from slurm.freeze import frozen_runs

STARTED_BY = "SCALING_STARTED_BY"  # process id, of a local job


def main(argv: list[str]) -> int:
    """Train the runs, with the other ranks; the exit status of `launch run`."""
    submission, data, results, at_a_time, *run_ids = argv
    start_rank()
    try:
        make_scratch()
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
        on_each = os.environ["SLURM_STEP_TASKS_PER_NODE"]  # 4(x2): as many on each node of ours
        os.environ["LOCAL_WORLD_SIZE"] = on_each.partition("(")[0]
    end_with(int(os.environ.get(STARTED_BY, os.getppid())))


def make_scratch() -> None:
    """The folder for temporary files, on this node too: the set-up lines ran on the first one only."""
    if folder := os.environ.get("TMPDIR"):
        os.makedirs(folder, exist_ok=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
