"""The figures of mathematics problems that saved models answered: by set, level and module, against training loss and
model size, each with its caption (Henighan et al. 2020, figures 13 and 23 to 27)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from analysis import figures_answers as figures
from analysis.answers import (
    Answered,
    QuestionSet,
    answered,
    holds_excluded,
    labels,
    last_answers,
    modules_of,
    sets_of,
)
from analysis.estimate import Fit
from analysis.evaluations import Evaluations
from analysis.figures_answers import Line
from analysis.fit import fit_curve
from analysis.laws import power
from analysis.page import Picture, safe
from analysis.points import LossPoints, PointSet
from analysis.separable import POWER
from analysis.words import parameter_in_words, short

MOST_PANELS = 5
MOST_LINES = 10
MOST_BARS = 3  # sizes side by side, as in the paper's figure 26
DRAWS, SEED = 200, 0
LEFT_OUT = (
    " In no figure: the two modules that the paper leaves out of its trends, probability__swr_p_level_set_more_samples "
    "and probability__swr_p_sequence_more_samples."
)


def mathematics_pictures(evaluations: Evaluations) -> list[Picture]:
    """All that the answers allow."""
    every = answered(evaluations.found)
    if not sets_of(every):
        return []
    last = last_answers(every)
    shown = _collapse(every) + _levels(last)
    for number, asked in enumerate(_by_name(sets_of(every))):
        suffix = f"-{number + 1}" if number else ""
        name = labels(sets_of(every))[asked]
        shown += _bars(f"mathematics-modules{suffix}", name, last, asked)
        shown += _modules_by_size(f"mathematics-modules-size{suffix}", name, last, asked)
    if shown and holds_excluded(evaluations.found):
        shown[0] = replace(shown[0], caption=shown[0].caption + LEFT_OUT)
    return shown


def _spread(names: Sequence, most: int) -> list:
    """Of many, some from end to end."""
    if len(names) <= most:
        return list(names)
    return [names[k] for k in np.unique(np.linspace(0, len(names) - 1, most).astype(int))]


def _by_name(sets: Sequence[QuestionSet]) -> list[QuestionSet]:
    """The sets that are drawn by module: all that are of no one level, else the easiest and the hardest level."""
    return [each for each in sets if each.level is None] or _spread(sets, 2)


def _positive(values: np.ndarray) -> np.ndarray:
    """Which losses have a logarithm."""
    return np.isfinite(values) & (values > 0)


def _collapse(every: Sequence[Answered]) -> list[Picture]:
    """Henighan et al. 2020, figures 13 and 24."""
    known = [each for each in every if np.isfinite(each.train_loss)]
    sizes = np.unique([each.params for each in known])
    names, panels = labels(sets_of(every)), []
    for asked in _spread(sets_of(known), MOST_PANELS):
        lines = []
        for run in dict.fromkeys(each.checkpoint.run.run_id for each in known):
            mine = [each for each in known if each.checkpoint.run.run_id == run]
            table = np.array([(each.train_loss, *each.of(asked)) for each in mine]).T
            table = table[:, _positive(table[2])]
            if table.size:
                lines.append((int(np.searchsorted(sizes, mine[0].params)), table))
        if lines:
            panels.append((names[asked], lines))
    if not panels:
        return []
    several = max(table.shape[1] for _, lines in panels for _, table in lines) > 1
    caption = (
        "<b>Answers against training loss</b>, a column for each set, a line for the checkpoints of one run. Henighan "
        "et al. 2020 (figures 13 and 24) found that what a model can extrapolate to depends on its training loss "
        "alone: then the lines of all sizes lie on one another."
    )
    if not several:
        caption += (
            " Here each run was asked at one checkpoint alone, which cannot tell size from training loss: ask several "
            "of each (RUN/checkpoints/step-*)."
        )
    return [Picture("mathematics-collapse", figures.collapse(panels, sizes), caption)]


# --- by level


def _levels(last: Sequence[Answered]) -> list[Picture]:
    """Henighan et al. 2020, figures 24 and 25: against the level, and against N. Of several folders of levels, one of
    the most levels."""
    folders: dict[str, list[QuestionSet]] = {}
    for each in sets_of(last):
        if each.level is not None:
            folders.setdefault(each.folder, []).append(each)
    if not folders:
        return []
    levels = max(folders.values(), key=len)
    return _against_level(last, levels) + _levels_by_size(last, levels)


def _against_level(last: Sequence[Answered], levels: Sequence[QuestionSet]) -> list[Picture]:
    rows = []
    for each in _spread(last, MOST_LINES):
        at = np.array([asked.level for asked in levels], float)
        right, loss = np.array([each.of(asked) for asked in levels]).T
        known = _positive(loss)
        if known.sum() >= 2:
            rows.append((f"N = {short(each.params)}", at[known], right[known], loss[known]))
    if not rows:
        return []
    caption = (
        "<b>Answers by level of difficulty.</b> Training problems have levels of 3 to 10; the paper found a kink at 10 "
        "and a smooth decline beyond it (Henighan et al. 2020, figure 24)."
    )
    svg = figures.by_level(rows)
    return [Picture("mathematics-levels", svg, caption)]


def _levels_by_size(last: Sequence[Answered], levels: Sequence[QuestionSet]) -> list[Picture]:
    rows, laws, said = [], [], []
    for asked in _spread(levels, MOST_LINES):
        params, right, loss = _columns(last, asked)
        if len(params) < 2:
            continue
        law, fit = _law(params, loss, DRAWS)
        rows.append((f"level {asked.level}", params, right, loss))
        laws.append(law)
        said.append(f"{asked.level}: {_exponent(fit)}")
    if not rows:
        return []
    caption = (
        "<b>Answers by level against model size</b> (Henighan et al. 2020, figure 25). Exponents of power laws of the "
        f"loss: {'; '.join(said)}."
    )
    return [Picture("mathematics-levels-size", figures.against_size(rows, laws), caption)]


def _columns(
    last: Sequence[Answered], asked: QuestionSet, module: bytes | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """N, per cent and loss of the sizes that have a loss there."""
    rows = [(each.params, *each.of(asked, module)) for each in last]
    params, right, loss = np.array(rows).T
    known = _positive(loss)
    return params[known], right[known], loss[known]


def _law(params: np.ndarray, loss: np.ndarray, draws: int) -> tuple[Line | None, Fit | None]:
    """A pure power law, as in the paper's figure 23; None of too few sizes."""
    label = np.array([f"N = {short(size)}" for size in params])
    found = PointSet("answers", LossPoints.of(label, label, params=params, loss=loss), ())
    try:
        fit = fit_curve(found, POWER, "params", draws, SEED)
    except ValueError:
        return None, None
    line = np.geomspace(params.min(), params.max(), 40)
    return (line, power(line, fit.value("scale"), fit.value("exponent"))), fit


def _exponent(fit: Fit | None) -> str:
    return "not fitted" if fit is None else parameter_in_words(fit, "exponent")


# --- by module


def _bars(picture: str, name: str, last: Sequence[Answered], asked: QuestionSet) -> list[Picture]:
    """Henighan et al. 2020, figures 26 and 27."""
    having = [each for each in last if asked in each.tables]
    shown = _spread(having, MOST_BARS)
    right = {module: shown[-1].of(asked, module)[0] for module in modules_of(shown, asked)}
    order = sorted(right, key=lambda each: (-np.nan_to_num(right[each], nan=-1.0), each))
    if len(order) < 2:
        return []
    rows = []
    for each in shown:
        share, loss = np.array([each.of(asked, module) for module in order]).T
        rows.append((having.index(each), f"N = {short(each.params)}", share, loss))
    count = int(shown[-1].tables[asked]["questions"].sum())
    caption = (
        f"<b>Answers by module of {safe(name)}</b>, of {count} questions to the largest model, its best modules first "
        "(Henighan et al. 2020, figures 26 and 27, of the published files)."
    )
    modules = [module.decode() for module in order]
    return [Picture(picture, figures.by_module(modules, rows, len(having)), caption)]


def _modules_by_size(
    picture: str, name: str, last: Sequence[Answered], asked: QuestionSet
) -> list[Picture]:
    """Henighan et al. 2020, figure 23."""
    panels, fitted = [], 0
    for module in modules_of(last, asked):
        params, _, loss = _columns(last, asked, module)
        if len(params) < 2:
            continue
        law, fit = _law(params, loss, draws=0)
        title = "\n".join(module.decode().split("__"))
        if fit is not None:
            fitted += 1
            title += f"\nexponent {fit.value('exponent'):.3f}"
        panels.append((title, params, loss, law))
    if not panels:
        return []
    caption = (
        f"<b>Loss by module of {safe(name)} against model size</b> (Henighan et al. 2020, figure 23), on one scale. "
        f"Lines: power laws, of {fitted} of {len(panels)} modules; their exponents have no intervals, for each module "
        "was asked little."
    )
    return [Picture(picture, figures.modules_against_size(panels), caption)]
