"""What `submit --evaluate` takes, and what it cannot do, told before anything is trained."""

from collections.abc import Sequence
from pathlib import Path

from data_prep.manifest import load_manifest
from launch.config import RunConfig
from launch.devices import GPUS, Device
from launch.plan import kept_checkpoints
from megatron_ext.shape import FORWARD_AND_BACKWARD
from slurm.cluster import Cluster
from slurm.prepare import MANIFEST
from slurm.resources import RUN_SECONDS

WEIGHT_BYTES = {"bf16": 2, "fp32": 4}
SPLIT = "valid"  # that `launch evaluate` takes


def refuse_evaluation(
    runs: Sequence[RunConfig],
    cluster: Cluster,
    datasets: Sequence[Path],
    study_file: Path,
    *,
    information: bool,
) -> None:
    """Raise `ValueError` where a dataset is not there, a model has no room, or with `information` no pairs."""
    for path in datasets:
        if not (path / MANIFEST).exists():
            raise ValueError(
                f"--evaluate {path}: no dataset (no {MANIFEST}); wanted the folder of one that is built. Check the "
                "path, or build it first."
            )
        if information:
            from launch.information import direction  # brings torch

            direction(load_manifest(path).domain, runs[0].domain, study_file)
    _refuse_too_large(runs, cluster)


def evaluation_seconds(
    run: RunConfig, gpu: Device, datasets: Sequence[Path], *, information: bool, every: bool
) -> float:
    """On one GPU, at the share of its peak that training is planned with; `every`: all checkpoints that are kept.

    Of the split that `launch evaluate` takes, all rows; a second time, with blanks, for `information`.
    """
    tokens = 0
    for path in datasets:
        manifest = load_manifest(path)
        tokens += manifest.rows(SPLIT) * manifest.seq_length * (2 if information else 1)
    rate = gpu.efficiency * (gpu.bf16 if run.precision == "bf16" else gpu.fp32)
    forward = run.shape.flops_per_token_exact / FORWARD_AND_BACKWARD
    checkpoints = kept_checkpoints(run) if every else 1
    return checkpoints * (RUN_SECONDS * len(datasets) + tokens * forward / rate)


def _refuse_too_large(runs: Sequence[RunConfig], cluster: Cluster) -> None:
    """A job that evaluates has one device, however many the run trained on, and holds a model whole: its weights as
    they are trained with, but no gradients, moments nor activations that are kept."""
    memory = GPUS[cluster.gpu].memory if cluster.gpu else 1e9 * cluster.memory_gb
    largest = max(runs, key=_weights)
    if _weights(largest) > memory:
        where = f"a {cluster.gpu}" if cluster.gpu else f"memory_gb = {cluster.memory_gb:g}"
        raise ValueError(
            f"--evaluate: the weights of {largest.run_id} take {_weights(largest) / 1e9:.3g} GB; wanted at most the "
            f"{memory / 1e9:.3g} GB of {where}, for one device evaluates a whole model. Leave --evaluate out, or "
            "name a cluster file whose devices hold it."
        )


def _weights(run: RunConfig) -> float:
    """Bytes."""
    return WEIGHT_BYTES[run.precision] * run.shape.params_total
