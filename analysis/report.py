"""A results folder -> report.html, fits.json, tables of every number, each figure as a file; unless nothing changed.

What it depends on (every metrics.h5, the options, this package's own source) is hashed into
fits.json; if the hash is the same and the files are there, the report is up to date.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.results import METRICS_FILE
from launch.saved import EVALUATIONS

if TYPE_CHECKING:
    from analysis.findings import Finding
    from analysis.page import Picture
    from analysis.runs import Counting, StudyRuns
    from analysis.study_fits import Attempt, Convention, StudyFits
    from analysis.variants import Correction

REPORT, FITS, POINTS = "report.html", "fits.json", "points.csv"
RUNS, CONSTANTS, CONVENTIONS = "runs.csv", "constants.csv", "conventions.csv"
FIGURES = "figures"  # each of the report's figures as a file of its own, for papers and slides


def write_report(
    results: Path,
    out: Path,
    counting: "Counting",
    draws: int,
    seed: int,
    limits: Path | None = None,
    batches: Path | None = None,
) -> list[str]:
    """Write the files unless they are up to date; the lines to print. L(D) is that of the results folder `limits`, if
    given (`analysis.data_limits`), B_crit(L), which adjusts compute, that of `batches` (`analysis.least_compute`).

    Raises `ValueError` where there is nothing to report on, and, with the report written, where no run could be used.
    """
    for folder, option in (
        (results, ""),
        (limits, "--data-limits "),
        (batches, "--critical-batch "),
    ):
        if folder is not None and not folder.is_dir():
            raise ValueError(
                f"{option}{folder}: no such folder; wanted a study's results folder. Check the path, or run "
                "the study first."
            )
    digest = inputs_digest(results, counting, draws, seed)
    for name, folder in (("limits", limits), ("batches", batches)):
        if folder is not None:
            digest += f" {name} {inputs_digest(folder, counting, draws, seed)}"
    old = _up_to_date(out, digest)
    summary = (
        old["summary"]
        if old
        else _build(results, out, counting, draws, seed, digest, limits, batches)
    )
    if summary[0].startswith("0 "):
        raise ValueError(
            f"{results}: {summary[0]}; wanted at least one run to report on. {out / REPORT} says why each "
            "was left out: finish or mend them, or take them in with --include."
        )
    return [f"{out / REPORT}{' (up to date)' if old else ''}", *summary]


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
            for path in sorted((folder / EVALUATIONS).glob("*.h5")):
                digest.update(path.name.encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
        elif (folder / "config.json").exists():
            digest.update(folder.name.encode())
    return digest.hexdigest()


def _up_to_date(out: Path, digest: str) -> dict[str, Any] | None:
    try:
        old = json.loads((out / FITS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(old, dict) and old.get("digest") == digest and "summary" in old
    names = (REPORT, POINTS, RUNS, CONSTANTS, CONVENTIONS, FIGURES)
    there = all((out / name).exists() for name in names)
    return old if whole and there else None


def _build(
    results: Path, out: Path, counting: "Counting", draws: int, seed: int, digest: str,
    limits: Path | None, batches: Path | None,
) -> list[str]:  # fmt: skip
    from analysis.data_limits import data_limits
    from analysis.downloads import (
        constants_csv,
        conventions_csv,
        draws_of,
        points_csv,
        runs_csv,
    )
    from analysis.evaluations import evaluations_of
    from analysis.findings import findings
    from analysis.least_compute import LEAST, critical_batch_of, least_frontier
    from analysis.published import published
    from analysis.routes import accepted_forms, form_weights
    from analysis.runs import read_runs
    from analysis.study_fits import by_convention, fit_study
    from analysis.variants import corrections
    from analysis.views import pictures, sample_of
    from analysis.views_evaluations import evaluation_pictures, unused_table

    study = read_runs(results, counting.split, counting.include)
    fits = fit_study(study, counting, draws, seed)
    rejected = set(form_weights(fits.tried)) - set(accepted_forms(fits.tried))
    conventions = by_convention(study, counting, fits, rejected, draws, seed)
    if limits is not None:
        fits.tried["loss-by-tokens"] = data_limits(limits, study, counting, draws, seed)
        fits.not_tried.pop("L(D)", None)
    if batches is not None:
        found = critical_batch_of(batches, study, counting, draws, seed)
        fits.tried["critical-batch"] = found
        fits.tried[LEAST] = least_frontier(study, counting, found, draws, seed)
        fits.not_tried.pop("B_crit(L)", None)
    implied = findings(fits.tried, sample_of(study))
    corrected = corrections(study, counting, draws, seed)
    summary = _summary(fits.tried, study)
    files = {
        FITS: _fits_json(study, counting, fits, conventions, corrected, implied, summary, digest),
        POINTS: points_csv(study, counting),
        RUNS: runs_csv(study, counting),
        CONSTANTS: constants_csv(fits.tried),
        CONVENTIONS: conventions_csv(conventions),
    }
    evaluations = evaluations_of(study, counting)
    drawn = pictures(study, fits.tried, conventions, counting, corrected, published(_domain(study)))
    drawn += evaluation_pictures(study, counting, evaluations)
    unused = unused_table(evaluations)
    text = _html(study, fits, conventions, corrected, implied, counting, drawn, unused, files)
    (out / FIGURES).mkdir(parents=True, exist_ok=True)
    tables = {name: content for name, content in files.items() if name != FITS}
    named = draws_of(fits.tried) | {f"{FIGURES}/{each.name}.svg": each.svg for each in drawn}
    there = {*out.glob("draws-*.csv"), *(out / FIGURES).glob("*.svg")}
    for stale in there - {out / name for name in named}:
        stale.unlink()  # of a law that these runs no longer carry
    for name, content in (*tables.items(), *named.items(), (REPORT, text)):
        _write(out / name, content)
    _write(out / FITS, files[FITS])  # with the digest comes last
    return summary


def _fits_json(
    study: "StudyRuns",
    counting: "Counting",
    fits: "StudyFits",
    conventions: "list[Convention]",
    corrected: "list[Correction]",
    implied: "list[Finding]",
    summary: list[str],
    digest: str,
) -> str:
    """Every fit, what was left out and why, what follows from the fits, and the conventions."""
    from analysis import ground_truth
    from analysis.estimate import to_text
    from analysis.routes import disagreements, routes

    by_route = routes(fits.tried)
    return to_text(
        {
            "digest": digest,
            "study": _study_name(study),
            "counting": vars(counting),
            "runs_used": len(study.runs),
            "summary": summary,
            "fits": [
                {"name": a.name, "title": a.title} | a.fit.as_json()
                for a in fits.tried.values()
                if a.fit
            ],
            "not_fitted": [
                {"name": a.name, "law": a.law, "reason": a.problem}
                for a in fits.tried.values()
                if a.fit is None
            ],
            "not_tried": fits.not_tried,
            "findings": [each.as_json() for each in implied],
            "routes": {name: each.as_json() for name, each in by_route},
            "routes_disagree": disagreements(by_route),
            "conventions": [each.as_json() for each in conventions],
            "corrections": [each.as_json() for each in corrected],
            "ground_truth": ground_truth.as_json(study, counting, fits.tried),
        }
    )


def _summary(tried: dict[str, "Attempt"], study: "StudyRuns") -> list[str]:
    """The fitted exponents, for the terminal."""
    from analysis.points import TOLD
    from analysis.tables import constant_title
    from analysis.words import parameter_in_words, reservation

    lines = [f"{len(study.runs)} runs used, {len(study.left_out)} left out"]
    lines += [f"left out: {each.point}: {each.reason}" for each in study.left_out[:TOLD]]
    for attempt in tried.values():
        if attempt.fit is None:
            lines.append(f"{attempt.title}: not fitted: {attempt.problem}")
            continue
        for name in (*attempt.fit.parameters, *(n for n in attempt.fit.derived if n == "a")):
            if name.endswith("exponent") or name in ("alpha", "beta", "a"):
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
    fits: "StudyFits",
    conventions: "list[Convention]",
    corrected: "list[Correction]",
    implied: "list[Finding]",
    counting: "Counting",
    drawn: "list[Picture]",
    unused: str,
    files: dict[str, str],
) -> str:
    from analysis import ground_truth, page, sections, tables, views, views_schedule
    from analysis.published import published
    from analysis.study_fits import study_noise

    tried = fits.tried
    config = study.runs[0].config if study.runs else {}
    name, domain = _study_name(study), _domain(study)
    known, noise = published(domain), study_noise(tried)
    dark = views.dark_colours(study, tried)
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
        sections.implied(implied, tried),
        sections.counted(conventions),
        views_schedule.corrections_table(corrected),
        views_schedule.schedule_table(study, counting),
        ground_truth.section(study, counting, tried),
        "<h2>What to distrust</h2>",
        sections.doubts(tried, fits.not_tried),
        "<h2>Seed noise</h2>",
        sections.noise_text(noise, tried),
        "<h2>Runs</h2>",
        tables.runs_table(study, counting),
        "<h2>What was left out, and why</h2>",
        tables.left_out_table(tried, study),
        unused,
        "<h2>How it was measured and fitted</h2>",
        tables.method_list(study, counting, tried),
        "<h2>Every number</h2>",
        _downloads(files),
    ]
    return page.page(f"{name}: scaling laws", "\n".join(parts), dark)


def _downloads(files: dict[str, str]) -> str:
    from analysis import page

    kinds = {".json": "application/json", ".csv": "text/csv"}
    links = (page.download(name, kinds[Path(name).suffix], files[name]) for name in files)
    return (
        f'<p class="downloads">{"".join(links)}</p><p>points.csv holds the learning curves after the '
        "warm-up, with a header that <code>python -m analysis fit</code> reads; runs.csv the runs in "
        "every counting convention. Beside this page lie draws-*.csv, every bootstrap draw of each "
        "fit, and figures/*.svg, each figure by itself.</p>"
    )


def _study_name(study: "StudyRuns") -> str:
    config = study.runs[0].config if study.runs else {}
    return str(config.get("study") or study.path.name)


def _domain(study: "StudyRuns") -> str:
    config = study.runs[0].config if study.runs else {}
    return str(config.get("domain", "?"))


def _write(path: Path, content: str) -> None:
    """Files appear by rename, so that a killed report leaves none half-written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(content, encoding="utf-8")
    temporary.replace(path)
