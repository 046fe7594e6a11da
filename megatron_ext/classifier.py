"""A model of pictures as a classifier (Henighan et al. 2020, Figure 11).

The same trunk, without the output matrix: the activations of the last layer are averaged over all positions, and a new
linear layer gives the classes. All weights are trained. A row is a picture and, behind it, the number of its class in
two bytes, the low one first (`data_prep/domains/image_classes.py`); the model reads the start token and all
colour values but the last, as in pretraining.

Not stated in the paper, and our choice: that the new layer has a bias, begun at 0, and that its weights are drawn as
all others are; that the average comes after the last norm.

Shape suffixes: B batch, S sequence, D hidden size, C classes, K counted tokens of the batch.
"""

from dataclasses import replace

import torch
from torch import Tensor

from megatron_ext.loss import token_losses
from megatron_ext.model import LanguageModel, build_model
from megatron_ext.parallel import tensor_parallel_size
from megatron_ext.shape import LABEL_TOKENS, ModelShape

CLASS_LAYER = "gpt.class_layer"


class Classifier(LanguageModel):
    """Looks like a language model to all that trains and evaluates one: it gives a loss for every token."""

    new_parameters = frozenset({f"{CLASS_LAYER}.weight", f"{CLASS_LAYER}.bias"})

    def forward(self, tokens_BS: Tensor, counted_BS: Tensor | None = None) -> Tensor:
        """The losses [K] of the tokens where `counted_BS` is true, or of all, position by position and row by row
        within each: 0 at pixels, the cross-entropy in nats at the class, and behind it 1 for a wrong answer, else 0."""
        logits_BC, targets_B = self.logits(tokens_BS)
        losses_BS = logits_BC.new_zeros(tokens_BS.shape, dtype=torch.float32)
        losses_BS[:, -2] = token_losses(logits_BC, targets_B)
        losses_BS[:, -1] = (logits_BC.argmax(1) != targets_B).float()
        losses_K = losses_BS.T.flatten()
        return losses_K if counted_BS is None else losses_K[counted_BS.T.flatten()]

    def logits(self, tokens_BS: Tensor, counted_BS: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits [B, C] and the classes [B] of the pictures; each has one answer, so `counted_BS` is not needed."""
        hidden_SBD = self._hidden(tokens_BS[:, :-LABEL_TOKENS])
        # In fp32: thousands of positions added up in bf16 would lose most of their digits.
        pooled_BD = hidden_SBD.mean(0, dtype=torch.float32).to(hidden_SBD.dtype)
        return self.gpt.class_layer(pooled_BD), tokens_BS[:, -2] + 256 * tokens_BS[:, -1]


def build_classifier(
    shape: ModelShape,
    *,
    seed: int,
    init_std: float,
    device: torch.device,
    sequence_parallel: bool = False,
    recompute: bool = False,
    dropout: float = 0.0,
) -> Classifier:
    """A new classifier of `shape.classes`: its trunk is that of `build_model` with the same seed.

    Raises `ValueError` under tensor parallelism, and `AssertionError` if the formulas of `ModelShape` do not count
    what was built.
    """
    if (ranks := tensor_parallel_size()) > 1:
        raise ValueError(
            f"parallel.tensor_model_parallel_size = {ranks} with model.classes = {shape.classes}; wanted 1: "
            "classifiers are not split. Use parallel.zero_stage = 3 for models that are too large for one device."
        )
    built = build_model(
        replace(shape, classes=0), seed=seed, init_std=init_std, device=device,
        sequence_parallel=sequence_parallel, recompute=recompute, dropout=dropout,
    )  # fmt: skip
    gpt = built.gpt
    del gpt.output_layer
    gpt.class_layer = _class_layer(shape, seed, init_std).to(device)
    total = sum(parameter.numel() for parameter in gpt.parameters())
    assert total == shape.params_total, (
        f"{shape}: the formulas count {shape.params_total} parameters, the model has {total}"
    )
    return Classifier(gpt, shape, recompute=recompute, masks=built.masks).to(device)


def _class_layer(shape: ModelShape, seed: int, init_std: float) -> torch.nn.Linear:
    """Drawn on the CPU by a generator of its own, so that it follows from (shape, seed, init_std) alone."""
    layer = torch.nn.Linear(shape.hidden_size, shape.classes)
    with torch.no_grad():
        layer.weight.normal_(std=init_std, generator=torch.Generator().manual_seed(seed))
        layer.bias.zero_()
    return layer


def build(shape: ModelShape, **options: object) -> LanguageModel:
    """The model that a shape asks for: a language model, or a classifier where it has classes."""
    return build_classifier(shape, **options) if shape.classes else build_model(shape, **options)  # type: ignore[arg-type]
