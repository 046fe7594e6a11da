"""Figures of answered questions, one function each: SVG text."""

from collections.abc import Sequence

import numpy as np

from analysis.figures import (
    BELOW,
    FAINT,
    LOSS_LABEL,
    Axes,
    MaxNLocator,
    NullLocator,
    look_of,
    loss_axis,
    paper,
    size_handles,
    subplots,
    svg,
    x_axis,
)

Line = tuple[np.ndarray, np.ndarray]
"""x, y."""
RIGHT_LABEL = "right answers  [%]"
SMALL = {"font.size": 7, "xtick.labelsize": 6, "ytick.labelsize": 6, "axes.labelsize": 7}
MOST_ACROSS = 7


def collapse(
    panels: Sequence[tuple[str, Sequence[tuple[int, np.ndarray]]]], sizes: np.ndarray
) -> str:
    """Accuracy above and loss below against the training loss, a column for each set: (name, lines); a line is one run,
    (rank of its size, columns of training loss, per cent and loss [3, checkpoints])."""
    across = len(panels)
    with paper({"figure.figsize": (max(4.9, 0.9 + 2.1 * across), 4.4)}):
        figure, grid = subplots(
            2, across, squeeze=False, sharex=True, sharey="row", layout="constrained"
        )
        for (name, lines), upper, lower in zip(panels, *grid, strict=True):
            upper.set_title(name, fontsize=8)
            for rank, table in lines:
                train, right, loss = table[:, np.argsort(table[0], kind="stable")]
                look = look_of(rank, len(sizes)) | {"linewidth": 0.9, "markersize": 4}
                upper.plot(train, right, **look)
                lower.plot(train, loss, **look)
        loss_axis(grid[1, 0], np.concatenate([t[2] for _, lines in panels for _, t in lines]))
        grid[0, 0].set_ylabel(RIGHT_LABEL)
        grid[1, across // 2].set_xlabel("training loss  [nats per token]")
        figure.legend(handles=size_handles(grid[0, 0], sizes), **BELOW)
        return svg(figure)


def by_level(rows: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]]) -> str:
    """Accuracy and loss against the level of difficulty, a line for each size: (name, level, per cent, loss)."""
    with paper({"figure.figsize": (9.2, 3.5)}):
        figure, (left, right) = subplots(1, 2, layout="constrained")
        for rank, (name, level, share, loss) in enumerate(rows):
            left.plot(level, share, label=name, **look_of(rank, len(rows)))
            right.plot(level, loss, **look_of(rank, len(rows)))
        left.set_ylabel(RIGHT_LABEL)
        loss_axis(right, np.concatenate([loss for *_, loss in rows]))
        for axes in (left, right):
            axes.set_xlabel("level s")
            axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        handles, names = left.get_legend_handles_labels()
        figure.legend(handles, names, **BELOW)
        return svg(figure)


def against_size(
    rows: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]],
    laws: Sequence[Line | None],
) -> str:
    """Accuracy left and loss right against N, of each row (name, N, per cent, loss), with the law of the loss."""
    with paper({"figure.figsize": (9.2, 3.7)}):
        figure, (left, right) = subplots(1, 2, layout="constrained")
        for rank, ((name, params, share, loss), law) in enumerate(zip(rows, laws, strict=True)):
            look = look_of(rank, len(rows))
            left.plot(params, share, label=name, **look)
            style = {} if law is None else {"linestyle": "none"}
            right.plot(params, loss, **(look | style))
            if law is not None:
                right.plot(*law, color=look["color"])
        left.set_ylabel(RIGHT_LABEL)
        loss_axis(right, np.concatenate([loss for *_, loss in rows]))
        for axes in (left, right):
            x_axis(axes, "params", np.concatenate([params for _, params, *_ in rows]))
        handles, names = left.get_legend_handles_labels()
        figure.legend(handles, names, **(BELOW | {"ncols": 5}))
        return svg(figure)


def modules_against_size(
    panels: Sequence[tuple[str, np.ndarray, np.ndarray, Line | None]],
) -> str:
    """Loss against N, a small panel for each module: (title, N, loss, its law or None); one scale for all."""
    across = min(MOST_ACROSS, len(panels))
    down = -(-len(panels) // across)
    size = (max(4.9, 0.5 + 1.45 * across), 0.7 + 1.35 * down)
    look = look_of(0, 2)
    with paper(SMALL | {"figure.figsize": size, "lines.markersize": 2.6}):
        figure, grid = subplots(
            down, across, squeeze=False, sharex=True, sharey=True, layout="constrained"
        )
        for axes, (title, params, loss, law) in zip(grid.flat, panels, strict=False):
            axes.set_title(title, fontsize=5.5)
            axes.plot(params, loss, **(look | ({"linestyle": "none"} if law else {})))
            if law is not None:
                axes.plot(*law, color=look["color"], linewidth=1.0)
        first: Axes = grid[0, 0]
        loss_axis(first, np.concatenate([loss for _, _, loss, _ in panels]))
        x_axis(first, "params", np.concatenate([params for _, params, *_ in panels]))
        first.xaxis.set_minor_locator(NullLocator())
        for axes in grid.flat:
            axes.set_xlabel("")
            axes.set_ylabel("")
        for axes in grid.flat[max(0, len(panels) - across) : len(panels)]:
            axes.tick_params(labelbottom=True)  # the lowest of its column
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        figure.supxlabel("parameters N", fontsize=8)
        figure.supylabel(LOSS_LABEL, fontsize=8)
        return svg(figure)


def by_module(
    modules: Sequence[str], rows: Sequence[tuple[int, str, np.ndarray, np.ndarray]], sizes: int
) -> str:
    """A bar of right answers and a mark of the loss for each named module, one for each size: (rank of the size among
    `sizes`, name, per cent [modules], loss [modules]); the first module on top."""
    place = np.arange(len(modules))
    thick = 0.8 / len(rows)
    height = 1.1 + len(modules) * (0.09 + 0.06 * len(rows))
    with paper({"figure.figsize": (9.2, height), "axes.grid.axis": "x"}):
        figure, (left, right) = subplots(1, 2, sharey=True, layout="constrained")
        for number, (rank, name, share, loss) in enumerate(rows):
            look = look_of(rank, sizes)
            at = place + thick * (number - (len(rows) - 1) / 2)
            left.barh(at, share, thick, color=look["color"], label=name)
            right.plot(loss, at, linestyle="none", markersize=3.6, **look)
        for axes in (left, right):
            axes.axhline(-0.5, color=FAINT, linewidth=0)
        left.set_yticks(place, modules, fontsize=6.5)
        left.set_ylim(len(modules) - 0.4, -0.6)
        left.set_xlim(0, 100)
        left.set_xlabel(RIGHT_LABEL)
        right.set_xlabel(LOSS_LABEL)
        right.set_xlim(left=0)
        handles, names = left.get_legend_handles_labels()
        figure.legend(handles, names, **BELOW)
        return svg(figure)
