"""submit | status | cancel | prepare"""

import argparse
import os
import shlex
import sys
from pathlib import Path

from launch.console import sentence
from launch.exits import BAD_INPUT, DONE, FAILED, STOPPED
from launch.study import expand, load_study
from slurm.alive import Live, live_tasks
from slurm.cancel import cancel, cancel_build
from slurm.cluster import cluster_names, load_cluster
from slurm.later import missing
from slurm.launcher import refuse_without_slurm
from slurm.ledger import JOBS, held, submissions
from slurm.prepare import Build, already_built, prepare
from slurm.queue import forget_settings
from slurm.status import StudyStatus, as_json, look
from slurm.submit import Round, needed, say, start_missing
from slurm.table import as_text, causes, summary
from slurm.target import (
    Target,
    Wishes,
    refuse_beyond_partition,
    refuse_other_study,
    target,
    unfinished,
)
from slurm.traces import last_lines

REPORT_LINES = 60  # of what `analysis report` prints
INTERRUPTED = 130  # by Ctrl-C


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 all done, 1 a run failed, 2 bad input, 3 stopped early, 130 Ctrl-C."""
    arguments = _parser().parse_args(argv)
    forget_settings()
    try:
        status = _COMMANDS[arguments.command](arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever reads it has seen enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
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
    build = commands.add_parser("prepare", help="build a dataset with an array of jobs")
    for command in (submit, status):
        command.add_argument("study", type=Path, metavar="STUDY.toml")
        command.add_argument("--results", type=Path, required=True, metavar="DIR")
    _add_cancel(cancel)
    for command in (submit, build):
        command.add_argument(
            "--cluster",
            required=True,
            metavar="NAME|FILE",
            help=f"one of {', '.join(cluster_names())}, or a cluster file",
        )
    _add_submit(submit)
    status.add_argument("--watch", action="store_true", help="live, until no job is left")
    status.add_argument("--json", action="store_true", help="for programs")
    _add_prepare(build)
    return parser


def _add_cancel(cancel: argparse.ArgumentParser) -> None:
    cancel.add_argument("study", type=Path, nargs="?", metavar="STUDY.toml")
    cancel.add_argument("--results", type=Path, metavar="DIR")
    cancel.add_argument(
        "--out", type=Path, metavar="DIR", help="instead of a study: a build that `prepare` started"
    )


def _add_submit(submit: argparse.ArgumentParser) -> None:
    submit.add_argument("--data", type=Path, required=True, metavar="DIR")
    submit.add_argument("--dry-run", action="store_true", help="only say what would be started")
    submit.add_argument(
        "--wait",
        action="store_true",
        help="watch until no job is left; Ctrl-C then stops local jobs and leaves Slurm's",
    )
    submit.add_argument(
        "--ranks", type=int, metavar="N", help="devices of each run; default: the planner's choice"
    )
    submit.add_argument(
        "--max-gpu-hours", type=float, metavar="X", help="refuse what is expected to take more"
    )
    submit.add_argument(
        "--no-report", action="store_true", help="only train: no fits and no report at the end"
    )
    submit.add_argument(
        "--evaluate",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="then evaluate every run on this dataset too; repeatable",
    )
    submit.add_argument(
        "--information",
        action="store_true",
        help="with --evaluate, of pairs: also how many nats one part tells of the other",
    )
    submit.add_argument(
        "--every-checkpoint",
        action="store_true",
        help="with --evaluate: every checkpoint that was kept, not each run's newest alone",
    )
    submit.add_argument(
        "--raw", metavar="PATH", help="build the data first, if --data is not there"
    )
    _add_build(submit)


def _add_prepare(build: argparse.ArgumentParser) -> None:
    build.add_argument("domain", metavar="DOMAIN", help="one that `python -m data_prep list` shows")
    build.add_argument("--raw", required=True, metavar="PATH")
    build.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="the dataset's folder"
    )
    _add_build(build)


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", type=int, default=4, metavar="M", help="jobs that build (4)")
    parser.add_argument(
        "--build",
        default="",
        metavar="WORDS",
        help="more words for `data_prep build`: --build='--rows 3800 --seed 1'",
    )


def _submit(arguments: argparse.Namespace) -> int:
    wishes = Wishes(
        raw=arguments.raw,
        parts=arguments.parts,
        build=arguments.build,
        ranks=arguments.ranks,
        max_gpu_hours=arguments.max_gpu_hours,
        evaluate=tuple(arguments.evaluate),
        information=arguments.information,
        every_checkpoint=arguments.every_checkpoint,
        report=not arguments.no_report,
    )
    of = target(arguments.study, arguments.cluster, arguments.data, arguments.results, wishes)
    if arguments.raw and of.build is None:
        say(already_built(of.data, of.runs[0].domain))
    refuse_other_study(of)
    left = unfinished(of)
    if not left and not missing(of, submissions(of.folder)):
        print(f"{len(of.runs)} of {len(of.runs)} runs are finished: nothing to do")
        return DONE
    if arguments.dry_run:
        return _dry_run(of)
    found = start_missing(of)
    for line in _said(of, found, len(of.runs) - len(left)):
        say(line)
    if arguments.wait:
        return _wait(arguments, of, found)
    say(f"watch: {_command('status', arguments)}")
    say(f"end:   {_command('cancel', arguments)}")
    return DONE


def _dry_run(of: Target) -> int:
    from slurm.describe import describe  # brings submitit

    live: list[Live] = []
    try:
        live = live_tasks(submissions(of.folder))
    except OSError as error:
        say(f"runs that are queued or running are shown too: {error}")
    found = needed(of, live)
    if found.elsewhere:
        print(f"{len(found.elsewhere)} runs are under way in another job or process: not shown")
    if not found.nothing:
        print("\n".join(describe(of, found.packed, found.stages, live)))
    return DONE


def _said(of: Target, found: Round, finished: int) -> list[str]:
    """What was started."""
    lines = [
        f"{of.name}: {len(of.runs)} runs: {finished} finished, {len(found.started)} started "
        f"now in {found.jobs} jobs, {len(found.elsewhere)} under way in another job or process"
    ]
    return lines + [f"  {line}" for line in found.said]


def _wait(arguments: argparse.Namespace, of: Target, found: Round) -> int:
    from slurm.watch import wait  # brings rich's live display

    status, interrupted = wait(of, found)
    _print(status)
    for stage in status.stages:
        if stage.stage == "report" and stage.state == "finished" and stage.log:
            print("\n".join(_report_said(Path(stage.log))))
    states = status.states
    if states == {"finished"}:
        return DONE
    if {run.state for run in status.runs} == {"finished"}:
        say(f"make the report again: python -m analysis report {of.folder} --out {of.folder}")
    else:
        say(f"continue with: {_command('submit', arguments)}")
    if interrupted:
        return INTERRUPTED
    return FAILED if states & {"failed", "damaged"} else STOPPED


def _report_said(log: Path) -> list[str]:
    """The report's path and what it found: the end of its job's log."""
    lines = last_lines(log, REPORT_LINES)
    first = next((at for at, line in enumerate(lines) if line.endswith("report.html")), 0)
    return lines[first:]


def _status(arguments: argparse.Namespace) -> int:
    study = load_study(arguments.study)
    runs, folder = expand(study, arguments.study), arguments.results.resolve() / study.name
    if arguments.watch and not arguments.json:
        from slurm.watch import watch

        status = watch(runs, folder)
    else:
        status = look(runs, folder)
    if status.slurm:
        say(status.slurm)
    if not folder.exists():
        say(f"{folder} is not there: nothing of this study was ever begun below this --results")
    if arguments.json:
        print(as_json(status))
    else:
        _print(status)
    return DONE


def _cancel(arguments: argparse.Namespace) -> int:
    of_study = arguments.study is not None and arguments.results is not None
    if (
        of_study == (arguments.out is not None)
        or (arguments.study or arguments.results)
        and not of_study
    ):
        raise ValueError(
            "wanted what to end: a study, STUDY.toml --results DIR, or a build that `prepare` started, --out DIR. "
            "Give one of the two."
        )
    if arguments.out is not None:
        build = cancel_build(arguments.out.resolve())
        print(
            f"{len(build.live)} jobs asked to stop; the same prepare again goes on with what is built"
        )
        for line in build.kept:
            print(line)
        return DONE
    study = load_study(arguments.study)
    folder = arguments.results.resolve() / study.name
    if not folder.exists():
        raise ValueError(
            f"--results {arguments.results}: nothing of {study.name} was ever begun there; wanted what submit was "
            "given. Check the path."
        )
    done = cancel(folder)
    print(f"{len(done.live)} jobs asked to stop at their next step, with a checkpoint")
    for line in done.kept:
        print(line)
    submitted = {run_id for each in done.live for run_id in each.submission.tasks[each.task]}
    for run in expand(study, arguments.study):
        holder = held(folder / run.run_id)
        if holder and run.run_id not in submitted:
            say(f"{run.run_id} is trained by {holder}, which was not submitted: end it yourself")
    return DONE


def _prepare(arguments: argparse.Namespace) -> int:
    build = Build(
        arguments.domain, arguments.raw, arguments.out.resolve(), arguments.parts, arguments.build
    )
    if build.finished:
        print(already_built(build.out, build.domain))
        print(f"read every byte of it: python -m data_prep check {arguments.out}")
        return DONE
    cluster = load_cluster(arguments.cluster)
    if cluster.executor == "slurm":
        refuse_without_slurm()
        refuse_beyond_partition(cluster)
    before = causes(look((), build.out))
    under_way = prepare(build, cluster, build.out)
    state = "started" if under_way.started else "under way since before"
    if under_way.started and before:
        state = "started again, though the last time failed as told above"
        print("\n".join(before))
    print(f"{arguments.out}: {build.parts} parts and their check {state}")
    _print(look((), build.out))
    say(f"type the same again to see how far it is; records and logs: {build.out / JOBS}")
    say(f"end:   {shlex.join(['python', '-m', 'slurm', 'cancel', '--out', str(arguments.out)])}")
    return DONE


def _print(status: StudyStatus) -> None:
    print("\n".join(as_text(status)))
    if status.runs:
        print(summary(status.runs))
    for line in causes(status):
        print(line)


def _command(command: str, arguments: argparse.Namespace) -> str:
    """The command line to type for the same study."""
    words = ["python", "-m", "slurm", command, str(arguments.study)]
    if command == "submit":
        words += ["--cluster", arguments.cluster, "--data", str(arguments.data)]
    words += ["--results", str(arguments.results)]
    return shlex.join(words + (["--wait"] if command == "submit" else []))


_COMMANDS = {"submit": _submit, "status": _status, "cancel": _cancel, "prepare": _prepare}

if __name__ == "__main__":
    sys.exit(main())
