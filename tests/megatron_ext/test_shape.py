"""Sizes and counts: the papers' tables, and errors that say what to choose."""

import subprocess
import sys

import pytest

from megatron_ext.shape import ModelShape, shape_of

# Henighan et al. 2020, Table 5: N, d_model, n_layer, heads, d_attn, channels per head.
TABLE_5 = [
    (1.23e4, 32, 4, 2, 8, 4),
    (9.83e4, 64, 8, 2, 16, 8),
    (7.86e5, 128, 16, 2, 32, 16),
    (6.29e6, 256, 32, 4, 64, 16),
    (5.03e7, 512, 64, 8, 128, 16),
    (4.03e8, 1024, 128, 16, 256, 16),
    (3.22e9, 2048, 256, 32, 512, 16),
]
# Henighan et al. 2020, Table 4: N exactly, d_model, n_layer.
TABLE_4 = [
    (98304, 64, 2), (393216, 128, 2), (3145728, 256, 4), (12582912, 512, 4), (25165824, 512, 8),
    (42467328, 768, 6), (84934656, 768, 12), (157286400, 1280, 8), (393216000, 1280, 20),
    (679477248, 1536, 24),
]  # fmt: skip


def shape(family: str, layers: int, width: int, **changes: int) -> ModelShape:
    sizes = {"num_layers": layers, "hidden_size": width, "seq_length": 192, "vocab_size": 256}
    return shape_of(family, **sizes | changes)


@pytest.mark.parametrize("row", TABLE_5)
def test_table_5_of_henighan(row):
    printed, width, layers, heads, attention, channels = row
    found = shape("henighan", layers, width)
    assert found.params_non_embedding == 3 * layers * width**2
    assert float(f"{found.params_non_embedding:.2e}") == printed
    assert (found.num_attention_heads, found.attention_size, found.kv_channels) == (
        heads,
        attention,
        channels,
    )
    assert found.ffn_hidden_size == width


@pytest.mark.parametrize(("printed", "width", "layers"), TABLE_4)
def test_table_4_of_henighan(printed, width, layers):
    found = shape("henighan-multimodal", layers, width)
    assert found.params_non_embedding == printed == 12 * layers * width**2
    assert (found.attention_size, found.ffn_hidden_size) == (width, 4 * width)


@pytest.mark.parametrize(("layers", "width"), [(2, 128), (48, 1600), (6, 4288), (207, 768)])
def test_kaplan_counts_12_l_d_squared(layers, width):
    """Shapes named in Kaplan et al. 2020, sections 2 and 3.1; its formula where d_ff = 4 d."""
    found = shape("kaplan", layers, width, num_attention_heads=2)
    assert found.params_non_embedding == 12 * layers * width**2
    assert found.flops_per_token_6nd == 6.0 * 12 * layers * width**2


def test_the_largest_of_kaplan_is_1_5_billion():
    assert shape("kaplan", 48, 1600).params_non_embedding == pytest.approx(1.5e9, rel=0.02)


def test_counts_term_by_term_for_one_small_shape():
    """L = 2, d = 8, d_ff = 12, 2 heads of 3 channels, rows of 5 tokens, 7 kinds of token."""
    found = ModelShape(2, 8, 12, 2, 3, 5, 7)
    assert found.attention_size == 6
    matrices = 2 * (8 * 3 * 6 + 6 * 8 + 8 * 12 + 12 * 8)
    assert found.params_non_embedding == matrices
    assert found.params_non_embedding_and_head == matrices + 7 * 8
    biases, norms = 2 * (3 * 6 + 8 + 12 + 8), 2 * 2 * 2 * 8
    tables = 8 * 8 + 8 * 8 + 5 * 8  # tokens and head, one row each for the start token; positions
    assert found.params_total == matrices + biases + norms + tables + 2 * 8
    # Position i sees i + 1 keys: 15 over 5 positions. 2 products of 6 channels, 2 FLOPs each.
    attention = 2 * (2 * 2 * 6 * 15) / 5
    assert found.flops_per_token_exact == 3 * (2 * matrices + attention + 2 * 7 * 8)
    assert found.embedding_rows == 8
    assert found.name == "L2-H8"


def test_sizes_given_by_hand_replace_the_family():
    found = shape("henighan", 3, 30, ffn_hidden_size=7, num_attention_heads=5, kv_channels=4)
    assert (found.ffn_hidden_size, found.num_attention_heads, found.kv_channels) == (7, 5, 4)
    assert found.params_non_embedding == 3 * 2 * 30 * (2 * 20 + 7)


SIZES = [
    name
    for name in ModelShape.__dataclass_fields__
    if name not in ("attention_window", "position_axes", "classes")
]


@pytest.mark.parametrize("window", [1, 3, 4, 7, 24, 30])
@pytest.mark.parametrize("length", [1, 5, 24, 25])
def test_keys_attended_are_those_of_the_masks(length, window):
    found = ModelShape(4, 8, 12, 2, 3, length, 7, attention_window=window)
    pairs = [(q, k) for q in range(length) for k in range(q + 1)]
    local = sum(q - k < window for q, k in pairs) / length
    strided = sum((q - k) % window == 0 for q, k in pairs) / length
    assert found.keys_attended("local") == pytest.approx(local, rel=1e-15)
    assert found.keys_attended("strided") == pytest.approx(strided, rel=1e-15)
    assert [found.attention_of(layer) for layer in range(4)] == ["local", "strided"] * 2
    dense = ModelShape(4, 8, 12, 2, 3, length, 7)
    assert dense.keys_attended(dense.attention_of(1)) == len(pairs) / length
    # Scores and weighted values, 6 channels, 2 FLOPs each, forward and twice that backward.
    fewer = 3 * 2 * 2 * 6 * (4 * len(pairs) / length - 2 * local - 2 * strided)
    assert dense.flops_per_token_exact - found.flops_per_token_exact == pytest.approx(fewer)


def test_position_tables_of_a_grid():
    plain = ModelShape(1, 8, 8, 2, 2, 24, 7)
    factorised = ModelShape(1, 8, 8, 2, 2, 24, 7, position_axes=(4, 2, 3))
    assert plain.params_total - factorised.params_total == (24 - 9) * 8


@pytest.mark.parametrize("axes", [(5, 2), (24, 0), 24, (2.0, 12), (-4, -6)])
def test_axes_that_do_not_fold_the_row_are_refused(axes):
    with pytest.raises(
        ValueError, match=r"shape.position_axes = .*; wanted sizes whose product is seq_length = 24"
    ):
        ModelShape(1, 8, 8, 2, 2, 24, 7, position_axes=axes)


@pytest.mark.parametrize("name", ["attention_window", "classes"])
@pytest.mark.parametrize("value", [-1, 1.5, "2", None])
def test_what_may_be_none_is_a_whole_number(name, value):
    with pytest.raises(
        ValueError, match=rf"shape.{name} = {value!r}; wanted a whole number of at least 0"
    ):
        ModelShape(1, 8, 8, 2, 2, 24, 7, **{name: value})


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [0, -1, 1.5, "2", None])
def test_each_size_must_be_a_positive_whole_number(name, value):
    sizes = dict.fromkeys(SIZES, 2) | {name: value}
    with pytest.raises(
        ValueError, match=rf"shape.{name} = {value!r}; wanted a whole number of at least 1"
    ):
        ModelShape(**sizes)


@pytest.mark.parametrize(
    ("family", "width", "multiple"), [("henighan", 36, 8), ("henighan", 33, 8), ("henighan", 4, 8),
                                      ("henighan", 1, 8), ("kaplan", 33, 2), ("henighan-multimodal", 5, 2)]
)  # fmt: skip
def test_a_width_that_does_not_divide_is_refused_with_one_that_does(family, width, multiple):
    with pytest.raises(
        ValueError, match=rf"hidden_size = {width} .*; wanted a multiple of {multiple}, "
    ) as error:
        shape(family, 2, width)
    assert "Choose such a hidden_size, or set num_attention_heads or kv_channels." in str(
        error.value
    )
    shape(family, 2, multiple * 4)


def test_the_spine_needs_no_torch():
    code = "import sys, megatron_ext.shape; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
