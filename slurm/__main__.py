"""submit | status | cancel"""

import argparse
import shlex
import sys
from pathlib import Path

from rich.console import Console

from launch.console import sentence
from launch.study import expand, load_study
from slurm.cluster import cluster_names
from slurm.ledger import end, held, live_runs, submissions
from slurm.status import RunStatus, as_json, as_table, causes, look
from slurm.submit import (
    Round,
    Target,
    describe,
    plan,
    refuse_other_study,
    say,
    start_missing,
    target,
    unfinished,
)

ALL_DONE, FAILED, BAD_INPUT, STOPPED_EARLY, INTERRUPTED = 0, 1, 2, 3, 130


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 all done, 1 a run failed, 2 bad input, 3 stopped early, 130 Ctrl-C."""
    arguments = _parser().parse_args(argv)
    try:
        return _COMMANDS[arguments.command](arguments)
    except (ValueError, OSError) as error:
        print(f"{arguments.command}: {sentence(error)}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(
            "interrupted. Jobs that were started go on: watch them with status or with "
            "submit --wait, end them with cancel.",
            file=sys.stderr,
        )
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m slurm", description="Many runs on a cluster.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    submit = commands.add_parser("submit", help="start jobs for the runs that are missing")
    status = commands.add_parser("status", help="the study as a table, from its files")
    cancel = commands.add_parser("cancel", help="stop its jobs at their next step, resumable")
    for command in (submit, status, cancel):
        command.add_argument("study", type=Path, metavar="STUDY.toml")
        command.add_argument("--results", type=Path, required=True, metavar="DIR")
    submit.add_argument(
        "--cluster",
        required=True,
        metavar="NAME|FILE",
        help=f"one of {', '.join(cluster_names())}, or a cluster file",
    )
    submit.add_argument("--data", type=Path, required=True, metavar="DIR")
    submit.add_argument("--dry-run", action="store_true", help="only say what would be started")
    submit.add_argument(
        "--wait",
        action="store_true",
        help="watch until no job is left; Ctrl-C then stops local jobs and leaves Slurm's",
    )
    status.add_argument("--json", action="store_true", help="for programs")
    return parser


def _submit(arguments: argparse.Namespace) -> int:
    of = target(arguments.study, arguments.cluster, arguments.data, arguments.results)
    refuse_other_study(of)
    number = len(of.runs)
    left = unfinished(of)
    if not left:
        print(f"{number} of {number} runs are finished: nothing to do")
        return ALL_DONE
    if arguments.dry_run:
        print("\n".join(describe(of, plan(of, left))))
        return ALL_DONE
    found = start_missing(of)
    say(
        f"{of.name}: {number} runs: {number - len(left)} finished, {len(found.started)} started "
        f"now in {found.jobs} jobs, {len(found.elsewhere)} under way in another job or process"
    )
    if arguments.wait:
        return _wait(arguments, of, found)
    say(f"watch: {_command('status', arguments)}")
    say(f"end:   {_command('cancel', arguments)}")
    return ALL_DONE


def _wait(arguments: argparse.Namespace, of: Target, found: Round) -> int:
    from slurm.watch import wait  # brings rich's live display

    statuses, interrupted = wait(of, found)
    _print_table(statuses)
    states = {status.state for status in statuses}
    if states == {"finished"}:
        return ALL_DONE
    say(f"continue with: {_command('submit', arguments)}")
    if interrupted:
        return INTERRUPTED
    return FAILED if states & {"failed", "damaged"} else STOPPED_EARLY


def _status(arguments: argparse.Namespace) -> int:
    statuses = _look(arguments)
    if arguments.json:
        print(as_json(statuses))
    else:
        _print_table(statuses)
    return ALL_DONE


def _cancel(arguments: argparse.Namespace) -> int:
    study = load_study(arguments.study)
    folder = arguments.results.resolve() / study.name
    live = {each.name: each for each in live_runs(submissions(folder)).values()}
    for submission in live.values():
        end(submission)
    print(f"{len(live)} jobs asked to stop at their next step, with a checkpoint")
    submitted = {run_id for submission in live.values() for run_id in submission.run_ids}
    for run in expand(study, arguments.study):
        holder = held(folder / run.run_id)
        if holder and run.run_id not in submitted:
            say(f"{run.run_id} is trained by {holder}, which was not submitted: end it yourself")
    return ALL_DONE


def _look(arguments: argparse.Namespace) -> list[RunStatus]:
    study = load_study(arguments.study)
    runs = expand(study, arguments.study)
    return look(runs, arguments.results.resolve() / study.name)


def _print_table(statuses: list[RunStatus]) -> None:
    width = None if sys.stdout.isatty() else 160  # a file has no width; do not cut names there
    Console(width=width, highlight=False).print(as_table(statuses))
    for line in causes(statuses):
        print(line)


def _command(command: str, arguments: argparse.Namespace) -> str:
    """The command line to type for the same study."""
    words = ["python", "-m", "slurm", command, str(arguments.study)]
    if command == "submit":
        words += ["--cluster", arguments.cluster, "--data", str(arguments.data)]
    words += ["--results", str(arguments.results)]
    return shlex.join(words + (["--wait"] if command == "submit" else []))


_COMMANDS = {"submit": _submit, "status": _status, "cancel": _cancel}

if __name__ == "__main__":
    sys.exit(main())
