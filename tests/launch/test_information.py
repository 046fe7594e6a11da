"""`launch evaluate --information`: what one part of a pair tells of the other, and what it refuses."""

import tarfile

import numpy as np
import pytest
import torch

from data_prep.__main__ import main as data_prep
from data_prep.dataset import TokenDataset
from data_prep.domains.known_entropy import BLOCKS, SYMBOLS, known, pairs
from launch.__main__ import main
from launch.batches import Batch
from launch.evaluation import evaluate
from launch.evaluation_file import read_evaluations
from launch.folder import run_folder
from launch.information import (
    DIRECTIONS,
    direction,
    given_sums,
    in_words,
    information,
    information_line,
    worth_in_words,
)
from launch.run import run_all
from tests.data_prep.conftest import add_member, picture_bytes
from tests.launch.small import config

LEFT, RIGHT = sum(BLOCKS), len(BLOCKS)
ROWS = 4000


@pytest.fixture(scope="module")
def two_halves(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    rows = {"train": 64, "valid": ROWS}
    for split, number in rows.items():
        command = ["build", "known-entropy-pairs", "--raw", "generator", "--rows", str(number)]
        assert data_prep([*command, "--out", str(folder), "--split", split, "--workers", "1"]) == 0
    return folder


class TrueSource:
    """The model that knows the source: its losses are the exact ones, in place of a trained model's."""

    device = torch.device("cpu")
    world_size = 1
    micro_batch = 512

    def losses(self, batch: Batch) -> torch.Tensor:
        tokens = batch.tokens.numpy()
        left, right = tokens[:, :LEFT], tokens[:, LEFT:] - (SYMBOLS + 1)
        found = np.full(tokens.shape, np.log(SYMBOLS))
        told = (left < SYMBOLS).all(1)
        found[told, LEFT:] = pairs().right_losses(left[told], right[told])
        return torch.from_numpy(found)

    def add_over_ranks(self, tensors: tuple[torch.Tensor, ...]) -> None:
        pass


def test_the_true_source_gives_the_exact_mutual_information(two_halves):
    """Within three standard errors of ROWS pairs, which are below a per cent of it."""
    dataset, model = TokenDataset(two_halves, "valid"), TrueSource()
    rows, asked = np.arange(ROWS), DIRECTIONS["known-entropy-pairs"]
    given = given_sums(dataset, asked, ROWS, model.device)
    evaluate(model, dataset, rows, *given.values())
    table, alone, count = information(model, dataset, rows, asked, given)
    exact = known(dataset.domain)
    (line,) = table
    error = line["standard_error"]
    assert abs(line["mutual_information"] - exact["mutual_information"]) < 3 * error
    assert 0 < error < 0.01 * exact["mutual_information"]
    assert (line["part"], line["blanked"], line["gain_of"]) == (b"right", b"left", b"right")
    assert (line["num_pairs"], line["num_tokens"]) == (ROWS, ROWS * RIGHT)
    # Behind a blank every right symbol costs log 4 exactly, in float64 sums of ROWS * 8 of them.
    assert line["loss_blanked"] == pytest.approx(RIGHT * exact["right_loss_alone"], rel=1e-12)
    share = exact["mutual_information"] / (RIGHT * exact["right_loss_alone"])
    assert abs(line["information_gain"] - share) < 3 * line["information_gain_error"]
    np.testing.assert_array_equal(count, RIGHT)
    assert alone.sum() == pytest.approx(line["loss_blanked"] * ROWS, rel=1e-12)


def test_standard_errors_are_those_of_the_mean_and_of_a_ratio():
    """Against the spread over many repeated samples, whose own sampling error is below 3 per cent."""
    draw, asked = np.random.default_rng(0), DIRECTIONS["image-to-text"]
    found = []
    for _ in range(2000):
        alone = draw.gamma(9.0, 1.0, 200)
        told = 0.3 * alone + draw.normal(0, 0.5, 200)
        found.append(information_line(asked, alone - told, alone, alone, 1))
    table = np.array([(each[2], each[3], each[6], each[7]) for each in found])
    spread = table.std(0, ddof=1)
    np.testing.assert_allclose(table[:, 1].mean(), spread[0], rtol=0.08)
    np.testing.assert_allclose(table[:, 3].mean(), spread[2], rtol=0.08)
    np.testing.assert_allclose(table[:, 2].mean(), 0.3, rtol=0.01)


@pytest.fixture(scope="module")
def trained(two_halves, tmp_path_factory):
    results = tmp_path_factory.mktemp("trained")
    run = config(4, domain="known-entropy-pairs", budget={"tokens": 4 * 4 * 24.0})
    assert run_all([run], two_halves, results) == 0
    return run_folder(results, run)


def test_a_model_of_pairs_is_asked(trained, two_halves, tmp_path, capsys):
    out, plain = tmp_path / "told.h5", tmp_path / "plain.h5"
    command = ["evaluate", str(trained), "--data", str(two_halves), "--rows", "300", "--out"]
    assert main([*command, str(out), "--information"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert main([*command, str(plain)]) == 0
    (told,), (bare,) = (read_evaluations(path).values() for path in (out, plain))
    assert "information" not in bare
    np.testing.assert_array_equal(told["documents/loss_sum"], bare["documents/loss_sum"])
    (line,) = told["information"]
    kinds = {row["kind"]: row for row in told["kinds"]}
    # The same float32 losses, summed in float64 by row and by kind.
    assert line["loss"] == pytest.approx(kinds[b"right"]["loss"] * RIGHT, rel=1e-12)
    told_of = line["loss_blanked"] - line["loss"]
    assert line["mutual_information"] == pytest.approx(told_of, abs=1e-9)
    exact = pairs().mutual_information
    assert told["attributes"]["known_mutual_information"] == exact
    assert said[1].startswith("  left -> right: ")
    assert said[2] == f"  exact, of the source: {exact:.4f} nats"
    assert "was not trained on blanked pairs, so the number may be about twice too large" in said[3]


def test_what_is_no_pair_is_refused(trained, pictures, two_halves, tmp_path, capsys):
    run = config(4)
    assert run_all([run], pictures, tmp_path) == 0
    folder = run_folder(tmp_path, run)
    command = ["evaluate", str(folder), "--data", str(pictures), "--information"]
    assert main(command) == 2
    assert (
        "--information: was trained on image-8x8, whose rows are no pairs; wanted a model of text-to-image, "
        "image-to-text, known-entropy-pairs. Leave --information out"
    ) in capsys.readouterr().err
    assert (
        main(["evaluate", str(trained), "--data", str(two_halves), "--information", "--rows", "1"])
        == 2
    )
    assert "--information: 1 of 1 rows have both parts, right and right" in capsys.readouterr().err


def test_pairs_the_other_way_round_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"was trained on text-to-image-v512, and --data holds image"
    ):
        direction("image-to-text-v512", "text-to-image-v512", tmp_path)
    assert direction("text-to-image-v512", "text-to-image-v512", tmp_path).gain_of == "text"


# --- captions and pictures

WORDS = ("a", "small", "red", "dog", "on", "green", "grass")


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """Twelve pictures whose captions have 3 to 7 words, the picture first; and the number of words in all."""
    root = tmp_path_factory.mktemp("captions")
    raw = root / "raw.tar"
    counts = [3 + number % 5 for number in range(12)]
    with tarfile.open(raw, "w") as tar:
        for number, words in enumerate(counts):
            add_member(tar, f"{number:02}.png", picture_bytes(number, side=32))
            add_member(tar, f"{number:02}.txt", " ".join(WORDS[:words]).encode())
    (root / "text").mkdir()
    text = "\n".join(f"{number} {' '.join(WORDS)}" for number in range(100))
    (root / "text" / "some.txt").write_text(text)
    tokenizer, data = root / "tokenizer.model", root / "data"
    command = ["train-tokenizer", "--raw", root / "text", "--out", tokenizer, "--vocabulary", 300]
    assert data_prep([str(each) for each in command]) == 0
    command = ["build", "image-to-text-v300", "--raw", raw, "--tokenizer", tokenizer, "--out", data,
               "--workers", 1, "--split", "valid"]  # fmt: skip
    assert data_prep([str(each) for each in command]) == 0
    return data, sum(counts)


def test_a_picture_is_worth_some_words(captioned):
    """A model that loses 2 nats on a token of a caption, and 3 behind a blank picture: the caption's alone."""
    data, words = captioned
    dataset = TokenDataset(data, "valid")
    rows, asked = np.arange(dataset.num_rows), DIRECTIONS["image-to-text"]

    class TwoOrThree(TrueSource):
        micro_batch = 5

        def losses(self, batch: Batch) -> torch.Tensor:
            blank = (batch.kinds == 3).any(
                1, keepdim=True
            )  # of the kinds text, padding, pixel, blank
            return torch.where(blank, 3.0, 2.0).expand(batch.tokens.shape).double()

    model = TwoOrThree()
    given = given_sums(dataset, asked, len(rows), model.device)
    evaluate(model, dataset, rows, *given.values())
    table, loss, count = information(model, dataset, rows, asked, given)
    tokens = (dataset.rows(rows).kinds == 0).sum()
    (line,) = table
    # Sums of small whole numbers: exact.
    assert line["num_tokens"] == count.sum() == tokens
    assert line["mutual_information"] == pytest.approx(tokens / 12, rel=1e-12)
    assert (line["part"], line["blanked"], line["gain_of"]) == (b"text", b"image", b"text")
    assert line["information_gain"] == pytest.approx(1 / 3, rel=1e-12)
    found = worth_in_words(data, dataset, rows, tokens / 12, loss, count)
    assert found["nats_per_text_token"] == 3.0
    assert found["words_per_caption"] == words / 12
    assert found["nats_per_word"] == pytest.approx(3 * tokens / words, rel=1e-12)
    assert found["worth_words"] == pytest.approx(words / 12 / 3, rel=1e-12)
    said = in_words(table, found | {"trained_on_blanks": True})
    assert said[0].startswith("  image -> text: ")
    assert said[1].startswith("  a caption costs 3 nats a token")
