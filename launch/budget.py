"""How long a run trains and in what batches, where a study leaves it to the size. No torch."""

from typing import Annotated

from pydantic import Discriminator, Field, Tag, model_validator

from launch.config import Batch, PositiveInt
from launch.schedule import BatchRule, batch_tokens
from launch.strict import Strict
from megatron_ext.shape import ModelShape

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Positives = Annotated[list[Positive], Field(min_length=1)]


class Budget(Strict):
    """How long to train; exactly one of the three, a number or a list."""

    tokens: Positive | Positives | None = None
    flops: Positive | Positives | None = None  # 6 N D
    tokens_per_param: Positive | Positives | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "Budget":
        given = [name for name in Budget.model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"{', '.join(given) or 'nothing'} given; wanted exactly one of tokens, flops, "
                "tokens_per_param"
            )
        return self

    @property
    def unit(self) -> str:
        return next(name for name in Budget.model_fields if getattr(self, name) is not None)

    @property
    def values(self) -> list[float]:
        value = getattr(self, self.unit)
        return value if isinstance(value, list) else [value]

    def tokens_for(self, value: float, params: int) -> float:
        return {"tokens": value, "flops": value / (6 * params), "tokens_per_param": value * params}[
            self.unit
        ]


# Told apart by what it is, so that a wrong one is one problem and not two.
Rows = Annotated[
    Annotated[PositiveInt, Tag("rows")] | Annotated[BatchRule, Tag("rule")],
    Discriminator(lambda value: "rule" if isinstance(value, str) else "rows"),
]


_SHARED = 8


class BatchOfSize(Strict):
    """A number of rows, or a rule that gives one to each size ("porian": `launch.schedule.batch_tokens`)."""

    train_batch_size: Rows = Batch().train_batch_size

    def rows(self, shape: ModelShape) -> int:
        """Rows a step; of a rule, where there are many, a multiple of what a node's devices can share."""
        if isinstance(self.train_batch_size, int):
            return self.train_batch_size
        rows = batch_tokens(shape.params_non_embedding_and_head) / shape.seq_length
        shared = _SHARED if rows >= 4 * _SHARED else 1
        return max(1, shared * round(rows / shared))
