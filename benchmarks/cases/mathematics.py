"""Mathematics problems: the published generator's own loop against a piece of our build, one core each.

The peer draws a module, samples, and turns question and answer into text, as its `generate.py` does, and
draws again where they are too long. Ours is what a worker of a build does: the same with a time limit,
token arrays and digests. Modules differ 3,000-fold in speed, so both draw with one seed.
"""

import random
from pathlib import Path

from benchmarks.cases import Case
from data_prep.domain import Piece, domain, family
from data_prep.mathematics_generator import TRAIN_REGIMES, choose_modules, seed_everything

_PROBLEMS = 400
_LONGEST_QUESTION, _LONGEST_ANSWER = 160, 30  # the generator's own limits


def _plain(choices: list, problems: int) -> int:
    seed_everything(0)
    draw = random.Random(0)
    for _ in range(problems):
        _, make = draw.choice(choices)
        while True:
            problem = make()
            question, answer = str(problem.question), str(problem.answer)
            if len(question) <= _LONGEST_QUESTION and len(answer) <= _LONGEST_ANSWER:
                break
    return problems


def cases(scratch: Path) -> list[Case]:
    """One case: problems of the three training regimes, drawn evenly over modules."""
    choices = choose_modules(TRAIN_REGIMES)
    here = domain("mathematics")
    piece = Piece(f"generator:{','.join(TRAIN_REGIMES)}", 0, _PROBLEMS // 7)

    def ours() -> int:
        return sum(1 for _ in family("mathematics").read(here, piece, 0, None))

    return [Case("mathematics problems", "problems", 1.0, lambda: _plain(choices, _PROBLEMS), ours)]
