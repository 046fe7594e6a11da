"""Hold-out for the laws that are a straight line, in logarithms, through numbers that were read off first:
the best sizes of isoFLOP budgets against compute, critical batches against the loss.

The same rolling origin as `analysis.holdout`: the line through what was read off up to a cut is judged on
what was read off beyond it.
"""

from typing import Any

import numpy as np

from analysis.holdout import MOST_SPLITS

FEWEST_BELOW = 3
"""Different x that a line must have: two give one without scatter."""


def line_holdouts(
    x: np.ndarray, y: np.ndarray, of: str, falling: bool = False
) -> list[dict[str, Any]]:
    """Up to MOST_SPLITS cuts in x, rising, or `falling` as losses do with compute; x and y positive, `of`
    what y is. Each as `Split.as_json`, the errors of log y; pairs in which one is no positive number are left
    out, and there is none with fewer than FEWEST_BELOW different x below every cut."""
    known = np.isfinite(x) & (x > 0) & np.isfinite(y) & (y > 0)
    along, log_y = np.log(x[known]) * (-1 if falling else 1), np.log(y[known])
    cuts = np.unique(along)[FEWEST_BELOW - 1 : -1]
    wanted = np.linspace(0, len(cuts) - 1, min(MOST_SPLITS, len(cuts))).astype(int)
    return [_split(along, log_y, cut, of, falling) for cut in cuts[wanted]]


def _split(
    along: np.ndarray, log_y: np.ndarray, cut: float, of: str, falling: bool
) -> dict[str, Any]:
    below = along <= cut
    slope, level = np.polyfit(along[below] - cut, log_y[below], 1)
    error = level + slope * (along[~below] - cut) - log_y[~below]
    return {
        "of": of,
        "cut": float(np.exp(-cut if falling else cut)),
        "points_below": int(below.sum()),
        "points_above": int(np.sum(~below)),
        "decades_above": float((along.max() - cut) / np.log(10)),
        "rms_error": float(np.sqrt(np.mean(error**2))),
        "mean_error": float(error.mean()),
    }
