"""Scenarios on a real Slurm, again and again: a flake in twenty is found only by trying twenty times.

    python -m benchmarks.slurm_repeat                                # every scenario below, 20 times
    python -m benchmarks.slurm_repeat --times 5 --minutes 30 tests/slurm/test_on_slurm.py::test_a_preemption

Each time is a pytest of its own with a private Slurm of its own (slurm.playground); all tests have their first time
before any has its second. `--at-once` of them share the machine. After `--minutes` no further one is started. What a
failure printed is kept in `--logs`.

Prints a row for each test: how often it passed and failed, and the median and the longest seconds that it took, with
the start and the end of its Slurm. Exit status 1 if anything failed.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
ON_SLURM, STUDIES = "tests/slurm/test_on_slurm.py::", "tests/slurm/test_on_slurm_study.py::"
SCENARIOS = (
    f"{ON_SLURM}test_every_fault_in_one_run",
    f"{ON_SLURM}test_edited_then_requeued",
    f"{ON_SLURM}test_without_accounting",
    f"{ON_SLURM}test_one_fault[controller_restarted]",
    f"{STUDIES}test_two_submits_at_once",
    f"{STUDIES}test_a_failing_rung_among_good_ones",
    f"{STUDIES}test_twelve_rungs_with_fits_and_a_report",
)


@dataclass(frozen=True)
class Result:
    """One test, once."""

    passed: bool
    seconds: float


def repeat(tests: Sequence[str], times: int, at_once: int, minutes: float, logs: Path) -> bool:
    """Print the table. Whether everything passed, at least once."""
    deadline = time.monotonic() + 60 * minutes
    found: dict[str, list[Result]] = defaultdict(list)

    def one(test: str, number: int) -> None:
        if time.monotonic() > deadline:
            return
        name = test.rpartition("::")[2]
        result = _try(test, logs / f"{re.sub('[^A-Za-z0-9_]+', '-', name)}-{number}.log")
        found[name].append(result)
        word = "passed" if result.passed else "FAILED"
        print(f"{name}, time {number}: {word}, {result.seconds:.0f} s", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(at_once) as pool:
        started = [pool.submit(one, test, 1 + each) for each in range(times) for test in tests]
    for each in started:
        each.result()  # raises what was raised there
    _print(found)
    return bool(found) and all(each.passed for results in found.values() for each in results)


def _try(test: str, log: Path) -> Result:
    """One pytest. What it printed is kept if it failed."""
    with tempfile.TemporaryDirectory() as name:
        options = ["-p", "no:cacheprovider", "-m", "long or not long"]
        options.append(f"--basetemp={name}/tests")  # two pytests would remove each other's
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, test],
            cwd=ROOT,
            env=os.environ | {"CI": "true"},  # a test that is skipped has shown nothing
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    if done.returncode:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(done.stdout)
    return Result(done.returncode == 0, time.monotonic() - began)


def _print(found: dict[str, list[Result]]) -> None:
    print(f"{'test':48} {'passed':>7} {'failed':>7} {'median s':>9} {'longest s':>10}")
    for test, results in found.items():
        passed = sum(each.passed for each in results)
        seconds = [each.seconds for each in results]
        middle, longest = statistics.median(seconds), max(seconds)
        print(f"{test:48} {passed:7} {len(results) - passed:7} {middle:9.0f} {longest:10.0f}")


def main(argv: list[str] | None = None) -> int:
    """Read the words and repeat."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slurm_repeat", description=__doc__)
    parser.add_argument("tests", nargs="*", default=SCENARIOS, help="as pytest takes them")
    parser.add_argument("--times", type=int, default=20, metavar="N", help="default 20")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="default 1")
    parser.add_argument("--minutes", type=float, default=float("inf"), metavar="M")
    parser.add_argument("--logs", type=Path, default=Path("slurm-repeat-logs"), metavar="DIR")
    words = parser.parse_args(argv)
    well = repeat(words.tests, words.times, words.at_once, words.minutes, words.logs)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
