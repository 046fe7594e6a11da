"""What of a run's configuration makes its loss: which runs are equal, and which differ in the seed alone."""

import hashlib
import json
from collections.abc import Collection, Sequence

from launch.config import CHANGES_NO_LOSS
from launch.results import RunResult

# Choices that older runs did not have, and what they then did.
_ALWAYS_WERE = {
    "blend": [], "attention": "dense", "positions": "plain", "attention_window": 0, "position_axes": [],
    "unique_tokens": None, "blanked": None, "dropout": 0.0, "weights": {}, "start": None, "classes": None,
}  # fmt: skip


def recipe(run: RunResult, but: Collection[str] = ()) -> str:
    """A digest of the configuration less what changes no loss, and `but`."""
    left_out = CHANGES_NO_LOSS | set(but)
    stated = _stated({name: value for name, value in run.config.items() if name not in left_out})
    return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()[:16]


def same_runs(runs: Sequence[RunResult]) -> dict[str, str]:
    """Each run that is another one over again, down to the seed -> that other one: variants of a ladder may share a
    run. Of such the one that went farthest stays, of equal ones the first: more of them say nothing new, and their
    equal losses are no sign of a small scatter."""
    first: dict[tuple[str, ...], RunResult] = {}
    again: dict[str, str] = {}
    for run in sorted(runs, key=lambda each: (-_tokens(each), each.run_id)):
        key = (recipe(run), *(f"{name}={run.counts[name]}" for name in sorted(run.counts)))
        if key in first:
            again[run.run_id] = first[key].run_id
        first.setdefault(key, run)
    return again


def _tokens(run: RunResult) -> float:
    return float(run.eval["tokens"].max()) if len(run.eval) else 0.0


def _stated(table: dict) -> dict:
    """A configuration without the choices that say what older runs did unasked, and without tables that
    held nothing else."""
    kept = {
        name: _stated(value) if isinstance(value, dict) else value for name, value in table.items()
    }
    return {
        name: value
        for name, value in kept.items()
        if not (name in _ALWAYS_WERE and _ALWAYS_WERE[name] == value) and value != {}
    }
