"""Scenarios on a real Slurm, again and again: a flake in twenty is found only by trying twenty times.

    python -m benchmarks.slurm_repeat                                # every scenario below, 20 times
    python -m benchmarks.slurm_repeat --times 5 --minutes 30 tests/slurm/test_on_slurm.py::test_a_preemption

Each round is a pytest of its own with a private Slurm of its own (slurm.playground), on which the chosen tests run one
after the other; `--at-once` rounds share the machine. After `--minutes` no further round is started. What a round with
a failure printed is kept in `--logs`.

Prints a row for each test: how often it passed and failed, and the median and the longest seconds that it took, set-up
included. Exit status 1 if anything failed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
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
    """One test in one round."""

    test: str
    passed: bool
    seconds: float


def repeat(tests: Sequence[str], times: int, at_once: int, minutes: float, logs: Path) -> bool:
    """Print the table. Whether everything passed, at least once."""
    deadline = time.monotonic() + 60 * minutes
    found: dict[str, list[Result]] = defaultdict(list)

    def one(number: int) -> None:
        if time.monotonic() > deadline:
            return
        for result in _round(number, tests, logs):
            found[result.test].append(result)
            word = "passed" if result.passed else "FAILED"
            said = f"round {number}: {result.test}: {word}, {result.seconds:.0f} s"
            print(said, file=sys.stderr, flush=True)

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(one, range(1, times + 1)))
    _print(found)
    return bool(found) and all(each.passed for results in found.values() for each in results)


def _round(number: int, tests: Sequence[str], logs: Path) -> list[Result]:
    """What pytest says of each test. One that it does not name at all, as where it was killed, has failed."""
    with tempfile.TemporaryDirectory() as name:
        report = Path(name) / "report.xml"
        options = ["-p", "no:cacheprovider", "-m", "long or not long", f"--junitxml={report}"]
        options.append(f"--basetemp={name}/tests")  # two pytests would remove each other's
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *tests],
            cwd=ROOT,
            env=os.environ | {"CI": "true"},  # a test that is skipped has shown nothing
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        seconds = time.monotonic() - began
        results = _read(report) if report.exists() else []
    if done.returncode:
        logs.mkdir(parents=True, exist_ok=True)
        (logs / f"round-{number}.log").write_text(done.stdout)
        if all(each.passed for each in results):
            results.append(Result("pytest itself", False, seconds))
    return results


def _read(report: Path) -> list[Result]:
    return [
        Result(case.get("name", ""), len(case) == 0, float(case.get("time", 0)))
        for case in ElementTree.parse(report).getroot().iter("testcase")
    ]


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
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="rounds; default 1")
    parser.add_argument("--minutes", type=float, default=float("inf"), metavar="M")
    parser.add_argument("--logs", type=Path, default=Path("slurm-repeat-logs"), metavar="DIR")
    words = parser.parse_args(argv)
    well = repeat(words.tests, words.times, words.at_once, words.minutes, words.logs)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
