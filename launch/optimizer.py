"""AdamW as our runs use it, and what DeepSpeed does to it that has to be undone."""

import math
from collections.abc import Callable
from typing import Any

import torch

from launch.config import RunConfig


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that does nothing where the gradient's norm, the same on all ranks, is not finite.

    Most of DeepSpeed's optimizers do not call it then; ZeRO 2 in bf16 does.
    """

    norm: Callable[[], float] = staticmethod(lambda: 0.0)

    def step(self, closure: Any = None) -> Any:
        return super().step(closure) if math.isfinite(self.norm()) else None


def optimizer_of(model: torch.nn.Module, config: RunConfig) -> GuardedAdamW:
    """AdamW; matrices and tables decay, biases and norms do not (GPT-3's practice)."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    kept = [p for p in model.parameters() if p.ndim < 2]
    options = config.optimizer
    return GuardedAdamW(
        [
            {"params": decayed, "weight_decay": options.weight_decay},
            {"params": kept, "weight_decay": 0.0},
        ],
        lr=0.0,  # every step sets its own; see forget_warm_up_step
        betas=(options.beta1, options.beta2),
        eps=options.epsilon,
        fused=True,
    )


def forget_warm_up_step(optimizer: torch.optim.Optimizer) -> None:
    """DeepSpeed's bf16 optimizer without ZeRO takes one step on zero gradients to allocate state.

    Adam then believes that it is at its second step, and the first true update is 0.73 of what it
    should be (seen as 0.01 nats after 12 steps). A learning rate of 0 keeps that step from moving
    weights; this makes Adam count from 0 again.
    """
    for state in optimizer.state.values():
        if "step" in state:
            state["step"].zero_()


def forget_gradients(optimizer: Any) -> None:
    """After a step that was skipped: ZeRO 1 and 2 in bf16 with the optimizer on the host keep the sum of the step's
    gradients, add those of the next step to it, and so would skip every step after one that was not finite."""
    kept = getattr(optimizer, "averaged_gradients", {})
    for group in kept:
        kept[group] = None
