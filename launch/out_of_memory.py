"""Memory that is not there: what certainly cannot fit is refused before the first step; what ran out is one sentence.

A prediction is within 10% of what is measured (docs/planning.md), so what needs more than the device has even
with a tenth taken off cannot fit. What needs nearly as much is tried.
"""

import os
import re
from pathlib import Path

import torch
import torch.distributed

from data_prep.domain import domain
from launch.activations import FP32, Share
from launch.config import RunConfig
from launch.devices import machine_memory
from launch.engine import micro_batch_size
from launch.memory import memory_of
from launch.planner import GB, strategy

SURE = 0.9  # of a prediction
HARDLY_ANY = (
    1e-3  # of the tokens, that are surely in the loss where a domain counts only some kinds
)
ADVICE = (
    "Raise parallel.tensor_model_parallel_size or parallel.zero_stage with more ranks, lower "
    "parallel.train_micro_batch_size_per_gpu, or set parallel.activation_checkpointing or "
    "parallel.offload_optimizer; `launch plan` says what fits"
)

_SIZE = r"([\d.]+ (?:bytes|[KMGT]iB))"
_CUDA = re.compile(
    rf"Tried to allocate {_SIZE}.*?total capacity of {_SIZE} of which {_SIZE} is free"
)
_CPU = re.compile(r"can't allocate memory: you tried to allocate (\d+) bytes")


def refuse_what_cannot_fit(run: RunConfig, device: torch.device) -> None:
    """Raise `ValueError`, with the numbers, where this run cannot fit its device or its host."""
    ranks, shared_by = torch.distributed.get_world_size(), run.parallel.tensor_model_parallel_size
    if ranks % shared_by:
        return  # refused where the groups are made, in their words
    on_gpu = device.type == "cuda"
    data_parallel = ranks // shared_by
    micro_batch = micro_batch_size(run, data_parallel, device)
    parallel = run.parallel.model_copy(update={"train_micro_batch_size_per_gpu": micro_batch})
    share = Share(
        run.shape,
        run.precision,
        parallel,
        micro_batch,
        run.batch.train_batch_size // data_parallel // micro_batch,
        data_parallel=data_parallel,
        on_gpu=on_gpu,
        counted=1.0 if all(kind.in_loss for kind in domain(run.domain).kinds) else HARDLY_ANY,
        dropout=run.model.dropout > 0,
    )
    memory = memory_of(share)
    neighbours = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    way = f"{strategy(parallel)}; {ranks} ranks"
    if on_gpu:
        whole = float(torch.cuda.get_device_properties(device).total_memory)
        _refuse(run, SURE * memory.peak, whole, f"of GPU memory, at the {memory.moment} ({way})")
        # The model is drawn on the host, whole parameters at a time, before it is spread.
        start = FP32 * (share.parameters + share.ranks * share.largest_parameter)
        need, what = max(start, SURE * memory.host), "to start, or to offload to"
    else:
        need, what = SURE * (memory.peak + memory.host), f"at the {memory.moment}"
    where = f"of this machine's memory for {neighbours} ranks, {what} ({way})"
    _refuse(run, neighbours * need, machine_memory(), where)


def _refuse(run: RunConfig, need: float, room: float, where: str) -> None:
    if need > room:
        raise ValueError(
            f"{run.run_id}: cannot fit: needs at least {need / GB:.3g} GB {where}; wanted at most the "
            f"{room / GB:.3g} GB that are there. {ADVICE}."
        )


def in_words(error: BaseException, run: RunConfig, device: torch.device) -> MemoryError | None:
    """What to say where `error` means that memory ran out; None for any other."""
    text = str(error)
    there = str(device)
    if isinstance(error, torch.OutOfMemoryError):
        match = _CUDA.search(text.replace("\n", " "))
        wanted = match[1] if match else "more"
        there += f", which has {match[2]}, {match[3]} of them free" if match else ""
    elif isinstance(error, MemoryError) or _CPU.search(text):
        match = _CPU.search(text)
        wanted = f"{int(match[1]) / GB:.3g} GB" if match else "more"
        there = f"the host, which has {machine_memory() / GB:.3g} GB, {_available() / GB:.3g} GB of them free"
    else:
        return None
    return MemoryError(
        f"{run.run_id}: rank {torch.distributed.get_rank()} ran out of memory: {wanted} wanted on {there}. "
        f"{ADVICE}."
    )


def _available() -> float:
    """Bytes that the system can still give."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024.0 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
