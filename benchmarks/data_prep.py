"""Raw data to shards, and rows out of them: ours against what one would use today.

    python -m benchmarks.data_prep [--case PART_OF_NAME] [--rounds N]

The two sides alternate in one process; rates are per second of CPU time of this process, so that
other work on the machine weighs less. Beside the project's own requirements the peers need
`pip install webdataset opencv-python-headless vector-quantize-pytorch`. Prints a table: rates
(medians of the rounds), their ratio with its spread, and the bar.
"""

import argparse
import importlib
import pkgutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import benchmarks.cases
from benchmarks.cases import Case


def rate(work: Callable[[], int], seconds: float) -> float:
    """Units per second of CPU time, over repetitions that take at least `seconds` of it."""
    began, units = time.process_time(), 0
    while True:
        units += work()
        spent = time.process_time() - began
        if spent >= seconds:
            return units / spent


def measure(case: Case, rounds: int, seconds: float) -> tuple[float, float, list[float]]:
    """Median rate of peer and ours, and the ratio in every round, sorted."""
    case.peer(), case.ours()  # imports, caches, the file system
    pairs = [(rate(case.peer, seconds), rate(case.ours, seconds)) for _ in range(rounds)]
    peer, ours = (statistics.median(side) for side in zip(*pairs, strict=True))
    return peer, ours, sorted(b / a for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", help="only cases whose name holds this")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each side in a round")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| work | unit | peer, per s | ours, per s | ratio (spread of rounds) | bar |")
    print("|---|---|---:|---:|---:|---:|")
    for module in sorted(each.name for each in pkgutil.iter_modules(benchmarks.cases.__path__)):
        with tempfile.TemporaryDirectory() as scratch:
            for case in importlib.import_module(f"benchmarks.cases.{module}").cases(Path(scratch)):
                if options.case and not any(part in case.name for part in options.case):
                    continue
                peer, ours, ratios = measure(case, options.rounds, options.seconds)
                print(
                    f"| {case.name} | {case.unit} | {peer:,.0f} | {ours:,.0f} "
                    f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f}) "
                    f"| {case.bar:g}x |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
