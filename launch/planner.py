"""The strategy of a run on given devices: the fastest one that fits, or why none does. No torch.

What the study's `[parallel]` states is kept; the rest is tried in every combination. Of what fits and
is within `AS_FAST` of the fastest, the simplest is taken: fewer tensor-parallel ranks, nothing computed
again, a lower ZeRO stage.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from launch.activations import Share
from launch.config import Parallel, RunConfig
from launch.devices import GPUS, Device
from launch.memory import Memory, memory_of, saved
from launch.step_time import step_parts
from megatron_ext.shape import ModelShape

AS_FAST = 1.05  # predicted times are not finer than that
MARGIN = 1.1  # predictions are to be within 10% of what is measured
MOST_GPUS = 2**14  # how far a refusal looks for a number that would do
MOST_ROWS = 4096  # of a micro-batch that is tried
GPUS_PER_NODE = 8
DECISIVE = {"tensor_model_parallel_size", "zero_stage", "train_micro_batch_size_per_gpu"}
GB = 1e9


@dataclass(frozen=True)
class Plan:
    """A strategy and what is predicted for it. Bytes on one device, and on its host for offloading."""

    parallel: Parallel  # every field set
    gpus: int
    data_parallel: int
    micro_batches: int
    memory: Memory
    bytes: float
    seconds: float  # of one step

    def device_hours(self, steps: int) -> float:
        return self.seconds * steps * self.gpus / 3600

    @property
    def _complexity(self) -> tuple[float, ...]:
        parallel = self.parallel
        return (
            parallel.offload_optimizer,
            parallel.tensor_model_parallel_size,
            parallel.activation_checkpointing,
            parallel.zero_stage,
            self.micro_batches,
        )


def choose(run: RunConfig, device: Device, gpus: int, gpus_per_node: int = GPUS_PER_NODE) -> Plan:
    """The cheapest strategy that fits `gpus` devices.

    Raises `ValueError` where none does: no way to share the rows and heads among so many, or too
    little memory; with the smallest need, and what would do.
    """
    job = _Job(
        run.shape,
        run.precision,
        run.batch.train_batch_size,
        run.parallel,
        frozenset(run.parallel.model_fields_set),
        gpus_per_node,
        run.checkpoint.overlap,
        run.model.dropout > 0,
    )
    fitting, least = _search(job, device, gpus)
    if fitting:
        return fitting
    if least is None:
        raise ValueError(_cannot_share(run, job, device, gpus))
    raise ValueError(_too_little_memory(run, job, device, least))


def spread(run: RunConfig, device: Device, gpus: int, gpus_per_node: int) -> RunConfig:
    """The run with the strategy that `choose` gives for what its study leaves open.

    A study that states how the model is shared, its ZeRO stage and its micro-batch is taken at its word.
    """
    if run.parallel.model_fields_set >= DECISIVE:
        return run
    plan = choose(run, device, gpus, gpus_per_node)
    return run.model_copy(update={"parallel": plan.parallel})


@dataclass(frozen=True)
class _Job:
    """All of a run that its strategy depends on; runs that differ by seed or length share a search."""

    shape: ModelShape
    precision: str
    rows: int
    asked: Parallel
    stated: frozenset[str]  # of `asked`, by the study
    gpus_per_node: int
    copies: bool  # the state in the host's memory, to save it
    dropout: bool


@lru_cache(maxsize=1024)
def _search(job: _Job, device: Device, gpus: int) -> tuple[Plan | None, Plan | None]:
    """The best plan that fits, and the one of the smallest need; None where there is none."""
    plans = [_predicted(share, job, device, gpus) for share in _shares(job, device, gpus)]
    if not plans:
        return None, None
    least = min(plans, key=lambda plan: (plan.bytes, plan.seconds))
    fitting = [plan for plan in plans if _fits(plan, device)]
    # Offloading waits for the host at every step: only where nothing else fits.
    fitting = [plan for plan in fitting if not plan.parallel.offload_optimizer] or fitting
    if not fitting:
        return None, least
    fastest = min(plan.seconds for plan in fitting)
    as_fast = [plan for plan in fitting if plan.seconds <= AS_FAST * fastest]
    return min(as_fast, key=lambda plan: (plan._complexity, plan.seconds)), least


def _predicted(share: Share, job: _Job, device: Device, gpus: int) -> Plan:
    memory = memory_of(share)
    # A CPU is its own host.
    alive = memory.peak + (0.0 if device.is_gpu else memory.host)
    copy = saved(share) if job.copies and not device.is_gpu else 0.0
    return Plan(
        parallel=share.parallel,
        gpus=gpus,
        data_parallel=share.data_parallel,
        micro_batches=share.micro_batches,
        memory=memory,
        bytes=device.base + device.heap * alive + copy,
        seconds=sum(step_parts(share, device, job.gpus_per_node).values()),
    )


def _fits(plan: Plan, device: Device) -> bool:
    processes = 1 if device.is_gpu else plan.gpus  # they share the machine
    return processes * (device.base + MARGIN * (plan.bytes - device.base)) <= device.memory


# --- what there is to try


def _shares(job: _Job, device: Device, gpus: int) -> Iterator[Share]:
    for ranks in _tensor_parallel(job, gpus):
        data_parallel = gpus // ranks
        if gpus % ranks or job.rows % data_parallel:
            continue
        whole = job.shape.seq_length % ranks == 0
        sequence = _options(job, "sequence_parallel", (ranks > 1 and whole,))[0]
        if sequence and not (ranks > 1 and whole):
            continue
        for values in itertools.product(
            _options(job, "zero_stage", (0, 1, 2, 3)),
            _micro_batches(job, data_parallel),
            _options(job, "activation_checkpointing", (False, True)),
            _options(job, "offload_optimizer", (False, True) if device.is_gpu else (False,)),
        ):
            share = _share(job, device, data_parallel, ranks, bool(sequence), *values)
            if share and _sensible(share, job):
                yield share


def _share(
    job: _Job, device: Device, data_parallel: int, ranks: int, sequence: bool,
    stage: int, micro_batch: int, again: bool, offload: bool,
) -> Share | None:  # fmt: skip
    if offload and stage == 0:
        return None
    parallel = Parallel(
        tensor_model_parallel_size=ranks,
        sequence_parallel=sequence,
        zero_stage=stage,  # type: ignore[arg-type]
        train_micro_batch_size_per_gpu=micro_batch,
        activation_checkpointing=again,
        offload_optimizer=offload,
    )
    return Share(
        shape=job.shape,
        precision=job.precision,
        parallel=parallel,
        micro_batch=micro_batch,
        micro_batches=job.rows // data_parallel // micro_batch,
        data_parallel=data_parallel,
        on_gpu=device.is_gpu,
        dropout=job.dropout,
    )


def _sensible(share: Share, job: _Job) -> bool:
    """Leaves out what nobody would want unless it was asked for."""
    parallel, stated = share.parallel, "zero_stage" in job.stated
    # Without ZeRO bf16 gradients of several micro-batches are added in bf16.
    rounded = share.precision == "bf16" and parallel.zero_stage == 0 and share.micro_batches > 1
    # ZeRO 2 gives the gradients away as they come; the other stages keep them all on the device.
    wasted = parallel.offload_optimizer and parallel.zero_stage != 2
    return stated or not (rounded or wasted)


def _options(job: _Job, name: str, else_these: tuple) -> tuple:
    return (getattr(job.asked, name),) if name in job.stated else else_these


def _tensor_parallel(job: _Job, gpus: int) -> list[int]:
    """Divisors of heads and feed-forward size; within a node, since every layer waits for the sums."""
    most = 1 if job.shape.classes else min(gpus, job.gpus_per_node)  # classifiers are not split
    name = "tensor_model_parallel_size"
    tried = _options(job, name, tuple(range(1, most + 1)))
    heads, width = job.shape.num_attention_heads, job.shape.ffn_hidden_size
    return [each for each in tried if heads % each == 0 and width % each == 0]


def _micro_batches(job: _Job, data_parallel: int) -> list[int]:
    rows = job.rows // data_parallel
    asked = job.asked.train_micro_batch_size_per_gpu
    tried = [asked] if asked else range(1, min(rows, MOST_ROWS) + 1)
    return [each for each in tried if rows % each == 0]


# --- refusals


def _cannot_share(run: RunConfig, job: _Job, device: Device, gpus: int) -> str:
    would = [n for n in _numbers() if _search(job, device, n)[1]]
    nearest = min(would, key=lambda n: (abs(n - gpus), n), default=None)
    advice = (
        "Change batch.train_batch_size or the study's [parallel]"
        if nearest is None
        else f"--gpus {nearest} would do"
    )
    return (
        f"{run.run_id}: --gpus {gpus}: no way to share batch.train_batch_size = {job.rows} rows and "
        f"{job.shape.num_attention_heads} attention heads among so many; wanted TP x data-parallel "
        f"ranks = {gpus}, where TP (at most {job.gpus_per_node}, one node) divides the heads and "
        f"ffn_hidden_size = {job.shape.ffn_hidden_size}, and ranks x micro-batch divides the rows. "
        f"{advice}."
    )


def _too_little_memory(run: RunConfig, job: _Job, device: Device, least: Plan) -> str:
    processes = 1 if device.is_gpu else least.gpus
    need = processes * (device.base + MARGIN * (least.bytes - device.base))
    return (
        f"{run.run_id}: does not fit on {least.gpus} {device.name}: needs at least {need / GB:.1f} GB of "
        f"each ({described(least)}; {MARGIN - 1:.0%} margin), at the {least.memory.moment}; wanted at "
        f"most {device.memory / GB:.1f} GB. {_what_would_fit(job, device, least.gpus)}."
    )


def _what_would_fit(job: _Job, device: Device, gpus: int) -> str:
    for other in [device, *GPUS.values()] if device.is_gpu else GPUS.values():
        for number in [n for n in _numbers() if n >= (gpus if device.is_gpu else 1)]:
            if _search(job, other, number)[0]:
                return f"--device {other.name} --gpus {number} would do"
    return "Take a smaller shape, or leave [parallel] of the study open"


def _numbers() -> list[int]:
    return [2**power for power in range(MOST_GPUS.bit_length())]


def described(plan: Plan) -> str:
    """A plan's strategy in a few words, for people."""
    return strategy(plan.parallel)


def strategy(parallel: Parallel) -> str:
    """In a few words, for people."""
    sequence = " with sequence parallelism" if parallel.sequence_parallel else ""
    words = [
        f"TP {parallel.tensor_model_parallel_size}{sequence}",
        f"ZeRO {parallel.zero_stage}",
        f"micro-batch {parallel.train_micro_batch_size_per_gpu}",
    ]
    words += ["activation checkpointing"] if parallel.activation_checkpointing else []
    words += ["offload"] if parallel.offload_optimizer else []
    return ", ".join(words)
