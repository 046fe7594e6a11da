"""How much more a device trains when several small models share it, each in its own process.

    python -m benchmarks.packing [--at-a-time 1 2 4 8] [--seconds S] [--rounds N] [--case PART]

For every size the processes train the same model for the same time, at once; their tokens/s are added up.
Numbers of processes alternate within a round. This is what `launch run --at-a-time K` does with a study's
runs. Aim on a GPU: 4 times for models under 10 M parameters.
"""

import argparse
import multiprocessing
import statistics
import time
from typing import Any

from launch.packing import shared_cores
from megatron_ext.shape import shape_of

CASES = {
    # layers, width, sequence, rows of a step
    "12 k parameters, 192 tokens": (4, 32, 192, 16),
    "400 k parameters, 512 tokens": (8, 64, 512, 8),
    "3 M parameters, 512 tokens": (4, 256, 512, 8),
    "10 M parameters, 1,024 tokens": (6, 384, 1024, 8),
}


def work(case: str, precision: str, seconds: float, ready: Any, results: Any) -> None:
    """One process: ready, then as many steps as fit."""
    from benchmarks.synthetic import batch_of, run_of
    from launch.engine import Engine, start_process

    layers, width, length, rows = CASES[case]
    device = start_process()
    shape = shape_of(
        "kaplan", num_layers=layers, hidden_size=width, seq_length=length, vocab_size=256
    )
    run = run_of(shape, rows, precision)
    engine, batch = Engine(run, device), batch_of(run, device)
    for _ in range(3):
        engine.train_step(batch, 1e-3)
    ready.wait()
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        engine.train_step(batch, 1e-3)
        steps += 1
    results.put(steps * run.tokens_per_step / (time.perf_counter() - began))
    engine.close()


def tokens_per_second(case: str, precision: str, processes: int, seconds: float) -> float:
    context: Any = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(processes), context.Queue()
    arguments = (case, precision, seconds, ready, results)
    workers = [context.Process(target=work, args=arguments) for _ in range(processes)]
    with shared_cores(processes):
        for worker in workers:
            worker.start()
    total = sum(results.get() for _ in workers)
    for worker in workers:
        worker.join()
    return total


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--at-a-time", type=int, nargs="+", default=[1, 2, 4, 8], metavar="K")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--case", help="only cases whose name holds this")
    options = parser.parse_args(words)
    numbers = options.at_a_time
    print("| case | " + " | ".join(f"{each} at a time, tokens/s" for each in numbers) + " | gain |")
    print("|---|" + "---:|" * (len(numbers) + 1))
    for case in CASES:
        if options.case and options.case not in case:
            continue
        rates: dict[int, list[float]] = {number: [] for number in numbers}
        for _ in range(options.rounds):
            for number in numbers:
                rates[number].append(
                    tokens_per_second(case, options.precision, number, options.seconds)
                )
        middle = [statistics.median(rates[number]) for number in numbers]
        gain = max(middle) / middle[0]
        cells = [f"{each:,.0f}" for each in middle]
        print(f"| {case} | {' | '.join(cells)} | {gain:.2f}x |", flush=True)


if __name__ == "__main__":
    main()
