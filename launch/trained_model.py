"""A trained model without its optimizer: weights of one checkpoint after the other in the same memory."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torch.distributed
from torch import Tensor

from launch.batches import Batch
from launch.config import RunConfig
from launch.engine import MICRO_BATCH_TOKENS, start_process
from launch.saved import Saved
from launch.universal import whole_weights
from megatron_ext.classifier import build
from megatron_ext.model import LanguageModel
from megatron_ext.parallel import data_parallel_group, data_parallel_size, start_process_groups


class TrainedModel:
    """The model of `config`, whole on each rank; `load` fills it. What `launch.evaluation` needs of one."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        start_process_groups(1)
        self.config = config
        self.device = device
        self.world_size = data_parallel_size()
        self.micro_batch = max(1, MICRO_BATCH_TOKENS[device.type] // config.shape.seq_length)
        model = build(config.shape, seed=0, init_std=config.model.init_std, device=device)
        precision = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self.model: LanguageModel = model.to(precision).eval().requires_grad_(False)

    def fits(self, config: RunConfig) -> bool:
        """Whether the weights of a run of `config` can take the place of these."""
        return (config.shape, config.precision) == (self.config.shape, self.config.precision)

    @torch.no_grad()
    def load(self, checkpoint: Path) -> None:
        """Take the weights of a checkpoint, rounded as training rounds them.

        Raises `ValueError` that names the checkpoint where its parameters are not those of the model.
        """
        held = dict(self.model.named_parameters())
        for name, weight in whole_weights(checkpoint, self.config.shape):
            parameter = held.pop(name, None)
            if parameter is None or parameter.shape != weight.shape:
                wanted = "no such parameter" if parameter is None else list(parameter.shape)
                raise _another_model(checkpoint, f"{name} of shape {list(weight.shape)}", wanted)
            parameter.copy_(weight)
        if held:
            raise _another_model(checkpoint, f"no {min(held)}", "every parameter")

    @torch.no_grad()
    def losses(self, batch: Batch) -> Tensor:
        """The loss of every token [B, S] of a batch of at most `micro_batch` rows, in nats."""
        return self.model(batch.tokens).view(batch.tokens.T.shape).T

    def add_over_ranks(self, tensors: tuple[Tensor, ...]) -> None:
        """Sum each tensor over the ranks, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor, group=data_parallel_group())


def trained_models(checkpoints: Iterable[Saved]) -> Iterator[tuple[Saved, TrainedModel]]:
    """Each checkpoint with its model, which the next one takes the memory of: checkpoints of one shape pay for building
    it once. Starts the process for it first."""
    device = start_process()
    model: TrainedModel | None = None
    for saved in checkpoints:
        if model is None or not model.fits(saved.config):
            model = None  # its memory first
            model = TrainedModel(saved.config, device)
        model.load(saved.path)
        yield saved, model


def _another_model(checkpoint: Path, found: str, wanted: object) -> ValueError:
    return ValueError(
        f"{checkpoint}: holds {found}; wanted {wanted}, as the run's config.json says. The files are of another "
        "model: take another checkpoint."
    )
