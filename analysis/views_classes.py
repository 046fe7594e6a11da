"""The figures of fine-tuning for classification: loss and error against N, and loss against steps, from pretrained
weights and from scratch (Henighan et al. 2020, section 5 and figure 11)."""

import math

import numpy as np

from analysis import figures_evaluations as figures
from analysis.figures import LOSS_LABEL
from analysis.fit import fit_curve
from analysis.laws import power
from analysis.page import Picture, safe
from analysis.points import LossPoints, PointSet
from analysis.runs import Counting, StudyRuns
from analysis.separable import POWER
from analysis.words import parameter_in_words
from launch.results import RunResult

SUFFIX = "-classes"
ERROR = "error"
DRAWS, SEED = 200, 0
PRETRAINED, SCRATCH = "pretrained", "from scratch"
PUBLISHED = (
    " In the paper loss and error of pretrained models are pure power laws in N, without the bend of the generative "
    "loss; models from scratch overfit as they grow, and the smallest gain nothing. Its exponents are not in its text."
)


def class_pictures(study: StudyRuns, counting: Counting) -> list[Picture]:
    """Loss and error of a study of labelled pictures; nothing for others."""
    domain = str(study.runs[0].config.get("domain")) if study.runs else ""
    if not domain.endswith(SUFFIX):
        return []
    shown = []
    for name, what, label in (
        ("loss", "Loss of the class", LOSS_LABEL.replace("token", "picture")),
        (ERROR, "Error", "pictures of the wrong class  [share]"),
    ):
        lines, laws, said = [], [], []
        for start, points in _points(study, counting, name).items():
            at, value = _means(points)
            lines.append((start, at, value))
            found, words = _law(start, points)
            laws += found
            said.append(f"{start}: {words}")
        if lines:
            caption = f"<b>{what} against model size</b>, the lowest of each run. Pure power laws: "
            caption += f"{safe('; '.join(said))}.{_none_wrong(study, counting, name)}{PUBLISHED}"
            svg = figures.against_size(lines, laws, label)
            shown.append(Picture(f"classes-{name}", svg, caption))
    return shown + _curves(study, counting)


def _curves(study: StudyRuns, counting: Counting) -> list[Picture]:
    """Of each size the longest run of either start."""
    best: dict[tuple[float, str], np.ndarray] = {}
    for run in study.runs:
        table = run.eval_rows(counting.split)
        table = table[table["step"] > 0]  # before the first step there is no logarithm of it
        key = counting.of(run), _start(run)
        if len(table) and (key not in best or table["step"][-1] > best[key]["step"][-1]):
            best[key] = table
    starts = sorted({start for _, start in best})
    if not starts:
        return []
    rows = [(*key, table["step"], table["loss"]) for key, table in sorted(best.items())]
    looks = {PRETRAINED: "solid", SCRATCH: "dashed"}
    caption = (
        "<b>Loss of the class against steps</b>, held-out, one run of every size, "
        f"{' and '.join(f'{looks[start]}: {start}' for start in starts)}."
    )
    if len(starts) == 1:
        caption += (
            " Runs of the other start are not in this study, so there is nothing to compare with."
        )
    svg = figures.by_steps(rows, {SCRATCH}, LOSS_LABEL.replace("token", "picture"))
    return [Picture("classes-curves", svg, caption)]


def _start(run: RunResult) -> str:
    return PRETRAINED if run.config.get("start") else SCRATCH


def _points(study: StudyRuns, counting: Counting, kind: str) -> dict[str, PointSet]:
    """The lowest value of each run, which pretrained and which not."""
    rows: dict[str, list[tuple[str, float, float]]] = {}
    for run in study.runs:
        lowest = _lowest(run, counting, kind)
        if lowest > 0:  # of no wrong picture among so few there is no logarithm
            rows.setdefault(_start(run), []).append((run.run_id, counting.of(run), lowest))
    found = {}
    for start, each in sorted(rows.items()):
        label = np.array([name for name, _, _ in each])
        params, value = np.array([numbers for _, *numbers in each]).T
        found[start] = PointSet(
            f"{study.path}, {start}", LossPoints.of(label, label, params=params, loss=value), ()
        )
    return found


def _lowest(run: RunResult, counting: Counting, kind: str) -> float:
    """NaN where it was not measured."""
    table = run.eval_rows(counting.split, kind)
    return float(table["loss"].min()) if len(table) else math.nan


def _none_wrong(study: StudyRuns, counting: Counting, kind: str) -> str:
    none = sum(_lowest(run, counting, kind) == 0 for run in study.runs)
    if not none:
        return ""
    return (
        f" {none} of {len(study.runs)} runs reached 0, which has no logarithm: they are in neither marks nor law, "
        "and the law is of the others."
    )


def _means(found: PointSet) -> tuple[np.ndarray, np.ndarray]:
    """Over runs of one size."""
    sizes = np.unique(found.points.params)
    return sizes, np.array(
        [found.points.loss[found.points.params == each].mean() for each in sizes]
    )


def _law(start: str, found: PointSet) -> tuple[list[tuple[str, np.ndarray, np.ndarray]], str]:
    try:
        fit = fit_curve(found, POWER, "params", DRAWS, SEED)
    except ValueError:
        return [], f"not fitted, of {len(np.unique(found.points.params))} sizes"
    line = np.geomspace(found.points.params.min(), found.points.params.max(), 60)
    curve = power(line, fit.value("scale"), fit.value("exponent"))
    return [(start, line, curve)], f"exponent {parameter_in_words(fit, 'exponent')}"
