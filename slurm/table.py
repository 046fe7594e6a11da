"""How `StudyStatus` looks to people: the table, and below it what kept runs from finishing."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from rich.table import Table

from slurm.status import RunStatus, StudyStatus

COLUMNS = ("run", "state", "N", "step", "batch loss", "tokens/s", "left", "tries")
WORDS = 2  # columns of words, which begin at the left; numbers end at the right


def as_text(status: StudyStatus) -> list[str]:
    """One line for each run and stage, below one of titles. Rich would take a second for 500 runs."""
    rows = [COLUMNS, *_rows(status)]
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if index < WORDS else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def as_table(status: StudyStatus) -> Table:
    """The same for rich, which draws it anew in its place."""
    table = Table(box=None, pad_edge=False)
    for index, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if index < WORDS else "right", no_wrap=True)
    for row in _rows(status):
        table.add_row(*row)
    return table


def _rows(status: StudyStatus) -> Iterator[tuple[str, ...]]:
    """The causes are not in it: they are long (`causes`)."""
    for run in status.runs:
        yield (
            run.run_id,
            run.state + (f" ({run.reason})" if run.reason else ""),
            f"{run.params:.3g}",
            f"{run.step:,}/{run.steps:,}",
            _or_dash(run.loss, ".4f"),
            _or_dash(run.tokens_per_second, ",.0f"),
            duration(run.eta_seconds) if run.state == "running" else "",
            str(run.attempts) if run.attempts > 1 else "",
        )
    for stage in status.stages:
        yield stage.name, stage.state + (f" ({stage.reason})" if stage.reason else "")


def causes(status: StudyStatus) -> list[str]:
    """One line for each thing that kept runs from finishing - the runs, what, and where to look - and
    below it the last lines of the log."""
    grouped: dict[tuple[str, str, str | None], list[RunStatus]] = defaultdict(list)
    for run in status.runs:
        if run.cause:
            grouped[run.state, run.cause, run.log].append(run)
    lines = []
    for (state, cause, log), runs in grouped.items():
        names = ", ".join(run.run_id for run in runs)
        lines.append(f"{state}: {names}: {cause}" + (f" (log: {log})" if log else ""))
        lines += [f"    | {line}" for line in runs[0].log_lines if line not in cause]
    for stage in status.stages:
        if stage.cause:
            where = f" (log: {stage.log})" if stage.log else ""
            lines.append(f"{stage.state}: {stage.name}: {stage.cause}{where}")
    return lines


def summary(runs: Sequence[RunStatus]) -> str:
    """'500 runs: 480 finished, 20 running'."""
    counts: dict[str, int] = defaultdict(int)
    for run in runs:
        counts[run.state] += 1
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    return f"{len(runs)} runs: {states}"


def duration(seconds: float | None) -> str:
    """65 -> '1:05', 3700 -> '1:01:40'."""
    if seconds is None:
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
