"""The tables and lists of the report: constants, runs, what was left out, how it was done."""

import math
from collections.abc import Mapping

import numpy as np

from analysis.estimate import Estimate
from analysis.laws import PF_DAY
from analysis.least_compute import LEAST
from analysis.page import definitions, safe, table
from analysis.points import LeftOut
from analysis.published import KAPLAN_LEAST, TEXT_CONSTANTS, PublishedDomain
from analysis.runs import Counting, StudyRuns
from analysis.separable import FRONTIER, POWER_CONSTANT
from analysis.study_fits import Attempt
from analysis.words import (
    parameter_in_words,
    reservation,
    scientific,
    short,
    value_with_interval,
)


def constants_table(tried: Mapping[str, Attempt], known: PublishedDomain | None) -> str:
    """Every fitted constant with its interval, beside the published one where there is one."""
    rows = []
    for attempt in tried.values():
        if attempt.fit is None:
            continue
        for name, each in attempt.fit.parameters.items():
            in_flops = name.endswith("scale") and attempt.x == "flops"
            shown = (
                value_with_interval(_scaled(each, 1 / PF_DAY))
                if in_flops
                else parameter_in_words(attempt.fit, name)
            )
            unit = _unit(name, attempt.x)
            title, short_name = constant_title(attempt, name)
            rows.append(
                (
                    title,
                    f"{short_name}{unit}",
                    shown,
                    _published(attempt, name, known),
                )
            )
    return table(("law", "constant", "fitted [95% interval]", "published"), rows)


def constants_note(tried: Mapping[str, Attempt]) -> str:
    """Which rows of the table are not to be quoted as they stand."""
    said = [
        f"{constant_title(attempt, 'exponent')[0]} ({reservation(attempt.fit)})"
        for attempt in tried.values()
        if attempt.fit is not None and reservation(attempt.fit)
    ]
    return f"<p>Not to be quoted as they stand: {safe('; '.join(said))}.</p>" if said else ""


def constant_title(attempt: Attempt, name: str) -> tuple[str, str]:
    """The law that a constant belongs to, and its name there: `params_exponent` of the frontier
    is (`N_opt(C)`, `exponent`)."""
    cost = "C_min" if attempt.name == LEAST else "C"
    for prefix, title in (("params_", "N_opt"), ("tokens_", "D_opt")):
        if name.startswith(prefix):
            return f"{title}({cost})", name.removeprefix(prefix)
    return (f"L({cost})" if attempt.name in ("frontier", LEAST) else attempt.title), name


def _unit(name: str, x: str) -> str:
    if name == "irreducible":
        return " [nats/token]"
    if name.endswith("scale"):
        return {"params": " [parameters]", "tokens": " [tokens]", "flops": " [PF-days]"}[x]
    return ""


def _published(attempt: Attempt, name: str, known: PublishedDomain | None) -> str:
    if attempt.name == LEAST:
        known = KAPLAN_LEAST if known is not None and known.domain == KAPLAN_LEAST.domain else None
    if known is not None and known.domain == "text" and attempt.law in TEXT_CONSTANTS:
        value = TEXT_CONSTANTS[attempt.law].get(name)
        return "–" if value is None else short(value)
    if known is None or attempt.law not in (POWER_CONSTANT.name, FRONTIER) or attempt.x == "tokens":
        return "–"
    row = known.loss_by_params if attempt.x == "params" else known.loss_by_flops
    values = {
        "irreducible": row.irreducible, "scale": row.scale, "exponent": row.exponent,
        "params_scale": known.params_scale, "params_exponent": known.params_exponent,
        "tokens_exponent": 1 - known.params_exponent,
    }  # fmt: skip
    return short(values[name]) if name in values else "–"


def published_note(known: PublishedDomain | None, domain: str) -> str:
    """Where the published column comes from, and why it is not a target."""
    if known is None:
        return f"Neither paper has a row for the domain {domain}."
    return (
        f"Published: {known.source}. {known.caution} Tokenisation, masking of the loss, model "
        "sizes, training length and evaluation data differ from this study: nearness of exponents "
        "is informative, equality of scales and losses is not to be expected."
    )


def runs_table(study: StudyRuns, counting: Counting) -> str:
    """One row for each usable run."""
    rows = []
    for run in study.runs:
        evaluations = run.eval_rows(counting.split)
        best = evaluations[int(np.argmin(evaluations["loss"]))]
        seconds = float(np.sum(run.train["seconds"]))
        tokens = float(evaluations["tokens"][-1])
        rows.append((
            run.run_id, short(counting.of(run)), short(tokens),
            scientific(float(evaluations["flops"][-1])),
            f"{best['loss']:.4f} ± {best['standard_error']:.4f}", int(best["step"]),
            short(seconds), short(tokens / seconds) if seconds > 0 else "–",
        ))  # fmt: skip
    header = (
        "run",
        "N",
        "tokens",
        "FLOPs (6ND)",
        "held-out loss ± s.e.",
        "at step",
        "seconds",
        "tokens/s",
    )
    return table(header, rows, tall=len(rows) > 14)


def left_out_table(attempts: Mapping[str, Attempt], study: StudyRuns) -> str:
    """Runs that no fit used, then points left out of one fit, gathered by reason."""
    rows = [("every fit", each.point, each.reason) for each in study.left_out]
    for attempt in attempts.values():
        own = attempt.found.left_out[len(study.left_out) :]
        for reason, points in _by_reason(own).items():
            shown = points[0] if len(points) == 1 else f"{len(points)} points, first {points[0]}"
            rows.append((attempt.title, shown, reason))
    if not rows:
        return "<p>Nothing: every run and every evaluation was used.</p>"
    return table(("left out of", "what", "why"), rows, tall=len(rows) > 14)


def _by_reason(left_out: tuple[LeftOut, ...]) -> dict[str, list[str]]:
    gathered: dict[str, list[str]] = {}
    for each in left_out:
        gathered.setdefault(each.reason, []).append(each.point)
    return gathered


def method_list(study: StudyRuns, counting: Counting, tried: Mapping[str, Attempt]) -> str:
    """The checklist of Li et al. 2025 (2502.18969): hypothesis, training, data, fitting."""
    return definitions(
        _hypothesis_items(tried)
        + _training_items(study)
        + _data_items(study, counting)
        + _fitting_items(study, tried)
    )


def _hypothesis_items(tried: Mapping[str, Attempt]) -> list[tuple[str, str]]:
    fits = [each.fit for each in tried.values() if each.fit is not None]
    return [
        ("hypotheses", "; ".join(dict.fromkeys(fit.formula for fit in fits)) or "none fitted"),
        ("parameters fitted", "; ".join(
            f"{each.title}: {', '.join(each.fit.parameters)}"
            for each in tried.values() if each.fit is not None) or "–"),
    ]  # fmt: skip


def _data_items(study: StudyRuns, counting: Counting) -> list[tuple[str, str]]:
    taken = f"; taken in by --include: {', '.join(counting.include)}" if counting.include else ""
    return [
        ("counting of N", f"{counting.params} parameters; every other convention in the table above"),
        ("counting of C", "6 N D with that N" if counting.flops == "6nd"
         else "exact: attention as sparse as it is, output head included"),
        ("loss", f"mean cross-entropy of the objective on the split {counting.split!r}, nats per "
         "token, at the evaluation of lowest loss; all runs share the same held-out rows, so "
         "their evaluation errors largely cancel in exponents but not in the irreducible loss"),
        ("checkpoints used", "L(N), L(D), L(N, D), isoFLOP: one for each run. Frontier, L(N, S), "
         "B_crit: every evaluation at the full learning rate after the warm-up, no smoothing"),
        ("kept out", f"{len(study.left_out)} runs: unfinished, diverged, spiking, damaged; listed "
         f"above with the reason{taken}"),
        ("raw data", "points.csv and runs.csv below"),
    ]  # fmt: skip


def _fitting_items(study: StudyRuns, tried: Mapping[str, Attempt]) -> list[tuple[str, str]]:
    fits = [each.fit for each in tried.values() if each.fit is not None]
    recipes = sorted({str(fit.bootstrap["method"]) for fit in fits})
    draws, seed = (fits[0].bootstrap[name] if fits else 0 for name in ("draws", "seed"))
    deltas = [f"{fit.objective['delta']:.2g}" for fit in fits if "delta" in fit.objective]
    return [
        ("objective", "sum of Huber losses of log residuals, delta "
         f"{', '.join(dict.fromkeys(deltas)) or '–'}. L(C): smallest mean relative gap among curves "
         "nowhere above the frontier. IsoFLOP: parabolas by least squares of log loss"),
        ("weights", "every point the same"),
        ("algorithm", "constants eliminated exactly for each exponent of a dense grid (variable "
         "projection, non-negative), then damped Newton steps with exact derivatives, delta falling "
         "in stages from 0.03"),
        ("starts", "the best point of the grid and 11 spread over it; fits.json says how many agree"),
        ("points dropped", "none for their residual: outliers stay in with bounded weight, and "
         "fits.json has both refits"),
        ("intervals", f"95%, from {draws} bootstrap fits, seed {seed} ({'; '.join(recipes) or 'none'}); "
         "of constants of few runs by profile likelihood"),
        ("extrapolation error", _holdout_text(tried)),
    ]  # fmt: skip


def _holdout_text(tried: Mapping[str, Attempt]) -> str:
    """Errors of fits to the cheaper runs on the dearer ones."""
    said = []
    for attempt in tried.values():
        splits = attempt.fit.diagnostics.get("holdout", ()) if attempt.fit is not None else ()
        if splits:
            worst = max(splits, key=lambda split: split["rms_error"])
            said.append(
                f"{attempt.title}{' of ' + worst['of'] if 'of' in worst else ''}: at most "
                f"{100 * worst['rms_error']:.2g}% over "
                f"{len(splits)} cuts, the farthest run {worst['decades_above']:.1f} decades above"
            )
    return "; ".join(said) or "not measured: too few runs to hold any out"


def _training_items(study: StudyRuns) -> list[tuple[str, str]]:
    if not study.runs:
        return []
    configs = [run.config for run in study.runs]
    counts = [run.counts for run in study.runs]
    sizes = [each["params_non_embedding"] for each in counts]

    def all_of(*path: str) -> str:
        values = []
        for config in configs:
            value: object = config
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            values.append(value)
        shown = list(dict.fromkeys(map(str, values)))
        return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")

    return [
        ("domain", f"{all_of('domain')}; context {all_of('shape', 'seq_length')}, vocabulary "
         f"{all_of('shape', 'vocab_size')}"),
        ("models", f"{len(study.runs)} runs of {len({c['params_non_embedding'] for c in counts})} sizes, "
         f"N without embeddings {short(min(sizes))} to {short(max(sizes))}"),
        ("shape family", f"{all_of('model', 'family')}; attention {all_of('model', 'attention')}"),
        ("repetition", "how often rows were met follows from the data folder, which the runs name: "
         + _data_identities(study)),
        ("optimizer", "AdamW, beta1 " + all_of("optimizer", "beta1") + ", beta2 "
         + all_of("optimizer", "beta2") + ", weight decay " + all_of("optimizer", "weight_decay")),
        ("tokens a run", ", ".join(dict.fromkeys(
            short(float(config.get("tokens", math.nan))) for config in configs))),
        ("batch", f"{all_of('batch', 'train_batch_size')} rows"),
        ("learning rate", ", ".join(dict.fromkeys(
            f"{config.get('optimizer', {}).get('learning_rate', math.nan):.3g}"
            for config in configs)) + f"; schedule {all_of('schedule', 'kind')}"),
        ("precision", all_of("precision")),
    ]  # fmt: skip


def _data_identities(study: StudyRuns) -> str:
    """The identities of the data that the runs were trained on, shortened."""
    names = [
        str(run.provenance[-1].get("data_identity", "not recorded"))[:12] for run in study.runs
    ]
    return ", ".join(dict.fromkeys(names))


def _scaled(each: Estimate, factor: float) -> Estimate:
    return Estimate(each.value * factor, each.low * factor, each.high * factor)
