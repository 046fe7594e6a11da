"""`Cluster`: where jobs run and what each may use, read from a file in `clusters/` or one of yours."""

import difflib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from launch.strict import Strict, read_toml, validate

CLUSTERS = Path(__file__).parent / "clusters"

Name = Annotated[str, Field(min_length=1)]
SLURM_ONLY = ("partition", "account", "qos", "sbatch")


class Cluster(Strict):
    """One kind of job on one cluster; `clusters/example.toml` explains every key."""

    executor: Literal["local", "slurm"]
    cpus_per_task: Annotated[int, Field(ge=1)]
    memory_gb: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    max_minutes: Annotated[int, Field(ge=1)]
    concurrent_jobs: Annotated[int, Field(ge=1)] | None = None  # local: what the machine holds
    gpus_per_node: Annotated[int, Field(ge=0)] | None = None  # local: the GPUs of the machine
    partition: Name | None = None
    account: Name | None = None
    qos: Name | None = None
    setup: list[str] = []
    sbatch: dict[str, str | int | bool] = {}

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
