"""`build_model`: a `ModelShape` becomes megatron-core's `GPTModel` with our core attention.

Shape suffixes: B batch, S sequence, D hidden size, K counted tokens of the batch, V vocabulary.
"""

import re
from collections.abc import Callable

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor

from megatron_ext.attention import CausalAttention
from megatron_ext.dropout import EMBEDDINGS, Masks
from megatron_ext.linear import ColumnLinear, RowLinear, to_all_ranks
from megatron_ext.loss import token_losses
from megatron_ext.norm import Norm
from megatron_ext.parallel import seed_everything, tensor_parallel_rank, tensor_parallel_size
from megatron_ext.quiet import quiet
from megatron_ext.sequence_parallel import scatter
from megatron_ext.shape import ModelShape

with quiet():
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.tensor_parallel.mappings import gather_from_tensor_model_parallel_region
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
    from megatron.core.transformer.transformer_config import TransformerConfig


class LanguageModel(torch.nn.Module):
    """`GPTModel`, given rows of tokens as the shards hold them.

    The start token goes in front of each row, so position i predicts token i from the tokens
    before it and the first token is predicted too. The output head runs over the counted positions
    alone: in mathematics that is one position in twelve, and nothing else reads the other logits.

    The layers are called here and not by `GPTModel`, whose way through them asks for CUDA's random
    numbers as soon as rows are split over ranks. `masks` is None without dropout; else what trains the
    model begins each pass with a key for them (`megatron_ext.dropout`).
    """

    new_parameters: frozenset[str] = frozenset()  # what a run may start without (`launch.start`)

    positions: Tensor

    def __init__(
        self,
        gpt: GPTModel,
        shape: ModelShape,
        *,
        recompute: bool = False,
        masks: Masks | None = None,
    ) -> None:
        super().__init__()
        self.gpt = gpt
        self.masks = masks
        self.shape = shape
        self.recompute = recompute
        self.ranks = tensor_parallel_size()
        self.sequence_parallel = gpt.config.sequence_parallel
        self.register_buffer("positions", torch.arange(shape.seq_length)[None], persistent=False)

    def forward(self, tokens_BS: Tensor, counted_BS: Tensor | None = None) -> Tensor:
        """The loss in nats [K] of the K tokens where `counted_BS` is true, or of all.

        They come in megatron-core's order, position by position and row by row within each.
        """
        hidden_KD, targets_K = self._counted(tokens_BS, counted_BS)
        logits = self.gpt.output_layer(hidden_KD)
        if self.ranks == 1:
            return token_losses(logits, targets_K)
        # The start token and the rows that pad the table, on the last ranks, are no predictions.
        columns = logits.shape[1]
        unused = (tensor_parallel_rank() + 1) * columns - self.shape.vocab_size
        if unused > 0:
            used = max(0, columns - unused)
            logits = F.pad(logits[:, :used], (0, columns - used), value=float("-inf"))
        return token_losses(logits, targets_K, split=True)

    def logits(self, tokens_BS: Tensor, counted_BS: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits [K, V] and their targets [K]; the start token is never predicted, so V is the data's."""
        hidden_KD, targets_K = self._counted(tokens_BS, counted_BS)
        logits = self.gpt.output_layer(hidden_KD)
        if self.ranks > 1:
            logits = gather_from_tensor_model_parallel_region(logits)
        return logits[:, : self.shape.vocab_size], targets_K

    def _counted(self, tokens_BS: Tensor, counted_BS: Tensor | None) -> tuple[Tensor, Tensor]:
        """The last layer's output [K, D] at the counted tokens, and these tokens [K]."""
        hidden_KD, targets_K = self._hidden(tokens_BS).flatten(0, 1), tokens_BS.T.flatten()
        if counted_BS is None:
            return hidden_KD, targets_K
        chosen_K = counted_BS.T.flatten().nonzero(as_tuple=True)[0]
        return hidden_KD[chosen_K], targets_K[chosen_K]

    def _hidden(self, tokens_BS: Tensor) -> Tensor:
        start_B1 = tokens_BS.new_full((len(tokens_BS), 1), self.shape.vocab_size)
        input_BS = torch.cat((start_B1, tokens_BS[:, :-1]), dim=1)
        tables = self.gpt.embedding
        embedded_BSD = tables.word_embeddings(input_BS) + tables.position_embeddings(
            self.positions[:, : input_BS.shape[1]]
        )
        hidden_SBD = embedded_BSD.transpose(0, 1).contiguous()
        if self.masks and self.training:
            self.masks.draw(0, EMBEDDINGS, split=False)
            hidden_SBD = F.dropout(hidden_SBD, self.masks.share)
        if self.sequence_parallel:
            hidden_SBD = scatter(hidden_SBD)
        for layer in self.gpt.decoder.layers:
            if self.recompute and torch.is_grad_enabled():
                # Dropout seeds its masks itself, layer by layer: there is no state to keep.
                hidden_SBD = torch.utils.checkpoint.checkpoint(
                    _output_of, layer, hidden_SBD, use_reentrant=False, preserve_rng_state=False
                )
            else:
                hidden_SBD = _output_of(layer, hidden_SBD)
        hidden_SBD = self.gpt.decoder.final_layernorm(hidden_SBD)
        return to_all_ranks(hidden_SBD, self.sequence_parallel) if self.ranks > 1 else hidden_SBD


class OutputHead(torch.nn.Module):
    """Logits [K, V on this rank]; an unsplit model leaves out the start token, which is never predicted."""

    def __init__(self, weight: torch.nn.Parameter, columns: int) -> None:
        super().__init__()
        self.weight = weight
        self.columns = columns

    def forward(self, hidden_KD: Tensor) -> Tensor:
        return F.linear(hidden_KD, self.weight[: self.columns])


def _output_of(layer: torch.nn.Module, hidden_SBD: Tensor) -> Tensor:
    return layer(hidden_states=hidden_SBD, attention_mask=None)[0]


class FactorisedPositions(torch.nn.Module):
    """A position's embedding is the sum of those of its row, column, colour or frame."""

    def __init__(self, shape: ModelShape, init_std: float) -> None:
        super().__init__()
        self.axes = shape.position_axes
        tables = [torch.nn.Embedding(size, shape.hidden_size) for size in self.axes]
        for table in tables:  # their sum begins as one table would
            torch.nn.init.normal_(table.weight, std=init_std / len(self.axes) ** 0.5)
        self.tables = torch.nn.ModuleList(tables)

    def forward(self, positions_BS: Tensor) -> Tensor:
        """[B, S, hidden_size]"""
        places = torch.unravel_index(positions_BS, self.axes)
        return sum(table(place) for table, place in zip(self.tables, places, strict=True))


def build_model(
    shape: ModelShape,
    *,
    seed: int,
    init_std: float,
    device: torch.device,
    sequence_parallel: bool = False,
    recompute: bool = False,
    dropout: float = 0.0,
) -> LanguageModel:
    """A new model, or this rank's part of it: its weights are a pure function of (shape, seed, init_std).

    They are drawn on the CPU, whole and in the order of construction, so a GPU and a model split
    over tensor-parallel ranks start from the same numbers. `sequence_parallel` splits the rows
    between the split layers too; `dropout` is a share; `recompute` keeps only the input of each layer for the backward
    pass. Raises `ValueError` where the ranks do not divide the shape, and `AssertionError` if the
    counting formulas of `ModelShape` do not equal what was built.
    """
    ranks = tensor_parallel_size()
    refuse_indivisible(shape, ranks, sequence_parallel)
    seed_everything(seed)
    masks = Masks(dropout) if dropout else None
    config = _transformer_config(shape, init_std, ranks, sequence_parallel, dropout)
    gpt = GPTModel(
        config=config,
        transformer_layer_spec=_block_spec(shape, masks),
        vocab_size=shape.padded_rows(ranks),
        max_sequence_length=shape.seq_length,
        parallel_output=True,
        share_embeddings_and_output_weights=False,
        position_embedding_type="learned_absolute",
    )
    weight = gpt.output_layer.weight
    gpt.output_layer = OutputHead(weight, len(weight) if ranks > 1 else shape.vocab_size)
    if shape.position_axes:
        gpt.embedding.position_embeddings = FactorisedPositions(shape, init_std)
    _assert_counts(gpt, shape, ranks)
    # Entries of `None` that megatron-core leaves for Transformer Engine crash DeepSpeed's tools.
    gpt.register_state_dict_post_hook(_drop_extra_state)
    return LanguageModel(gpt, shape, recompute=recompute, masks=masks).to(device)


def refuse_indivisible(shape: ModelShape, ranks: int, sequence_parallel: bool) -> None:
    """Raise `ValueError` where tensor parallelism over `ranks` does not divide the shape."""
    split = ["num_attention_heads", "ffn_hidden_size"]
    for name in [*split, "seq_length"] if sequence_parallel else split:
        if (size := getattr(shape, name)) % ranks:
            raise ValueError(
                f"parallel.tensor_model_parallel_size = {ranks} does not divide {name} = {size} of "
                f"{shape.name}; wanted equal parts on all ranks. Choose a divisor"
                + (", or parallel.sequence_parallel = false." if name == "seq_length" else ".")
            )


def _block_spec(shape: ModelShape, masks: Masks | None) -> TransformerBlockSubmodules:
    """Megatron-core's plain layers, with our core attention, linear layers and norms in them."""
    spec = get_gpt_layer_local_spec()
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = Norm
    attention = spec.submodules.self_attention.submodules
    own = {"shape": shape, "masks": masks}
    attention.core_attention = ModuleSpec(module=CausalAttention, params=own)
    attention.linear_qkv, attention.linear_proj = ColumnLinear, RowLinear
    mlp = spec.submodules.mlp.submodules
    mlp.linear_fc1, mlp.linear_fc2 = ColumnLinear, RowLinear
    return TransformerBlockSubmodules(layer_specs=[spec] * shape.num_layers, layer_norm=Norm)


def _transformer_config(
    shape: ModelShape, init_std: float, ranks: int, sequence_parallel: bool, dropout: float
) -> TransformerConfig:
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_hidden_size,
        num_attention_heads=shape.num_attention_heads,
        kv_channels=shape.kv_channels,
        tensor_model_parallel_size=ranks,
        sequence_parallel=sequence_parallel,
        init_method_std=init_std,
        init_method=_drawn(shape, init_std, ranks),
        embedding_init_method=_drawn(shape, init_std, ranks),
        hidden_dropout=dropout,
        attention_dropout=dropout,
        use_cpu_initialization=True,
        params_dtype=torch.float32,
        pipeline_dtype=torch.float32,
        # These need CUDA kernels that a plain installation does not have.
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        cuda_graph_scope=[],
    )


def _drawn(shape: ModelShape, std: float, ranks: int) -> Callable[[Tensor], None]:
    """Normal values; the rows that pad a table of tokens draw none, so that every later draw is as in
    the unsplit model. No other weight has as many rows (`ModelShape.padded_rows`)."""
    rows, padded = shape.embedding_rows, shape.padded_rows(ranks)

    def draw(weight: Tensor) -> None:
        used = rows if len(weight) == padded else len(weight)
        torch.nn.init.normal_(weight[:used], std=std)
        weight.data[used:] = 0.0

    return draw


def _assert_counts(gpt: GPTModel, shape: ModelShape, ranks: int) -> None:
    """The formulas count what was built: parts of ranks together, padding left out."""

    def numel(parameter: torch.nn.Parameter) -> int:
        return parameter.numel() * (ranks if is_split(parameter) else 1)

    matrices = sum(numel(p) for p in gpt.decoder.parameters() if p.ndim == 2)
    padding = shape.padded_rows(ranks) - shape.embedding_rows
    total = sum(numel(p) for p in gpt.parameters()) - 2 * padding * shape.hidden_size
    assert (matrices, total) == (shape.params_non_embedding, shape.params_total), (
        f"{shape}: the formulas count {shape.params_non_embedding} matrix and "
        f"{shape.params_total} total parameters, the model has {matrices} and {total}"
    )


def is_split(parameter: torch.nn.Parameter) -> bool:
    """Whether each tensor-parallel rank holds a part of it (megatron-core marks them)."""
    return getattr(parameter, "tensor_model_parallel", False)


VOCABULARY_TABLES = ("gpt.embedding.word_embeddings.weight", "gpt.output_layer.weight")
_BY_ROWS = re.compile(r".*\.(linear_qkv|linear_fc1)\.(weight|bias)")
_BY_COLUMNS = re.compile(r".*\.(linear_proj|linear_fc2)\.weight")


def split_dimension(name: str) -> int | None:
    """By which dimension tensor parallelism cuts the parameter of that name; None: by none."""
    if name in VOCABULARY_TABLES or _BY_ROWS.fullmatch(name):
        return 0
    return 1 if _BY_COLUMNS.fullmatch(name) else None


def _drop_extra_state(_: torch.nn.Module, state: dict, *__: object) -> None:
    for name in [name for name in state if name.endswith("_extra_state")]:
        del state[name]
