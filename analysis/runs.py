"""A study's results folder -> its usable runs, and from these the points that each law needs.

Which runs count is decided in `analysis.guards`; every other one is listed with the reason.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.guards import (
    MID_SCHEDULE,
    REPEATED,
    full_rate_tokens,
    never_cooled,
    not_cooled,
    over_fitted,
    refuse_mixtures,
    remark_skipped,
    taken_in,
    unique_tokens,
    unusable,
)
from analysis.points import (
    LeftOut,
    LossPoints,
    PointSet,
    keep_efficient,
    keep_largest_budget,
    keep_largest_model,
    remark_mixed_budgets,
    remark_mixed_recipes,
)
from analysis.recipe import recipe, same_runs
from launch.results import METRICS_FILE, RunResult, read_result

PARAM_COUNTS = {
    "non-embedding": "params_non_embedding",
    "non-embedding-and-head": "params_non_embedding_and_head",
    "total": "params_total",
}
FLOP_COUNTS = {"6nd": "flops", "exact": "flops_exact"}

IN_WARM_UP = "inside the learning-rate warm-up"
RATE_FALLS = (
    "mid-schedule: its learning rate had begun to fall, so it is no loss of a run that was planned to "
    "end there (--include mid-schedule takes it in)"
)

LATER_PASS = (
    "repeated: measured in a later pass over a subset of the data, so it is no loss of fresh data "
    "(--include repeated takes it in)"
)


@dataclass(frozen=True)
class Counting:
    """How N and C are counted, on which split the loss is measured, and which runs that are kept out
    by default are taken in all the same (names of `guards.INCLUDES`)."""

    params: str = "non-embedding"
    flops: str = "6nd"
    split: str = "valid"
    include: tuple[str, ...] = ()
    variant: str | None = None  # of a study of several: which one is fitted

    def of(self, run: RunResult) -> float:
        """N of a run in this convention."""
        return run.counts[PARAM_COUNTS[self.params]]


@dataclass(frozen=True)
class StudyRuns:
    """The usable runs of one results folder, by size then name, and the others with reasons."""

    path: Path
    runs: tuple[RunResult, ...]
    left_out: tuple[LeftOut, ...]


def read_runs(folder: Path, split: str = "valid", include: Collection[str] = ()) -> StudyRuns:
    """Read every run of a study's results folder. Raises `ValueError` if it holds none, or runs
    that cannot be compared."""
    runs: list[RunResult] = []
    left_out: list[LeftOut] = []
    candidates = sorted(path for path in folder.iterdir() if path.is_dir())
    begun = [path for path in candidates if (path / METRICS_FILE).exists()]
    waiting = [p for p in candidates if p not in begun and (p / "config.json").exists()]
    if not begun and not waiting:
        raise ValueError(_no_runs_message(folder, candidates))
    left_out += [LeftOut(path.name, "not begun: no metrics.h5 yet") for path in waiting]
    for path in begun:
        try:
            run = read_result(path)
        except (ValueError, OSError) as error:
            left_out.append(LeftOut(path.name, f"damaged: {error}"))
            continue
        reason = unusable(run, split, include)
        if reason:
            left_out.append(LeftOut(path.name, reason))
        else:
            runs.append(run)
    runs.sort(key=lambda run: (run.counts["params_non_embedding"], run.run_id))
    refuse_mixtures(folder, runs, split)
    return StudyRuns(folder, tuple(runs), tuple(left_out))


def of_variant(study: StudyRuns, wanted: str | None) -> StudyRuns:
    """The runs of one variant of the study; all, if none is named. Raises `ValueError` for another name."""
    if wanted is None:
        return study
    variants = variants_of(study)
    if wanted not in variants:
        raise ValueError(
            f"{study.path}: --variant {wanted}: no usable run of it; wanted one of: {', '.join(variants)}. "
            "Name one of these."
        )
    runs = tuple(run for run in study.runs if run.config.get("variant", "") == wanted)
    return replace(study, runs=runs)


def refuse_variants(study: StudyRuns, wanted: str | None) -> None:
    """Raise `ValueError` where a study has several variants and none is named: each is another way to
    train, and no law holds across them."""
    variants = variants_of(study)
    if wanted is None and len(variants) > 1 and not only_data_varies(study):
        raise ValueError(
            f"{study.path}: runs of {len(variants)} variants in one law; wanted those of one of: "
            f"{', '.join(variants)}. Name it with --variant, for each is another way to train."
        )


def only_data_varies(study: StudyRuns) -> bool:
    """Whether the variants of a study differ in the subset of the data and in length alone: then one
    law holds across them, for they are points of L(D) and L(N, D) (Kaplan et al. 2020, section 4)."""
    ways = {(_shape(run), recipe(run, ("seed", "tokens", "data"))) for run in study.runs}
    limited = any(np.isfinite(unique_tokens(run)) for run in study.runs)
    return limited and len(ways) == len({shape for shape, _ in ways})


def _shape(run: RunResult) -> str:
    return json.dumps(run.config.get("shape"), sort_keys=True)


def variants_of(study: StudyRuns) -> list[str]:
    return sorted({str(run.config.get("variant", "")) for run in study.runs})


def all_points(study: StudyRuns, counting: Counting, repeats: bool = False) -> PointSet:
    """One point for each run: its lowest held-out loss (Henighan et al. 2020 take L(N) at the step
    of minimum test loss) for all that it was trained on. Of a run on a subset D counts the subset
    once, however often it was read: the early-stopped loss of so many tokens (Kaplan et al. 2020,
    section 3.3). With `repeats` D is all that it read, up to the lowest loss where it over-fits."""
    warm = set() if MID_SCHEDULE in counting.include else never_cooled(study.runs)
    again = same_runs(study.runs)
    rows, beyond = [], []
    for run in study.runs:
        if run.run_id in warm or run.run_id in again:
            continue
        table = run.eval_rows(counting.split)
        best = table[int(np.argmin(table["loss"]))]
        final = table[[-1]].copy()  # its budget: repeats with another best step stay comparable
        final["loss"], final["step"] = best["loss"], best["step"]
        if over_fitted(run, table):
            beyond.append(run.run_id)
            final["tokens"] = best["tokens"] if repeats else final["tokens"]
        rows.append((run, final))
    left_out = study.left_out + not_cooled(warm) + _once(again)
    remarks = taken_in(study.runs, counting.split, counting.include) + _early_stopped(beyond, rows)
    remarks += remark_skipped(study.runs)
    points = _points(rows, counting)
    if not repeats:
        points = replace(points, tokens=np.minimum(points.tokens, points.unique_tokens))
    return PointSet(str(study.path), points, left_out, remarks)


def _once(again: Mapping[str, str]) -> tuple[LeftOut, ...]:
    """The list entries of `same_runs`."""
    return tuple(
        LeftOut(run_id, f"the same run as {other}, down to the seed: it counts once")
        for run_id, other in again.items()
    )


def _early_stopped(beyond: Sequence[str], rows: Sequence[tuple]) -> tuple[str, ...]:
    if not beyond:
        return ()
    return (
        f"early_stopped: {len(beyond)} of {len(rows)} runs over-fit the subset that they were trained on; "
        "they count at their lowest held-out loss.",
    )


def final_points(study: StudyRuns, counting: Counting, x: str) -> PointSet:
    """`all_points`, then the selection that a law of one variable needs."""
    found = all_points(study, counting)
    if x == "params":
        return remark_mixed_recipes(remark_mixed_budgets(keep_largest_budget(found)))
    return keep_largest_model(found) if x == "tokens" else keep_efficient(found)


def curve_points(study: StudyRuns, counting: Counting) -> PointSet:
    """Learning curves, grouped by run: every held-out evaluation after the warm-up and before the
    learning rate falls (with `mid-schedule` taken in, every one after the warm-up)."""
    twins = same_runs(study.runs)
    rows, left_out, falling = [], [*study.left_out, *_once(twins)], []
    kept_out = {MID_SCHEDULE, REPEATED} - set(counting.include)
    present = {run.run_id for run in study.runs}
    for run in study.runs:
        if run.run_id in twins:
            continue
        table = run.eval_rows(counting.split)
        trunk = run.config.get("trunk") or {}
        if trunk.get("run_id") in present:  # up to there its measurements are the trunk's
            table = table[table["step"] > trunk["step"]]
        early = table["tokens"] < warmup_tokens(run.config)
        late = (table["tokens"] > full_rate_tokens(run)) & ~early
        if late.any():
            falling.append(run.run_id)
        late &= MID_SCHEDULE in kept_out
        again = (table["tokens"] > unique_tokens(run)) & ~early & ~late
        again &= REPEATED in kept_out
        for which, reason in ((early, IN_WARM_UP), (late, RATE_FALLS), (again, LATER_PASS)):
            left_out += [
                LeftOut(f"{run.run_id} step {row['step']}", reason) for row in table[which]
            ]
        rows.append((run, table[~early & ~late & ~again]))
    remarks = taken_in(study.runs, counting.split, counting.include) + remark_skipped(study.runs)
    if falling and MID_SCHEDULE in counting.include:
        remarks += (
            f"mid_schedule_points: the learning rate of {len(falling)} of {len(study.runs)} runs "
            "falls on the way, so losses there are higher than those of a run planned to end there; "
            "this shifts N_opt (Porian et al. 2024).",
        )
    return PointSet(str(study.path), _points(rows, counting), tuple(left_out), remarks)


def warmup_tokens(config: dict[str, Any]) -> float:
    """Tokens that a run spends in its learning-rate warm-up; 0 where the config names none."""
    schedule = config.get("schedule", {})
    if schedule.get("warmup_tokens") is not None:
        return float(schedule["warmup_tokens"])
    batch = config.get("batch", {}).get("train_batch_size", 0)
    seq_length = config.get("shape", {}).get("seq_length", 0)
    return float(schedule.get("warmup_steps", 0) or 0) * batch * seq_length


def _points(rows: list[tuple[RunResult, np.ndarray]], counting: Counting) -> LossPoints:
    def column(values: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.asarray(value, float) for value in values] or [np.empty(0)])

    sizes = [counting.of(run) for run, _ in rows]
    flops = [
        table["flops"] * (size / run.counts["params_non_embedding"])  # 6 N D with this N
        if counting.flops == "6nd"
        else table["flops_exact"]
        for (run, table), size in zip(rows, sizes, strict=True)
    ]
    return LossPoints.of(
        group=np.array([run.run_id for run, table in rows for _ in table], dtype=str),
        label=np.array(
            [f"{run.run_id} step {row['step']}" for run, table in rows for row in table], dtype=str
        ),
        trunk=np.array([_trunk(run) for run, table in rows for _ in table], dtype=str),
        recipe=np.array([recipe(run, ("seed",)) for run, table in rows for _ in table], dtype=str),
        params=column([np.full(len(t), n) for (_, t), n in zip(rows, sizes, strict=True)]),
        tokens=column([table["tokens"] for _, table in rows]),
        flops=column(flops),
        steps=column([table["step"] for _, table in rows]),
        batch=column([np.full(len(table), _batch(run)) for run, table in rows]),
        unique_tokens=column([_unique(run, table) for run, table in rows]),
        loss=column([table["loss"] for _, table in rows]),
    )


def _trunk(run: RunResult) -> str:
    """The run whose weights a `wsd` branch began with; of every other run its own name."""
    return str((run.config.get("trunk") or {}).get("run_id", run.run_id))


def _unique(run: RunResult, table: np.ndarray) -> np.ndarray:
    """Tokens met at least once: all where the configuration names no subset."""
    return np.minimum(unique_tokens(run), table["tokens"])


def _batch(run: RunResult) -> float:
    """Rows of a batch; NaN where the configuration does not say."""
    return float(run.config.get("batch", {}).get("train_batch_size", np.nan))


def _no_runs_message(folder: Path, candidates: list[Path]) -> str:
    if (folder / METRICS_FILE).exists():
        return (
            f"{folder}: this is one run; wanted the results folder of a study, with one folder for "
            f"each run. Name its parent: {folder.parent}"
        )
    studies = [path for path in candidates if any(path.glob(f"*/{METRICS_FILE}"))]
    hint = (
        f"Name one study in it: {', '.join(map(str, studies[:3]))}"
        if studies
        else "Run the study first, or check the path."
    )
    return (
        f"{folder}: no runs ({len(candidates)} folders, none with a {METRICS_FILE}); wanted the "
        f"results folder of a study. {hint}"
    )
