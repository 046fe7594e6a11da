"""Figures of what was measured on saved checkpoints, one function each: SVG text."""

from collections.abc import Collection, Sequence

import numpy as np

from analysis.figures import (
    BELOW,
    DASHED,
    FAINT,
    FIT,
    LOSS_LABEL,
    Axes,
    look_of,
    loss_axis,
    paper,
    plain_powers,
    size_handles,
    subplots,
    svg,
    x_axis,
)

Rows = Sequence[tuple[str, np.ndarray, np.ndarray]]
"""(name, x, y) of each line."""
WIDE = {"figure.figsize": (9.2, 3.5)}


def information(
    params: np.ndarray,
    panels: Sequence[tuple[str, np.ndarray, np.ndarray]],
    laws: Sequence[tuple[np.ndarray, ...] | None],
    exact: Sequence[float | None],
) -> str:
    """Mutual information and information gain against N, linear upwards: (label, value, standard error) of each panel.

    `laws`: N, the fitted line, the low and the high end of its band, or None; `exact`: a known value, or None.
    """
    with paper(WIDE):
        figure, axes = subplots(1, len(panels), squeeze=False, layout="constrained")
        for panel, (label, value, error), law, truth in zip(
            axes[0], panels, laws, exact, strict=True
        ):
            panel.errorbar(params, value, 2 * error, fmt="o", label="measured, ± 2 standard errors",
                           **{"color": look_of(0, 2)["color"]})  # fmt: skip
            if law is not None:
                line, middle, low, high = law
                panel.fill_between(line, low, high, color=FIT, alpha=0.14, linewidth=0)
                panel.plot(line, middle, color=FIT, label="rate log(N/Nc)")
            if truth is not None:
                panel.axhline(truth, label="exact", **DASHED)
            x_axis(panel, "params", params)
            panel.set_ylabel(label)
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, **BELOW)
        return svg(figure)


def information_curves(
    rows: Sequence[tuple[float, np.ndarray, np.ndarray]], exact: float | None
) -> str:
    """Mutual information against the step of fine-tuning, one line for each size (N, step, nats)."""
    with paper():
        figure, axes = subplots()
        for rank, (_, step, value) in enumerate(rows):
            axes.plot(step, value, **look_of(rank, len(rows)))
        handles = size_handles(axes, np.array([params for params, *_ in rows]))
        if exact is not None:
            handles.append(axes.axhline(exact, label="exact", **DASHED))
        axes.set_xlabel("step")
        axes.set_ylabel("mutual information  [nats per pair]")
        figure.legend(handles=handles, **BELOW)
        return svg(figure)


def transfer(
    by_size: Rows, laws: Rows, along: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]]
) -> str:
    """Loss on other datasets: against N, and against the loss on one's own data.

    `by_size`: (dataset, N, loss) of last checkpoints, with `laws` of some of them. `along`: in the same order (dataset,
    own loss, loss, whether it is the last checkpoint of its run); earlier ones are small.
    """
    with paper(WIDE):
        figure, (left, right) = subplots(1, 2, layout="constrained")
        _with_laws(left, by_size, laws)
        for rank, (_, own, loss, last) in enumerate(along):
            look = look_of(rank, len(by_size)) | {"linestyle": "none"}
            right.plot(own[last], loss[last], **look)
            right.plot(own[~last], loss[~last], **(look | {"markersize": 2, "alpha": 0.5}))
        own = np.concatenate([each[1] for each in along])
        ends = np.array([own.min(), own.max()])
        same = right.plot(ends, ends, label="as on its own data", **DASHED)
        loss_axis(right, np.concatenate([*(each[2] for each in along), ends]))
        loss_axis(left, np.concatenate([loss for _, _, loss in by_size]))
        right.set_xlabel("loss on its own held-out rows  [nats per token]")
        x_axis(left, "params", np.concatenate([x for _, x, _ in by_size]))
        handles, names = left.get_legend_handles_labels()
        figure.legend([*handles, *same], [*names, "as on its own data"], **BELOW)
        return svg(figure)


def against_size(rows: Rows, laws: Rows, label: str = LOSS_LABEL) -> str:
    """A line of marks for each name against N; `laws` are drawn without marks, in the same colours by name."""
    with paper():
        figure, axes = subplots()
        _with_laws(axes, rows, laws)
        loss_axis(axes, np.concatenate([value for _, _, value in rows]))
        axes.set_ylabel(label)
        x_axis(axes, "params", np.concatenate([params for _, params, _ in rows]))
        figure.legend(**BELOW)
        return svg(figure)


def by_steps(
    rows: Sequence[tuple[float, str, np.ndarray, np.ndarray]], dashed: Collection[str], label: str
) -> str:
    """Loss against steps, coloured by size: (N, what the line is, step, loss); those of a name in `dashed` dashed."""
    with paper():
        figure, axes = subplots()
        sizes = np.unique([params for params, *_ in rows])
        for params, name, step, loss in rows:
            look = look_of(int(np.searchsorted(sizes, params)), len(sizes)) | {"markersize": 2.6}
            style = (0, (4, 2)) if name in dashed else "-"
            axes.plot(step, loss, linewidth=1.1, linestyle=style, **look)
        handles = size_handles(axes, sizes)
        for name in dict.fromkeys(name for _, name, *_ in rows):
            style = (0, (4, 2)) if name in dashed else "-"
            handles += axes.plot([], [], color=FAINT, linestyle=style, label=name)
        loss_axis(axes, np.concatenate([loss for *_, loss in rows]))
        axes.set_ylabel(label)
        plain_powers(axes, "steps")
        figure.legend(handles=handles, **BELOW)
        return svg(figure)


def by_place(place: np.ndarray, loss: np.ndarray, law: np.ndarray) -> str:
    """Loss by place in the context, measured and by its law."""
    with paper():
        figure, axes = subplots()
        look = look_of(0, 2) | {"linestyle": "none", "markersize": 2.5}
        axes.plot(place, loss, label="measured", **look)
        axes.plot(place, law, color=FIT, label="law")
        loss_axis(axes, np.concatenate([loss, law]))
        plain_powers(axes, "place T in the context")
        figure.legend(**BELOW)
        return svg(figure)


def _with_laws(axes: Axes, rows: Rows, laws: Rows) -> None:
    """A line of marks for each name; of one that has a law the marks alone, with the law in their colour."""
    drawn = {name: (x, y) for name, x, y in laws}
    for rank, (name, x, y) in enumerate(rows):
        look = look_of(rank, len(rows))
        style = {"linestyle": "none"} if name in drawn else {}
        axes.plot(x, y, label=name, **(look | style))
        if name in drawn:
            axes.plot(*drawn[name], color=look["color"])
