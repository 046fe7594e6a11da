"""The classifier: what it counts, what it keeps of the trunk, and what its losses say."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from data_prep.domain import domain
from megatron_ext import classifier
from megatron_ext.classifier import build, build_classifier
from megatron_ext.model import LanguageModel, build_model
from megatron_ext.shape import ModelShape, shape_of

CPU = torch.device("cpu")
OPTIONS = {"seed": 0, "init_std": 0.02, "device": CPU}
pytestmark = pytest.mark.usefixtures("groups")


def shape(classes: int = 7, **changes) -> ModelShape:
    sizes = {"num_layers": 2, "hidden_size": 32, "seq_length": 24, "vocab_size": 256} | changes
    return shape_of("henighan", classes=classes, **sizes)


def rows(of: ModelShape, count: int = 5) -> torch.Tensor:
    """Random pixels, and classes below `of.classes` in two bytes."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 256, (count, of.row_length), generator=draw)
    classes = torch.arange(count) % of.classes
    tokens[:, -2], tokens[:, -1] = classes % 256, classes // 256
    return tokens


@pytest.mark.parametrize("layout", [{}, {"attention_window": 6, "position_axes": (4, 2, 3)}])
def test_every_formula_counts_the_real_classifier(layout):
    of = shape(**layout)
    model = build_classifier(of, **OPTIONS)
    named = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert named == {f"gpt.{name}": size for name, size in of.parameter_shapes.items()}
    assert sum(math.prod(size) for size in named.values()) == of.params_total
    assert model.new_parameters == {name for name in named if "class_layer" in name}
    assert of.params_non_embedding_and_head == of.params_non_embedding + 7 * 32
    assert of.params_total == replace(of, classes=0).params_total - 257 * 32 + 7 * (32 + 1)


def test_the_row_is_that_of_the_data():
    of = shape(seq_length=192)
    assert of.row_length == domain("image-8x8-classes").seq_length
    assert replace(of, classes=0).row_length == domain("image-8x8").seq_length


def test_the_trunk_begins_as_the_language_model_s():
    of = shape()
    trunk = dict(build_model(replace(of, classes=0), **OPTIONS).named_parameters())
    model = build_classifier(of, **OPTIONS)
    for name, parameter in model.named_parameters():
        if name not in model.new_parameters:
            assert torch.equal(parameter, trunk.pop(name))
    assert list(trunk) == ["gpt.output_layer.weight"], "the output matrix goes"


def test_the_answer_is_a_linear_layer_over_the_mean_of_all_pixels():
    of = shape()
    model, tokens = build_classifier(of, **OPTIONS), rows(of)
    with torch.no_grad():
        pooled = model._hidden(tokens[:, :-2]).mean(0)
        layer = model.gpt.class_layer
        logits, classes = model.logits(tokens)
        assert torch.allclose(logits, pooled @ layer.weight.T + layer.bias, atol=1e-6)
    assert classes.tolist() == [0, 1, 2, 3, 4]


def test_classes_beyond_one_byte():
    of = shape(classes=300)
    tokens = rows(of, 300)
    _, classes = build_classifier(of, **OPTIONS).logits(tokens)
    assert classes.tolist() == list(range(300))


def test_losses_stand_where_the_class_stands():
    """0 at pixels, the cross-entropy at the class, right or wrong behind it; and training sees the middle alone."""
    of = shape()
    model, tokens = build_classifier(of, **OPTIONS), rows(of)
    losses = model(tokens).view(tokens.T.shape).T
    logits, classes = model.logits(tokens)
    assert (losses[:, :-2] == 0).all()
    expected = torch.nn.functional.cross_entropy(logits, classes, reduction="none")
    assert torch.equal(losses[:, -2], expected)
    assert torch.equal(losses[:, -1], (logits.argmax(1) != classes).float())
    counted = torch.zeros_like(tokens, dtype=torch.bool)
    counted[:, -2] = True
    assert torch.equal(model(tokens, counted), expected)


def test_the_class_is_not_read():
    """Or it would be no question."""
    of = shape()
    model, tokens = build_classifier(of, **OPTIONS), rows(of)
    other = tokens.clone()
    other[:, -2] = (tokens[:, -2] + 1) % 7
    assert torch.equal(model.logits(tokens)[0], model.logits(other)[0])


def test_every_weight_is_trained():
    of = shape()
    model, tokens = build_classifier(of, **OPTIONS), rows(of)
    counted = torch.zeros_like(tokens, dtype=torch.bool)
    counted[:, -2] = True
    model(tokens, counted).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_flops_are_those_that_are_done():
    """Dense products as PyTorch counts them; it counts no attention of ours, and we count causal keys alone."""
    of = shape(seq_length=48)
    model, tokens = build_classifier(of, **OPTIONS), rows(of)
    counted = torch.zeros_like(tokens, dtype=torch.bool)
    counted[:, -2] = True
    with FlopCounterMode(display=False) as counter:
        model(tokens, counted)
    head = counter.get_flop_counts()["Classifier.gpt.class_layer"]
    assert 3 * sum(head.values()) == of.flops_of_head * 5 * 48
    assert of.flops_of_head == pytest.approx(6 * 32 * 7 / 48)


def test_a_shape_gets_the_model_that_it_asks_for():
    assert type(build(shape(), **OPTIONS)) is classifier.Classifier
    assert type(build(shape(classes=0), **OPTIONS)) is LanguageModel


def test_tensor_parallelism_is_refused(monkeypatch):
    monkeypatch.setattr(classifier, "tensor_parallel_size", lambda: 2)
    with pytest.raises(
        ValueError, match="= 2 with model.classes = 7; wanted 1: classifiers are not"
    ):
        build_classifier(shape(), **OPTIONS)
