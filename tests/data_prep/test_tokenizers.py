"""The tokenizer loses no text and gives SentencePiece's own ids; training is repeatable; bad files are refused."""

import gzip
import random
import string
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from data_prep import tokenizers
from data_prep.__main__ import main
from data_prep.tokenizers import Tokenizer, open_tokenizer, train

HOSTILE = [
    "",
    " ",
    "\n",
    "  two  spaces   and a space at the end ",
    " \n a\n\n\n b \n",
    "\ttabs\tand\r\nreturns\r\x0b\x0c\x1b\x7f\x85",
    "\x00 between \x00",
    "e\u0301 and \u00e9, \ufb01ne \u2460 \u00bd \uff21\uff22 \u212b, no\u00a0break\u3000wide\u200bnone",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f1e9\U0001f1ea \U0010ffff\ufffd\ufeff",
    "\u4e2d\u6587\u6ca1\u6709\u7a7a\u683c \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "\u0928\u092e\u0938\u094d\u0924\u0947",
    "<s> </s><unk> <0x41> </s",
    "a" * 3000 + " " + "ab" * 3000,
]
SIGN = "\u2581"


def english(words: int, seed: int = 0) -> str:
    """Lines of made words with commas, of frequencies that fall with the rank."""
    draw = random.Random(seed)
    known = ["".join(draw.choices(string.ascii_letters, k=draw.randint(1, 9))) for _ in range(300)]
    known += ["don't", "caf\u00e9", "3.14", "na\u00efve,", "\u4e2d\u6587"]
    weights = [1 / (rank + 1) for rank in range(len(known))]
    drawn = draw.choices(known, weights, k=words)
    return "".join(word + draw.choice("      ,\n") for word in drawn)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model of 600 pieces."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "raw.txt").write_text(english(8000))
    train(folder / "raw.txt", folder / "x.model", 600)
    return folder / "x.model"


@pytest.fixture(scope="module")
def own(model) -> "sentencepiece.SentencePieceProcessor":
    """SentencePiece itself."""
    return sentencepiece.SentencePieceProcessor(model_file=str(model))


def back(tokenizer: Tokenizer, text: str) -> str:
    (ids,) = tokenizer.encode([text])
    assert ids.dtype == np.int32
    return tokenizer.decode(ids)


@pytest.mark.parametrize("text", [*HOSTILE, SIGN, f"a{SIGN}b {SIGN}\n{SIGN}{SIGN} c"])
def test_no_text_is_lost(model, text):
    assert back(Tokenizer(model), text) == text


def test_no_character_is_lost(model):
    tokenizer = Tokenizer(model)
    for start in range(0, sys.maxunicode + 1, 4096):
        points = [p for p in range(start, start + 4096) if not 0xD800 <= p < 0xE000]
        text = "a ".join(map(chr, points))
        assert back(tokenizer, text) == text


@pytest.mark.parametrize("text", HOSTILE)
def test_the_ids_are_sentencepieces_own(model, own, text):
    assert Tokenizer(model).encode([text])[0].tolist() == own.encode(text)


def test_the_ids_are_sentencepieces_own_for_random_text(model, own):
    """Of characters that meet in pieces and words of all lengths, many with the words of others."""
    tokenizer = Tokenizer(model)
    draw = random.Random(1)
    alphabets = ["ab \n", " \n", string.printable, english(50), "\u00e9\u4e2d\U0001f468 \ta<>"]
    texts = [
        "".join(draw.choices(draw.choice(alphabets), k=draw.randint(0, 300))) for _ in range(1000)
    ]
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert ids.tolist() == own.encode(text)
        assert tokenizer.decode(ids) == text


def test_the_ids_are_sentencepieces_own_for_real_text(tmp_path, sample_data):
    model = tmp_path / "x.model"
    train(sample_data / "text" / "wikitext2_valid.txt", model, 4096)
    own = sentencepiece.SentencePieceProcessor(model_file=str(model))
    for name in ("tinyshakespeare.txt", "movie_reviews.jsonl"):
        text = (sample_data / "text" / name).read_text()[:200_000]
        (ids,) = Tokenizer(model).encode([text])
        assert ids.tolist() == own.encode(text)


def test_forgetting_words_changes_nothing(model, own, monkeypatch):
    monkeypatch.setattr(tokenizers, "_MEMORY", 3000)
    tokenizer = Tokenizer(model)
    texts = [english(40, seed) for seed in range(50)]
    for start in range(0, len(texts), 5):
        five = texts[start : start + 5]
        assert [ids.tolist() for ids in tokenizer.encode(five)] == [own.encode(x) for x in five]
    # One call may fill it, the next one empties it.
    assert len(tokenizer._words._known) < len({word for text in texts for word in text.split()})


def test_the_end_piece_is_no_text(model, own):
    tokenizer = Tokenizer(model)
    assert tokenizer.pieces == 600
    assert own.id_to_piece(tokenizer.end_of_text) == "</s>"
    (ids,) = tokenizer.encode(["one two"])
    assert tokenizer.decode(np.append(ids, tokenizer.end_of_text)) == "one two"


def test_half_a_character_is_shown_as_such(model):
    tokenizer = Tokenizer(model)
    (ids,) = tokenizer.encode(["\U0001f468"])
    assert len(ids) == 4
    assert tokenizer.decode(ids[:2]) == "\ufffd"


@pytest.mark.parametrize("wrong", [-1, 600])
def test_foreign_ids_are_refused(model, wrong):
    with pytest.raises(ValueError, match="wanted 0 to 599"):
        Tokenizer(model).decode(np.array([3, wrong]))


def test_half_a_surrogate_pair_is_refused(model):
    with pytest.raises(UnicodeEncodeError):
        Tokenizer(model).encode(["fine \ud800"])


# --- files


def test_a_changed_file_is_opened_anew(tmp_path, model):
    copy = tmp_path / "x.model"
    copy.write_bytes(model.read_bytes())
    first = open_tokenizer(copy)
    assert open_tokenizer(copy) is first
    (tmp_path / "raw.txt").write_text(english(8000, 5))
    train(tmp_path / "raw.txt", copy, 500)
    assert open_tokenizer(copy).pieces == 500


@pytest.mark.parametrize(
    ("data", "found"),
    [(None, "is no file"), (b"", "0 bytes"), (b"not a model at all", "cannot read")],
)
def test_what_is_no_model_is_refused(tmp_path, data, found):
    path = tmp_path / "x.model"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(
        ValueError, match=rf"{found}.*; wanted .* SentencePiece|{found}.*train-tokenizer"
    ):
        Tokenizer(path)


def test_damaged_models_are_refused_or_still_lose_nothing(tmp_path, model):
    whole, draw = model.read_bytes(), random.Random(2)
    path = tmp_path / "x.model"
    text = f"one, two  caf\u00e9 {SIGN} \n don't"
    refused = kept = 0
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(draw.choice([1, 4])):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data[: draw.choice([len(data), draw.randrange(len(data))])])
        try:
            assert back(Tokenizer(path), text) == text
        except ValueError as error:
            refused += "train-tokenizer" in str(error)
            continue
        kept += 1
    assert refused + kept == 200
    assert min(refused, kept) > 0


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"byte_fallback": False}, "no byte fallback"),
        ({"eos_id": -1}, "no end piece"),
        ({"add_dummy_prefix": True}, "turns the text"),
        ({"remove_extra_whitespaces": True}, "turns the text"),
        ({"normalization_rule_name": "nmt_nfkc"}, "turns the text"),
        ({"split_by_whitespace": False}, "joins words"),
        ({"treat_whitespace_as_suffix": True}, "joins words"),
        ({"user_defined_symbols": ["\n\n"]}, "joins words"),
    ],
)
def test_models_that_lose_text_or_join_words_are_refused(tmp_path, changes, found):
    settings = {
        "byte_fallback": True, "normalization_rule_name": "identity", "add_dummy_prefix": False,
        "remove_extra_whitespaces": False, "vocab_size": 600, "model_type": "bpe", "minloglevel": 2,
    }  # fmt: skip
    lines = english(8000).split("\n")
    prefix = tmp_path / "x"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(prefix), **(settings | changes)
    )
    with pytest.raises(ValueError, match=f"{found}.*wanted .*train-tokenizer"):
        Tokenizer(prefix.with_suffix(".model"))


# --- training


def test_training_is_repeatable_and_reports(tmp_path, capsys):
    (tmp_path / "raw.txt").write_text(english(6000))
    with gzip.open(tmp_path / "raw2.jsonl.gz", "wt") as stream:
        stream.write('{"text": "more text"}\n{"no": "text"}\n')
    for name in ("a", "b"):
        arguments = ["--raw", str(tmp_path), "--out", str(tmp_path / f"{name}.model")]
        assert main(["train-tokenizer", *arguments, "--vocabulary", "500"]) == 0
    said = capsys.readouterr().out
    assert "a.model: 500 pieces from " in said
    assert "bytes per token" in said
    assert "not all is usable: " in said
    assert 'no field "text"' in said
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()


def test_of_much_text_evenly_spread_lines_are_used(tmp_path, monkeypatch):
    lines = [f"line {number} of many" for number in range(1000)]
    (tmp_path / "raw.txt").write_text("\n".join(lines))
    seen: list[str] = []
    monkeypatch.setattr(
        tokenizers, "_learn",
        lambda raw, lines, pieces: seen.extend(lines) or learn(raw, lines, pieces),
    )  # fmt: skip
    train(tmp_path / "raw.txt", tmp_path / "x.model", 280, sample=5000)
    assert sum(map(len, seen)) <= 5000
    assert seen == lines[::4]


learn = tokenizers._learn


def test_a_long_line_is_used_in_parts(tmp_path):
    text = " ".join(english(3000).split())
    (tmp_path / "raw.txt").write_text(text)
    said = train(tmp_path / "raw.txt", tmp_path / "x.model", 400)
    assert f"400 pieces from {len(text):,} of {len(text):,} characters" in said


def test_text_without_spaces_makes_a_tokenizer_that_keeps_spaces(tmp_path):
    (tmp_path / "raw.txt").write_text("".join(english(6000).split(" ")))
    train(tmp_path / "raw.txt", tmp_path / "x.model", 400)
    assert back(Tokenizer(tmp_path / "x.model"), "a  b c ") == "a  b c "


@pytest.mark.parametrize(
    ("pieces", "wanted"),
    [
        (100_000, "wanted at most [0-9]+"),
        (100, "wanted at least [0-9]+"),
        (-3, "wanted at least"),
        (10**15, "wanted at most"),
    ],
)
def test_a_vocabulary_that_does_not_fit_the_text(tmp_path, pieces, wanted):
    (tmp_path / "raw.txt").write_text(english(4000))
    with pytest.raises(
        ValueError, match=rf"--vocabulary {pieces}; {wanted}.* Use --vocabulary [0-9]+ or"
    ):
        train(tmp_path / "raw.txt", tmp_path / "x.model", pieces)
    assert not (tmp_path / "x.model").exists()


def test_the_largest_vocabulary_that_is_named_can_be_trained(tmp_path):
    (tmp_path / "raw.txt").write_text(english(4000))
    with pytest.raises(ValueError, match="wanted at most") as error:
        train(tmp_path / "raw.txt", tmp_path / "x.model", 100_000)
    most = int(str(error.value).split("wanted at most ")[1].split(",")[0])
    train(tmp_path / "raw.txt", tmp_path / "x.model", most)
    assert Tokenizer(tmp_path / "x.model").pieces == most


def test_no_text_and_no_place_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no text; wanted files ending in .*Give --raw"):
        train(tmp_path, tmp_path / "x.model", 300)
    (tmp_path / "raw.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="no usable text.*empty document.*wanted"):
        train(tmp_path, tmp_path / "x.model", 300)
    with pytest.raises(ValueError, match=r"does not exist; wanted a file to write.*Choose"):
        train(tmp_path, tmp_path / "no" / "x.model", 300)
    with pytest.raises(ValueError, match=r"is a folder; wanted a file to write.*Choose"):
        train(tmp_path, tmp_path, 300)
