"""The figures that evaluations of saved checkpoints allow, each with the caption that says what one sees and what the
papers found: here the loss on other data; the others in modules of their own."""

import math
from collections.abc import Sequence

import numpy as np

from analysis import figures_evaluations as figures
from analysis import page
from analysis.evaluations import (
    Evaluation,
    Evaluations,
    Transfer,
    last_of_each_run,
    one_of_each_size,
    transfer,
)
from analysis.page import Picture, safe
from analysis.runs import Counting, StudyRuns
from analysis.views_answers import mathematics_pictures
from analysis.views_classes import class_pictures
from analysis.views_documents import document_pictures, law_of_size
from analysis.views_information import information_pictures
from analysis.views_positions import position_pictures

MOST_LINES = 9
OWN = "own held-out rows"


def evaluation_pictures(
    study: StudyRuns, counting: Counting, evaluations: Evaluations
) -> list[Picture]:
    """All of them, and those of the runs themselves that belong to the same experiments."""
    shown = information_pictures(evaluations) + _transfer(evaluations)
    shown += document_pictures(evaluations)
    shown += position_pictures(study, counting) + mathematics_pictures(evaluations)
    return shown + class_pictures(study, counting)


def unused_table(evaluations: Evaluations) -> str:
    """The evaluations that could not be read or placed, and why; nothing where there is none."""
    rows = [(each.point, each.reason) for each in evaluations.left_out]
    return page.table(("evaluation left out", "why"), rows, tall=len(rows) > 14) if rows else ""


def _transfer(evaluations: Evaluations) -> list[Picture]:
    """Of data that is not the runs' own held-out split: on that these would be no other losses."""
    by_size: list[tuple[str, np.ndarray, np.ndarray]] = []
    own: dict[float, float] = {}
    along, said, laws, exponents = [], [], [], []
    phases, no_other = evaluations.by_data(along=True), _own_splits(evaluations)
    for data, each in evaluations.by_data().items():
        known = [] if data in no_other else _beside_own(each)
        rows = one_of_each_size(known)
        if len(rows) < 2 or len(by_size) >= MOST_LINES:
            continue
        name, traced = evaluations.label(data), _beside_own(phases[data])
        by_size.append((name, *_columns([(one.params, one.loss) for one in rows])))
        own = max(own, {one.params: one.own_loss for one in rows}, key=len)
        ends = {one.run.run_id: one.step for one in last_of_each_run(traced)}
        along.append((name, *_columns([(one.own_loss, one.loss) for one in traced]),
                      np.array([one.step == ends[one.run.run_id] for one in traced])))  # fmt: skip
        said.append(f"{safe(name)}: {_transfer_words(transfer(known), transfer(traced))}")
    if not by_size:
        return []
    by_size.append((OWN, *_columns(sorted(own.items()))))
    for name, params, loss in by_size:
        law, words = law_of_size(name, params, loss)
        laws += law
        exponents.append(f"{safe(name)} {words}")
    caption = (
        "<b>The same models on other data.</b> Left by size, right against the loss on their own held-out rows; small "
        f"marks: earlier checkpoints. {'; '.join(said)}. Exponents of a power law of N plus constant: "
        f"{'; '.join(exponents)}. Kaplan et al. 2020 (figures 8 and 24) found a nearly constant "
        "offset that depends on the loss alone, not on size or phase of training, and so the same exponent on other "
        "data; Henighan et al. 2020 (figure 32) a power law there too, and a line from loss to loss."
    )
    return [Picture("transfer", figures.transfer(by_size, laws, along), caption)]


def _own_splits(evaluations: Evaluations) -> set[tuple[str, str, str]]:
    """Datasets that are the runs' own held-out split, as any of their evaluations says: older ones do not."""
    return {each.data for each in evaluations.found if each.own_split}


def _beside_own(found: Sequence[Evaluation]) -> list[Evaluation]:
    return [each for each in found if math.isfinite(each.own_loss)]


def _transfer_words(last: Transfer, traced: Transfer) -> str:
    """The offset of the last checkpoints, and what those on the way say, which may be judged on fewer rows."""
    said = f"{last.offset:+.3f} nats"
    if math.isfinite(last.spread):
        said += f" (over runs ± {last.spread:.2g})"
    if math.isfinite(traced.slope):
        said += f", {traced.slope:.3g} nats for each of its own"
    if math.isfinite(traced.off_line):
        many = "s lie" if traced.earlier > 1 else " lies"
        said += (
            f"; {traced.earlier} earlier checkpoint{many} {traced.off_line:.2g} nats off that line"
        )
    return said


def _columns(rows: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.array(rows, float).T
    return first, second
