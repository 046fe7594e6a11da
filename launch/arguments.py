"""The words of the command line of `python -m launch`."""

import argparse
from pathlib import Path
from typing import Any


def parser() -> argparse.ArgumentParser:
    """Of `python -m launch`: the command is `name` of what it parses."""
    made = argparse.ArgumentParser(
        prog="python -m launch",
        description="Plan the runs of a study, or train them: DeepSpeed around megatron-core.",
    )
    commands = made.add_subparsers(dest="name", required=True, metavar="COMMAND")
    for add in (
        _add_plan,
        _add_run,
        _add_evaluate,
        _add_sample,
        _add_answers,
        _add_reshard,
        _add_verify,
    ):
        add(commands)
    return made


def _add_plan(commands: Any) -> None:
    plan = commands.add_parser(
        "plan",
        help="print every run: N, tokens, steps, FLOPs, how to spread it, memory, GPU-hours",
        description="For each run the cheapest strategy that fits the devices. Memory is predicted "
        "within 10 per cent as far as it was measured (docs/planning.md), time roughly. Exit status 2 if a run fits no "
        "strategy, and what would do.",
    )
    plan.add_argument("study", type=Path, metavar="STUDY.toml")
    plan.add_argument("--data", type=Path, metavar="DIR", help="also say how often it is repeated")
    plan.add_argument(
        "--device",
        default="h100",
        metavar="NAME",
        help="h100 (default), h200, a100, or cpu: this machine's, measured now",
    )
    plan.add_argument(
        "--gpus", type=int, default=1, metavar="N", help="devices of a run; default 1"
    )
    plan.add_argument(
        "--gpus-per-node", type=int, default=8, metavar="N", help="tensor parallelism stays within"
    )


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="train runs in this process, one after another (or on all ranks, under torchrun)",
        description="One process is the single-GPU (or CPU) test mode; under torchrun or srun all ranks train one. "
        "Exit status: 0 done, 1 a run failed, 2 bad input, 3 stopped by a signal with a checkpoint, 4 lost a rank.",
    )
    run.add_argument("study", type=Path, metavar="STUDY.toml")
    run.add_argument("--data", type=Path, required=True, metavar="DIR", help="the dataset's folder")
    run.add_argument("--results", type=Path, required=True, metavar="DIR")
    run.add_argument("--run", action="append", metavar="RUN_ID", help="only this run; repeatable")
    run.add_argument(
        "--at-a-time",
        type=int,
        default=1,
        metavar="K",
        help="so many runs at a time on this device, each in its own process: for small models",
    )


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="the loss of checkpoints on a dataset: by position, kind of token and document",
        description="Any dataset of the same vocabulary and context. Results go into each run's folder, "
        "evaluations/*.h5. Two checkpoints are compared document by document; of more, the earliest of the smallest "
        "model and the latest of the largest.",
    )
    _add_checkpoints(evaluate)
    evaluate.add_argument("--data", type=Path, required=True, metavar="DIR")
    evaluate.add_argument("--split", default="valid", help="train, valid (default) or test")
    evaluate.add_argument(
        "--rows", type=int, metavar="N", help="so many, chosen as in training; default: all"
    )
    evaluate.add_argument(
        "--out", type=Path, metavar="FILE", help="one HDF5 file for all, instead of the run folders"
    )
    evaluate.add_argument(
        "--missing", action="store_true", help="pass over what the run folders have already"
    )
    evaluate.add_argument(
        "--information",
        action="store_true",
        help="of pairs: also how many nats one part tells of the other, which is blanked for it",
    )


def _add_sample(commands: Any) -> None:
    sample = commands.add_parser(
        "sample",
        help="rows continued by models, small to large, beside the truth: one sheet",
        description="Of a picture the upper half is given, of a clip the first frames, of a pair its first part, of a "
        "problem the question. Pictures give a PNG, all else text. The same seed gives the same sheet.",
    )
    _add_checkpoints(sample)
    sample.add_argument("--data", type=Path, required=True, metavar="DIR")
    sample.add_argument("--split", default="valid", help="train, valid (default) or test")
    sample.add_argument("--rows", type=int, default=8, metavar="N", help="default: 8")
    sample.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="default: 1; 0: the likeliest"
    )
    sample.add_argument("--seed", type=int, default=0, metavar="S")
    sample.add_argument("--out", type=Path, required=True, metavar="FILE")


def _add_answers(commands: Any) -> None:
    answers = commands.add_parser(
        "answers",
        help="questions of mathematics: right answers and loss, by module and set",
        description="Greedy answers, right if they are so character by character. Results go into each run's folder, "
        "evaluations/*.h5.",
    )
    _add_checkpoints(answers)
    answers.add_argument(
        "--questions",
        type=Path,
        required=True,
        metavar="DIR",
        help="DIR/SET/MODULE.txt, as `data_prep questions` makes them or as they are published; or one set",
    )
    answers.add_argument(
        "--per-module", type=int, metavar="K", help="the first K of each file; default: all"
    )
    answers.add_argument(
        "--out", type=Path, metavar="FILE", help="one HDF5 file for all, instead of the run folders"
    )


def _add_checkpoints(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoints",
        type=Path,
        nargs="+",
        metavar="RUN_OR_CHECKPOINT",
        help="a run's folder (its newest checkpoint) or a checkpoints/step-<n>; as many as you like",
    )


def _add_reshard(commands: Any) -> None:
    reshard = commands.add_parser(
        "reshard",
        help="write a checkpoint for any TP, DP and ZeRO, or for other tools; and back",
        description="A run that is started with other numbers reshards by itself; this makes the files.",
    )
    reshard.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="or a run's folder")
    reshard.add_argument("--out", type=Path, required=True, metavar="DIR")
    reshard.add_argument(
        "--tensor-parallel",
        type=int,
        default=1,
        metavar="K",
        help="ranks that will share the model",
    )
    reshard.add_argument(
        "--to",
        choices=("universal", "safetensors", "megatron"),
        default="universal",
        help="universal: to train on (any K, here checked for K); the others: weights alone",
    )


def _add_verify(commands: Any) -> None:
    verify = commands.add_parser(
        "verify",
        help="train a tiny model in every TP x ZeRO x DP combination here and compare the losses",
        description="What to run first on a new machine. Exit status 1 if any combination differs "
        "from one rank without ZeRO.",
    )
    verify.add_argument(
        "--world-size",
        type=int,
        metavar="K",
        help="ranks; default: every GPU here, else 2 processes",
    )
