"""How a build grows with its worker processes: the same mathematics problems with 1, 2, 4, ... of them.

    python -m benchmarks.workers [--rows N] [--workers K ...] [--rounds N]

Whole builds, from the first import to the manifest, in alternation. Prints problems a second of wall clock for each
number of workers, and what each worker does of what one alone did (1 is linear). The machine must have as many cores
and be otherwise idle.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from data_prep.manifest import load_manifest


def build(folder: Path, rows: int, workers: int) -> float:
    """Problems a second of one build."""
    command = [sys.executable, "-m", "data_prep", "build", "mathematics", "--raw", "generator"]
    began = time.perf_counter()
    subprocess.run(
        [*command, "--rows", str(rows), "--workers", str(workers), "--out", str(folder)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - began
    shards = [shard for split in load_manifest(folder).splits.values() for shard in split]
    return sum(shard.documents for shard in shards) / seconds


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1500, help="of 512 characters")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(words)
    rates: dict[int, list[float]] = {workers: [] for workers in options.workers}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(options.rounds):
            for workers, found in rates.items():
                folder = Path(scratch) / f"{number}-{workers}"
                found.append(build(folder, options.rows, workers))
    print("| workers | problems/s | of linear (spread of rounds) |")
    print("|---:|---:|---:|")
    alone = statistics.median(rates[options.workers[0]]) / options.workers[0]
    for workers, found in rates.items():
        shares = [rate / (workers * alone) for rate in found]
        print(
            f"| {workers} | {statistics.median(found):,.0f} | "
            f"{statistics.median(shares):.2f} ({min(shares):.2f}-{max(shares):.2f}) |"
        )


if __name__ == "__main__":
    main()
