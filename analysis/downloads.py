"""Every number of a report as CSV: points, runs, constants, conventions, bootstrap draws."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from analysis.estimate import draws_csv
from analysis.guards import MID_SCHEDULE, REPEATED
from analysis.runs import PARAM_COUNTS, Counting, StudyRuns, curve_points
from analysis.study_fits import Attempt, Convention


def with_mid_schedule(counting: Counting) -> Counting:
    """The same counting, with evaluations on the way down of a decaying rate, and in later passes over
    the data, taken in."""
    return replace(counting, include=tuple(sorted({*counting.include, MID_SCHEDULE, REPEATED})))


def points_csv(study: StudyRuns, counting: Counting) -> str:
    """Learning curves after the warm-up, in the columns that `fit` and `predict` read; what laws of
    learning curves leave out says so in `status`."""
    every = curve_points(study, with_mid_schedule(counting)).points
    left_out = curve_points(study, counting).left_out
    status = {each.point: each.reason.partition(":")[0] for each in left_out}
    names = ("params", "tokens", "flops", "loss", "steps", "batch")
    rows = zip(*(every.x(name).tolist() for name in names), every.group, every.label, strict=True)
    return _csv(
        (*names, "group", "status"),
        ((*values, group, status.get(label, "")) for *values, group, label in rows),
    )


def runs_csv(study: StudyRuns, counting: Counting) -> str:
    """One row for each usable run, in every counting convention."""
    header = ("run", *PARAM_COUNTS.values(), "tokens", "flops_6nd", "flops_exact", "loss",
              "standard_error", "at_step", "last_loss", "seed", "seconds")  # fmt: skip
    rows = []
    for run in study.runs:
        table = run.eval_rows(counting.split)
        best, last = table[int(np.argmin(table["loss"]))], table[-1]
        rows.append((
            run.run_id, *(run.counts[name] for name in PARAM_COUNTS.values()),
            float(last["tokens"]), float(last["flops"]), float(last["flops_exact"]),
            float(best["loss"]), float(best["standard_error"]), int(best["step"]),
            float(last["loss"]), run.config.get("seed", ""), float(np.sum(run.train["seconds"])),
        ))  # fmt: skip
    return _csv(header, rows)


def constants_csv(tried: Mapping[str, Attempt]) -> str:
    """Every constant and what follows from it at the ends of the data, with its interval."""
    rows = [
        (each.name, each.law, name, one.value, one.low, one.high)
        for each in tried.values()
        if each.fit is not None
        for name, one in (*each.fit.parameters.items(), *each.fit.derived.items())
    ]
    return _csv(("fit", "law", "constant", "value", "low", "high"), rows)


def conventions_csv(rows: Sequence[Convention]) -> str:
    """Every exponent in every counting convention."""
    names = ("law", "exponent", "params", "flops", "value", "low", "high")
    return _csv(names, (tuple(getattr(each, name) for name in names) for each in rows))


def draws_of(tried: Mapping[str, Attempt]) -> dict[str, str]:
    """File name -> every bootstrap draw of one fit."""
    return {
        f"draws-{each.name}.csv": draws_csv(each.fit)
        for each in tried.values()
        if each.fit is not None and any(len(values) for values in each.fit.draws.values())
    }


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow(f"{cell:.10g}" if isinstance(cell, float) else cell for cell in row)
    return text.getvalue()
