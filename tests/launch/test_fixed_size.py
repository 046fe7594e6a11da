"""Shapes of one size: the width that is solved for gives the N that was asked for, by the shape's own count."""

from typing import get_args

import pytest

from launch.ladder import Rung
from launch.study import expand, load_study
from megatron_ext.fixed_size import FARTHEST_OFF, RATIOS, feed_width, width_of_size
from megatron_ext.shape import Family, shape_of
from tests.launch.test_paper_studies import STUDIES


@pytest.mark.parametrize("family", get_args(Family))
@pytest.mark.parametrize("ffn_ratio", [None, 1, 2.5, 8])
@pytest.mark.parametrize(("num_layers", "heads"), [(1, 1), (3, 4), (24, 2), (40, None)])
def test_no_width_comes_nearer_to_the_size(family, ffn_ratio, num_layers, heads):
    params = 2.5e7
    width = width_of_size(
        params, family, num_layers=num_layers, ffn_ratio=ffn_ratio, num_attention_heads=heads
    )
    feed = None if ffn_ratio is None else feed_width(width, ffn_ratio)

    def counted(hidden_size):
        wide = None if ffn_ratio is None else feed_width(hidden_size, ffn_ratio)
        return shape_of(
            family, num_layers=num_layers, hidden_size=hidden_size, ffn_hidden_size=wide,
            num_attention_heads=heads, seq_length=8, vocab_size=8,
        ).params_non_embedding  # fmt: skip

    shape = shape_of(family, num_layers=num_layers, hidden_size=width, ffn_hidden_size=feed,
                     num_attention_heads=heads, seq_length=8, vocab_size=8)  # fmt: skip
    assert (
        abs(shape.params_non_embedding / params - 1) <= FARTHEST_OFF + 1 / width
    )  # d_ff in whole channels
    if heads:
        step = heads * RATIOS[family][0].denominator
        others = [abs(counted(each) - params) for each in (width - step, width + step)]
        assert abs(shape.params_non_embedding - params) <= min(others)


def test_the_families_own_shapes_are_found_again():
    """Henighan et al. 2020, tables 4 and 5; Kaplan et al. 2020: 12 L d^2."""
    assert width_of_size(4.03e8, "henighan", num_layers=128) == 1024
    assert width_of_size(25165824, "henighan-multimodal", num_layers=8) == 512
    assert width_of_size(12 * 36 * 1280**2, "kaplan", num_layers=36) == 1280


def test_a_size_that_no_width_gives_is_refused():
    with pytest.raises(ValueError, match=r"params = 1000 .* no hidden_size near .*fewer heads"):
        width_of_size(1000, "kaplan", num_layers=4, num_attention_heads=32)


def test_a_ladder_of_one_size_is_written_by_its_proportions():
    for name in ("kaplan-shape", "kaplan-shape-small"):
        runs = expand(load_study(STUDIES / f"{name}.toml"), name)
        sizes = [run.shape.params_non_embedding for run in runs]
        assert max(sizes) / min(sizes) < 1.05


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "exactly one of hidden_size, params"),
        ({"hidden_size": 8, "params": 1e5}, "exactly one of hidden_size, params"),
        (
            {"params": 1e5, "ffn_hidden_size": 8, "ffn_ratio": 2},
            "one of ffn_hidden_size, ffn_ratio",
        ),
        ({"params": 1e5, "ffn_hidden_size": 8}, "wanted ffn_ratio"),
    ],
)
def test_a_rung_says_its_width_in_one_way(changes, said):
    with pytest.raises(ValueError, match=said):
        Rung(num_layers=2, **changes)
