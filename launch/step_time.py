"""How long one optimizer step takes on a device, from counted work and the device's figures. No torch.

Counted: FLOPs (exactly), bytes that pass through memory, bytes that ranks send one another. Assumed:
what share of its figures a device achieves (`launch.devices`). Good for choosing between strategies
and for a budget, within some tens of per cent; memory is predicted far better.
"""

from launch.activations import FP32, Share, kept_by_layer, rows_of_logits
from launch.devices import Device
from megatron_ext.shape import FORWARD_AND_BACKWARD

# What a layer keeps is written and read in the forward pass; the backward pass reads it and writes
# a gradient as large.
PASSES_OVER_ACTIVATIONS = 4
PASSES_OVER_LOGITS = 6  # logits, their maximum and sum, log-probabilities, and their gradient twice
OVERLAPPED = 0.5  # assumed: of what ZeRO 3 sends
STATE_BYTES = 16  # weights or gradients, master weights and two moments; read and written


def step_parts(share: Share, device: Device, gpus_per_node: int) -> dict[str, float]:
    """Seconds of one step by what they go into; their sum is the step."""
    rate = device.bf16 if share.precision == "bf16" else device.fp32
    matrices = flops_of_step(share) / (device.efficiency * rate)
    memory = _bytes_through_memory(share) / device.bandwidth
    launches = share.micro_batches * share.shape.num_layers * device.seconds_per_layer
    if device.is_gpu:  # launched ahead of the work, so only what the work does not cover shows
        launches = max(0.0, launches - matrices - memory)
    tensor, data = _sent(share, device, gpus_per_node)
    if share.parallel.zero_stage == 3:  # DeepSpeed sends during the work at this stage
        data = max((1 - OVERLAPPED) * data, data - matrices - memory)
    return {
        "matrices": matrices,
        "memory": memory,
        "launches": launches,
        "tensor parallel": tensor,
        "data parallel": data,
    }


def flops_of_step(share: Share) -> float:
    """On one device: `ModelShape`'s count, and the layers' forward pass again if it is computed again."""
    shape = share.shape
    per_token = shape.flops_per_token_exact
    if share.parallel.activation_checkpointing:
        per_token += (per_token - shape.flops_of_head) / FORWARD_AND_BACKWARD
    return per_token * share.tokens * share.micro_batches / share.ranks


def _bytes_through_memory(share: Share) -> float:
    kept = sum(kept_by_layer(share, layer) for layer in range(share.shape.num_layers))
    passes = PASSES_OVER_ACTIVATIONS + 2 * share.parallel.activation_checkpointing
    activations = passes * kept + PASSES_OVER_LOGITS * FP32 * rows_of_logits(share)
    owned = share.data_parallel if share.parallel.zero_stage else 1
    return share.micro_batches * activations + 2 * STATE_BYTES * share.parameters / owned


def _sent(share: Share, device: Device, gpus_per_node: int) -> tuple[float, float]:
    """Seconds of sending for tensor and for data parallelism, by rings."""
    ranks, n = share.ranks, share.data_parallel
    # Two sums over ranks in a layer's forward pass and two in its backward pass (Shoeybi et al. 2019,
    # figure 4); computing the layer again does the first two again.
    sums = share.shape.num_layers * (6 if share.parallel.activation_checkpointing else 4) + 2
    stream = share.tokens * share.shape.hidden_size * share.width
    tensor = share.micro_batches * sums * 2 * (ranks - 1) / ranks * stream / device.link
    crossed = _weights_sent(share) * share.width * share.parameters * (n - 1) / n
    rate = device.link
    if ranks * n > gpus_per_node:
        # A ring goes through all members of a node and leaves it once; as many rings as the node has
        # members each leave through a port of their own.
        rate = min(rate, device.network * gpus_per_node / ranks)
    return tensor, crossed / rate


def _weights_sent(share: Share) -> int:
    """How often a step sends as many bytes as there are weights. A sum over ranks counts twice."""
    stage, times = share.parallel.zero_stage, share.micro_batches
    if stage == 0:
        return 2
    if stage == 1:
        return 2 + 1  # and the new weights
    if stage == 2:
        return 2 * times + 1
    return 3 * times  # gathered for the forward pass and for the backward pass; gradients scattered
