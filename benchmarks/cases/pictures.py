"""Pictures from a tar to a shard, beside the usual way: webdataset, Pillow and megatron-core's builder.

The floor of any pipeline that begins with JPEG is decoding its Huffman codes. simplejpeg at 1/8 scale does that and
little else; the third case has it as its peer, so that the ratio there is the share of the floor's rate that is left
when the whole chain has been paid for.
"""

import functools
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from benchmarks.cases import Case
from data_prep.chunks import Chunk, make_chunk, merge
from data_prep.domain import domain, family
from data_prep.watch import Watch

_PHOTOS, _SMALL = 200, 10_000


def cases(scratch: Path) -> list[Case]:
    """Photographs of 500 x 375 to 32x32, pictures of CIFAR's size to 8x8, and photographs beside the floor.

    The pictures are real where SAMPLE_DATA names the folder of sample files, else smoothed noise.
    """
    photos = _tar(scratch / "photos.tar", "images/photos-000000.tar", (375, 500), _PHOTOS)
    small = _tar(scratch / "small.tar", "labelled/cifar10_test_imagefolder.tar", (32, 32), _SMALL)
    ours = functools.partial(_ours, scratch)
    return [
        Case(
            "photo tar to image-32x32 shards",
            "pictures",
            2.2,
            functools.partial(_peer, photos, 32, scratch),
            functools.partial(ours, photos, 32),
        ),
        Case(
            "CIFAR-size JPEG tar to image-8x8 shards",
            "pictures",
            10.0,
            functools.partial(_peer, small, 8, scratch),
            functools.partial(ours, small, 8),
        ),
        Case(
            "photo tar to image-32x32 shards, beside the floor: Huffman decoding alone",
            "pictures",
            0.6,
            functools.partial(_floor, _members(photos)),
            functools.partial(ours, photos, 32),
        ),
    ]


def _ours(scratch: Path, tar: Path, side: int) -> int:
    """List, decode, divide and merge, as `build` does with one worker."""
    here = domain(f"image-{side}x{side}")
    out = scratch / f"ours-{side}"
    out.mkdir(exist_ok=True)
    shares = (("train", 1.0),)
    paths = []
    for number, piece in enumerate(family(here.name).plan(here, str(tar), None, out / "listing")):
        paths.append(out / f"{number}.npz")
        make_chunk(Chunk(paths[-1], here.name, piece, "0", shares), Watch())
    records = merge(out, 0, here, ("train",), paths, None)
    return records["train"].rows


def _peer(tar: Path, side: int, scratch: Path) -> int:
    """The same, in the order of the peers' own examples."""
    import torch
    import webdataset
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(scratch / "peer.bin"), dtype=np.uint8)
    count = 0
    for (image,) in (
        webdataset.WebDataset(str(tar), shardshuffle=False).decode("pil").to_tuple("jpg")
    ):
        edge = min(image.size)
        left, top = (image.width - edge) // 2, (image.height - edge) // 2
        box = (left, top, left + edge, top + edge)
        small = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC, box=box)
        builder.add_item(torch.from_numpy(np.array(small).reshape(-1)))
        builder.end_document()
        count += 1
    builder.finalize(str(scratch / "peer.idx"))
    return count


def _floor(files: list[bytes]) -> int:
    for data in files:
        simplejpeg.decode_jpeg(data, min_height=1, min_width=1)
    return len(files)


def _tar(path: Path, sample: str, size: tuple[int, int], count: int) -> Path:
    """A tar of `count` different JPEGs in folders of classes: some over and over, each with a number behind its end,
    which costs a decoder nothing."""
    found = _real(sample) or [_made(number, size) for number in range(40)]
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            data = found[number % len(found)] + b"%08d" % number
            member = tarfile.TarInfo(f"class{number % 10}/{number:06d}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def _real(sample: str) -> list[bytes]:
    source = Path(os.environ.get("SAMPLE_DATA", ""), sample)
    return _members(source) if source.is_file() else []


def _members(path: Path) -> list[bytes]:
    with tarfile.open(path) as tar:
        members = [member for member in tar if member.name.endswith(".jpg")]
        return [tar.extractfile(member).read() for member in members]  # type: ignore[union-attr]


def _made(number: int, size: tuple[int, int]) -> bytes:
    height, width = size
    noise = np.random.default_rng(number).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(-1 - number & 0xFFFF).normal(0, 12, (height, width, 3))
    pixels = np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
