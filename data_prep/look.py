"""Rows as a person can see them: `show` and the preview that `build` leaves beside the manifest."""

from pathlib import Path

import numpy as np

from data_prep.dataset import RowBatch, TokenDataset
from data_prep.domain import Domain, family
from data_prep.manifest import ShardRecord, load_manifest
from data_prep.shards import write_file

PREVIEW_ROWS = 16
# Longest side, in screen pixels, of one picture when it is shown.
_SIDE = 256


def as_text(here: Domain, batch: RowBatch) -> str | None:
    """The rows as text, or None where they are pictures."""
    shown = [
        family(here.name).render(here, row, kinds)
        for row, kinds in zip(batch.tokens, batch.kinds, strict=True)
    ]
    if not all(isinstance(each, str) for each in shown):
        return None
    return "\n".join(
        f"--- row {number}\n{each}" if len(shown) > 1 else each for number, each in enumerate(shown)
    )


def as_png(here: Domain, batch: RowBatch) -> bytes:
    """The rows as one PNG, side by side in a near-square sheet, every pixel enlarged to a visible square."""
    import io

    from PIL import Image

    pictures = [
        family(here.name).render(here, row, kinds)
        for row, kinds in zip(batch.tokens, batch.kinds, strict=True)
    ]
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


def show(folder: Path, split: str | None, row: int, out: Path | None) -> str:
    """Row `row` of a dataset: text to return, or a PNG written to `out` (then a sentence saying so is returned)."""
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        found = "is a folder" if out.is_dir() else f"the folder {out.parent} does not exist"
        raise ValueError(
            f"--out {out}: {found}; wanted a file to write, in a folder that is there. Choose another path."
        )
    dataset = TokenDataset(folder, split or next(iter(load_manifest(folder).splits), "train"))
    if not 0 <= row < dataset.num_rows:
        raise ValueError(
            f"--row {row}: split {dataset.split!r} of {folder} has {dataset.num_rows} rows; wanted 0 to "
            f"{dataset.num_rows - 1}. Choose one of these, or another --split."
        )
    batch = dataset.rows(np.array([row]))
    text = as_text(dataset.domain, batch)
    if text is not None and out is None:
        return text
    target = out or Path(f"{dataset.split}-row-{row}.png")
    write_file(target, as_png(dataset.domain, batch) if text is None else (text + "\n").encode())
    return f"row {row} of split {dataset.split}: written to {target}"


def write_preview(folder: Path, here: Domain, splits: dict[str, list[ShardRecord]]) -> None:
    """preview.txt or preview.png: rows of the first shard that has some. Needs no manifest: it comes before."""
    first = next((record for records in splits.values() for record in records if record.rows), None)
    if first is None:
        return
    dataset = TokenDataset(folder / first.file, "preview", domain=here.name)
    batch = dataset.rows(np.arange(min(PREVIEW_ROWS, dataset.num_rows)))
    text = as_text(here, batch)
    if text is None:
        write_file(folder / "preview.png", as_png(here, batch))
    else:
        write_file(folder / "preview.txt", (text + "\n").encode())
