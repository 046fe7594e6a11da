"""What `launch evaluate` and `launch answers` left in the folders of a study's runs: RUN/evaluations/*.h5.

Each group becomes an `Evaluation`, beside its run's size and what the run itself lost on its own held-out rows at that
step. Files that cannot be read, or that no usable run can stand beside, are listed with the reason.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.points import LeftOut
from analysis.runs import Counting, StudyRuns
from launch.evaluation_file import ANSWERS, LOSSES, read_evaluations
from launch.results import RunResult
from launch.saved import EVALUATIONS

_DOCUMENTS = "documents/"


@dataclass(frozen=True)
class Evaluation:
    """One checkpoint on one dataset.

    `params` N as the report counts it; `own_loss` the run's loss on its own held-out rows at that step, in nats per
    token; `content` the group (`launch.evaluation_file`) without its documents; `name` the group's.
    """

    run: RunResult
    params: float
    own_loss: float
    step: int
    path: Path
    name: str
    content: dict[str, Any]

    @property
    def kind(self) -> str:
        """ "losses" or "answers"."""
        return str(self.content["attributes"].get("kind", LOSSES))

    @property
    def data(self) -> tuple[str, str, str]:
        """The dataset: its folder's name (its domain's, in older files), its split and its identity."""
        found = self.content["attributes"]
        name = str(found.get("data", found.get("domain", "")))
        return name, str(found.get("split", "")), str(found.get("data_identity", ""))

    @property
    def own_data(self) -> bool:
        """Whether this is the data that the run was trained on; False in older files, which do not say."""
        return bool(self.content["attributes"].get("own_data", False))

    @property
    def own_split(self) -> bool:
        """Whether these are the run's own held-out rows, or others of the same split: no other data."""
        return self.own_data and self.data[1].encode() in self.run.eval["split"]

    @property
    def choice(self) -> int:
        """Which rows of the dataset: equal for equal rows, more for more of them, for it is the number of tokens that
        counted, and n rows of a dataset are always the same ones."""
        return int(self.content["attributes"].get("num_tokens", 0))

    @property
    def loss(self) -> float:
        """Nats per token; NaN where it is of another kind."""
        return float(self.content["attributes"].get("loss", math.nan))

    def documents(self) -> dict[str, np.ndarray]:
        """`row`, `start`, `loss_sum` and `count` of each document, read again from the file."""
        content = read_evaluations(self.path)[self.name]
        names = (name for name in content if name.startswith(_DOCUMENTS))
        return {name.removeprefix(_DOCUMENTS): content[name] for name in names}


@dataclass(frozen=True)
class Evaluations:
    """All of a study, by size, run and step; and what could not be used."""

    found: tuple[Evaluation, ...]
    left_out: tuple[LeftOut, ...]

    def by_data(
        self, having: str = "percentiles", along: bool = False
    ) -> dict[tuple[str, str, str], list[Evaluation]]:
        """Those of each dataset whose group holds `having`: of each checkpoint one, and all on the same rows.

        Where a dataset was evaluated on several choices of rows, the one that most sizes have, or with `along` most
        checkpoints; of these the one of most rows.
        """
        chosen: dict[tuple[str, str, str], list[Evaluation]] = {}
        for each in self.found:
            if having in each.content:
                chosen.setdefault(each.data, []).append(each)
        return {data: _on_equal_rows(each, along) for data, each in chosen.items()}

    def label(self, data: tuple[str, str, str]) -> str:
        """The shortest name that tells a dataset from the others, and whether the runs were trained on it."""
        every = {each.data for each in self.found if "percentiles" in each.content}
        name, split, identity = data
        shown = name
        if any(each[0] == name for each in every if each != data):
            shown = f"{name} {split}"
        if any(each[:2] == (name, split) for each in every if each != data):
            shown = f"{name} {split} {identity[:6]}"
        own = any(each.own_data for each in self.found if each.data == data)
        return f"{shown} (own data)" if own else shown


def _on_equal_rows(found: Sequence[Evaluation], along: bool) -> list[Evaluation]:
    by_choice: dict[int, dict[tuple[str, int], Evaluation]] = {}
    for each in found:
        by_choice.setdefault(each.choice, {}).setdefault((each.run.run_id, each.step), each)

    def reach(choice: int) -> tuple[int, int]:
        own = by_choice[choice]
        return len(own) if along else len({each.params for each in own.values()}), choice

    return list(by_choice[max(by_choice, key=reach)].values())


def evaluations_of(study: StudyRuns, counting: Counting) -> Evaluations:
    """Every evaluation of the study's usable runs."""
    found: list[Evaluation] = []
    left_out: list[LeftOut] = []
    for run in study.runs:
        for path in sorted((run.path.parent / EVALUATIONS).glob("*.h5")):
            for each in _in_file(run, path, counting):
                if isinstance(each, LeftOut):
                    left_out.append(each)
                else:
                    found.append(each)
    found.sort(key=lambda each: (each.params, each.run.run_id, each.step, each.path.name))
    return Evaluations(tuple(found), tuple(left_out))


def _in_file(run: RunResult, path: Path, counting: Counting) -> Iterator[Evaluation | LeftOut]:
    label = f"{run.run_id}/{EVALUATIONS}/{path.name}"
    try:
        groups = read_evaluations(path, leave_out=_DOCUMENTS)
    except (ValueError, OSError) as error:
        yield LeftOut(label, f"damaged: {error}")
        return
    for name, content in groups.items():
        attributes = content["attributes"]
        kind = attributes.get("kind", LOSSES)
        step = attributes.get("step")
        if kind not in (LOSSES, ANSWERS) or step is None or not _holds(kind, content):
            yield LeftOut(f"{label}: {name}", f"no whole evaluation: kind {kind!r}, step {step}")
            continue
        own = own_loss(run, counting.split, int(step))
        yield Evaluation(run, counting.of(run), own, int(step), path, name, content)


def _holds(kind: str, content: dict[str, Any]) -> bool:
    if kind == ANSWERS:
        return "answers" in content
    return "percentiles" in content and math.isfinite(content["attributes"].get("loss", math.nan))


def own_loss(run: RunResult, split: str, step: int) -> float:
    """The held-out loss of a run at a step, between two evaluations along a straight line in log step; NaN outside."""
    table = run.eval_rows(split)
    table = table[table["step"] > 0]
    if not len(table) or not table["step"][0] <= step <= table["step"][-1]:
        return math.nan
    return float(np.interp(np.log(step), np.log(table["step"]), table["loss"]))


def last_of_each_run(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Of each run the latest checkpoint."""
    latest: dict[str, Evaluation] = {}
    for each in evaluations:
        if each.run.run_id not in latest or each.step > latest[each.run.run_id].step:
            latest[each.run.run_id] = each
    return sorted(latest.values(), key=lambda each: (each.params, each.run.run_id))


def one_of_each_size(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Of each size the run that was trained longest, at its latest checkpoint."""
    best: dict[float, Evaluation] = {}
    for each in last_of_each_run(evaluations):
        old = best.get(each.params)
        if old is None or each.step > old.step:
            best[each.params] = each
    return [best[size] for size in sorted(best)]


@dataclass(frozen=True)
class Transfer:
    """Loss on another dataset beside the loss on one's own (Kaplan et al. 2020, section 3.2.2, figures 8 and 24).

    Of the last checkpoint of each run: `offset`, the mean of the difference in nats per token, and its `spread`, the
    standard deviation over runs (NaN of one). `slope` and `level` of the line loss = level + slope own_loss through
    them (NaN under three). `off_line`: how far the `earlier` checkpoints (of a smaller step of the same run) are from
    that line, root mean square, within the range of own losses that the line was drawn through; NaN where none is.
    """

    offset: float
    spread: float
    slope: float
    level: float
    off_line: float
    earlier: int


def transfer(evaluations: Sequence[Evaluation]) -> Transfer:
    """Of one dataset, of each checkpoint one evaluation, all on the same rows; wants a finite `own_loss` of each."""
    last = last_of_each_run(evaluations)
    own, other = (np.array([value(each) for each in last]) for value in (_own, _other))
    difference = other - own
    spread = float(difference.std(ddof=1)) if len(last) > 1 else math.nan
    slope = level = off = math.nan
    ends = {each.run.run_id: each.step for each in last}
    before = [each for each in evaluations if each.step < ends[each.run.run_id]]
    if len(np.unique(own)) >= 3:
        slope, level = (float(each) for each in np.polyfit(own, other, 1))
        before = [each for each in before if own.min() <= each.own_loss <= own.max()]
        if before:
            gone = [each.loss - (level + slope * each.own_loss) for each in before]
            off = float(np.sqrt(np.mean(np.square(gone))))
    return Transfer(float(difference.mean()), spread, slope, level, off, len(before))


def _own(each: Evaluation) -> float:
    return each.own_loss


def _other(each: Evaluation) -> float:
    return each.loss


def improved(before: Evaluation, after: Evaluation) -> dict[str, np.ndarray] | None:
    """How much less each document costs one model than another: `row`, `start`, `difference` [nats per token] and
    `ratio` of the documents with a counted token; None where they are not of the same documents (Henighan et al. 2020,
    figure 20)."""
    first, last = before.documents(), after.documents()
    same = before.data[2] == after.data[2] and all(
        np.array_equal(first[name], last[name]) for name in ("row", "start", "count")
    )
    if not same:
        return None
    keep = first["count"] > 0
    costs = [each["loss_sum"][keep] / each["count"][keep] for each in (first, last)]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = costs[0] / costs[1]
    places = {name: first[name][keep] for name in ("row", "start")}
    return places | {"difference": costs[0] - costs[1], "ratio": ratio}
