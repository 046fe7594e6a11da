"""Both ways through our core attention, against the formula written out in float64."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from megatron_ext import attention
from megatron_ext.attention import CausalAttention
from megatron_ext.cpu_attention import CpuCausal

SINGLE = 2.0**-24  # unit round-off


def mask(pattern, length, window):
    """Who meets whom, bool [queries, keys], as papers.md writes it (Child et al. 2019)."""
    query, key = torch.arange(length)[:, None], torch.arange(length)
    past = key <= query
    if pattern == "local":
        return past & (query - key < window)
    return past & ((query - key) % window == 0) if pattern == "strided" else past


def naive(query, key, value, scale, met=None):
    """softmax(scale q k^T, over the keys met) v, in the inputs' own precision. [S, B, H, D] each."""
    length = len(query)
    scores = torch.einsum("sbhd,tbhd->bhst", query, key) * scale
    met = mask("dense", length, 0) if met is None else met
    weights = torch.softmax(scores.masked_fill(~met, float("-inf")), -1)
    return torch.einsum("bhst,tbhd->sbhd", weights, value).reshape(length, query.shape[1], -1)


def inputs(length, batch, heads, channels, dtype=torch.float32):
    torch.manual_seed(length + channels)
    made = (torch.randn(length, batch, heads, channels).to(dtype) for _ in range(3))
    return [each.requires_grad_() for each in made]


def module(channels, pattern="dense", window=0):
    """The layer of that pattern: the first of a sparse model is local, the second strided."""
    shape = SimpleNamespace(attention_of=lambda layer: pattern, attention_window=window)
    return CausalAttention(
        SimpleNamespace(kv_channels=channels, sequence_parallel=False), 1, shape=shape
    )


def compiled(query, key, value):
    return CpuCausal.apply(query, key, value, query.shape[-1] ** -0.5, len(query))


def forward(query, key, value):
    return module(query.shape[-1])(query, key, value)


def compare(way, sizes, dtype, unit, met=None):
    """Forward and backward within rounding of the same in float64.

    Each output is a sum of at most S products of weights (adding up to 1) and values, the weights
    come from dots of D products: relative error (S + D + c) u of magnitudes at most max |value|.
    The backward pass chains two such sums. c = 16 stands for the exponential and the divisions.
    """
    tensors = inputs(*sizes, dtype)
    exact = [each.detach().double().requires_grad_() for each in tensors]
    length, channels = sizes[0], sizes[-1]
    found, wanted = way(*tensors), naive(*exact, channels**-0.5, met)
    assert found.shape == (length, sizes[1], sizes[2] * channels)
    assert found.dtype == dtype
    grow = (length + channels + 16) * unit
    largest = max(each.abs().max().item() for each in tensors)
    assert (found.double() - wanted).abs().max() <= grow * largest
    torch.manual_seed(1)
    upstream = torch.randn_like(found)
    found.backward(upstream)
    wanted.backward(upstream.double())
    for ours, reference in zip(tensors, exact, strict=True):
        size = max(reference.grad.abs().max().item(), 1.0)
        assert (ours.grad.double() - reference.grad).abs().max() <= 2 * grow * size * largest


@pytest.mark.parametrize("channels", [1, 3, 4, 6, 8, 16, 20, 64])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 64, 130, 193])
def test_our_kernel_equals_the_formula(length, channels):
    compare(compiled, (length, 2, 3, channels), torch.float32, SINGLE)


@pytest.mark.parametrize("channels", [4, 16, 20, 64])
@pytest.mark.parametrize("length", [1, 64, 193, 385, 512])
def test_whatever_way_the_module_takes_equals_the_formula(length, channels):
    compare(forward, (length, 2, 2, channels), torch.float32, SINGLE)


PATTERNS = [("local", 1), ("local", 2), ("local", 3), ("local", 5), ("local", 24), ("local", 500)]
PATTERNS += [("strided", 1), ("strided", 2), ("strided", 7), ("strided", 24), ("strided", 500)]


@pytest.mark.parametrize(("pattern", "window"), PATTERNS)
@pytest.mark.parametrize("channels", [3, 16, 33])  # through our kernel, some of it, PyTorch's
@pytest.mark.parametrize("length", [1, 5, 24, 67, 96, 193])
def test_sparse_patterns_equal_their_masks(pattern, window, length, channels):
    def way(query, key, value):
        return module(channels, pattern, window)(query, key, value)

    met = mask(pattern, length, window)
    compare(way, (length, 2, 2, channels), torch.float32, SINGLE, met)


@pytest.mark.parametrize(("pattern", "window"), [("local", 24), ("strided", 24), ("strided", 7)])
def test_sparse_patterns_in_bfloat16_and_double(pattern, window):
    def way(query, key, value):
        return module(16, pattern, window)(query, key, value)

    met = mask(pattern, 67, window)
    compare(way, (67, 2, 2, 16), torch.float64, 2.0**-53, met)
    compare(way, (67, 2, 2, 16), torch.bfloat16, 8 * 2.0**-9 / (67 + 16 + 16), met)


@pytest.mark.parametrize("length", [64, 193, 512])
def test_bfloat16_equals_the_formula_at_its_precision(length):
    """The kernel adds in float32 and rounds what it keeps and gives to 2^-9: a few times in a row.

    `compare` multiplies its unit by (S + D + 16); eight such roundings stand in for that here.
    """
    compare(forward, (length, 2, 2, 16), torch.bfloat16, 8 * 2.0**-9 / (length + 16 + 16))


def test_double_precision_is_double_precision():
    """In float64 the module agrees with the formula to its round-off: no float32 is hidden inside."""
    compare(forward, (193, 2, 2, 8), torch.float64, 2.0**-53)


def test_each_way_is_taken_where_it_should_be(monkeypatch):
    taken = []
    monkeypatch.setattr(
        attention, "CpuCausal",
        SimpleNamespace(apply=lambda *args: taken.append(args[0].shape) or CpuCausal.apply(*args)),
    )  # fmt: skip
    limit = attention.CPU_KERNEL_MAX_CHANNELS
    forward(*inputs(20, 1, 2, limit))
    assert len(taken) == 1
    forward(*inputs(20, 1, 2, limit + 1))
    forward(*inputs(20, 1, 2, limit, torch.bfloat16))
    assert len(taken) == 1


def test_threads_change_nothing():
    """Each head is computed by one thread in one order: the bits are the same."""
    found = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        tensors = inputs(67, 2, 3, 5)
        out = compiled(*tensors)
        out.square().sum().backward()
        torch.set_num_threads(before)
        found.append([out.detach(), *(each.grad for each in tensors)])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("apart", [1e3, 1e30])
def test_scores_beyond_the_range_of_exp(apart):
    """Scores that differ by `apart` and more: the largest of the past takes all."""
    order = torch.randperm(33, generator=torch.Generator().manual_seed(0))
    key = (order.float() * apart).view(33, 1, 1, 1)
    value = torch.arange(33.0).view(33, 1, 1, 1)
    found = CpuCausal.apply(torch.ones_like(key), key, value, 1.0, 33).flatten()
    # The others' weights are at least 2^-126, a normal number: 33 of them times 32 vanish beside one.
    best = [order[: i + 1].argmax().item() for i in range(33)]
    assert found.tolist() == pytest.approx(best, rel=0, abs=33 * 32 * 2.0**-126)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_number_that_is_none_shows(which, bad):
    """A diverging run must not be hidden by the compiler's liberties with floating point."""
    tensors = [each.detach() for each in inputs(40, 1, 1, 4)]
    tensors[which][16] = bad
    found = compiled(*tensors).view(40, 4)
    assert found[:16].isfinite().all()
    if which == 0:
        assert not found[16].isfinite().any()
    else:
        assert not found[16:].isfinite().any()


@pytest.mark.parametrize("way", [compiled, forward])
@pytest.mark.parametrize("length", [70, 400])
def test_the_future_does_not_reach_the_past(way, length):
    query, key, value = (each.detach() for each in inputs(length, 2, 2, 8))
    before = way(query, key, value)
    for position in (1, length // 2, 64, length - 1):
        changed_key, changed_value = key.clone(), value.clone()
        changed_key[position:] += 3.0
        changed_value[position:] -= 5.0
        after = way(query, changed_key, changed_value)
        assert torch.equal(after[:position], before[:position])
        assert not torch.equal(after[position], before[position])


@pytest.mark.parametrize("way", [compiled, forward])
def test_rows_and_heads_do_not_mix(way):
    query, key, value = (each.detach() for each in inputs(100, 3, 2, 8))
    whole = way(query, key, value).view(100, 3, 2, 8)
    for row in range(3):
        for head in range(2):
            only = (slice(None), slice(row, row + 1), slice(head, head + 1))
            alone = way(query[only], key[only], value[only]).view(100, 8)
            # Batched products may take another order of sums: (S + D + 16) u, as above.
            assert (whole[:, row, head] - alone).abs().max() <= 124 * SINGLE * value.abs().max()


def test_inputs_as_megatron_core_hands_them_over():
    """Views into one interleaved tensor, as the fused query-key-value projection gives."""
    torch.manual_seed(0)
    mixed = torch.randn(400, 2, 2, 3 * 8, requires_grad=True)
    wanted = torch.randn(400, 2, 16)
    grads = []
    for way in (forward, lambda q, k, v: naive(q, k, v, 8**-0.5)):
        mixed.grad = None
        (way(*mixed.split(8, dim=-1)) * wanted).sum().backward()
        grads.append(mixed.grad.clone())
    # Two float32 ways, each within 2 (S + D + 16) u of the exact one.
    assert (grads[0] - grads[1]).abs().max() <= 4 * 424 * SINGLE * grads[1].abs().max()


def test_the_scale_can_be_given():
    query, key, value = (each.detach() for each in inputs(64, 1, 1, 4))
    shape = SimpleNamespace(attention_of=lambda layer: "dense", attention_window=0)
    made = CausalAttention(
        SimpleNamespace(kv_channels=4, sequence_parallel=False), 1, shape=shape, softmax_scale=0.125
    )
    given = made(query, key, value)
    wanted = naive(query.double(), key.double(), value.double(), 0.125)
    assert (given - wanted).abs().max() <= 84 * SINGLE * value.abs().max()


COMPILE = """
import sys, torch
from pathlib import Path
from megatron_ext.cpu_attention import CpuCausal
torch.manual_seed(0)
x = torch.randn(9, 1, 2, 4)
print(CpuCausal.apply(x, x, x, 0.5, 9).double().sum().item())
"""


def in_a_new_process(cache: Path) -> str:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", COMPILE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_broken_or_unwritable_cache_costs_time_alone(tmp_path):
    cache = tmp_path / "cache"
    wanted = in_a_new_process(cache)
    kept = [path for path in cache.rglob("*") if path.is_file()]
    assert {path.suffix for path in kept} == {".nbi", ".nbc"}
    assert {path.relative_to(cache).parts[0] for path in kept} == {next(cache.iterdir()).name}, (
        "one folder, of this source"
    )
    for path in kept:
        path.write_bytes(b"")
    assert in_a_new_process(cache) == wanted
    (tmp_path / "file").write_text("no folder")
    assert in_a_new_process(tmp_path / "file") == wanted


def test_an_empty_batch():
    empty = torch.empty(5, 0, 2, 4, requires_grad=True)
    compiled(empty, empty, empty).sum().backward()
    assert empty.grad.shape == empty.shape
