"""One tiny dataset of each domain, built by the real `data_prep` from made inputs, when it is first asked for."""

import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from PIL import Image

from data_prep.__main__ import main as data_prep
from data_prep.codebook_training import train as train_codebook
from data_prep.tokenizers import train as train_tokenizer
from tests.data_prep.conftest import add_member, picture_bytes

PIECES = 1024
CLASSES = 10
WORDS = 400


class TinyData:
    """Datasets below a folder, by domain: just large enough for the subsets of the small studies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, domain: str) -> Path:
        """The dataset's folder."""
        out = self.folder / domain
        if not out.exists():
            command = ["build", domain, "--out", str(out), "--workers", "1"]
            command += ["--fractions", "0.9,0.1,0", *_raw(domain, self._once)]
            assert data_prep(command) == 0
        return out

    def _once(self, name: str, make: Callable[[Path], None]) -> str:
        """A raw file or folder that several domains are built from."""
        path = self.folder / "raw" / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            make(path)
        return str(path)


def _raw(domain: str, once: Callable[[str, Callable[[Path], None]], str]) -> list[str]:
    """What the command that builds a domain takes beside its name."""
    if domain.startswith("known-entropy"):
        return ["--raw", "generator", "--rows", "400"]
    if domain == "mathematics":  # 600,000 characters for the largest set
        return ["--raw", once("problems.txt", _problems)]
    if domain.startswith("image-codes") or domain.startswith("video"):
        side = "32" if domain.endswith("32x32") else "16"
        pictures = Path(once("pictures", _pictures))
        codebook = once(f"{side}.safetensors", lambda path: _codebook(pictures, path, int(side)))
        raw = once("videos", _videos) if domain.startswith("video") else str(pictures)
        return ["--raw", raw, "--codebook", codebook]
    if domain.startswith("image") and "to-text" not in domain:
        # 1,000 pictures for the largest subset
        many = domain == "image-16x16"
        return ["--raw", once("many", _many_pictures) if many else once("pictures", _pictures)]
    documents = once("documents.jsonl", _documents)
    tokenizer = once("tokenizer.model", lambda path: _tokenizer(Path(documents), path))
    raw = documents if domain.startswith("text-v") else once("captions.tar", _captions)
    return ["--raw", raw, "--tokenizer", tokenizer]


def _problems(path: Path) -> None:
    path.write_text("".join(f"What is {n} + {n * 7}?\n{n * 8}\n" for n in range(24_000)))


def _documents(path: Path) -> None:
    """Enough for a million tokens."""
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(WORDS)]
    with path.open("w") as file:
        for _ in range(1_000):
            file.write(json.dumps({"text": " ".join(draw.choices(words, k=800))}) + "\n")


def _tokenizer(documents: Path, path: Path) -> None:
    train_tokenizer(documents, path, PIECES)


def _pictures(path: Path, count: int = 150, side: int = 32) -> None:
    """In a folder for each class."""
    for number in range(count):
        file = path / f"class{number % CLASSES}" / f"{number:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture_bytes(number, side=side))


def _many_pictures(path: Path) -> None:
    _pictures(path, 1_300, 16)


def _captions(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for number in range(60):
            add_member(tar, f"{number:04}.png", picture_bytes(number, side=32))
            said = json.dumps({"captions": [f"a picture of {number} dogs"]}).encode()
            add_member(tar, f"{number:04}.json", said)


def _codebook(pictures: Path, path: Path, codes: int) -> None:
    train_codebook(str(pictures), path, codes, steps=2, batch=16, hidden=4)


def _videos(path: Path) -> None:
    """A picture that slides, one clip in each."""
    path.mkdir()
    for number in range(24):
        draw = np.random.default_rng(number)
        small = Image.fromarray(draw.integers(0, 256, (4, 8, 3), dtype=np.uint8))
        wide = np.asarray(small.resize((256, 64), Image.Resampling.BICUBIC))
        with av.open(str(path / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=30)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            for frame in range(17):
                pixels = np.ascontiguousarray(wide[:, 4 * frame : 4 * frame + 96])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode(None))
