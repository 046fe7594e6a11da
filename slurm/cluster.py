"""`Cluster`: where jobs run and what each may use, read from a file in `clusters/` or one of yours."""

import difflib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from launch.devices import GPUS
from launch.strict import Strict, read_toml, validate

CLUSTERS = Path(__file__).parent / "clusters"

Name = Annotated[str, Field(min_length=1)]
Options = dict[str, str | int | bool]  # of sbatch
SLURM_ONLY = (
    "partition", "cpu_partition", "cpu_max_minutes", "account", "cpu_account", "qos", "cpu_qos", "constraint",
    "gpu_type", "max_nodes", "tasks_per_node", "container", "sbatch", "cpu_sbatch",
)  # fmt: skip
OURS = (  # what `[sbatch]` may not say again: other keys do, or the jobs and what is read from sbatch depend on it
    "array", "chdir", "clusters", "M", "cpus-per-gpu", "cpus-per-task", "dependency", "error", "gpus", "gpus-per-node",
    "gpus-per-socket", "gpus-per-task", "job-name", "mem", "mem-per-cpu", "mem-per-gpu", "nodes", "ntasks",
    "ntasks-per-gpu", "ntasks-per-node", "open-mode", "output", "parsable", "quiet", "requeue", "no-requeue",
    "signal", "test-only", "time", "tres-per-task", "wait", "wrap", "partition", "account", "qos", "constraint",
)  # fmt: skip
OF_CPU_PARTITION = ("cpu_max_minutes", "cpu_account", "cpu_qos", "cpu_sbatch")


class Cluster(Strict):
    """One kind of job on one cluster; `clusters/example.toml` explains every key."""

    executor: Literal["local", "slurm"]
    cpus_per_task: Annotated[int, Field(ge=1)]  # a task is one process: one GPU, or a CPU's share
    memory_gb: Annotated[float, Field(gt=0)]  # of the host, for one task
    max_minutes: Annotated[int, Field(ge=1)]
    notice_seconds: Annotated[int, Field(ge=1)] = 90
    check_seconds: Annotated[int, Field(ge=1)] = 300
    concurrent_jobs: Annotated[int, Field(ge=1)] | None = None  # local: what the machine holds
    gpus_per_node: Annotated[int, Field(ge=0)] | None = None  # local: the GPUs of the machine
    gpu: Name | None = None
    gpu_type: Name | None = None
    runs_per_gpu: Annotated[int, Field(ge=1)] = 1
    tasks_per_node: Annotated[int, Field(ge=1)] | None = None
    max_nodes: Annotated[int, Field(ge=1)] | None = None
    partition: Name | None = None
    cpu_partition: Name | None = None
    cpu_max_minutes: Annotated[int, Field(ge=1)] | None = None
    account: Name | None = None
    cpu_account: Name | None = None
    qos: Name | None = None
    cpu_qos: Name | None = None
    constraint: Name | None = None
    price_per_gpu_hour: Annotated[float, Field(ge=0)] | None = None
    scratch: Name | None = None
    container: Name | None = None
    setup: list[str] = []
    sbatch: Options = {}
    cpu_sbatch: Options | None = None

    @property
    def devices_per_node(self) -> int:
        """The tasks that one node takes: one for each GPU."""
        return self.gpus_per_node or self.tasks_per_node or 1

    @property
    def nodes(self) -> int:
        return self.max_nodes or 1

    @property
    def cpu_minutes(self) -> int:
        """The longest time of a job in `cpu_partition`."""
        return self.cpu_max_minutes or self.max_minutes

    @model_validator(mode="after")
    def _of_its_executor(self) -> "Cluster":
        given = [name for name in SLURM_ONLY if getattr(self, name)]
        if self.executor == "local" and given:
            raise ValueError(
                f"{', '.join(given)} given with executor = 'local'; wanted these only with "
                "executor = 'slurm'"
            )
        if self.executor == "slurm" and self.concurrent_jobs is None:
            raise ValueError(
                "concurrent_jobs is not given; wanted with executor = 'slurm': the number of jobs "
                "that may run at a time"
            )
        return self

    @model_validator(mode="after")
    def _devices(self) -> "Cluster":
        if self.gpu is not None and self.gpu not in GPUS:
            raise ValueError(
                f"gpu = '{self.gpu}' is not known; wanted one of {', '.join(GPUS)}: the planner "
                "needs its memory and speed. Name the nearest one"
            )
        if self.executor == "slurm" and bool(self.gpus_per_node) != bool(self.gpu):
            raise ValueError(
                f"gpus_per_node = {self.gpus_per_node or 0} and gpu = {self.gpu!r}; wanted both, or "
                f"neither for jobs on the CPU. The names are {', '.join(GPUS)}"
            )
        if self.gpu_type and not self.gpus_per_node:
            raise ValueError(
                f"gpu_type = '{self.gpu_type}' given without gpus_per_node; wanted it only with GPUs. Say how many a "
                "node has, or leave it out"
            )
        if self.gpus_per_node and self.tasks_per_node:
            raise ValueError(
                f"tasks_per_node = {self.tasks_per_node} given with gpus_per_node = "
                f"{self.gpus_per_node}; wanted it only without GPUs: there is one task for each GPU"
            )
        return self

    @model_validator(mode="after")
    def _time_to_save(self) -> "Cluster":
        lonely = [name for name in OF_CPU_PARTITION if getattr(self, name) is not None]
        if lonely and not self.cpu_partition:
            raise ValueError(
                f"{', '.join(lonely)} given without cpu_partition; wanted these only with one: without, every job is "
                "in one partition, and what it asks for is said by the keys without cpu_"
            )
        for key in ("max_minutes", "cpu_max_minutes"):
            minutes = getattr(self, key)
            if minutes and self.notice_seconds >= 60 * minutes:
                raise ValueError(
                    f"notice_seconds = {self.notice_seconds} with {key} = {minutes}; wanted "
                    "less than the whole time of a job: it would be told to stop before it begins"
                )
        return self

    @model_validator(mode="after")
    def _only_options(self) -> "Cluster":
        for table in ("sbatch", "cpu_sbatch"):
            _refuse_options(table, getattr(self, table) or {})
        return self


def _refuse_options(table: str, options: Options) -> None:
    again = [
        name
        for name, value in options.items()
        if name.replace("_", "-") in OURS or (name == "gres" and "gpu" in str(value))
    ]
    if again:
        raise ValueError(
            f"[{table}] {', '.join(again)}; wanted there only what no other key says and no job "
            "depends on. Use the key of that name in this file, if there is one"
        )
    false = [name for name, value in options.items() if value is False]
    if false:
        raise ValueError(
            f"[{table}] {', '.join(false)} = false; wanted true, a number or words: sbatch has no option that "
            "is false. Leave it out"
        )


def cluster_names() -> tuple[str, ...]:
    """The clusters that `--cluster` knows by name."""
    return tuple(sorted(path.stem for path in CLUSTERS.glob("*.toml")))


def load_cluster(name_or_file: str) -> Cluster:
    """A cluster by name (`local`) or by file. Raises `ValueError` listing all that is wrong."""
    path = Path(name_or_file)
    if path.suffix != ".toml" and len(path.parts) == 1:
        names = cluster_names()
        if name_or_file not in names:
            near = difflib.get_close_matches(name_or_file, names, 1, 0.5)
            hint = f"Did you mean '{near[0]}'?" if near else "Name one of them, or a file."
            raise ValueError(
                f"--cluster {name_or_file}: no cluster of that name; wanted one of "
                f"{', '.join(names)}, or a file that ends in .toml. {hint}"
            )
        path = CLUSTERS / f"{name_or_file}.toml"
    return validate(Cluster, read_toml(path, "cluster file"), path)
