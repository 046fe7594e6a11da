"""Rows as a person can see them: `show` and the preview that `build` leaves beside the manifest."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.dataset import RowBatch, TokenDataset
from data_prep.domain import Domain, Shown, check_codec, family
from data_prep.files import check_writable, write_file
from data_prep.manifest import ShardRecord, codec_path, load_manifest
from data_prep.shard_reader import find_prefix

PREVIEW_ROWS = 16
# Longest side, in screen pixels, of one picture when it is shown.
_SIDE = 256
# More rows than these are counted, not listed, in the name of a file.
_NAMED = 4


def shown(here: Domain, batch: RowBatch, codec: Path | None) -> list[Shown]:
    """The rows as a person sees them."""
    return [
        family(here.name).render(here, row, kinds, codec)
        for row, kinds in zip(batch.tokens, batch.kinds, strict=True)
    ]


def as_text(rows: list[Shown], numbers: Sequence[int]) -> str:
    """Their texts one below the other, each below its number if there are several; empty if they have none."""
    if not any(each.text for each in rows):
        return ""
    return "\n".join(
        f"--- row {number}\n{each.text}" if len(rows) > 1 else each.text
        for number, each in zip(numbers, rows, strict=True)
    )


def as_png(rows: list[Shown]) -> bytes:
    """Their pictures as one PNG, in a near-square sheet, every pixel enlarged to a visible square; empty if they have
    none."""
    import io

    from PIL import Image

    pictures = [each.picture for each in rows if each.picture is not None]
    if not pictures:
        return b""
    columns = int(np.ceil(np.sqrt(len(pictures))))
    height, width = pictures[0].shape[:2]
    scale = max(1, _SIDE // max(height, width))
    gap = 0 if len(pictures) == 1 else 8
    lines = -(-len(pictures) // columns)
    sheet = Image.new(
        "RGB",
        (columns * (width * scale + gap) - gap, lines * (height * scale + gap) - gap),
        "white",
    )
    for number, picture in enumerate(pictures):
        large = Image.fromarray(picture).resize(
            (width * scale, height * scale), Image.Resampling.NEAREST
        )
        line, column = divmod(number, columns)
        sheet.paste(large, (column * (width * scale + gap), line * (height * scale + gap)))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def show(
    path: Path, split: str | None, numbers: Sequence[int], out: Path | None,
    name: str | None = None, codec: Path | None = None,
) -> str:  # fmt: skip
    """Rows `numbers` of a dataset, in their order: text to return, or a PNG, of several one sheet line by line, written
    to `out` (then a sentence saying so is returned).

    `path` is a dataset folder, or the PREFIX of a .bin/.idx pair of the domain called `name`, whose tokenizer or
    codebook is `codec`."""
    if out is not None:
        check_writable(out)
    dataset, codec = _open(path, split, name, codec)
    for row in numbers:
        if not 0 <= row < dataset.num_rows:
            raise ValueError(
                f"--row {row}: split {dataset.split!r} of {path} has {dataset.num_rows} rows; wanted 0 to "
                f"{dataset.num_rows - 1}. Choose one of these, or another --split."
            )
    rows = shown(dataset.domain, dataset.rows(np.array(numbers)), codec)
    text, picture = as_text(rows, numbers), as_png(rows)
    if out is None and not picture:
        return text
    named = f"row {numbers[0]}" if len(numbers) == 1 else f"rows {', '.join(map(str, numbers))}"
    some = "-".join(map(str, numbers)) if len(numbers) <= _NAMED else f"{len(numbers)}-of-them"
    target = out or Path(f"{dataset.split}-row-{some}.png")
    write_file(target, picture or (text + "\n").encode())
    written = f"{named} of split {dataset.split}: written to {target}"
    return f"{text}\n{written}" if text and picture else written


def _open(
    path: Path, split: str | None, name: str | None, codec: Path | None
) -> tuple[TokenDataset, Path | None]:
    """A dataset and its tokenizer or codebook: a folder holds its own."""
    if not find_prefix(path, name):
        manifest = load_manifest(path)
        dataset = TokenDataset(path, split or next(iter(manifest.splits), "train"), name)
        return dataset, codec_path(path, manifest)
    dataset = TokenDataset(path, split or path.name, name)
    check_codec(dataset.domain, codec)
    return dataset, codec


def write_preview(
    folder: Path, here: Domain, splits: dict[str, list[ShardRecord]], codec: Path | None
) -> None:
    """preview.txt, preview.png or both: rows of the first shard that has some. Needs no manifest: it comes before."""
    first = next((record for records in splits.values() for record in records if record.rows), None)
    if first is None:
        return
    dataset = TokenDataset(folder / first.file, "preview", domain=here.name)
    rows = shown(here, dataset.rows(np.arange(min(PREVIEW_ROWS, dataset.num_rows))), codec)
    if picture := as_png(rows):
        write_file(folder / "preview.png", picture)
    if text := as_text(rows, range(len(rows))):
        write_file(folder / "preview.txt", (text + "\n").encode())
