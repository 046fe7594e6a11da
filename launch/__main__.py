"""`python -m launch`: plan a study, or train its runs in this process."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.arguments import parser
from launch.config import RunConfig
from launch.console import first_rank, say, sentence
from launch.folder import data_identity, finished_on, run_folder
from launch.packing import run_packed
from launch.study import expand, load_study


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (2: bad arguments or input)."""
    arguments = parser().parse_args(argv)
    try:
        return _COMMANDS[arguments.name](arguments)
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
    told, missing = arguments.information, arguments.missing
    lines = evaluate_all(sources, data, split, rows, out, told=told, missing=missing)
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


_COMMANDS = {
    "plan": _plan,
    "run": _run,
    "evaluate": _evaluate,
    "sample": _sample,
    "answers": _answers,
    "reshard": _reshard,
    "verify": _verify,
}

if __name__ == "__main__":
    sys.exit(main())
