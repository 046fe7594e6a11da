"""Figures of experiments from variants, one function each: data limits, shape, schedule, batch. SVG text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.estimate import Estimate
from analysis.figures import (
    BELOW,
    DASHED,
    FAINT,
    FIT,
    LOSS_LABEL,
    draw_sized,
    interval_bars,
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
from analysis.laws import power, steps_at_batch
from analysis.points import LossPoints
from analysis.words import short

WIDE = {"figure.figsize": (9.2, 3.5)}
Rows = Sequence[tuple[str, np.ndarray, np.ndarray]]
"""(name, x, y) of each line."""


def by_data(points: LossPoints, laws: Sequence[tuple[float, float, float]]) -> str:
    """Lowest held-out loss against the unique tokens of each run, marks by size; a power law for each size
    (N, scale, exponent)."""
    with paper():
        figure, axes = subplots()
        sizes = np.unique(points.params)
        line = np.geomspace(points.tokens.min() / 1.4, points.tokens.max() * 1.4, 60)
        for params, scale, exponent in laws:
            rank = int(np.searchsorted(sizes, params))
            axes.plot(line, power(line, scale, exponent), color=look_of(rank, len(sizes))["color"])
        draw_sized(axes, points.tokens, points.loss, points.params)
        loss_axis(axes, points.loss)
        x_axis(axes, "tokens", line)
        axes.set_xlabel("unique tokens D")
        figure.legend(handles=size_handles(axes, sizes), **BELOW)
        return svg(figure)


def stopping(bound: np.ndarray, measured: np.ndarray, params: np.ndarray) -> str:
    """The step of the lowest held-out loss against the bound below which there is no need to stop."""
    with paper():
        figure, axes = subplots()
        both = np.concatenate([bound, measured])
        ends = np.array([both.min() / 1.5, both.max() * 1.5])
        axes.plot(ends, ends, label="step = bound", **DASHED)
        draw_sized(axes, bound, measured, params)
        plain_powers(axes, "bound of the law  [steps]")
        power_axis(axes, "step of the lowest loss")
        handles = size_handles(axes, np.unique(params))
        figure.legend(handles=handles + axes.get_lines()[:1], **BELOW)
        return svg(figure)


def repeated(rows: Rows, published: float, fitted: float | None) -> str:
    """What tokens of repeated data are worth against how often they were read: (run, D/U, D'/D) as measured,
    1 - R* expm1(-R/R*) over 1 + R with the published R* and the fitted one."""
    with paper():
        figure, axes = subplots()
        for rank, (name, epochs, worth) in enumerate(rows):
            axes.plot(epochs, worth, label=name, **look_of(rank, len(rows)))
        most = max(float(epochs.max()) for _, epochs, _ in rows)
        line = np.geomspace(1, max(most, 4) * 1.1, 80)
        for decay, look in ((published, DASHED), (fitted, {"color": FIT})):
            if decay is not None:
                name = f"R* = {decay:.3g}" + (", published" if look is DASHED else ", fitted")
                worth = (1 - decay * np.expm1(-(line - 1) / decay)) / line
                axes.plot(line, worth, label=name, **look)
        axes.set_xscale("log")
        ticks = [n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n <= line[-1]]
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.set_xticks([], minor=True)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("passes over the subset, D/U")
        axes.set_ylabel("worth in fresh tokens, D'/D")
        figure.legend(**(BELOW | {"ncols": 3}))
        return svg(figure)


def shape_panels(panels: Mapping[str, Rows]) -> str:
    """Loss at equal N in percent above the best shape, against one proportion a panel; a line for each N."""
    with paper({"figure.figsize": (1.2 + 2.7 * len(panels), 3.1)}):
        figure, grid = subplots(1, len(panels), sharey=True, squeeze=False, layout="constrained")
        names = list(dict.fromkeys(name for rows in panels.values() for name, _, _ in rows))
        for axes, (label, rows) in zip(grid[0], panels.items(), strict=True):
            for name, x, off in rows:
                axes.plot(x, off, label=name, **look_of(names.index(name), len(names)))
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: short(value))
            axes.set_xlabel(label)
            axes.margins(x=0.12, y=0.12)
        grid[0][0].set_ylabel("above the best shape [%]")
        handles = dict[str, Any]()
        for axes in grid[0]:
            lines, own = axes.get_legend_handles_labels()
            handles |= dict(zip(own, lines, strict=True))
        figure.legend(handles.values(), handles.keys(), **BELOW)
        return svg(figure)


def by_summed_rate(rows: Rows, spread: float | None) -> str:
    """Final loss against the summed learning rate, one mark a run, one look a variant; `spread` is the
    relative standard deviation between seeds, drawn as a bar."""
    with paper():
        figure, axes = subplots()
        for rank, (name, rate, loss) in enumerate(rows):
            look = look_of(rank, len(rows)) | {"linestyle": "none", "markersize": 6}
            bar = None if spread is None else spread * loss
            axes.errorbar(rate, loss, yerr=bar, label=name, capsize=2, elinewidth=0.8, **look)
        axes.set_xlabel("learning rate summed over the steps")
        axes.set_ylabel("final " + LOSS_LABEL)
        axes.margins(0.12)
        figure.legend(**BELOW)
        return svg(figure)


def ladder(
    steps: Sequence[str], ours: Mapping[str, Sequence[Estimate]], published: Mapping[str, Sequence]
) -> str:
    """Exponent of N_opt(C) after each correction, one series for each way of counting, published ones
    hollow; lines at 0.5 and at Kaplan's 0.73."""
    with paper({"figure.figsize": (5.6, 1.6 + 0.42 * len(steps))}):
        figure, axes = subplots()
        series = [
            *((n, e, True) for n, e in ours.items()),
            *((n, e, False) for n, e in published.items()),
        ]
        bars: list[tuple[float, Estimate, str]] = []
        for rank, (name, values, own) in enumerate(series):
            place = np.arange(len(steps)) + 0.13 * (rank - (len(series) - 1) / 2)
            known = np.array([np.isfinite(each.value) for each in values])
            middle = np.array([each.value for each in values])
            look: dict[str, Any] = look_of(rank, len(series)) | {"linestyle": "none"}
            look |= {} if own else {"markerfacecolor": "none", "color": FAINT}
            axes.plot(middle[known], place[known], label=name, **look)
            bars += [(place[k], values[k], look["color"]) for k in map(int, np.flatnonzero(known))]
        for value in (0.5, 0.73):
            axes.axvline(value, linewidth=0.9, **DASHED)
        interval_bars(axes, bars)
        axes.set_yticks(range(len(steps)), steps)
        axes.invert_yaxis()
        axes.set_xlabel("a of N_opt ∝ C^a   (dashed: 0.50 Hoffmann, 0.73 Kaplan)")
        figure.legend(**(BELOW | {"ncols": 2}))
        return svg(figure)


def hyperbolas(levels: Sequence[Mapping[str, Any]], unit: str) -> str:
    """Steps and examples to the same losses over batch sizes, each loss with its hyperbola: one panel
    for each model size."""
    sizes = sorted({each["params"] for each in levels})
    with paper({"figure.figsize": (1.2 + 3.4 * len(sizes), 3.6)}):
        figure, grid = subplots(1, len(sizes), squeeze=False, layout="constrained")
        for axes, params in zip(grid[0], sizes, strict=True):
            own = [each for each in levels if each["params"] == params]
            for rank, each in enumerate(own):
                look = look_of(rank, len(own))
                batch, steps = np.asarray(each["batch"], float), np.asarray(each["steps"], float)
                name = f"{each['loss']:.3g} nats"
                axes.plot(steps, steps * batch, label=name, linestyle="none", **look)
                if each["critical_batch"]:
                    line = np.geomspace(batch.min() / 2, batch.max() * 2, 60)
                    at = steps_at_batch(line, each["min_steps"], each["critical_batch"])
                    style = "--" if each["extrapolated"] else "-"
                    axes.plot(at, at * line, style, color=look["color"], linewidth=1.0)
            plain_powers(axes, "steps S")
            power_axis(axes, f"examples processed E = B S  [{unit}]")
            axes.set_title(f"N = {short(params)}", fontsize=8)
            axes.legend(fontsize=6.5, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.17))
        return svg(figure)


def adjusted(
    naive: Rows, best: Rows, lines: Sequence[tuple[str, np.ndarray, np.ndarray, bool]]
) -> str:
    """Learning curves against C as it was spent (faint) and against C_min, with a power law below each
    (name, C, L, adjusted)."""
    with paper():
        figure, axes = subplots()
        for _, flops, loss in naive:
            axes.plot(flops, loss, color=FAINT, linewidth=0.8, alpha=0.5)
        for rank, (name, flops, loss) in enumerate(best):
            look = look_of(rank, max(len(best), 2)) | {"markersize": 2.6}
            axes.plot(flops, loss, linewidth=1.0, label=name, **look)
        for name, flops, loss, is_adjusted in lines:
            style: dict[str, Any] = {"color": FIT, "linewidth": 1.6} if is_adjusted else DASHED
            axes.plot(flops, loss, label=name, **style)
        loss_axis(axes, np.concatenate([loss for _, _, loss in best]))
        x_axis(axes, "flops", np.concatenate([flops for _, flops, _ in (*naive, *best)]))
        figure.legend(**(BELOW | {"ncols": 3}))
        return svg(figure)


def branches(trunks: Rows, ends: Rows) -> str:
    """Held-out loss along runs at a constant rate, the ends of their cool-downs, and of runs whose
    rate was planned for the same length."""
    with paper():
        figure, axes = subplots()
        for rank, (_, tokens, loss) in enumerate(trunks):
            look = look_of(rank, max(len(trunks), 2)) | {"marker": "None", "linewidth": 0.9}
            axes.plot(tokens, loss, **look)
        for name, tokens, loss in ends:
            filled = name.startswith("cool-down")
            style: dict[str, Any] = {"linestyle": "none", "markersize": 6}
            style |= {"marker": "o", "color": FIT} if filled else {"marker": "s", "color": FAINT}
            axes.plot(tokens, loss, label=name, **style)
        loss_axis(axes, np.concatenate([loss for _, _, loss in (*trunks, *ends)]))
        x_axis(axes, "tokens", np.concatenate([tokens for _, tokens, _ in (*trunks, *ends)]))
        figure.legend(**BELOW)
        return svg(figure)
