"""`launch sample`: rows of a dataset continued by models, small to large, beside the truth, as one sheet.

What is given (Henighan et al. 2020, figure 21, draws the lower half of pictures at temperature 1):

    pictures and their codes, clips, known-entropy, text    the first half of the row: upper half, first frames, ...
    pairs                                                   the part that comes first: caption, picture, left half
    mathematics                                             a row up to the end of a question; the answer is continued

Only ids of the kind that stands at a position can come there: colours in a picture, pieces in a caption. A caption is
continued to the length of the true one: padding is no part of the training loss, so no model learns to end.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data_prep.dataset import RowBatch, TokenDataset
from data_prep.domain import Domain, Shown, family
from data_prep.files import check_writable, write_file
from data_prep.manifest import codec_path, load_manifest
from data_prep.sheet import greyed, sheet_png, sheet_text
from data_prep.show import shown
from launch.batches import evaluation_rows
from launch.saved import Saved, find_saved, refuse_other_tokens, refuse_several_ranks
from launch.trained_model import trained_models
from megatron_ext.generation import Rows, cache_bytes, generate

MOST_ROWS = 64
_CACHE_BYTES = 1 << 30  # of all rows that are continued together
_MOST_TEXT = 128  # tokens of text to continue
_MOST_ANSWER = 31  # the longest answer of the published generator, 30 characters, and its newline
_NEWLINE = ord("\n")
_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".gif", ".webp", ".pdf", ".svg", ".txt"})


@dataclass(frozen=True)
class Part:
    """Rows [B, S]: tokens up to `given` of each are given, and shown from `begin` on (a question has others before it);
    the truth goes to `stop`, a continuation to `until` at the latest, or to the first token that is `end`."""

    batch: RowBatch
    begin: list[int]
    given: list[int]
    stop: list[int]
    until: list[int]
    end: int | None = None


def sample_sheet(
    sources: Sequence[Path],
    data: Path,
    split: str,
    rows: int,
    *,
    temperature: float,
    seed: int,
    out: Path,
) -> str:
    """Write the sheet of `rows` rows of a split to `out` and say so. The same arguments give the same bytes.

    Raises `ValueError` for whatever does not fit, before anything is computed.
    """
    refuse_several_ranks("sample")
    _refuse_numbers(rows, temperature, seed)
    check_writable(out)
    dataset = TokenDataset(data, split)
    codec = codec_path(data, load_manifest(data)) if data.is_dir() else None
    checkpoints = find_saved(sources)
    for saved in checkpoints:
        refuse_other_tokens(saved, dataset, data)
        if saved.config.shape.classes:
            raise ValueError(
                f"{saved.path}: a classifier of {saved.config.shape.classes} classes, which predicts no tokens; wanted "
                "a language model. Name the run that it started from."
            )
    checkpoints.sort(key=lambda saved: saved.config.shape.params_non_embedding)
    part = part_of(dataset, evaluation_rows(dataset, rows))
    columns, cells = ["given", "truth"], [_given(dataset.domain, part, codec)]
    cells.append(_continued(dataset.domain, part, part.batch.tokens, part.stop, codec))
    pictures = any(cell.picture is not None for column in cells for cell in column)
    _refuse_ending(out, pictures, dataset.domain)
    for saved, tokens, stops in _completions(checkpoints, dataset.domain, part, temperature, seed):
        columns.append(_label(saved, checkpoints))
        cells.append(_continued(dataset.domain, part, tokens, stops, codec))
    table = list(zip(*cells, strict=True))
    write_file(out, sheet_png(columns, table) if pictures else sheet_text(columns, table).encode())
    return (
        f"{len(table)} rows of {split}, {len(checkpoints)} models, temperature {temperature:g}, seed {seed}: "
        f"written to {out}"
    )


def _refuse_ending(out: Path, pictures: bool, domain: Domain) -> None:
    """What a file's name says it is."""
    wanted = ".png" if pictures else ".txt"
    if out.suffix.lower() in _ENDINGS - {wanted}:
        what = "pictures" if pictures else "text"
        raise ValueError(
            f"--out {out}: a sheet of {domain.name} is {what}; wanted a name that ends in {wanted}. Rename it."
        )


def part_of(dataset: TokenDataset, rows: np.ndarray) -> Part:
    """What is given of these rows, by their domain; rows of mathematics without a whole problem are left out.

    Raises `ValueError` where none is left.
    """
    here, batch = dataset.domain, dataset.rows(rows)
    if here.name == "mathematics":
        return _questions(dataset, rows, batch)
    begin, length = [0] * len(rows), here.seq_length
    if hasattr(family(here.name), "blank"):  # pairs: two kinds a part, its own and its blank
        parts = batch.kinds // 2
        in_loss = np.array([kind.in_loss for kind in here.kinds])[batch.kinds]
        given = [int(np.argmax(part != part[0])) for part in parts]
        ends = [length - int(np.argmax(counted[::-1])) for counted in in_loss]
        stop = [max(pair) for pair in zip(given, ends, strict=True)]
        return Part(batch, begin, given, stop, stop)
    half = length // 2
    stop = [min(length, half + _MOST_TEXT) if here.packed else length] * len(rows)
    return Part(batch, begin, [half] * len(rows), stop, stop)


def _questions(dataset: TokenDataset, rows: np.ndarray, batch: RowBatch) -> Part:
    """The last problem that lies whole in each row; all behind its question is answer."""
    which, starts, stops = dataset.documents(rows)
    last = {int(row): (int(a), int(b)) for row, a, b in zip(which, starts, stops, strict=True)}
    if not last:
        raise ValueError(
            f"split {dataset.split!r}: none of {len(rows)} rows holds a whole problem; wanted one or more. Raise "
            "--rows, or give another dataset."
        )
    chosen = sorted(last)
    kinds = batch.kinds[chosen]
    begin, stop = ([last[row][place] for row in chosen] for place in (0, 1))
    given = []
    for row, start in zip(kinds, begin, strict=True):
        given.append(start + int(np.argmax(row[start:] != row[start])))
        row[given[-1] :] = row[given[-1]]
    most = dataset.domain.seq_length
    until = [min(most, each + _MOST_ANSWER) for each in given]
    return Part(RowBatch(batch.tokens[chosen], kinds), begin, given, stop, until, end=_NEWLINE)


# --- continuing


def _completions(
    checkpoints: Sequence[Saved], here: Domain, part: Part, temperature: float, seed: int
) -> Iterator[tuple[Saved, np.ndarray, list[int]]]:
    """Each checkpoint with its rows [B, S] and where each ends."""
    allowed = _allowed(here, part.batch.kinds)
    for saved, model in trained_models(checkpoints):
        together = max(1, _CACHE_BYTES // cache_bytes(model.model))
        tokens, stops = part.batch.tokens.copy(), []
        for first in range(0, len(tokens), together):
            here_rows = slice(first, first + together)
            rows = Rows(
                torch.from_numpy(tokens[here_rows].astype(np.int64)).to(model.device),
                part.given[here_rows],
                part.until[here_rows],
                range(len(tokens))[here_rows],
            )
            found, stop = generate(
                model.model, rows, allowed, end=part.end, temperature=temperature, seed=seed
            )
            tokens[here_rows] = found.cpu().numpy()
            stops += stop.tolist()
        yield saved, tokens, stops


def _allowed(here: Domain, kinds: np.ndarray) -> list[range]:
    """At each position the ids of the kind that any of the rows [B, S] has there, one in the loss if there is one."""
    in_loss = np.array([kind.in_loss for kind in here.kinds])
    chosen = []
    for column in kinds.T:
        number = next((kind for kind in column if in_loss[kind]), column[0])
        chosen.append(range(here.kinds[number].start, here.kinds[number].stop))
    return chosen


# --- what is shown


def _given(here: Domain, part: Part, codec: Path | None) -> list[Shown]:
    """What the models are given: text as far as it goes, pictures with the rest grey."""
    whole = shown(here, part.batch, codec)
    found = []
    for row, all_of_it in enumerate(whole):
        if here.grid and all_of_it.picture is not None:
            found.append(
                Shown(picture=greyed(all_of_it.picture, part.given[row] / here.seq_length))
            )
        else:
            places = slice(part.begin[row], part.given[row])
            found.append(_slice(here, part, part.batch.tokens, row, places, codec))
    return found


def _continued(
    here: Domain, part: Part, tokens: np.ndarray, stops: Sequence[int], codec: Path | None
) -> list[Shown]:
    """The rows as they were continued: whole pictures; else the continuation alone."""
    if here.grid:
        return shown(here, RowBatch(tokens, part.batch.kinds), codec)
    return [
        _slice(here, part, tokens, row, slice(part.given[row], stop), codec)
        for row, stop in enumerate(stops)
    ]


def _slice(
    here: Domain, part: Part, tokens: np.ndarray, row: int, places: slice, codec: Path | None
) -> Shown:
    """Some tokens of a row as a person sees them."""
    kinds = part.batch.kinds[row : row + 1, places]
    return shown(here, RowBatch(tokens[row : row + 1, places], kinds), codec)[0]


def _label(saved: Saved, among: Sequence[Saved]) -> str:
    """N, and what tells models of the same N apart."""
    size = saved.config.shape.params_non_embedding
    same = [each for each in among if each.config.shape.params_non_embedding == size]
    label = f"N = {size:,}"
    if len({each.config.seed for each in same}) > 1:
        label += f", seed {saved.config.seed}"
    return label + (f", step {saved.step}" if len({each.step for each in same}) > 1 else "")


def _refuse_numbers(rows: int, temperature: float, seed: int) -> None:
    if not 1 <= rows <= MOST_ROWS:
        raise ValueError(
            f"--rows {rows}: wanted 1 to {MOST_ROWS}, so that the sheet can be looked at. Omit it for 8."
        )
    if not 0 <= temperature < float("inf") or seed < 0:
        raise ValueError(
            f"--temperature {temperature:g}, --seed {seed}: wanted 0 (the likeliest token) or a number above it, and a "
            "whole number of at least 0. Omit them for 1 and 0."
        )
