"""This process and its machine: which device it has, and how it keeps its memory."""

import contextlib
import ctypes
import dataclasses
import os
from pathlib import Path

import torch

from launch.devices import Device, known_gpu

GPU_NODE = Path("/proc/driver/nvidia/gpus")  # there where the driver is


def own_device() -> torch.device:
    """This rank's own GPU, or the CPU of a machine without one."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1") and GPU_NODE.exists():
        raise ValueError(
            f"CUDA_VISIBLE_DEVICES = {os.environ['CUDA_VISIBLE_DEVICES']!r} hides every GPU of this machine; "
            "wanted one for each rank. Unset it, or ask the scheduler for GPUs."
        )
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= count:
        raise ValueError(
            f"LOCAL_RANK = {number} on a machine with {count} visible GPUs; wanted a GPU for each rank. "
            "Start fewer ranks on this node, or make more GPUs visible."
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def gpu_of(device: torch.device) -> Device | None:
    """The figures of this GPU, with the memory that it has; None for a CPU or one that is not known."""
    if device.type != "cuda":
        return None
    known = known_gpu(torch.cuda.get_device_name(device))
    memory = torch.cuda.get_device_properties(device).total_memory
    return known and dataclasses.replace(known, memory=float(memory))


def gpus_per_node() -> int:
    """As torchrun and the Slurm jobs say; without them, what is visible here."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", torch.cuda.device_count()))


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks instead of returning them to the system.

    A training step frees and asks for the same large blocks again. By default glibc unmaps each,
    and the next step pays a page fault for every 4 KiB of it.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc: nothing to tell
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_threshold, limit = -1, -3, 2**30
        libc.mallopt(m_mmap_threshold, limit)
        libc.mallopt(m_trim_threshold, limit)
