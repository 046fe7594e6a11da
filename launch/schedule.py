"""The learning rate as a pure function of the tokens seen, and the papers' peak rates by name.

Counting tokens instead of steps keeps a schedule the same when the batch changes, and makes
resuming trivial: there is no state to save.
"""

import math
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field, model_validator

from launch.strict import Strict

LearningRateRule = Literal["henighan", "kaplan", "porian"]
BatchRule = Literal["porian"]

LEARNING_RATE_RULES: dict[LearningRateRule, Callable[[float], float]] = {
    # Our reading of Henighan et al. 2020, Table 5 (image, video and math models), which gives rates
    # but no rule: this one reproduces all seven rows to every printed digit.
    "henighan": lambda params: 0.02828 * params**-0.25,
    # Kaplan et al. 2020, eq. D.1. The logarithm is natural: so it reproduces Henighan's Table 4.
    "kaplan": lambda params: 0.003239 - 0.0001395 * math.log(params),
    # Porian et al. 2024: tuned for each size, with a constant rate.
    "porian": lambda params: 3.7 * params**-0.36,
}
"""Peak learning rate as a function of N: of non-embedding parameters; Porian's counts the head too."""


def batch_tokens(params_with_head: int) -> float:
    """Porian et al. 2024: the tokens in a batch, tuned for each size."""
    return 0.7576 * params_with_head**0.703


class Schedule(Strict):
    """How the learning rate moves between 0 and its peak.

    kind            after the linear warm-up
    constant        stays at the peak
    linear          falls linearly to final_fraction of the peak (Henighan section 2.1: 1/10)
    cosine          falls along half a cosine to final_fraction (Kaplan section 2.2: 0)
    wsd             stays at the peak, then cools down over the last cooldown_fraction of the run
                    as 1 - sqrt(progress), to final_fraction (Haegele et al. 2024)
    """

    kind: Literal["constant", "linear", "cosine", "wsd"] = "linear"
    warmup_tokens: Annotated[float, Field(ge=0)] | None = None
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    # For each parameter, the head counted; 1 in Porian et al. 2024
    warmup_tokens_per_param: Annotated[float, Field(ge=0)] | None = None
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    cooldown_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2

    @model_validator(mode="after")
    def _one_warmup(self) -> "Schedule":
        names = ("warmup_steps", "warmup_tokens", "warmup_tokens_per_param")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both given; wanted one of them")
        return self

    def of_size(self, params_with_head: int) -> "Schedule":
        """The same with its warm-up in tokens or steps."""
        if self.warmup_tokens_per_param is None:
            return self
        tokens = self.warmup_tokens_per_param * params_with_head
        return self.model_copy(update={"warmup_tokens": tokens, "warmup_tokens_per_param": None})


def peak_learning_rate(rate: float | LearningRateRule, params: int) -> float:
    """A number as it is, or a named rule at N, as the rule counts it. Raises `ValueError` where that breaks down."""
    if not isinstance(rate, str):
        return float(rate)
    peak = LEARNING_RATE_RULES[rate](params)
    if peak <= 0:
        raise ValueError(
            f"optimizer.learning_rate = '{rate}' gives {peak:.3g} at N = {params:.3g};"
            " wanted a positive rate. The rule breaks down there (Kaplan appendix D: above 1e10): "
            "give a number instead."
        )
    return peak


def learning_rate(
    tokens: float,
    *,
    schedule: Schedule,
    peak: float,
    warmup_tokens: float,
    total_tokens: float,
) -> float:
    """The learning rate of the step that ends with `tokens` tokens seen.

    Warm-up rises linearly and reaches the peak with the step that ends at `warmup_tokens`.
    """
    if tokens < warmup_tokens:
        return peak * tokens / warmup_tokens
    if schedule.kind == "constant":
        return peak
    start = cooldown_start(schedule, total_tokens) if schedule.kind == "wsd" else warmup_tokens
    start = max(start, warmup_tokens)
    if tokens <= start or total_tokens <= start:
        return peak
    progress = min(1.0, (tokens - start) / (total_tokens - start))
    fall = {
        "linear": progress,
        "cosine": 0.5 * (1 - math.cos(math.pi * progress)),
        "wsd": math.sqrt(progress),
    }[schedule.kind]
    return peak * (1 - (1 - schedule.final_fraction) * fall)


def cooldown_start(schedule: Schedule, total_tokens: float) -> float:
    """Tokens at which a `wsd` run begins to cool down: where a shorter run may branch off."""
    return (1 - schedule.cooldown_fraction) * total_tokens
