"""What a step minimises: the mean over the counted tokens of the global batch, or, with `[loss] weights`, the weighted
mean of the means of the kinds of token. However its tokens fall on ranks and micro-batches, it is the same."""

from collections.abc import Callable

import torch
from torch import Tensor

from data_prep.domain import domain
from launch.batches import Batch
from launch.config import RunConfig


class Objective:
    """Of one global batch, of which this rank has `batch`; `add_over_ranks` sums tensors over ranks in place."""

    def __init__(
        self,
        config: RunConfig,
        batch: Batch,
        add_over_ranks: Callable[[tuple[Tensor, ...]], None],
    ) -> None:
        """Collective. Raises `ValueError` on all ranks where no token counts."""
        self._coefficients: Tensor | None = None  # of each kind of token
        weights, kinds = config.loss.weights, []
        if weights:
            kinds = [each.kind for each in domain(config.domain).kinds]
            counts = torch.bincount(batch.counted_kinds, minlength=len(kinds)).double()
        else:
            counts = batch.count.detach().clone().double()[None]
        add_over_ranks((counts,))
        self.count = counts.sum().item()
        if not self.count:
            raise ValueError(
                f"{config.run_id}: a batch of {config.batch.train_batch_size} rows holds no "
                "token that counts in the loss; wanted at least one. Raise batch.train_batch_size, or "
                "leave out documents that are longer than a row."
            )
        if weights:
            # A kind that this batch has none of has no mean: the others share its weight.
            weight = counts.new_tensor([weights.get(kind, 0.0) for kind in kinds]) * (counts > 0)
            self._coefficients = (weight / counts.clamp(min=1) / weight.sum()).float()

    def of(self, losses: Tensor, batch: Batch, times: float) -> Tensor:
        """What the counted tokens of a micro-batch, their losses [K] in the model's order, add to the objective,
        `times` over."""
        if self._coefficients is None:
            return losses.sum() * (times / self.count)
        return (losses * self._coefficients[batch.counted_kinds]).sum() * times

    def factor(self, batch: Batch, global_rows: int) -> Tensor | float:
        """From the gradient of a micro-batch's share of the objective to that of a batch of its own."""
        if self._coefficients is None:
            return self.count / batch.count.clamp(min=1)
        return global_rows / len(batch.tokens)  # as if its kinds were mixed as the global batch's
