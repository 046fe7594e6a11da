"""What a run's own records say about it: spikes of the loss, the gradient noise scale. No torch."""

import numpy as np

SPIKE_WINDOW, SPIKE_SCORE = 64, 12.0
RESOLUTION = 2.0**-23  # of fp32, in which losses are computed from logits, whose size is about one


def skipped_places(grad_norms: np.ndarray) -> np.ndarray:
    """The places of gradient norms that are not finite: such a step changes no weight on any rank."""
    return np.flatnonzero(~np.isfinite(grad_norms))


def spike_places(losses: np.ndarray) -> np.ndarray:
    """The places of values that stand far above the `SPIKE_WINDOW` before them, or are not finite.

    Far: `SPIKE_SCORE` robust standard deviations above their median, with 1.4826 times the median
    absolute deviation as one (Iglewicz & Hoaglin 1993). Noise of small batches has heavy tails, so the
    limit is high: what it finds is a loss that jumped, not an unlucky batch. One deviation is at least
    `usual_noise`, or in a flat window any rise would be a spike.
    """
    broken = ~np.isfinite(losses)
    least = usual_noise(losses)
    filled = np.where(broken, np.inf, losses)
    jumps = np.zeros(len(losses), bool)
    for first in range(SPIKE_WINDOW, len(losses), 65_536):  # flat memory for a million steps
        last = min(first + 65_536, len(losses))
        windows = np.lib.stride_tricks.sliding_window_view(
            filled[first - SPIKE_WINDOW : last - 1], SPIKE_WINDOW
        )
        with np.errstate(invalid="ignore"):
            middle = np.median(windows, axis=1)
            spread = 1.4826 * np.median(np.abs(windows - middle[:, None]), axis=1)
            floor = np.maximum(least, RESOLUTION * np.maximum(1.0, np.abs(middle)))
            limit = SPIKE_SCORE * np.maximum(spread, floor)
            jumps[first:last] = filled[first:last] - middle > limit
    return np.flatnonzero(broken | jumps)


def usual_noise(losses: np.ndarray) -> float:
    """The standard deviation of one step's loss, robustly, from what neighbouring steps differ by: their median
    absolute difference, times 1.4826 for normal noise, over sqrt(2) for the noise of two. A trend hardly
    shows in it. 0 without two finite neighbours."""
    with np.errstate(invalid="ignore"):
        differences = np.abs(np.diff(losses))
    differences = differences[np.isfinite(differences)]
    return float(1.4826 * np.median(differences) / np.sqrt(2)) if len(differences) else 0.0


def noise_scale(measured: np.ndarray) -> float:
    """The gradient noise scale in rows: the batch above which more rows buy ever fewer steps.

    McCandlish et al. 2018 (section 2.2, appendix A.1), as Kaplan et al. 2020 (section 5.1) use it: the
    squared norm of a gradient over B rows is |G|^2 + S / B on average, so two batch sizes give both,

        |G|^2 = (B_big |G_big|^2 - B_small |G_small|^2) / (B_big - B_small)
        S     = (|G_small|^2 - |G_big|^2) / (1 / B_small - 1 / B_big)

    and B_noise = S / |G|^2, each averaged over steps first, for the ratio of single ones is biased.
    `measured` holds rows of `/noise`. NaN where they do not determine it.
    """
    if not len(measured):
        return float("nan")
    small, big = measured["batch_small"], measured["batch_big"]
    at_small, at_big = measured["square_small"], measured["square_big"]
    signal = ((big * at_big - small * at_small) / (big - small)).mean()
    noise = ((at_small - at_big) / (1 / small - 1 / big)).mean()
    return float(noise / signal) if signal > 0 and noise > 0 else float("nan")
