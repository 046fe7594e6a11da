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

import math
from dataclasses import dataclass
from typing import Literal

Family = Literal["henighan", "henighan-multimodal", "kaplan"]

Attention = Literal["dense", "local", "strided"]

MATRIX_FLOPS = 2  # one multiply and one add per weight and token
LABEL_TOKENS = 2  # of a row that a classifier is given: its class in two bytes, behind the picture
FORWARD_AND_BACKWARD = 3  # the backward pass costs twice the forward pass (Kaplan section 2.1)


@dataclass(frozen=True)
class ModelShape:
    """Sizes in megatron-core's names; `seq_length` and `vocab_size` come from the domain.

    `vocab_size` counts the tokens of the data. The model has one more input token, the start
    token, which stands before every row so that the first token is predicted too. With `classes` it is
    a classifier (`megatron_ext.classifier`): `seq_length` counts the positions that it reads.
    """

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    kv_channels: int
    seq_length: int
    vocab_size: int
    attention_window: int = 0  # 0: dense; else layers alternate between a band and a stride of it
    position_axes: tuple[int, ...] = ()  # (): one table; else the sizes of the axes, slowest first
    classes: int = 0  # 0: a language model

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if name == "position_axes":
                continue
            value, least = getattr(self, name), int(name not in ("attention_window", "classes"))
            if not isinstance(value, int) or value < least:
                raise ValueError(
                    f"shape.{name} = {value!r}; wanted a whole number of at least {least}. Correct "
                    "the ladder entry or the domain."
                )
        axes = self.position_axes
        whole = isinstance(axes, tuple) and all(isinstance(n, int) and n > 0 for n in axes)
        if not whole or (axes and math.prod(axes) != self.seq_length):
            raise ValueError(
                f"shape.position_axes = {axes!r}; wanted sizes whose product is "
                f"seq_length = {self.seq_length}. Take the sizes of the domain's grid."
            )

    @property
    def attention_size(self) -> int:
        """d_attn: the width of queries, keys and values together over the heads."""
        return self.num_attention_heads * self.kv_channels

    @property
    def row_length(self) -> int:
        """Tokens of a row of the data: those that the model reads, and a class behind them if it is a classifier."""
        return self.seq_length + (LABEL_TOKENS if self.classes else 0)

    @property
    def embedding_rows(self) -> int:
        """Rows of the token table, and of a language model's head: the data's tokens and the start token."""
        return self.vocab_size + 1

    def padded_rows(self, ranks: int) -> int:
        """Rows of the two token tables when they are split over tensor-parallel ranks in equal parts.

        Of the multiples of `ranks`, the first that no other table or matrix has as its rows: an
        initialiser, which sees a weight alone, then knows which one is padded.
        """
        if ranks == 1:
            return self.embedding_rows
        taken = {self.seq_length, self.hidden_size, self.ffn_hidden_size, 3 * self.attention_size}
        padded = -(-self.embedding_rows // ranks) * ranks
        while padded in taken:
            padded += ranks
        return padded

    @property
    def position_rows(self) -> int:
        """Rows of the position tables: one for each position, or one for each place on each axis."""
        return sum(self.position_axes) or self.seq_length

    def attention_of(self, layer: int) -> Attention:
        """The pattern of a layer, counted from 0: local, strided, local, ... where it is sparse."""
        if not self.attention_window:
            return "dense"
        return "strided" if layer % 2 else "local"

    def keys_attended(self, pattern: Attention) -> float:
        """Keys that a query meets, on average over the row (Child et al. 2019, section 4.2).

        Position i meets i + 1 keys (dense), the last `attention_window` of them (local), or those
        a whole number of windows back (strided).
        """
        length, window = self.seq_length, self.attention_window
        if pattern == "dense":
            return (length + 1) / 2
        if pattern == "local":
            filling = min(window, length)
            return (filling * (filling + 1) / 2 + (length - filling) * window) / length
        rows, rest = divmod(length, window)
        return (window * rows * (rows + 1) / 2 + rest * (rows + 1)) / length

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
        """N plus the weights of the output head, counted over the data's vocabulary, or over the classes."""
        return self.params_non_embedding + (self.classes or self.vocab_size) * self.hidden_size

    @property
    def head_parameters(self) -> int:
        """The output matrix, or a classifier's linear layer with its bias."""
        if self.classes:
            return self.classes * (self.hidden_size + 1)
        return self.embedding_rows * self.hidden_size

    @property
    def params_total(self) -> int:
        """Every trained number: matrices, biases, norms, token and position tables, head."""
        d = self.hidden_size
        biases = 3 * self.attention_size + d + self.ffn_hidden_size + d
        norms = 2 * 2 * d
        tables = (self.embedding_rows + self.position_rows) * d + self.head_parameters
        final_norm = 2 * d
        return self.params_non_embedding + self.num_layers * (biases + norms) + tables + final_norm

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter of the unsplit model, under megatron-core's names."""
        d, attention, feed = self.hidden_size, self.attention_size, self.ffn_hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "embedding.word_embeddings.weight": (self.embedding_rows, d),
            "decoder.final_layernorm.weight": (d,),
            "decoder.final_layernorm.bias": (d,),
        }
        if self.classes:
            shapes["class_layer.weight"] = (self.classes, d)
            shapes["class_layer.bias"] = (self.classes,)
        else:
            shapes["output_layer.weight"] = (self.embedding_rows, d)
        if not self.position_axes:
            shapes["embedding.position_embeddings.weight"] = (self.seq_length, d)
        for number, size in enumerate(self.position_axes):
            shapes[f"embedding.position_embeddings.tables.{number}.weight"] = (size, d)
        layer = {
            "input_layernorm.weight": (d,),
            "input_layernorm.bias": (d,),
            "self_attention.linear_qkv.weight": (3 * attention, d),
            "self_attention.linear_qkv.bias": (3 * attention,),
            "self_attention.linear_proj.weight": (d, attention),
            "self_attention.linear_proj.bias": (d,),
            "pre_mlp_layernorm.weight": (d,),
            "pre_mlp_layernorm.bias": (d,),
            "mlp.linear_fc1.weight": (feed, d),
            "mlp.linear_fc1.bias": (feed,),
            "mlp.linear_fc2.weight": (d, feed),
            "mlp.linear_fc2.bias": (d,),
        }
        for number in range(self.num_layers):
            shapes |= {f"decoder.layers.{number}.{name}": size for name, size in layer.items()}
        return shapes

    # --- FLOPs of training, per token ---

    @property
    def flops_per_token_6nd(self) -> float:
        """6 N: forward and backward through the layers' matrices (Kaplan section 2.1)."""
        return float(FORWARD_AND_BACKWARD * MATRIX_FLOPS * self.params_non_embedding)

    @property
    def flops_per_token_exact(self) -> float:
        """6 N + attention + output head, forward and backward.

        Scores and weighted values cost a multiply-add each per key that is attended to and channel.
        Norms, biases, soft-max and the embedding look-up are not matrix products and are left out.
        """
        keys = sum(self.keys_attended(self.attention_of(layer)) for layer in range(self.num_layers))
        attention = 2 * MATRIX_FLOPS * keys * self.attention_size
        return self.flops_per_token_6nd + FORWARD_AND_BACKWARD * attention + self.flops_of_head

    @property
    def flops_of_head(self) -> float:
        """Of the output head, per token, forward and backward; a classifier's answers once for all it reads."""
        columns = self.classes / self.seq_length if self.classes else self.vocab_size
        return FORWARD_AND_BACKWARD * MATRIX_FLOPS * self.hidden_size * columns


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
    attention_window: int = 0,
    position_axes: tuple[int, ...] = (),
    classes: int = 0,
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
        attention_window=attention_window,
        position_axes=position_axes,
        classes=classes,
    )
