"""Text from raw files to rows and back: packing, splits, duplicates, tokenizers that do not fit, workers and parts."""

import gzip
import hashlib
import json
import random
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import zstandard

from data_prep import documents
from data_prep.__main__ import main
from data_prep.build import build
from data_prep.check import check
from data_prep.dataset import TokenDataset
from data_prep.domain import domain, family
from data_prep.manifest import load_manifest
from data_prep.plan import How, Request
from data_prep.tokenizers import Tokenizer, train

NAME = "text-v400"
HERE = domain(NAME)
FAMILY = family(NAME)
HALVES = (0.5, 0.25, 0.25)


def made_text(number: int) -> str:
    """A document of its own for each number, some lines long."""
    draw = random.Random(number)
    words = [
        "the",
        "a",
        "caf\u00e9",
        "of",
        "model",
        "loss",
        "1,000",
        "grows",
        "\u4e2d\u6587",
        "law.",
    ]
    lines = (
        " ".join(draw.choices(words, k=draw.randint(1, 20))) for _ in range(draw.randint(1, 8))
    )
    return f"Document {number}\n\n" + "\n".join(lines)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """300 documents in files of every kind."""
    folder = tmp_path_factory.mktemp("raw")
    lines = [json.dumps({"text": made_text(number)}) + "\n" for number in range(280)]
    (folder / "a.jsonl").write_text("".join(lines[:200]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("".join(lines[200:]).encode()))
    for number in range(280, 300):
        (folder / f"{number}.txt").write_text(made_text(number))
    return folder


@pytest.fixture(scope="module")
def model(raw, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "x.model"
    train(raw, path, 400)
    return path


def request(raw: Path, model: Path, **changes) -> Request:
    return Request(NAME, str(raw), **{"fractions": HALVES, "codec": model, **changes})


def documents_in(out: Path) -> list[str]:
    """The text of every document of all splits, sorted; each ends with the end piece and holds no other."""
    tokenizer, manifest = Tokenizer(out / "tokenizer.model"), load_manifest(out)
    texts = []
    for record in [each for records in manifest.splits.values() for each in records]:
        tokens = np.fromfile(out / f"{record.file}.bin", domain(manifest.domain).dtype)
        ends = np.flatnonzero(tokens == tokenizer.end_of_text) + 1
        assert len(ends) == record.documents
        assert ends[-1] == len(tokens)
        texts += [tokenizer.decode(ids) for ids in np.split(tokens, ends)[:-1]]
    return sorted(texts)


def shards(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*-?????.*"))}


def test_every_document_comes_back(tmp_path, raw, model):
    manifest = build(request(raw, model), tmp_path / "out", How())
    assert documents_in(tmp_path / "out") == sorted(map(made_text, range(300)))
    assert list(manifest.splits) == ["train", "valid", "test"]
    assert manifest.builds[0].written == 300
    check(tmp_path / "out")
    row = TokenDataset(tmp_path / "out", "train").rows(np.array([0]))
    assert row.tokens.shape == (1, 1024)
    assert not row.kinds.any()


def test_workers_and_parts_change_no_byte(tmp_path, raw, model, monkeypatch):
    monkeypatch.setattr(documents, "_STRETCH", 12_000)
    monkeypatch.setattr(documents, "_MOST_FILES", 8)
    settings = request(raw, model, chunks_per_shard=3)
    build(settings, tmp_path / "one", How())
    build(settings, tmp_path / "two", How(workers=2))
    for part in (1, 0):
        build(settings, tmp_path / "parts", How(part=part, parts=2))
    assert len(shards(tmp_path / "one")) > 6
    assert shards(tmp_path / "one") == shards(tmp_path / "two") == shards(tmp_path / "parts")


def test_equal_documents_are_written_once(tmp_path, raw, model):
    """Whatever file they come in, and in the same split with every tokenizer."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.jsonl").write_bytes((raw / "a.jsonl").read_bytes())
    (folder / "c.txt").write_text(made_text(7))
    manifest = build(request(folder, model), tmp_path / "out", How())
    assert (manifest.builds[0].written, manifest.builds[0].duplicates) == (200, 201)
    assert documents_in(tmp_path / "out") == sorted(map(made_text, range(200)))


def test_bad_documents_are_in_the_ledger(tmp_path, raw, model):
    folder = tmp_path / "raw"
    folder.mkdir()
    whole = (raw / "a.jsonl").read_bytes()
    (folder / "a.jsonl").write_bytes(whole + b'{"text": ""}\n{"text": "\xff"}\nno json\n')
    with pytest.raises(ValueError, match=r"3 of 203 items .* refused; wanted at most 1.00%"):
        build(request(folder, model), tmp_path / "out", How())
    build(request(folder, model), tmp_path / "out", How(max_refused=0.02))
    lines = [
        json.loads(line) for line in (tmp_path / "out" / "refused.jsonl").read_text().splitlines()
    ]
    assert [(each["key"], each["reason"]) for each in lines] == [
        ("raw/a.jsonl, line 201", "empty document"),
        ("raw/a.jsonl, line 202", "not UTF-8: byte 0xff in line 202"),
        ("raw/a.jsonl, line 203", "not JSON: Expecting value at character 1"),
    ]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_damaged_file_fails_the_build_unless_accepted(tmp_path, raw, model, ending):
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes((raw / "a.jsonl").read_bytes())
    data = (raw / "a.jsonl").read_bytes().replace(b"Document", b"Other document")
    packed = gzip.compress(data) if ending == ".gz" else zstandard.compress(data)
    (folder / f"b.jsonl{ending}").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(
        ValueError, match=rf"1 damaged file: raw/b.jsonl{ending}: damaged or cut off"
    ):
        build(request(folder, model), tmp_path / "out", How())
    manifest = build(request(folder, model), tmp_path / "out", How(accept_damaged=True))
    assert manifest.builds[0].damaged == (f"raw/b.jsonl{ending}",)
    assert manifest.builds[0].written >= 200


def test_the_tokenizer_must_fit_the_name(tmp_path, raw, model):
    with pytest.raises(ValueError, match=r"400 pieces; wanted 32768 for text.*text-v400, or train"):
        build(Request("text", str(raw), codec=model), tmp_path / "out", How())
    with pytest.raises(ValueError, match="no --tokenizer is given; wanted the file"):
        build(Request(NAME, str(raw)), tmp_path / "out", How())
    (tmp_path / "x.model").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"cannot read .*; wanted its model file.*train-tokenizer"):
        build(request(raw, tmp_path / "x.model"), tmp_path / "out", How())
    assert not (tmp_path / "out").exists()


def test_the_vocabulary_is_in_the_name():
    assert (domain("text").vocab_size, domain("text").seq_length) == (32768, 1024)
    assert domain("text-v8192").kinds[0].stop == domain("text-v8192").vocab_size == 8192
    assert domain("text-v100000").dtype == np.int32


def test_rows_are_refused(tmp_path, raw):
    with pytest.raises(
        ValueError, match=r"--rows 5: text is all taken; wanted no --rows .*Leave it"
    ):
        list(FAMILY.plan(HERE, str(raw), 5, tmp_path / "listing"))


def test_the_manifest_names_the_tokenizer(raw, model):
    notes = FAMILY.notes(HERE, str(raw), model)
    assert notes.versions["tokenizer"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert notes.versions["sentencepiece"] == version("sentencepiece")
    assert notes.reproducible


def test_the_split_does_not_depend_on_the_tokenizer(tmp_path, raw, model):
    other = tmp_path / "x.model"
    train(raw, other, 350)
    pieces = list(FAMILY.plan(HERE, str(raw), None, tmp_path / "listing"))
    by_model = [
        [
            (item.document.key, item.content)
            for piece in pieces
            for item in FAMILY.read(here, piece, 0, codec)
        ]
        for here, codec in ((HERE, model), (domain("text-v350"), other))
    ]
    assert by_model[0] == by_model[1]


def test_a_row_is_shown_as_text(tmp_path, raw, model):
    tokenizer = Tokenizer(model)
    first, second = tokenizer.encode(["the caf\u00e9\n", "grows"])
    row = np.concatenate([first, [tokenizer.end_of_text], second])
    shown = FAMILY.render(HERE, row, np.zeros_like(row), model)
    assert shown.text == "the caf\u00e9\n\n=== end of the document\ngrows"
    assert shown.picture is None


def test_from_the_command_line(tmp_path, raw, capsys):
    model, out = str(tmp_path / "x.model"), str(tmp_path / "out")
    assert main(["train-tokenizer", "--raw", str(raw), "--out", model, "--vocabulary", "400"]) == 0
    paths = ["--raw", str(raw), "--out", out, "--tokenizer", model]
    build_it = ["build", NAME, *paths, "--workers", "1"]
    assert main([*build_it, "--split", "train"]) == 0
    assert main(["check", out]) == 0
    capsys.readouterr()
    assert main(["show", out, "--row", "0"]) == 0
    assert made_text(280) in capsys.readouterr().out
    assert made_text(280) in (tmp_path / "out" / "preview.txt").read_text()


@pytest.mark.parametrize(
    "name", ["tinyshakespeare.txt", "wikitext2_valid.txt", "movie_reviews.jsonl"]
)
def test_real_text_comes_back(tmp_path, sample_data, name):
    path = sample_data / "text" / name
    train(path, tmp_path / "x.model", 2000)
    settings = Request("text-v2000", str(path), codec=tmp_path / "x.model", fractions=HALVES)
    manifest = build(settings, tmp_path / "out", How())
    check(tmp_path / "out")
    whole = path.read_text()
    wanted = (
        [json.loads(line)["text"] for line in whole.splitlines()] if name.endswith("jsonl") else []
    )
    found = documents_in(tmp_path / "out")
    if wanted:
        assert found == sorted(wanted)
    else:
        assert sum(map(len, found)) == len(whole)
        assert all(text in whole for text in found)
    assert min(manifest.rows(split) for split in manifest.splits) > 0
