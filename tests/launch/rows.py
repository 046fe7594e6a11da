"""Rows of `metrics.h5` whose every number follows from the step, so that any row can be checked."""

import numpy as np

from launch.results import TRAIN_COLUMNS

WIDTH = 16


def train_row(step: int) -> dict[str, float]:
    return {name: step * (10 + place) for place, name in enumerate(TRAIN_COLUMNS.names)} | {
        "step": step
    }


def eval_rows(step: int) -> list[dict]:
    return [
        {
            "step": step, "tokens": 7 * step, "flops": 0.5 * step, "flops_exact": 0.25 * step,
            "split": "valid", "kind": kind, "loss": step + place, "standard_error": 1 / step,
            "num_tokens": 3 * step, "num_rows": 8,
        }
        for place, kind in enumerate(("loss", "answer"))
    ]  # fmt: skip


def position(step: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(WIDTH) + float(step), np.full(WIDTH, step)
