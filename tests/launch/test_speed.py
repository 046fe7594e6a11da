"""Tokens/s, model FLOP/s, MFU and the spread of the steps."""

import dataclasses

import numpy as np
import pytest

from launch.devices import GPUS, known_gpu
from launch.speed import described, speed
from tests.launch.small import config

SECONDS = np.array([0.5, 0.1, 0.1, 0.1, 0.2])  # 1 s for five steps


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_flops_and_mfu(precision):
    run, gpu = config(precision=precision), GPUS["h100"]
    fast = speed(SECONDS, run, 2, gpu)
    per_token = run.shape.flops_per_token_exact
    assert fast.tokens == pytest.approx(5 * run.tokens_per_step)
    assert fast.flops_6nd == pytest.approx(fast.tokens * 6 * run.shape.params_non_embedding)
    assert fast.flops_exact == pytest.approx(fast.tokens * per_token)
    peak = {"fp32": 67e12, "bf16": 989e12}[precision]
    assert fast.mfu == pytest.approx(fast.tokens * per_token / (2 * peak))
    assert fast.percentiles[0] == 0.1
    assert 0.2 < fast.percentiles[1] < fast.percentiles[2] < 0.5


def test_in_words():
    run, gpu = config(), GPUS["h100"]
    fast = dataclasses.replace(speed(SECONDS, run, 1, gpu), mfu=0.4123)
    words = described(fast, run, gpu)
    assert "MFU 41.2% (exact FLOPs over the fp32 peak of h100); a step takes 100 ms, " in words
    assert "no MFU" in described(speed(SECONDS, run, 1, None), run, None)


@pytest.mark.parametrize(
    ("full", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("Tesla V100", None),
    ],
)
def test_the_names_that_cuda_gives(full, name):
    known = known_gpu(full)
    assert (known and known.name) == name
