"""The figures, one function each, as SVG text: vector, colour-blind safe, the same bytes each time.

Sizes are told apart by colour (viridis by rank of N) and by marker, so that the figures survive
grey printing. Axes are logarithmic in the field's units: parameters, tokens, FLOPs, nats per
token. This is the only module that imports matplotlib.
"""

import io
from collections.abc import Sequence
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

from analysis.estimate import Fit
from analysis.frontier import Frontier
from analysis.laws import PF_DAY, optimal_params
from analysis.points import LossPoints
from analysis.predict import band, curve
from analysis.published import PublishedCurve, PublishedDomain
from analysis.words import short

INK, FAINT, FIT = "#20242b", "#8a9099", "#c2410c"
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


def learning_curves(points: LossPoints, x: str, fit: Fit | None, frontier: Frontier | None) -> str:
    """Held-out loss of every run against tokens or compute; with the frontier and its fit."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots()
        sizes = np.unique(points.params)
        runs = np.unique(points.group)
        few = len(runs) < 30
        for run in runs:
            chosen = np.flatnonzero(points.group == run)
            rank = int(np.searchsorted(sizes, points.params[chosen[0]]))
            look = _look(rank, len(sizes)) | ({"markersize": 2.6} if few else {"marker": "None"})
            alpha = 0.9 if few else 0.45
            axes.plot(points.x(x)[chosen], points.loss[chosen], linewidth=1.1, alpha=alpha, **look)
        handles = _size_handles(axes, sizes)
        if frontier is not None and x == "flops":
            handles += _draw_frontier(axes, points, fit, frontier)
        _loss_axis(axes, points.loss)
        _x_axis(axes, x, points.x(x))
        figure.legend(handles=handles, handlelength=1.8, **BELOW)
        return _svg(figure)


def loss_by_x(points: LossPoints, fit: Fit, label: str, published: PublishedCurve | None) -> str:
    """Final losses, the fitted law with its 95% band, residuals below; published curve dashed."""
    with plt.rc_context(STYLE | {"figure.figsize": (4.9, 4.6)}):
        figure, (axes, lower) = plt.subplots(
            2, 1, sharex=True, height_ratios=[3, 1], layout="constrained"
        )
        x = points.x(fit.x or "params")
        line = np.geomspace(x.min() / 1.6, x.max() * 1.6, 120)
        low, high = band(fit, line)
        axes.fill_between(
            line, low, high, color=FIT, alpha=0.16, linewidth=0, label="95% of bootstrap fits"
        )
        axes.plot(line, curve(fit, line), color=FIT, label=label)
        _draw_sized(axes, x, points.loss, points.params)
        if published is not None:
            shown = published.irreducible + (published.scale / line) ** published.exponent
            axes.plot(line, shown, label="published", **DASHED)
        residual = 100 * (points.loss / curve(fit, x) - 1)
        lower.axhline(0, color=FIT, linewidth=1.0)
        _draw_sized(lower, x, residual, points.params)
        reach = max(1.3 * float(np.abs(residual).max()), 0.01)
        lower.set_ylim(-reach, reach)
        lower.set_ylabel("off fit [%]")
        _loss_axis(axes, np.concatenate([points.loss, curve(fit, line)]))
        _x_axis(lower, fit.x or "params", line)
        axes.legend(loc="upper right")
        return _svg(figure)


def optimum(
    points: LossPoints, frontier: Frontier, fit: Fit, published: PublishedDomain | None
) -> str:
    """N_opt(C): hull points, handovers (filled if bracketed), the fitted power law, its band."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots()
        hull, handovers = frontier.hull, frontier.handovers
        name = "points on the convex hull"
        x, y = points.flops[hull], points.params[hull]
        axes.plot(x, y, "o", color=FAINT, markersize=2.8, alpha=0.7, label=name)
        for bracketed, face in ((True, FIT), (False, "none")):
            chosen = handovers.bracketed == bracketed
            name = "bracketed change of best size" if bracketed else "change not bracketed"
            x, y = handovers.flops[chosen], handovers.params[chosen]
            if chosen.any():
                axes.plot(x, y, "D", color=FIT, markerfacecolor=face, markersize=6, label=name)
        cost = points.flops[hull]
        line = np.geomspace(cost.min() / 1.5, cost.max() * 1.5, 60)
        constants = fit.value("params_scale"), fit.value("params_exponent")
        if np.all(np.isfinite(constants)):
            style = "-" if handovers.bracketed.sum() >= 2 else ":"
            name = f"N_opt ∝ C^{constants[1]:.2f}"
            axes.plot(line, optimal_params(line, *constants), style, color=FIT, label=name)
        if published is not None:
            shown = optimal_params(line / PF_DAY, published.params_scale, published.params_exponent)
            name = f"published: C^{published.params_exponent:g}"
            axes.plot(line, shown, label=name, **DASHED)
        axes.set_yscale("log")
        axes.set_ylabel("best parameters N_opt")
        axes.yaxis.set_major_formatter(FuncFormatter(_power_of_ten))
        axes.yaxis.set_minor_formatter(NullFormatter())
        _x_axis(axes, "flops", line)
        axes.legend(loc="upper left")
        return _svg(figure)


def by_position(rows: Sequence[tuple[float, np.ndarray]]) -> str:
    """Mean held-out loss by position in the row, one curve for each (N, loss [positions])."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots()
        sizes = np.array([params for params, _ in rows])
        for rank, (_, loss) in enumerate(rows):
            position = np.arange(1, len(loss) + 1)
            known = np.isfinite(loss)
            look = _look(rank, len(rows)) | {"marker": "None", "linewidth": 1.1}
            axes.plot(position[known], loss[known], **look)
        axes.set_xlabel("position in the row")
        axes.set_ylabel(LOSS_LABEL)
        axes.set_ylim(bottom=0)
        handles = _size_handles(axes, sizes, line=True)
        figure.legend(handles=handles, **BELOW)
        return _svg(figure)


def by_pixel(rows: Sequence[tuple[float, np.ndarray]]) -> str:
    """Maps of the held-out loss by pixel (mean of the colours), small model to large, one scale."""
    with plt.rc_context(STYLE | {"axes.grid": False, "figure.figsize": (4.9, 2.9)}):
        figure, panels = plt.subplots(1, len(rows), squeeze=False, layout="constrained")
        most = max(float(np.nanmax(loss)) for _, loss in rows)
        least = min(float(np.nanmin(loss)) for _, loss in rows)
        for axes, (params, loss) in zip(panels[0], rows, strict=True):
            mesh = axes.pcolormesh(
                loss, vmin=least, vmax=most, cmap="viridis", linewidth=0.2, edgecolors="face"
            )
            axes.invert_yaxis()
            axes.set_aspect("equal")
            axes.set_title(f"N = {short(params)}", fontsize=8)
            axes.set_xticks([])
            axes.set_yticks([])
        bar = figure.colorbar(mesh, ax=list(panels[0]), orientation="horizontal", aspect=40)
        if bar.solids is not None:
            bar.solids.set_rasterized(False)
        bar.set_label(LOSS_LABEL)
        return _svg(figure)


def by_kind(rows: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> str:
    """Loss against N for each kind of token: (kind, N, loss)."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots()
        for rank, (kind, params, loss) in enumerate(rows):
            axes.plot(params, loss, label=kind, **_look(rank, len(rows)))
        _loss_axis(axes, np.concatenate([loss for _, _, loss in rows]))
        _x_axis(axes, "params", np.concatenate([params for _, params, _ in rows]))
        axes.legend()
        return _svg(figure)


def repeats(curves: LossPoints) -> str:
    """Loss of repeated runs against tokens, in percent off the mean of their seeds."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots()
        sizes = np.unique(curves.params)
        for rank, size in enumerate(sizes):
            mine = curves.params == size
            tokens, where = np.unique(curves.tokens[mine], return_inverse=True)
            mean = np.bincount(where, curves.loss[mine]) / np.bincount(where)
            for run in np.unique(curves.group[mine]):
                chosen = np.flatnonzero(curves.group[mine] == run)
                off = 100 * (curves.loss[mine][chosen] / mean[where[chosen]] - 1)
                look = _look(rank, len(sizes)) | {"markersize": 3.5}
                axes.plot(tokens[where[chosen]], off, linewidth=1.0, **look)
        axes.axhline(0, color=FAINT, linewidth=0.8)
        axes.set_ylabel("off the mean of the seeds [%]")
        _x_axis(axes, "tokens", curves.tokens)
        figure.legend(handles=_size_handles(axes, sizes), **BELOW)
        return _svg(figure)


def _draw_frontier(
    axes: Axes, points: LossPoints, fit: Fit | None, frontier: Frontier
) -> list[Line2D]:
    hull = frontier.handovers
    touch = np.concatenate([hull.left, hull.right])
    ring: dict[str, Any] = {
        "color": FIT,
        "markersize": 6,
        "markerfacecolor": "none",
        "label": "best size changes",
    }
    marks = axes.plot(points.flops[touch], points.loss[touch], "o", **ring)
    if fit is None:
        return marks
    cost = points.flops[frontier.fitted]
    line = np.geomspace(points.flops.min(), points.flops.max() * 2, 120)
    axes.fill_between(line, *band(fit, line), color=FIT, alpha=0.14, linewidth=0)
    axes.plot(line, curve(fit, line), ":", color=FIT, linewidth=1.0)
    line = line[(line >= cost.min()) & (line <= cost.max())]
    name = "L(C), below frontier"
    return marks + axes.plot(line, curve(fit, line), color=FIT, linewidth=2.0, label=name)


def _draw_sized(axes: Axes, x: np.ndarray, y: np.ndarray, params: np.ndarray) -> None:
    sizes = np.unique(params)
    for rank, size in enumerate(sizes):
        look = _look(rank, len(sizes)) | {"markersize": 5.5, "linestyle": "none"}
        axes.plot(x[params == size], y[params == size], **look)


def _size_handles(axes: Axes, sizes: np.ndarray, line: bool = False) -> list[Line2D]:
    """Legend entries: every size, or about eight of many."""
    shown = range(len(sizes)) if len(sizes) <= 12 else range(0, len(sizes), len(sizes) // 8)
    handles = []
    for rank in shown:
        look = _look(rank, len(sizes)) | ({"marker": "None"} if line else {"linestyle": "none"})
        handles += axes.plot([], [], label=f"N = {short(sizes[rank])}", **look)
    return handles


def _look(rank: int, sizes: int) -> dict[str, Any]:
    return {"color": palette(sizes)[rank][0], "marker": MARKERS[rank % len(MARKERS)]}


def _loss_axis(axes: Axes, values: np.ndarray) -> None:
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


def _x_axis(axes: Axes, x: str, values: np.ndarray) -> None:
    axes.set_xscale("log")
    axes.set_xlabel(X_LABELS[x])
    axes.xaxis.set_minor_formatter(NullFormatter())
    if values.max() / values.min() > 30:
        axes.xaxis.set_major_formatter(FuncFormatter(_power_of_ten))
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    if x == "flops":
        upper = axes.secondary_xaxis("top", functions=(_to_pf_days, _from_pf_days))
        upper.set_xlabel("PF-days", color=FAINT, fontsize=8)
        upper.tick_params(colors=FAINT, labelsize=7)
        upper.xaxis.set_major_formatter(FuncFormatter(_power_of_ten))
        upper.xaxis.set_minor_formatter(NullFormatter())


def _to_pf_days(flops: Any) -> Any:
    return np.asarray(flops) / PF_DAY


def _from_pf_days(days: Any) -> Any:
    return np.asarray(days) * PF_DAY


def _power_of_ten(value: float, _: object) -> str:
    exponent = round(float(np.log10(value)))
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return text.getvalue()
