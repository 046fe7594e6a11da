"""The width that gives a model a wanted size, so that shapes of one N can be compared. No torch.

N = 2 d L (2 d_attn + d_ff) (Kaplan et al. 2020, eq 2.1) with d_attn = a d and d_ff = f d is
2 (2 a + f) L d^2, so d follows from N, the depth and the two ratios. It is then rounded to whole channels
for every head: what N is off by that, a figure of shapes corrects by L(N) (Kaplan et al. 2020, section
3.1 and figure 5).
"""

import math
from fractions import Fraction

from megatron_ext.shape import Family

FARTHEST_OFF = 0.05
"""The share of N that rounding may cost before a shape is no shape of that size."""

RATIOS: dict[Family, tuple[Fraction, Fraction]] = {
    "henighan": (Fraction(1, 4), Fraction(1)),
    "henighan-multimodal": (Fraction(1), Fraction(4)),
    "kaplan": (Fraction(1), Fraction(4)),
}
"""d_attn / d and d_ff / d of each family (`megatron_ext.shape.shape_of`)."""


def width_of_size(
    params: float,
    family: Family,
    *,
    num_layers: int,
    ffn_ratio: float | None = None,
    num_attention_heads: int | None = None,
) -> int:
    """The hidden size whose N [parameters without embeddings] is nearest to `params`, a multiple of what
    the heads ask for (without `num_attention_heads` the family's own, which grow with the width).

    Raises `ValueError` where no such width comes within 5% of `params`.
    """
    attention, feed = RATIOS[family]
    per_square = float(2 * num_layers * (2 * attention + Fraction(ffn_ratio or feed)))

    def size(width: int) -> float:
        return per_square * width**2

    def fits(width: int) -> bool:
        heads = num_attention_heads or max(2, width // 64)
        return width % (heads * attention.denominator) == 0

    exact = math.sqrt(params / per_square)
    reach = 1 + FARTHEST_OFF
    near = range(max(1, math.floor(exact / reach)), math.ceil(exact * reach) + 1)
    found = [
        width for width in near if fits(width) and abs(size(width) / params - 1) <= FARTHEST_OFF
    ]
    if found:
        return min(found, key=lambda width: abs(size(width) - params))
    raise ValueError(
        f"params = {params:.4g} with num_layers = {num_layers}: no hidden_size near {exact:.1f} that "
        f"{num_attention_heads or 'the family'} attention heads divide comes within "
        f"{100 * FARTHEST_OFF:.0f}% of it; wanted one that does. Use fewer heads or fewer layers, or give "
        "hidden_size."
    )


def feed_width(hidden_size: int, ffn_ratio: float) -> int:
    """d_ff of a ratio d_ff / d, in whole channels."""
    return max(1, round(hidden_size * ffn_ratio))
