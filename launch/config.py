"""`RunConfig`: everything that decides what one run computes, and how it is spread over devices.

The parts (`Batch`, `Optimizer`, ...) are what people write in a study file; a `RunConfig` is one
resolved combination of them. Its `digest` covers what changes a loss and nothing else, so moving a
run to other hardware or keeping other checkpoints does not make it another run.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from launch.schedule import LearningRateRule, Schedule, peak_learning_rate
from launch.strict import Strict
from megatron_ext.shape import Family, ModelShape

CONFIG_FILE = "config.json"
CHANGES_NO_LOSS = frozenset(
    ("study", "question", "parallel", "checkpoint", "guards", "trunk", "keep_steps", "variant")
)  # keys of a run's configuration
FIRST_EVALUATION = 10  # earlier ones cost as much and tell of the initial values alone

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
PositiveInt = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Batch(Strict):
    train_batch_size: PositiveInt = 128  # sequences per optimizer step (Henighan: 128 pictures)


class Optimizer(Strict):
    """AdamW. Betas, epsilon and clipping are not stated by either paper: GPT-3's are the defaults."""

    learning_rate: Annotated[float, Field(gt=0)] | LearningRateRule
    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0  # Henighan: 0.05 "for math alone"
    clip_grad_norm: Annotated[float, Field(ge=0)] = 1.0  # 0 switches clipping off


class Model(Strict):
    """`sparse`: layers alternate between a local band and a stride, both one row of the domain's grid
    long (Henighan section 2.1; Child et al. 2019). `factorised`: a position's embedding is the sum
    of those of its row, column, colour and frame. `dropout`: this share of the embeddings, of the attention
    probabilities and of what each layer adds to the residual stream is zero in training (Kaplan's L(N, D): 0.1).
    `classes`: a classifier of so many, for a domain of labelled pictures (Henighan Figure 11)."""

    family: Family = "henighan"
    attention: Literal["dense", "sparse"] = "dense"
    positions: Literal["plain", "factorised"] = "plain"
    init_std: Annotated[float, Field(gt=0)] = 0.02  # not stated by either paper: GPT-2's
    dropout: Fraction = 0.0
    classes: Annotated[int, Field(ge=2, le=1 << 16)] | None = None


class Evaluation(Strict):
    """Evaluations evenly spaced in log tokens, and at the end, on the same `rows` of each split."""

    splits: Annotated[list[Literal["train", "valid", "test"]], Field(min_length=1)] = ["valid"]
    rows: PositiveInt = 256
    points_per_decade: PositiveInt = 8

    @field_validator("splits")
    @classmethod
    def _each_once(cls, splits: list[str]) -> list[str]:
        if len(set(splits)) < len(splits):
            raise ValueError(f"{splits}: wanted each split once; remove the repeated one")
        return splits


class Checkpoint(Strict):
    """`keep_every`: a checkpoint after every so many steps, kept as long as the study says so. `overlap`: written while
    training goes on, from a copy in the host's memory; without it training waits, and needs no copy."""

    interval_minutes: Annotated[float, Field(ge=0)] = 10.0
    keep_last: PositiveInt = 2
    keep_every: PositiveInt | None = None
    overlap: bool = True


class Parallel(Strict):
    """How a run is spread over devices; changes rounding at most (with dropout, masks), so it is not in the digest.

    The ranks that are left after tensor parallelism are data parallel. ZeRO spreads over these the
    optimizer (1), the gradients too (2), the weights too (3) (Rajbhandari et al. 2020).
    `sequence_parallel` splits rows over the tensor-parallel ranks where the layers are not split
    (Korthikanti et al. 2022, section 4.2); `activation_checkpointing` keeps only the input of each
    layer and computes the rest again (section 3); `offload_optimizer` keeps the optimizer's state
    in the host's memory.
    """

    tensor_model_parallel_size: PositiveInt = 1
    sequence_parallel: bool = False
    zero_stage: Literal[0, 1, 2, 3] = 0
    train_micro_batch_size_per_gpu: PositiveInt | None = None  # None: as large as the batch allows
    activation_checkpointing: bool = False
    offload_optimizer: bool = False

    @model_validator(mode="after")
    def _together(self) -> "Parallel":
        if self.sequence_parallel and self.tensor_model_parallel_size == 1:
            raise ValueError(
                "sequence_parallel = true with tensor_model_parallel_size = 1; wanted at least 2 ranks "
                "to split rows over. Raise tensor_model_parallel_size, or leave sequence_parallel out"
            )
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError(
                "offload_optimizer = true with zero_stage = 0; wanted ZeRO, which does the offloading. "
                "Set zero_stage = 1, or leave offload_optimizer out"
            )
        return self


class Guards(Strict):
    """What is done when training goes wrong; not in the digest, for a run that nothing happens to is the
    same. `non_finite`: a gradient that is not finite changes no weight on any rank; the run then stops,
    or skips that batch, ten in a row at most. `hang_minutes`: a step that takes longer ends the run, so
    that it can be requeued; the first step, in which kernels are compiled, may take ten times as long."""

    non_finite: Literal["stop", "skip"] = "stop"
    hang_minutes: Annotated[float, Field(gt=0)] = 10.0


class Loss(Strict):
    """`weights`: the objective is sum_k w_k mean_k / sum_k w_k over these kinds of token, mean_k being the mean
    loss of kind k (Henighan section 2.1: 9 of a picture's to 1 of its caption's). Empty: every counted token alike."""

    weights: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}


class Blanked(Strict):
    """This `share` of training rows has its `part` blanked, "text" or "image", "left" or "right"."""

    part: str
    share: Annotated[float, Field(gt=0, le=1)]


class Data(Strict):
    """`unique_tokens`: train on so many tokens of the split, in whole rows, again and again. Which ones is a
    pure function of (seed, number of rows), and a larger number holds those of every smaller one."""

    unique_tokens: PositiveInt | None = None
    blanked: Blanked | None = None


class Start(Strict):
    """The weights, not the optimizer, to begin with: those of the run of `study` whose model has the same sizes
    (`launch.start`). `variant`: one of that study's, where it has any."""

    study: Name
    variant: Name | None = None


class Source(Strict):
    """One dataset of a blend: the folder `name` below `--data`, met in proportion to `weight`."""

    name: Name
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Trunk(Strict):
    """The longer run with the same beginning whose checkpoint at `step` this run may start from.

    Until a `wsd` run cools down, its learning rate does not depend on its length. So starting from
    the trunk gives the same bits as training from the start, and saves the shared beginning.
    """

    run_id: str
    step: PositiveInt


class RunConfig(Strict):
    study: str
    question: str
    domain: str
    blend: list[Source] = []
    shape: ModelShape
    tokens: PositiveInt  # to train on: a whole number of steps
    seed: Seed
    batch: Batch
    optimizer: Optimizer  # learning_rate resolved to a number
    schedule: Schedule
    model: Model
    precision: Literal["fp32", "bf16"]
    evaluation: Evaluation
    checkpoint: Checkpoint
    parallel: Parallel
    guards: Guards = Guards()
    data: Data = Data()
    loss: Loss = Loss()
    start: Start | None = None
    variant: str = ""  # which of the study's variants; its values are in the tables
    trunk: Trunk | None = None
    keep_steps: list[int] = []  # checkpoints that shorter runs start from

    def keeps(self, step: int) -> bool:
        """Whether the checkpoint after `step` steps is saved, and kept for good."""
        every = self.checkpoint.keep_every
        return step in self.keep_steps or (every is not None and step % every == 0)

    @property
    def tokens_per_step(self) -> int:
        return self.batch.train_batch_size * self.shape.seq_length

    @property
    def train_steps(self) -> int:
        return self.tokens // self.tokens_per_step

    @property
    def peak_learning_rate(self) -> float:
        return peak_learning_rate(self.optimizer.learning_rate, self.shape.params_non_embedding)

    @property
    def warmup_tokens(self) -> float:
        if self.schedule.warmup_steps is not None:
            return float(self.schedule.warmup_steps * self.tokens_per_step)
        return self.schedule.warmup_tokens or 0.0

    @property
    def flops(self) -> float:
        """Training FLOPs of the whole run by the papers' convention, 6 N D."""
        return self.shape.flops_per_token_6nd * self.tokens

    @property
    def flops_exact(self) -> float:
        return self.shape.flops_per_token_exact * self.tokens

    @property
    def digest(self) -> str:
        """sha256 of what changes a loss, as hex."""
        science = self.model_dump(mode="json", exclude=set(CHANGES_NO_LOSS))
        # What is as it always was is left out, so that older runs keep their names.
        if self.data.blanked is None:
            del science["data"]["blanked"]
        for name in ("blend", "data", "loss", "start"):
            if getattr(self, name) in ([], Data(), Loss(), None):
                del science[name]
        for name in ("attention", "positions", "classes"):  # the shape has them
            del science["model"][name]
        if not self.model.dropout:
            del science["model"]["dropout"]
        del science["schedule"]["warmup_tokens_per_param"]  # resolved
        for name in ("attention_window", "position_axes", "classes"):
            if not science["shape"][name]:
                del science["shape"][name]
        return hashlib.sha256(json.dumps(science, sort_keys=True).encode()).hexdigest()

    @property
    def run_id(self) -> str:
        """Readable and unique, for example `mathematics-L2-H64-2e6tok-s0-9f2c1a`."""
        tokens = f"{self.tokens:.3g}" if self.tokens < 1000 else _short(self.tokens)
        variant = f"-{self.variant}" if self.variant else ""
        name = f"{self.domain}-{self.shape.name}-{tokens}tok{variant}-s{self.seed}"
        return f"{name}-{self.digest[:6]}"

    def evaluation_steps(self) -> list[int]:
        """The steps after which to evaluate, from the end of the warm-up (or step 10, if later) on.

        All but the last are on a grid that does not depend on the run's length, so runs that share
        a beginning are evaluated at the same steps of it; and wherever `keep_every` keeps a checkpoint, so
        that what is measured on it later stands beside its own held-out loss.
        """
        last, per_decade = self.train_steps, self.evaluation.points_per_decade
        first = max(FIRST_EVALUATION, math.ceil(self.warmup_tokens / self.tokens_per_step))
        exponents = range(math.floor(per_decade * math.log10(last)) + 1)
        grid = {round(10 ** (exponent / per_decade)) for exponent in exponents}
        if every := self.checkpoint.keep_every:
            grid |= set(range(every, last, every))
        return sorted({step for step in grid if first <= step < last} | {last})


def _short(number: float) -> str:
    """2000000 -> '2e6', 2512896 -> '2.51e6'."""
    mantissa, exponent = f"{number:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def save_config(config: RunConfig, folder: Path) -> None:
    """Write `config.json`, by rename."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{CONFIG_FILE}.tmp"
    temporary.write_text(config.model_dump_json(indent=2) + "\n")
    temporary.replace(folder / CONFIG_FILE)


def load_config(folder: Path) -> RunConfig:
    """Read a run folder's `config.json`. Raises `ValueError` that names the file."""
    path = folder / CONFIG_FILE
    try:
        return TypeAdapter(RunConfig).validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such file; wanted a run folder, results/STUDY/RUN_ID. Check the path."
        ) from None
    except ValidationError as error:
        raise ValueError(
            f"{path}: not the configuration of a run ({error.error_count()} problems, the first: "
            f"{error.errors()[0]['msg']}); wanted what `launch run` wrote there. Move the run "
            "folder away and run it again."
        ) from None


def refuse_other_config(config: RunConfig, folder: Path) -> None:
    """Raise `ValueError` naming both values where `folder` holds a run of another configuration."""
    if not (folder / CONFIG_FILE).exists():
        return
    saved = load_config(folder)
    if saved.digest == config.digest:
        return
    there, here = saved.model_dump(mode="json"), config.model_dump(mode="json")
    changed = [
        f"{name} is {there[name]!r} there and {here[name]!r} here"
        for name in there
        if there[name] != here[name]
    ]
    raise ValueError(
        f"{folder}: this folder holds a run of another configuration: {'; '.join(changed)}. A run "
        "continues only with the configuration it began with. Restore it, or use another folder."
    )
