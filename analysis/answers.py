"""What `launch answers` left, as one table for each checkpoint: every set of questions once, own and published apart.

A set is named by the folder that holds it and by its own name: `interpolate` of a folder made by `data_prep questions`
and the published `interpolate` are two sets (Henighan et al. 2020 draw trends of their own, final accuracies of the
published files). Of one set that was asked several times the file of the most questions counts.
"""

import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from analysis.evaluations import Evaluation, one_of_each_size
from data_prep.mathematics_generator import EXCLUDED

LEVEL = re.compile(r"level-(\d+)")


@dataclass(frozen=True, order=True)
class QuestionSet:
    """A folder of sets, as it was named on the command line, and the name of one in it."""

    folder: str
    name: str

    @property
    def level(self) -> int | None:
        """The level of difficulty that all its questions have, if it is of one."""
        found = LEVEL.fullmatch(self.name)
        return int(found[1]) if found else None


@dataclass(frozen=True)
class Answered:
    """One checkpoint and what it answered: of each set a table of modules (`launch.answers.ANSWER_COLUMNS`), without
    the modules that the paper leaves out of its trends."""

    checkpoint: Evaluation
    tables: Mapping[QuestionSet, np.ndarray]

    @property
    def params(self) -> float:
        """N as the report counts it."""
        return self.checkpoint.params

    @property
    def train_loss(self) -> float:
        """What training had come to there, in nats per token of an answer; NaN where nobody says."""
        return float(self.checkpoint.content["attributes"].get("train_loss", math.nan))

    def of(self, asked: QuestionSet, module: bytes | None = None) -> tuple[float, float]:
        """Right answers [%] and loss [nats per token] of a set, or of one module of it; NaN where none was asked."""
        table = self.tables.get(asked)
        if table is None:
            return math.nan, math.nan
        mine = table if module is None else table[table["module"] == module]
        tokens, questions = mine["num_tokens"].sum(), mine["questions"].sum()
        right = 100 * mine["correct"].sum() / questions if questions else math.nan
        return float(right), float(mine["loss_sum"].sum() / tokens) if tokens else math.nan


def answered(found: Sequence[Evaluation]) -> list[Answered]:
    """Of each checkpoint that was asked anything, in the order of `found`."""
    asked = [each for each in found if "answers" in each.content]
    folders = _one_name_each({_folder(each, name) for each in asked for name in _names(each)})
    together: dict[tuple[str, int], list[Evaluation]] = {}
    for each in asked:
        together.setdefault((each.run.run_id, each.step), []).append(each)
    return [Answered(every[0], _fullest(every, folders)) for every in together.values()]


def holds_excluded(found: Sequence[Evaluation]) -> bool:
    """Whether any was asked a module that the paper leaves out, as the published `extrapolate` has them."""
    asked = [each.content["answers"] for each in found if "answers" in each.content]
    return any(bool(np.isin(table["module"], _EXCLUDED).any()) for table in asked)


def last_answers(every: Sequence[Answered]) -> list[Answered]:
    """Of each size the run that was trained longest, at its latest checkpoint."""
    chosen = one_of_each_size([each.checkpoint for each in every])
    by_checkpoint = {(each.checkpoint.run.run_id, each.checkpoint.step): each for each in every}
    return [by_checkpoint[each.run.run_id, each.step] for each in chosen]


def sets_of(every: Sequence[Answered]) -> list[QuestionSet]:
    """The sets that any of them was asked."""
    return sorted({each for one in every for each in one.tables})


def modules_of(every: Sequence[Answered], asked: QuestionSet) -> list[bytes]:
    """The modules that any of them was asked in a set."""
    return sorted(
        {name for one in every for name in one.tables.get(asked, _NONE)["module"].tolist()}
    )


_NONE = np.empty(0, [("module", "S64")])


def labels(sets: Collection[QuestionSet]) -> dict[QuestionSet, str]:
    """The shortest names that tell sets apart: with their folder where several folders were asked."""
    folders = {each.folder for each in sets}
    last = [PurePath(each).name for each in folders]
    short = {each: PurePath(each).name for each in folders}
    if len(set(last)) < len(last):
        short = {each: each for each in folders}
    return {
        each: f"{each.name} ({short[each.folder]})" if len(folders) > 1 else each.name
        for each in sets
    }


def _fullest(
    every: Sequence[Evaluation], folders: Mapping[str, str]
) -> dict[QuestionSet, np.ndarray]:
    tables: dict[QuestionSet, np.ndarray] = {}
    for each in every:
        content = each.content["answers"]
        for name in _names(each):
            own = QuestionSet(folders[_folder(each, name)], name.decode())
            table = content[content["set"] == name]
            old = tables.get(own)
            if old is None or table["questions"].sum() > old["questions"].sum():
                tables[own] = table
    kept = {own: table[~np.isin(table["module"], _EXCLUDED)] for own, table in tables.items()}
    return {own: table for own, table in kept.items() if len(table)}


_EXCLUDED = sorted(name.encode() for name in EXCLUDED)


def _names(each: Evaluation) -> list[bytes]:
    return np.unique(each.content["answers"]["set"]).tolist()


def _folder(each: Evaluation, name: bytes) -> str:
    """The folder that holds the set: the one that was asked, or its parent where that is the set itself."""
    path = PurePath(os.path.normpath(str(each.content["attributes"].get("questions", "questions"))))
    return str(path.parent if path.name == name.decode() else path)


def _one_name_each(folders: Collection[str]) -> dict[str, str]:
    """Each path -> the longest one of these that ends with it, if only one does: `questions` and `/data/questions` are
    one folder, named from two places."""
    found = {}
    for each in folders:
        parts = PurePath(each).parts
        longer = [other for other in folders if PurePath(other).parts[-len(parts) :] == parts]
        longest = max(longer, key=len)
        chain = all(
            PurePath(longest).parts[-len(PurePath(o).parts) :] == PurePath(o).parts for o in longer
        )
        found[each] = longest if chain else each
    return found
