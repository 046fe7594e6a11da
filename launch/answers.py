"""`launch answers`: exact match and loss on questions of mathematics, by module and set.

A model is trained on problems that follow one another, each question and each answer with its newline, cut into rows
anywhere (`data_prep.domains.mathematics`). So a question is asked as it stands there: behind the newline of the answer
before it, which is the row's first token, and not at the row's very beginning, where a cut-off problem is likelier. The
model answers greedily, up to its newline; an answer counts if it is the true one, character by character, newline
included. The loss is that of the true answer's characters and its newline behind the same prompt.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_prep.questions import Questions, read_questions
from launch.console import say
from launch.evaluation_file import ANSWERS, writing
from launch.results import read_result
from launch.saved import EVALUATIONS, Saved, find_saved, refuse_several_ranks
from launch.trained_model import TrainedModel, trained_models
from megatron_ext.generation import Rows, continuation_losses, generate

ANSWER_COLUMNS = np.dtype(
    [
        ("set", "S32"),
        ("module", "S64"),
        ("questions", "i8"),
        ("correct", "i8"),
        ("loss_sum", "f8"),  # nats, over the tokens of the true answers
        ("num_tokens", "i8"),
    ]
)
DOMAIN = "mathematics"
MOST_TOGETHER = 256  # prompts in a batch: a step of one position each is still little work
LENGTHS_TOGETHER = 32  # by how many positions their lengths differ
_NEWLINE = ord("\n")
_BYTES = range(256)
_RECENT = 32  # steps: one alone says little


def answer_all(
    sources: Sequence[Path], folder: Path, per_module: int | None, out: Path | None
) -> list[str]:
    """Ask every checkpoint every question; returns the lines to print. Raises `ValueError` for whatever does not fit,
    before anything is computed."""
    refuse_several_ranks("answers")
    if out is not None and out.is_dir():
        raise ValueError(f"--out {out}: this is a folder; wanted a file. Name a file in it.")
    checkpoints = find_saved(sources)
    files = read_questions(folder, per_module)
    for saved in checkpoints:
        _refuse_unfit(saved, files)
    lines = []
    with contextlib.ExitStack() as opened:
        add = opened.enter_context(writing(out)) if out else None
        for saved, table in _tables(checkpoints, files):
            content = {"attributes": _attributes(saved, folder, table), "answers": table}
            target = out or saved.run / EVALUATIONS / _file_name(saved, folder, per_module)
            if add:
                add(saved.name, content)
            else:
                with writing(target) as add_alone:
                    add_alone(saved.name, content)
            found = [f"{saved.name} -> {target}", *in_words(table)]
            say("\n".join(found))
            lines += found
    return lines


def in_words(table: np.ndarray) -> list[str]:
    """A line for each set: share of right answers with its uncertainty, loss per token."""
    lines = []
    for name in np.unique(table["set"]):
        of_set = table[table["set"] == name]
        count, correct, loss, tokens = (
            of_set[each].sum() for each in ("questions", "correct", "loss_sum", "num_tokens")
        )
        lines.append(
            f"  {name.decode():12} {_share(int(correct), int(count))} of {count} answers are right; "
            f"loss {loss / tokens:.4f} nats per token"
        )
    return lines


def _share(correct: int, count: int) -> str:
    """With its binomial standard error; where none or all are right, which has none, the 95% bound (Clopper and
    Pearson 1934)."""
    share = correct / count
    if 0 < correct < count:
        error = (share * (1 - share) / count) ** 0.5
        return f"{100 * share:6.2f}% +- {100 * error:.2f}%"
    unlikely = 100 * (1 - 0.05 ** (1 / count))
    bound = f"at most {unlikely:.2f}%" if correct == 0 else f"at least {100 - unlikely:.2f}%"
    return f"{100 * share:6.2f}% ({bound} with 95% confidence)"


# --- what is asked


def _refuse_unfit(saved: Saved, files: Sequence[Questions]) -> None:
    if saved.config.domain != DOMAIN:
        raise ValueError(
            f"{saved.path}: trained on {saved.config.domain}; wanted a model of {DOMAIN}. Name another checkpoint."
        )
    most = saved.config.shape.seq_length
    for file in files:
        for column, name in (("set", file.set_name), ("module", file.module)):
            if len(name.encode()) > ANSWER_COLUMNS[column].itemsize:
                raise ValueError(
                    f"{file.path}: the name of its {column} has {len(name.encode())} bytes; wanted at most "
                    f"{ANSWER_COLUMNS[column].itemsize}, so that results keep it whole. Rename it."
                )
        for number, (question, answer) in enumerate(file.pairs):
            if len(prompt(question)) + len(answer) + 1 > most:
                raise ValueError(
                    f"{file.path}: line {2 * number + 1}: question and answer have {len(question) + len(answer)} "
                    f"characters; wanted at most {most - 3}, the context of {saved.path} without three newlines. "
                    "Remove the question."
                )


def prompt(question: bytes) -> bytes:
    """What is given to the model."""
    return b"\n" + question + b"\n"


def _file_name(saved: Saved, folder: Path, per_module: int | None) -> str:
    """By the last two names of the path: own questions and the official ones have sets of the same name."""
    first = "" if per_module is None else f"-first{per_module}"
    asked = "-".join(folder.resolve().parts[-2:]).strip("/")
    return f"{saved.path.name}-{ANSWERS}-{asked}{first}.h5"


def _attributes(saved: Saved, folder: Path, table: np.ndarray) -> dict[str, Any]:
    loss, split = train_loss(saved)
    return {
        "kind": ANSWERS,
        "step": saved.step,
        "train_loss": loss,
        "train_loss_split": split,
        "loss": table["loss_sum"].sum() / table["num_tokens"].sum(),
        "accuracy": table["correct"].sum() / table["questions"].sum(),
        "domain": DOMAIN,
        "questions": str(folder),
        "checkpoint": str(saved.path),
    }


def train_loss(saved: Saved) -> tuple[float, str]:
    """The loss that the run had come to at this checkpoint, nats per answer token, and on what: of `valid` where it was
    evaluated (its data is the training distribution, drawn once), else the mean over the last training steps."""
    try:
        result = read_result(saved.run)
    except ValueError:
        result = read_result(saved.path)  # the checkpoint's copy: it may have been moved away
    held_out = result.eval_rows("valid")
    held_out = held_out[held_out["step"] == saved.step]
    if len(held_out):
        return float(held_out["loss"][-1]), "valid"
    trained = result.train[result.train["step"] <= saved.step][-_RECENT:]
    return float(trained["loss"].mean()) if len(trained) else float("nan"), "train"


# --- asking


def _tables(
    checkpoints: Sequence[Saved], files: Sequence[Questions]
) -> Iterator[tuple[Saved, np.ndarray]]:
    for saved, model in trained_models(checkpoints):
        yield saved, _asked(model, files)


def _asked(model: TrainedModel, files: Sequence[Questions]) -> np.ndarray:
    """The questions of all files together, in batches of nearly equal lengths."""
    table = np.zeros(len(files), ANSWER_COLUMNS)
    for row, file in zip(table, files, strict=True):
        row["set"], row["module"] = file.set_name.encode(), file.module.encode()
        row["questions"] = len(file.pairs)
        row["num_tokens"] = sum(len(answer) + 1 for _, answer in file.pairs)
    every = [
        (number, prompt(question), answer + b"\n")
        for number, file in enumerate(files)
        for question, answer in file.pairs
    ]
    every.sort(key=lambda each: (len(each[1]), len(each[2])))
    for where in batches([len(given) for _, given, _ in every]):
        batch = every[where]
        correct, losses = answer_batch(model, [(given, answer) for _, given, answer in batch])
        numbers = [number for number, *_ in batch]
        np.add.at(table["correct"], numbers, correct)
        np.add.at(table["loss_sum"], numbers, losses)
    return table


def batches(lengths: Sequence[int]) -> Iterator[slice]:
    """Prompts of these rising lengths in batches: many, since a step of one position each costs little, and of nearly
    one length, since the rows of a batch start from the shortest together."""
    start = 0
    for stop in range(1, len(lengths) + 1):
        ends = stop == len(lengths) or stop - start == MOST_TOGETHER
        if ends or lengths[stop] > lengths[start] + LENGTHS_TOGETHER:
            yield slice(start, stop)
            start = stop


def answer_batch(
    model: TrainedModel, batch: Sequence[tuple[bytes, bytes]]
) -> tuple[np.ndarray, np.ndarray]:
    """Of pairs (prompt, true answer): whether the model gives it, bool [B], and its loss in nats, float64 [B]."""
    width = max(len(given) + len(answer) for given, answer in batch)
    text = b"".join((given + answer).ljust(width, b"\n") for given, answer in batch)
    truth = torch.from_numpy(np.frombuffer(text, np.uint8).reshape(len(batch), width).astype(int))
    truth = truth.to(model.device)
    given = [len(each) for each, _ in batch]
    until = [len(each) + len(answer) for each, answer in batch]
    rows = Rows(truth, given, until, range(len(batch)))
    # An answer that is longer than the true one is wrong before it ends.
    found, stop = generate(model.model, rows, [_BYTES] * width, end=_NEWLINE)
    same = (found == truth).all(1) & (stop == torch.tensor(until, device=model.device))
    return same.cpu().numpy(), continuation_losses(model.model, rows).cpu().numpy()
