"""Cross-entropy in nats, and its sums over an evaluation: in all, by token kind, by position.

Shape suffixes: K counted tokens, V vocabulary, B rows, S sequence, R rows of the evaluation.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_ext.quiet import quiet

with quiet():
    from megatron.core.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy


def token_losses(logits_KV: Tensor, targets_K: Tensor, *, split: bool = False) -> Tensor:
    """The loss of each token [K], in nats, in float32 whatever the model computes in.

    `split`: this rank holds its part of the vocabulary alone, as large as every other rank's.
    """
    if split:
        return vocab_parallel_cross_entropy(logits_KV.float(), targets_K)
    return F.cross_entropy(logits_KV.float(), targets_K, reduction="none")


@dataclass
class LossSums:
    """Sums over the rows of one evaluation, in float64; ranks add theirs, then read means.

    loss_sum_R, count_R    over the tokens of each row that the objective counts
    kind_sum, kind_count   over each kind of token
    position_sum_S, position_count_S   over the counted tokens at each position
    """

    loss_sum_R: Tensor
    count_R: Tensor
    kind_sum: Tensor
    kind_count: Tensor
    position_sum_S: Tensor
    position_count_S: Tensor

    @staticmethod
    def zeros(rows: int, kinds: int, seq_length: int, device: torch.device) -> "LossSums":
        sizes = (rows, rows, kinds, kinds, seq_length, seq_length)
        return LossSums(*(torch.zeros(size, dtype=torch.float64, device=device) for size in sizes))

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name) for name in self.__dataclass_fields__)

    def add(self, rows: slice, losses_BS: Tensor, kinds_BS: Tensor, counted_BS: Tensor) -> None:
        """Add a batch: the loss, kind and mask of every token of the rows `rows`."""
        losses_BS = losses_BS.double()
        counted_losses = losses_BS * counted_BS
        self.loss_sum_R[rows] += counted_losses.sum(1)
        self.count_R[rows] += counted_BS.sum(1)
        self.position_sum_S += counted_losses.sum(0)
        self.position_count_S += counted_BS.sum(0)
        kinds = kinds_BS.flatten().long()
        self.kind_sum += torch.bincount(kinds, losses_BS.flatten(), len(self.kind_sum))
        self.kind_count += torch.bincount(kinds, minlength=len(self.kind_count))

    def mean(self) -> tuple[float, float]:
        """The mean loss in nats per counted token, and its standard error.

        Tokens of a row are not independent, so rows are the units: the error is that of a ratio
        of two sums over rows (linearised), sqrt(R / (R - 1) sum_r (s_r - L n_r)^2) / sum_r n_r.
        NaN with fewer than two rows.
        """
        total = self.count_R.sum()
        loss = self.loss_sum_R.sum() / total
        rows = int((self.count_R > 0).sum())
        if rows < 2:
            return loss.item(), float("nan")
        residual = self.loss_sum_R - loss * self.count_R
        error = (residual.square().sum() * rows / (rows - 1)).sqrt() / total
        return loss.item(), error.item()
