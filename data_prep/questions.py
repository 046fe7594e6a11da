"""Question sets for `launch answers`: DIR/SET/MODULE.txt, question and answer lines in turn, as the published files.

Sets are `level-07` (every entropy at 7; Henighan et al. 2020 test levels 1 to 19, the training range is 3 to 10), the
published `interpolate` and `extrapolate`, and `no-level`: the modules of measurement and probability take no entropy,
so that no level moves them. They are written once, with levels, from the generator's own held-out half.

The two modules that the paper leaves out of its trends are left out here, unless they are asked for. A module that
finds no problem in time at some level has no file there and is told of. The generator cannot be replayed from a seed
(`data_prep/mathematics_generator.py`), so another build has other questions.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.domain import Refusal
from data_prep.files import write_file
from data_prep.mathematics_files import plan_files, read_pairs
from data_prep.progress import Tell
from data_prep.watch import Watch
from data_prep.workers import run_tasks

LEVELS = range(1, 20)
PUBLISHED = ("interpolate", "extrapolate")
NO_LEVEL = "no-level"
# Of one question. The slowest module needs two seconds for one on average.
_SECONDS = 30.0
_PATIENCE = 240.0
_MOST_FAILURES = 20
_MOST_TIMEOUTS = 3
_WHOLE = 1 << 40  # problems in a piece: all of a file


@dataclass(frozen=True)
class Wanted:
    """One file to make: `count` questions of `module` in `set_name`."""

    out: Path
    set_name: str
    module: str
    count: int
    seed: int

    @property
    def path(self) -> Path:
        return self.out / self.set_name / f"{self.module}.txt"


@dataclass(frozen=True)
class Questions:
    """One file: the (question, answer) pairs of a module in a set, ASCII without their newlines."""

    set_name: str
    module: str
    path: Path
    pairs: tuple[tuple[bytes, bytes], ...]


# --- making them


def make_questions(
    out: Path,
    names: list[str],
    *,
    per_module: int,
    seed: int,
    all_modules: bool,
    workers: int | None,
    tell: Tell,
) -> tuple[int, list[str]]:
    """Make every file of the sets `names` that is not there yet with as many questions, in `workers` processes (None:
    as many as cores). Returns how many files there are now, and of each module that was left out which and why."""
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if out.exists() and not out.is_dir():
        raise ValueError(
            f"--out {out}: is a file; wanted a folder for the sets. Name another path."
        )
    if per_module < 1 or workers < 1:
        raise ValueError(
            f"--per-module {per_module}, --workers {workers}: wanted whole numbers of at least 1. Leave them out for "
            "the defaults."
        )
    modules = {name: _modules_of(name, all_modules) for name in names}
    wanted = [Wanted(out, name, each, per_module, seed) for name in names for each in modules[name]]
    missing = [each for each in wanted if not _is_there(each)]
    for folder in {each.path.parent for each in missing}:
        folder.mkdir(parents=True, exist_ok=True)
    done, left_out = len(wanted) - len(missing), []
    tell(done, len(wanted))
    for progress in run_tasks(_make, missing, workers, _PATIENCE):
        if progress.task is not None:
            done += 1
            if progress.result:
                left_out.append(
                    f"{progress.task.set_name}/{progress.task.module}: {progress.result}"
                )
        tell(done, len(wanted), progress)
    return len(wanted) - len(left_out), sorted(left_out)


def set_names(levels: str | None, sets: str | None) -> list[str]:
    """The sets that --levels ("1-10,12") and --sets ("interpolate,extrapolate") ask for; without both, all there are.

    Raises `ValueError` for one that does not exist.
    """
    if levels is None and sets is None:
        levels, sets = f"{LEVELS[0]}-{LEVELS[-1]}", ",".join(PUBLISHED)
    names = []
    if levels is not None:
        names = [*(f"level-{level:02}" for level in _levels(levels)), NO_LEVEL]
    for name in dict.fromkeys([] if sets is None else sets.split(",")):
        if name not in PUBLISHED:
            raise ValueError(
                f"--sets {sets}: {name!r} is no set; wanted some of {', '.join(PUBLISHED)}. "
                "For instance: --sets interpolate"
            )
        names.append(name)
    return names


def _levels(text: str) -> list[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        last = last or first
        known = all(each.isdecimal() and int(each) in LEVELS for each in (first, last))
        if not known or int(first) > int(last):
            raise ValueError(
                f"--levels {text}: {part!r} is no level or range of them; wanted whole numbers from {LEVELS[0]} to "
                f"{LEVELS[-1]}. For instance: --levels 1-10,12"
            )
        found |= set(range(int(first), int(last) + 1))
    return sorted(found)


def _modules_of(set_name: str, all_modules: bool) -> dict[str, Callable[[], object]]:
    from data_prep.mathematics_generator import EXCLUDED, modules, modules_of_level

    if set_name in PUBLISHED:
        found = modules(set_name)
    elif set_name == NO_LEVEL:
        without = modules_of_level(LEVELS[0])[1]
        found = {name: make for name, make in modules("interpolate").items() if name in without}
    else:
        found, without = modules_of_level(int(set_name.rpartition("-")[2]))
        found = {name: make for name, make in found.items() if name not in without}
    return {n: make for n, make in found.items() if all_modules or n not in EXCLUDED}


def _is_there(wanted: Wanted) -> bool:
    """Whether the file has as many questions; another number was asked for before, and is made anew."""
    if not wanted.path.is_file():
        return False
    return wanted.path.read_bytes().count(b"\n") == 2 * wanted.count


def _make(wanted: Wanted, watch: Watch) -> str:
    """Write the file of one module, in a worker; returns why there is none, or ""."""
    from data_prep.mathematics_generator import seed_everything

    name = f"{wanted.set_name}/{wanted.module}"
    digest = hashlib.blake2b(f"{wanted.seed + watch.attempt} {name}".encode(), digest_size=4)
    seed_everything(int.from_bytes(digest.digest(), "little"))
    make = _modules_of(wanted.set_name, all_modules=True)[wanted.module]
    lines: list[str] = []
    try:
        for _ in range(wanted.count):
            lines += _one(make)
            watch.beat(1)
    except LookupError as error:
        return str(error)
    write_file(wanted.path, "".join(f"{line}\n" for line in lines).encode("ascii"))
    return ""


def _one(make: Callable[[], object]) -> tuple[str, str]:
    """A question and its answer; LookupError where none is found."""
    from data_prep.mathematics_generator import ProblemTimeout, sample

    failures = timeouts = 0
    while True:
        try:
            return sample(make, _SECONDS)
        except ProblemTimeout as error:
            timeouts += 1
            reason = str(error)
        except Exception as error:  # sympy raises anything; one draw is lost
            failures += 1
            reason = f"{type(error).__name__}: {error}"
        if timeouts == _MOST_TIMEOUTS or failures == _MOST_FAILURES:
            raise LookupError(f"no question in {failures + timeouts} tries ({reason})")


# --- reading them


def read_questions(folder: Path, per_module: int | None = None) -> list[Questions]:
    """Every file of a folder of sets, or of one set: made here, or published. `per_module`: the first so many of each.

    Raises `ValueError` that names the file and the line for whatever is no question and answer.
    """
    if per_module is not None and per_module < 1:
        raise ValueError(
            f"--per-module {per_module}: wanted a whole number of at least 1. Omit it for all questions."
        )
    paths = sorted([*folder.glob("*.txt"), *folder.glob("*/*.txt")]) if folder.is_dir() else []
    if not paths:
        found = "holds no .txt file" if folder.is_dir() else "is no folder"
        raise ValueError(
            f"--questions {folder}: {found}; wanted a folder of sets, DIR/SET/MODULE.txt, or of one set. "
            f"Make one: python -m data_prep questions --out {folder}"
        )
    return [
        Questions(path.parent.resolve().name, path.stem, path, tuple(_pairs(path, per_module)))
        for path in paths
    ]


def _pairs(path: Path, most: int | None) -> Iterator[tuple[bytes, bytes]]:
    advice = "wanted question and answer lines in turn, in ASCII. Repair or remove this file."
    number = 0
    for piece in plan_files(path, _WHOLE):
        for found in read_pairs(piece):
            if isinstance(found, Refusal):
                raise ValueError(f"{path}: after {2 * number} good lines: {found.reason}; {advice}")
            number += 1
            _, question, answer = found
            if not (question + answer).isascii():
                raise ValueError(
                    f"{path}: line {2 * number - 1} or {2 * number} holds a character that is not ASCII; {advice}"
                )
            if most is None or number <= most:
                yield question, answer
    if not number:
        raise ValueError(f"{path}: is empty; {advice}")
