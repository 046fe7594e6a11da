"""`launch answers`: what it counts, how it asks, and what it refuses."""

import numpy as np
import pytest
import torch

from data_prep.questions import read_questions
from launch.__main__ import main
from launch.answers import ANSWER_COLUMNS, answer_batch, in_words, prompt
from launch.engine import start_process
from launch.evaluation_file import read_evaluations
from launch.folder import run_folder
from launch.results import read_result
from launch.run import run_all
from launch.saved import find_saved
from launch.trained_model import TrainedModel
from megatron_ext.generation import Rows, generate
from tests.launch.small import config


@pytest.fixture(scope="module")
def trained(mathematics, tmp_path_factory):
    """A finished run that has learned that answers end: those of the fixture are one to five digits."""
    results = tmp_path_factory.mktemp("trained")
    run = config(60, domain="mathematics", budget={"tokens": 60 * 4 * 512.0})
    run = run.model_copy(update={"keep_steps": [30]})
    assert run_all([run], mathematics, results) == 0
    return run_folder(results, run)


@pytest.fixture
def folder(tmp_path):
    """Two sets; one file has questions of other lengths."""
    for name, start, count in (
        ("level-01/sums", 0, 40),
        ("level-02/sums", 5000, 30),
        ("level-02/more", 100, 7),
    ):
        path = tmp_path / "questions" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "".join(f"What is {n} + {n * 7}?\n{n * 8}\n" for n in range(start, start + count))
        )
    return tmp_path / "questions"


def answers(capsys, *arguments):
    status = main(["answers", *map(str, arguments)])
    said = capsys.readouterr()
    return status, said.out.splitlines(), said.err


def test_counts_and_losses_are_those_of_one_question_at_a_time(trained, folder, tmp_path, capsys):
    """Against the model's own forward pass over the whole padded row: an answer is right if each of its tokens is the
    likeliest one behind the true ones before it."""
    out = tmp_path / "out.h5"
    status, lines, _ = answers(capsys, trained, "--questions", folder, "--out", out)
    assert status == 0
    ((name, found),) = read_evaluations(out).items()
    assert name == f"{trained.name}/step-60"
    table = found["answers"]
    assert table.dtype == ANSWER_COLUMNS
    model = TrainedModel(find_saved([trained])[0].config, start_process())
    model.load(trained / "checkpoints" / "step-60")
    for row, file in zip(table, read_questions(folder), strict=True):
        assert (row["set"].decode(), row["module"].decode()) == (file.set_name, file.module)
        correct, loss, count = 0, 0.0, 0
        for question, answer in file.pairs:
            given, whole = len(prompt(question)), prompt(question) + answer + b"\n"
            tokens = torch.tensor([list(whole.ljust(512, b"\n"))])
            logits = model.model.logits(tokens)[0][given : len(whole)].double()
            target = tokens[0, given : len(whole)]
            correct += bool((logits.argmax(1) == target).all())
            loss += torch.nn.functional.cross_entropy(logits, target, reduction="sum").item()
            count += len(target)
        assert (row["questions"], row["correct"], row["num_tokens"]) == (
            len(file.pairs),
            correct,
            count,
        )
        # Sums of some hundred products in another order, in every layer.
        assert row["loss_sum"] == pytest.approx(loss, rel=1e3 * torch.finfo(torch.float32).eps)
    assert lines[0] == f"{name} -> {out}"
    assert [line.split()[0] for line in lines[1:]] == ["level-01", "level-02"]


def test_right_answers_are_counted(trained):
    """Of the answers that the model gives itself: they are right, and any other is wrong."""
    model = TrainedModel(find_saved([trained])[0].config, start_process())
    model.load(trained / "checkpoints" / "step-60")
    questions = [prompt(b"What is %d + %d?" % (n, 7 * n)) for n in range(9)]
    longest = np.full((9, 60), ord("\n"), np.int64)
    for row, question in enumerate(questions):
        longest[row, : len(question)] = list(question)
    rows = Rows(torch.from_numpy(longest), [len(q) for q in questions], [60] * 9, range(9))
    tokens, stop = generate(model.model, rows, [range(256)] * 60, end=ord("\n"))
    own = [
        bytes(row[len(q) : end].tolist())
        for row, q, end in zip(tokens, questions, stop, strict=True)
    ]
    ended = [answer.endswith(b"\n") and len(answer) > 1 for answer in own]
    assert any(ended)
    correct, _ = answer_batch(model, list(zip(questions, own, strict=True)))
    assert correct.all()
    for wrong in ([b"!" + answer[1:] for answer in own], [answer[:-1] + b"0\n" for answer in own]):
        correct, _ = answer_batch(model, list(zip(questions, wrong, strict=True)))
        assert not correct[ended].any()
    cut = [answer[:-2] + b"\n" for answer in own]  # the model goes on where the truth ends
    correct, _ = answer_batch(model, list(zip(questions, cut, strict=True)))
    assert not correct[ended].any()


def test_each_runs_folder_gets_its_file_with_the_loss_in_training(trained, folder, capsys):
    steps = [trained / "checkpoints" / f"step-{step}" for step in (30, 60)]
    status, lines, _ = answers(capsys, *steps, "--questions", folder, "--per-module", 3)
    assert status == 0
    result = read_result(trained)
    for step, evaluated in ((30, False), (60, True)):
        path = (
            trained
            / "evaluations"
            / f"step-{step}-answers-{folder.parent.name}-{folder.name}-first3.h5"
        )
        ((_, found),) = read_evaluations(path).items()
        attributes = found["attributes"]
        assert (attributes["kind"], attributes["step"]) == ("answers", step)
        assert found["answers"]["questions"].tolist() == [3, 3, 3]
        loss = attributes["loss"] * found["answers"]["num_tokens"].sum()
        assert loss == pytest.approx(found["answers"]["loss_sum"].sum(), rel=1e-12)
        evaluated = step in result.eval_rows("valid")["step"]
        wanted = result.eval_rows("valid")[-1]["loss"] if evaluated else None
        recent = result.train["loss"][max(0, step - 32) : step].mean()
        assert attributes["train_loss"] == pytest.approx(wanted if evaluated else recent, rel=1e-12)
        assert attributes["train_loss_split"] == ("valid" if evaluated else "train")


def test_the_line_of_a_set_has_its_binomial_error():
    table = np.array(
        [
            (b"a", b"x", 60, 20, 30.0, 50),
            (b"a", b"y", 40, 5, 20.0, 50),
            (b"b", b"x", 10, 10, 1.0, 4),
        ],
        ANSWER_COLUMNS,
    )
    first, second = in_words(table)
    # 25 of 100: sqrt(0.25 * 0.75 / 100) = 0.0433
    words = "a 25.00% +- 4.33% of 100 answers are right; loss 0.5000 nats per token"
    assert " ".join(first.split()) == words
    assert "100.00% (at least 74.11% with 95% confidence) of 10" in second


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty; wanted question and answer lines in turn"),
        (b"What is 1?\n1\nWhat is 2?\n", "3 lines, an odd number"),
        ("What is ½?\n1\n".encode(), "line 1 or 2 holds a character that is not ASCII"),
        (b"What is 1?\n\nWhat is 2?\n2\n", "line 2 is empty"),
        (b"What is 1?\n1\n\xff\n2\n", "not UTF-8"),
        (b"a" * 509 + b"\n12\n", "line 1: question and answer have 511 characters; wanted at most 509"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_before_anything_is_asked(trained, folder, capsys, content, said):
    (folder / "level-02" / "bad.txt").write_bytes(content)
    status, _, error = answers(capsys, trained, "--questions", folder)
    assert status == 2
    assert str(folder / "level-02" / "bad.txt") in error
    assert said in error


def test_a_name_that_results_could_not_keep_is_refused(trained, folder, capsys):
    (folder / "level-01").rename(folder / ("level-01-" + 30 * "x"))
    status, _, error = answers(capsys, trained, "--questions", folder)
    assert status == 2
    assert "the name of its set has 39 bytes; wanted at most 32" in error


def test_other_bad_input_is_refused(trained, folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    for questions, said in ((tmp_path / "empty", "holds no .txt file; wanted a folder of sets"),
                            (tmp_path / "none", "is no folder; wanted a folder of sets")):  # fmt: skip
        status, _, error = answers(capsys, trained, "--questions", questions)
        assert (status, said in error) == (2, True)
    for words, said in (
        (
            (trained, "--questions", folder, "--per-module", 0),
            "--per-module 0: wanted a whole number",
        ),
        ((trained, "--questions", folder, "--out", tmp_path), "this is a folder; wanted a file"),
        ((trained, trained, "--questions", folder), "named 2 times; wanted each checkpoint once"),
        ((tmp_path, "--questions", folder), "no checkpoint in it; wanted a run's folder"),
    ):
        status, _, error = answers(capsys, *words)
        assert (status, said in error) == (2, True), error
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, error = answers(capsys, trained, "--questions", folder)
    assert (status, "launch answers: 2 ranks; wanted one process" in error) == (2, True)


def test_a_model_of_pictures_is_refused(pictures, folder, tmp_path, capsys):
    run = config(4)
    assert run_all([run], pictures, tmp_path) == 0
    status, _, error = answers(capsys, run_folder(tmp_path, run), "--questions", folder)
    assert (status, "trained on image-8x8; wanted a model of mathematics" in error) == (2, True)
