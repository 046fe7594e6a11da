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
from launch.batches import evaluation_rows, refuse_other_classes
from launch.console import first_rank, say
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
from launch.evaluation_file import LOSSES, Add, writing
from launch.folder import data_identity
from launch.information import (
    direction,
    given_sums,
    in_words,
    information,
    known_information,
    worth_in_words,
)
from launch.saved import EVALUATIONS, Saved, find_saved, refuse_other_tokens
from launch.trained_model import TrainedModel, trained_models
from megatron_ext.loss import LossSums

SHOWN = 10  # documents that improved most, and least (Henighan et al. 2020, Figure 20)
KINDS = np.dtype(
    [("kind", "S16"), ("loss", "f8"), ("standard_error", "f8"), ("num_tokens", "i8")]
)  # fmt: skip
IMPROVED = np.dtype([("row", "i8"), ("start", "i8"), ("difference", "f8"), ("ratio", "f8")])


@dataclass(frozen=True)
class Asked:
    """What every checkpoint is evaluated on: rows of one split of the dataset in the folder `data`."""

    data: Path
    dataset: TokenDataset
    rows: np.ndarray
    told: bool  # also what one part of a pair tells of the other


def evaluate_all(
    sources: Sequence[Path],
    data: Path,
    split: str,
    rows: int | None,
    out: Path | None,
    *,
    told: bool = False,
    missing: bool = False,
) -> list[str]:
    """Evaluate every source (a run folder: its newest checkpoint; or a checkpoint) on one split.

    `rows`: how many, chosen as in training; None for all. `told`: also what one part of a pair tells of the other
    (`launch.information`). `missing`: pass over what is in the run folders already. Returns the lines to print.
    Raises `ValueError` for whatever does not fit, before anything is computed where that can be known.
    """
    if rows is not None and rows < 1:
        raise ValueError(f"--rows {rows}: wanted a whole number of at least 1. Omit it for all.")
    if out is not None and out.is_dir():
        raise ValueError(f"--out {out}: this is a folder; wanted a file. Name a file in it.")
    if out is not None and missing:
        raise ValueError(
            f"--out {out} --missing: wanted one of the two, for a file is written whole. Leave one out."
        )
    dataset = TokenDataset(data, split)
    checkpoints = _in_order(find_saved(sources))
    for saved in checkpoints:
        refuse_other_tokens(saved, dataset, data)
        refuse_other_classes(dataset, data, saved.config)
        if told:
            direction(dataset.domain.name, saved.config.domain, saved.path)
    chosen = evaluation_rows(dataset, dataset.num_rows if rows is None else rows)
    asked = Asked(data, dataset, chosen, told)
    first, last = checkpoints[0], checkpoints[-1]
    there = [missing and _own_file(each, dataset, rows, told).exists() for each in checkpoints]
    wanted = _without(checkpoints, there)
    lines, before, compared = [], None, None
    with contextlib.ExitStack() as opened:
        add = opened.enter_context(writing(out)) if out and first_rank() else None
        for saved, content in _contents(wanted, asked):
            before = content if saved is first else before  # of the others nothing is kept
            if before and saved is last is not first:
                content["improved"] = compared = _compare(before, content)
            target = out or _own_file(saved, dataset, rows, told)
            if first_rank():
                _write(add, target, saved.name, content)
            found = [_line(saved, content, len(chosen), split, target)]
            if "information" in content:
                found += in_words(content["information"], content["attributes"])
            lines += found
            say("\n".join(found))
    if compared is not None:
        lines += _improvement_lines(first.name, last.name, compared, f"{data} --split {split}")
    return lines


def _in_order(checkpoints: list[Saved]) -> list[Saved]:
    """Two as they were named; more by size and step, as the names of their folders do not sort them."""
    if len(checkpoints) <= 2:
        return checkpoints
    return sorted(checkpoints, key=lambda each: (each.config.shape.params_non_embedding, each.step))


def _without(checkpoints: Sequence[Saved], there: Sequence[bool]) -> list[Saved]:
    """Those whose results are not `there`. The last one's compare it with the first, which they need."""
    left = [
        saved
        for saved, done in zip(checkpoints, there, strict=True)
        if not done or (saved is checkpoints[0] and not there[-1])
    ]
    if len(left) < len(checkpoints):
        say(f"{len(checkpoints) - len(left)} of {len(checkpoints)} are evaluated already")
    return left


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


# --- evaluating


def _contents(checkpoints: Sequence[Saved], asked: Asked) -> Iterator[tuple[Saved, dict[str, Any]]]:
    """Each checkpoint and its group of `launch.evaluation_file`."""
    for saved, model in trained_models(checkpoints):
        yield saved, _content(saved, model, asked)


def _content(saved: Saved, model: TrainedModel, asked: Asked) -> dict[str, Any]:
    dataset, rows = asked.dataset, asked.rows
    packed = DocumentSums.of(dataset, rows, model.device) if dataset.domain.packed else None
    direct = None
    if asked.told:
        direct = direction(dataset.domain.name, saved.config.domain, saved.path)
    given = given_sums(dataset, direct, len(rows), model.device) if direct else {}
    sums = evaluate(model, dataset, rows, *([packed] if packed else []), *given.values())
    if not sums.count_R.any():
        raise ValueError(
            f"split {dataset.split!r} of domain {dataset.domain.name}: none of {len(rows)} rows holds a token that "
            "counts in the loss; wanted at least one. Raise --rows, or give another dataset."
        )
    documents = packed or DocumentSums.of_rows(sums, dataset.domain.seq_length)
    content = _measured(saved, sums, documents, dataset, rows)
    content["attributes"]["data"] = asked.data.resolve().name
    content["attributes"]["own_data"] = _own_data(saved, asked.data)
    if direct:
        table, loss, count = information(model, dataset, rows, direct, given)
        blanked = saved.config.data.blanked
        content["information"] = table
        content["attributes"] |= known_information(asked.data) | {
            "trained_on_blanks": blanked is not None and blanked.part == direct.blanked
        }
        if direct.gain_of == "text":
            told = float(table["mutual_information"][0])
            content["attributes"] |= worth_in_words(asked.data, dataset, rows, told, loss, count)
    return content


def _measured(
    saved: Saved,
    sums: LossSums,
    documents: DocumentSums,
    dataset: TokenDataset,
    rows: np.ndarray,
) -> dict[str, Any]:
    """The losses, by kind, position and document."""
    table = evaluation_table(sums, dataset)
    objective = {name: table[0][name] for name in ("loss", "standard_error", "num_tokens")}
    loss_sum, count = (each.cpu().numpy() for each in (documents.loss_sum, documents.count))
    position, position_count = position_means(sums)
    quantiles = np.column_stack([PERCENTILES, percentiles(loss_sum, count)])
    return {
        "attributes": {
            "kind": LOSSES,
            **objective,
            "domain": dataset.domain.name,
            "split": dataset.split,
            "data_identity": dataset.identity,
            "checkpoint": str(saved.path),
            "step": saved.step,
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


def _own_data(saved: Saved, data: Path) -> bool:
    """Whether the folder holds the data that the run was trained and judged on: then its splits are no other data."""
    try:
        return data_identity(saved.config, data) == saved.data_identity
    except (ValueError, OSError):  # of another domain, or without the splits of the run
        return False


def _bytes(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value


def _own_file(saved: Saved, dataset: TokenDataset, rows: int | None, told: bool) -> Path:
    """In the run's folder, by what was evaluated on what, and how."""
    name = f"{saved.path.name}-{dataset.domain.name}-{dataset.split}-{dataset.identity[:8]}"
    name += ("" if rows is None else f"-rows{rows}") + ("-information" if told else "") + ".h5"
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


def _improvement_lines(first: str, last: str, table: np.ndarray, rows_of: str) -> list[str]:
    known = table[np.isfinite(table["difference"])]
    lines = [f"from {first} to {last}, by document (row:first token):"]
    if not len(known):
        return [
            f"from {first} to {last}: no document lies whole in a row, so none is compared. More rows may hold one."
        ]
    for name, unit in (("difference", " nats per token"), ("ratio", "")):
        order = known[np.argsort(known[name], kind="stable")]
        for what, rows in (("most", order[::-1][:SHOWN]), ("least", order[:SHOWN])):
            listed = ", ".join(f"{row['row']}:{row['start']} ({row[name]:.3f})" for row in rows)
            lines.append(f"  improved {what} by {name}{unit}: {listed}")
    some = ",".join(str(row) for row in dict.fromkeys(order[::-1][:SHOWN]["row"].tolist()))
    return [*lines, f"to see rows: python -m data_prep show {rows_of} --row {some} --out FILE"]
