import contextlib
import subprocess
import sys

import numpy as np
import pytest

from data_prep import mathematics_generator as generator

# So slow that one problem can take half a minute.
SLOW = {"comparison__sort_more", *generator.EXCLUDED}


def test_the_published_modules_are_all_there():
    counts = {regime: len(generator.modules(regime)) for regime in generator.REGIMES}
    assert counts == {
        "train-easy": 56, "train-medium": 56, "train-hard": 56, "interpolate": 56, "extrapolate": 15,
    }  # fmt: skip


@pytest.mark.parametrize("regime", generator.REGIMES)
def test_every_module_makes_problems(regime):
    """Two of each: before the repair 7 modules always fail and about 10 sometimes."""
    generator.seed_everything(1)
    for name, make in generator.modules(regime).items():
        if name not in SLOW:
            for _ in range(2):
                question, answer = generator.sample(make)
                assert 0 < len(question) <= 160, name
                assert 0 < len(answer) <= 30, name


@pytest.mark.long
@pytest.mark.parametrize("regime", generator.REGIMES)
def test_every_module_makes_many_problems(regime):
    for name, make in generator.modules(regime).items():
        for _ in range(2 if name in SLOW else 40):
            assert all(generator.sample(make)), name


def test_the_excluded_modules_are_left_out():
    names = [name for name, _ in generator.choose_modules(("extrapolate", "interpolate"))]
    assert len(names) == 56 + 15 - 2
    assert not any("more_samples" in name for name in names)


def test_the_regimes_differ():
    """Harder means longer numbers; a mix-up of the thirds would go unnoticed otherwise."""
    lengths = {}
    for regime in ("train-easy", "train-hard"):
        generator.seed_everything(0)
        make = generator.modules(regime)["arithmetic__mul"]
        lengths[regime] = np.mean([len(generator.sample(make)[0]) for _ in range(300)])
    assert lengths["train-hard"] > lengths["train-easy"] + 1


def test_the_repair_leaks_into_nothing():
    program = """
import numpy, sympy
before = set(vars(numpy)), set(vars(sympy.solvers.diophantine))
from data_prep.mathematics_generator import modules
modules("train-easy")
assert (set(vars(numpy)), set(vars(sympy.solvers.diophantine))) == before
assert not hasattr(numpy.ndarray, "itemset") and not hasattr(sympy.solvers.diophantine, "base_solution_linear")
import mathematics_dataset.sample.polynomials as p, mathematics_dataset.sample as s
assert s.polynomials is p
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_another_version_of_the_package_is_refused():
    with pytest.raises(
        ValueError, match="occurs 0 times; wanted 1, as in version 1.0.1. Run: pip install"
    ):
        generator._repair("mathematics_dataset.sample.polynomials", "nothing of the kind")


def test_unknown_regime():
    with pytest.raises(ValueError, match="regime 'train' is not known; wanted some of train-easy"):
        generator.modules("train")


def test_a_problem_that_hangs_is_given_up():
    def hang():
        while True:
            with contextlib.suppress(Exception):
                sum(range(1000))

    with pytest.raises(generator.ProblemTimeout, match="no problem within 0.2 s"):
        generator.sample(hang, seconds=0.2)
