"""The figures and tables of one ladder trained in several ways: schedules, corrections, cool-downs.

Kaplan et al. 2020, figure 22; Porian et al. 2024, table of corrections; Haegele et al. 2024 (2405.18392).
"""

from collections.abc import Sequence

import numpy as np

from analysis.estimate import Estimate
from analysis.figures_variants import branches, by_summed_rate, ladder
from analysis.guards import schedule_kind
from analysis.page import Picture, safe, table
from analysis.points import seed_noise
from analysis.runs import Counting, StudyRuns, all_points, warmup_tokens
from analysis.variants import COUNTINGS, NOTHING, Correction, Trained, in_words, schedules_compared
from analysis.words import short, value_with_interval
from launch.results import RunResult

KAPLAN_SPREAD = 0.05
"""Nats between runs of one schedule in figure 22 of Kaplan et al. 2020."""


def schedule_pictures(
    study: StudyRuns, counting: Counting, corrected: Sequence[Correction]
) -> list[Picture]:
    """All of them that the variants allow."""
    shown = _summed(study, counting) + _ladder(corrected)
    return shown + _branches(study, counting)


def _summed(study: StudyRuns, counting: Counting) -> list[Picture]:
    compared = schedules_compared(study, counting.split)
    if not compared:
        return []
    noise = seed_noise(all_points(study, counting).points)
    rows = [(each.variant, each.summed_rate, each.loss) for each in compared]
    spread = None if noise is None else noise.relative_sd
    bars = (
        "no seed was repeated, so the luck of one is not known"
        if spread is None
        else f"bars: one standard deviation between seeds, {100 * spread:.2f}%"
    )
    means = [float(each.loss.mean()) for each in compared]
    return [
        Picture(
            "schedules",
            by_summed_rate(rows, spread),
            f"<b>Schedules.</b> Final held-out loss of N = {short(counting.of(compared[0].runs[0]))} against "
            f"the summed learning rate; {bars}. The variants lie {max(means) - min(means):.3f} nats apart. "
            "Kaplan et al. 2020 (figure 22): with warm-up, a final decay and enough summed rate all end "
            f"within {KAPLAN_SPREAD} nats, the scatter between runs.",
        )
    ]


def schedule_table(study: StudyRuns, counting: Counting) -> str:
    """One row for each variant: how it was trained and where it ended; "" where none are compared."""
    compared = schedules_compared(study, counting.split)
    if not compared:
        return ""
    best = min(float(each.loss.mean()) for each in compared)
    rows = [_schedule_row(each, best) for each in sorted(compared, key=lambda one: one.loss.mean())]
    header = (
        "variant",
        "schedule",
        "warm-up [tokens]",
        "peak rate",
        "summed rate",
        "final loss",
        "above best",
    )
    note = (
        "Kaplan et al. 2020, appendix D.6: the choice of schedule matters little once the summed rate is "
        "large enough and the rate decays at the end."
    )
    return f"<h2>How it was trained</h2>{table(header, rows)}<p>{note}</p>"


def _schedule_row(each: Trained, best: float) -> tuple[str, ...]:
    run, loss = each.runs[0], float(each.loss.mean())
    spread = f" ± {each.loss.std(ddof=1):.4f}" if len(each.loss) > 1 else ""
    rate = float(run.config.get("optimizer", {}).get("learning_rate", np.nan))
    return (
        each.variant, in_words(run), short(warmup_tokens(run.config)), f"{rate:.3g}",
        f"{each.summed_rate.mean():.3g}", f"{loss:.4f}{spread}", f"{100 * (loss / best - 1):.2f}%",
    )  # fmt: skip


def _ladder(corrected: Sequence[Correction]) -> list[Picture]:
    if not any(each.is_measured for each in corrected):
        return []
    steps = [each.variant for each in corrected]
    ours = {name: [each.exponents[name] for each in corrected] for name in COUNTINGS}
    known = [each.published() for each in corrected]
    papers = {
        f"{name}, published": [row.get(name, NOTHING) for row in known]
        for name in COUNTINGS
        if any(name in row for row in known)
    }
    return [
        Picture(
            "corrections",
            ladder(steps, ours, papers),
            "<b>What moves the exponent of N_opt.</b> Each variant of the training in three ways of counting, "
            "by isoFLOP minima at budgets a factor 2 apart; 95% intervals of the noise about the isoFLOP "
            "curves, one draw for each learning curve at all its budgets; they hold no wrong form. An arrow is an "
            "open end. Hollow: Porian et al. 2024, RefinedWeb; its 0.497 and 0.505 at a constant rate "
            "are of rate, batch and beta2 tuned for each size. A mark that is missing was not "
            "measured.",
        )
    ]


def corrections_table(corrected: Sequence[Correction]) -> str:
    """The exponent of N_opt after each correction beside the published; "" where there is none."""
    if not corrected:
        return ""
    rows = []
    for each in corrected:
        known = each.published()
        shown = [_with_published(each.exponents[name], known.get(name)) for name in COUNTINGS]
        rows.append((each.variant, each.how or "as Kaplan et al.", *shown))
    header = ("variant", "trained with", *COUNTINGS)
    note = (
        "a of N_opt ∝ C^a [95% interval]; in brackets after it the value of Porian et al. 2024 (2406.19146, "
        "RefinedWeb, 5e6 to 9e8 parameters), whose last step tunes rate, batch and beta2 for each size. A "
        "dash: not measured."
    )
    problems = [
        f"<p>Not measured for {safe(each.variant)}: {safe(each.problem)}</p>"
        for each in corrected
        if each.problem
    ]
    return f"<h2>Corrections, one by one</h2>{table(header, rows)}<p>{note}</p>{''.join(problems)}"


def _with_published(own: Estimate, known: Estimate | None) -> str:
    said = value_with_interval(own) if np.isfinite(own.value) else "–"
    return said if known is None else f"{said} (published {known.value:.3f})"


def _branches(study: StudyRuns, counting: Counting) -> list[Picture]:
    """Cool-downs from one run at a constant rate beside runs whose cosine was planned for each length."""
    ends: dict[str, list[tuple[float, float, float]]] = {"wsd": [], "cosine": []}
    for run in study.runs:
        kind = schedule_kind(run)
        if kind in ends:
            last = run.eval_rows(counting.split)[-1]
            ends[kind].append((counting.of(run), float(last["tokens"]), float(last["loss"])))
    wsd, cosine = ({each[:2]: each[2] for each in ends[kind]} for kind in ("wsd", "cosine"))
    both = sorted(set(wsd) & set(cosine))
    if len(both) < 2:
        return []
    off = np.array([100 * (wsd[each] / cosine[each] - 1) for each in both])
    trunks = [
        _along(run, counting)
        for run in study.runs
        if schedule_kind(run) == "wsd" and not run.config.get("trunk")
    ]
    rows = [
        (name, np.array([each[1] for each in both]), np.array([known[each] for each in both]))
        for name, known in (
            ("cool-down of the constant rate", wsd),
            ("cosine of that length", cosine),
        )
    ]
    return [
        Picture(
            "cool-downs",
            branches(trunks, rows),
            f"<b>Cool-downs against matched cosines.</b> At {len(both)} lengths and sizes the cool-down ends "
            f"{off.mean():+.2f}% from the cosine (from {off.min():+.2f}% to {off.max():+.2f}%). Haegele et al. "
            "2024: a cool-down over 20% of the steps equals the cosine, for about half of the compute of "
            "separate runs.",
        )
    ]


def _along(run: RunResult, counting: Counting) -> tuple[str, np.ndarray, np.ndarray]:
    table_of = run.eval_rows(counting.split)
    after = table_of["tokens"] >= max(warmup_tokens(run.config), 1)
    return run.run_id, table_of["tokens"][after].astype(float), table_of["loss"][after]
