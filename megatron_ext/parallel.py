"""Process groups: megatron-core's, made on any machine, and the adapter that DeepSpeed asks for.

`deepspeed.initialize(mpu=...)` does not take `megatron.core.parallel_state` itself: it looks for
functions by other names (measured; the list below is what DeepSpeed 0.19 reads).
"""

import contextlib
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed

from megatron_ext.quiet import quiet

with quiet():
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed


def start_process_groups(tensor_parallel: int = 1) -> None:
    """Join the other ranks (or stand alone) and make megatron-core's groups. Safe to call again.

    `tensor_parallel` neighbouring ranks share one copy of the model; the rest is data parallelism.
    Another number than before makes the groups anew: runs of one process may differ in it. Raises
    `ValueError` where it does not divide the number of ranks.

    Under torchrun or srun, `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT` are set. Without
    them this is one process, which needs no port: two studies on one machine cannot collide.
    """
    if not torch.distributed.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        if "RANK" in os.environ:
            torch.distributed.init_process_group(backend)
        else:
            os.environ["LOCAL_RANK"] = "0"  # DeepSpeed insists on it
            store = torch.distributed.HashStore()
            torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    ranks = torch.distributed.get_world_size()
    if ranks % tensor_parallel:
        raise ValueError(
            f"parallel.tensor_model_parallel_size = {tensor_parallel} does not divide {ranks} ranks; "
            "wanted whole groups of ranks that share a model. Change one of the two numbers."
        )
    if parallel_state.model_parallel_is_initialized():
        if tensor_parallel_size() == tensor_parallel:
            return
        parallel_state.destroy_model_parallel()
    with _one_group_for_the_same_ranks():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=tensor_parallel, create_gloo_process_groups=False
        )


_groups: dict[tuple[int, ...], torch.distributed.ProcessGroup] = {}


@contextlib.contextmanager
def _one_group_for_the_same_ranks() -> Iterator[None]:
    """megatron-core asks for some twenty groups, most of them of the same ranks.

    Each would have a communicator of its own: with gloo three threads, of which one wakes 100 times a second
    (measured: 60 threads in a process of one rank); with NCCL its buffers on every GPU.
    """
    create = parallel_state.create_group

    def reused(ranks: list[int], *arguments: Any, **named: Any) -> torch.distributed.ProcessGroup:
        key = tuple(ranks)
        if key not in _groups:
            _groups[key] = create(ranks, *arguments, **named)
        return _groups[key]

    parallel_state.create_group = reused
    try:
        yield
    finally:
        parallel_state.create_group = create


def seed_everything(seed: int) -> None:
    """Seed torch on every device, and megatron-core's generators of each tensor-parallel rank."""
    torch.manual_seed(seed)
    if torch.cuda.is_available():
        model_parallel_cuda_manual_seed(seed, force_reset_rng=True)


def data_parallel_rank() -> int:
    return parallel_state.get_data_parallel_rank()


def data_parallel_size() -> int:
    return parallel_state.get_data_parallel_world_size()


def data_parallel_group() -> torch.distributed.ProcessGroup:
    """The ranks that hold the same part of the model and read different rows."""
    return parallel_state.get_data_parallel_group()


def tensor_parallel_rank() -> int:
    return parallel_state.get_tensor_model_parallel_rank()


def tensor_parallel_size() -> int:
    return parallel_state.get_tensor_model_parallel_world_size()


def tensor_parallel_group() -> torch.distributed.ProcessGroup:
    """The ranks that hold the parts of one copy of the model and read the same rows."""
    return parallel_state.get_tensor_model_parallel_group()


def deepspeed_adapter() -> Any:
    """The object that DeepSpeed's `mpu` argument wants."""
    return SimpleNamespace(
        get_model_parallel_rank=parallel_state.get_tensor_model_parallel_rank,
        get_model_parallel_world_size=parallel_state.get_tensor_model_parallel_world_size,
        get_model_parallel_group=parallel_state.get_tensor_model_parallel_group,
        get_tensor_model_parallel_rank=parallel_state.get_tensor_model_parallel_rank,
        get_tensor_model_parallel_world_size=parallel_state.get_tensor_model_parallel_world_size,
        get_tensor_model_parallel_group=parallel_state.get_tensor_model_parallel_group,
        get_tensor_model_parallel_src_rank=parallel_state.get_tensor_model_parallel_src_rank,
        get_data_parallel_rank=parallel_state.get_data_parallel_rank,
        get_data_parallel_world_size=parallel_state.get_data_parallel_world_size,
        get_data_parallel_group=parallel_state.get_data_parallel_group,
    )
