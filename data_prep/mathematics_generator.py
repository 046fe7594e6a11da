"""The published problem generator, `mathematics_dataset` 1.0.1 (Saxton et al. 2019), repaired for today's libraries.

Three names that its `sample.polynomials` uses are gone: sympy moved `base_solution_linear`, numpy dropped `np.object`
and `ndarray.itemset`; and `modules.numbers` gives halves as floats to `random.randint`, which Python 3.12 refuses.
`_load_repaired` compiles these two modules from their own source with those lines rewritten and puts them where Python
looks for them. numpy and sympy themselves stay untouched: nothing leaks into other code of the process, which setting
`numpy.object` would. Every rewrite must be found exactly as often as expected, so that another version of the package
is refused instead of half repaired.

The generator cannot be replayed from a seed (with `random` and `numpy.random` seeded, 13 of 56 modules still differ
between two processes), so a built dataset is identified by its hashes.
"""

import functools
import importlib.util
import random
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import FrameType, TracebackType

import numpy as np

TRAIN_REGIMES = ("train-easy", "train-medium", "train-hard")
REGIMES = (*TRAIN_REGIMES, "interpolate", "extrapolate")
# Henighan et al. 2020 leave these two out of their trends; both are in extrapolate.
EXCLUDED = frozenset(
    {"probability__swr_p_level_set_more_samples", "probability__swr_p_sequence_more_samples"}
)
# The slowest module (comparison__sort_more) makes 0.6 problems a second; one that takes this long has lost its way.
PROBLEM_SECONDS = 60.0

# module -> (as it is written, as it must be written today, how often it occurs)
_REPAIRS = {
    "mathematics_dataset.sample.polynomials": (
        (
            "from sympy.solvers.diophantine import base_solution_linear as",
            "from sympy.solvers.diophantine.diophantine import base_solution_linear as",
            1,
        ),
        ("dtype=np.object)", "dtype=object)", 3),
        ("coeffs.itemset(index, value)", "coeffs[index] = value", 1),
        (
            "expanded_coefficients.itemset(power, coeffs)",
            "expanded_coefficients[power] = coeffs",
            1,
        ),
    ),
    # The divisor is a power of ten, at least 10, so the halves are whole numbers all the same.
    "mathematics_dataset.modules.numbers": (
        ("lower = -remainder_divisor / 2", "lower = -remainder_divisor // 2", 1),
        ("upper = remainder_divisor / 2", "upper = remainder_divisor // 2", 1),
    ),
}


class ProblemTimeout(BaseException):
    """A problem took longer than `PROBLEM_SECONDS`. No `Exception`: the generator's own handlers must not eat it."""


@functools.cache
def modules(regime: str) -> dict[str, Callable[[], object]]:
    """Module name (such as "algebra__linear_1d") -> a function that makes one problem of `regime`."""
    if regime not in REGIMES:
        raise ValueError(
            f"regime {regime!r} is not known; wanted some of {', '.join(REGIMES)}. "
            f"For instance: --raw generator:train-easy,interpolate"
        )
    for name in _REPAIRS:
        _load_repaired(name)
    from mathematics_dataset.modules import modules as published

    if regime == "interpolate":
        tree = published.test()
    elif regime == "extrapolate":
        tree = published.test_extra()
    else:
        tree = published.train(functools.partial(_third, TRAIN_REGIMES.index(regime)))
    return dict(sorted(_flatten(tree).items()))


@functools.cache
def modules_of_level(level: int) -> tuple[dict[str, Callable[[], object]], frozenset[str]]:
    """The modules of training with every entropy at `level`, as `modules` has them, and the names of those that take
    none and are the same at every level (Henighan et al. 2020 test levels 1 to 19; the training range is 3 to 10)."""
    modules("interpolate")  # repairs
    from mathematics_dataset.modules import modules as published

    asked: list[tuple[float, float]] = []

    def at_level(entropy: tuple[float, float]) -> tuple[float, float]:
        asked.append(entropy)
        return level, level

    found, without = {}, set()
    for topic, module in sorted(published.all_.items()):
        asked.clear()
        of_topic = _flatten({topic: module.train(at_level)})
        found.update(of_topic)
        without |= set() if asked else set(of_topic)
    return found, frozenset(without)


def choose_modules(regimes: tuple[str, ...]) -> list[tuple[str, Callable[[], object]]]:
    """(name, function) of every module of these regimes but the excluded two: draw uniformly from this."""
    found = [
        (f"{regime}/{name}", make) for regime in regimes for name, make in modules(regime).items()
    ]
    return [(name, make) for name, make in found if name.partition("/")[2] not in EXCLUDED]


def sample(make: Callable[[], object], seconds: float = PROBLEM_SECONDS) -> tuple[str, str]:
    """(question, answer) from one module; draws again, as the generator's own script does, until both are short enough
    (160 and 30 characters). ProblemTimeout after `seconds`, where signals allow (the main thread of a process)."""
    from mathematics_dataset import generate_settings as limits

    with time_limit(seconds):
        while True:
            problem = make()
            question, answer = str(problem.question), str(problem.answer)  # type: ignore[attr-defined]
            if (
                len(question) <= limits.MAX_QUESTION_LENGTH
                and len(answer) <= limits.MAX_ANSWER_LENGTH
            ):
                return question, answer


def seed_everything(seed: int) -> None:
    """Seed all generators of random numbers that the package draws from, so that no two pieces repeat each other."""
    from sympy.core.random import seed as seed_sympy

    random.seed(seed)
    np.random.seed(seed % (1 << 32))
    seed_sympy(seed)


class _Alarm:
    """Raises ProblemTimeout in the main thread after some seconds, unless the block ends first."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGALRM, self._ring)
        signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def _ring(self, number: int, frame: FrameType | None) -> None:
        raise ProblemTimeout(f"no problem within {self._seconds:g} s")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)


def time_limit(seconds: float) -> AbstractContextManager[None]:
    """A block that ProblemTimeout ends after `seconds`; outside the main thread, where no signal arrives, no limit."""
    import threading

    in_main = threading.current_thread() is threading.main_thread()
    return _Alarm(seconds) if in_main else nullcontext()


def _third(level: int, entropy: tuple[float, float]) -> tuple[float, float]:
    """The easy (0), medium (1) or hard (2) third of a range of entropy, as the generator's `generate.py` cuts it."""
    low, high = entropy
    return low + level * (high - low) / 3, low + (level + 1) * (high - low) / 3


def _flatten(tree: dict[str, object], prefix: str = "") -> dict[str, Callable[[], object]]:
    flat: dict[str, Callable[[], object]] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{name}__"))
        else:
            flat[prefix + name] = value  # type: ignore[assignment]
    return flat


def _load_repaired(name: str) -> None:
    """Put module `name` of the package, compiled from its own source with its `_REPAIRS` made, where Python looks."""
    if name in sys.modules:
        return
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.loader is None:
        raise ValueError(
            "mathematics_dataset is not installed; wanted version 1.0.1 to generate problems. "
            "Run: pip install mathematics_dataset==1.0.1, or give --raw the folder of published text files."
        )
    source = _repair(name, spec.loader.get_source(name))  # type: ignore[attr-defined]
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        exec(compile(source, str(spec.origin), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    # What the import system does after loading a submodule: `from package import name` looks here.
    package, _, short = name.rpartition(".")
    setattr(sys.modules[package], short, module)


def _repair(name: str, source: str) -> str:
    for old, new, times in _REPAIRS[name]:
        found = source.count(old)
        if found != times:
            raise ValueError(
                f"{name}: {old!r} occurs {found} times; wanted {times}, as in version 1.0.1. "
                f"Run: pip install mathematics_dataset==1.0.1"
            )
        source = source.replace(old, new)
    return source
