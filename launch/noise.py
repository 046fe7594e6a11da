"""What the gradient noise scale is measured from (`launch.diagnosis.noise_scale`), while a run trains.

The small batch is one micro-batch of one rank, the big one the global batch: nothing is computed twice.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from megatron_ext.model import is_split

EVERY = 16  # steps: reading every gradient once more then costs nothing that shows


class SquaredGradient:
    """The squared norm of what one backward pass adds to the gradients, on this tensor-parallel rank.

    A context manager around that pass. It reads each gradient as autograd hands it over, before
    DeepSpeed reduces, cuts or frees it, so it works for every ZeRO stage. A parameter that all
    tensor-parallel ranks hold whole counts only where `counts_shared`.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], counts_shared: bool) -> None:
        self._parameters = [p for p in parameters if counts_shared or is_split(p)]
        self._squares: list[Tensor] = []

    def __enter__(self) -> "SquaredGradient":
        self._hooks = [parameter.register_hook(self._add) for parameter in self._parameters]
        return self

    def __exit__(self, *_: Any) -> None:
        for hook in self._hooks:
            hook.remove()

    def _add(self, gradient: Tensor) -> None:
        self._squares.append(gradient.float().square().sum())

    @property
    def value(self) -> Tensor:
        return torch.stack(self._squares).sum()
