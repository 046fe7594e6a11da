"""Rows of tokens continued by a trained model: one position at a time, with the keys and values of the past kept.

All rows of a batch stand at the same position. A row whose given tokens reach further than another's is led along them
while the other is continued, so that nothing is padded, positions are those of training, and each attention pattern is
a slice of what is kept: no mask. Rows of nearly equal given lengths waste least. Rows that have ended leave the batch
once they are half of it.

What is drawn at a position is a pure function of (seed, the row's number, position): it depends neither on which rows
are together in a batch nor on what they hold. Rounding may differ with the batch, so a draw on the very edge between
two tokens, or two equal logits, may fall to either.

Shape suffixes: S sequence, B batch, H heads, C channels of a head, D hidden size, V ids that are allowed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_ext.attention import CausalAttention
from megatron_ext.model import LanguageModel

# (core attention of the layer, its number, query, key, value [S, B, H, C]) -> [S, B, H * C]
_Attend = Callable[[CausalAttention, int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Rows:
    """B rows to continue: the first `given` tokens of each stay; the row ends before position `until` at the latest.

    `tokens` [B, at least the largest `until`] int64, on the model's device. `numbers` [B]: each row's own number, which
    decides its draws.
    """

    tokens: Tensor
    given: Sequence[int]
    until: Sequence[int]
    numbers: Sequence[int]


@torch.no_grad()
def generate(
    model: LanguageModel,
    rows: Rows,
    allowed: Sequence[range],
    *,
    end: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Continue rows; returns the tokens (what is behind a row's end is as it was) and where each row ends [B].

    `allowed`: the ids among which position i is chosen. A row ends with the first chosen token that is `end`.
    `temperature` 0 takes the likeliest; else tokens are drawn from softmax(logits / temperature). Raises `ValueError`
    for what does not fit the model, and where its outputs are not finite.
    """
    _refuse(model, rows, temperature, seed)
    tokens, device = rows.tokens.clone(), rows.tokens.device
    given, stop = (torch.tensor(each, device=device) for each in (rows.given, rows.until))
    first, last = min(rows.given), max(rows.until)
    choice = _Choice(model, allowed, temperature, _draws(rows.numbers, seed, last, device))
    alive = torch.arange(len(tokens), device=device)
    cache = _Cache(model, len(tokens), last)
    hidden_BD = cache.begin(tokens[:, :first]) if first < last else tokens
    for position in range(first, last):
        ours = (given[alive] <= position) & (position < stop[alive])
        chosen = torch.where(ours, choice.at(position, hidden_BD, alive), tokens[alive, position])
        tokens[alive, position] = chosen
        if end is not None:
            stop[alive[ours & (chosen == end)]] = position + 1
        goes_on = stop[alive] > position + 1
        left = int(goes_on.sum())
        if not left:
            break
        if 2 * left <= len(alive):
            alive, chosen = alive[goes_on], chosen[goes_on]
            cache.keep(goes_on)
        hidden_BD = cache.step(chosen, position + 1)
    return tokens, stop


@torch.no_grad()
def continuation_losses(model: LanguageModel, rows: Rows) -> Tensor:
    """The summed loss in nats [B] of the tokens `given` to `until` of each row, as it stands: none is chosen."""
    _refuse(model, rows, 0.0, 0)
    last = max(rows.until)
    tokens = rows.tokens[:, :last]
    place = torch.arange(last, device=tokens.device)
    given, until = (torch.tensor(each, device=tokens.device) for each in (rows.given, rows.until))
    counted_BS = (given[:, None] <= place) & (place < until[:, None])
    losses_SB = torch.zeros(tokens.T.shape, dtype=torch.float64, device=tokens.device)
    losses_SB[counted_BS.T] = model(tokens, counted_BS).double()
    return losses_SB.sum(0)


def cache_bytes(model: LanguageModel) -> int:
    """What the keys and values of one row of full length take."""
    shape = model.shape
    channels = 2 * shape.num_layers * shape.attention_size * shape.seq_length
    return channels * _head(model).element_size()


def hidden_states(
    model: LanguageModel,
    inputs_BS: Tensor,
    position: int = 0,
    attend: _Attend | None = None,
) -> Tensor:
    """The last layer's output [S, B, D] for inputs that begin at `position`.

    The modules of `LanguageModel`'s layers, called one by one in their order (pre-norm, residual); `attend` stands for
    the core attention where the inputs do not begin at 0.
    """
    tables = model.gpt.embedding
    length = inputs_BS.shape[1]
    positions = torch.arange(position, position + length, device=inputs_BS.device)[None]
    embedded_BSD = tables.word_embeddings(inputs_BS) + tables.position_embeddings(positions)
    hidden_SBD = embedded_BSD.transpose(0, 1).contiguous()
    for number, layer in enumerate(model.gpt.decoder.layers):
        attention = layer.self_attention
        parts = attention.get_query_key_value_tensors(layer.input_layernorm(hidden_SBD))
        core = attention.core_attention
        context = attend(core, number, *parts) if attend else core(*parts)
        hidden_SBD = hidden_SBD + attention.linear_proj(context)[0]
        hidden_SBD = hidden_SBD + layer.mlp(layer.pre_mlp_layernorm(hidden_SBD))[0]
    return model.gpt.decoder.final_layernorm(hidden_SBD)


class _Cache:
    """The keys and values [B, H, S, C] of every layer, as far as the rows have come."""

    def __init__(self, model: LanguageModel, rows: int, length: int) -> None:
        self._model, shape, weight = model, model.shape, _head(model)
        size = (rows, shape.num_attention_heads, length, shape.kv_channels)
        self._keys = [weight.new_empty(size) for _ in range(shape.num_layers)]
        self._values = [weight.new_empty(size) for _ in range(shape.num_layers)]

    def begin(self, tokens_BS: Tensor) -> Tensor:
        """Take in the given tokens at once; returns the last layer's output [B, D] at the position behind them."""

        def attend(
            core: CausalAttention, layer: int, query: Tensor, key: Tensor, value: Tensor
        ) -> Tensor:
            for kept, new_SBHC in ((self._keys, key), (self._values, value)):
                kept[layer][:, :, : len(new_SBHC)] = new_SBHC.permute(1, 2, 0, 3)
            return core(query, key, value)

        return hidden_states(self._model, _inputs(self._model, tokens_BS), 0, attend)[-1]

    def step(self, token_B: Tensor, position: int) -> Tensor:
        """Take in the token before `position`; returns the last layer's output [B, D] there."""

        def attend(
            core: CausalAttention, layer: int, query: Tensor, key: Tensor, value: Tensor
        ) -> Tensor:
            keys, values = self._keys[layer], self._values[layer]
            keys[:, :, position], values[:, :, position] = key[0], value[0]
            met = _met(core, position)
            context_BHSC = F.scaled_dot_product_attention(
                query.permute(1, 2, 0, 3), keys[:, :, met], values[:, :, met], scale=core.scale
            )
            return context_BHSC.reshape(1, len(token_B), -1)

        return hidden_states(self._model, token_B[:, None], position, attend)[0]

    def keep(self, rows: Tensor) -> None:
        """Let go of all rows but those where `rows` [B] is true."""
        self._keys = [keys[rows] for keys in self._keys]
        self._values = [values[rows] for values in self._values]


class _Choice:
    """Which token comes next, of those that are allowed at a position."""

    def __init__(
        self, model: LanguageModel, allowed: Sequence[range], temperature: float, draws_BS: Tensor
    ) -> None:
        self._head, self._allowed, self._temperature = _head(model), allowed, temperature
        self._draws_BS = draws_BS

    def at(self, position: int, hidden_BD: Tensor, rows: Tensor) -> Tensor:
        """Token ids [B] of the rows numbered `rows` in the batch."""
        ids = self._allowed[position]
        logits_BV = F.linear(hidden_BD, self._head[ids.start : ids.stop]).double()
        if not torch.isfinite(logits_BV).all():
            raise ValueError(
                f"the model's outputs at position {position} are not finite; wanted numbers. The run has diverged: "
                "take an earlier checkpoint."
            )
        if not self._temperature:
            return logits_BV.argmax(1) + ids.start
        steps_BV = torch.softmax(logits_BV / self._temperature, 1).cumsum(1)
        draw_B1 = self._draws_BS[rows, position, None] * steps_BV[:, -1:]
        return torch.searchsorted(steps_BV, draw_B1, right=True)[:, 0] + ids.start


def _draws(numbers: Sequence[int], seed: int, length: int, device: torch.device) -> Tensor:
    """Uniform numbers below 1 [B, length]: a row's own, whichever rows are beside it."""
    rows = [np.random.Generator(np.random.Philox(key=[seed, number])) for number in numbers]
    return torch.from_numpy(np.stack([row.random(length) for row in rows])).to(device)


def _met(core: CausalAttention, position: int) -> slice:
    """The keys that the query at `position` meets (`megatron_ext.attention`)."""
    if core.pattern == "local":
        return slice(max(0, position - core.window + 1), position + 1)
    if core.pattern == "strided":
        return slice(position % core.window, position + 1, core.window)
    return slice(0, position + 1)


def _inputs(model: LanguageModel, tokens_BS: Tensor) -> Tensor:
    """The start token before each row, which is one longer then."""
    start_B1 = tokens_BS.new_full((len(tokens_BS), 1), model.shape.vocab_size)
    return torch.cat((start_B1, tokens_BS), dim=1)


def _head(model: LanguageModel) -> Tensor:
    return model.gpt.output_layer.weight


def _refuse(model: LanguageModel, rows: Rows, temperature: float, seed: int) -> None:
    if model.ranks > 1:
        raise ValueError(
            f"the model is split over {model.ranks} tensor-parallel ranks; wanted it whole on one. Load its checkpoint "
            "in a process of its own: no file need be changed."
        )
    if not (0 <= temperature < float("inf")) or not 0 <= seed < 1 << 63:
        raise ValueError(
            f"temperature {temperature}, seed {seed}: wanted 0 (the likeliest token) or a number above it, and a whole "
            "number of at least 0. Give others."
        )
    most = min(model.shape.seq_length, rows.tokens.shape[1])
    pairs = zip(rows.given, rows.until, strict=True)
    if not rows.given or not all(0 <= given <= until <= most for given, until in pairs):
        raise ValueError(
            f"rows given {list(rows.given)} tokens and ending before {list(rows.until)}: wanted at least one row, each "
            f"with 0 <= given <= end <= {most}, the model's context. Shorten the rows."
        )
