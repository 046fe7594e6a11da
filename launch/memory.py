"""The memory of one device, predicted from shape, strategy and micro-batch. No torch.

A step has few moments at which its memory can be at its peak; each is a sum of named parts, and the
largest is the prediction. The parts are what DeepSpeed 0.19.8 holds under the configuration that
`launch.engine` writes, read in its source and checked against the tensors that are really alive
(`docs/planning.md`). P = parameters on this tensor-parallel rank, n = data-parallel ranks, bytes:

    bf16 | weights | master weights | moments | gradients, fp32 sums included
    ZeRO 0  2 P      4 P              8 P       2 P, and 4 P more in the optimizer's step
    ZeRO 1  2 P      4 P / n          8 P / n   2 P + 4 P
    ZeRO 2  2 P      4 P / n          8 P / n   4 P / n, and the bucket
    ZeRO 3  2 P / n  4 P / n          8 P / n   4 P / n, and the bucket

In fp32 without ZeRO there are no master weights; with ZeRO there are, equal to the weights.
"""

from dataclasses import dataclass

from launch.activations import (
    FP32,
    Share,
    kept_by_head,
    kept_by_layer,
    kept_inside,
    logits_without_gradient,
    mask_of_embeddings,
    passing_backward,
    passing_head,
)

BUCKET = 5e8  # elements: DeepSpeed's default `reduce_bucket_size`
LIVE = 1e9  # elements: its default `stage3_max_live_parameters` and `stage3_max_reuse_distance`
SUB_GROUP = 1e9  # elements: its default `sub_group_size`; ZeRO 3 updates one at a time
MOMENTS = 8  # bytes: two of Adam, in fp32

Parts = dict[str, float]


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak: which moment it is, its parts, and what offloading moves to the host."""

    moment: str
    parts: Parts
    host: float

    @property
    def peak(self) -> float:
        return sum(self.parts.values())


def memory_of(share: Share, *, whole_buckets: bool | None = None) -> Memory:
    """The peak of a run after its first step, without what the process needs before it has a model.

    `whole_buckets`: count all of ZeRO's bucket, as a GPU allocates it, and not the pages that are
    used, which is what a CPU's resident set has; by default as the device does.
    """
    whole = share.on_gpu if whole_buckets is None else whole_buckets
    moments = _moments(share, _bucket(share, whole))
    moment = max(moments, key=lambda name: sum(moments[name].values()))
    return Memory(moment, moments[moment], _host(share))


def _moments(share: Share, bucket_bytes: float) -> dict[str, Parts]:
    state = _state(share)
    bucket = {"buckets": bucket_bytes}
    waiting = {"buckets": bucket_bytes if share.parallel.zero_stage == 3 else 0.0}
    gradients, made = _held_gradients(share), _made_gradients(share)
    backward = {
        name: {**state, **bucket, **_added(parts, gradients)}
        for name, parts in _backward_pass(
            share, made if not gradients["gradients"] else 0.0
        ).items()
    }
    return {
        "start": {"weights": FP32 * share.parameters + share.width * share.largest_parameter},
        "evaluation": {**state, **waiting, "logits": logits_without_gradient(share)},
        **backward,
        "gradient reduction": {
            **state,
            **bucket,
            **_reduction(share),
            "activations": _still_kept(share),
        },
        "optimizer step": {**state, **waiting, **_step(share)},
    }


def _added(parts: Parts, more: Parts) -> Parts:
    return {name: parts.get(name, 0.0) + more.get(name, 0.0) for name in {**parts, **more}}


# --- what is held from step to step


def _state(share: Share) -> Parts:
    """Weights, master weights and moments, and gradient sums that are never given back."""
    size, n, stage = share.parameters, share.data_parallel, share.parallel.zero_stage
    here = 0.0 if share.parallel.offload_optimizer else 1.0
    if stage == 0:
        master = FP32 if share.precision == "bf16" else 0
        return {"weights": share.width * size, "optimizer": (master + MOMENTS) * size}
    parts = {
        "weights": share.width * size / (n if stage == 3 else 1),
        "optimizer": here * (FP32 + MOMENTS) * size / n,
    }
    if _whole_sums(share):
        parts["gradient sums"] = FP32 * size
    if stage == 3:
        parts["gradient sums"] = here * FP32 * size / n
        parts["gathered weights"] = share.width * min(size, LIVE) if n > 1 else 0.0
    if share.parallel.offload_optimizer:
        parts["offload buffer"] = share.width * share.largest_parameter
    return parts


def _whole_sums(share: Share) -> bool:
    """ZeRO 1 in bf16 is DeepSpeed's `BF16_Optimizer`, which sums whole gradients in fp32."""
    parallel = share.parallel
    return parallel.zero_stage == 1 and share.precision == "bf16" and not parallel.offload_optimizer


def _host(share: Share) -> float:
    """What offloading holds in the host's memory for one device: master weights, moments, gradients in
    fp32, and a copy of the weights on their way (ZeRO 3: a second copy of the gradients instead)."""
    if not share.parallel.offload_optimizer:
        return 0.0
    size, stage = share.parameters / share.data_parallel, share.parallel.zero_stage
    on_the_way = FP32 if stage == 3 else share.width
    passing = 0 if stage == 3 else share.width * share.largest_parameter
    return (FP32 + MOMENTS + FP32 + on_the_way) * size + passing


def saved(share: Share) -> float:
    """Bytes that a rank writes into a checkpoint, and has copied in its host's memory until then: the
    weights (of the first data-parallel rank, or every one's part), the optimizer's state."""
    parallel, n = share.parallel, share.data_parallel
    if parallel.zero_stage == 0:
        master = FP32 if share.precision == "bf16" else 0
        return (share.width + master + MOMENTS) * share.parameters
    weights = share.width * share.parameters / (n if parallel.zero_stage == 3 else 1)
    return weights + (FP32 + MOMENTS) * share.parameters / n


def _bucket(share: Share, whole: bool) -> float:
    """The bucket in which ZeRO collects gradients: all of it, or what this model fills."""
    if share.parallel.zero_stage == 0 or _whole_sums(share):
        return 0.0
    # Offloaded ZeRO 1 collects its sums in fp32.
    sums = share.parallel.zero_stage == 1 and share.parallel.offload_optimizer
    return (FP32 if sums else share.width) * (BUCKET if whole else min(share.parameters, BUCKET))


# --- the backward pass


def _held_gradients(share: Share) -> Parts:
    """What earlier micro-batches of the step have left when the last one starts."""
    size, stage = share.parameters, share.parallel.zero_stage
    if share.micro_batches == 1 or stage == 3:
        return {"gradients": 0.0}
    if stage == 2:
        return {"gradients": FP32 * size / share.data_parallel}
    if stage == 1 and share.parallel.offload_optimizer:
        return {"gradients": FP32 * size}
    return {"gradients": share.width * size}


def _made_gradients(share: Share) -> float:
    """Bytes of gradient per parameter that a first micro-batch adds; ZeRO 2 and 3 put them in buckets."""
    if share.parallel.zero_stage >= 2:
        return 0.0
    offloaded = share.parallel.zero_stage == 1 and share.parallel.offload_optimizer
    return FP32 if offloaded else share.width


def _kept(share: Share) -> list[float]:
    """Bytes of each layer when the loss is there."""
    layers = range(share.shape.num_layers)
    if share.parallel.activation_checkpointing:
        return [share.residual for _ in layers]
    return [kept_by_layer(share, layer) for layer in layers]


def _backward_pass(share: Share, made: float) -> dict[str, Parts]:
    """The loss, then every layer from the last to the first: what is kept shrinks, gradients grow."""
    layers = range(share.shape.num_layers)
    again = share.parallel.activation_checkpointing
    kept = _kept(share)
    below = sum(kept) + mask_of_embeddings(share)
    head = share.head
    per_layer = (share.parameters - share.table - head) / share.shape.num_layers
    logits = kept_by_head(share) + passing_head(share)
    moments: dict[str, Parts] = {"loss": {"activations": below, "logits": logits}}
    grown = made * head + (0 if made else share.width * head)
    largest = 0.0
    for layer in reversed(layers):
        inside = kept_inside(share, layer) if again else 0.0
        activations = below + inside + passing_backward(share, layer)
        if activations + grown > largest:
            largest = activations + grown
            moments["backward pass"] = {"activations": activations, "gradients": grown}
        below -= kept[layer]
        grown = made * (head + per_layer * (share.shape.num_layers - layer))
    return moments


def _still_kept(share: Share) -> float:
    """What layers keep when ZeRO 2 and 3 send their first full bucket, in the midst of the backward pass."""
    if share.parallel.zero_stage < 2:
        return 0.0
    return sum(_kept(share)) * max(0.0, 1 - BUCKET / share.parameters)


def _reduction(share: Share) -> Parts:
    """All gradients are there; they are added over the data-parallel ranks in copies."""
    size, n, stage = share.parameters, share.data_parallel, share.parallel.zero_stage
    bucket = min(size, BUCKET)
    parallel = share.parallel
    if stage == 0:
        return {"gradients": share.width * (size + (bucket if n > 1 else 0))}
    if _whole_sums(share):
        # Several tensors of one bucket are joined in fp32; then sent in bf16.
        joined = FP32 * size if size <= BUCKET else 0
        return {"gradients": share.width * size + joined + share.width * size}
    if stage == 3:
        # The joined bucket, and what gloo sends from on a CPU or the fp32 part that is kept.
        sent = 0 if share.on_gpu else share.width * bucket
        part = FP32 * bucket / n if share.precision == "bf16" else 0
        return {"gradients": share.width * bucket + max(sent, part)}
    if parallel.offload_optimizer and stage == 1:
        return {"gradients": FP32 * size + (FP32 + share.width) * bucket}
    if share.precision == "bf16":
        held = FP32 * size / n + FP32 * share.largest_parameter
        return {"gradients": held + share.width * bucket}
    outside = FP32 * max(size - bucket, 0) if stage == 1 else 0
    return {"gradients": outside + FP32 * max(bucket, size / n)}


def _step(share: Share) -> Parts:
    """Gradients as the optimizer reads them. Norms in double precision, one parameter at a time."""
    size, n, stage = share.parameters, share.data_parallel, share.parallel.zero_stage
    if share.parallel.offload_optimizer:
        return {"gradients": FP32 * size / n if stage == 2 else 0.0}
    if stage == 0:
        return {"gradients": (share.width + (FP32 if share.precision == "bf16" else 0)) * size}
    if _whole_sums(share):
        return {"gradients": share.width * size}
    if stage == 3:
        return {"gradients": FP32 * min(size / n, SUB_GROUP)}
    if share.precision == "bf16":
        return {"gradients": FP32 * size / n + 8 * share.largest_parameter}
    return {"gradients": 2 * FP32 * size / n}
