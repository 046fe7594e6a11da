"""Causal attention on a CPU in float32, compiled by numba when first used.

The papers' small models have 3 to 32 channels per head. PyTorch's fused kernel is made for 64 and
more, and takes half of such a model's training step; up to 12 channels this one needs 0.4 to 0.7 of
its time (`docs/benchmarks.md`). Like FlashAttention (Dao et al. 2022) it keeps only the logarithm of each
softmax sum and computes the probabilities again for the backward pass, so that memory grows with
the length and not with its square.

Four queries go together over all their keys. Keys and values of a head are turned to [channel, key]
first: every inner loop then runs along the keys, and the compiler makes vector instructions of it.

Shape suffixes: S sequence, B batch, H heads, D channels of a head, P = D rounded up to four (the
rest holds zeros), Q = 4 queries.
"""

import concurrent.futures
import functools
import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

QUERIES = 4

_F = np.float32
_ZERO, _HALF, _LOG2_E = _F(0), _F(0.5), _F(1 / math.log(2))
_LEAST_EXPONENT = _F(-126)  # 2^-126 is the least normal number
_EXPONENT_BIAS, _MANTISSA_BITS = np.int32(127), np.int32(23)  # of an IEEE single
# 2^f = sum of (f ln 2)^k / k!; for |f| <= 1/2 what follows the seventh term is below 2^-27.
_C0, _C1, _C2, _C3, _C4, _C5, _C6 = (_F(math.log(2) ** k / math.factorial(k)) for k in range(7))

# Sums may be taken in any order, which vector instructions need. "No NaN" is not promised: a run
# that diverges must show it.
_OPTIONS = {"fastmath": {"contract", "reassoc", "nsz", "arcp"}, "nogil": True}
# Layout "A": strides as they come, so that one signature serves every view that megatron-core hands over.
_TENSOR, _SUMS = numba.types.Array(numba.float32, 4, "A"), numba.types.Array(numba.float32, 3, "A")
_FORWARD = (*[numba.int64] * 2, numba.float32, numba.int64, *[_TENSOR] * 4, _SUMS)
_BACKWARD = (*_FORWARD, *[_TENSOR] * 4)


class CpuCausal(torch.autograd.Function):
    """softmax(scale q k^T + mask) v for float32 tensors [S, B, H, D]; gives [S, B, H * D].

    A query meets itself and the `window - 1` positions before it: all, if `window` is the length.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_SBHD: Tensor,
        key_SBHD: Tensor,
        value_SBHD: Tensor,
        scale: float,
        window: int,
    ) -> Tensor:
        length, batch, heads, channels = query_SBHD.shape
        context_SBHD = torch.empty(query_SBHD.shape)
        log_sum_BHS = torch.empty((batch, heads, length))
        inputs = (query_SBHD, key_SBHD, value_SBHD, context_SBHD, log_sum_BHS)
        _run(_compiled(_forward, _FORWARD), batch * heads, scale, window, *inputs)
        ctx.save_for_backward(*inputs)
        ctx.scale, ctx.window = scale, window
        return context_SBHD.view(length, batch, heads * channels)

    @staticmethod
    def backward(ctx: Any, grad_SBE: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        inputs = ctx.saved_tensors
        grad_SBHD = grad_SBE.reshape(inputs[0].shape)
        grads = [torch.empty(inputs[0].shape) for _ in range(3)]
        batch, heads, _ = inputs[-1].shape
        kernel = _compiled(_backward, _BACKWARD)
        _run(kernel, batch * heads, ctx.scale, ctx.window, *inputs, grad_SBHD, *grads)
        return grads[0], grads[1], grads[2], None, None


def _run(kernel: Any, pairs: int, scale: float, window: int, *tensors: Tensor) -> None:
    """Call `kernel` for every (row, head), shared among as many threads as PyTorch may use."""
    arrays = [tensor.detach().numpy() for tensor in tensors]
    threads = min(torch.get_num_threads(), pairs)
    if threads <= 1:
        kernel(0, pairs, _F(scale), window, *arrays)
        return
    bounds = [pairs * i // threads for i in range(threads + 1)]
    jobs = [
        _threads().submit(kernel, first, last, _F(scale), window, *arrays)
        for first, last in zip(bounds, bounds[1:], strict=False)
    ]
    for job in jobs:
        job.result()


@functools.cache
def _compiled(function: Callable, signature: tuple) -> Callable:
    """The machine code of one kernel: from this user's cache, or compiled now, which takes some seconds.

    The cache is a folder of this very source, so no other version's code can be met in it, and every
    process writes the same there. A cache that is broken, full or cannot be written costs the time
    to compile and nothing else.
    """
    before = numba.config.CACHE_DIR
    base = Path(before) if before else Path(__file__).with_name("__pycache__")
    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    try:
        numba.config.CACHE_DIR = str(base / f"cpu_attention-{source[:16]}")
        return numba.njit(signature, cache=True, **_OPTIONS)(function)
    except Exception:  # numba's cache raises almost anything; without it nothing is lost but time
        return numba.njit(signature, **_OPTIONS)(function)
    finally:
        numba.config.CACHE_DIR = before


_pools: dict[int, concurrent.futures.ThreadPoolExecutor] = {}


def _threads() -> concurrent.futures.ThreadPoolExecutor:
    """This process's pool: one that was inherited by a fork has no threads."""
    if os.getpid() not in _pools:
        _pools[os.getpid()] = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    return _pools[os.getpid()]


def _forward(first, last, scale, window, query, key, value, context, log_sum):
    length, _, heads, channels = query.shape
    padded, stride = _padded(channels, length)
    keys_PS, values_PS = np.zeros((padded, stride), _F), np.zeros((padded, stride), _F)
    queries_QP, sums_QP = np.zeros((QUERIES, padded), _F), np.zeros((QUERIES, padded), _F)
    weights_QS, totals_Q = np.empty((QUERIES, stride), _F), np.empty(QUERIES, _F)
    powers = np.empty(length, np.int32)
    for pair in range(first, last):
        row, head = pair // heads, pair % heads
        _transposed(keys_PS, key[:, row, head])
        _transposed(values_PS, value[:, row, head])
        for start in range(0, length, QUERIES):
            end = min(start + QUERIES, length)
            low = max(0, start + 1 - window)  # keys are counted from the first that is met
            count = end - low
            for i in range(start, end):
                for d in range(channels):
                    queries_QP[i - start, d] = query[i, row, head, d] * (scale * _LOG2_E)
            _products(weights_QS, queries_QP, keys_PS, low, count)
            for i in range(start, end):
                before, after = max(0, i + 1 - window - low), i + 1 - low
                weights_QS[i - start, :before] = _ZERO
                weights_QS[i - start, after:count] = _ZERO
                weights = weights_QS[i - start][before:]
                largest = _largest(weights, after - before)
                _powers_of_two(weights, powers, after - before, largest)
                total = _ZERO
                for j in range(after - before):
                    total += weights[j]
                log_sum[row, head, i] = largest + _F(math.log2(total))
                totals_Q[i - start] = total
            weights_QS[end - start :, :count] = _ZERO
            _weighted_sums(sums_QP, weights_QS, values_PS, low, count)
            for i in range(start, end):
                for d in range(channels):
                    context[i, row, head, d] = sums_QP[i - start, d] / totals_Q[i - start]


def _backward(
    first, last, scale, window, query, key, value, context, log_sum, grad,
    grad_query, grad_key, grad_value,
):  # fmt: skip
    length, _, heads, channels = query.shape
    padded, stride = _padded(channels, length)
    keys_PS, values_PS = np.zeros((padded, stride), _F), np.zeros((padded, stride), _F)
    grad_keys_PS, grad_values_PS = np.empty((padded, stride), _F), np.empty((padded, stride), _F)
    queries_QP, grads_QP = np.zeros((QUERIES, padded), _F), np.zeros((QUERIES, padded), _F)
    sums_QP, deltas_Q = np.zeros((QUERIES, padded), _F), np.zeros(QUERIES, _F)
    weights_QS, changes_QS = np.zeros((QUERIES, stride), _F), np.zeros((QUERIES, stride), _F)
    powers = np.empty(length, np.int32)
    for pair in range(first, last):
        row, head = pair // heads, pair % heads
        _transposed(keys_PS, key[:, row, head])
        _transposed(values_PS, value[:, row, head])
        grad_keys_PS[:] = _ZERO
        grad_values_PS[:] = _ZERO
        for start in range(0, length, QUERIES):
            end = min(start + QUERIES, length)
            low = max(0, start + 1 - window)
            count = end - low
            queries_QP[end - start :] = _ZERO
            grads_QP[end - start :] = _ZERO
            for i in range(start, end):
                delta = _ZERO
                for d in range(channels):
                    queries_QP[i - start, d] = query[i, row, head, d] * (scale * _LOG2_E)
                    grads_QP[i - start, d] = grad[i, row, head, d]
                    delta += grad[i, row, head, d] * context[i, row, head, d]
                deltas_Q[i - start] = delta
            _products(weights_QS, queries_QP, keys_PS, low, count)
            _products(changes_QS, grads_QP, values_PS, low, count)
            for i in range(start, end):
                before, after = max(0, i + 1 - window - low), i + 1 - low
                weights, changes = weights_QS[i - start], changes_QS[i - start]
                _powers_of_two(weights[before:], powers, after - before, log_sum[row, head, i])
                weights[:before] = _ZERO
                weights[after:count] = _ZERO
                # d scores = P * (dP - sum(dO * O)) (Dao et al. 2022, section 3.1)
                for j in range(count):
                    changes[j] = weights[j] * (changes[j] - deltas_Q[i - start])
            weights_QS[end - start :, :count] = _ZERO
            _weighted_sums(sums_QP, changes_QS, keys_PS, low, count)
            for i in range(start, end):
                for d in range(channels):
                    grad_query[i, row, head, d] = sums_QP[i - start, d] * scale
            _add_outer(grad_keys_PS, queries_QP, changes_QS, low, count)
            _add_outer(grad_values_PS, grads_QP, weights_QS, low, count)
        # The queries carried scale * log2(e).
        for j in range(length):
            for d in range(channels):
                grad_key[j, row, head, d] = grad_keys_PS[d, j] / _LOG2_E
                grad_value[j, row, head, d] = grad_values_PS[d, j]


@numba.njit(inline="always", **_OPTIONS)
def _padded(channels, length):
    """Channels up to four; rows one cache line off a power of two, or they evict one another."""
    return (channels + 3) // 4 * 4, (length + 31) // 16 * 16


@numba.njit(inline="always", **_OPTIONS)
def _transposed(out_PS, x_SD):
    for j in range(x_SD.shape[0]):
        for d in range(x_SD.shape[1]):
            out_PS[d, j] = x_SD[j, d]


@numba.njit(inline="always", **_OPTIONS)
def _products(out_QS, x_QP, y_PS, low, count):
    """out[:, :count] = x @ y[:, low : low + count], four channels at a time."""
    out0, out1, out2, out3 = out_QS[0], out_QS[1], out_QS[2], out_QS[3]
    for d in range(0, x_QP.shape[1], 4):
        y0, y1, y2, y3 = y_PS[d][low:], y_PS[d + 1][low:], y_PS[d + 2][low:], y_PS[d + 3][low:]
        a0, a1, a2, a3 = x_QP[0, d], x_QP[0, d + 1], x_QP[0, d + 2], x_QP[0, d + 3]
        b0, b1, b2, b3 = x_QP[1, d], x_QP[1, d + 1], x_QP[1, d + 2], x_QP[1, d + 3]
        c0, c1, c2, c3 = x_QP[2, d], x_QP[2, d + 1], x_QP[2, d + 2], x_QP[2, d + 3]
        d0, d1, d2, d3 = x_QP[3, d], x_QP[3, d + 1], x_QP[3, d + 2], x_QP[3, d + 3]
        if d == 0:
            for j in range(count):
                out0[j] = a0 * y0[j] + a1 * y1[j] + a2 * y2[j] + a3 * y3[j]
                out1[j] = b0 * y0[j] + b1 * y1[j] + b2 * y2[j] + b3 * y3[j]
                out2[j] = c0 * y0[j] + c1 * y1[j] + c2 * y2[j] + c3 * y3[j]
                out3[j] = d0 * y0[j] + d1 * y1[j] + d2 * y2[j] + d3 * y3[j]
        else:
            for j in range(count):
                out0[j] += a0 * y0[j] + a1 * y1[j] + a2 * y2[j] + a3 * y3[j]
                out1[j] += b0 * y0[j] + b1 * y1[j] + b2 * y2[j] + b3 * y3[j]
                out2[j] += c0 * y0[j] + c1 * y1[j] + c2 * y2[j] + c3 * y3[j]
                out3[j] += d0 * y0[j] + d1 * y1[j] + d2 * y2[j] + d3 * y3[j]


@numba.njit(inline="always", **_OPTIONS)
def _weighted_sums(out_QP, weights_QS, y_PS, low, count):
    """out = weights[:, :count] @ y[:, low : low + count].T, two channels at a time."""
    w0, w1, w2, w3 = weights_QS[0], weights_QS[1], weights_QS[2], weights_QS[3]
    for d in range(0, out_QP.shape[1], 2):
        y0, y1 = y_PS[d][low:], y_PS[d + 1][low:]
        a0, a1, b0, b1 = _ZERO, _ZERO, _ZERO, _ZERO
        c0, c1, d0, d1 = _ZERO, _ZERO, _ZERO, _ZERO
        for j in range(count):
            a0 += w0[j] * y0[j]
            a1 += w0[j] * y1[j]
            b0 += w1[j] * y0[j]
            b1 += w1[j] * y1[j]
            c0 += w2[j] * y0[j]
            c1 += w2[j] * y1[j]
            d0 += w3[j] * y0[j]
            d1 += w3[j] * y1[j]
        out_QP[0, d], out_QP[0, d + 1] = a0, a1
        out_QP[1, d], out_QP[1, d + 1] = b0, b1
        out_QP[2, d], out_QP[2, d + 1] = c0, c1
        out_QP[3, d], out_QP[3, d + 1] = d0, d1


@numba.njit(inline="always", **_OPTIONS)
def _add_outer(out_PS, x_QP, weights_QS, low, count):
    """out[:, low : low + count] += x.T @ weights[:, :count]."""
    w0, w1, w2, w3 = weights_QS[0], weights_QS[1], weights_QS[2], weights_QS[3]
    for d in range(0, out_PS.shape[0], 2):
        out0, out1 = out_PS[d][low:], out_PS[d + 1][low:]
        a0, a1, a2, a3 = x_QP[0, d], x_QP[1, d], x_QP[2, d], x_QP[3, d]
        b0, b1, b2, b3 = x_QP[0, d + 1], x_QP[1, d + 1], x_QP[2, d + 1], x_QP[3, d + 1]
        for j in range(count):
            out0[j] += a0 * w0[j] + a1 * w1[j] + a2 * w2[j] + a3 * w3[j]
            out1[j] += b0 * w0[j] + b1 * w1[j] + b2 * w2[j] + b3 * w3[j]


@numba.njit(inline="always", **_OPTIONS)
def _largest(x, end):
    """max(x[:end]), in eight lanes: a single one waits for each comparison."""
    m0 = m1 = m2 = m3 = m4 = m5 = m6 = m7 = x[0]
    whole = end - end % 8
    for j in range(0, whole, 8):
        m0, m1 = max(m0, x[j]), max(m1, x[j + 1])
        m2, m3 = max(m2, x[j + 2]), max(m3, x[j + 3])
        m4, m5 = max(m4, x[j + 4]), max(m5, x[j + 5])
        m6, m7 = max(m6, x[j + 6]), max(m7, x[j + 7])
    found = max(max(max(m0, m1), max(m2, m3)), max(max(m4, m5), max(m6, m7)))
    for j in range(whole, end):
        found = max(found, x[j])
    return found


@numba.njit(inline="always", **_OPTIONS)
def _powers_of_two(x, powers, end, shift):
    """x[:end] = 2^(x[:end] - shift), for x <= shift: a polynomial, and the exponent bits."""
    for j in range(end):
        exponent = x[j] - shift
        exponent = _LEAST_EXPONENT if exponent < _LEAST_EXPONENT else exponent
        whole = np.floor(exponent + _HALF)
        f = exponent - whole
        x[j] = _C0 + f * (_C1 + f * (_C2 + f * (_C3 + f * (_C4 + f * (_C5 + f * _C6)))))
        powers[j] = (np.int32(whole) + _EXPONENT_BIAS) << _MANTISSA_BITS
    factors = powers.view(np.float32)
    for j in range(end):
        x[j] *= factors[j]
