"""The figures of fitted laws that a study's runs allow, each with its caption."""

from collections.abc import Mapping, Sequence

import numpy as np

from analysis import figures_laws
from analysis.consequences import contradiction
from analysis.estimate import Estimate, Fit
from analysis.findings import Sample
from analysis.frontier import trace
from analysis.isoflop import budgets
from analysis.laws import critical_batch, learning_curve, minimum_steps
from analysis.page import Picture, safe
from analysis.points import LossPoints
from analysis.published import PublishedDomain
from analysis.routes import optimum_fit, routes
from analysis.separable import SURFACE_LAWS
from analysis.study_fits import Attempt, Convention
from analysis.views_surface import excess_pictures, surface_pictures
from analysis.words import has_warning, parameter_in_words, value_with_interval

FARTHEST = 1e8
"""A crossing farther than this from the data is a number without meaning, and is not drawn."""


def law_pictures(
    tried: Mapping[str, Attempt],
    conventions: Sequence[Convention],
    known: PublishedDomain | None,
    sample: Sample,
) -> list[Picture]:
    """All figures of laws, in the order of the argument."""
    shown = _reducible(tried, known, sample)
    shown += surface_pictures(tried) + _learning_curve(tried)
    shown += _isoflop(tried) + _routes(tried, known) + excess_pictures(tried) + _crossing(tried)
    return shown + _conventions(conventions)


def _fits(tried: Mapping[str, Attempt]) -> dict[str, Fit]:
    return {name: each.fit for name, each in tried.items() if each.fit is not None}


def _reducible(
    tried: Mapping[str, Attempt], known: PublishedDomain | None, sample: Sample
) -> list[Picture]:
    """Henighan et al. 2020, figures 1, 7 and 8: only where the constant is known."""
    found = []
    for name, rows in (
        ("loss-by-params", known.loss_by_params if known else None),
        ("frontier", known.flops_law() if known else None),
    ):
        fit = _fits(tried).get(name)
        if fit is None or has_warning(fit, "irreducible_not_identified"):
            continue
        if fit.value("irreducible") <= 0 or has_warning(fit, "frontier_not_separated"):
            continue
        points = tried[name].found.points
        if name == "frontier":
            points = points.only(trace(points).fitted)
        svg = figures_laws.reducible(
            points, fit, sample.tokens, f"reducible loss  [nats per {sample.name}]", rows
        )
        found.append(
            Picture(
                f"reducible-{name}",
                svg,
                f"<b>Reducible loss, nats per {safe(sample.name)}.</b> What is left above the fitted "
                f"constant {value_with_interval(fit.parameters['irreducible'])}, which is taken as "
                "known here: marks far along depend on it.",
            )
        )
    return found


def _learning_curve(tried: Mapping[str, Attempt]) -> list[Picture]:
    fit = _fits(tried).get("learning-curve")
    if fit is None:
        return []
    points = tried["learning-curve"].found.points
    c = {name: each.value for name, each in fit.parameters.items()}
    steps, adjusted = points.steps, "B_star" in c
    if adjusted:
        at = critical_batch(points.loss, c["B_star"], c["aB"])
        steps = minimum_steps(points.steps, points.batch, at)
    shown = _with_steps(points, steps)
    inner = {name: c[name] for name in ("Nc", "aN", "Sc", "aS")}
    line = np.geomspace(steps.min(), steps.max(), 60)
    sizes = np.unique(points.params)
    lines = [(rank, line, learning_curve(size, line, **inner)) for rank, size in enumerate(sizes)]
    fitted = learning_curve(points.params, steps, **inner)
    how = "for the fitted critical batch" if adjusted else "taken as measured"
    return [
        Picture(
            "learning-curve",
            figures_laws.by_tokens(shown, fit, fitted, lines),
            f"<b>L(N, S).</b> Learning curves after the warm-up against steps, {how}, and the fitted law "
            f"at each size: aN {parameter_in_words(fit, 'aN')}, aS "
            f"{parameter_in_words(fit, 'aS')}.",
        )
    ]


def _with_steps(points: LossPoints, steps: np.ndarray) -> LossPoints:
    columns = {name: points.x(name) for name in ("params", "loss")}
    return LossPoints.of(points.group, points.label, steps=steps, **columns)


def _isoflop(tried: Mapping[str, Attempt]) -> list[Picture]:
    fit = _fits(tried).get("isoflop")
    if fit is None:
        return []
    known = [each for each in budgets(tried["isoflop"].found.points) if len(each.log_params) >= 3]
    vertices = [row["parabola"] for row in fit.diagnostics["minima"]]
    a = value_with_interval(fit.parameters["params_exponent"])
    return [
        Picture(
            "isoflop",
            figures_laws.isoflop(known, vertices),
            f"<b>IsoFLOP curves.</b> Parabolas of log loss in log N at {len(known)} compute budgets; "
            f"stars: minima with larger and smaller sizes measured. Through these N_opt ∝ C^{a}.",
        )
    ]


def _routes(tried: Mapping[str, Attempt], known: PublishedDomain | None) -> list[Picture]:
    found = routes(tried)
    if len(found) < 2:
        return []
    marks = {"Kaplan: 0.73": 0.73, "Hoffmann: 0.50": 0.50}
    if known is not None and known.domain != "text":
        marks = {f"published: {known.params_exponent:g}": known.params_exponent}
    svg = figures_laws.dots(found, "a of N_opt ∝ C^a", marks)
    caption = (
        "<b>The best size by every route.</b> They fail in different ways, so their agreement is the "
        "evidence; hollow: no interval."
    )
    return [Picture("routes", svg, caption)]


def _crossing(tried: Mapping[str, Attempt]) -> list[Picture]:
    """Henighan et al. 2020, figure 15; Kaplan et al. 2020, figure 15."""
    fits = _fits(tried)
    optimum = optimum_fit(fits)
    if not {"frontier", "loss-by-tokens"} <= set(fits) or optimum is None:
        return []
    by_flops, by_tokens = fits["frontier"], fits["loss-by-tokens"]
    at = contradiction(by_flops, by_tokens, optimum)["flops"]
    low, high = by_flops.diagnostics["x_range"]
    if not low / FARTHEST < at.value < high * FARTHEST:
        return []
    line = np.geomspace(min(low, at.value) / 10, max(high, at.value) * 10, 120)
    scale, exponent = optimum.value("params_scale"), optimum.value("params_exponent")
    middle = float(np.sqrt(low * high))
    best = (middle / scale) ** exponent
    rows = []
    for factor in (0.95, 1.0, 1.05):  # turned about the middle of the data, where it was measured
        tokens = line / 6 / (best * (line / middle) ** (exponent * factor))
        rows.append((by_tokens.value("scale") / tokens) ** by_tokens.value("exponent"))
    own = (by_flops.value("scale") / line) ** by_flops.value("exponent")
    return [
        Picture(
            "crossing",
            figures_laws.crossing(line, own, np.stack(rows), at),
            "<b>Where two trends contradict each other.</b> Beyond the crossing more compute would have "
            "to teach more than the tokens of the best size hold: one of the two must bend "
            f"(at {value_with_interval(at)} FLOPs).",
        )
    ]


def _conventions(rows: Sequence[Convention]) -> list[Picture]:
    """Porian et al. 2024; Pearce & Song 2024: one figure of the exponent that moves most."""
    chosen: list[Convention] = []
    for law, exponent in (
        ("frontier", "params_exponent"), ("isoflop", "params_exponent"),
        *((name, "a") for name in SURFACE_LAWS), ("loss-by-params", "exponent"),
    ):  # fmt: skip
        own = [each for each in rows if (each.law, each.exponent) == (law, exponent)]
        if sum(np.isfinite(each.value) for each in own) >= 2:
            chosen = own
            break
    if not chosen:
        return []
    shown = [
        (f"{each.params}, C {each.flops}" if each.law in ("frontier", "isoflop") else each.params,
         Estimate(each.value, each.low, each.high))
        for each in chosen
    ]  # fmt: skip
    optimum = chosen[0].exponent != "exponent"
    label = "a of N_opt ∝ C^a" if optimum else "exponent of L(N)"
    marks = {"Kaplan: 0.73": 0.73, "Hoffmann: 0.50": 0.50} if optimum else {}
    return [
        Picture(
            "conventions",
            figures_laws.dots(shown, label, marks),
            "<b>The same runs, counted differently.</b> Whether N holds the embeddings and the head, and "
            "C the attention and the head, moves the exponent: quote it with its convention.",
        )
    ]
