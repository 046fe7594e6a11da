"""What every figure has in common: SVG text, vector, colour-blind safe, the same bytes each time.

Sizes are told apart by colour (viridis by rank of N) and by marker, so that the figures survive
grey printing. Axes are logarithmic in the field's units: parameters, tokens, FLOPs, nats per
token. This is the only module that imports matplotlib; the figures themselves are in
`analysis.figures_runs` and `analysis.figures_laws`.
"""

import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from analysis.estimate import Estimate
from analysis.laws import PF_DAY
from analysis.words import short

INK, FAINT, FIT = "#20242b", "#8a9099", "#c2410c"
MANY_TICKS = 1e6  # a longer axis has no small ticks: they would be a grey band, and slow to draw
MARKERS = "osD^vP*Xh<>d"
X_LABELS = {
    "params": "parameters N",
    "tokens": "tokens D",
    "flops": "training compute C  [FLOPs]",
}
LOSS_LABEL = "loss  [nats per token]"
DASHED: dict[str, Any] = {"color": FAINT, "linestyle": (0, (4, 3))}
BELOW: dict[str, Any] = {"loc": "outside lower center", "ncols": 4, "columnspacing": 1.1}
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.labelsize": 9, "legend.fontsize": 8,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "axes.spines.top": False,
    "axes.spines.right": False, "axes.edgecolor": FAINT, "axes.labelcolor": INK,
    "text.color": INK, "xtick.color": INK, "ytick.color": INK, "axes.grid": True,
    "grid.color": FAINT, "grid.alpha": 0.18, "grid.linewidth": 0.6, "axes.linewidth": 0.7,
    "lines.linewidth": 1.4, "lines.markersize": 4.5, "legend.frameon": False,
    "figure.figsize": (4.9, 3.7), "figure.constrained_layout.use": True,
    "svg.fonttype": "none", "svg.hashsalt": "analysis", "axes.axisbelow": True,
}  # fmt: skip


def palette(sizes: int) -> list[tuple[str, str]]:
    """One (colour on light paper, colour on dark) for each size, small to large."""
    at = np.linspace(0, 1, max(sizes, 2))[:sizes]
    viridis = matplotlib.colormaps["viridis"]
    return [(to_hex(viridis(0.06 + 0.78 * t)), to_hex(viridis(0.34 + 0.62 * t))) for t in at]


def paper(changes: dict[Any, Any] | None = None) -> AbstractContextManager[None]:
    """Everything that is drawn within looks the same."""
    return plt.rc_context(STYLE | (changes or {}))


def subplots(*arguments: Any, **options: Any) -> tuple[Figure, Any]:
    """A figure with one panel or a grid of them."""
    return plt.subplots(*arguments, **options)


def draw_sized(axes: Axes, x: np.ndarray, y: np.ndarray, params: np.ndarray) -> None:
    """Marks without a line, one look for each size."""
    sizes = np.unique(params)
    for rank, size in enumerate(sizes):
        look = look_of(rank, len(sizes)) | {"markersize": 5.5, "linestyle": "none"}
        axes.plot(x[params == size], y[params == size], **look)


def interval_bars(axes: Axes, rows: Sequence[tuple[float, Estimate, str]]) -> None:
    """Intervals (height, estimate, colour) along x; an open end goes to the edge of the axis, with an arrow. To be
    called when all else is drawn, for it fixes the edges."""
    for height, each, _ in rows:
        ends = [end for end in (each.low, each.high) if np.isfinite(end)]
        axes.plot(ends, [height] * len(ends), linestyle="none")  # the axis holds them
    edges = axes.get_xlim()
    axes.set_xlim(*edges)
    for height, each, colour in rows:
        if np.isnan(each.low) or np.isnan(each.high):
            continue
        bar = [max(each.low, edges[0]), min(each.high, edges[1])]
        axes.plot(bar, [height, height], color=colour, marker="None", linewidth=1.2)
        for end, edge, arrow in ((each.low, edges[0], "<"), (each.high, edges[1], ">")):
            if np.isinf(end):
                axes.plot(edge, height, color=colour, marker=arrow, clip_on=False)


def size_handles(axes: Axes, sizes: np.ndarray, line: bool = False) -> list[Line2D]:
    """Legend entries: every size, or about eight of many."""
    shown = range(len(sizes)) if len(sizes) <= 12 else range(0, len(sizes), len(sizes) // 8)
    handles = []
    for rank in shown:
        look = look_of(rank, len(sizes)) | ({"marker": "None"} if line else {"linestyle": "none"})
        handles += axes.plot([], [], label=f"N = {short(sizes[rank])}", **look)
    return handles


def look_of(rank: int, sizes: int) -> dict[str, Any]:
    """The colour and marker of a size by its rank."""
    return {"color": palette(sizes)[rank][0], "marker": MARKERS[rank % len(MARKERS)]}


def loss_axis(axes: Axes, values: np.ndarray) -> None:
    """Logarithmic, but labelled with round losses even where they span less than a decade."""
    known = values[np.isfinite(values) & (values > 0)]
    low, high = known.min() / 1.02, known.max() * 1.02
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    ticks = np.asarray(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high))
    if high / low > 8:
        ticks = np.array([m * 10.0**e for e in range(-4, 5) for m in (1, 2, 5)])
    ticks = ticks[(ticks >= low) & (ticks <= high)]
    axes.yaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylabel(LOSS_LABEL)


def power_axis(axes: Axes, label: str) -> None:
    """A logarithmic y axis of powers of ten."""
    axes.set_yscale("log")
    axes.set_ylabel(label)
    axes.yaxis.set_major_formatter(FuncFormatter(power_of_ten))
    axes.yaxis.set_minor_formatter(NullFormatter())


def plain_powers(axes: Axes, label: str) -> None:
    """A logarithmic x axis of powers of ten, for what is none of N, D, C."""
    axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter(FuncFormatter(power_of_ten))
    axes.xaxis.set_minor_formatter(NullFormatter())


def x_axis(axes: Axes, x: str, values: np.ndarray) -> None:
    """A logarithmic axis of N, D or C; compute has PF-days above it."""
    axes.set_xscale("log")
    axes.set_xlabel(X_LABELS[x])
    axes.xaxis.set_minor_formatter(NullFormatter())
    if values.max() / values.min() > 30:
        axes.xaxis.set_major_formatter(FuncFormatter(power_of_ten))
        if values.max() / values.min() > MANY_TICKS:
            axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    if x == "flops":
        upper = axes.secondary_xaxis("top", functions=(_to_pf_days, _from_pf_days))
        upper.set_xlabel("PF-days", color=FAINT, fontsize=8)
        upper.tick_params(colors=FAINT, labelsize=7)
        upper.xaxis.set_major_formatter(FuncFormatter(power_of_ten))
        upper.xaxis.set_minor_locator(NullLocator())


def _to_pf_days(flops: Any) -> Any:
    return np.asarray(flops) / PF_DAY


def _from_pf_days(days: Any) -> Any:
    return np.asarray(days) * PF_DAY


def power_of_ten(value: float, _: object) -> str:
    """The label of a tick."""
    exponent = round(float(np.log10(value)))
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def svg(figure: Figure) -> str:
    """The finished figure; it is closed."""
    text = io.StringIO()
    engine = figure.get_layout_engine()
    if (
        engine is not None
    ):  # once: left in, it would lay the figure out again for each pass of savefig
        engine.execute(figure)
        figure.set_layout_engine("none")
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return text.getvalue()
