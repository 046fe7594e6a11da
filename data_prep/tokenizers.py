"""Text <-> token ids: SentencePiece BPE with byte fallback, so that no text is lost. The only door to sentencepiece.

What SentencePiece needs for an exact round trip: no normalisation, no space put in front, no spaces taken away. Even
then it reads the character U+2581, its sign for a space, as a space; here that character is written as its three bytes.

BPE is slow and the words of a text repeat, so the ids of a word are remembered. That is exact because no piece reaches
over the beginning of a word or over a newline (checked for every model): merges on one side then never see the other.
"""

import functools
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from data_prep.documents import Text, read_stretch, stretches
from data_prep.domain import Refusal
from data_prep.files import check_writable, write_file

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

_SPACE = "\u2581"
# The largest vocabularies in use have 256 thousand pieces: 4 MB.
_LARGEST_MODEL = 1 << 26
_ID_BYTES = 4
# Bytes of memory for remembered words in each process, about: beside its own length a word costs some 200.
_MEMORY = 1 << 26
_WORD_BYTES = 200
# Words that SentencePiece sees at a time: its calls cost as much as a few words, and long texts take it longer a word.
_TOGETHER = 64
# Changed by every normalisation that SentencePiece knows, by a space in front, and by taking spaces away.
_PROBE = "a  b \t\r\n Ab\u00c5\u212b\ufb01\u2460\u00bd\u200b\u3000\uff21\n\n "
# Training holds its text in memory; more than this hardly moves the frequencies of 32 thousand pieces.
_SAMPLE = 1 << 25
# SentencePiece's own limit on a line of training text is 4,192 bytes; it would leave longer ones out.
_LONGEST_LINE = 4096
# Far above what any text has, and still a number that SentencePiece answers to.
_MOST_PIECES = 1 << 24


class Tokenizer:
    """A SentencePiece model file: `pieces` is its vocabulary size, `end_of_text` the id that ends a document.

    ValueError if the file is missing, is no SentencePiece model, or is one that loses text or joins words.
    """

    pieces: int
    end_of_text: int

    def __init__(self, path: Path) -> None:
        processor, pieces = _load(path)
        self.pieces = len(pieces)
        self.end_of_text = processor.eos_id()
        self._bytes = _spellings(processor, pieces)
        fault = _fault(processor, pieces) or self._loses_text(processor)
        if fault:
            raise ValueError(
                f"{path}: {fault}; wanted a SentencePiece model with byte fallback and the end piece </s> that keeps "
                f"every text as it is. Make one with: python -m data_prep train-tokenizer"
            )
        sign = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]
        self._space_sign = np.array(sign, np.int32).tobytes()
        self._words = _Words(processor, pieces)

    def _loses_text(self, processor: "SentencePieceProcessor") -> str:
        back = self.decode(np.array(processor.encode(_PROBE), np.int64))
        return "" if back == _PROBE else f"turns the text {_PROBE!r} into {back!r}"

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, int32 [length], without begin and end pieces; the same as SentencePiece's own encode,
        except for U+2581. UnicodeEncodeError for half a surrogate pair."""
        between = [text.split(_SPACE) for text in texts]
        packed = iter(self._words.pack([part for parts in between for part in parts]))
        joined = [self._space_sign.join(itertools.islice(packed, len(parts))) for parts in between]
        return [np.frombuffer(each, np.int32) for each in joined]

    def decode(self, ids: np.ndarray) -> str:
        """The text of ids [length]; the end piece is no text, half a character becomes U+FFFD."""
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.pieces:
            raise ValueError(
                f"token ids from {ids.min()} to {ids.max()}; wanted 0 to {self.pieces - 1}. "
                f"Use the tokenizer that made them."
            )
        return b"".join([self._bytes[number] for number in ids.tolist()]).decode(errors="replace")


class _Words:
    """The ids of the words met so far. A word begins with its space or newline, or with the text."""

    def __init__(self, processor: "SentencePieceProcessor", pieces: list[str]) -> None:
        (self._newline,) = processor.encode("\n")
        self._begins = np.array([piece.startswith(_SPACE) for piece in pieces])
        self._begins[self._newline] = True
        self._processor = processor
        # The word without its space, or with its newline, to its packed int32 ids.
        self._known: dict[str, bytes] = {}
        self._held = 0

    def pack(self, texts: Sequence[str]) -> list[bytes]:
        """The ids of texts without U+2581, as the bytes of int32."""
        if self._held > _MEMORY:  # what is frequent comes back soon
            self._known.clear()
            self._held = 0
        # Each newline gets a space in front, so that one split finds all words; each text is given a newline, which
        # goes again at the end.
        words = [f"\n{text}".replace("\n", " \n").split(" ")[1:] for text in texts]
        packed = iter(self._pack_words(list(itertools.chain.from_iterable(words))))
        return [b"".join(itertools.islice(packed, len(each)))[_ID_BYTES:] for each in words]

    def _pack_words(self, words: list[str]) -> list[bytes]:
        packed = [*map(self._known.get, words), None]
        new, place = [], packed.index(None)
        while place < len(words):
            new.append(place)
            place = packed.index(None, place + 1)
        unknown = list(dict.fromkeys([words[place] for place in new]))
        for start in range(0, len(unknown), _TOGETHER):
            self._learn(unknown[start : start + _TOGETHER])
        for place in new:
            packed[place] = self._known[words[place]]
        packed.pop()
        return cast(list[bytes], packed)

    def _learn(self, words: list[str]) -> None:
        """Let SentencePiece encode all of `words` as one text, which their beginnings divide again."""
        text = f" {' '.join(words)}".replace(" \n", "\n")
        text.encode()  # half a surrogate pair must not become anything
        ids = np.array(self._processor.encode(text), np.int32)
        begins = (np.flatnonzero(self._begins[ids]) * _ID_BYTES).tolist()
        packed = ids.tobytes()
        for word, start, stop in zip(words, begins, [*begins[1:], len(packed)], strict=True):
            self._known[word] = packed[start:stop]
        self._held += len(text) + _WORD_BYTES * len(words)


def _load(path: Path) -> tuple["SentencePieceProcessor", list[str]]:
    """The model in a file and its pieces in the order of their ids."""
    from sentencepiece import SentencePieceProcessor

    advice = "Make one with: python -m data_prep train-tokenizer"
    size = path.stat().st_size if path.is_file() else None
    if not size or size > _LARGEST_MODEL:
        found = "is no file" if size is None else f"{size} bytes"
        raise ValueError(
            f"{path}: {found}; wanted a SentencePiece model of 1 to {_LARGEST_MODEL} bytes. {advice}"
        )
    try:
        processor = SentencePieceProcessor(model_proto=path.read_bytes())
        return processor, processor.id_to_piece(list(range(processor.get_piece_size())))
    except (RuntimeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: {size} bytes that SentencePiece cannot read ({error}); wanted its model file, whole. {advice}"
        ) from None


def _spellings(processor: "SentencePieceProcessor", pieces: list[str]) -> list[bytes]:
    """What each piece stands for in a text."""
    spellings = [piece.replace(_SPACE, " ").encode() for piece in pieces]
    numbers = list(range(len(pieces)))
    for number in np.flatnonzero(processor.is_byte(numbers)):
        spellings[number] = bytes([int(pieces[number][1:-1], 16)])
    for number in np.flatnonzero(processor.is_control(numbers)):
        spellings[number] = b""
    spellings[processor.unk_id()] = "\ufffd".encode()
    return spellings


def _fault(processor: "SentencePieceProcessor", pieces: list[str]) -> str:
    """Why the pieces of a model do not do, or ""."""
    if processor.eos_id() < 0:
        return "has no end piece </s>"
    if sum(processor.is_byte(list(range(len(pieces))))) != 256:
        return "has no byte fallback"
    joined = next((p for p in pieces if _SPACE in p[1:] or ("\n" in p and p != "\n")), None)
    return "" if joined is None else f"its piece {joined!r} joins words"


def open_tokenizer(path: Path) -> Tokenizer:
    """`Tokenizer(path)`, kept open: a worker asks for each of its pieces, and remembers words from one to the next."""
    now = path.stat() if path.is_file() else None
    return _keep(path, now and (now.st_mtime_ns, now.st_size))


@functools.lru_cache(maxsize=2)
def _keep(path: Path, state: tuple[int, int] | None) -> Tokenizer:
    return Tokenizer(path)


# --- training


def train(raw: Path, out: Path, pieces: int, captions: bool = False, sample: int = _SAMPLE) -> str:
    """Learn `pieces` pieces from the documents of `raw` and write the model to `out`.

    `raw` is what the domain `text` takes or, with `captions`, what the caption domains take. Of more than `sample`
    characters every 2nd, 4th, 8th, ... line is used. One thread: equal text gives equal bytes of the model. Returns a
    sentence for the user.
    """
    check_writable(out)
    text = _Sample(sample)
    for found in _texts(raw, captions):
        text.add(found)
    if not text.lines:
        raise ValueError(
            f"{raw}: holds no usable text{text.remark}; wanted documents to learn from. Give --raw other text."
        )
    write_file(out, _learn(raw, text.lines, pieces))
    tokenizer = Tokenizer(out)
    bytes_used = sum(len(line.encode()) for line in text.lines)
    tokens = sum(tokenizer.encode([line])[0].size for line in text.lines)
    return (
        f"{out}: {pieces} pieces from {text.used:,} of {text.read:,} characters; "
        f"{bytes_used / tokens:.2f} bytes per token on them{text.remark}"
    )


def _texts(raw: Path, captions: bool) -> Iterator[Text | Refusal]:
    if captions:
        from data_prep.pairs import read_captions

        yield from read_captions(raw)
        return
    if raw.suffix.lower() in (".tar", ".tsv") and raw.is_file():
        raise ValueError(
            f"{raw}: holds captions, if anything to learn from; wanted text. Add --captions to read it as the caption "
            f"domains do."
        )
    for stretch in stretches(raw):
        yield from read_stretch(stretch)


class _Sample:
    """Lines of the documents it is given, evenly spread, of at most `limit` characters together."""

    def __init__(self, limit: int) -> None:
        self.lines: list[str] = []
        self.used = self.read = 0
        self.remark = ""
        self._limit, self._stride, self._number = limit, 1, 0

    def add(self, found: Text | Refusal) -> None:
        """Take some lines of a document; of a refused one only its name."""
        if isinstance(found, Refusal):
            self.remark = self.remark or f"; not all is usable: {found.key}: {found.reason}"
            return
        self.read += len(found.text)
        for line in filter(None, found.text.split("\n")):
            for start in range(0, len(line), _LONGEST_LINE):
                self._add_line(line[start : start + _LONGEST_LINE])

    def _add_line(self, line: str) -> None:
        if self._number % self._stride == 0:
            self.lines.append(line)
            self.used += len(line)
        self._number += 1
        if self.used > self._limit and len(self.lines) > 1:
            self.lines = self.lines[::2]
            self.used = sum(map(len, self.lines))
            self._stride *= 2


def _learn(raw: Path, lines: list[str], pieces: int) -> bytes:
    """The model's bytes; ValueError where the text does not have so many pieces, or needs more."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    try:
        # Lines without newlines: so no piece ever holds one, and it is written as its byte. Below three pieces
        # SentencePiece does not say how many are needed.
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, model_type="bpe", byte_fallback=True,
            vocab_size=min(max(pieces, 3), _MOST_PIECES), normalization_rule_name="identity",
            add_dummy_prefix=False, remove_extra_whitespaces=False, required_chars=_SPACE,
            unk_id=0, eos_id=1, bos_id=-1, pad_id=-1,
            max_sentence_length=1 << 20, num_threads=1, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        raise ValueError(_why_not(raw, pieces, str(error))) from None
    return model.getvalue()


def _why_not(raw: Path, pieces: int, said: str) -> str:
    """SentencePiece's complaint about a number of pieces in our words."""
    if most := re.search(r"value <= (\d+)", said):
        wanted = f"wanted at most {most[1]}, all that this text has"
        advice = f"Use --vocabulary {most[1]} or less, or give --raw more text"
    elif fewest := re.search(r"required_chars\. -?\d+ vs (\d+)", said):
        wanted = f"wanted at least {fewest[1]}, for the bytes and the characters of this text"
        advice = f"Use --vocabulary {fewest[1]} or more"
    else:
        wanted, advice = f"SentencePiece says: {said}", "Give --raw other text"
    return f"{raw}: --vocabulary {pieces}; {wanted}. {advice}."
