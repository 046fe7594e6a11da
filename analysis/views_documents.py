"""The figures of single documents by model size: percentiles of their losses, some of them, and those that gain most
and least from size (Henighan et al. 2020, figures 10, 17 and 20)."""

from collections.abc import Mapping, Sequence

import numpy as np

from analysis import figures_evaluations as figures
from analysis.evaluations import Evaluation, Evaluations, improved, one_of_each_size
from analysis.fit import fit_curve
from analysis.laws import power_constant
from analysis.page import Picture, safe
from analysis.points import LossPoints, PointSet
from analysis.separable import POWER_CONSTANT
from analysis.words import parameter_in_words, short

DRAWS, SEED = 200, 0
MOST_DATASETS = 10
SINGLE = 8
"""Documents drawn one by one, as in figure 17."""
SHOWN = 10
"""Documents that gain most, and least, as in figure 20 and in what `launch evaluate` prints."""


def document_pictures(evaluations: Evaluations) -> list[Picture]:
    """Of each dataset that two sizes or more were evaluated on, up to `MOST_DATASETS`."""
    shown = []
    for number, (data, each) in enumerate(list(evaluations.by_data().items())[:MOST_DATASETS]):
        rows = [one for one in one_of_each_size(each) if _whole_percentiles(one)]
        if len(rows) >= 2:
            end = f"-{number + 1}" if number else ""
            shown.append(_percentiles(f"percentiles{end}", evaluations.label(data), rows))
            shown += _single(f"documents{end}", evaluations.label(data), rows)
    return shown


def _percentiles(name: str, data: str, rows: Sequence[Evaluation]) -> Picture:
    """Henighan et al. 2020, figures 10 and 20."""
    params = np.array([one.params for one in rows])
    table = np.array([one.content["percentiles"] for one in rows])
    lines, laws, said = [], [], []
    for at, percent in enumerate(table[0, :, 0]):
        label = f"{percent:g}th percentile"
        lines.append((label, params, table[:, at, 1]))
        law, words = law_of_size(label, params, table[:, at, 1])
        laws += law
        said.append(f"{percent:g}: {words}")
    caption = (
        f"<b>Percentiles of the documents' mean losses</b> on {safe(data)}, by model size. "
        f"Exponents of a power law plus constant: {'; '.join(said)}. In the paper each percentile follows one. "
        f"{_improved_words(rows)}"
    )
    return Picture(name, figures.against_size(lines, laws), caption)


def _single(name: str, data: str, rows: Sequence[Evaluation]) -> list[Picture]:
    """Henighan et al. 2020, figure 17; nothing where the sizes were not judged on the same documents."""
    first = rows[0].documents()
    loss = np.full((len(rows), len(first["row"])), np.nan)
    for at, one in enumerate(rows):
        found = first if at == 0 else one.documents()
        if not all(np.array_equal(found[key], first[key]) for key in ("row", "start", "count")):
            return []
        np.divide(found["loss_sum"], found["count"], out=loss[at], where=found["count"] > 0)
    usable = np.flatnonzero(np.all(np.isfinite(loss) & (loss > 0), axis=0))
    if not len(usable):
        return []
    drawn = np.random.default_rng(SEED).choice(usable, min(SINGLE, len(usable)), replace=False)
    params = np.array([one.params for one in rows])
    lines, laws, said = [], [], []
    for each in np.sort(drawn):
        label = f"document {first['row'][each]}:{first['start'][each]}"
        lines.append((label, params, loss[:, each]))
        law, words = law_of_size(label, params, loss[:, each], draws=0)
        laws += law
        said.append(words)
    caption = (
        f"<b>Single documents</b> (row:first token) of {safe(data)}, drawn by lot, by model size. Exponents of a power "
        f"law plus constant, in the order of the names: {'; '.join(said)}. Single pictures of the paper follow "
        "one too, each with a constant and an exponent of its own."
    )
    return [Picture(name, figures.against_size(lines, laws), caption)]


def _whole_percentiles(one: Evaluation) -> bool:
    """Whether there is a logarithm of each: they are NaN where no document lies whole in a row."""
    value = one.content["percentiles"][:, 1]
    return bool(np.all(np.isfinite(value) & (value > 0)))


def law_of_size(
    name: str, params: np.ndarray, loss: np.ndarray, draws: int = DRAWS
) -> tuple[list[tuple[str, np.ndarray, np.ndarray]], str]:
    """The line of a power law plus constant through the losses (name, N, loss), none where it cannot be fitted; and its
    exponent in words."""
    label = np.array([f"N = {short(size)}" for size in params])
    found = PointSet(name, LossPoints.of(label, label, params=params, loss=loss), ())
    try:
        fit = fit_curve(found, POWER_CONSTANT, "params", draws, SEED)
    except ValueError:
        return [], "not fitted"
    line = np.geomspace(params.min(), params.max(), 60)
    constants = {key: fit.value(key) for key in ("irreducible", "scale", "exponent")}
    known = not any(each.startswith("irreducible_not_identified") for each in fit.warnings)
    words = parameter_in_words(fit, "exponent")
    if not known:
        words += " (constant not identified)"
    return [(name, line, power_constant(line, **constants))], words


def _improved_words(rows: Sequence[Evaluation]) -> str:
    found = improved(rows[0], rows[-1])
    if found is None:
        return "The smallest and the largest model were not judged on the same documents."
    said = []
    for kind, unit in (("ratio", "by a factor of"), ("difference", "by nats per token")):
        most, least = _ends(found, kind)
        said.append(f"{unit}: {most}; and least: {least}")
    return (
        f"From N = {short(rows[0].params)} to {short(rows[-1].params)} the loss of these documents (row:first token) "
        f"falls most, {'. Most, '.join(said)}."
    )


def _ends(found: Mapping[str, np.ndarray], kind: str) -> tuple[str, str]:
    """The documents that gained most and least by ratio or difference, with the number; those without one left out."""
    known = np.flatnonzero(np.isfinite(found[kind]))
    order = known[np.argsort(found[kind][known], kind="stable")]
    most, least = (
        ", ".join(f"{found['row'][k]}:{found['start'][k]} ({found[kind][k]:.3g})" for k in which)
        for which in (order[::-1][:SHOWN], order[:SHOWN])
    )
    return most or "none", least or "none"
