"""`launch sample`: what is given, what stands on the sheet, that it comes again, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main as data_prep
from data_prep.dataset import RowBatch, TokenDataset
from data_prep.domain import domain
from launch.__main__ import main
from launch.folder import run_folder
from launch.run import run_all
from launch.sample import part_of
from tests.launch.small import config


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """Two sizes of model."""
    results = tmp_path_factory.mktemp("trained")
    runs = [config(4, ladder=[{"num_layers": 1, "hidden_size": width}]) for width in (32, 16)]
    assert run_all(runs, pictures, results) == 0
    return [run_folder(results, run) for run in runs]


def sample(capsys, *arguments):
    status = main(["sample", *map(str, arguments)])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_pictures_have_a_column_for_each_model(trained, pictures, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    words = (*trained, "--data", pictures, "--rows", 3, "--out", out)
    status, said, _ = sample(capsys, *words)
    assert (status, said.strip()) == (
        0,
        f"3 rows of valid, 2 models, temperature 1, seed 0: written to {out}",
    )
    first = out.read_bytes()
    sheet = np.asarray(Image.open(out).convert("RGB"))
    # Three rows of 192 pixels a side; given, truth, the smaller model, the larger one.
    cells = [sheet[-212:-20, 10 + n * 202 :][:, :192] for n in range(4)]
    assert (cells[0][96:] == 128).all(), "the lower half is not given"
    for cell in cells[1:]:
        assert np.array_equal(cell[:96], cells[0][:96]), "the upper half is"
    below = [cell[96:] for cell in cells[1:]]
    assert not any(np.array_equal(below[0], each) for each in below[1:])
    assert not np.array_equal(below[1], below[2])
    sample(capsys, *words)
    assert out.read_bytes() == first
    sample(capsys, *words, "--seed", 1)
    assert out.read_bytes() != first


def test_problems_are_continued_behind_their_question(mathematics, tmp_path, capsys):
    run = config(4, domain="mathematics", budget={"tokens": 4 * 4 * 512.0})
    assert run_all([run], mathematics, tmp_path) == 0
    out = tmp_path / "sheet.txt"
    words = ("--data", mathematics, "--split", "test", "--rows", 2, "--temperature", 0)
    assert sample(capsys, run_folder(tmp_path, run), *words, "--out", out)[0] == 0
    lines = out.read_text().splitlines()
    assert [line.split()[0] for line in lines if line] == ["---", "given", "truth", "N"] * 2
    for question, answer in zip(lines[1::5], lines[2::5], strict=True):
        first, _, second = question.removeprefix("given").split("What is")[1].strip(" ?").split()
        assert answer.split()[1] == f"«{int(first) + int(second)}»"


def rows_of(name, tokens, kinds):
    """A dataset of these rows, as far as `part_of` looks."""

    class Rows:
        split = "valid"
        domain = None

        def rows(self, chosen):
            return RowBatch(tokens[chosen], kinds[chosen])

    found = Rows()
    found.domain = domain(name)
    return found


def test_text_is_no_picture(mathematics, tmp_path, capsys):
    run = config(4, domain="mathematics", budget={"tokens": 4 * 4 * 512.0})
    assert run_all([run], mathematics, tmp_path) == 0
    words = ("--data", mathematics, "--split", "test", "--rows", 2, "--out", tmp_path / "a.png")
    status, _, error = sample(capsys, run_folder(tmp_path, run), *words)
    assert status == 2
    assert (
        "a.png: a sheet of mathematics is text; wanted a name that ends in .txt. Rename it."
        in error
    )
    assert not (tmp_path / "a.png").exists()


def test_of_a_pair_the_first_part_is_given_and_a_caption_ends_with_its_words(tmp_path):
    build = ["build", "known-entropy-pairs", "--raw", "generator", "--rows", "20", "--workers", "1"]
    assert data_prep([*build, "--split", "valid", "--out", str(tmp_path)]) == 0
    part = part_of(TokenDataset(tmp_path, "valid"), np.arange(2))
    assert (part.given, part.stop) == ([16, 16], [24, 24])
    # Two captions of 5 and 128 tokens: text is kind 0, padding 1, pixels 2.
    caption = np.ones((2, 128), np.uint8)
    caption[0, :5] = caption[1] = 0
    pixels = np.full((2, 3072), 2, np.uint8)
    for name, kinds, given, stop in (
        ("image-to-text", [pixels, caption], [3072, 3072], [3077, 3200]),
        ("text-to-image", [caption, pixels], [128, 128], [3200, 3200]),
    ):
        whole = np.concatenate(kinds, axis=1)
        part = part_of(rows_of(name, np.zeros_like(whole), whole), np.arange(2))
        assert (part.given, part.stop) == (given, stop)


def test_bad_input_is_refused(trained, pictures, mathematics, tmp_path, capsys, monkeypatch):
    out = tmp_path / "sheet.png"
    for words, said in (
        (("--rows", 0), "--rows 0: wanted 1 to 64"),
        (("--temperature", -1), "--temperature -1, --seed 0: wanted 0"),
        (("--temperature", "nan"), "--temperature nan"),
        (("--seed", -1), "--seed -1"),
        (("--split", "none"), "split 'none' is not there"),
        (("--out", tmp_path), "is a folder; wanted a file"),
        (
            ("--out", tmp_path / "a.txt"),
            "a sheet of image-8x8 is pictures; wanted a name that ends in .png",
        ),
        (("--data", mathematics), "wanted 256 and 192, as in image-8x8"),
    ):
        every = {"--data": pictures, "--out": out} | dict([words])
        status, _, error = sample(
            capsys, trained[0], *(each for pair in every.items() for each in pair)
        )
        assert (status, said in error) == (2, True), error
    assert not out.exists()
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, error = sample(capsys, trained[0], "--data", pictures, "--out", out)
    assert (status, "launch sample: 2 ranks; wanted one process" in error) == (2, True)
