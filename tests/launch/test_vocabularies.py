"""Two tokenizers of one size give the same ids other meanings: a model of one is kept from the data of the other."""

import json
import random
from pathlib import Path

import pytest

from data_prep.__main__ import main as data_prep
from data_prep.dataset import TokenDataset
from data_prep.tokenizers import train as train_tokenizer
from launch.__main__ import main
from launch.folder import run_folder
from launch.results import read_result
from launch.run import run_all
from launch.saved import find_saved, refuse_other_tokens
from tests.launch.small import config

PIECES = 320
DOMAIN = f"text-v{PIECES}"


def built(folder: Path, letters: str) -> Path:
    """A dataset of words of these letters, with a tokenizer of its own."""
    draw = random.Random(letters)
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(200)]
    documents = folder / "documents.jsonl"
    folder.mkdir()
    with documents.open("w") as file:
        for _ in range(120):
            file.write(json.dumps({"text": " ".join(draw.choices(words, k=200))}) + "\n")
    train_tokenizer(documents, folder / "own.model", PIECES)
    words = ["build", DOMAIN, "--raw", str(documents), "--tokenizer", str(folder / "own.model")]
    words += ["--out", str(folder / "data"), "--fractions", "0.7,0.3,0", "--workers", "1"]
    assert data_prep(words) == 0
    return folder / "data"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's folder, the data it was trained on, and data of another tokenizer."""
    folder = tmp_path_factory.mktemp("vocabularies")
    own, other = built(folder / "own", "abcdefghijklm"), built(folder / "other", "nopqrstuvwxyz")
    run = config(domain=DOMAIN, budget={"tokens": 16384.0}, model={"family": "kaplan"})
    assert run_all([run], own, folder / "results") == 0
    return run_folder(folder / "results", run), own, other


def test_a_run_records_what_its_tokens_mean(trained):
    folder, own, other = trained
    recorded = read_result(folder).provenance[-1]["vocabulary"]
    assert len(recorded) == 64
    (saved,) = find_saved([folder])
    refuse_other_tokens(saved, TokenDataset(own, "valid"), own)
    assert TokenDataset(own, "valid").domain == TokenDataset(other, "valid").domain


@pytest.mark.parametrize(
    "words",
    [["evaluate"], ["sample", "--out", "sheet.txt", "--rows", "1"]],
    ids=lambda each: each[0],
)
def test_data_of_another_tokenizer_is_refused(trained, words, capsys, tmp_path, monkeypatch):
    folder, _, other = trained
    monkeypatch.chdir(tmp_path)
    assert main([*words, str(folder), "--data", str(other)]) == 2
    said = capsys.readouterr().err
    assert f"{other}: its tokens were made by the tokenizer, codebook or classes" in said
    assert "the same ids mean something else. Build the data with that file" in said


def test_weights_of_another_tokenizer_are_no_start(trained, capsys):
    folder, own, other = trained
    after = config(
        name="after", domain=DOMAIN, budget={"tokens": 16384.0}, model={"family": "kaplan"},
        start={"study": "small"},
    )  # fmt: skip
    results = folder.parents[1]
    assert run_all([after], other, results) == 2
    assert "was trained on tokens of another tokenizer or codebook" in capsys.readouterr().err
    assert run_all([after], own, results) == 0
