"""`submit --dry-run`: the jobs as a table with what each takes, and what sbatch would get."""

import io
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from launch.plan import disk_bytes
from slurm import later, prepare, queue
from slurm.alive import Live
from slurm.freeze import CODE, PACKAGES, ROOT
from slurm.launcher import Order, script
from slurm.ledger import JOBS
from slurm.placement import PackedJob
from slurm.resources import JOB_SECONDS, RUN_SECONDS
from slurm.start import waited_for
from slurm.submit import arrays, orders_of, places_taken, refuse_dear
from slurm.target import Target, refuse_beyond_partition

COLUMNS = ("runs", "nodes", "tasks", "GPUs", "minutes", "memory", "GPU-hours", "disk", "cost")
MINUTES = (
    "minutes are predictions; on a CPU, or a GPU that no file names, they only balance the jobs"
)
COUNTED = (
    f"GPU-hours count steps, the evaluations along them, {JOB_SECONDS:g} s for each job and {RUN_SECONDS:g} s for each "
    "run; not what is done again after a restart"
)


def describe(
    of: Target, packed: Sequence[PackedJob], stages: Sequence[str], live: Sequence[Live] = ()
) -> list[str]:
    """Lines for stdout, of training jobs and the stages after them; `live`: jobs of the study that are under way.

    Raises `ValueError` where Slurm or the budget would refuse the jobs.
    """
    refuse_dear(of, packed, stages)
    silent = None
    try:
        refuse_beyond_partition(of.cluster, {job.shape for job in packed})
    except OSError as error:
        silent = f"not compared with what Slurm has: {error}"
    lines = [*_table(of, packed), _sums(of, packed, stages), *_stages(of), *_starts(of, packed)]
    if of.cluster.executor == "slurm":
        lines += _scripts(of, packed, stages, places_taken(live), silent)
    return lines


def _table(of: Target, packed: Sequence[PackedJob]) -> list[str]:
    table = Table("job", box=None, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for number, job in enumerate(packed, start=1):
        table.add_row(f"{number}", *_row(of, job))
        for run_id in job.run_ids:
            table.add_row(f"    {run_id}")
    text = io.StringIO()
    Console(file=text, width=200, highlight=False).print(table)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def _row(of: Target, job: PackedJob) -> list[str]:
    predicted = max((each.bytes or 0.0 for each in job.runs), default=0.0)
    memory = predicted / 1e9 or of.cluster.memory_gb
    disk = sum(disk_bytes(each.run) for each in job.runs)
    return [
        f"{len(job.runs)}",
        f"{job.shape.nodes}",
        f"{job.shape.ranks}",
        f"{job.shape.gpus}",
        f"{job.seconds / 60:.3g}",
        f"{memory:.3g} GB",
        f"{job.gpu_hours:.3g}",
        f"{disk / 1e9:.3g} GB",
        _cost(of, job.gpu_hours),
    ]


def _sums(of: Target, packed: Sequence[PackedJob], stages: Sequence[str]) -> str:
    evaluation = later.gpu_hours(of, stages)
    hours = sum(job.gpu_hours for job in packed) + evaluation
    disk = code_bytes() + sum(disk_bytes(each.run) for job in packed for each in job.runs)
    there = next(folder for folder in (of.results, *of.results.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    runs = sum(len(job.runs) for job in packed)
    of_these = f" ({evaluation:.3g} of them evaluation)" if evaluation else ""
    words = [f"{runs} runs in {len(packed)} jobs", f"{hours:.3g} GPU-hours{of_these}"]
    words += [f"cost {_cost(of, hours)}"] if of.cluster.price_per_gpu_hour is not None else []
    words += [f"up to {disk / 1e9:.3g} GB of {free / 1e9:.3g} GB that are free", MINUTES]
    words += [COUNTED] if of.cluster.gpus_per_node else []
    if any(job.at_a_time > 1 for job in packed):
        words.append(
            f"{of.cluster.runs_per_gpu} runs that share a GPU are taken to be as fast as alone"
        )
    return "; ".join(words)


def code_bytes() -> int:
    """Of the copy of the code that a submission keeps."""
    return sum(
        path.stat().st_size
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )


def _cost(of: Target, hours: float) -> str:
    price = of.cluster.price_per_gpu_hour
    return "-" if price is None else f"{hours * price:.2f}"


def _stages(of: Target) -> list[str]:
    first = f"build of {of.build.out} in {of.build.parts} parts, check, " if of.build else ""
    last = f", evaluation on {len(of.evaluate)} datasets" if of.evaluate else ""
    last += ", then fits and report" if of.report else ""
    threads = f"OMP_NUM_THREADS={of.cluster.cpus_per_task}"
    return [f"order: {first}training ({threads}){last}"]


def _starts(of: Target, packed: Sequence[PackedJob]) -> list[str]:
    """Of a study that begins with the weights of another: whether that is to be had."""
    runs = [each.run for job in packed for each in job.runs]
    try:
        found = waited_for(of.results, runs, of.cluster.executor)
    except (ValueError, OSError) as error:
        return [f"cannot be submitted yet: {error}"]
    return [f"training waits for {each.name}, whose weights it starts from" for each in found]


def _scripts(
    of: Target,
    packed: Sequence[PackedJob],
    stages: Sequence[str],
    taken: Sequence[str],
    silent: str | None,
) -> list[str]:
    """What sbatch would get. The ids of what a job comes after are not known yet: they are told in words."""
    lines = [silent] if silent else []
    if packed and taken:
        lines.append(
            f"{len(taken)} of concurrent_jobs = {of.cluster.concurrent_jobs} are taken by jobs that are under way "
            f"({', '.join(dict.fromkeys(taken))})"
        )
    groups = arrays(packed, queue.LONGEST_ARRAY if silent else queue.longest_array())
    submitted = enumerate(_orders(of, groups, stages, taken), start=1)
    for number, (what, folder, order, tasks) in submitted:
        text = script(f"{folder.name}-KEY", folder / JOBS / "KEY", order, tasks)
        lines += ["", f"--- sbatch {number}: {what} ---", text.rstrip()]
        if silent is None:
            lines.append(f"--- sbatch --test-only: {queue.would_start(text)}")
    return lines


def _orders(
    of: Target, groups: Sequence[Sequence[PackedJob]], stages: Sequence[str], taken: Sequence[str]
) -> Iterator[tuple[str, Path, Order, int]]:
    """Each submission in turn: what it is, the folder that keeps it, what it asks for, and how many jobs it has."""
    code = of.folder / CODE / "KEY"
    if of.build and groups:
        parts, check = prepare.orders(of.cluster, of.build.out / CODE / "KEY")
        yield f"{of.build.parts} parts of the data", of.build.out, parts, of.build.parts
        yield "their check, after them", of.build.out, check, 1
    free = (of.cluster.concurrent_jobs or 1) - len(taken)
    orders = orders_of(of, groups, code, len(taken))
    for index, (group, order) in enumerate(zip(groups, orders, strict=True)):
        after = ", if the check went well" if of.build else ""
        after += ", when an array that has its place has ended" if index >= free else ""
        yield f"training, {len(group)} jobs{after}", of.folder, order, len(group)
    for order, tasks in later.orders(of, stages, code):
        yield f"{order.stage}, {tasks} jobs, after all that is above", of.folder, order, tasks
