"""Figures of fitted laws, one function each: data, fit, band, residuals, and the published curve where
there is one. SVG text."""

from collections.abc import Mapping, Sequence

import numpy as np

from analysis.estimate import Estimate, Fit
from analysis.figures import (
    BELOW,
    DASHED,
    FAINT,
    FIT,
    X_LABELS,
    Axes,
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
from analysis.frontier import Frontier
from analysis.isoflop import Budget
from analysis.laws import PF_DAY, optimal_params
from analysis.points import LossPoints
from analysis.predict import band, curve
from analysis.published import PublishedCurve, PublishedDomain
from analysis.words import scientific

TALL = {"figure.figsize": (4.9, 4.6)}


def loss_by_x(points: LossPoints, fit: Fit, label: str, published: PublishedCurve | None) -> str:
    """Final losses, the fitted law with its 95% band, residuals below; published curve dashed."""
    with paper(TALL):
        figure, (axes, lower) = subplots(
            2, 1, sharex=True, height_ratios=[3, 1], layout="constrained"
        )
        x = points.x(fit.x or "params")
        line = np.geomspace(x.min() / 1.6, x.max() * 1.6, 120)
        low, high = band(fit, line)
        axes.fill_between(
            line, low, high, color=FIT, alpha=0.16, linewidth=0, label="95% of bootstrap fits"
        )
        axes.plot(line, curve(fit, line), color=FIT, label=label)
        draw_sized(axes, x, points.loss, points.params)
        if published is not None:
            shown = published.irreducible + (published.scale / line) ** published.exponent
            axes.plot(line, shown, label="published", **DASHED)
        _residuals(lower, x, points.loss / curve(fit, x) - 1, points.params)
        loss_axis(axes, np.concatenate([points.loss, curve(fit, line)]))
        x_axis(lower, fit.x or "params", line)
        axes.legend(loc="upper right")
        return svg(figure)


def optimum(
    points: LossPoints, frontier: Frontier, fit: Fit, published: PublishedDomain | None
) -> str:
    """N_opt(C): hull points, handovers (filled if bracketed), the fitted power law, its band."""
    with paper():
        figure, axes = subplots()
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
        power_axis(axes, "best parameters N_opt")
        x_axis(axes, "flops", line)
        axes.legend(loc="upper left")
        return svg(figure)


def _residuals(axes: Axes, x: np.ndarray, residual: np.ndarray, params: np.ndarray) -> None:
    axes.axhline(0, color=FIT, linewidth=1.0)
    draw_sized(axes, x, 100 * residual, params)
    reach = max(130 * float(np.abs(residual).max()), 0.01)
    axes.set_ylim(-reach, reach)
    axes.set_ylabel("off fit [%]")


def reducible(
    points: LossPoints, fit: Fit, tokens: float, label: str, published: PublishedCurve | None
) -> str:
    """Loss above the fitted constant, times the tokens of a picture or clip (1: per token), with the
    pure power law and its band."""
    with paper():
        figure, axes = subplots()
        x = points.x(fit.x or "params")
        line = np.geomspace(x.min() / 1.6, x.max() * 1.6, 80)
        rest = tokens * (points.loss - fit.value("irreducible"))
        drawn = {name: values[:, None] for name, values in fit.draws.items()}
        if len(drawn.get("scale", ())):
            with np.errstate(all="ignore"):
                many = tokens * (drawn["scale"] / line) ** drawn["exponent"]
            low, high = np.nanquantile(many, (0.025, 0.975), axis=0)
            axes.fill_between(line, low, high, color=FIT, alpha=0.16, linewidth=0)
        law = tokens * (fit.value("scale") / line) ** fit.value("exponent")
        axes.plot(line, law, color=FIT, label=f"exponent {fit.value('exponent'):.3f}")
        above = rest > 0
        draw_sized(axes, x[above], rest[above], points.params[above])
        if published is not None:
            shown = tokens * (published.scale / line) ** published.exponent
            axes.plot(line, shown, label=f"published: {published.exponent:g}", **DASHED)
        loss_axis(axes, np.concatenate([rest[above], law]))
        axes.set_ylabel(label)
        x_axis(axes, fit.x or "params", line)
        axes.legend(loc="upper right")
        return svg(figure)


def by_tokens(points: LossPoints, fit: Fit, loss_of: np.ndarray, lines: Sequence[tuple]) -> str:
    """A law of N and D (or of N and steps) against its second variable: marks by size, one fitted line
    for each size (rank, x, loss), residuals below. `loss_of` is the fitted loss of every point."""
    with paper(TALL):
        figure, (axes, lower) = subplots(
            2, 1, sharex=True, height_ratios=[3, 1], layout="constrained"
        )
        name = "steps" if fit.law == "learning-curve" else "tokens"
        x, sizes = points.x(name), np.unique(points.params)
        for rank, at, loss in lines:
            axes.plot(at, loss, color=look_of(rank, len(sizes))["color"], linewidth=1.1)
        draw_sized(axes, x, points.loss, points.params)
        _residuals(lower, x, points.loss / loss_of - 1, points.params)
        loss_axis(axes, np.concatenate([points.loss, loss_of]))
        plain_powers(lower, "minimum steps S_min" if name == "steps" else X_LABELS["tokens"])
        figure.legend(handles=size_handles(axes, sizes), **BELOW)
        return svg(figure)


def ellipse(fit: Fit, published: Mapping[str, tuple[float, float]]) -> str:
    """The exponents of a surface: every bootstrap draw, the ellipse that holds 95% of a normal
    distribution with their covariance, and published values."""
    with paper():
        figure, axes = subplots()
        alpha, beta = fit.draws["alpha"], fit.draws["beta"]
        axes.plot(alpha, beta, ".", color=FAINT, markersize=2, alpha=0.35, label="bootstrap fits")
        value, vector = np.linalg.eigh(np.cov(alpha, beta))
        turn = np.linspace(0, 2 * np.pi, 120)
        radius = np.sqrt(5.991 * np.maximum(value, 0))  # 95% of chi-square with 2 degrees
        ring = vector @ (radius[:, None] * np.stack([np.cos(turn), np.sin(turn)]))
        axes.plot(alpha.mean() + ring[0], beta.mean() + ring[1], color=FIT, label="95% ellipse")
        axes.plot(fit.value("alpha"), fit.value("beta"), "D", color=FIT, label="fit")
        for marker, (name, (one, other)) in zip("s^v", published.items(), strict=False):
            axes.plot(one, other, marker, color=FAINT, label=name)
        axes.set_xlabel("alpha, exponent of N")
        axes.set_ylabel("beta, exponent of D")
        figure.legend(**BELOW)
        return svg(figure)


def isoflop(known: Sequence[Budget], vertices: Sequence[float]) -> str:
    """One parabola of log loss for each compute budget, with its minimum where it is bracketed."""
    with paper():
        figure, axes = subplots()
        every = []
        for rank, (each, best) in enumerate(zip(known, vertices, strict=True)):
            look = look_of(rank, len(known))
            z = each.log_params - each.log_params.mean()
            parabola = np.polyfit(z, each.log_loss, 2, w=np.sqrt(each.weight))
            fine = np.linspace(z.min(), z.max(), 60)
            size, loss = np.exp(fine + each.log_params.mean()), np.exp(np.polyval(parabola, fine))
            axes.plot(size, loss, color=look["color"], linewidth=1.1)
            label = f"{scientific(each.flops)} FLOPs"
            axes.plot(
                np.exp(each.log_params),
                np.exp(each.log_loss),
                linestyle="none",
                label=label,
                **look,
            )
            if np.isfinite(best):
                lowest = np.exp(np.polyval(parabola, np.log(best) - each.log_params.mean()))
                axes.plot(best, lowest, "*", color=FIT, markersize=9)
            every += [loss, np.exp(each.log_loss)]
        loss_axis(axes, np.concatenate(every))
        x_axis(axes, "params", np.exp(np.concatenate([each.log_params for each in known])))
        figure.legend(**BELOW)
        return svg(figure)


def overfit(
    points: LossPoints, x: np.ndarray, excess: np.ndarray, lines: Sequence[tuple], little: float, label: str,
) -> str:  # fmt: skip
    """Relative excess loss for want of data against `x`, a power of N over D, in which Kaplan's law is one curve
    (figure 9): marks by size, the law as lines (rank of the size, or None for all sizes; x; excess), what is
    `little` dashed."""
    with paper():
        figure, axes = subplots()
        sizes = np.unique(points.params)
        for rank, at, law in lines:
            colour = FIT if rank is None else look_of(rank, len(sizes))["color"]
            axes.plot(at, law, color=colour, linewidth=1.1, label="fitted law")
        handles = axes.get_lines()[:1] if lines[0][0] is None else []
        axes.axhline(little, linewidth=0.9, **DASHED)
        shown = excess > 0
        draw_sized(axes, x[shown], excess[shown], points.params[shown])
        plain_powers(axes, label)
        power_axis(axes, "L(N, D) / L(N, ∞) - 1")
        figure.legend(handles=[*handles, *size_handles(axes, sizes)], **BELOW)
        return svg(figure)


FORM_STYLES = ("-", (0, (6, 2, 1, 2)), ":")
"""Of the forms of L(N, D), the likeliest first."""


def excess(
    ratio: np.ndarray, forms: Sequence[tuple[str, np.ndarray, np.ndarray]], kaplan: np.ndarray
) -> str:
    """Compute for the same loss with a model `ratio` times the best size, in units of the best: each form
    (name, cost [R], band [2, R] or of no row), and Kaplan's published curve (figure 12)."""
    with paper():
        figure, axes = subplots()
        for (name, cost, ends), style in zip(forms, FORM_STYLES, strict=False):
            if len(ends):
                axes.fill_between(ratio, *ends, color=FIT, alpha=0.16 / len(forms), linewidth=0)
            axes.plot(ratio, cost, color=FIT, linestyle=style, label=name)
        axes.plot(ratio, kaplan, label="Kaplan et al. 2020, eq B.16", **DASHED)
        axes.axhline(1, color=FAINT, linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xlim(ratio[0], ratio[-1])
        axes.set_xticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
        axes.set_xticks([], minor=True)
        highest = np.concatenate([cost for _, cost, _ in forms])
        top = 1.1 * float(np.max(highest[np.isfinite(highest)], initial=1.0))
        axes.set_ylim(0.95, max(min(top, 3.0), 1.2))
        axes.set_xlabel("model size over the best size")
        axes.set_ylabel("compute over the least compute")
        axes.legend()
        return svg(figure)


def crossing(line: np.ndarray, by_flops: np.ndarray, by_tokens: np.ndarray, at: Estimate) -> str:
    """Reducible L(C), and reducible L(D) at the tokens of the best size (three rows: with 0.95, 1 and
    1.05 times its exponent), with the interval of the compute where they meet."""
    with paper():
        figure, axes = subplots()
        axes.plot(line, by_flops, color=FIT, label="L(C), reducible")
        axes.fill_between(line, by_tokens[0], by_tokens[2], color=FAINT, alpha=0.3, linewidth=0)
        axes.plot(
            line, by_tokens[1], label="L(D) at the best tokens, ±5% of N_opt's exponent", **DASHED
        )
        if not np.isnan([at.low, at.high]).any():  # an open end is the edge
            ends = np.clip([at.low, at.high], line[0], line[-1])
            axes.axvspan(*ends, color=FIT, alpha=0.1, linewidth=0)
        if np.isfinite(at.value):
            axes.axvline(at.value, color=FIT, linewidth=0.8, linestyle=":")
        loss_axis(axes, np.concatenate([by_flops, by_tokens[1]]))
        axes.set_ylabel("reducible loss  [nats per token]")
        x_axis(axes, "flops", line)
        figure.legend(**BELOW)
        return svg(figure)


def dots(rows: Sequence[tuple[str, Estimate]], label: str, marks: Mapping[str, float]) -> str:
    """A value with its interval for each row, one under the other; published ones as lines."""
    with paper({"figure.figsize": (4.9, 1.1 + 0.24 * len(rows))}):
        figure, axes = subplots()
        for index, (_, each) in enumerate(rows):
            known = np.isfinite([each.low, each.high]).all()
            if np.isfinite(each.value):
                axes.plot(
                    each.value, index, "o", color=FIT, markerfacecolor=FIT if known else "none"
                )
        for style, (name, value) in zip(((0, (4, 3)), ":", "-."), marks.items(), strict=False):
            axes.axvline(value, color=FAINT, linestyle=style, linewidth=1.0, label=name)
        interval_bars(axes, [(index, each, FIT) for index, (_, each) in enumerate(rows)])
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.invert_yaxis()
        axes.set_xlabel(label)
        if marks:
            figure.legend(**BELOW)
        return svg(figure)
