"""What one part of a pair tells of the other: `launch evaluate --information`.

A model reads a pair from front to back, so what it can be asked is how much less the part that comes second costs
behind the first part than behind a blank (Henighan et al. 2020, section 4.1): the mutual information of the two, as
this model finds it, a sum over the tokens of a pair in nats. From text to image that is the picture's loss behind a
blank caption less the loss behind its own; from image to text the caption's, behind a blank picture. The information
gain is that over L(text), the text's loss without its picture: the share of the text that picture and text have in
common. Of two halves of symbols it is the share of the second.

The paper first trains on pairs of which half are blanked (`[data] blanked` in a study file): a model that has never
seen a blank gives about twice too much.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from data_prep.dataset import RowBatch, TokenDataset
from data_prep.domain import Domain, family
from data_prep.manifest import codec_path, load_manifest
from data_prep.show import shown
from launch.evaluation import Model, evaluate

WORDS_OF = 10_000  # captions that are counted in words: their mean is known to a per cent
_ROWS_AT_A_TIME = 256

INFORMATION = np.dtype(
    [
        ("part", "S16"),
        ("blanked", "S16"),
        ("mutual_information", "f8"),
        ("standard_error", "f8"),
        ("loss", "f8"),
        ("loss_blanked", "f8"),
        ("information_gain", "f8"),
        ("information_gain_error", "f8"),
        ("gain_of", "S16"),
        ("num_pairs", "i8"),
        ("num_tokens", "i8"),
    ]
)


@dataclass(frozen=True)
class Direction:
    """`part` comes second and is told of by what is `blanked`; the information gain is a share of `gain_of`'s loss."""

    part: str
    blanked: str
    gain_of: str


DIRECTIONS = {
    "text-to-image": Direction("image", "text", gain_of="text"),
    "image-to-text": Direction("text", "image", gain_of="text"),
    "known-entropy-pairs": Direction("right", "left", gain_of="right"),
}
# The kind of a part's tokens, where its name is another.
_KINDS = {"image": "pixel"}


def direction(domain: str, trained_on: str, source: Path) -> Direction:
    """What a model of `trained_on` can be asked of pairs of `domain`. Raises `ValueError` where that is nothing."""
    found = DIRECTIONS.get(trained_on.partition("-v")[0])
    if found is None:
        raise ValueError(
            f"{source}: --information: was trained on {trained_on}, whose rows are no pairs; wanted a model of "
            f"{', '.join(DIRECTIONS)}. Leave --information out, or name such a model."
        )
    if domain != trained_on:
        raise ValueError(
            f"{source}: --information: was trained on {trained_on}, and --data holds {domain}; wanted the same, for "
            "which part comes first decides what is told of what. Give --data pairs of that domain."
        )
    return found


@dataclass(frozen=True)
class PartSums:
    """The loss of one kind of token and how many count, summed over each row: float64 [rows] both."""

    kind: int
    loss_sum: Tensor
    count: Tensor

    @staticmethod
    def of(domain: Domain, part: str, rows: int, device: torch.device) -> "PartSums":
        """No loss yet."""
        names = [each.kind for each in domain.kinds]
        sums = (torch.zeros(rows, dtype=torch.float64, device=device) for _ in range(2))
        return PartSums(names.index(_KINDS.get(part, part)), *sums)

    def add(self, rows: slice, losses_BS: Tensor, kinds_BS: Tensor, counted_BS: Tensor) -> None:
        """Add a batch; see `launch.evaluation.Sums`."""
        mine = counted_BS & (kinds_BS == self.kind)
        self.loss_sum[rows] += (losses_BS.double() * mine).sum(1)
        self.count[rows] += mine.sum(1)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.loss_sum, self.count


class _Blanked:
    """A dataset of pairs with one part of every row blank."""

    def __init__(self, dataset: TokenDataset, part: str) -> None:
        self.domain, self._dataset, self._part = dataset.domain, dataset, part
        self._blank = family(dataset.domain.name).blank

    def rows(self, indices: np.ndarray) -> RowBatch:
        """As of the dataset, then blanked."""
        batch = self._dataset.rows(indices)
        return RowBatch(*self._blank(self.domain, batch.tokens, batch.kinds, self._part))


Given = dict[str, PartSums]


def given_sums(dataset: TokenDataset, asked: Direction, rows: int, device: torch.device) -> Given:
    """By part, what the ordinary evaluation of these rows is to add up beside its own sums."""
    parts = dict.fromkeys((asked.part, asked.gain_of))
    return {part: PartSums.of(dataset.domain, part, rows, device) for part in parts}


def information(
    model: Model, dataset: TokenDataset, rows: np.ndarray, asked: Direction, given: Given
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The table `information` of the rows that an evaluation has filled `given` with. Collective.

    Beside it, for each row, the loss and the number of tokens of the part that the information gain is a share of.
    """
    behind_blank = PartSums.of(dataset.domain, asked.part, len(rows), model.device)
    blanks = cast(TokenDataset, _Blanked(dataset, asked.blanked))
    evaluate(model, blanks, rows, behind_blank)
    whole = behind_blank if asked.gain_of == asked.part else given[asked.gain_of]
    loss, blanked, alone = (
        each.loss_sum.cpu().numpy() for each in (given[asked.part], behind_blank, whole)
    )
    counts = [each.count.cpu().numpy() for each in given.values()]
    pairs = np.all([count > 0 for count in counts], axis=0)
    if pairs.sum() < 2:
        raise ValueError(
            f"--information: {pairs.sum()} of {len(rows)} rows have both parts, {asked.part} and {asked.gain_of}; "
            "wanted at least 2 for a standard error. Raise --rows, or give pairs with captions."
        )
    tokens = int(given[asked.part].count.sum())
    line = information_line(asked, loss[pairs], blanked[pairs], alone[pairs], tokens)
    return np.array([line], INFORMATION), alone, whole.count.cpu().numpy()


def information_line(
    asked: Direction, given: np.ndarray, blanked: np.ndarray, alone: np.ndarray, tokens: int
) -> tuple[Any, ...]:
    """One line of the table from the losses of each pair [pairs], in nats: of the part behind its own partner, of the
    part behind a blank, and of what the information gain is a share of.

    Pairs are the units of the standard errors; that of the gain, a ratio of two sums over pairs, is linearised.
    """
    told, pairs = blanked - given, len(given)
    mean, whole = told.mean(), alone.mean()
    gain = mean / whole
    errors = [each.std(ddof=1) / np.sqrt(pairs) for each in (told, (told - gain * alone) / whole)]
    return (
        asked.part.encode(), asked.blanked.encode(), mean, errors[0], given.mean(), blanked.mean(),
        gain, errors[1], asked.gain_of.encode(), pairs, tokens,
    )  # fmt: skip


def known_information(data: Path) -> dict[str, float]:
    """The exact mutual information of a dataset's source, where its manifest has it."""
    exact = load_manifest(data).known.get("mutual_information")
    return {"known_mutual_information": exact} if isinstance(exact, float) else {}


def worth_in_words(
    data: Path,
    dataset: TokenDataset,
    rows: np.ndarray,
    nats: float,
    loss: np.ndarray,
    count: np.ndarray,
) -> dict[str, float]:
    """How many words of a caption `nats` are (Henighan et al. 2020, section 4: "is a picture worth a thousand words?").

    `loss` and `count` [rows]: of each caption and of its tokens, no padding. A word is what stands between spaces.
    """
    codec, words = codec_path(data, load_manifest(data)), 0
    first = rows[:WORDS_OF]
    for start in range(0, len(first), _ROWS_AT_A_TIME):
        batch = dataset.rows(first[start : start + _ROWS_AT_A_TIME])
        words += sum(len(each.text.split()) for each in shown(dataset.domain, batch, codec))
    found = {"nats_per_text_token": float(loss.sum() / count.sum())}
    if words:
        per_word = float(loss[: len(first)].sum() / words)
        found |= {
            "nats_per_word": per_word,
            "words_per_caption": words / len(first),
            "worth_words": nats / per_word,
        }
    return found


def in_words(table: np.ndarray, attributes: dict[str, Any]) -> list[str]:
    """Lines for a person."""
    (line,) = table
    part, blanked, whole = (line[name].decode() for name in ("part", "blanked", "gain_of"))
    lines = [
        f"  {blanked} -> {part}: {line['mutual_information']:.4f} +- {line['standard_error']:.4f} nats of mutual "
        f"information per pair ({line['loss_blanked']:.3f} behind a blank {blanked} part, {line['loss']:.3f} behind "
        f"its own; {line['num_pairs']} pairs), information gain {100 * line['information_gain']:.3g} +- "
        f"{100 * line['information_gain_error']:.2g}% of {whole}"
    ]
    if "known_mutual_information" in attributes:
        lines.append(f"  exact, of the source: {attributes['known_mutual_information']:.4f} nats")
    if "worth_words" in attributes:
        token, word, worth = (
            attributes[name] for name in ("nats_per_text_token", "nats_per_word", "worth_words")
        )
        lines.append(
            f"  a caption costs {token:.3g} nats a token, {word:.3g} a word: a picture is worth {worth:.2g} words "
            f"({blanked} -> {part})"
        )
    if not attributes["trained_on_blanks"]:
        lines.append(
            "  this model was not trained on blanked pairs, so the number may be about twice too large: fine-tune it "
            "first ([start] and [data] blanked in a study file)"
        )
    return lines
