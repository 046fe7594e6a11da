"""What a device can do: the vendors' figures of three GPUs, and this machine's CPU as it is measured.

    H100  NVIDIA H100 Tensor Core GPU datasheet, SXM: 989 TFLOP/s bf16 (dense), 67 fp32, 80 GB, 3.35 TB/s,
          NVLink 900 GB/s both ways; DGX H100: one 400 Gb/s port for each GPU
    H200  NVIDIA H200 Tensor Core GPU datasheet, SXM: as H100, with 141 GB, 4.8 TB/s
    A100  NVIDIA A100 Tensor Core GPU datasheet, SXM 80 GB: 312 TFLOP/s bf16, 19.5 fp32, 2.039 TB/s,
          NVLink 600 GB/s both ways; DGX A100: one 200 Gb/s port for each GPU

What is achieved of them is an assumption, marked as one below.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# Assumed: the share of the peak that matrix products reach. With the other costs added it gives about
# 45% of the peak for 1.3e9 parameters, as the best published trainers reach on H100.
MATRIX_EFFICIENCY = 0.5
# Assumed: the share of the vendor's figure that reading, writing and sending reach.
BANDWIDTH_EFFICIENCY = 0.8
# Assumed: launching the kernels of one layer, forward and backward, from Python.
SECONDS_PER_LAYER = 5e-4
# Assumed: CUDA's context, NCCL's channels and cuBLAS's workspaces, outside what PyTorch counts.
GPU_BASE = 2e9
# Measured: Python, PyTorch, DeepSpeed and megatron-core after the first step of a tiny model.
CPU_BASE = 0.5e9
# Measured (docs/planning.md): the engine has glibc keep free blocks, and its heap then holds 1.1 to 1.5
# times what is alive, and up to 2.8 times with activation checkpointing.
CPU_HEAP = 1.5

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Device:
    """Figures of one device: FLOP/s of each precision, bytes/s, bytes.

    `link` is between devices of one node and `network` between nodes, in one direction; `base` is
    what a process holds before it has a model, and `heap` how much more it holds than is alive.
    """

    name: str
    bf16: float
    fp32: float
    memory: float
    bandwidth: float
    link: float
    network: float
    base: float
    heap: float
    efficiency: float
    seconds_per_layer: float

    @property
    def is_gpu(self) -> bool:
        return self.name != "cpu"


def _gpu(
    name: str, *, bf16: float, fp32: float, memory: float, bandwidth: float, link: float, network: float
) -> Device:  # fmt: skip
    return Device(
        name=name,
        bf16=bf16,
        fp32=fp32,
        memory=memory,
        bandwidth=BANDWIDTH_EFFICIENCY * bandwidth,
        link=BANDWIDTH_EFFICIENCY * link,
        network=BANDWIDTH_EFFICIENCY * network,
        base=GPU_BASE,
        heap=1.0,
        efficiency=MATRIX_EFFICIENCY,
        seconds_per_layer=SECONDS_PER_LAYER,
    )


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("h100", bf16=989e12, fp32=67e12, memory=80e9, bandwidth=3.35e12, link=450e9, network=50e9),
        _gpu("h200", bf16=989e12, fp32=67e12, memory=141e9, bandwidth=4.8e12, link=450e9, network=50e9),
        _gpu("a100", bf16=312e12, fp32=19.5e12, memory=80e9, bandwidth=2.039e12, link=300e9, network=25e9),
    )
}  # fmt: skip
DEVICES = (*GPUS, "cpu")


def device_of(name: str) -> Device:
    """A device by name; `cpu` is this machine's, measured now in under a second.

    Raises `ValueError` for a name that is not known.
    """
    if name == "cpu":
        return measured_cpu()
    if name not in GPUS:
        raise ValueError(
            f"--device {name}: no such device; wanted one of {', '.join(DEVICES)}. Name the nearest "
            "one, or add its figures to launch/devices.py."
        )
    return GPUS[name]


def known_gpu(full_name: str) -> Device | None:
    """The device that CUDA calls, for example, 'NVIDIA H100 80GB HBM3'; None for one not in `GPUS`."""
    words = full_name.lower().replace("-", " ").split()
    return next((gpu for gpu in GPUS.values() if gpu.name in words), None)


def measured_cpu() -> Device:
    """This machine: one matrix product and one copy, the best of some, on as many threads as numpy uses."""
    size = 512
    a = np.ones((size, size), np.float32)
    out = np.empty_like(a)
    product = _best_seconds(lambda: np.matmul(a, a, out=out))
    source = np.ones(4 * 2**20, np.float32)  # 16 MB: more than most caches of one core
    target = np.empty_like(source)
    copy = _best_seconds(lambda: np.copyto(target, source))
    flops = 2 * size**3 / product
    bandwidth = 2 * source.nbytes / copy  # read and written
    return Device(
        name="cpu",
        bf16=flops,  # few CPUs multiply it faster
        fp32=flops,
        memory=machine_memory(),
        bandwidth=bandwidth,
        link=bandwidth / 2,
        network=bandwidth / 2,
        base=CPU_BASE,
        heap=CPU_HEAP,
        efficiency=1.0,  # it is what was achieved
        seconds_per_layer=1e-3,  # measured with layers of 32 channels, where nothing else costs
    )


def _best_seconds(work: Callable[[], object], seconds: float = 0.2) -> float:
    """The shortest of as many runs as fit in `seconds`: other work on the machine only adds."""
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


def machine_memory() -> float:
    """Bytes of this machine, or of the container that it is."""
    total = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        limit = CGROUP_LIMIT.read_text().strip()
    except OSError:
        return total
    return min(total, float(limit)) if limit.isdigit() else total
