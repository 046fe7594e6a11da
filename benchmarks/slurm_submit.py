"""A study of 500 runs handed to Slurm: our own time, and how often sbatch is called.

    python -m benchmarks.slurm_submit

Starts a private Slurm (slurm.playground) whose partition starts nothing, submits 500 runs of 50
shapes to it for real, asks for their status, submits again (nothing may be started), and cancels. Then
the same study is planned for a cluster with GPUs, as `--dry-run` does: there the planner searches.

Prints a table. `own` is processor time of this process alone, without Slurm's commands; bars: 5 s to
submit or plan with at most 20 calls of sbatch, 2 s for the status.
"""

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from slurm.__main__ import main
from slurm.playground import playground

SHAPES, BUDGETS, SEEDS = 50, "[1e9, 2e9, 4e9, 8e9, 1.6e10]", "[0, 1]"
STUDY = f"""
name = "large"
question = "How long does it take to submit?"
domain = "mathematics"
seeds = {SEEDS}
budget.tokens = {BUDGETS}
optimizer.learning_rate = "henighan"
"""
RUNG = "[[ladder]]\nnum_layers = {}\nhidden_size = {}\n"
GPU_CLUSTER = """
executor = "slurm"
gpus_per_node = 8
gpu = "h100"
max_nodes = 4
cpus_per_task = 8
memory_gb = 64
max_minutes = 1440
concurrent_jobs = 32
"""
COUNTING = '#!/bin/sh\necho called >>{calls}\nexec {real} "$@"\n'


def measure() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as name, playground() as slurm:
        folder = Path(name)
        study, results = folder / "large.toml", folder / "results"
        rungs = (RUNG.format(2 + index // 4, 64 * (1 + index)) for index in range(SHAPES))
        study.write_text(STUDY + "".join(rungs))
        data = _dataset(folder)
        gpus = folder / "gpus.toml"
        gpus.write_text(GPU_CLUSTER)
        os.environ.update(slurm.environment)
        calls = _count_sbatch(folder)
        of = [str(study), "--results", str(results)]
        submit = ["submit", *of, "--data", str(data), "--cluster"]
        print(f"{'what':28} {'own s':>7} {'wall s':>7} {'sbatch':>7}")
        slurm.run(
            "scontrol", "update", "PartitionName=main", "State=DOWN"
        )  # takes jobs, starts none
        for what, words in (
            ("submit", [*submit, str(slurm.cluster_file)]),
            ("status", ["status", *of]),
            ("submit again", [*submit, str(slurm.cluster_file)]),
            ("cancel", ["cancel", *of]),
        ):
            _row(what, words, calls)
        del os.environ["SLURM_CONF"]  # which has no GPUs: the plan is then not compared with it
        _row("plan for GPUs, --dry-run", [*submit, str(gpus), "--dry-run"], calls)


def _row(what: str, words: list[str], calls: Path) -> None:
    calls.write_text("")
    own, wall = time.process_time(), time.monotonic()
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = main(words)
    own, wall = time.process_time() - own, time.monotonic() - wall
    number = len(calls.read_text().splitlines())
    print(f"{what:28} {own:7.2f} {wall:7.2f} {number:7}" + ("" if status == 0 else said.getvalue()))


def _count_sbatch(folder: Path) -> Path:
    """A file that has a line for each call of sbatch from now on."""
    calls, command = folder / "calls", folder / "bin" / "sbatch"
    command.parent.mkdir()
    command.write_text(COUNTING.format(calls=calls, real=shutil.which("sbatch")))
    command.chmod(0o755)
    os.environ["PATH"] = f"{command.parent}:{os.environ['PATH']}"
    return calls


def _dataset(folder: Path) -> Path:
    out = folder / "data"
    words = ["--raw", "generator", "--rows", "300", "--fractions", "0.8,0.1,0.1", "--out", str(out)]
    command = [sys.executable, "-m", "data_prep", "build", "mathematics", *words]
    subprocess.run(command, check=True, capture_output=True)
    return out


if __name__ == "__main__":
    measure()
