"""Greedy decoding of mathematics answers with a cache of keys and values, against computing the prefix again each time.

    python -m benchmarks.generation [--threads N] [--rounds N]

Same model, questions, batches and ends of answers, as `launch answers` has them; the loop that is the peer lets go of
rows that have ended too, and differs in nothing but the cache. The two alternate in one process. Prints a Markdown
table: answers per second of CPU time (of wall time on a GPU), median of the rounds. The bar: at least 5x.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from data_prep.mathematics_generator import choose_modules, sample, seed_everything
from launch.answers import batches, prompt
from launch.engine import start_process
from megatron_ext.generation import Rows, generate, hidden_states
from megatron_ext.model import LanguageModel, build_model
from megatron_ext.shape import shape_of

BAR = 5.0
NEWLINE = ord("\n")
SHAPES = {"98 k parameters": (8, 64), "12 k parameters": (4, 32)}  # Henighan table 5


def main(words: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=1024)
    parser.add_argument("--case", action="append", help="only cases whose name holds this")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    device = start_process()
    asked = _batches(_questions(options.questions), device)
    print("| model | prefix again, answers/s | cache, answers/s | ratio (spread) | bar |")
    print("|---|---:|---:|---:|---:|")
    for name, (layers, width) in SHAPES.items():
        if options.case and not any(part in name for part in options.case):
            continue
        shape = shape_of(
            "henighan", num_layers=layers, hidden_size=width, seq_length=512, vocab_size=256
        )
        model = build_model(shape, seed=0, init_std=0.02, device=device).eval()
        slow, fast = [], []
        for _ in range(options.rounds):
            slow.append(_seconds(prefix_again, model, asked))
            fast.append(_seconds(with_cache, model, asked))
        ratios = sorted(a / b for a, b in zip(slow, fast, strict=True))
        rates = [options.questions / statistics.median(each) for each in (slow, fast)]
        print(
            f"| {name} | {rates[0]:,.0f} | {rates[1]:,.0f} | {statistics.median(ratios):.1f} "
            f"({ratios[0]:.1f}-{ratios[-1]:.1f}) | {BAR:g}x |",
            flush=True,
        )


def with_cache(model: LanguageModel, rows: Rows) -> Tensor:
    """Ours."""
    return generate(model, rows, [range(256)] * max(rows.until), end=NEWLINE)[0]


@torch.no_grad()
def prefix_again(model: LanguageModel, rows: Rows) -> Tensor:
    """The peer: for every token the whole row so far goes through the model."""
    tokens = rows.tokens.clone()
    given, stop = (torch.tensor(each, device=tokens.device) for each in (rows.given, rows.until))
    for position in range(min(rows.given), max(rows.until)):
        alive = (stop > position).nonzero(as_tuple=True)[0]
        if not len(alive):
            break
        start = tokens.new_full((len(alive), 1), model.shape.vocab_size)
        inputs = torch.cat((start, tokens[alive, :position]), dim=1)
        last = hidden_states(model, inputs)[-1]
        chosen = F.linear(last, model.gpt.output_layer.weight[:256]).argmax(1)
        ours = given[alive] <= position
        tokens[alive, position] = torch.where(ours, chosen, tokens[alive, position])
        stop[alive[ours & (chosen == NEWLINE)]] = position + 1
    return tokens


def _seconds(way: Callable, model: LanguageModel, asked: Sequence[Rows]) -> float:
    clock = time.perf_counter if asked[0].tokens.is_cuda else time.process_time
    began = clock()
    for rows in asked:
        way(model, rows).sum().item()
    return clock() - began


def _questions(count: int) -> list[tuple[bytes, bytes]]:
    """Prompts and answers of the published interpolation modules, by length."""
    seed_everything(0)
    draw, makers = random.Random(0), choose_modules(("interpolate",))
    found = [sample(draw.choice(makers)[1]) for _ in range(count)]
    pairs = [(prompt(question.encode()), answer.encode() + b"\n") for question, answer in found]
    return sorted(pairs, key=lambda pair: (len(pair[0]), len(pair[1])))


def _batches(pairs: Sequence[tuple[bytes, bytes]], device: torch.device) -> list[Rows]:
    found = []
    for where in batches([len(given) for given, _ in pairs]):
        batch = pairs[where]
        until = [len(given) + len(answer) for given, answer in batch]
        text = [list((given + answer).ljust(max(until), b"\n")) for given, answer in batch]
        given = [len(each) for each, _ in batch]
        found.append(Rows(torch.tensor(text, device=device), given, until, range(len(batch))))
    return found


if __name__ == "__main__":
    main()
