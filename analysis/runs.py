"""A study's results folder -> its usable runs, and from these the points that each law needs.

A run counts only if it finished, is readable, and did not diverge; every other one is listed with
the reason. Runs that were judged on different data must never meet in one fit: that is refused.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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
from launch.results import METRICS_FILE, RunResult, read_result

PARAM_COUNTS = {
    "non-embedding": "params_non_embedding",
    "non-embedding-and-head": "params_non_embedding_and_head",
    "total": "params_total",
}
FLOP_COUNTS = {"6nd": "flops", "exact": "flops_exact"}

DIVERGED_ABOVE_BEST = 0.05
"""A run whose last held-out loss is this share above its own best is not a trained model of its
size. Our choice: over-fitting of less than this keeps the run, at its best evaluation."""

DECAYING = ("linear", "cosine")
"""Schedules whose learning rate falls all the way, so that mid-way losses are not final ones."""


@dataclass(frozen=True)
class Counting:
    """How N and C are counted, and on which split the loss is measured."""

    params: str = "non-embedding"
    flops: str = "6nd"
    split: str = "valid"

    def of(self, run: RunResult) -> float:
        """N of a run in this convention."""
        return run.counts[PARAM_COUNTS[self.params]]


@dataclass(frozen=True)
class StudyRuns:
    """The usable runs of one results folder, by size then name, and the others with reasons."""

    path: Path
    runs: tuple[RunResult, ...]
    left_out: tuple[LeftOut, ...]


def read_runs(folder: Path, split: str = "valid") -> StudyRuns:
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
        reason = _unusable(run, split)
        if reason:
            left_out.append(LeftOut(path.name, reason))
        else:
            runs.append(run)
    runs.sort(key=lambda run: (run.counts["params_non_embedding"], run.run_id))
    _refuse_mixtures(folder, runs, split)
    return StudyRuns(folder, tuple(runs), tuple(left_out))


def all_points(study: StudyRuns, counting: Counting) -> PointSet:
    """One point for each run: its lowest held-out loss (Henighan et al. 2020 take L(N) at the step
    of minimum test loss) for all that it was trained on."""
    rows = []
    for run in study.runs:
        table = run.eval_rows(counting.split)
        best = table[int(np.argmin(table["loss"]))]
        final = table[[-1]].copy()  # its budget: repeats with another best step stay comparable
        final["loss"], final["step"] = best["loss"], best["step"]
        rows.append((run, final))
    return PointSet(str(study.path), _points(rows, counting), study.left_out, _spiking(study.runs))


def _spiking(runs: tuple[RunResult, ...]) -> tuple[str, ...]:
    """A remark that names the runs whose training loss jumped, for what it did to their last loss is
    not known."""
    found = {run.run_id: steps for run in runs if len(steps := run.spikes)}
    if not found:
        return ()
    named = "; ".join(
        f"{run_id} at step {', '.join(map(str, steps[:5]))}{' and others' * (len(steps) > 5)}"
        for run_id, steps in found.items()
    )
    return (
        f"loss_spikes: the training loss of {len(found)} of {len(runs)} runs jumped: {named}. Look at "
        "their learning curves before relying on them.",
    )


def final_points(study: StudyRuns, counting: Counting, x: str) -> PointSet:
    """`all_points`, then the selection that a law of one variable needs."""
    found = all_points(study, counting)
    if x == "params":
        return remark_mixed_recipes(remark_mixed_budgets(keep_largest_budget(found)))
    return keep_largest_model(found) if x == "tokens" else keep_efficient(found)


def curve_points(study: StudyRuns, counting: Counting) -> PointSet:
    """Learning curves: every held-out evaluation after the warm-up, grouped by run."""
    rows, left_out, decaying = [], list(study.left_out), []
    for run in study.runs:
        table = run.eval_rows(counting.split)
        early = table["tokens"] < warmup_tokens(run.config)
        left_out += [
            LeftOut(f"{run.run_id} step {row['step']}", "inside the learning-rate warm-up")
            for row in table[early]
        ]
        rows.append((run, table[~early]))
        if str(run.config.get("schedule", {}).get("kind", "")) in DECAYING:
            decaying.append(run.run_id)
    remarks: tuple[str, ...] = ()
    if decaying:
        remarks = (
            f"mid_schedule_points: the learning rate of {len(decaying)} of {len(study.runs)} runs "
            "decays over the whole run, so losses on the way are higher than those of a run "
            "planned to end there; this shifts N_opt (Porian et al. 2024).",
        )
    return PointSet(str(study.path), _points(rows, counting), tuple(left_out), remarks)


def warmup_tokens(config: dict[str, Any]) -> float:
    """Tokens that a run spends in its learning-rate warm-up; 0 where the config names none."""
    schedule = config.get("schedule", {})
    if schedule.get("warmup_tokens") is not None:
        return float(schedule["warmup_tokens"])
    batch = config.get("batch", {}).get("train_batch_size", 0)
    length = config.get("shape", {}).get("seq_length", 0)
    return float(schedule.get("warmup_steps", 0) or 0) * batch * length


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
        recipe=np.array([_recipe(run) for run, table in rows for _ in table], dtype=str),
        params=column([np.full(len(t), n) for (_, t), n in zip(rows, sizes, strict=True)]),
        tokens=column([table["tokens"] for _, table in rows]),
        flops=column(flops),
        steps=column([table["step"] for _, table in rows]),
        batch=column([np.full(len(table), _batch(run)) for run, table in rows]),
        loss=column([table["loss"] for _, table in rows]),
    )


def _batch(run: RunResult) -> float:
    """Rows of a batch; NaN where the configuration does not say."""
    return float(run.config.get("batch", {}).get("train_batch_size", np.nan))


def _recipe(run: RunResult) -> str:
    """A digest of the configuration less its seed, its length and what changes no loss."""
    left_out = {
        "seed",
        "tokens",
        "study",
        "question",
        "parallel",
        "checkpoint",
        "guards",
        "trunk",
        "keep_steps",
    }
    recipe = _stated({name: value for name, value in run.config.items() if name not in left_out})
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


# Choices that older runs did not have, and what they then did.
_ALWAYS_WERE = {
    "blend": [], "attention": "dense", "positions": "plain", "attention_window": 0,
    "position_axes": [],
}  # fmt: skip


def _stated(table: dict) -> dict:
    """A configuration without the choices that say what older runs did unasked."""
    return {
        name: _stated(value) if isinstance(value, dict) else value
        for name, value in table.items()
        if name not in _ALWAYS_WERE or _ALWAYS_WERE[name] != value
    }


def _unusable(run: RunResult, split: str) -> str | None:
    """Why a run cannot be a point, or None."""
    if not run.finished:
        steps = int(run.train["step"][-1]) if len(run.train) else 0
        return f"unfinished: stopped at step {steps}"
    rows = run.eval_rows(split)
    if not len(rows):
        return f"no evaluation on the split {split!r}"
    if not (np.all(np.isfinite(rows["loss"])) and np.all(np.isfinite(run.train["loss"]))):
        return "diverged: a loss is not finite"
    if np.any(rows["loss"] <= 0):
        return f"a held-out loss is not positive ({rows['loss'].min():g})"
    best, last = float(rows["loss"].min()), float(rows["loss"][-1])
    if last > best * (1 + DIVERGED_ABOVE_BEST):
        return (
            f"diverged or over-fitted: last held-out loss {last:.4f} is "
            f"{100 * (last / best - 1):.0f}% above its own best {best:.4f}"
        )
    return None


def _refuse_mixtures(folder: Path, runs: list[RunResult], split: str) -> None:
    """Losses are comparable only on the same held-out rows, vocabulary and context."""
    seen: dict[str, str] = {}
    for run in runs:
        shape = run.config.get("shape", {})
        last = run.eval_rows(split)[-1]
        judged = json.dumps(
            {
                "domain": run.config.get("domain"),
                "vocab_size": shape.get("vocab_size"),
                "seq_length": shape.get("seq_length"),
                f"{split} rows": int(last["num_rows"]),
                f"{split} tokens": int(last["num_tokens"]),
                "data": str(run.provenance[-1].get("data_identity"))[:12],
            }
        )
        seen.setdefault(judged, run.run_id)
    if len(seen) > 1:
        (one, first), (other, second) = list(seen.items())[:2]
        raise ValueError(
            f"{folder}: runs judged on different data: {first} on {one}, {second} on {other}; "
            "wanted one domain and one evaluation set in one fit. Move the others to a results "
            "folder of their own."
        )


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
