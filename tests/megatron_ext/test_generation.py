"""Continuing rows with a cache: against the model's own forward pass, and against itself in other batches."""

import math

import pytest
import torch

from megatron_ext import generation
from megatron_ext.generation import Rows, continuation_losses, generate
from megatron_ext.model import build_model
from megatron_ext.shape import shape_of

LENGTH, VOCABULARY = 24, 11
ANY = [range(VOCABULARY)] * LENGTH
pytestmark = pytest.mark.usefixtures("groups")


def build(window=0, axes=(), seed=0, width=32, init_std=0.3):
    of = shape_of(
        "henighan", num_layers=3, hidden_size=width, seq_length=LENGTH, vocab_size=VOCABULARY,
        attention_window=window, position_axes=axes,
    )  # fmt: skip
    model = build_model(of, seed=seed, init_std=init_std, device=torch.device("cpu"))
    return model.eval().requires_grad_(False)


def tokens(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (count, LENGTH), generator=draw)


def rows(given, until=None, seed=0):
    count = len(given)
    return Rows(tokens(count, seed), given, until or [LENGTH] * count, range(count))


def close(model):
    """What two orders of summation may differ by: half a unit of rounding for every product of a logit's longest chain,
    each amplified by no more than the norms, which bring every activation back to size 1."""
    shape = model.shape
    products = shape.num_layers * (3 * shape.hidden_size + shape.attention_size + LENGTH)
    largest = model.gpt.output_layer.weight.abs().sum(1).max().item()
    return 2.0**-24 * products * largest


@pytest.mark.parametrize("axes", [(), (4, 2, 3)], ids=["plain", "factorised"])
@pytest.mark.parametrize("window", [0, 5, 6, 24], ids=lambda window: f"window-{window}")
def test_step_by_step_gives_the_logits_of_the_whole_row(window, axes):
    model, given = build(window, axes), tokens(4)
    wanted = model.logits(given)[0].view(LENGTH, 4, VOCABULARY)
    for begun in (0, 1, 9):
        cache = generation._Cache(model, 4, LENGTH)
        hidden = [cache.begin(given[:, :begun])]
        hidden += [cache.step(given[:, at - 1], at) for at in range(begun + 1, LENGTH)]
        found = torch.stack(hidden) @ model.gpt.output_layer.weight[:VOCABULARY].T
        assert (found - wanted[begun:]).abs().max() < close(model)
    assert wanted.std() > 1e3 * close(model), "the tolerance is far below what logits differ by"


@pytest.mark.parametrize("window", [0, 6])
def test_greedy_takes_the_likeliest_token_of_the_whole_forward_pass(window):
    model = build(window)
    asked = rows([3, 0, 11, 7, 24], [24, 20, 24, 8, 24])
    found, stop = generate(model, asked, ANY)
    assert stop.tolist() == [24, 20, 24, 8, 24]
    best = model.logits(found)[0].argmax(1).view(LENGTH, 5).T
    for row, (given, until) in enumerate(zip(asked.given, asked.until, strict=True)):
        assert torch.equal(found[row, :given], asked.tokens[row, :given])
        assert torch.equal(found[row, given:until], best[row, given:until])
        assert torch.equal(found[row, until:], asked.tokens[row, until:])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_does_not_depend_on_the_rows_beside_it(temperature):
    """Also where some end early and leave the batch."""
    model = build(6)
    given = [5, 3, 17, 9, 1, 12, 2, 8]
    asked = rows(given)
    kwargs = {"temperature": temperature, "seed": 7}
    endless, _ = generate(model, asked, ANY, **kwargs)
    kwargs["end"] = endless[:, 17:].flatten().mode().values.item()  # what is chosen often
    together, stop = generate(model, asked, ANY, **kwargs)
    assert len(set(stop.tolist())) > 2, "they end at different places"
    for chosen in ([0], [1, 2, 3], [7, 4, 6, 5]):
        part = Rows(
            asked.tokens[chosen], [given[n] for n in chosen], [LENGTH] * len(chosen), chosen
        )
        found, ends = generate(model, part, ANY, **kwargs)
        assert torch.equal(found, together[chosen])
        assert torch.equal(ends, stop[chosen])


def test_an_end_token_ends_its_row_alone():
    model = build()
    asked = rows([2] * 64)
    found, stop = generate(model, asked, ANY, end=4, temperature=1.0)
    for row, ends in enumerate(stop.tolist()):
        continued = found[row, 2:ends].tolist()
        assert (4 in continued) == (continued[-1] == 4), "at its end or nowhere"
        assert ends == LENGTH or continued[-1] == 4
        assert torch.equal(found[row, ends:], asked.tokens[row, ends:])
    assert 2 < stop.min() < stop.max() == LENGTH


def test_draws_follow_the_models_probabilities():
    """5,000 rows with the same past; each frequency within five standard deviations of its probability."""
    model, count, past = build(), 5_000, tokens(1)[:, :6]
    asked = Rows(past.expand(count, 6).clone(), [5] * count, [6] * count, range(count))
    for temperature in (1.0, 0.5):
        found, _ = generate(model, asked, ANY, temperature=temperature, seed=1)
        frequency = torch.bincount(found[:, 5], minlength=VOCABULARY) / count
        whole = torch.cat((past, past.new_zeros(1, LENGTH - 6)), 1)
        logits = model.logits(whole)[0][5]
        chance = torch.softmax(logits / temperature, 0)
        assert ((frequency - chance).abs() < 5 * (chance * (1 - chance) / count).sqrt()).all()


def test_the_seed_and_the_rows_number_decide():
    model, count = build(), 6
    asked = rows([4] * count)
    first, again, other = (
        generate(model, asked, ANY, temperature=1.0, seed=seed)[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    same = Rows(asked.tokens[:1].expand(2, -1), [4, 4], [LENGTH] * 2, [0, 1])
    two, _ = generate(model, same, ANY, temperature=1.0)
    assert not torch.equal(two[0], two[1]), "equal rows of other numbers are continued differently"


def test_only_what_is_allowed_at_a_position_is_chosen():
    model = build()
    allowed = [range(3, 5) if at % 2 else range(7, 11) for at in range(LENGTH)]
    for temperature in (0.0, 30.0):  # nearly even
        found, _ = generate(model, rows([0] * 40), allowed, temperature=temperature)
        for at, ids in enumerate(allowed):
            used = set(found[:, at].tolist())
            assert used <= set(ids)
            assert not temperature or used == set(ids)


def test_losses_of_a_continuation_are_those_of_training():
    model, asked = build(5), rows([3, 9, 0, 6], [20, 12, 24, 6])
    wanted = model(asked.tokens).view(LENGTH, 4).T.double()
    found = continuation_losses(model, asked)
    for row, (given, until) in enumerate(zip(asked.given, asked.until, strict=True)):
        # log-softmax moves with the logits, and twice at most: the target's own and the sum's.
        assert abs(found[row] - wanted[row, given:until].sum()) <= 2 * close(model) * (
            until - given
        )


def test_bf16_is_continued_too():
    model = build().to(torch.bfloat16)
    found, _ = generate(model, rows([0, 5]), ANY, temperature=1.0)
    assert found.max() < VOCABULARY


def test_what_does_not_fit_is_refused():
    model = build()
    for given, until in (([25], [25]), ([5], [4]), ([-1], [3]), ([], [])):
        with pytest.raises(
            ValueError, match=r"wanted at least one row, each with 0 <= given <= end <= 24"
        ):
            generate(model, Rows(tokens(1), given, until, [0]), ANY)
    for wrong in ({"temperature": -1.0}, {"temperature": math.nan}, {"seed": -1}):
        with pytest.raises(
            ValueError, match="wanted 0 \\(the likeliest token\\) or a number above it"
        ):
            generate(model, rows([1]), ANY, **wrong)
    model.ranks = 2
    with pytest.raises(
        ValueError, match="split over 2 tensor-parallel ranks; wanted it whole on one"
    ):
        generate(model, rows([1]), ANY)
    broken = build()
    broken.gpt.output_layer.weight.data[3] = math.nan
    with pytest.raises(ValueError, match="at position 1 are not finite.*The run has diverged"):
        generate(broken, rows([1]), ANY)
