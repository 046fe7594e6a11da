"""The figures that evaluations of saved checkpoints allow, each with the caption that says what one sees and what the
papers found: mutual information, transfer, percentiles of documents; of mathematics see `analysis.views_answers`."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from analysis import figures_evaluations as figures
from analysis import page
from analysis.evaluations import (
    Evaluation,
    Evaluations,
    improved,
    last_of_each_run,
    one_of_each_size,
    transfer,
)
from analysis.fit import fit_curve
from analysis.fit_information import fit_information, information_line
from analysis.laws import power_constant
from analysis.page import Picture, safe
from analysis.points import LossPoints, PointSet
from analysis.runs import Counting, StudyRuns
from analysis.separable import POWER_CONSTANT
from analysis.views_answers import mathematics_pictures
from analysis.views_classes import class_pictures
from analysis.views_positions import position_pictures
from analysis.words import short, value_with_interval

DRAWS, SEED = 200, 0
MOST_LINES = 10
SHOWN = 5


def evaluation_pictures(
    study: StudyRuns, counting: Counting, evaluations: Evaluations
) -> list[Picture]:
    """All of them, and those of the runs themselves that belong to the same experiments."""
    shown = _information(evaluations) + _transfer(evaluations) + _percentiles(evaluations)
    shown += position_pictures(study, counting) + mathematics_pictures(evaluations)
    return shown + class_pictures(study, counting)


def unused_table(evaluations: Evaluations) -> str:
    """The evaluations that could not be read or placed, and why; nothing where there is none."""
    rows = [(each.point, each.reason) for each in evaluations.left_out]
    return page.table(("evaluation left out", "why"), rows, tall=len(rows) > 14) if rows else ""


# --- mutual information


def _information(evaluations: Evaluations) -> list[Picture]:
    shown = []
    for number, (data, each) in enumerate(evaluations.by_data("information").items()):
        name = f"information-{number + 1}" if number else "information"
        shown.append(_information_by_size(name, data[0], one_of_each_size(each)))
        shown += _information_curves(name, data[0], each)
    return shown


def _information_by_size(name: str, data: str, rows: Sequence[Evaluation]) -> Picture:
    params = np.array([each.params for each in rows])
    table = np.concatenate([each.content["information"] for each in rows])
    first = table[0]
    part, blanked, whole = (first[key].decode() for key in ("part", "blanked", "gain_of"))
    pairs = (
        ("mutual information  [nats per pair]", "mutual_information", "standard_error"),
        (f"information gain  [share of {whole}]", "information_gain", "information_gain_error"),
    )
    exact = rows[-1].content["attributes"].get("known_mutual_information")
    panels, laws, said = [], [], []
    for label, value, error in pairs:
        panels.append((label, table[value], table[error]))
        law, words = _information_law(params, table[value], table[error])
        laws.append(law)
        said.append(words)
    truth = None if exact is None else float(exact)
    known = (truth, None)  # no share: a model's own loss is no known entropy of the whole
    last = table[-1]
    caption = (
        f"<b>What {safe(blanked)} tells of {safe(part)}</b> on {safe(data)}, by model size: {safe(part)} behind a "
        f"blank less behind its own {safe(blanked)}. At N = {short(params[-1])}: {last['mutual_information']:.3f} ± "
        f"{last['standard_error']:.2g} nats per pair, {100 * last['information_gain']:.3g}% of {safe(whole)}'s. "
        f"I = rate log(N/Nc): {said[0]}; information gain: {said[1]}."
    )
    caption += _known_words(truth, last) + _published_information(part, blanked)
    return Picture(name, figures.information(params, panels, laws, known), caption + _worth(rows))


def _information_law(
    params: np.ndarray, value: np.ndarray, error: np.ndarray
) -> tuple[tuple[np.ndarray, ...] | None, str]:
    """The fitted line with its band, and its numbers in words; or why there is none."""
    try:
        fit = fit_information(params, value, error, DRAWS, SEED)
    except ValueError as problem:
        return None, f"not fitted ({safe(problem)})"
    line = np.geomspace(params.min() / 1.5, params.max() * 1.5, 60)
    words = ", ".join(f"{n} {value_with_interval(each)}" for n, each in fit.parameters.items())
    doubts = "".join(f"; {safe(each.partition(':')[0])}" for each in fit.warnings)
    return (line, *information_line(fit, line)), words + doubts


def _known_words(exact: float | None, row: np.ndarray) -> str:
    if exact is None:
        return ""
    away = (row["mutual_information"] - exact) / row["standard_error"]
    return f" Exact: {exact:.4f} nats; the largest model is {away:+.1f} standard errors from it."


def _published_information(part: str, blanked: str) -> str:
    """Henighan et al. 2020, section 4: both directions by name."""
    if (blanked, part) == ("text", "image"):
        return (
            " Published for text to image: about 8 nats at 1e9 parameters, an information gain of about 10% there and "
            "of 20% only near 3e12 (Henighan et al. 2020, section 4)."
        )
    if (blanked, part) == ("image", "text"):
        return (
            " Published: image to text far less than text to image, 2.6 nats per text token of the best model, and a "
            "picture of 32x32 worth 2 to 3 words (Henighan et al. 2020, section 4)."
        )
    return ""


def _worth(rows: Sequence[Evaluation]) -> str:
    found = rows[-1].content["attributes"]
    said = ""
    if not all(each.content["attributes"].get("trained_on_blanks", True) for each in rows):
        said += (
            " Not all of these models were trained on blanked pairs: without it the paper found numbers about twice "
            "too large."
        )
    if "worth_words" in found:
        said += (
            f" A caption has {found['words_per_caption']:.3g} words of {found['nats_per_word']:.3g} nats each, so a "
            f"picture is worth {found['worth_words']:.2g} of them."
        )
    return said


def _information_curves(name: str, data: str, found: Sequence[Evaluation]) -> list[Picture]:
    """Henighan et al. 2020, figure 29."""
    rows, exact = [], None
    for last in one_of_each_size(found):
        mine = [each for each in found if each.run.run_id == last.run.run_id]
        if len(mine) > 1:
            value = [float(each.content["information"]["mutual_information"][0]) for each in mine]
            rows.append((last.params, np.array([each.step for each in mine]), np.array(value)))
            exact = mine[-1].content["attributes"].get("known_mutual_information")
    if not rows:
        return []
    caption = f"<b>Mutual information in the course of training</b>, on {safe(data)}."
    svg = figures.information_curves(rows, None if exact is None else float(exact))
    return [Picture(f"{name}-curves", svg, caption)]


# --- other datasets


def _transfer(evaluations: Evaluations) -> list[Picture]:
    by_size, along, said = [], [], []
    for data, each in list(evaluations.by_data().items())[:MOST_LINES]:
        known = [one for one in each if math.isfinite(one.own_loss)]
        name = _label(data, evaluations)
        rows = one_of_each_size(known)
        if len(rows) < 2:
            continue
        by_size.append((name, *_columns([(one.params, one.loss) for one in rows])))
        latest = last_of_each_run(known)
        own, loss = _columns([(one.own_loss, one.loss) for one in known])
        along.append((name, own, loss, np.array([one in latest for one in known])))
        said.append(f"{safe(name)}: {_transfer_words(known)}")
    if not by_size:
        return []
    caption = (
        "<b>The same models on other data.</b> Left by size, right against the loss on their own held-out rows; small "
        f"marks: earlier checkpoints. {'; '.join(said)}. Kaplan et al. 2020 (figures 8 and 24) found a nearly constant "
        "offset that depends on the loss alone, not on size or phase of training; Henighan et al. 2020 (figure 32) a "
        "line."
    )
    return [Picture("transfer", figures.transfer(by_size, along), caption)]


def _transfer_words(known: Sequence[Evaluation]) -> str:
    found = transfer(known)
    said = f"{found.offset:+.3f} nats"
    if math.isfinite(found.spread):
        said += f" (over runs ± {found.spread:.2g})"
    if math.isfinite(found.slope):
        said += f", {found.slope:.3g} nats for each of its own"
    if math.isfinite(found.off_line):
        said += f"; {found.earlier} earlier checkpoints lie {found.off_line:.2g} nats off that line"
    return said


def _label(data: tuple[str, str, str], evaluations: Evaluations) -> str:
    """The shortest name that tells datasets apart."""
    others = [each for each in evaluations.by_data() if each != data]
    name, split, identity = data
    if all(each[0] != name for each in others):
        return name
    if all(each[:2] != (name, split) for each in others):
        return f"{name} {split}"
    return f"{name} {split} {identity[:6]}"


# --- documents


def _percentiles(evaluations: Evaluations) -> list[Picture]:
    """Henighan et al. 2020, figures 10, 17 and 20."""
    shown = []
    for number, (data, each) in enumerate(evaluations.by_data().items()):
        rows = [one for one in one_of_each_size(each) if _whole_percentiles(one)]
        if len(rows) < 2 or number >= MOST_LINES:
            continue
        params = np.array([one.params for one in rows])
        table = np.array([one.content["percentiles"] for one in rows])
        lines, laws, said = [], [], []
        for at, percent in enumerate(table[0, :, 0]):
            name = f"{percent:g}th percentile"
            lines.append((name, params, table[:, at, 1]))
            law, words = _percentile_law(name, params, table[:, at, 1])
            laws += law
            said.append(f"{percent:g}: {words}")
        caption = (
            f"<b>Percentiles of the documents' mean losses</b> on {safe(_label(data, evaluations))}, by model size. "
            f"Exponents of a power law plus constant: {'; '.join(said)}. In the paper each percentile follows one. "
            f"{_improved_words(rows)}"
        )
        name = f"percentiles-{number + 1}" if number else "percentiles"
        shown.append(Picture(name, figures.against_size(lines, laws), caption))
    return shown


def _whole_percentiles(one: Evaluation) -> bool:
    """Whether there is a logarithm of each: they are NaN where no document lies whole in a row."""
    value = one.content["percentiles"][:, 1]
    return bool(np.all(np.isfinite(value) & (value > 0)))


def _percentile_law(
    name: str, params: np.ndarray, loss: np.ndarray
) -> tuple[list[tuple[str, np.ndarray, np.ndarray]], str]:
    label = np.array([f"N = {short(size)}" for size in params])
    found = PointSet(name, LossPoints.of(label, label, params=params, loss=loss), ())
    try:
        fit = fit_curve(found, POWER_CONSTANT, "params", DRAWS, SEED)
    except ValueError:
        return [], "not fitted"
    line = np.geomspace(params.min(), params.max(), 60)
    constants = {key: fit.value(key) for key in ("irreducible", "scale", "exponent")}
    known = not any(each.startswith("irreducible_not_identified") for each in fit.warnings)
    words = value_with_interval(fit.parameters["exponent"])
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


def _columns(rows: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.array(rows, float).T
    return first, second
