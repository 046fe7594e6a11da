"""The planner: every term by hand, what it prefers, how it refuses, and one real measurement."""

import dataclasses
import math

import pytest

from benchmarks.planner import alive, case_of, predicted
from launch.__main__ import main
from launch.activations import (
    Share,
    kept_by_head,
    kept_by_layer,
    kept_inside,
    logits_without_gradient,
    passing_backward,
    passing_head,
)
from launch.config import Parallel, RunConfig
from launch.devices import CPU_BASE, CPU_HEAP, GPU_BASE, GPUS, device_of, measured_cpu
from launch.memory import BUCKET, memory_of, saved
from launch.planner import MARGIN, choose, spread
from launch.step_time import flops_of_step, step_parts
from megatron_ext.shape import shape_of
from tests.launch.small import config, study, write_study

H100 = GPUS["h100"]
# d = 4, a = 4, f = 16, two heads of 2 channels, rows of 8 tokens, vocabulary 5
SMALL = shape_of(
    "kaplan", num_layers=2, hidden_size=4, seq_length=8, vocab_size=5, num_attention_heads=2
)
BILLION = shape_of(
    "kaplan", num_layers=24, hidden_size=2048, seq_length=2048, vocab_size=50_257,
    num_attention_heads=16,
)  # fmt: skip


def share(
    shape=SMALL, precision="fp32", *, micro_batch=2, n=1, on_gpu=True, micro_batches=1, **how
):
    return Share(
        shape,
        precision,
        Parallel(**how),
        micro_batch,
        micro_batches,
        data_parallel=n,
        on_gpu=on_gpu,
    )


def parts(stage: int, precision: str = "bf16", *, n: int = 4, **more) -> dict[str, float]:
    """At the peak, of a shape whose logits and activations are small beside its state."""
    wide = dataclasses.replace(BILLION, seq_length=8)
    found = share(wide, precision, micro_batch=1, n=n, zero_stage=stage, **more)
    return memory_of(found).parts | {"P": found.parameters, "moment": memory_of(found).moment}


# --- activations, by hand: 16 tokens of 4 bytes


def test_a_dense_layer_keeps_what_its_operations_read_again():
    norms, soft_max = 2 * 2 * 16 * 4, 2 * 16 * 4
    matrices = (4 * 4 + 4 * 4 + 2 * 16) * 16 * 4
    assert kept_by_layer(share(), 0) == matrices + norms + soft_max == 4480
    assert kept_inside(share(), 0) == 4480 - 4 * 16 * 4
    assert kept_by_layer(share(precision="bf16"), 0) == matrices / 2 + norms + soft_max


def test_tensor_parallel_ranks_share_heads_and_feed_forward_and_with_sequence_parallelism_rows():
    two = {"tensor_model_parallel_size": 2}
    split = (4 * 4 / 2 + 2 * 16 / 2) * 16 * 4 + 2 * 16 * 4 / 2
    whole = 4 * 4 * 16 * 4 + 2 * 2 * 16 * 4
    assert kept_by_layer(share(**two), 0) == split + whole
    rows = share(**two, sequence_parallel=True)
    assert kept_by_layer(rows, 0) == split + whole / 2
    # On a CPU the matrices after the norms keep all ranks' rows.
    gathered = 2 * 4 * 16 * 4 / 2
    assert kept_by_layer(dataclasses.replace(rows, on_gpu=False), 0) == split + whole / 2 + gathered


def test_sparse_layers_pad_to_whole_windows_and_local_ones_keep_probabilities():
    sparse = dataclasses.replace(SMALL, attention_window=3)  # 8 tokens are padded to 9
    one, soft_max = 4 * 16 * 4, 2 * 16 * 4
    rest = kept_by_layer(share(), 0) - 4 * one - soft_max
    blocks_rows_heads_pairs = 3 * 2 * 2 * 3 * 6
    local = kept_by_layer(share(sparse), 0) - rest
    assert local == pytest.approx((5 * 9 / 8 + 1) * one + blocks_rows_heads_pairs * 4)
    strided = kept_by_layer(share(sparse), 1) - rest
    assert strided == pytest.approx(4 * 9 / 8 * one + soft_max)
    # Our own kernel on a CPU needs neither.
    assert kept_by_layer(share(sparse, on_gpu=False), 0) == kept_by_layer(share(), 0)


def test_logits_are_kept_in_fp32_over_the_counted_tokens():
    logits = 16 * 5 * 4
    assert kept_by_head(share()) == 2 * 4 * 16 * 4 + logits
    assert kept_by_head(share(precision="bf16")) == 2 * 4 * 16 * 2 + logits
    quarter = dataclasses.replace(share(), counted=0.25)
    assert kept_by_head(quarter) == (1 + 0.25) * 4 * 16 * 4 + logits / 4
    assert passing_head(share()) == 2 * logits
    assert logits_without_gradient(quarter) == 2 * logits  # an evaluation looks at every token
    assert logits_without_gradient(share(precision="bf16")) == 2.5 * logits
    # Vocabulary and start token are 6 rows; the first even number that no other table has is 6.
    assert kept_by_head(share(tensor_model_parallel_size=2)) == 2 * 4 * 16 * 4 + 16 * 3 * 4


def test_dropout_keeps_masks_and_where_attention_is_unfused_its_probabilities():
    plain, dropped = share(), dataclasses.replace(share(), dropout=True)
    masks = 2 * 4 * 16  # a byte an element on a GPU
    assert kept_by_layer(dropped, 0) == kept_by_layer(plain, 0) + masks
    on_cpu = dataclasses.replace(dropped, on_gpu=False)
    one, soft_max, pairs = 4 * 16 * 4, 2 * 16 * 4, 2 * 2 * 8 * 8  # rows, heads, queries, keys
    wanted = kept_by_layer(plain, 0) - 4 * one - soft_max + 4 * masks + 6 * one + 3 * 4 * pairs
    assert kept_by_layer(on_cpu, 0) == wanted


def test_the_backward_pass_of_a_layer_has_gradients_at_its_widest():
    assert passing_backward(share(), 0) == (4 + 16) * 16 * 4 + 4 * 16 * 4


def test_parameters_are_the_shape_s_and_a_rank_has_its_part():
    assert share().parameters == SMALL.params_total
    # Per layer: 192 of matrices and 28 of biases are halved; 8 biases and 16 of norms are not.
    # Tables: 2 x 6 rows halved, 8 positions; the last norm.
    half = 2 * ((192 + 28) // 2 + 8 + 16) + (6 + 8) * 4 + 8
    assert share(tensor_model_parallel_size=2).parameters == half


# --- state, by the table of `launch.memory`


def test_plain_adamw_in_fp32():
    found = parts(0, "fp32", n=1)
    assert found["weights"] + found["optimizer"] == 12 * found["P"]
    assert found["gradients"] == 4 * found["P"]


def test_bf16_without_zero_has_gradients_in_both_precisions_in_its_step():
    found = parts(0, n=1)
    assert found["weights"] + found["optimizer"] == 14 * found["P"]
    assert (found["gradients"], found["moment"]) == (6 * found["P"], "optimizer step")


@pytest.mark.parametrize(
    ("stage", "weights", "optimizer", "sums"), [(1, 2, 3, 4), (2, 2, 3, 0), (3, 0.5, 3, 1)]
)
def test_zero_spreads_over_four_ranks(stage, weights, optimizer, sums):
    found = parts(stage)
    size = found["P"]
    if found["moment"] == "start":  # the whole model in fp32, before it is spread
        assert found["weights"] >= 4 * size
        return
    assert found["weights"] == weights * size
    assert found["optimizer"] == optimizer * size
    assert found.get("gradient sums", 0.0) == sums * size


def test_a_bucket_is_whole_on_a_gpu_and_what_is_filled_on_a_cpu():
    for stage, width in ((2, 2), (3, 2)):
        gpu = share(precision="bf16", zero_stage=stage)
        assert memory_of(gpu).parts["buckets"] == width * BUCKET
        cpu = memory_of(dataclasses.replace(gpu, on_gpu=False))
        assert cpu.parts.get("buckets", 0.0) in (0.0, width * gpu.parameters)
    assert memory_of(share()).parts.get("buckets", 0.0) == 0.0


def test_offloading_moves_eighteen_bytes_a_parameter_to_the_host():
    moved = share(BILLION, "bf16", n=4, zero_stage=2, offload_optimizer=True)
    kept = share(BILLION, "bf16", n=4, zero_stage=2)
    assert memory_of(moved).host == 18 * moved.parameters / 4 + 2 * moved.largest_parameter
    assert memory_of(moved).peak < memory_of(kept).peak
    assert memory_of(kept).host == 0


# --- what must not need more


@pytest.mark.parametrize("n", [8, 64])
def test_a_higher_stage_needs_no_more_where_there_is_much_to_spread(n):
    peaks = [
        memory_of(share(BILLION, "bf16", micro_batch=4, n=n, zero_stage=stage)).peak
        for stage in (0, 1, 2, 3)
    ]
    # From 2 to 3 the weights are spread, but up to 1e9 of them are gathered again.
    assert peaks[0] >= peaks[1] >= peaks[2]
    assert peaks[3] < peaks[1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_what_saves_memory_never_needs_more(precision, stage):
    def peak(**change):
        how = {"micro_batch": 4, "n": 2, "zero_stage": stage, "tensor_model_parallel_size": 2}
        return memory_of(share(BILLION, precision, **(how | change))).peak

    assert peak(activation_checkpointing=True) <= peak()
    assert peak(sequence_parallel=True) <= peak()
    assert peak(tensor_model_parallel_size=4) <= peak() <= peak(tensor_model_parallel_size=1)
    assert peak(n=4) <= peak()
    assert peak(micro_batch=1) <= peak(micro_batch=2) <= peak()
    assert peak(micro_batches=1) <= peak(micro_batches=2)
    if stage >= 2:
        assert peak(offload_optimizer=True) <= peak()


# --- time


def test_the_devices_flops_are_the_run_s_exactly():
    run = config(batch={"train_batch_size": 8})
    one = share(run.shape, micro_batch=2, micro_batches=2, n=2, tensor_model_parallel_size=2)
    assert 4 * flops_of_step(one) == run.flops_exact / run.train_steps
    again = dataclasses.replace(one, parallel=Parallel(activation_checkpointing=True))
    head = 6 * run.shape.hidden_size * run.shape.vocab_size * 4 * run.shape.seq_length
    plain = dataclasses.replace(one, parallel=Parallel())
    forward = (flops_of_step(plain) - head) / 3
    assert flops_of_step(again) == pytest.approx(flops_of_step(plain) + forward, rel=1e-12)


def test_a_step_costs_what_is_counted_over_what_the_device_does():
    lone = share(BILLION, "bf16", micro_batch=4)
    spent = step_parts(lone, H100, 8)
    assert spent["matrices"] == flops_of_step(lone) / (H100.efficiency * H100.bf16)
    assert spent["tensor parallel"] == spent["data parallel"] == 0
    # ZeRO 1 sends gradients twice round and weights once, 2 bytes each, 63 of 64 parts of them.
    many = step_parts(share(BILLION, "bf16", micro_batch=4, n=64, zero_stage=1), H100, 8)
    sent = 3 * 2 * lone.parameters * 63 / 64
    assert many["data parallel"] == pytest.approx(sent / min(H100.link, 8 * H100.network))
    assert many["matrices"] == spent["matrices"]


# --- the choice


def billion(rows: int = 512, precision: str = "bf16", **parallel) -> RunConfig:
    run = config(precision=precision, batch={"train_batch_size": rows}, steps=1000)
    return run.model_copy(update={"shape": BILLION, "parallel": Parallel(**parallel)})


def test_a_tiny_run_needs_nothing():
    plan = choose(config(), H100, 1)
    assert plan.parallel == Parallel(train_micro_batch_size_per_gpu=4)
    assert (plan.data_parallel, plan.micro_batches) == (1, 1)
    assert plan.bytes == GPU_BASE + plan.memory.peak


@pytest.mark.parametrize("gpus", [1, 8, 64])
def test_a_plan_fits_and_shares_the_batch(gpus):
    plan = choose(billion(), H100, gpus)
    tensor = plan.parallel.tensor_model_parallel_size
    micro_batch = plan.parallel.train_micro_batch_size_per_gpu
    assert tensor * plan.data_parallel == gpus
    assert plan.data_parallel * plan.micro_batches * micro_batch == 512
    assert MARGIN * plan.memory.peak + H100.base <= H100.memory
    # bf16 gradients of several micro-batches are added in fp32.
    assert plan.parallel.zero_stage > 0 or plan.micro_batches == 1
    assert not plan.parallel.activation_checkpointing
    assert plan.device_hours(3600) == plan.seconds * gpus


def test_what_the_study_states_is_kept():
    stated = {"tensor_model_parallel_size": 4, "zero_stage": 3, "activation_checkpointing": True}
    found = choose(billion(**stated), H100, 8).parallel.model_dump()
    assert {name: found[name] for name in stated} == stated
    assert found["sequence_parallel"]
    assert not choose(
        billion(**stated, sequence_parallel=False), H100, 8
    ).parallel.sequence_parallel


def test_a_smaller_device_trades_time_for_memory():
    small = dataclasses.replace(H100, memory=40e9)
    roomy, tight = choose(billion(), H100, 1), choose(billion(), small, 1)
    assert tight.bytes < roomy.bytes
    assert tight.seconds >= roomy.seconds
    offloaded = choose(billion(), dataclasses.replace(H100, memory=24e9), 1)
    assert offloaded.parallel.offload_optimizer


def test_too_little_memory_is_refused_with_the_least_need_and_what_would_do():
    run = billion(zero_stage=0)
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        choose(run, dataclasses.replace(H100, memory=10e9), 1)
    text = str(refusal.value)
    assert text.startswith(f"{run.run_id}: does not fit on 1 h100: needs at least ")
    assert "(TP 1, ZeRO 0, micro-batch 1; 10% margin), at the optimizer step" in text
    assert "wanted at most 10.0 GB. " in text
    advice = text.rpartition(". --device ")[2]
    assert advice == "h100 --gpus 4 would do."
    with pytest.raises(ValueError, match=r"does not fit on 1 cpu: .* --device h100 --gpus 1 would"):
        choose(billion(), dataclasses.replace(H100, name="cpu", memory=1e9), 1)


def test_a_run_that_fits_nothing_is_refused_too():
    deep = dataclasses.replace(BILLION, num_layers=400)
    run = billion(zero_stage=0, tensor_model_parallel_size=1).model_copy(update={"shape": deep})
    with pytest.raises(
        ValueError, match=r"does not fit on 8 h100: .*Take a smaller shape, or leave"
    ):
        choose(run, H100, 8)


def test_more_ranks_than_rows_are_refused_with_a_number_that_would_do():
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        choose(config(), H100, 64)
    text = str(refusal.value)
    assert (
        "--gpus 64: no way to share batch.train_batch_size = 4 rows and 2 attention heads" in text
    )
    assert text.endswith("--gpus 8 would do.")
    choose(config(), H100, 8)


def test_stated_tensor_parallelism_that_does_not_divide_the_heads_is_refused():
    run = config(parallel={"tensor_model_parallel_size": 3})
    with pytest.raises(ValueError, match=r"no way to share .*Change batch.train_batch_size or the"):
        choose(run, H100, 3)


# --- devices and the command


def test_the_cpu_is_measured():
    cpu = measured_cpu()
    assert not cpu.is_gpu
    assert all(math.isfinite(each) and each > 0 for each in (cpu.fp32, cpu.bandwidth, cpu.memory))
    plan = choose(config(checkpoint={"overlap": False}), cpu, 1)
    assert plan.bytes == CPU_BASE + CPU_HEAP * plan.memory.peak


def test_an_unknown_device_is_refused():
    with pytest.raises(
        ValueError, match=r"--device b200: no such device; wanted one of h100, h200"
    ):
        device_of("b200")


def test_the_command_prints_the_strategy_and_refuses_after_the_table(tmp_path, capsys):
    path = str(write_study(tmp_path / "s.toml", study()))
    assert main(["plan", path, "--device", "a100"]) == 0
    header, row, total = capsys.readouterr().out.splitlines()
    cells = dict(zip(header.replace("with head", "head").replace("exact FLOPs", "exact")
                     .replace("peak LR", "LR").split(), row.split(), strict=True))  # fmt: skip
    assert (cells["TP"], cells["ZeRO"], cells["micro-batch"], cells["accumulate"]) == tuple("1041")
    assert cells["memory"].endswith("GB")
    assert float(cells["GPU-hours"]) > 0
    assert total.endswith("GPU-hours on 1 a100")

    assert main(["plan", path, "--gpus", "64"]) == 2
    found = capsys.readouterr()
    assert found.out.splitlines()[1].split()[-7:] == ["-"] * 7
    assert found.err.startswith("plan: image-8x8-L2-H32-")
    for wrong in (["--gpus", "0"], ["--gpus-per-node", "-1"], ["--device", "tpu"]):
        assert main(["plan", path, *wrong]) == 2
        assert f"plan: {wrong[0]} {wrong[1]}: " in capsys.readouterr().err


def test_a_run_is_spread_as_planned_and_a_study_that_says_how_is_taken_at_its_word():
    run = config(batch={"train_batch_size": 8}, parallel={"zero_stage": 1})
    plan = choose(run, H100, 4)
    spread_run = spread(run, H100, 4, 8)
    assert spread_run.parallel == plan.parallel
    assert (spread_run.parallel.zero_stage, spread_run.digest) == (1, run.digest)
    everything = {
        "tensor_model_parallel_size": 1,
        "zero_stage": 0,
        "train_micro_batch_size_per_gpu": 2,
    }
    tiny = dataclasses.replace(H100, memory=1e6)
    with pytest.raises(ValueError, match="does not fit"):
        spread(run, tiny, 4, 8)
    stated = config(batch={"train_batch_size": 8}, parallel=everything)
    assert spread(stated, tiny, 4, 8) is stated


def test_a_copy_to_save_from_is_counted_where_the_device_is_its_own_host():
    cpu = measured_cpu()
    copied = choose(config(), cpu, 1)
    alone = choose(config(checkpoint={"overlap": False}), cpu, 1)
    size = config().shape.params_total
    assert copied.bytes - alone.bytes == pytest.approx(12 * size, rel=1e-6)
    assert choose(config(), H100, 1) == choose(config(checkpoint={"overlap": False}), H100, 1)
    # bf16: weights of the first rank, and its quarter of master weights and moments
    assert saved(share(precision="bf16", n=4, zero_stage=1)) == (2 + 12 / 4) * SMALL.params_total
    assert saved(share(precision="bf16", n=4, zero_stage=3)) == (2 + 12) / 4 * SMALL.params_total
    assert saved(share(precision="bf16", n=4)) == 14 * SMALL.params_total


# --- and in truth


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"activation_checkpointing": True},
        {"precision": "bf16"},
        {"precision": "bf16", "train_micro_batch_size_per_gpu": 2},
    ],
)
def test_the_tensors_that_are_alive_are_those_predicted(how):
    """Left out are token ids and masks (under 0.1% of this shape) and the buffers of single biases.

    Without ZeRO, so that nothing is sent: gloo may keep what it sends alive a while longer.
    """
    from launch.engine import start_process

    case = case_of(3, 128, 128, 8, **how)
    found = alive(case, start_process())
    assert predicted(case, on_gpu=False, whole_buckets=True).peak == pytest.approx(found, rel=0.01)


def test_what_is_stated_twice_is_equal():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    from launch import activations, memory
    from megatron_ext import attention

    defaults = DeepSpeedZeroConfig()
    assert defaults.reduce_bucket_size == memory.BUCKET
    assert defaults.max_live_parameters == defaults.max_reuse_distance == memory.LIVE
    assert defaults.sub_group_size == memory.SUB_GROUP
    here, there = "CPU_KERNEL_MAX_CHANNELS_LOCAL", attention.CPU_KERNEL_MAX_CHANNELS_LOCAL
    assert getattr(activations, here) == there
