"""The figures of what one part of a pair tells of the other, each with the caption that says what one sees and what the
paper found (Henighan et al. 2020, section 4, figures 12, 28 and 29)."""

from collections.abc import Sequence

import numpy as np

from analysis import figures_evaluations as figures
from analysis.evaluations import Evaluation, Evaluations, one_of_each_size
from analysis.fit_information import fit_information, information_line
from analysis.page import Picture, safe
from analysis.words import short, value_with_interval

DRAWS, SEED = 200, 0


def information_pictures(evaluations: Evaluations) -> list[Picture]:
    """Of each dataset of pairs by size, and in the course of training where several checkpoints were evaluated."""
    shown = []
    along = evaluations.by_data("information", along=True)
    for number, (data, each) in enumerate(evaluations.by_data("information").items()):
        name = f"information-{number + 1}" if number else "information"
        shown.append(_by_size(name, data[0], one_of_each_size(each)))
        shown += _curves(name, data[0], along[data])
    return shown


def _by_size(name: str, data: str, rows: Sequence[Evaluation]) -> Picture:
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
        law, words = _law(params, table[value], table[error])
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


def _law(
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


def _curves(name: str, data: str, found: Sequence[Evaluation]) -> list[Picture]:
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
