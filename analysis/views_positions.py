"""The figure of the law of the place in the context: loss = irreducible + amplitude T^-exponent of text and of other
rows without a grid (Kaplan et al. 2020, appendix D.5 and figure 20), with what it implies of the mutual information of
the two halves of a row (Henighan et al. 2020, appendix E)."""

import math

from analysis import figures_evaluations as figures
from analysis.derived import infogain_of_halves, information_of_halves
from analysis.laws import by_position
from analysis.page import Picture
from analysis.positions import largest_run, positions_of
from analysis.runs import Counting, StudyRuns
from analysis.sources import fit_law
from analysis.words import has_warning, parameter_in_words, short

STREAMS = ("text", "known-entropy")
DRAWS, SEED = 200, 0


def position_pictures(study: StudyRuns, counting: Counting) -> list[Picture]:
    """Of the largest run, where its rows are one stream: no picture, clip or pair."""
    if not _one_stream(study):
        return []
    try:
        run = largest_run(study, counting)
        found = positions_of(run, counting.split)
        fit = fit_law(found, "position", "position", DRAWS, SEED)
    except ValueError:
        return []
    constants = {name: fit.value(name) for name in ("irreducible", "amplitude", "exponent")}
    at = found.points.position
    svg = figures.by_place(at, found.points.loss, by_position(at, **constants))
    words = ", ".join(f"{name} {parameter_in_words(fit, name)}" for name in constants)
    caption = (
        f"<b>Held-out loss by place in the context</b> of the largest model, N = {short(counting.of(run))}: {words}. "
        "Kaplan et al. 2020 print 2.3 + 5.4 T^-0.62 for one of theirs."
    )
    half = int(at.max()) // 2
    told = information_of_halves(half, **constants)
    if half >= 2 and math.isfinite(told) and not has_warning(fit, "exponent_at_bound"):
        share = 100 * infogain_of_halves(half, **constants)
        caption += (
            f" By this law {half} tokens tell {told:.3g} nats of the {half} that follow, {share:.2g}% of their loss "
            "(Henighan et al. 2020, appendix E)."
        )
    return [Picture("positions-law", svg, caption)]


def _one_stream(study: StudyRuns) -> bool:
    name = str(study.runs[0].config.get("domain")) if study.runs else ""
    return name.partition("-v")[0] in STREAMS
