"""`RunConfig` -> DeepSpeed's configuration: an output of ours, written in one place, never an input."""

from typing import Any

import torch

from launch.config import RunConfig


def deepspeed_clips(config: RunConfig) -> bool:
    """Without ZeRO it measures no norm in fp32, and in bf16 only what the first rank holds."""
    parallel = config.parallel
    unsplit_bf16 = config.precision == "bf16" and parallel.tensor_model_parallel_size == 1
    return parallel.zero_stage > 0 or unsplit_bf16


def deepspeed_config(config: RunConfig, micro_batch: int, world_size: int) -> dict[str, Any]:
    bf16 = config.precision == "bf16"
    clip = config.optimizer.clip_grad_norm if deepspeed_clips(config) else 0.0
    return {
        "train_batch_size": config.batch.train_batch_size,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": config.batch.train_batch_size // (micro_batch * world_size),
        "gradient_clipping": clip,
        "bf16": {"enabled": bf16},
        "zero_optimization": _zero_config(config),
        # Micro-batches add up in fp32 where DeepSpeed can: not without ZeRO.
        "data_types": {"grad_accum_dtype": "fp32" if config.parallel.zero_stage else None},
        "zero_allow_untested_optimizer": True,  # PyTorch's fused AdamW: no C++ op to build
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }


def _zero_config(config: RunConfig) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": config.parallel.zero_stage,
        # Else ZeRO 3 replaces torch's linear function for good, and the bits of later runs change.
        "memory_efficient_linear": False,
    }
    if config.parallel.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return zero
