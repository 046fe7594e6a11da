"""The figures of mathematics problems that saved models answered, by level, module and training loss, each with its
caption (Henighan et al. 2020, figures 13 and 23 to 27)."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from analysis import figures_evaluations as figures
from analysis.evaluations import Evaluation, Evaluations, one_of_each_size
from analysis.page import Picture, safe
from analysis.words import short

MOST_LINES = 10
SHOWN = 5


def mathematics_pictures(evaluations: Evaluations) -> list[Picture]:
    """All that the answers allow."""
    asked = [each for each in evaluations.found if "answers" in each.content]
    if not asked:
        return []
    shown = _collapse(asked)
    rows = one_of_each_size(joined(asked))
    return shown + _levels(rows) + _modules(rows)


def joined(asked: Sequence[Evaluation]) -> list[Evaluation]:
    """The answers of one checkpoint to several folders of questions, as one."""
    together: dict[tuple[str, int], list[Evaluation]] = {}
    for each in asked:
        together.setdefault((each.run.run_id, each.step), []).append(each)
    return [
        replace(
            every[0],
            content=every[0].content
            | {"answers": np.concatenate([each.content["answers"] for each in every])},
        )
        for every in together.values()
    ]


def _of_set(each: Evaluation, name: bytes) -> tuple[float, float]:
    """Answers that are right [%] and loss [nats per token] over all modules of a set."""
    table = each.content["answers"]
    mine = table[table["set"] == name]
    tokens, questions = mine["num_tokens"].sum(), mine["questions"].sum()
    right = 100 * mine["correct"].sum() / questions if questions else math.nan
    return right, mine["loss_sum"].sum() / tokens if tokens else math.nan


def _sets(asked: Sequence[Evaluation]) -> list[bytes]:
    """The sets that occur; of many, some from end to end."""
    names = sorted({name for each in asked for name in each.content["answers"]["set"]})
    if len(names) <= MOST_LINES:
        return names
    return [names[k] for k in np.unique(np.linspace(0, len(names) - 1, MOST_LINES).astype(int))]


def _collapse(asked: Sequence[Evaluation]) -> list[Picture]:
    accuracy, loss = [], []
    for name in _sets(asked):
        having = [each for each in asked if name in each.content["answers"]["set"]]
        train = np.array(
            [float(each.content["attributes"].get("train_loss", math.nan)) for each in having]
        )
        right, lost = _two([_of_set(each, name) for each in having])
        accuracy.append((name.decode(), train, right))
        loss.append((name.decode(), train, lost))
    if not (_any_loss(loss) and np.isfinite(np.concatenate([x for _, x, _ in accuracy])).any()):
        return []
    caption = (
        "<b>Answers against training loss</b>, every checkpoint of every size. Henighan et al. 2020 (figures 13 and "
        "24) found that what a model can extrapolate to depends on its training loss alone: marks of one set then lie "
        "on one line, whatever their size."
    )
    return [Picture("mathematics-collapse", figures.collapse(accuracy, loss), caption)]


def _any_loss(rows: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> bool:
    """Whether a logarithmic axis of losses has anything to show."""
    return any(np.any(np.isfinite(loss) & (loss > 0)) for _, _, loss in rows)


def _levels(rows: Sequence[Evaluation]) -> list[Picture]:
    """By level of difficulty: sets called level-NN."""
    accuracy, loss = [], []
    for each in rows[-MOST_LINES:]:
        names = np.unique(each.content["answers"]["set"])
        levels = [(int(found[1]), name) for name in names
                  if (found := re.fullmatch(r"level-(\d+)", name.decode()))]  # fmt: skip
        if len(levels) < 2:
            continue
        at = np.array([level for level, _ in sorted(levels)])
        right, lost = _two([_of_set(each, name) for _, name in sorted(levels)])
        accuracy.append((f"N = {short(each.params)}", at, right))
        loss.append((f"N = {short(each.params)}", at, lost))
    if not _any_loss(loss):
        return []
    caption = (
        "<b>Answers by level of difficulty.</b> Training problems have levels of 3 to 10; the paper found a kink at 10 "
        "and a smooth decline beyond it (Henighan et al. 2020, figure 24)."
    )
    return [Picture("mathematics-levels", figures.by_level(accuracy, loss), caption)]


def _modules(rows: Sequence[Evaluation]) -> list[Picture]:
    def shares(each: Evaluation) -> dict[bytes, float]:
        table = each.content["answers"]
        found = {}
        for name in np.unique(table["module"]):
            mine = table[table["module"] == name]
            if mine["questions"].sum():
                found[name] = 100 * mine["correct"].sum() / mine["questions"].sum()
        return found

    largest = shares(rows[-1])
    if len(largest) < 2:
        return []
    order = sorted(largest, key=lambda name: (-largest[name], name))
    place = np.arange(1, len(order) + 1)
    lines = []
    for each in rows[-MOST_LINES:]:
        mine = shares(each)
        value = np.array([mine.get(name, math.nan) for name in order])
        lines.append((f"N = {short(each.params)}", place, value))
    best, worst = ", ".join(map(_named, order[:SHOWN])), ", ".join(map(_named, order[-SHOWN:]))
    caption = (
        "<b>Answers by module</b>, over all sets that were asked (Henighan et al. 2020, figures 23, 26 and 27). Best "
        f"of the largest model: {best}; worst: {worst}."
    )
    return [Picture("mathematics-modules", figures.by_module(lines), caption)]


def _named(module: bytes) -> str:
    return safe(module.decode())


def _two(rows: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.array(rows, float).T
    return first, second
