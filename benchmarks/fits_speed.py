"""How long laws take at size: the report of a study of 200 runs, a table of a million rows."""

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from analysis import laws
from analysis.__main__ import main
from benchmarks.fits_common import Row
from tests.analysis.planted import PlantedRun, Surface, write_study

TRUTH = {"E": 1.8172, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658}
SIZES, BUDGETS, SEEDS = 10, 10, 2


def report(folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    """A full report with 1,000 bootstraps: sizes x budgets x seeds, 20 evaluations a run."""
    runs = [
        PlantedRun(
            f"r{i}-{j}-{seed}", hidden_size=16 * 2 ** (i // 2) + 8 * 2 ** (i // 2) * (i % 2),
            num_layers=4, tokens=float(tokens), domain="image-8x8", length=192, evaluations=20,
            seed=seed, seed_noise=0.003,
        )
        for i in range(SIZES)
        for j, tokens in enumerate(np.geomspace(3e5, 3e8, BUDGETS))
        for seed in range(SEEDS)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        study = write_study(Path(name) / "study", runs, Surface(a=150, b=1500, irreducible=0.9))
        began, cpu = time.perf_counter(), time.process_time()
        assert main(["report", str(study), "--out", str(Path(name) / "out")]) == 0
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    said = f"{cpu:.0f} s of CPU time of one thread, {wall:.0f} s by the clock"
    yield Row(f"report of {len(runs)} runs, 1,000 bootstraps", said, "60 s", cpu <= 60)


def million_rows(folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    """Read, fit and judge a table of a million rows."""
    rng, count = np.random.default_rng(0), 1_000_000
    params, tokens = 10 ** rng.uniform(6, 9, count), 10 ** rng.uniform(8, 11, count)
    loss = laws.surface(params, tokens, **TRUTH) * np.exp(0.01 * rng.standard_normal(count))
    with tempfile.TemporaryDirectory() as name:
        table = Path(name) / "big.csv"
        with table.open("w") as file:
            file.write("params,tokens,loss\n")
            for row in zip(params, tokens, loss, strict=True):
                file.write("{:.8g},{:.8g},{:.8g}\n".format(*row))
        began = time.process_time()
        out = str(Path(name) / "fit.json")
        assert main(["fit", str(table), "--law", "surface", "--json", out]) == 0
        spent = time.process_time() - began
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    said = f"{spent:.0f} s of CPU time, {most:.1f} GiB at most"
    yield Row("a million rows: surface, 1,000 draws", said, "no bar", None)
