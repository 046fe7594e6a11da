"""Text to a shard, beside the way of Megatron's preprocess_data: a Python list of ids for each document.

Both sides read the same .jsonl file with the same SentencePiece model. Ours starts each time without any remembered
word, so that the text is as new to it as a text of its size can be.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.cases import Case
from data_prep.chunks import Chunk, make_chunk, merge
from data_prep.domain import domain, family
from data_prep.tokenizers import train
from data_prep.watch import Watch

_WORDS = 1_000_000
_VOCABULARY = 8192
_DOMAIN = f"text-v{_VOCABULARY}"


def cases(scratch: Path) -> list[Case]:
    """Made text with Zipf's frequencies; real text too where SAMPLE_DATA names a folder that holds some."""
    found = [_case("made text (Zipf) to text-v8192 shards", list(_made()), scratch / "made")]
    folder = Path(os.environ.get("SAMPLE_DATA", "")) / "text"
    paths = sorted(folder.glob("*.txt")) + sorted(folder.glob("*.jsonl"))
    if paths:
        texts = [text for path in paths for text in _real(path)]
        found.append(_case("real text to text-v8192 shards", texts, scratch / "real"))
    return found


def _case(name: str, texts: list[str], folder: Path) -> Case:
    raw, model = folder / "text.jsonl", folder / "tokenizer.model"
    folder.mkdir()
    raw.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train(raw, model, _VOCABULARY)
    return Case(name, "bytes", 2.0, _peer(raw, model, folder), _ours(raw, model, folder))


def _peer(raw: Path, model: Path, folder: Path) -> Callable[[], int]:
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
    from sentencepiece import SentencePieceProcessor

    assert torch  # the builder's own dependency, imported before anything is timed

    def work() -> int:
        processor = SentencePieceProcessor(model_file=str(model))
        builder = IndexedDatasetBuilder(str(folder / "peer.bin"), dtype=np.uint16)
        with raw.open() as lines:
            for line in lines:
                ids = processor.encode(json.loads(line)["text"])
                ids.append(processor.eos_id())
                builder.add_document(ids, [len(ids)])
        builder.finalize(str(folder / "peer.idx"))
        return raw.stat().st_size

    return work


def _ours(raw: Path, model: Path, folder: Path) -> Callable[[], int]:
    def work() -> int:
        os.utime(model)  # a model that has changed is opened anew: nothing is remembered
        here = domain(_DOMAIN)
        pieces = family(_DOMAIN).plan(here, str(raw), None, folder / "listing")
        paths = []
        for number, piece in enumerate(pieces):
            path = folder / f"{number}.npz"
            chunk = Chunk(path, _DOMAIN, piece, "0", (("train", 1.0),), model)
            make_chunk(chunk, Watch())
            paths.append(path)
        merge(folder, 0, here, ("train",), paths, None)
        return raw.stat().st_size

    return work


def _made() -> Iterator[str]:
    """Documents of some hundred words; the words are of syllables, the frequency of each is 1 / (rank + 2.7)."""
    random = np.random.default_rng(0)
    syllables = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er")]
    words = np.array(
        ["".join(random.choice(syllables, random.integers(1, 6))) for _ in range(60_000)]
    )
    frequency = 1 / (np.arange(len(words)) + 2.7)
    drawn = random.choice(words, _WORDS, p=frequency / frequency.sum())
    for start in range(0, _WORDS, 500):
        sentences = (drawn[at : at + 20] for at in range(start, min(start + 500, _WORDS), 20))
        yield "\n".join(" ".join(sentence) + "." for sentence in sentences)


def _real(path: Path) -> Iterator[str]:
    """The documents of a .jsonl file; a .txt file in stretches of about 4 KB of whole lines."""
    if path.suffix == ".jsonl":
        with path.open() as lines:
            yield from (json.loads(line)["text"] for line in lines)
        return
    with path.open() as stream:
        while lines := stream.readlines(4096):
            yield "".join(lines)
