"""What a layer keeps for the backward pass, in bytes, term by term. No torch.

Derived from the operations of megatron-core's local layers with our attention in them, and checked
against the tensors that are really alive (`docs/planning.md`). Per token, of d = hidden size,
a = attention size, f = feed-forward size on this rank, a dense layer keeps

    4 d    the input of each of the two norms, and what each gives to the matrix after it
    4 a    queries, keys and values, and what attention gives
    2 f    before and after the non-linearity

and, in fp32 whatever the precision, two numbers for each norm and one for each head's soft-max.
Nothing is kept twice: views share their memory. Dropout keeps a mask of what the embeddings, attention and feed-forward
give, a byte an element on a GPU and a number on a CPU. Where attention is unfused for it (on a CPU, in local layers),
it keeps the probabilities three times (as they are, their mask, their product) and scaled queries and keys.
"""

from dataclasses import dataclass

from launch.config import Parallel
from megatron_ext.shape import Attention, ModelShape

FP32 = 4
BYTES = {"fp32": 4, "bf16": 2}

# `megatron_ext.attention`: our kernel runs on a CPU in fp32 up to so many channels a head.
CPU_KERNEL_MAX_CHANNELS_LOCAL = 32


@dataclass(frozen=True)
class Share:
    """One device's share of a run: what it holds follows from these alone.

    `micro_batch` rows go through at a time, `micro_batches` of them in a step; `counted` is the
    share of tokens that are in the loss; `dropout`: whether there is any.
    """

    shape: ModelShape
    precision: str
    parallel: Parallel
    micro_batch: int
    micro_batches: int = 1
    data_parallel: int = 1
    on_gpu: bool = True
    counted: float = 1.0
    dropout: bool = False

    @property
    def ranks(self) -> int:
        return self.parallel.tensor_model_parallel_size

    @property
    def tokens(self) -> int:
        """In a micro-batch."""
        return self.micro_batch * self.shape.seq_length

    @property
    def width(self) -> int:
        """Bytes of a weight, a gradient and an activation."""
        return BYTES[self.precision]

    @property
    def parameters(self) -> int:
        """That this tensor-parallel rank holds: its part of the matrices and tables, the rest whole."""
        shape, d = self.shape, self.shape.hidden_size
        matrices = shape.params_non_embedding // self.ranks
        split_biases = (3 * shape.attention_size + shape.ffn_hidden_size) // self.ranks
        whole = 2 * d + 2 * 2 * d  # the biases of the two rows of outputs, and the two norms
        tables = self.table + self.head + shape.position_rows * d
        return matrices + shape.num_layers * (split_biases + whole) + tables + 2 * d

    @property
    def table(self) -> int:
        """Parameters of the token table on this rank."""
        return self.shape.padded_rows(self.ranks) // self.ranks * self.shape.hidden_size

    @property
    def head(self) -> int:
        """Of what gives the logits: a matrix as large as the token table, or a classifier's layer."""
        return self.shape.head_parameters if self.shape.classes else self.table

    @property
    def largest_parameter(self) -> int:
        shape, d = self.shape, self.shape.hidden_size
        split = (shape.padded_rows(self.ranks), shape.ffn_hidden_size, 3 * shape.attention_size)
        return max(max(split) * d // self.ranks, shape.position_rows * d)

    @property
    def residual(self) -> float:
        """Bytes of one stream of hidden states; with sequence parallelism each rank has its rows."""
        parts = self.ranks if self.parallel.sequence_parallel else 1
        return self.tokens * self.shape.hidden_size * self.width / parts


def kept_by_layer(share: Share, layer: int) -> float:
    """Bytes that a layer (counted from 0) keeps when nothing of it is computed again."""
    return share.residual + kept_inside(share, layer)


def kept_inside(share: Share, layer: int) -> float:
    """The same without the layer's input, which activation checkpointing keeps all the same."""
    feed_forward = 2 * share.shape.ffn_hidden_size / share.ranks * share.tokens * share.width
    norms = 2 * 2 * FP32 * share.residual / (share.shape.hidden_size * share.width)
    return (
        share.residual  # the input of the second norm
        + 2 * _normed(share)
        + feed_forward
        + norms
        + 2 * mask_of_residual(share)
        + _kept_by_attention(share, share.shape.attention_of(layer))
    )


def mask_of_residual(share: Share) -> float:
    """Bytes of dropout's mask of one stream of hidden states, on this rank's rows."""
    return share.residual / share.width * _mask_width(share) if share.dropout else 0.0


def mask_of_embeddings(share: Share) -> float:
    """The same of the embeddings, of which every tensor-parallel rank has all rows."""
    whole = share.ranks if share.parallel.sequence_parallel else 1
    return whole * mask_of_residual(share)


def _mask_width(share: Share) -> int:
    return 1 if share.on_gpu else share.width


def _normed(share: Share) -> float:
    """What a norm gives to the split matrix after it. All ranks' rows, gathered; on a GPU
    megatron-core's layer keeps this rank's rows and gathers them a second time."""
    if share.on_gpu and share.parallel.sequence_parallel:
        return share.residual
    return share.tokens * share.shape.hidden_size * share.width


def _kept_by_attention(share: Share, pattern: Attention) -> float:
    shape = share.shape
    one = share.tokens * shape.attention_size / share.ranks * share.width
    soft_max = share.tokens * shape.num_attention_heads / share.ranks * FP32
    window = shape.attention_window
    if _unfused(share, pattern):
        return _kept_unfused(share, pattern)
    if pattern == "dense" or (pattern == "local" and window >= shape.seq_length):
        return 4 * one + soft_max
    padded = -(-shape.seq_length // window) * window / shape.seq_length
    if pattern == "strided":
        return 4 * one * padded + soft_max
    if _cpu_kernel(share):
        return 4 * one + soft_max
    # PyTorch's kernel of the last resort, for tensors of five dimensions: a block's queries, the keys
    # and values of two blocks, and the probabilities.
    return (5 * padded + 1) * one + _probabilities(share)


def _unfused(share: Share, pattern: Attention) -> bool:
    """Whether dropout has PyTorch's attention compute every probability."""
    shape = share.shape
    banded = pattern == "local" and shape.attention_window < shape.seq_length
    return share.dropout and (banded or not share.on_gpu)


def _kept_unfused(share: Share, pattern: Attention) -> float:
    """Probabilities, their mask and their product, in fp32 whatever the precision, as the scaled queries and keys are;
    dense layers in fp32 keep the matrix's whole result for its values."""
    shape = share.shape
    one = share.tokens * shape.attention_size / share.ranks
    window = shape.attention_window or shape.seq_length
    padded = -(-shape.seq_length // window) * window / shape.seq_length
    whole = pattern == "dense" and share.precision == "fp32"
    inputs = 5 if pattern == "local" or whole else 3
    thrice = _probabilities(share, pattern) * (2 + (1 if share.on_gpu else FP32) / FP32)
    return inputs * padded * one * FP32 + one * share.width + thrice


def _probabilities(share: Share, pattern: Attention = "local") -> float:
    """Where attention goes through plain products: of a local layer [blocks, rows, heads, W, 2 W], of a strided one
    [W, rows, heads, blocks, blocks], of a dense one [rows, heads, S, S]."""
    shape = share.shape
    rows = share.micro_batch * shape.num_attention_heads / share.ranks
    window = shape.attention_window or shape.seq_length
    blocks = -(-shape.seq_length // window)
    pairs = {
        "local": blocks * window * 2 * window,
        "strided": window * blocks**2,
        "dense": shape.seq_length**2,
    }
    return rows * pairs[pattern] * (FP32 if share.dropout else share.width)


def _cpu_kernel(share: Share) -> bool:
    fits = share.shape.kv_channels <= CPU_KERNEL_MAX_CHANNELS_LOCAL
    return not share.on_gpu and share.precision == "fp32" and fits and not share.dropout


def passing_backward(share: Share, layer: int) -> float:
    """Bytes alive for a moment in a layer's backward pass, beside what was kept: the larger of two.

    At the non-linearity: the gradients of the residual stream and on both sides of the
    non-linearity, whose output is free by then, and of the last matrix. In a local layer through
    plain products: the gradients of the probabilities and of the scores, with the second half of the
    layer free.
    """
    shape = share.shape
    feed_forward = shape.ffn_hidden_size / share.ranks
    matrix = feed_forward * shape.hidden_size * share.width
    at_feed_forward = share.residual + feed_forward * share.tokens * share.width + matrix
    pattern = shape.attention_of(layer)
    dropped = _unfused(share, pattern)
    if not dropped and (pattern != "local" or _cpu_kernel(share)):
        return at_feed_forward
    free = 2 * feed_forward * share.tokens * share.width + _normed(share)
    # With dropout their product is free before the second of the two gradients comes.
    gradients = (1 if dropped else 2) * _probabilities(share, pattern)
    return max(at_feed_forward, share.residual + gradients - free)


# --- the head


def rows_of_logits(share: Share) -> float:
    """Counted tokens of a micro-batch times the vocabulary on this rank; a classifier's one answer a row."""
    shape = share.shape
    if shape.classes:
        return share.micro_batch * shape.classes
    columns = shape.padded_rows(share.ranks) / share.ranks if share.ranks > 1 else shape.vocab_size
    return share.tokens * share.counted * columns


def kept_by_head(share: Share) -> float:
    """The input of the last norm, what the output matrix reads, and the log-probabilities in fp32."""
    answers = share.micro_batch if share.shape.classes else share.tokens * share.counted
    read = answers * share.shape.hidden_size * share.width
    return share.residual + read + FP32 * rows_of_logits(share)


def passing_head(share: Share) -> float:
    """Bytes alive for a moment around the loss, beside the log-probabilities: the larger of the logits
    themselves (in fp32 too, if the model is not) and of two gradients in fp32. Over split logits
    the gradient is written over the probabilities, and one copy masks what pads the vocabulary."""
    if share.ranks > 1:
        return rows_of_logits(share) * FP32
    return rows_of_logits(share) * 2 * FP32


def logits_without_gradient(share: Share) -> float:
    """An evaluation's: over every token, counted or not; logits, the same in fp32, log-probabilities."""
    every = rows_of_logits(share) / share.counted
    return every * (2 * FP32 + (share.width if share.precision == "bf16" else 0))
