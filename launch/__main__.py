"""`python -m launch`: plan a study, or train its runs in this process."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.config import RunConfig
from launch.console import first_rank, say, sentence
from launch.folder import data_identity, finished_on, run_folder
from launch.packing import run_packed
from launch.study import expand, load_study


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (2: bad arguments or input)."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.command(arguments)
    except (ValueError, OSError) as error:
        print(f"{arguments.name}: {sentence(error)}", file=sys.stderr)
        return 2


def _plan(arguments: argparse.Namespace) -> int:
    from launch.devices import device_of
    from launch.plan import print_plan

    runs = expand(load_study(arguments.study), arguments.study)
    for option in ("gpus", "gpus_per_node"):
        if getattr(arguments, option) < 1:
            raise ValueError(
                f"--{option.replace('_', '-')} {getattr(arguments, option)}: wanted a whole number of "
                "at least 1. Leave it out for the default."
            )
    device = device_of(arguments.device)
    print_plan(runs, arguments.data, device, arguments.gpus, arguments.gpus_per_node)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from launch.agreement import agreed  # torch

        chosen = agreed(lambda: _asked_for(arguments))
    else:
        chosen = _asked_for(arguments)
    if all(_finished(run, arguments) for run in chosen):
        say(f"{len(chosen)} of {len(chosen)} runs are finished: nothing to do")
        return 0
    if arguments.at_a_time > 1:
        return run_packed(chosen, arguments.data, arguments.results, arguments.at_a_time)
    from launch.run import run_all  # torch and DeepSpeed: only now

    return run_all(chosen, arguments.data, arguments.results)


def _asked_for(arguments: argparse.Namespace) -> Sequence[RunConfig]:
    """The runs to train. Raises `ValueError` for what is better refused now, once."""
    runs = expand(load_study(arguments.study), arguments.study)
    chosen = _chosen(runs, arguments.run, arguments.study)
    if not arguments.data.exists():
        raise ValueError(
            f"--data {arguments.data}: no such folder; wanted a dataset that `python -m data_prep "
            "build` made. Check the path, or build it first."
        )
    if arguments.results.exists() and not arguments.results.is_dir():
        raise ValueError(
            f"--results {arguments.results}: this is a file; wanted a folder for the runs. Name another path."
        )
    _refuse_at_a_time(arguments.at_a_time)
    data_identity(chosen[0], arguments.data)  # a missing split
    return chosen


def _refuse_at_a_time(number: int) -> None:
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if number < 1 or (number > 1 and ranks > 1):
        raise ValueError(
            f"--at-a-time {number} with {ranks} ranks; wanted a whole number of at least 1, and 1 where several "
            "ranks train one run. Leave it out for one run at a time."
        )


def _reshard(arguments: argparse.Namespace) -> int:
    from launch.reshard import reshard

    made = reshard(
        arguments.checkpoint,
        arguments.out,
        tensor_parallel=arguments.tensor_parallel,
        to=arguments.to,
    )
    print(made)
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from launch.evaluate import evaluate_all

    sources, data = arguments.checkpoints, arguments.data
    split, rows, out = arguments.split, arguments.rows, arguments.out
    lines = evaluate_all(sources, data, split, rows, out, told=arguments.information)
    if first_rank():
        print("\n".join(lines))
    return 0


def _sample(arguments: argparse.Namespace) -> int:
    from launch.sample import sample_sheet

    print(
        sample_sheet(
            arguments.checkpoints,
            arguments.data,
            arguments.split,
            arguments.rows,
            temperature=arguments.temperature,
            seed=arguments.seed,
            out=arguments.out,
        )
    )
    return 0


def _answers(arguments: argparse.Namespace) -> int:
    from launch.answers import answer_all

    sources, folder = arguments.checkpoints, arguments.questions
    print("\n".join(answer_all(sources, folder, arguments.per_module, arguments.out)))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from launch.verify import verify

    return verify(arguments.world_size)


def _finished(run: RunConfig, arguments: argparse.Namespace) -> bool:
    try:
        return finished_on(run, run_folder(arguments.results, run), arguments.data)
    except ValueError:
        return False  # told where the run is tried, and the other runs are trained


def _chosen(
    runs: Sequence[RunConfig], wanted: Sequence[str] | None, study: Path
) -> Sequence[RunConfig]:
    """The runs of these ids, in the study's order; all if none is named."""
    by_id = {run.run_id: run for run in runs}
    unknown = [run_id for run_id in wanted or () if run_id not in by_id]
    if unknown:
        raise ValueError(
            f"{study}: --run {unknown[0]}: no such run in this study; wanted one of: "
            f"{', '.join(by_id)}. The id ends in a digest of the configuration: an edited study "
            "has other ids."
        )
    chosen = [by_id[run_id] for run_id in wanted or by_id]
    # A trunk comes before the shorter runs that start from its checkpoints.
    return sorted(chosen, key=lambda run: run.trunk is not None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch",
        description="Plan the runs of a study, or train them: DeepSpeed around megatron-core.",
    )
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")
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
    return parser


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
    plan.set_defaults(command=_plan)


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
    run.set_defaults(command=_run)


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="the loss of checkpoints on a dataset: by position, kind of token and document",
        description="Any dataset of the same vocabulary and context. Results go into each run's folder, "
        "evaluations/*.h5. Of several checkpoints the first and the last are compared row by row.",
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
        "--information",
        action="store_true",
        help="of pairs: also how many nats one part tells of the other, which is blanked for it",
    )
    evaluate.set_defaults(command=_evaluate)


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
    sample.set_defaults(command=_sample)


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
    answers.set_defaults(command=_answers)


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
    reshard.set_defaults(command=_reshard)


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
    verify.set_defaults(command=_verify)


if __name__ == "__main__":
    sys.exit(main())
