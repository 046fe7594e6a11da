"""`RunConfig` -> a DeepSpeed engine around megatron-core's model.

The module that runs DeepSpeed (`safe_load` reads its files).
"""

import gc
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from launch.agreement import agreed
from launch.batches import Batch
from launch.checkpoint_writer import Part
from launch.config import RunConfig
from launch.deepspeed_config import deepspeed_clips, deepspeed_config
from launch.noise import SquaredGradient, squared_gradient
from launch.objective import Objective
from launch.optimizer import forget_gradients, forget_warm_up_step, optimizer_of
from launch.process import keep_freed_memory, own_device
from launch.safe_load import SafeCheckpointEngine
from launch.universal import Universal, load_universal
from megatron_ext.classifier import build
from megatron_ext.model import LanguageModel, is_split
from megatron_ext.parallel import (
    data_parallel_group,
    data_parallel_rank,
    data_parallel_size,
    deepspeed_adapter,
    start_process_groups,
    tensor_parallel_group,
    tensor_parallel_rank,
    tensor_parallel_size,
)
from megatron_ext.quiet import quiet

with quiet():
    import deepspeed
    import deepspeed.comm

# Tokens in a micro-batch if nobody says: enough to keep a device busy, little enough to fit.
MICRO_BATCH_TOKENS = {"cpu": 8_192, "cuda": 65_536}


def start_process() -> torch.device:
    """Make this process ready to train: device, process group, DeepSpeed. Safe to call twice."""
    # DeepSpeed calls torch's collectives by names that torch has since replaced.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    keep_freed_memory()
    # 85 s of g++ the first time, for a collective that gloo has already (measured; stack notes).
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    device = agreed(own_device)
    agreed(start_process_groups)  # a rank that is refused next must not leave while others connect
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", verbose=False)
    return device


@dataclass(frozen=True)
class StepResult:
    """One optimizer step: mean loss of the global batch (nats per counted token), gradient norm.

    A step whose gradient is not finite on any rank changed nothing on any. `small_square` is the mean
    squared norm of the gradient of `small_batch` rows, where it was asked for (`launch.noise`).
    """

    loss: float
    grad_norm: float
    small_square: float | None = None
    small_batch: int = 0

    @property
    def skipped(self) -> bool:
        return not math.isfinite(self.grad_norm)


class Engine:
    """One run's model and optimizer, inside DeepSpeed. `close` frees them, for the next run."""

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        fill: Callable[[LanguageModel], None] | None = None,
    ) -> None:
        """`fill`: puts other first weights into the model than those that are drawn (`launch.start`)."""
        start_process_groups(config.parallel.tensor_model_parallel_size)
        self.config = config
        self.device = device
        self.world_size = data_parallel_size()
        self.micro_batch = micro_batch_size(config, self.world_size, device)
        model = build(
            config.shape,
            seed=config.seed,
            init_std=config.model.init_std,
            device=device,
            sequence_parallel=config.parallel.sequence_parallel,
            recompute=config.parallel.activation_checkpointing,
            dropout=config.model.dropout,
        )
        if fill:
            fill(model)
        self._parameters = list(
            model.parameters()
        )  # walking the modules at each step takes a while
        self._adam = optimizer_of(model, config)
        with quiet():
            self._deepspeed, *_ = deepspeed.initialize(
                model=model,
                model_parameters=self._parameters,
                optimizer=self._adam,
                config=deepspeed_config(config, self.micro_batch, self.world_size),
                mpu=deepspeed_adapter(),
            )
        forget_warm_up_step(self._deepspeed.basic_optimizer)
        if self.world_size == 1 and config.parallel.zero_stage == 0:
            # Nothing to add over one rank, but DeepSpeed would wait for gloo to do it.
            self._deepspeed.enable_backward_allreduce = False
        self._files = SafeCheckpointEngine(self._deepspeed._config)
        self._deepspeed.checkpoint_engine = self._files
        # Scripts beside the checkpoint, which one rank writes outside of the checkpoint engine.
        self._deepspeed._copy_recovery_script = lambda _: None

    @property
    def model(self) -> LanguageModel:
        return self._deepspeed.module

    def train_step(
        self, batch: Batch, learning_rate: float, *, step: int = 0, measure_noise: bool = False
    ) -> StepResult:
        """One optimizer step over this rank's rows of the global batch.

        What falls is the objective over the *global* batch (`launch.objective`); the loss that is told is the plain
        mean over its counted tokens, whatever the objective weighs. `step` counts from 0: dropout's masks follow from
        it.
        """
        objective = Objective(self.config, batch, self.add_over_ranks)
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        total = torch.zeros((), device=self.device)
        batch_size = self.config.batch.train_batch_size
        # DeepSpeed divides by the micro-batches of a rank and by the ranks.
        times = len(batch.tokens) // self.micro_batch * self.world_size
        small, small_batch = None, self.micro_batch
        if measure_noise and self.micro_batch == batch_size and self._can_halve:
            small_batch = batch_size // 2
            small = self._square_of_half(batch.rows(slice(small_batch)), objective, times, step)
        for start in range(0, len(batch.tokens), self.micro_batch):
            part = batch.rows(slice(start, start + self.micro_batch))
            self._begin_masks(step, start)
            losses = self._deepspeed(part.tokens, part.counted)
            share = objective.of(losses, part, times)
            if measure_noise and start == 0 and self.micro_batch < batch_size:
                with SquaredGradient(self._parameters, tensor_parallel_rank() == 0) as gradient:
                    self._deepspeed.backward(share)
                small = self._small_square(gradient.value, objective.factor(part, batch_size))
            else:
                self._deepspeed.backward(share)
            total += losses.detach().sum()
            if start + self.micro_batch < len(batch.tokens):
                self._deepspeed.step()
        # Where DeepSpeed clips, it knows the norm by the time it calls Adam.
        clipped = self._clip()
        self._adam.norm = self._deepspeeds_norm if clipped is None else lambda: clipped
        self._deepspeed.step()
        grad_norm = self._adam.norm()
        if not math.isfinite(grad_norm) and self.config.parallel.zero_stage in (1, 2):
            forget_gradients(self._deepspeed.optimizer)
        loss = self._sum_over_ranks(total) / objective.count
        return StepResult(loss, grad_norm, small, small_batch)

    def _begin_masks(self, step: int, first_row: int) -> None:
        """Dropout's, for the next forward and backward pass; nothing without dropout."""
        if self.model.masks:
            self.model.masks.begin(self.config.seed, step, data_parallel_rank(), first_row)

    @property
    def _can_halve(self) -> bool:
        return self.micro_batch > 1 and self.config.parallel.zero_stage < 3

    def _square_of_half(self, half: Batch, objective: Objective, times: int, step: int) -> float:
        """Where one micro-batch is the global batch: half of a forward and backward pass more."""
        self._begin_masks(step, 0)
        share = objective.of(self.model(half.tokens, half.counted), half, times)
        square = squared_gradient(share, self._parameters, tensor_parallel_rank() == 0)
        return self._small_square(square, objective.factor(half, self.micro_batch))

    def _small_square(self, square: torch.Tensor, factor: torch.Tensor | float) -> float:
        """As if each rank's micro-batch were a batch of its own: the mean over ranks.

        The backward pass was given the micro-batch's share of the objective, times the ranks.
        """
        if tensor_parallel_size() > 1:
            torch.distributed.all_reduce(square, group=tensor_parallel_group())
        of_its_own = square * (factor / self.world_size) ** 2
        return self._sum_over_ranks(of_its_own) / self.world_size

    def _deepspeeds_norm(self) -> float:
        """The norm of the whole gradient, which it gives as -1 where that is not finite."""
        norm = float(self._deepspeed.optimizer._global_grad_norm)
        return norm if norm >= 0 else math.inf

    def _clip(self) -> float | None:
        """Clip and measure, where DeepSpeed does not, or counts parts of other ranks not at all."""
        if deepspeed_clips(self.config):
            return None
        limit = self.config.optimizer.clip_grad_norm or math.inf
        if tensor_parallel_size() == 1:
            return torch.nn.utils.clip_grad_norm_(self._parameters, limit).item()
        # Parts differ from rank to rank; what every rank holds whole counts once.
        first = tensor_parallel_rank() == 0
        counted = [
            p.grad for p in self._parameters if p.grad is not None and (first or is_split(p))
        ]
        square = torch.stack([grad.float().square().sum() for grad in counted]).sum()
        torch.distributed.all_reduce(square, group=tensor_parallel_group())
        norm = square.sqrt()
        torch.nn.utils.clip_grads_with_norm_(self._parameters, limit, norm)
        return norm.item()

    @torch.no_grad()
    def losses(self, batch: Batch) -> torch.Tensor:
        """The loss of every token [B, S] of a batch, counted or not, in nats."""
        self._deepspeed.eval()
        losses = [
            self.model(tokens).view(tokens.T.shape).T
            for tokens in batch.tokens.split(self.micro_batch)
        ]
        self._deepspeed.train()
        return torch.cat(losses)

    def to_save(self, folder: Path, tag: str, state: dict[str, Any], *, copy: bool) -> list[Part]:
        """The files under folder/tag that hold model, optimizer and `state`, for this rank to write.

        Collective: all ranks call it. With `copy` training may go on before they are written. Raises
        what kept this rank from copying, when all are through.
        """
        self._files.copies = copy
        with quiet():
            self._deepspeed.save_checkpoint(
                str(folder), tag=tag, client_state=state, save_latest=False
            )
        return self._files.taken()

    def load(self, folder: Path, tag: str) -> dict[str, Any]:
        """Read what was saved; returns the state. Collective.

        Raises `ValueError` that names the checkpoint for one that is not this model's.
        """
        try:
            with quiet():
                path, state = self._deepspeed.load_checkpoint(str(folder), tag=tag)
            if path is None:
                raise FileNotFoundError("DeepSpeed finds no model in it")
        except Exception as error:  # DeepSpeed says what does not fit by almost any exception
            if isinstance(error, ValueError) and str(folder / tag) in str(error):
                raise
            raise ValueError(
                f"{folder / tag}: not a checkpoint of this model ({type(error).__name__}: {error}); "
                "wanted what this run saved. Remove it: the run continues from the one before, or "
                "from the beginning."
            ) from error
        return state

    def load_universal(self, folder: Path) -> None:
        """Continue from a checkpoint that is not of any one topology (`launch.universal`). Collective."""
        universal = Universal(folder, tensor_parallel_rank(), tensor_parallel_size())
        with quiet():
            load_universal(self._deepspeed, universal, data_parallel_rank())

    def add_over_ranks(self, tensors: tuple[torch.Tensor, ...]) -> None:
        """Sum each tensor over the data-parallel ranks, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor, group=data_parallel_group())

    def agree(self, *numbers: int) -> tuple[int, ...]:
        """The largest of each number over all ranks."""
        if torch.distributed.get_world_size() == 1:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.int32, device=self.device)
        torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
        return tuple(tensor.tolist())

    def close(self) -> None:
        """Give the memory back, so that the next run of this process starts as in a new one."""
        self._deepspeed.destroy()
        del self._deepspeed, self._parameters, self._adam
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _sum_over_ranks(self, value: torch.Tensor) -> float:
        if self.world_size > 1:
            value = value.detach().clone()
            torch.distributed.all_reduce(value, group=data_parallel_group())
        return value.item()


def micro_batch_size(config: RunConfig, world_size: int, device: torch.device) -> int:
    """Rows per forward pass: the study's choice, or the most that divide the rank's share.

    Raises `ValueError` where ranks or micro-batches do not divide the batch.
    """
    batch_size = config.batch.train_batch_size
    asked = config.parallel.train_micro_batch_size_per_gpu
    if batch_size % (world_size * (asked or 1)):
        raise ValueError(
            f"batch.train_batch_size = {batch_size} does not divide into {world_size} ranks x "
            f"micro-batches of {asked or 1}; wanted a whole number of rows each. Change the number "
            "of ranks, the batch size or parallel.train_micro_batch_size_per_gpu."
        )
    per_rank = batch_size // world_size
    most = max(1, MICRO_BATCH_TOKENS[device.type] // config.shape.seq_length)
    return asked or max(n for n in range(1, min(per_rank, most) + 1) if per_rank % n == 0)
