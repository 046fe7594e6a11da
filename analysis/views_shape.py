"""The figures of shape: what the proportions of a model cost at equal size, and what N has to count.

Kaplan et al. 2020, figures 5 and 6; Henighan et al. 2020, figure 4.
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from analysis import figures_runs
from analysis.figures_variants import shape_panels
from analysis.laws import power_constant
from analysis.page import Picture
from analysis.published import PublishedDomain, published
from analysis.runs import Counting, StudyRuns
from analysis.words import short
from launch.results import RunResult

SAME_SIZE = 1.1
"""Shapes whose N differ by at most this factor are compared with one another."""

FEWEST_SHAPES = 3
Cell = list[tuple[RunResult, float]]


def shape_pictures(study: StudyRuns, counting: Counting) -> list[Picture]:
    """All of them that the shapes of these runs allow."""
    return shapes(study, counting) + counted(study, counting)


def shapes(study: StudyRuns, counting: Counting) -> list[Picture]:
    """Sizes that were trained in several proportions on equal tokens: one proportion at a time, the others
    as most runs of that size have them."""
    panels: dict[str, list[tuple[str, np.ndarray, np.ndarray]]] = {}
    worst, known = 0.0, published(str(study.runs[0].config.get("domain"))) if study.runs else None
    for size, cell in _cells(study, counting, known):
        for label, found in _panels(cell).items():
            at = np.array(sorted(found))
            loss = np.array([np.mean(found[each]) for each in at])
            off = 100 * (loss / loss.min() - 1)
            worst = max(worst, float(off.max()))
            panels.setdefault(label, []).append((f"N = {short(size)}", at, off))
    if not panels:
        return []
    return [
        Picture(
            "shapes",
            shape_panels(panels),
            "<b>Shape at equal size.</b> Lowest loss in percent above the best shape of that N, one proportion "
            f"at a time; {_corrected(known)}. At most {worst:.1f}% here. Kaplan et al. 2020: a few "
            "percent over a factor 40 in width over depth; Henighan et al. 2020: best near 5 for pictures and "
            "mathematics, near 100 for language.",
        )
    ]


def _corrected(known: PublishedDomain | None) -> str:
    """What was done about sizes that are not quite equal, in words."""
    if known is None:
        return "what is left of a difference in N is not taken out, since no L(N) of this domain is published"
    law = known.loss_by_params
    start = f"{law.irreducible:g} + " if law.irreducible else ""
    return (
        f"what is left of a difference in N is taken out by the published L(N) = {start}({short(law.scale)}/N)^"
        f"{law.exponent:g}"
    )


def _cells(
    study: StudyRuns, counting: Counting, known: PublishedDomain | None
) -> Iterable[tuple[float, Cell]]:
    """Runs of about one N and equal tokens, with their lowest losses brought to the middle N; only where
    at least three shapes were trained."""
    found: list[list[RunResult]] = []
    latest: dict[float, list[RunResult]] = {}  # tokens -> the cell of the largest N so far
    for run in sorted(study.runs, key=lambda each: each.counts["params_non_embedding"]):
        tokens = float(run.eval_rows(counting.split)["tokens"][-1])
        cell = latest.get(tokens)
        if cell is None or _size(run) > SAME_SIZE * _size(cell[0]):
            cell = latest[tokens] = []
            found.append(cell)
        cell.append(run)
    for cell in found:
        if len({_proportions(run) for run in cell}) >= FEWEST_SHAPES:
            middle = float(np.median([_size(run) for run in cell]))
            yield (
                middle,
                [(run, _lowest(run, counting) * _ratio(known, middle, run)) for run in cell],
            )


def _lowest(run: RunResult, counting: Counting) -> float:
    return float(run.eval_rows(counting.split)["loss"].min())


def _ratio(known: PublishedDomain | None, size: float, run: RunResult) -> float:
    """L(size)/L(N) by the domain's published law: it brings the loss of a run to another size, as Kaplan et al. 2020,
    section 3.1, do for text. Of domains with a constant it moves less than of text."""
    if known is None:
        return 1.0
    at, own = (power_constant(n, **vars(known.loss_by_params)) for n in (size, _size(run)))
    return float(at / own)


def _size(run: RunResult) -> float:
    return run.counts["params_non_embedding"]


def _proportions(run: RunResult) -> tuple[float, int, int]:
    """(d_ff / d to a tenth, layers, heads)."""
    shape = run.config["shape"]
    ratio = round(shape["ffn_hidden_size"] / shape["hidden_size"], 1)
    return ratio, int(shape["num_layers"]), int(shape["num_attention_heads"])


def _panels(cell: Cell) -> dict[str, dict[float, list[float]]]:
    """Axis label -> proportion -> losses, for the proportions that take three values or more (for feed
    forward and heads: two)."""
    usual_feed, usual_depth, usual_heads = (
        Counter(column).most_common(1)[0][0]
        for column in zip(*(_proportions(run) for run, _ in cell), strict=True)
    )
    found: dict[str, dict[float, list[float]]] = {}
    nearest = _nearest_heads(cell, usual_feed, usual_heads)
    for run, loss in cell:
        feed, depth, heads = _proportions(run)
        shape = run.config["shape"]
        places = {
            "feed-forward ratio d_ff / d": (feed, (depth, heads) == (usual_depth, usual_heads)),
            "aspect ratio d / layers": (
                shape["hidden_size"] / depth,
                feed == usual_feed and heads == nearest.get(depth),
            ),
            "attention heads": (float(heads), (feed, depth) == (usual_feed, usual_depth)),
        }
        for label, (at, comparable) in places.items():
            if comparable:
                found.setdefault(label, {}).setdefault(at, []).append(loss)
    return {label: values for label, values in found.items() if len(values) >= FEWEST_SHAPES}


def _nearest_heads(cell: Cell, usual_feed: float, usual_heads: int) -> dict[int, int]:
    """Depth -> the number of heads trained at it that is nearest to the one which most depths share: a scan of heads at
    one depth may hold more runs of another number."""
    heads: dict[int, set[int]] = {}
    for run, _ in cell:
        feed, depth, count = _proportions(run)
        if feed == usual_feed:
            heads.setdefault(depth, set()).add(count)
    depths = Counter(count for all_of in heads.values() for count in all_of)
    shared = min(depths, key=lambda n: (-depths[n], abs(n - usual_heads), n))
    return {
        depth: min(all_of, key=lambda n: (abs(n - shared), n)) for depth, all_of in heads.items()
    }


def counted(study: StudyRuns, counting: Counting) -> list[Picture]:
    """Kaplan et al. 2020, figure 6: where runs of several depths were trained."""
    depth = np.array([int(run.config["shape"]["num_layers"]) for run in study.runs])
    if len(np.unique(depth)) < 2:
        return []
    loss = np.array([run.eval_rows(counting.split)["loss"].min() for run in study.runs])
    names = {"total N": "params_total", "N without embeddings": "params_non_embedding"}
    rows = [
        (name, np.array([run.counts[key] for run in study.runs])) for name, key in names.items()
    ]
    caption = (
        "<b>What N counts.</b> Lowest loss of each run against all parameters and against those "
        "without embeddings, by depth: Kaplan et al. found one curve only without."
    )
    return [Picture("counted", figures_runs.counted(rows, depth, loss), caption)]
