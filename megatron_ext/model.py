"""`build_model`: a `ModelShape` becomes megatron-core's `GPTModel` with our core attention.

Shape suffixes: B batch, S sequence, K counted tokens of the batch, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_ext.attention import CausalAttention
from megatron_ext.linear import ColumnLinear, RowLinear
from megatron_ext.parallel import seed_everything
from megatron_ext.quiet import quiet
from megatron_ext.shape import ModelShape

with quiet():
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_config import TransformerConfig


class LanguageModel(torch.nn.Module):
    """`GPTModel`, given rows of tokens as the shards hold them.

    The start token goes in front of each row, so position i predicts token i from the tokens
    before it and the first token is predicted too. The output head runs over the counted positions
    alone: in mathematics that is one position in twelve, and nothing else reads the other logits.
    """

    def __init__(self, gpt: GPTModel, shape: ModelShape) -> None:
        super().__init__()
        self.gpt = gpt
        self.shape = shape
        self.register_buffer("positions", torch.arange(shape.seq_length)[None], persistent=False)

    def forward(self, tokens_BS: Tensor, counted_BS: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits [K, V] and their targets [K], for the K tokens where `counted_BS` is true, or all.

        They come in megatron-core's order, position by position and row by row within each. The
        start token is never predicted: V is the data's vocabulary.
        """
        start_B1 = tokens_BS.new_full((len(tokens_BS), 1), self.shape.vocab_size)
        input_BS = torch.cat((start_B1, tokens_BS[:, :-1]), dim=1)
        embedded_SBD = self.gpt.embedding(input_ids=input_BS, position_ids=self.positions)
        hidden_SBD = self.gpt.decoder(hidden_states=embedded_SBD, attention_mask=None)
        hidden_KD, targets_K = hidden_SBD.flatten(0, 1), tokens_BS.T.flatten()
        if counted_BS is not None:
            chosen_K = counted_BS.T.flatten().nonzero(as_tuple=True)[0]
            hidden_KD, targets_K = hidden_KD[chosen_K], targets_K[chosen_K]
        return F.linear(hidden_KD, self.gpt.output_layer.weight[: self.shape.vocab_size]), targets_K


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
    shape: ModelShape, *, precision: str, seed: int, init_std: float, device: torch.device
) -> LanguageModel:
    """A new model: its weights are a pure function of (shape, seed, init_std).

    They are drawn on the CPU, in the order of construction, so a GPU starts from the same numbers.
    Raises `AssertionError` if the counting formulas of `ModelShape` do not equal what was built.
    """
    seed_everything(seed)
    gpt = GPTModel(
        config=_transformer_config(shape, precision, init_std),
        transformer_layer_spec=_layer_spec(shape),
        vocab_size=shape.embedding_rows,
        max_sequence_length=shape.seq_length,
        parallel_output=False,
        share_embeddings_and_output_weights=False,
        position_embedding_type="learned_absolute",
    )
    if shape.position_axes:
        gpt.embedding.position_embeddings = FactorisedPositions(shape, init_std)
    _assert_counts(gpt, shape)
    # Entries of `None` that megatron-core leaves for Transformer Engine crash DeepSpeed's tools.
    gpt.register_state_dict_post_hook(_drop_extra_state)
    return LanguageModel(gpt, shape).to(device)


def _layer_spec(shape: ModelShape) -> ModuleSpec:
    """Megatron-core's plain layer, with our core attention and our linear layers in it."""
    spec = get_gpt_layer_local_spec()
    attention = spec.submodules.self_attention.submodules
    attention.core_attention = ModuleSpec(module=CausalAttention, params={"shape": shape})
    attention.linear_qkv, attention.linear_proj = ColumnLinear, RowLinear
    mlp = spec.submodules.mlp.submodules
    mlp.linear_fc1, mlp.linear_fc2 = ColumnLinear, RowLinear
    return spec


def _transformer_config(shape: ModelShape, precision: str, init_std: float) -> TransformerConfig:
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_hidden_size,
        num_attention_heads=shape.num_attention_heads,
        kv_channels=shape.kv_channels,
        init_method_std=init_std,
        hidden_dropout=0.0,  # one pass over the data: neither paper uses dropout for its main laws
        attention_dropout=0.0,
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


def _assert_counts(gpt: GPTModel, shape: ModelShape) -> None:
    matrices = sum(
        parameter.numel()
        for name, parameter in gpt.decoder.named_parameters()
        if parameter.ndim == 2
    )
    total = sum(parameter.numel() for parameter in gpt.parameters())
    assert (matrices, total) == (shape.params_non_embedding, shape.params_total), (
        f"{shape}: the formulas count {shape.params_non_embedding} matrix and "
        f"{shape.params_total} total parameters, the model has {matrices} and {total}"
    )


def _drop_extra_state(_: torch.nn.Module, state: dict, *__: object) -> None:
    for name in [name for name in state if name.endswith("_extra_state")]:
        del state[name]
