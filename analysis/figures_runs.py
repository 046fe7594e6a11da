"""Figures of what was measured, one function each, before any law: SVG text."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.estimate import Fit
from analysis.figures import (
    BELOW,
    DASHED,
    FAINT,
    FIT,
    LOSS_LABEL,
    Axes,
    Line2D,
    MaxNLocator,
    NullLocator,
    draw_sized,
    look_of,
    loss_axis,
    paper,
    plain_powers,
    power_axis,
    size_handles,
    subplots,
    svg,
    x_axis,
)
from analysis.frontier import Frontier
from analysis.laws import power_constant
from analysis.points import LossPoints, cells
from analysis.predict import band, curve
from analysis.published import PublishedCurve
from analysis.words import short


def learning_curves(
    points: LossPoints,
    x: str,
    fit: Fit | None,
    frontier: Frontier | None,
    fitted: LossPoints,
    published: PublishedCurve | None,
) -> str:
    """Held-out loss of every run against tokens or compute; against compute with the frontier of the points that were
    `fitted` and its fit, against tokens with L(D) if `fit` is one; the published law dashed."""
    with paper():
        figure, axes = subplots()
        sizes = np.unique(points.params)
        runs = np.unique(points.group)
        few = len(runs) < 30
        for run in runs:
            chosen = np.flatnonzero(points.group == run)
            rank = int(np.searchsorted(sizes, points.params[chosen[0]]))
            look = look_of(rank, len(sizes)) | ({"markersize": 2.6} if few else {"marker": "None"})
            alpha = 0.9 if few else 0.45
            axes.plot(points.x(x)[chosen], points.loss[chosen], linewidth=1.1, alpha=alpha, **look)
        handles = size_handles(axes, sizes)
        if frontier is not None and x == "flops":
            handles += _draw_frontier(axes, fitted, fit, frontier)
        shown = points.loss
        if fit is not None and x == "tokens":
            handles += _draw_data_law(axes, points, fit)
            shown = np.append(shown, curve(fit, np.array([points.tokens.max()])))
        loss_axis(axes, shown)
        if published is not None:
            line = np.geomspace(points.x(x).min(), points.x(x).max(), 80)
            shown = power_constant(line, **vars(published))
            handles += axes.plot(line, shown, label="published", **DASHED)
        x_axis(axes, x, points.x(x))
        figure.legend(handles=handles, handlelength=1.8, **BELOW)
        return svg(figure)


def by_position(rows: Sequence[tuple[float, np.ndarray]]) -> str:
    """Mean held-out loss by position in the row, one curve for each (N, loss [positions])."""
    with paper():
        figure, axes = subplots()
        sizes = np.array([params for params, _ in rows])
        for rank, (_, loss) in enumerate(rows):
            position = np.arange(1, len(loss) + 1)
            known = np.isfinite(loss)
            look = look_of(rank, len(rows)) | {"marker": "None", "linewidth": 1.1}
            axes.plot(position[known], loss[known], **look)
        axes.set_xlabel("position in the row")
        axes.set_ylabel(LOSS_LABEL)
        axes.set_ylim(bottom=0)
        handles = size_handles(axes, sizes, line=True)
        figure.legend(handles=handles, **BELOW)
        return svg(figure)


def by_pixel(rows: Sequence[tuple[float, np.ndarray]]) -> str:
    """Maps of the held-out loss by pixel (mean of the colours), small model to large, one scale."""
    with paper({"axes.grid": False, "figure.figsize": (4.9, 2.9)}):
        figure, panels = subplots(1, len(rows), squeeze=False, layout="constrained")
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
        return svg(figure)


def by_frame(
    rows: Sequence[tuple[float, np.ndarray]], laws: Sequence[tuple[float, np.ndarray, np.ndarray]]
) -> str:
    """Mean held-out loss by frame of a clip, marks for each (N, loss [frames]), and laws (N, frame, loss) as lines."""
    with paper():
        figure, axes = subplots()
        sizes = np.array([params for params, _ in rows])
        for rank, (_, loss) in enumerate(rows):
            look = look_of(rank, len(rows)) | {"linestyle": "none"}
            axes.plot(np.arange(1, len(loss) + 1), loss, **look)
        for params, frame, loss in laws:
            rank = int(np.searchsorted(sizes, params))
            axes.plot(frame, loss, color=look_of(rank, len(rows))["color"], linewidth=1.1)
        axes.set_xlabel("frame")
        axes.xaxis.set_major_locator(MaxNLocator(9, integer=True))
        loss_axis(axes, np.concatenate([loss for _, loss in rows]))
        figure.legend(handles=size_handles(axes, sizes), **BELOW)
        return svg(figure)


def by_kind(rows: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> str:
    """Loss against N for each kind of token: (kind, N, loss)."""
    with paper():
        figure, axes = subplots()
        for rank, (kind, params, loss) in enumerate(rows):
            axes.plot(params, loss, label=kind, **look_of(rank, len(rows)))
        loss_axis(axes, np.concatenate([loss for _, _, loss in rows]))
        x_axis(axes, "params", np.concatenate([params for _, params, _ in rows]))
        axes.legend()
        return svg(figure)


def repeats(curves: LossPoints) -> str:
    """Loss of repeated runs against tokens, in percent off the mean of their seeds."""
    cell = cells(curves)
    mean = np.bincount(cell, curves.loss) / np.bincount(cell)
    off = 100 * (curves.loss / mean[cell] - 1)
    with paper():
        figure, axes = subplots()
        sizes = np.unique(curves.params)
        for run in np.unique(curves.group):
            mine = np.flatnonzero(curves.group == run)
            mine = mine[np.argsort(curves.tokens[mine], kind="stable")]
            rank = int(np.searchsorted(sizes, curves.params[mine[0]]))
            look = look_of(rank, len(sizes)) | {"markersize": 3.5}
            axes.plot(curves.tokens[mine], off[mine], linewidth=1.0, **look)
        axes.axhline(0, color=FAINT, linewidth=0.8)
        axes.set_ylabel("off the mean of the seeds [%]")
        x_axis(axes, "tokens", curves.tokens)
        figure.legend(handles=size_handles(axes, sizes), **BELOW)
        return svg(figure)


def counted(rows: Sequence[tuple[str, np.ndarray]], depth: np.ndarray, loss: np.ndarray) -> str:
    """Loss against N in each of two conventions, coloured by depth (Kaplan et al. 2020, figure 6)."""
    with paper({"figure.figsize": (4.9, 3.3)}):
        figure, panels = subplots(1, len(rows), sharey=True, layout="constrained")
        depths = np.unique(depth)
        for axes, (name, params) in zip(panels, rows, strict=True):
            for rank, layers in enumerate(depths):
                mine = depth == layers
                look = look_of(rank, len(depths)) | {"linestyle": "none"}
                axes.plot(params[mine], loss[mine], label=f"{layers} layers", **look)
            loss_axis(axes, loss)
            x_axis(axes, "params", params)
            axes.set_xlabel(name)
        panels[1].set_ylabel("")
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, **BELOW)
        return svg(figure)


def batches(
    loss: np.ndarray,
    scale: np.ndarray,
    params: np.ndarray,
    measured: Sequence[tuple[float, float]],
    extrapolated: Sequence[tuple[float, float]],
    laws: Sequence[tuple[str, np.ndarray, np.ndarray, bool]],
    unit: str,
) -> str:
    """Gradient noise scale of each run against its loss, critical batches (loss, batch) inside and outside the batches
    that were trained, and laws of them (name, loss, batch, whether it was fitted here)."""
    with paper():
        figure, axes = subplots()
        draw_sized(axes, loss, scale, params)
        handles = size_handles(axes, np.unique(params))
        look: dict[str, Any] = {"color": FIT, "markersize": 5}
        for name, found, fill in (
            ("measured B_crit", measured, {}),
            ("extrapolated B_crit", extrapolated, {"markerfacecolor": "none"}),
        ):
            if found:
                handles += axes.plot(*np.array(found).T, "D", label=name, **(look | fill))
        for name, x, y, fitted in laws:
            style: dict[str, Any] = {"color": FIT} if fitted else DASHED
            handles += axes.plot(x, y, label=name, **style)
        plain_powers(axes, LOSS_LABEL)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        power_axis(axes, f"batch  [{unit}]")
        figure.legend(handles=handles, **(BELOW | {"ncols": 2}))
        return svg(figure)


def to_reach(rows: Sequence[tuple[float, np.ndarray, np.ndarray]], what: str) -> str:
    """Tokens or steps (`what`) after which each size first has a loss: (loss, N, tokens or steps)."""
    with paper():
        figure, axes = subplots()
        for rank, (loss, params, tokens) in enumerate(rows):
            axes.plot(params, tokens, label=f"{loss:.3g} nats", **look_of(rank, len(rows)))
        power_axis(axes, f"{what} to reach it")
        x_axis(axes, "params", np.concatenate([params for _, params, _ in rows]))
        figure.legend(**BELOW)
        return svg(figure)


def _draw_data_law(axes: Axes, points: LossPoints, fit: Fit) -> list[Line2D]:
    """L(D) over the tokens of the points: thick where it was fitted, dotted beyond."""
    line = np.geomspace(points.tokens.min(), points.tokens.max(), 120)
    axes.plot(line, curve(fit, line), ":", color=FIT, linewidth=1.0)
    low, high = fit.diagnostics["x_range"]
    line = line[(line >= low) & (line <= high)]
    return axes.plot(line, curve(fit, line), color=FIT, linewidth=2.0, label="L(D)")


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
