"""A results folder -> report.html, fits.json and points.csv. Does nothing if nothing changed.

What it depends on (every metrics.h5, the options, this package's own source) is hashed into
fits.json; if the hash is the same and the files are there, the report is up to date.
"""

import csv
import hashlib
import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.results import METRICS_FILE

if TYPE_CHECKING:
    from analysis.runs import Counting, StudyRuns
    from analysis.study_fits import Attempt

REPORT, FITS, POINTS = "report.html", "fits.json", "points.csv"


def write_report(
    results: Path, out: Path, counting: "Counting", draws: int, seed: int
) -> list[str]:
    """Write the three files unless they are up to date; the lines to print."""
    if not results.is_dir():
        raise ValueError(
            f"{results}: no such folder; wanted a study's results folder. Check the path, or run "
            "the study first."
        )
    digest = inputs_digest(results, counting, draws, seed)
    old = _up_to_date(out, digest)
    if old is not None:
        return [f"{out / REPORT} (up to date)", *old["summary"]]
    return _build(results, out, counting, draws, seed, digest)


def inputs_digest(results: Path, counting: "Counting", draws: int, seed: int) -> str:
    """sha256 of all that the report is made from."""
    digest = hashlib.sha256(repr((counting, draws, seed, results.name)).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        metrics = folder / METRICS_FILE
        if metrics.is_file():
            digest.update(folder.name.encode())
            digest.update(hashlib.sha256(metrics.read_bytes()).digest())
        elif (folder / "config.json").exists():
            digest.update(folder.name.encode())
    return digest.hexdigest()


def _up_to_date(out: Path, digest: str) -> dict[str, Any] | None:
    try:
        old = json.loads((out / FITS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(old, dict) and old.get("digest") == digest and "summary" in old
    return old if whole and (out / REPORT).exists() and (out / POINTS).exists() else None


def _build(
    results: Path, out: Path, counting: "Counting", draws: int, seed: int, digest: str
) -> list[str]:
    from analysis.estimate import to_text
    from analysis.runs import read_runs
    from analysis.study_fits import fit_study

    study = read_runs(results, counting.split)
    tried = fit_study(study, counting, draws, seed)
    summary = _summary(tried, study)
    fits = to_text(
        {
            "digest": digest,
            "study": _study_name(study),
            "counting": vars(counting),
            "runs_used": len(study.runs),
            "summary": summary,
            "fits": [{"name": a.name} | a.fit.as_json() for a in tried.values() if a.fit],
            "not_fitted": [
                {"name": a.name, "law": a.law, "reason": a.problem}
                for a in tried.values()
                if a.fit is None
            ],
        }
    )
    points = points_csv(study, counting)
    text = _html(study, tried, counting, fits, points)
    out.mkdir(parents=True, exist_ok=True)
    for name, content in ((REPORT, text), (POINTS, points), (FITS, fits)):  # the digest comes last
        _write(out / name, content)
    return [str(out / REPORT), *summary]


def _summary(tried: dict[str, "Attempt"], study: "StudyRuns") -> list[str]:
    """The fitted exponents, for the terminal."""
    from analysis.tables import constant_title
    from analysis.words import parameter_in_words, reservation

    lines = [f"{len(study.runs)} runs used, {len(study.left_out)} left out"]
    for attempt in tried.values():
        if attempt.fit is None:
            lines.append(f"{attempt.title}: not fitted: {attempt.problem}")
            continue
        for name in attempt.fit.parameters:
            if name.endswith("exponent"):
                title, shown = constant_title(attempt, name)
                but = reservation(attempt.fit) if name == "exponent" else ""
                number = parameter_in_words(attempt.fit, name)
                lines.append(f"{title}: {shown} {number}{but and f', {but}'}")
        names = [text.partition(":")[0] for text in attempt.fit.warnings]
        if names:
            lines.append(f"{attempt.title}: warnings: {', '.join(dict.fromkeys(names))}")
    return lines


def _html(
    study: "StudyRuns",
    tried: dict[str, "Attempt"],
    counting: "Counting",
    fits: str,
    points: str,
) -> str:
    from analysis import page, sections, tables, views
    from analysis.published import published
    from analysis.study_fits import study_noise

    config = study.runs[0].config if study.runs else {}
    name, domain = _study_name(study), str(config.get("domain", "?"))
    known, noise = published(domain), study_noise(tried)
    dark = views.dark_colours(tried)
    drawn = views.pictures(study, tried, counting, known)
    question = str(config.get("question") or f"What does the study {name} show?")
    parts = [
        f'<p class="eyebrow">Scaling study {page.safe(name)} · {page.safe(domain)} · '
        f"{len(study.runs)} runs</p><h1>{page.safe(question)}</h1>",
        f'<p class="answer">{page.raised(sections.answer(tried))}</p>',
        sections.cards(tried, noise),
        "<h2>What was measured</h2>" if drawn else "",
        f'<div class="figures">{"".join(page.figure(each, dark) for each in drawn)}</div>',
        "<h2>What so small a study can show</h2>",
        sections.limits_text(study, tried, noise),
        "<h2>Fitted constants</h2>",
        tables.constants_table(tried, known),
        tables.constants_note(tried),
        f"<p>{page.safe(tables.published_note(known, domain))}</p>",
        "<h2>What to distrust</h2>",
        sections.doubts(tried),
        "<h2>Seed noise</h2>",
        sections.noise_text(noise, tried),
        "<h2>Runs</h2>",
        tables.runs_table(study, counting),
        "<h2>What was left out, and why</h2>",
        tables.left_out_table(tried, study),
        "<h2>How it was measured and fitted</h2>",
        tables.method_list(study, counting, tried),
        "<h2>Every number</h2>",
        f'<p class="downloads">{page.download(FITS, "application/json", fits)}'
        f"{page.download(POINTS, 'text/csv', points)}</p>",
        "<p>points.csv holds the learning curves after the warm-up, with a header that "
        "<code>python -m analysis fit</code> reads.</p>",
    ]
    return page.page(f"{name}: scaling laws", "\n".join(parts), dark)


def points_csv(study: "StudyRuns", counting: "Counting") -> str:
    """Learning curves after the warm-up, in the columns that `fit` and `predict` read."""
    from analysis.runs import curve_points

    points = curve_points(study, counting).points
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("params", "tokens", "flops", "loss", "group"))
    columns = (points.params, points.tokens, points.flops, points.loss)
    for row in zip(*(column.tolist() for column in columns), points.group, strict=True):
        writer.writerow((*(f"{value:.10g}" for value in row[:-1]), row[-1]))
    return text.getvalue()


def _study_name(study: "StudyRuns") -> str:
    config = study.runs[0].config if study.runs else {}
    return str(config.get("study") or study.path.name)


def _write(path: Path, content: str) -> None:
    """Files appear by rename, so that a killed report leaves none half-written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(content, encoding="utf-8")
    temporary.replace(path)
