"""A study of 500 runs on Slurm: our own time, and how often sbatch is called.

    python -m benchmarks.slurm_submit                # also trains 500 runs: about six minutes of two cores
    python -m benchmarks.slurm_submit --only-wait    # without that: seconds

Starts a private Slurm (slurm.playground) and measures three things:
1. jobs that wait: its partition starts nothing; 500 runs of 50 shapes are submitted, asked for, submitted again
   (nothing may be started), and cancelled;
2. jobs that run: 500 runs of one or two steps are submitted, Slurm starts all of their jobs, which train every run as
   any job does and make the report; then their status, and another submit, which finds nothing to do;
3. the first study planned for a cluster with GPUs, as `--dry-run` does: there the planner searches.

Prints a table. `own` is processor time of this process alone, without Slurm's commands; bars: 5 s to
submit or plan with at most 20 calls of sbatch, 2 s for the status.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from slurm.__main__ import main as slurm
from slurm.playground import Playground, playground

SHAPES, BUDGETS, SEEDS = 50, "[1e9, 2e9, 4e9, 8e9, 1.6e10]", "[0, 1]"
STUDY = f"""
name = "large"
question = "How long does it take to submit?"
domain = "mathematics"
seeds = {SEEDS}
budget.tokens = {BUDGETS}
optimizer.learning_rate = "henighan"
"""
# 10 widths x 2 budgets x 25 seeds. A step has 4 x 512 tokens.
TRIVIAL = f"""
name = "trivial"
question = "What do 500 jobs' worth of runs take that hardly train?"
domain = "mathematics"
precision = "fp32"
seeds = {list(range(25))}
budget.tokens = [2048, 4096]
batch.train_batch_size = 4
optimizer.learning_rate = 0.003
evaluation.rows = 4
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
PATIENCE = 3600.0  # seconds for 500 trivial runs


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slurm_submit", description=__doc__)
    parser.add_argument("--only-wait", action="store_true", help="train nothing")
    only_wait = parser.parse_args(argv).only_wait
    with tempfile.TemporaryDirectory() as name, playground() as private:
        folder = Path(name)
        data = _dataset(folder)
        os.environ.update(private.environment)
        calls = _count_sbatch(folder)
        print(f"{'what':28} {'own s':>7} {'wall s':>7} {'sbatch':>7}", flush=True)
        study = folder / "large.toml"
        rungs = (RUNG.format(2 + index // 4, 64 * (1 + index)) for index in range(SHAPES))
        study.write_text(STUDY + "".join(rungs))
        of = [str(study), "--results", str(folder / "results")]
        submit = ["submit", *of, "--data", str(data), "--cluster"]
        _jobs_that_wait(private, of, submit, calls)
        if not only_wait:
            _jobs_that_run(private, folder, data, calls)
        del os.environ["SLURM_CONF"]  # which has no GPUs: the plan is then not compared with it
        gpus = folder / "gpus.toml"
        gpus.write_text(GPU_CLUSTER)
        _row("plan for GPUs, --dry-run", [*submit, str(gpus), "--dry-run"], calls)


def _jobs_that_wait(private: Playground, of: list[str], submit: list[str], calls: Path) -> None:
    partition = ("scontrol", "update", "PartitionName=main")
    private.run(*partition, "State=DOWN")  # takes jobs, starts none
    for what, words in (
        ("submit", [*submit, str(private.cluster_file)]),
        ("status, all waiting", ["status", *of]),
        ("submit again", [*submit, str(private.cluster_file)]),
        ("cancel", ["cancel", *of]),
    ):
        _row(what, words, calls)
    private.run(*partition, "State=UP")


def _jobs_that_run(private: Playground, folder: Path, data: Path, calls: Path) -> None:
    """Raises `RuntimeError` with the status where not every run is finished in the end."""
    study, cluster = folder / "trivial.toml", folder / "cluster.toml"
    study.write_text(TRIVIAL + "".join(RUNG.format(1, 16 + 8 * index) for index in range(10)))
    text = private.cluster_file.read_text()
    cluster.write_text(text.replace("concurrent_jobs = 2", "concurrent_jobs = 4"))
    of = [str(study), "--results", str(folder / "results")]
    submit = ["submit", *of, "--data", str(data), "--cluster", str(cluster)]
    _row("submit, to be trained", submit, calls)
    began = time.monotonic()
    private.until(
        lambda: not private.run("squeue", "-h", "-o", "%i").strip(), "the end of all jobs", PATIENCE
    )
    print(f"{'  until all jobs are over':28} {'':7} {time.monotonic() - began:7.0f}", flush=True)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        slurm(["status", *of, "--json"])
    status = json.loads(said.getvalue())
    states = Counter(run["state"] for run in status["runs"])
    stages = {stage["stage"]: stage["state"] for stage in status["stages"]}
    print(f"  {dict(states)}, {stages}", flush=True)
    if states != {"finished": 500} or stages != {"report": "finished"}:
        raise RuntimeError(said.getvalue())
    _row("status, all finished", ["status", *of], calls)
    _row("submit, nothing to do", submit, calls)


def _row(what: str, words: list[str], calls: Path) -> None:
    calls.write_text("")
    own, wall = time.process_time(), time.monotonic()
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = slurm(words)
    own, wall = time.process_time() - own, time.monotonic() - wall
    number = len(calls.read_text().splitlines())
    end = "" if status == 0 else said.getvalue()
    print(f"{what:28} {own:7.2f} {wall:7.2f} {number:7}{end}", flush=True)


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
    main()
