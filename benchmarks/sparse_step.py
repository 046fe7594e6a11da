"""One training step of a picture model with sparse attention against the same model with dense.

    python -m benchmarks.sparse_step [--threads N] [--rounds N] [--precision fp32|bf16]

Layers alternate between a local band and a stride, both one row of the picture (96 tokens at 32x32).
The two alternate in one process. The bar: faster by at least 0.6 of the ratio of their FLOPs.
"""

import argparse
import dataclasses
import statistics

import torch

from benchmarks.synthetic import batch_of
from benchmarks.train_step import make_config, measure, our_step
from launch.engine import Engine, start_process

SHARE_OF_FLOPS = 0.6
CASES = {
    # name: (layers, width, sequence, rows, share of tokens that count, family), window
    "image-16x16 L4 H64": ((4, 64, 768, 4, 1.0, "henighan"), 48),
    "image-32x32 L4 H32 (12.3k)": ((4, 32, 3072, 1, 1.0, "henighan"), 96),
    "image-32x32 L4 H64": ((4, 64, 3072, 1, 1.0, "henighan"), 96),
    "image-32x32 L8 H128": ((8, 128, 3072, 1, 1.0, "henighan"), 96),
}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each side in a round")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--case", action="append", help="only cases whose name holds this")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    device = start_process()
    print("| case | dense, tokens/s | sparse, tokens/s | ratio (spread) | ratio of FLOPs | bar |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, (case, window) in CASES.items():
        if options.case and not any(part in name for part in options.case):
            continue
        dense = make_config(case, options.precision)
        shape = dataclasses.replace(dense.shape, attention_window=window)
        sparse = dense.model_copy(update={"shape": shape})
        batch = batch_of(dense, device)
        engines = [Engine(config, device) for config in (dense, sparse)]
        steps = [our_step(engine, batch) for engine in engines]
        slow, fast = measure(steps, options.rounds, options.seconds)
        ratios = sorted(b / a for a, b in zip(slow, fast, strict=True))
        flops = dense.flops_exact / sparse.flops_exact
        print(
            f"| {name} | {statistics.median(slow) * dense.tokens_per_step:,.0f} "
            f"| {statistics.median(fast) * dense.tokens_per_step:,.0f} "
            f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f}) "
            f"| {flops:.2f} | {SHARE_OF_FLOPS * flops:.2f}x |",
            flush=True,
        )
        for engine in engines:
            engine.close()


if __name__ == "__main__":
    main()
