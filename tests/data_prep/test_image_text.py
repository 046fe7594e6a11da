"""Caption pairs in both directions: ids, padding, trimming, splits, blanks; built end to end from tars."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from data_prep.__main__ import main
from data_prep.build import build
from data_prep.chunks import splits_of
from data_prep.dataset import TokenDataset
from data_prep.domain import Item, Piece, Refusal, check_codec, domain
from data_prep.domains import image_text
from data_prep.domains.image_text import BLANK, PADDING, PIXEL, TEXT
from data_prep.pictures import decode
from data_prep.plan import How, Request
from data_prep.show import show
from data_prep.tokenizers import Tokenizer
from tests.data_prep.conftest import add_member, picture_bytes

PIECES = 300
NAMES = ("text-to-image", "image-to-text")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """A tokenizer of 300 pieces, learned from a few sentences."""
    model = io.BytesIO()
    nouns = ("dogs", "cats", "children")
    sentences = [f"a small picture of {n} {noun} on the grass" for n in range(20) for noun in nouns]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, model_type="bpe", vocab_size=PIECES, byte_fallback=True,
        normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, minloglevel=2,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


def small(name: str):
    return domain(f"{name}-v{PIECES}")


def captions_of(number: int) -> list[str]:
    return [f"a picture of {number} dogs", f"{number} children on the grass ☃"][: 1 + number % 2]


def tar_of(path: Path, count: int) -> Path:
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            add_member(tar, f"{number:04d}.png", picture_bytes(number, side=32))
            said = json.dumps({"captions": captions_of(number)}).encode()
            add_member(tar, f"{number:04d}.json", said)
    return path


def items(name: str, raw: Path, tokenizer: Path) -> list[Item | Refusal]:
    here = small(name)
    pieces = list(image_text.plan(here, str(raw), None, raw.parent / "listing"))
    return [each for piece in pieces for each in image_text.read(here, piece, 0, tokenizer)]


def test_the_rows_are_those_of_the_paper():
    for name in NAMES:
        here = domain(name)
        assert (here.seq_length, here.vocab_size) == (128 + 3 * 32 * 32, 32_768 + 258)
        assert [(k.kind, k.start, k.stop, k.in_loss) for k in here.kinds] == [
            ("text", 0, 32_768, True), ("padding", 32_768, 32_769, False),
            ("pixel", 32_769, 33_025, True), ("blank", 33_025, 33_026, False),
        ]  # fmt: skip
        assert here.dtype == np.uint16
        assert domain(f"{name}-v8192").vocab_size == 8192 + 258
        assert domain(f"{name}-v32768").kinds == here.kinds


@pytest.mark.parametrize("name", NAMES)
def test_each_caption_with_its_picture_is_a_document(tmp_path, tokenizer, name):
    found = items(name, tar_of(tmp_path / "x.tar", 6), tokenizer)
    pairs = [(number, caption) for number in range(6) for caption in captions_of(number)]
    assert len(found) == len(pairs) == 9
    for item, (number, caption) in zip(found, pairs, strict=True):
        modes = [mode for mode, _ in item.document.parts]
        parts = dict(item.document.parts)
        assert modes == (
            [TEXT, PADDING, PIXEL] if name == "text-to-image" else [PIXEL, TEXT, PADDING]
        )
        assert np.array_equal(parts[TEXT], Tokenizer(tokenizer).encode([caption])[0])
        assert parts[TEXT].size + parts[PADDING].size == 128
        assert (parts[PADDING] == PIECES).all()
        pixels = parts[PIXEL].astype(int) - (PIECES + 1)
        assert np.array_equal(pixels, decode(picture_bytes(number, side=32), 32).reshape(-1))
    assert len({item.content for item in found}) == 9
    assert found[1].document.key == "x.tar/0001.png#0"


def test_all_captions_of_a_picture_go_to_one_split(tmp_path, tokenizer):
    """In each direction the same one: it is decided by the picture's bytes alone."""
    raw = tar_of(tmp_path / "x.tar", 40)
    shares = (("train", 0.5), ("valid", 0.5))
    splits = {}
    for name in NAMES:
        for item in items(name, raw, tokenizer):
            key = item.document.key.split("#")[0]
            (split,) = splits_of([item.group], shares)
            assert splits.setdefault(key, split) == split
    assert len(splits) == 40
    assert set(splits.values()) == {0, 1}


@pytest.mark.parametrize("length", [127, 128, 129, 5000])
def test_captions_are_padded_or_trimmed_to_128_tokens(tmp_path, tokenizer, length):
    caption = "☃" * (length // 3) + "q" * (length % 3)  # bytes that no piece joins: a token each
    whole = Tokenizer(tokenizer).encode([caption])[0]
    assert whole.size == length
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add_member(tar, "a.png", picture_bytes(0))
        add_member(tar, "a.txt", caption.encode())
    (item,) = items("text-to-image", tmp_path / "x.tar", tokenizer)
    parts = dict(item.document.parts)
    assert np.array_equal(parts[TEXT], whole[:128])
    assert (PADDING in parts) == (length < 128)
    assert sum(part.size for part in parts.values()) == 3200


def test_a_picture_that_cannot_be_decoded_is_one_refusal(tmp_path, tokenizer):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add_member(tar, "a.jpg", b"<html>")
        add_member(tar, "a.json", b'{"captions": ["one", "two"]}')
        add_member(tar, "b.jpg", b"")
        add_member(tar, "b.txt", b"three")
    found = items("text-to-image", tmp_path / "x.tar", tokenizer)
    assert [each.key for each in found] == ["x.tar/a.jpg", "x.tar/b.jpg"]
    assert "not a readable picture" in found[0].reason
    assert found[1].reason == "empty file"


def test_captions_that_try_to_be_tokens_stay_text(tmp_path, tokenizer):
    """The end piece, the padding and control characters by name, and every odd character there is."""
    said = "</s><unk><pad> \x01\x7f\u2581 ▁\ufeff \U0001f600 \u202e x"
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add_member(tar, "a.png", picture_bytes(0))
        add_member(tar, "a.txt", said.encode())
    (item,) = items("image-to-text", tmp_path / "x.tar", tokenizer)
    row = np.concatenate([part for _, part in item.document.parts])
    kinds = np.concatenate([np.full(part.size, mode) for mode, part in item.document.parts])
    assert image_text.render(small("image-to-text"), row, kinds, tokenizer).text == said


@pytest.mark.parametrize("name", NAMES)
def test_built_checked_shown_and_blanked(tmp_path, tokenizer, name):
    raw = tar_of(tmp_path / "x.tar", 40)
    here, out = small(name), tmp_path / "data"
    request = Request(domain=here.name, raw=str(raw), fractions=(0.6, 0.4, 0.0), codec=tokenizer)
    manifest = build(request, out, How())
    assert manifest is not None
    assert sum(manifest.rows(split) for split in manifest.splits) == 60
    assert (out / "tokenizer.model").read_bytes() == tokenizer.read_bytes()
    texts = []
    for split in manifest.splits:
        dataset = TokenDataset(out, split)
        assert dataset.codec == hashlib.sha256(tokenizer.read_bytes()).hexdigest()
        batch = dataset.rows(np.arange(dataset.num_rows))
        for row, kinds in zip(batch.tokens, batch.kinds, strict=True):
            shown = image_text.render(here, row, kinds, tokenizer)
            number = int("".join(filter(str.isdigit, shown.text)))
            assert shown.text in captions_of(number)
            assert np.array_equal(shown.picture, decode(picture_bytes(number, side=32), 32))
            texts.append(shown.text)
    assert sorted(texts) == sorted(text for number in range(40) for text in captions_of(number))
    assert (out / "preview.png").exists()
    assert "dogs" in (out / "preview.txt").read_text()
    assert "written to" in show(out, "train", [0], tmp_path / "row.png")
    check_blanks(here, batch, tokenizer)


def check_blanks(here, batch, tokenizer: Path) -> None:
    caption = np.isin(batch.kinds, (TEXT, PADDING))
    before = (batch.tokens.copy(), batch.kinds.copy())
    tokens, kinds = image_text.blank(here, batch.tokens, batch.kinds, "text")
    assert (tokens[caption] == PIECES).all()
    assert (kinds[caption] == PADDING).all()
    assert np.array_equal(tokens[~caption], batch.tokens[~caption])
    assert np.array_equal(kinds[~caption], batch.kinds[~caption])
    assert image_text.render(here, tokens[0], kinds[0], tokenizer).text == ""
    tokens, kinds = image_text.blank(here, batch.tokens, batch.kinds, "image")
    assert (tokens[~caption] == PIECES + 257).all()
    assert (kinds[~caption] == BLANK).all()
    assert np.array_equal(tokens[caption], batch.tokens[caption])
    assert image_text.render(here, tokens[0], kinds[0], tokenizer).picture is None
    assert all(np.array_equal(*each) for each in zip(before, (batch.tokens, batch.kinds), strict=True))  # fmt: skip
    # Blanked ids are ids of this domain, of the kinds that they claim to be.
    starts, stops = (np.array([getattr(k, end) for k in here.kinds]) for end in ("start", "stop"))
    assert ((tokens >= starts[kinds]) & (tokens < stops[kinds])).all()


@pytest.mark.parametrize(
    ("shape", "part", "said"),
    [
        ((2, 3200), "picture", r"part = 'picture': wanted 'text' or 'image'"),
        ((3200,), "text", r"tokens \(3200,\), kinds \(3200,\): wanted \[B, 3200\] each"),
        ((2, 3199), "text", r"wanted \[B, 3200\] each for domain text-to-image"),
    ],
)
def test_blanks_of_something_else_are_refused(shape, part, said):
    rows = np.zeros(shape, np.uint16)
    with pytest.raises(ValueError, match=said):
        image_text.blank(domain("text-to-image"), rows, rows.astype(np.uint8), part)


def test_a_tokenizer_of_another_size_is_refused(tmp_path, tokenizer):
    image_text.check_codec(small("image-to-text"), tokenizer)
    with pytest.raises(
        ValueError,
        match=r"has 300 pieces; wanted 32768 for domain image-to-text\. Build domain image-to-text-v300 with it",
    ):
        image_text.check_codec(domain("image-to-text"), tokenizer)  # fmt: skip
    with pytest.raises(ValueError, match="Build domain text-to-image-v300 with it"):
        image_text.check_codec(domain("text-to-image-v400"), tokenizer)


def test_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--rows 5: pairs are all taken; wanted no --rows"):
        list(image_text.plan(domain("text-to-image"), str(tmp_path), 5, tmp_path / "listing"))


def test_the_notes_name_what_decides_the_tokens(tokenizer):
    versions = image_text.notes(domain("text-to-image"), "x.tar", tokenizer).versions
    assert {"pillow", "sentencepiece", "numpy"} <= set(versions)


def test_real_captions(tmp_path, sample_data, tokenizer):
    """312 photographs with five captions each, four of them only in the .json."""
    raw = sample_data / "captions" / "captions-000000.tar"
    here = small("text-to-image")
    pieces = list(image_text.plan(here, str(raw), None, tmp_path / "listing"))
    first = Piece(pieces[0].source, pieces[0].start, pieces[0].stop)
    found = list(image_text.read(here, first, 0, tokenizer))
    assert not any(isinstance(each, Refusal) for each in found)
    keys = {each.document.key.split("#")[0] for each in found}
    assert len(keys) == 256
    assert len(found) > 4.9 * len(keys)


def test_a_tokenizer_learns_from_captions(tmp_path, capsys):
    """From a tar and from a table the same, pictures unread: those of the table are empty files."""
    tar_of(tmp_path / "x.tar", 60)
    folder = tmp_path / "table"
    folder.mkdir()
    lines = ["image\tcaption"]
    for number in range(60):
        (folder / f"{number:04d}.png").touch()
        lines += [f"{number:04d}\t{caption}" for caption in captions_of(number)]
    (folder / "x.tsv").write_text("\n".join(lines) + "\n")
    for raw, name in ((tmp_path / "x.tar", "a"), (folder / "x.tsv", "b")):
        command = ["train-tokenizer", "--raw", str(raw), "--out", str(tmp_path / name)]
        assert main([*command, "--vocabulary", "300"]) == 2
        assert "wanted text. Add --captions" in capsys.readouterr().err
        assert main([*command, "--vocabulary", "300", "--captions"]) == 0
        assert "a: 300 pieces from " in capsys.readouterr().out or name == "b"
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    check_codec(small("text-to-image"), tmp_path / "a")


def test_equal_lines_of_a_table_are_counted_as_duplicates(tmp_path, tokenizer):
    folder = tmp_path / "table"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture_bytes(0, side=32))
    (folder / "x.tsv").write_text("image\tcaption\n" + "a.png\ta dog\n" * 3 + "a.png\ta cat\n")
    request = Request("text-to-image-v300", str(folder / "x.tsv"), split="train", codec=tokenizer)
    record = build(request, tmp_path / "out", How()).builds[0]
    assert (record.written, record.duplicates, record.refused) == (2, 2, 0)
