"""Which runs may be points of a law. The others are kept out and listed with the reason.

Kept out by default, and taken in only by name (`--include`):
    unfinished     stopped before its budget
    diverged       its last held-out loss is far above its own best
    spiking        its training loss jumped; what that did to its last loss is not known
    mid-schedule   measured at another stage of the learning rate than the rest: evaluations on the way
                   down of a decaying rate (in laws of learning curves), runs that were never cooled
                   down beside runs that were (in laws of final losses)
    repeated       measured in a later pass over a subset of the data (in laws of learning curves)
A run on a subset (`data.unique_tokens`) whose held-out loss rises while its training loss goes on falling
is over-fitted by design, not diverged: it is used at its lowest loss.
Damaged runs, and losses that are no positive number, are never taken in. Runs that were judged on
different data are refused together: nothing could be left out that makes them comparable.
"""

import json
from collections.abc import Collection
from pathlib import Path

import numpy as np

from analysis.points import LeftOut
from launch.results import RunResult
from launch.schedule import Schedule, cooldown_start

UNFINISHED, DIVERGED, SPIKING, MID_SCHEDULE = "unfinished", "diverged", "spiking", "mid-schedule"
REPEATED = "repeated"
INCLUDES = (UNFINISHED, DIVERGED, SPIKING, MID_SCHEDULE, REPEATED)
"""What `--include` takes."""

DIVERGED_ABOVE_BEST = 0.05
"""A run whose last held-out loss is this share above its own best is not a trained model of its
size. Our choice: over-fitting of less than this keeps the run, at its best evaluation."""

DECAYING = ("linear", "cosine")
"""Schedules whose learning rate falls all the way, so that mid-way losses are not final ones."""

MOST_STEPS = 5  # of the spikes that a reason names
TAIL = 32
"""Steps whose median training loss says where a run is."""


def unusable(run: RunResult, split: str, include: Collection[str]) -> str | None:
    """Why a run cannot be a point, or None. Of the reasons that `include` names none counts."""
    rows = run.eval_rows(split)
    if not len(rows):
        steps = int(run.train["step"][-1]) if len(run.train) else 0
        if not run.finished:
            return f"unfinished: stopped at step {steps}, before any evaluation on {split!r}"
        return f"no evaluation on the split {split!r}"
    trained = run.train["loss"][~np.isin(run.train["step"], run.skipped)]
    if not (np.all(np.isfinite(rows["loss"])) and np.all(np.isfinite(trained))):
        return "diverged: a loss is not finite"
    if np.any(rows["loss"] <= 0):
        return f"a held-out loss is not positive ({rows['loss'].min():g})"
    found = ((name, reason) for name, reason in _doubts(run, rows) if name not in include)
    return next((reason for _, reason in found), None)


def _doubts(run: RunResult, rows: np.ndarray) -> list[tuple[str, str]]:
    """(what `--include` calls it, the reason) of everything that speaks against a readable run."""
    said = []
    if not run.finished:
        steps = int(run.train["step"][-1]) if len(run.train) else 0
        said.append((UNFINISHED, f"unfinished: stopped at step {steps}"))
    best, last = float(rows["loss"].min()), float(rows["loss"][-1])
    if last > best * (1 + DIVERGED_ABOVE_BEST) and not over_fitted(run, rows):
        above = f"{100 * (last / best - 1):.0f}% above its own best {best:.4f}"
        said.append(
            (DIVERGED, f"diverged or over-fitted: last held-out loss {last:.4f} is {above}")
        )
    steps_of = run.spikes
    if len(steps_of):
        shown = ", ".join(map(str, steps_of[:MOST_STEPS]))
        others = f" and {len(steps_of) - MOST_STEPS} others" if len(steps_of) > MOST_STEPS else ""
        said.append((SPIKING, f"spiking: the training loss jumped at step {shown}{others}"))
    return said


def unique_tokens(run: RunResult) -> float:
    """Tokens of the subset that a run was trained on, in whole rows; endless where it names none."""
    wanted = (run.config.get("data") or {}).get("unique_tokens")
    length = int(run.config.get("shape", {}).get("seq_length", 1))
    return float(wanted // length * length) if wanted else float("inf")


def over_fitted(run: RunResult, rows: np.ndarray) -> bool:
    """Whether a run on a subset of the data ends above its lowest held-out loss, after more than one
    pass, while its training loss is no higher than it was there."""
    best = rows[int(np.argmin(rows["loss"]))]
    subset = unique_tokens(run)
    if not (rows["loss"][-1] > best["loss"] and rows["tokens"][-1] > subset):
        return False
    there = run.train["loss"][run.train["step"] <= best["step"]]
    last = run.train["loss"][-TAIL:]
    return bool(len(there) and np.median(last) <= np.median(there[-TAIL:]))


def remark_skipped(runs: Collection[RunResult]) -> tuple[str, ...]:
    """A remark that names the runs with steps that changed no weight."""
    said = [
        f"{run.run_id} ({len(run.skipped)} of {len(run.train)} steps)"
        for run in runs
        if len(run.skipped)
    ]
    if not said:
        return ()
    return (
        f"skipped_steps: a gradient was not finite, and so the step changed no weight (guards.non_finite = skip), in "
        f"{'; '.join(said[:MOST_STEPS])}{'; and others' * (len(said) > MOST_STEPS)}.",
    )


def taken_in(runs: Collection[RunResult], split: str, include: Collection[str]) -> tuple[str, ...]:
    """A remark that names what was taken in although it would be kept out."""
    if not include:
        return ()
    said = [
        f"{run.run_id} ({doubts[0][1]})"
        for run in runs
        if (doubts := _doubts(run, run.eval_rows(split)))
    ]
    if not said:
        return ()
    return (
        f"taken_in: {len(said)} of {len(runs)} runs are in this fit because --include asked for "
        f"them: {'; '.join(said[:MOST_STEPS])}{'; and others' * (len(said) > MOST_STEPS)}. Their "
        "losses are not those of whole, undisturbed runs.",
    )


def schedule_kind(run: RunResult) -> str:
    """The name of a run's learning-rate schedule, "" where its configuration has none."""
    return str(run.config.get("schedule", {}).get("kind", ""))


def full_rate_tokens(run: RunResult) -> float:
    """Tokens up to which the learning rate of a run stays at its peak after the warm-up: endless for
    a constant rate, none for one that falls all the way."""
    kind = schedule_kind(run)
    if kind in DECAYING:
        return 0.0
    if kind != "wsd":
        return float("inf")
    names = Schedule.model_fields
    given = {key: each for key, each in run.config["schedule"].items() if key in names}
    return cooldown_start(Schedule(**given), float(run.config.get("tokens", np.inf)))


def never_cooled(runs: Collection[RunResult]) -> set[str]:
    """Runs that ended at their peak rate beside runs that were cooled down: their losses are too
    high to stand with the others in one law (Haegele et al. 2024, 2405.18392)."""
    cooled = {run.run_id for run in runs if np.isfinite(full_rate_tokens(run))}
    return {run.run_id for run in runs if run.run_id not in cooled} if cooled else set()


def refuse_mixtures(folder: Path, runs: Collection[RunResult], split: str) -> None:
    """Losses are comparable only on the same held-out rows, tokenizer and context. Raises
    `ValueError` that names two runs which differ, and in what."""
    seen: dict[str, str] = {}
    for run in runs:
        seen.setdefault(json.dumps(judged_on(run, split)), run.run_id)
    if len(seen) < 2:
        return
    (one, first), (other, second) = list(seen.items())[:2]
    left, right = json.loads(one), json.loads(other)
    differ = "; ".join(
        f"{name} {left[name]} and {right[name]}" for name in left if left[name] != right[name]
    )
    raise ValueError(
        f"{folder}: runs judged on different data: {first} and {second} differ in {differ}; wanted "
        "one tokenizer and one evaluation set in one fit. Move the others to a results folder of "
        "their own."
    )


def judged_on(run: RunResult, split: str) -> dict[str, object]:
    """All that must be equal for two losses to be comparable."""
    shape, last = run.config.get("shape", {}), run.eval_rows(split)[-1]
    return {
        "domain": run.config.get("domain"),
        "vocab_size": shape.get("vocab_size"),
        "seq_length": shape.get("seq_length"),
        f"{split} rows": int(last["num_rows"]),
        f"{split} tokens": int(last["num_tokens"]),
        "data": str(run.provenance[-1].get("data_identity"))[:12],
    }


def not_cooled(run_ids: Collection[str]) -> tuple[LeftOut, ...]:
    """The list entries of `never_cooled`."""
    reason = (
        "mid-schedule: its learning rate never fell, while that of other runs did; their losses are "
        "not comparable"
    )
    return tuple(LeftOut(run_id, reason) for run_id in sorted(run_ids))
