"""The real model: what it counts, what it sees, and what its numbers depend on."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from megatron_ext.loss import token_losses
from megatron_ext.model import LanguageModel, build_model
from megatron_ext.shape import ModelShape, shape_of

CPU = torch.device("cpu")
SINGLE = 2.0**-24
pytestmark = pytest.mark.usefixtures("groups")


def shape(family="henighan", layers=2, width=32, length=24, vocabulary=11):
    return shape_of(
        family, num_layers=layers, hidden_size=width, seq_length=length, vocab_size=vocabulary
    )


def build(of: ModelShape, seed=0, init_std=0.02) -> LanguageModel:
    return build_model(of, seed=seed, init_std=init_std, device=CPU)


def rows(of: ModelShape, count=3, seed=0):
    return torch.randint(
        0, of.vocab_size, (count, of.seq_length), generator=torch.Generator().manual_seed(seed)
    )


def losses(model, tokens):
    """[B, S]"""
    return model(tokens).view(tokens.T.shape).T


@pytest.mark.parametrize("family", ["henighan", "henighan-multimodal", "kaplan"])
@pytest.mark.parametrize(("layers", "width"), [(1, 16), (3, 64)])
def test_every_formula_counts_the_real_model(family, layers, width):
    of = shape(family, layers, width)
    model = build(of)
    assert sum(each.numel() for each in model.parameters()) == of.params_total
    matrices = [p for name, p in model.gpt.decoder.named_parameters() if p.ndim == 2]
    assert sum(each.numel() for each in matrices) == of.params_non_embedding
    assert len(matrices) == 4 * layers
    assert {f"gpt.{name}": size for name, size in of.parameter_shapes.items()} == {
        name: tuple(parameter.shape) for name, parameter in model.named_parameters()
    }
    head = model.gpt.output_layer.weight
    assert head.shape == (of.vocab_size + 1, width)
    assert head.data_ptr() != model.gpt.embedding.word_embeddings.weight.data_ptr(), "not shared"


def test_a_sparse_model_with_factorised_positions_is_counted_too():
    of = shape_of(
        "henighan", num_layers=4, hidden_size=32, seq_length=24, vocab_size=11,
        attention_window=6, position_axes=(4, 2, 3),
    )  # fmt: skip
    model = build(of)
    assert sum(each.numel() for each in model.parameters()) == of.params_total
    core = [layer.self_attention.core_attention for layer in model.gpt.decoder.layers]
    assert [(each.pattern, each.window) for each in core] == [("local", 6), ("strided", 6)] * 2
    assert set(of.parameter_shapes) == {name[4:] for name, _ in model.named_parameters()}
    tables = [table.weight for table in model.gpt.embedding.position_embeddings.tables]
    positions = torch.arange(24)[None]
    found = model.gpt.embedding.position_embeddings(positions)
    # Position 17 of a grid of 4 x 2 x 3: row 2, column 1, colour 2.
    assert torch.equal(found[0, 17], tables[0][2] + tables[1][1] + tables[2][2])
    assert found.shape == (1, 24, 32)


def test_a_sparse_model_sees_what_its_masks_allow():
    """Two layers: what position 13 sees in its band, the stride of position 19 reaches."""
    of = shape_of(
        "henighan", num_layers=2, hidden_size=32, seq_length=24, vocab_size=11, attention_window=6
    )
    model, tokens = build(of, init_std=0.5), rows(of, 1)
    before, _ = model.logits(tokens)
    for changed in range(23):
        other = tokens.clone()
        other[0, changed] = (other[0, changed] + 1) % 11
        moved = (model.logits(other)[0] != before).any(-1)
        seen = changed + 1  # the token is the input of the next position
        band = {q for q in range(24) if 0 <= q - seen < 6}
        reached = {q for q in range(24) for mid in band if q >= mid and (q - mid) % 6 == 0}
        assert set(moved.nonzero().flatten().tolist()) == reached


def test_a_wrong_formula_is_noticed(monkeypatch):
    monkeypatch.setattr(ModelShape, "params_total", property(lambda self: 1))
    with pytest.raises(
        AssertionError, match="the formulas count .* and 1 total parameters, the model has"
    ):
        build(shape())


@pytest.mark.parametrize("family", ["henighan", "kaplan"])
@pytest.mark.parametrize("length", [24, 193])
def test_flops_equal_what_torch_counts(family, length, monkeypatch):
    """Forward and backward, as PyTorch counts its own matrix products.

    PyTorch sees nothing inside a fused kernel, so attention runs as plain products here. Those are
    dense: each query meets all S keys, where causal attention needs (S + 1) / 2; that difference is
    added by hand. The head covers the data's vocabulary in both.
    """
    monkeypatch.setattr("megatron_ext.attention.CPU_KERNEL_MAX_CHANNELS", 0)
    of = shape(family, 2, 32, length)
    model, tokens = build(of), rows(of)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens).sum().backward()
    # Two products forward and four backward, 2 FLOPs for each key and channel.
    per_key = of.num_layers * 2 * (2 + 4) * of.attention_size * tokens.numel()
    dense_instead = per_key * (length - (length + 1) / 2)
    assert counter.get_total_flops() == of.flops_per_token_exact * tokens.numel() + dense_instead


def test_the_head_is_counted_over_the_datas_vocabulary_and_counted_tokens():
    of = shape(vocabulary=11)
    model, tokens = build(of), rows(of)
    counted = torch.zeros_like(tokens, dtype=torch.bool)
    counted[:, ::3] = True
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens)
        everything = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens, counted)
        some = counter.get_total_flops()
    left_out = int((~counted).sum())
    assert everything - some == left_out * 2 * of.hidden_size * of.vocab_size


def test_the_first_token_is_predicted_from_the_start_token_alone():
    of = shape()
    model = build(of)
    logits, targets = model.logits(rows(of, 5))
    first = logits.view(of.seq_length, 5, of.vocab_size)[0]
    assert torch.equal(first, first[:1].expand_as(first)), "the same for every row"
    assert torch.equal(targets.view(of.seq_length, 5).T, rows(of, 5))
    assert logits.shape == (of.seq_length * 5, of.vocab_size), "the start token has no logit"
    # An untrained first prediction is close to even, and a real one: log of a probability.
    assert torch.isfinite(losses(model, rows(of))).all()


def test_the_start_token_is_an_input_of_its_own():
    of = shape()
    model, tokens = build(of), rows(of)
    before = losses(model, tokens)
    table = model.gpt.embedding.word_embeddings.weight
    with torch.no_grad():
        table[of.vocab_size] += 1.0
    after = losses(model, tokens)
    assert not torch.equal(before[:, 0], after[:, 0])
    losses(model, tokens).sum().backward()
    head = model.gpt.output_layer.weight.grad
    assert torch.equal(head[of.vocab_size], torch.zeros(of.hidden_size)), "never predicted"


@pytest.mark.parametrize("length", [24, 400])
def test_no_prediction_sees_its_own_token_or_later_ones(length):
    of = shape(length=length)
    model, tokens = build(of), rows(of)
    before = model.logits(tokens)[0].view(length, 3, -1)
    for position in (0, length // 2, length - 1):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 1) % of.vocab_size
        after = model.logits(changed)[0].view(length, 3, -1)
        assert torch.equal(before[: position + 1], after[: position + 1])
        if position + 1 < length:
            assert not torch.equal(before[position + 1], after[position + 1])


def test_the_weights_are_a_function_of_shape_seed_and_spread():
    of = shape()
    one = build(of).state_dict()
    torch.rand(1000)  # whatever was drawn in between
    again, other = build(of).state_dict(), build(of, seed=1).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    wide = build(of, init_std=0.2).state_dict()
    name = "gpt.embedding.word_embeddings.weight"
    # The same normal numbers, scaled: one multiplication each.
    torch.testing.assert_close(wide[name], 10 * one[name], rtol=4 * SINGLE, atol=0)
    assert one[name].std().item() == pytest.approx(0.02, rel=0.2)  # 384 numbers: 1 / sqrt(768) = 4%
    assert not any("extra_state" in name for name in one)


def test_counted_tokens_alone_give_the_logits_of_those_tokens():
    of = shape()
    model, tokens = build(of), rows(of, 4)
    counted = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(2)) < 0.3
    all_logits, all_targets = model.logits(tokens)
    some_logits, some_targets = model.logits(tokens, counted)
    chosen = counted.T.flatten()
    assert torch.equal(some_targets, all_targets[chosen])
    # Dots of 32 numbers, perhaps in another order: 2 x 32 u of magnitudes below 1.
    torch.testing.assert_close(some_logits, all_logits[chosen], rtol=0, atol=64 * SINGLE)
    grads = []
    for logits, targets, weight in (
        (all_logits, all_targets, chosen.float()), (some_logits, some_targets, torch.ones(int(chosen.sum())))
    ):  # fmt: skip
        model.zero_grad()
        (token_losses(logits, targets) * weight).sum().backward()
        grads.append(
            {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        )
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        # Sums over 96 tokens at most of chains of sums of at most 96 numbers.
        limit = 2 * 96 * SINGLE * max(1.0, grad.abs().max().item())
        assert (grad - grads[1][name]).abs().max() <= limit, name


def test_no_counted_token_gives_nothing():
    of = shape()
    logits, targets = build(of).logits(rows(of), torch.zeros(3, of.seq_length, dtype=torch.bool))
    assert logits.shape == (0, of.vocab_size)
    assert targets.shape == (0,)


def test_rows_do_not_depend_on_the_rows_beside_them():
    of = shape()
    model, tokens = build(of), rows(of, 4)
    together = losses(model, tokens)
    for row in range(4):
        alone = losses(model, tokens[row : row + 1])
        # Chains of sums of at most 32 numbers through two layers, on losses near ln 11.
        torch.testing.assert_close(alone[0], together[row], rtol=2 * 2 * 32 * SINGLE, atol=0)


def test_a_model_in_bfloat16_predicts_as_in_float32():
    of = shape()
    tokens = rows(of)
    exact = losses(build(of), tokens)
    rounded = losses(build(of).bfloat16(), tokens)
    assert rounded.dtype == torch.float32
    # Logits below 1, each rounded to 2^-9 several times: well below 2^-6 nats.
    assert (rounded - exact).abs().max() < 2.0**-6
    assert not torch.equal(rounded, exact)
