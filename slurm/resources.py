"""How many devices each run gets, and its strategy on them: the planner's choice within a cluster file."""

import math
from dataclasses import dataclass

from launch.activations import Share
from launch.config import RunConfig
from launch.devices import GPUS
from launch.memory import saved
from launch.planner import Plan, choose
from megatron_ext.shape import FORWARD_AND_BACKWARD
from slurm.cluster import Cluster

# Seconds of a run on a CPU ~ steps x (overhead + overhead per layer) + FLOPs / rate. Measured on one
# thread with 1,920 tokens a step, N from 768 to 1.2e6: within 16%. It balances jobs; no bill hangs on it.
SECONDS_PER_STEP = 0.004
SECONDS_PER_STEP_AND_LAYER = 0.0125
FLOPS_PER_SECOND = 9e10

# What is paid beside the steps (docs/slurm.md, "What the numbers count"). Measured on a CPU: 12 s of CPU time for the
# processes of a job to start, 0.2 s for each run. The rest is assumed: shared file system, GPU's context, checkpoints.
JOB_SECONDS = 20.0  # before the first step of a job: imports, the check of its nodes
RUN_SECONDS = 2.0  # of a run: its model, its first and last checkpoint

DEAREST = 2.0  # more GPUs may cost so many times the GPU-hours of the cheapest number


@dataclass(frozen=True, order=True)
class Shape:
    """What one job asks for. A task is one process; on a GPU cluster it has one GPU."""

    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int = 0

    @property
    def ranks(self) -> int:
        return self.nodes * self.tasks_per_node

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class Assigned:
    """A run with its strategy filled in, and what it is expected to take."""

    run: RunConfig
    shape: Shape
    seconds: float
    bytes: float | None  # on one device, predicted; None on a CPU

    @property
    def gpu_hours(self) -> float:
        """Of this run alone; `JOB_SECONDS` are its job's."""
        return self.seconds * self.shape.gpus / 3600


def assign(run: RunConfig, cluster: Cluster, ranks: int | None = None, saved: int = 0) -> Assigned:
    """`run`, `saved` steps of which are in a checkpoint, on `ranks` devices, or on as many as are best.

    They are chosen for the whole run, so that it goes on as it began. Best is the fewest GPUs on which it fits and
    ends within `max_minutes`; where none does, the most that cost at most `DEAREST` times the GPU-hours of the
    cheapest. Raises `ValueError` where nothing fits.
    """
    _refuse_too_many(ranks, cluster)
    if cluster.gpu is None or not cluster.gpus_per_node:
        return _without_planner(run, cluster, ranks, saved)
    plan = _plan(run, cluster, ranks)
    done = steps_done(run, saved)
    steps = run.train_steps - done + evaluation_in_steps(run, done)
    return Assigned(
        run=run.model_copy(update={"parallel": plan.parallel}),
        shape=_shape(plan.gpus, cluster),
        seconds=plan.seconds * steps + RUN_SECONDS,
        bytes=plan.bytes,
    )


def steps_done(run: RunConfig, saved: int) -> int:
    """The steps that need not be trained: in a checkpoint of its own, or shared with its trunk."""
    return max(saved, run.trunk.step if run.trunk else 0)


def evaluation_in_steps(run: RunConfig, done: int) -> float:
    """What the evaluations along a run take after `done` steps, in optimizer steps: a forward pass is a third of one.

    At the most: a split may have fewer rows.
    """
    times = sum(step > done for step in run.evaluation_steps())
    rows = times * run.evaluation.rows * len(run.evaluation.splits)
    return rows / run.batch.train_batch_size / FORWARD_AND_BACKWARD


def estimated_seconds(run: RunConfig, saved: int = 0) -> float:
    """How long a run takes on a CPU; what is saved, and the part it shares with its trunk, is free."""
    done = steps_done(run, saved) / run.train_steps
    step = SECONDS_PER_STEP + run.shape.num_layers * SECONDS_PER_STEP_AND_LAYER
    whole = run.train_steps * step + run.flops_exact / FLOPS_PER_SECOND
    return whole * (1 - done)


def _plan(run: RunConfig, cluster: Cluster, ranks: int | None) -> Plan:
    numbers = [ranks] if ranks else _numbers(cluster)
    limit = 60 * cluster.max_minutes
    tried: list[Plan] = []
    refusals: list[ValueError] = []
    need = 0.0  # GPUs, if the time shrank as fast as their number grows: fewer cannot do
    for number in numbers:
        if number < min(need, numbers[-1]):
            continue
        try:
            plan = _chosen(run, cluster, number)
        except ValueError as error:
            refusals.append(error)
            continue
        tried.append(plan)
        if plan.seconds * run.train_steps <= limit:
            return plan
        need = plan.device_hours(run.train_steps) * 3600 / limit
    if not tried:
        raise refusals[-1]
    cheapest = min(plan.device_hours(1) for plan in tried)
    payable = (plan for plan in reversed(tried) if plan.device_hours(1) <= DEAREST * cheapest)
    return next(payable)


def _chosen(run: RunConfig, cluster: Cluster, number: int) -> Plan:
    plan = choose(run, GPUS[cluster.gpu or ""], number, cluster.devices_per_node)
    need = _host_bytes(run, plan)
    if need > 1e9 * cluster.memory_gb:
        raise ValueError(
            f"{run.run_id}: on {number} GPUs each task needs {need / 1e9:.3g} GB of the host's memory, for "
            f"what is offloaded or being saved; wanted at most memory_gb = {cluster.memory_gb:g}. Raise "
            "memory_gb or max_nodes in the cluster file, or set checkpoint.overlap = false in the study."
        )
    return plan


def _host_bytes(run: RunConfig, plan: Plan) -> float:
    """Of one task: what offloading keeps there, and the copy of what is saved while training goes on."""
    rows = plan.parallel.train_micro_batch_size_per_gpu or 1
    share = Share(
        run.shape, run.precision, plan.parallel, rows, plan.micro_batches, plan.data_parallel
    )
    return plan.memory.host + (saved(share) if run.checkpoint.overlap else 0.0)


def _numbers(cluster: Cluster) -> list[int]:
    """Of GPUs: powers of two within a node, then powers of two of whole nodes, then all of them."""
    per_node, nodes = cluster.devices_per_node, cluster.nodes
    within = {2**power for power in range(per_node.bit_length())}
    whole = {per_node * 2**power for power in range(nodes.bit_length())} | {per_node * nodes}
    return sorted(
        {n for n in within if n <= per_node} | {n for n in whole if n <= per_node * nodes}
    )


def _without_planner(run: RunConfig, cluster: Cluster, ranks: int | None, saved: int) -> Assigned:
    """On CPUs, and on GPUs that nobody has named: one task, or as many as the study's TP asks for."""
    split = run.parallel.tensor_model_parallel_size
    ranks = ranks or split
    _refuse_too_many(ranks, cluster)
    rows, heads = run.batch.train_batch_size, run.shape.num_attention_heads
    if ranks % split or rows % (ranks // split) or heads % split:
        raise ValueError(
            f"{run.run_id}: {ranks} ranks with tensor_model_parallel_size = {split}; wanted ranks = TP x "
            f"data-parallel ranks, where TP divides {heads} heads and the others divide "
            f"batch.train_batch_size = {rows}. Give another --ranks, or change [parallel] of the study."
        )
    seconds = estimated_seconds(run, saved) / ranks + RUN_SECONDS
    return Assigned(run, _shape(ranks, cluster), seconds, None)


def _shape(ranks: int, cluster: Cluster) -> Shape:
    per_node = ranks if cluster.executor == "local" else min(ranks, cluster.devices_per_node)
    gpus = per_node if cluster.gpus_per_node else 0
    return Shape(math.ceil(ranks / per_node), per_node, gpus)


def _refuse_too_many(ranks: int | None, cluster: Cluster) -> None:
    if ranks is None or cluster.executor == "local":
        return
    per_node, most = cluster.devices_per_node, cluster.devices_per_node * cluster.nodes
    if ranks < 1 or ranks > most or (ranks > per_node and ranks % per_node):
        raise ValueError(
            f"{ranks} ranks for one run; wanted 1 to {most} (max_nodes = {cluster.nodes} x {per_node} on a "
            f"node), and whole nodes beyond {per_node}. Give another --ranks, or correct max_nodes, "
            "gpus_per_node or tasks_per_node of the cluster file."
        )
