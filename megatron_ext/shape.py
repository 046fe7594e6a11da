"""`ModelShape`: the sizes of one model, its parameter counts and its FLOPs. No torch.

The papers count differently from one another, and the fitted exponents move with the convention
(Porian et al. 2024; Pearce & Song 2024), so every count is here under its own name:

    params_non_embedding            N of Kaplan et al. 2020 (section 2.1) and of Henighan et al. 2020:
                                    the weight matrices of the layers; no biases, no norms
    params_non_embedding_and_head   the same plus the output head (Porian et al. 2024)
    params_total                    every trained number
    flops_per_token_6nd             6 N (Kaplan eq. 2.2 without the context term; C = 6 N B S)
    flops_per_token_exact           6 N + attention over the keys that are really attended to + head

`megatron_ext.model.build_model` asserts that the formulas equal what was built.
"""

from dataclasses import dataclass
from typing import Literal

Family = Literal["henighan", "henighan-multimodal", "kaplan"]
FAMILIES: tuple[Family, ...] = ("henighan", "henighan-multimodal", "kaplan")

MATRIX_FLOPS = 2  # one multiply and one add per weight and token
FORWARD_AND_BACKWARD = 3  # the backward pass costs twice the forward pass (Kaplan section 2.1)


@dataclass(frozen=True)
class ModelShape:
    """Sizes in megatron-core's names; `seq_length` and `vocab_size` come from the domain.

    `vocab_size` counts the tokens of the data. The model has one more input token, the start
    token, which stands before every row so that the first token is predicted too.
    """

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    kv_channels: int
    seq_length: int
    vocab_size: int

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"shape.{name} = {value!r}; wanted a whole number of at least 1. Correct the "
                    "ladder entry or the domain."
                )

    @property
    def attention_size(self) -> int:
        """d_attn: the width of queries, keys and values together over the heads."""
        return self.num_attention_heads * self.kv_channels

    @property
    def embedding_rows(self) -> int:
        """Rows of the token table and of the output head: the data's tokens and the start token."""
        return self.vocab_size + 1

    @property
    def name(self) -> str:
        return f"L{self.num_layers}-H{self.hidden_size}"

    # --- parameters ---

    @property
    def params_non_embedding(self) -> int:
        """N = 2 d L (2 d_attn + d_ff) (Kaplan eq. 2.1; Henighan Table 5 is 3 L d^2)."""
        per_layer = 2 * self.hidden_size * (2 * self.attention_size + self.ffn_hidden_size)
        return self.num_layers * per_layer

    @property
    def params_non_embedding_and_head(self) -> int:
        """N plus the output head, counted over the data's vocabulary."""
        return self.params_non_embedding + self.vocab_size * self.hidden_size

    @property
    def params_total(self) -> int:
        """Every trained number: matrices, biases, norms, token and position tables, head."""
        d = self.hidden_size
        biases = 3 * self.attention_size + d + self.ffn_hidden_size + d
        norms = 2 * 2 * d
        tables = 2 * self.embedding_rows * d + self.seq_length * d
        final_norm = 2 * d
        return self.params_non_embedding + self.num_layers * (biases + norms) + tables + final_norm

    # --- FLOPs of training, per token ---

    @property
    def flops_per_token_6nd(self) -> float:
        """6 N: forward and backward through the layers' matrices (Kaplan section 2.1)."""
        return float(FORWARD_AND_BACKWARD * MATRIX_FLOPS * self.params_non_embedding)

    @property
    def flops_per_token_exact(self) -> float:
        """6 N + attention + output head, forward and backward.

        Dense causal attention: position i attends to i + 1 keys, (seq_length + 1) / 2 on average;
        scores and weighted values cost a multiply-add each per key and channel. Norms, biases,
        soft-max and the embedding look-up are not matrix products and are left out.
        """
        keys = (self.seq_length + 1) / 2
        attention = self.num_layers * 2 * MATRIX_FLOPS * keys * self.attention_size
        head = MATRIX_FLOPS * self.hidden_size * self.vocab_size
        return self.flops_per_token_6nd + FORWARD_AND_BACKWARD * (attention + head)


def shape_of(
    family: Family,
    *,
    num_layers: int,
    hidden_size: int,
    seq_length: int,
    vocab_size: int,
    ffn_hidden_size: int | None = None,
    num_attention_heads: int | None = None,
    kv_channels: int | None = None,
) -> ModelShape:
    """The shape that a family of the papers gives to a depth and a width.

    | family              | d_attn | d_ff | heads           | source                        |
    | henighan            | d / 4  | d    | max(2, d // 64) | Henighan section 2.1, Table 5 |
    | henighan-multimodal | d      | 4 d  | max(2, d // 64) | Henighan Table 4              |
    | kaplan              | d      | 4 d  | max(2, d // 64) | Kaplan section 2.1; its head  |
    |                     |        |      |                 | count is not stated: ours     |

    A size given by hand replaces the family's. Raises `ValueError` where the heads do not divide
    the attention width.
    """
    heads = num_attention_heads or max(2, hidden_size // 64)
    attention_size = hidden_size // 4 if family == "henighan" else hidden_size
    multiple = heads * (4 if family == "henighan" else 1)
    if kv_channels is None and hidden_size % multiple:
        raise ValueError(
            f"hidden_size = {hidden_size} does not split into {heads} attention heads in family "
            f"'{family}'; wanted a multiple of {multiple}, so that each head has a whole number of "
            "channels. Choose such a hidden_size, or set num_attention_heads or kv_channels."
        )
    return ModelShape(
        num_layers=num_layers,
        hidden_size=hidden_size,
        ffn_hidden_size=ffn_hidden_size or hidden_size * (1 if family == "henighan" else 4),
        num_attention_heads=heads,
        kv_channels=kv_channels or attention_size // heads,
        seq_length=seq_length,
        vocab_size=vocab_size,
    )
