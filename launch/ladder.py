"""`Rung`: one size of a study's ladder, by its width or by its parameters."""

from typing import Annotated

from pydantic import Field, model_validator

from launch.config import PositiveInt, Seed
from launch.strict import Strict
from megatron_ext.fixed_size import feed_width, width_of_size
from megatron_ext.shape import Family

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Rung(Strict):
    """One size. What is left out follows from the family; `seeds` replaces the study's. With `params` in the
    place of `hidden_size` the width is solved for so many parameters without embeddings, and `ffn_ratio` is
    d_ff / d (`megatron_ext.fixed_size`)."""

    num_layers: PositiveInt
    hidden_size: PositiveInt | None = None
    params: Positive | None = None
    ffn_ratio: Positive | None = None
    ffn_hidden_size: PositiveInt | None = None
    num_attention_heads: PositiveInt | None = None
    kv_channels: PositiveInt | None = None
    seeds: Annotated[list[Seed], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_width(self) -> "Rung":
        if (self.hidden_size is None) == (self.params is None):
            raise ValueError("wanted exactly one of hidden_size, params")
        if self.ffn_hidden_size is not None and self.ffn_ratio is not None:
            raise ValueError("wanted at most one of ffn_hidden_size, ffn_ratio")
        if self.params is not None and self.kv_channels is not None:
            raise ValueError(
                "kv_channels with params; wanted num_attention_heads alone, as the width is solved"
            )
        if self.params is not None and self.ffn_hidden_size is not None:
            raise ValueError(
                "ffn_hidden_size with params; wanted ffn_ratio, as the width is solved"
            )
        return self

    def sizes(self, family: Family) -> dict[str, int | None]:
        """Depth, widths and heads, the width solved for `params` where it is not given."""
        given = self.model_dump(exclude={"seeds", "params", "ffn_ratio"})
        if self.params is not None:
            given["hidden_size"] = width_of_size(
                self.params,
                family,
                num_layers=self.num_layers,
                ffn_ratio=self.ffn_ratio,
                num_attention_heads=self.num_attention_heads,
            )
        if self.ffn_ratio is not None:
            given["ffn_hidden_size"] = feed_width(given["hidden_size"], self.ffn_ratio)
        return given
