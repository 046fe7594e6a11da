"""What the gradient noise scale is measured from (`launch.diagnosis.noise_scale`), while a run trains.

The small batch is one micro-batch of one rank, the big one the global batch: nothing is computed twice. Where one
micro-batch is all, its first half is computed by itself.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from megatron_ext.model import is_split

EVERY = 16  # steps: reading every gradient once more then costs nothing that shows


def squared_gradient(
    loss: Tensor, parameters: Sequence[torch.nn.Parameter], counts_shared: bool
) -> Tensor:
    """The squared norm of the gradient of `loss`, which is added to nothing; see `SquaredGradient`. Not under ZeRO 3,
    which holds parts of the parameters.

    Of all parameters on every rank, whichever count: with sequence parallelism the backward pass of those that are not
    split is a collective.
    """
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    squares = [
        gradient.float().square().sum()
        for parameter, gradient in zip(parameters, found, strict=True)
        if gradient is not None and (counts_shared or is_split(parameter))
    ]
    return torch.stack(squares).sum()


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
