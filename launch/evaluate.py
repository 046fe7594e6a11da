"""`launch evaluate`: the loss of saved models on any dataset of their vocabulary and context.

Many checkpoints share one process: its start-up is paid once, and checkpoints of one shape the model
too. Results go into each run's folder, RUN/evaluations/, or all into the file that --out names.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.dataset import TokenDataset
from launch.batches import evaluation_rows
from launch.checkpoint_files import CHECKPOINTS, DESCRIPTION, newest_path, step_name, verify
from launch.config import CONFIG_FILE, RunConfig, load_config
from launch.console import first_rank, say
from launch.engine import start_process
from launch.evaluation import (
    PERCENTILES,
    DocumentSums,
    evaluate,
    evaluation_table,
    folded_means,
    improvements,
    percentiles,
    position_means,
)
from launch.evaluation_file import Add, writing
from launch.trained_model import TrainedModel
from megatron_ext.loss import LossSums

EVALUATIONS = "evaluations"
SHOWN = 10  # documents that improved most, and least (Henighan et al. 2020, Figure 20)
KINDS = np.dtype(
    [("kind", "S16"), ("loss", "f8"), ("standard_error", "f8"), ("num_tokens", "i8")]
)  # fmt: skip
IMPROVED = np.dtype([("row", "i8"), ("start", "i8"), ("difference", "f8"), ("ratio", "f8")])


@dataclass(frozen=True)
class Saved:
    """A checkpoint to evaluate: where it is, of which run's folder, how that run was configured."""

    path: Path
    run: Path
    config: RunConfig

    @property
    def name(self) -> str:
        return f"{self.run.name}/{self.path.name}"


def evaluate_all(
    sources: Sequence[Path], data: Path, split: str, rows: int | None, out: Path | None
) -> list[str]:
    """Evaluate every source (a run folder: its newest checkpoint; or a checkpoint) on one split.

    `rows`: how many, chosen as in training; None for all. Returns the lines to print. Raises
    `ValueError` for whatever does not fit, before anything is computed where that can be known.
    """
    if rows is not None and rows < 1:
        raise ValueError(f"--rows {rows}: wanted a whole number of at least 1. Omit it for all.")
    if out is not None and out.is_dir():
        raise ValueError(f"--out {out}: this is a folder; wanted a file. Name a file in it.")
    dataset = TokenDataset(data, split)
    checkpoints = [_find(source) for source in sources]
    _refuse_twice(checkpoints)
    for saved in checkpoints:
        _refuse_other_tokens(saved, dataset, data)
    chosen = evaluation_rows(dataset, dataset.num_rows if rows is None else rows)
    first, last = checkpoints[0], checkpoints[-1]
    lines, before, compared = [], None, None
    with contextlib.ExitStack() as opened:
        add = opened.enter_context(writing(out)) if out and first_rank() else None
        for saved, sums, documents in _losses(checkpoints, dataset, chosen):
            content = _content(saved, sums, documents, dataset, chosen)
            before = before or content  # of the others nothing is kept
            if saved is last is not first:
                content["improved"] = compared = _compare(before, content)
            target = out or _own_file(saved, dataset)
            if first_rank():
                _write(add, target, saved.name, content)
            lines.append(_line(saved, content, len(chosen), split, target))
            say(lines[-1])
    if compared is not None:
        lines += _improvement_lines(first.name, last.name, compared)
    return lines


def _write(add: Add | None, target: Path, name: str, content: dict[str, Any]) -> None:
    """Into the file that is open, or into one of its own."""
    if add:
        add(name, content)
        return
    with writing(target) as add_alone:
        add_alone(name, content)


def _line(saved: Saved, content: dict[str, Any], rows: int, split: str, target: Path) -> str:
    found = content["attributes"]
    return (
        f"{saved.name}: {found['loss']:.6f} +- {found['standard_error']:.6f} nats per token on "
        f"{rows} rows of {split} -> {target}"
    )


# --- what there is to evaluate


def _find(source: Path) -> Saved:
    path = source if (source / DESCRIPTION).is_file() else newest_path(source)
    if path is None:
        found = "no checkpoint in it" if source.is_dir() else "no such folder"
        raise ValueError(
            f"{source}: {found}; wanted a run's folder, or one of its {CHECKPOINTS}/{step_name(0)[:-1]}<n>. Check "
            "the path; of an exported model make a checkpoint with `launch reshard` first."
        )
    verify(path)
    run = path.parent.parent if path.parent.name == CHECKPOINTS else path.parent
    config = load_config(path if (path / CONFIG_FILE).exists() else run)
    return Saved(path, run.resolve(), config)


def _refuse_twice(checkpoints: Sequence[Saved]) -> None:
    names = [saved.name for saved in checkpoints]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(
            f"{twice}: named {names.count(twice)} times; wanted each checkpoint once, by the names of its run's folder "
            "and its own. Name it once, or rename one of the folders."
        )


def _refuse_other_tokens(saved: Saved, dataset: TokenDataset, data: Path) -> None:
    shape, here = saved.config.shape, dataset.domain
    if (here.vocab_size, here.seq_length) != (shape.vocab_size, shape.seq_length):
        raise ValueError(
            f"{data}: domain {here.name} has a vocabulary of {here.vocab_size} and rows of {here.seq_length} tokens; "
            f"wanted {shape.vocab_size} and {shape.seq_length}, as in {saved.config.domain}, which {saved.path} was "
            "trained on. Give --data a dataset that is tokenised the same way."
        )


# --- evaluating


def _losses(
    checkpoints: Sequence[Saved], dataset: TokenDataset, rows: np.ndarray
) -> Iterator[tuple[Saved, LossSums, DocumentSums]]:
    device = start_process()
    model: TrainedModel | None = None
    for saved in checkpoints:
        if model is None or not model.fits(saved.config):
            model = None  # its memory first
            model = TrainedModel(saved.config, device)
        model.load(saved.path)
        documents = DocumentSums.of(dataset, rows, device)
        sums = evaluate(model, dataset, rows, documents)
        if not sums.count_R.any():
            raise ValueError(
                f"split {dataset.split!r} of domain {dataset.domain.name}: none of {len(rows)} rows holds a token that "
                "counts in the loss; wanted at least one. Raise --rows, or give another dataset."
            )
        yield saved, sums, documents


def _content(
    saved: Saved,
    sums: LossSums,
    documents: DocumentSums,
    dataset: TokenDataset,
    rows: np.ndarray,
) -> dict[str, Any]:
    """One group of `launch.evaluation_file`."""
    table = evaluation_table(sums, dataset)
    objective = {name: table[0][name] for name in ("loss", "standard_error", "num_tokens")}
    loss_sum, count = (each.cpu().numpy() for each in (documents.loss_sum, documents.count))
    position, position_count = position_means(sums)
    quantiles = np.column_stack([PERCENTILES, percentiles(loss_sum, count)])
    return {
        "attributes": {
            **objective,
            "domain": dataset.domain.name,
            "split": dataset.split,
            "data_identity": dataset.identity,
            "checkpoint": str(saved.path),
            "step": int(saved.path.name.rpartition("-")[2]),
        },
        "kinds": np.array(
            [tuple(_bytes(row[n]) for n in KINDS.names or ()) for row in table], KINDS
        ),
        "position/loss": position,
        "position/count": position_count,
        **{f"grid/{name}": values for name, values in folded_means(sums, dataset.domain).items()},
        "documents/row": rows[documents.row],
        "documents/start": documents.start,
        "documents/loss_sum": loss_sum,
        "documents/count": count.astype(np.int64),
        "percentiles": quantiles,
    }


def _bytes(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value


def _own_file(saved: Saved, dataset: TokenDataset) -> Path:
    """In the run's folder, by what was evaluated on what."""
    name = f"{saved.path.name}-{dataset.domain.name}-{dataset.split}-{dataset.identity[:8]}.h5"
    return saved.run / EVALUATIONS / name


# --- two checkpoints beside each other


def _compare(before: dict[str, Any], after: dict[str, Any]) -> np.ndarray:
    """Row and start in it, difference and ratio of every document, in the order of rows."""
    pairs = [(each["documents/loss_sum"], each["documents/count"]) for each in (before, after)]
    found = improvements(*pairs)
    table = np.empty(len(found["ratio"]), IMPROVED)
    for name in ("row", "start"):
        table[name] = after[f"documents/{name}"]
    for name, values in found.items():
        table[name] = values
    return table


def _improvement_lines(first: str, last: str, table: np.ndarray) -> list[str]:
    known = table[np.isfinite(table["difference"])]
    lines = [f"from {first} to {last}, by document (row:first token):"]
    for name, unit in (("difference", " nats per token"), ("ratio", "")):
        order = known[np.argsort(known[name], kind="stable")]
        for what, rows in (("most", order[::-1][:SHOWN]), ("least", order[:SHOWN])):
            listed = ", ".join(f"{row['row']}:{row['start']} ({row[name]:.3f})" for row in rows)
            lines.append(f"  improved {what} by {name}{unit}: {listed}")
    return lines
