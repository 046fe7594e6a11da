"""The papers' experiments in small, raw files to figures: `python -m benchmarks.experiments --work DIR [STUDY ...]`.

Takes every study of experiments.toml, beside this file, or those named: makes its data if they are not there,
trains, evaluates, writes the report, by the commands that a user would type, each printed first. Then a Markdown row of
each: runs, minutes of training, lowest held-out losses by N. `--docs` copies the figures of docs/results.md to
docs/figures. What is done is found done, so it can be killed and goes on. Raw files are those of SAMPLE_DATA
(docs/data.md). Some hours of one core: two processes may have half of the studies each, those that start from others'
weights or take others' laws in the list of these.
"""

import argparse
import glob
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from analysis.runs import read_runs

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "docs" / "figures"


def main(words: list[str] | None = None) -> None:
    """Do what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of data sets and results")
    parser.add_argument("--docs", action="store_true", help="copy the figures to docs/figures")
    parser.add_argument(
        "--table", action="store_true", help="print the rows of what is trained, no more"
    )
    parser.add_argument("study", nargs="*", help="default: all")
    options = parser.parse_args(words)
    plan = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    chosen = [
        each for each in plan["experiment"] if each["study"] in (options.study or [each["study"]])
    ]
    unknown = set(options.study) - {each["study"] for each in chosen}
    if unknown:
        parser.error(f"no such study in experiments.toml: {', '.join(sorted(unknown))}")
    work = options.work.resolve()  # the commands run in the checkout
    results = work / "results"
    if not options.table:
        for each in chosen:
            run_experiment(each, plan["data"], work, options.docs)
    print(
        "| study | runs | minutes of training | lowest held-out loss, nats a token |\n|---|---:|---:|---|"
    )
    for each in chosen:
        if (results / each["study"]).is_dir():
            print(row(results / each["study"]), flush=True)


def run_experiment(
    experiment: dict[str, Any], data: dict[str, Any], work: Path, docs: bool
) -> None:
    """Data, training, evaluations, report and figures of one study."""
    name = experiment["study"]
    results = work / "results"
    places = {"data": work / "data", "results": results}
    for need in (experiment["data"], *experiment.get("needs", ())):
        make_data(need, data, work)
    dataset = work / "data" / experiment["data"]
    do(f"launch run launch/studies/{name}.toml --data {dataset} --results {results}")
    runs = sorted(path.parent for path in (results / name).glob("*/metrics.h5"))
    for words in experiment.get("evaluate", ()):
        do(words.format(**places, runs="{runs}"), runs)
    do(f"analysis report {results / name} --out {results / name} {experiment.get('report', '--include mid-schedule')}"
       .format(**places))  # fmt: skip
    for figure in experiment.get("figures", ()) if docs else ():
        shutil.copy(results / name / "figures" / f"{figure}.svg", FIGURES / f"{name}-{figure}.svg")


def make_data(name: str, data: dict[str, Any], work: Path) -> None:
    """A data set (or tokenizer, or codebook) and those that it needs, unless they are there."""
    out = work / "data" / name
    if out.is_file() or (out / "manifest.json").exists():
        return
    recipe = data[name]
    out.parent.mkdir(parents=True, exist_ok=True)
    for need in recipe.get("needs", ()):
        make_data(need, data, work)
    texts = work / "raw" / name
    if "texts" in recipe:
        texts.mkdir(parents=True, exist_ok=True)
        stdlib = sysconfig.get_path("stdlib")
        for path in map(Path, glob.glob(recipe["texts"].format(stdlib=stdlib))):
            if not path.is_symlink():
                shutil.copy(path, texts / f"{path.name}.txt")
    raw = os.environ.get("SAMPLE_DATA")
    if "{raw}" in str(recipe["commands"]) and not raw:
        sys.exit(
            f"{name}: SAMPLE_DATA is not set; wanted the folder of sample files (docs/data.md)"
        )
    for words in recipe["commands"]:
        do(words.format(raw=raw, data=work / "data", out=out, texts=texts))


def do(words: str, runs: Iterable[Path] = ()) -> None:
    """Run a command of the project, printed first; {runs} stands for each of `runs`, with what follows it."""
    command: list[str] = []
    for word in shlex.split(words):
        if word.startswith("{runs}"):
            tail = word.removeprefix("{runs}")
            found = (sorted(glob.glob(glob.escape(str(run)) + tail)) for run in runs)
            command += [path for paths in found for path in paths]
        else:
            command.append(word)
    print(f"python -m {words}", flush=True)
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True)


def row(results: Path) -> str:
    """A Markdown row: the lowest held-out loss of each run, by variant, smallest model first."""
    study = read_runs(results, "valid", ())
    minutes = sum(float(np.sum(run.train["seconds"])) for run in study.runs) / 60
    by_variant: dict[str, list[tuple[int, float, float]]] = {}
    for run in study.runs:
        table = run.eval_rows("valid")
        best = table[int(np.argmin(table["loss"]))]
        size = int(run.counts["params_non_embedding"])
        by_variant.setdefault(str(run.config.get("variant") or ""), []).append(
            (size, float(best["loss"]), float(best["standard_error"]))
        )
    texts = []
    for variant, found in by_variant.items():
        losses = ", ".join(
            f"{loss:.3f} ± {error:.3f} (N = {size:,})" for size, loss, error in sorted(found)
        )
        texts.append(f"{variant}: {losses}" if variant else losses)
    return f"| `{results.name}` | {len(study.runs)} | {minutes:.0f} | {'; '.join(texts)} |"


if __name__ == "__main__":
    main()
