"""fit | predict | suggest | report. Results on stdout, messages on stderr, exit status 2 for bad input."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from launch.console import sentence

if TYPE_CHECKING:
    from analysis.runs import Counting

LAWS = (  # = separable.LAW_NAMES, without its imports (a test)
    "power", "power-constant", "logarithm", "broken", "surface", "coupled", "surface-kaplan",
    "learning-curve", "data-constrained", "position", "isoflop", "frontier", "critical-batch",
)  # fmt: skip
X_NAMES = ("params", "tokens", "flops")
INCLUDES = (
    "unfinished",
    "diverged",
    "spiking",
    "mid-schedule",
    "repeated",
)  # = guards.INCLUDES (a test)
PARAM_COUNTS = ("non-embedding", "non-embedding-and-head", "total")
FLOP_COUNTS = ("6nd", "exact")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    options = _parser().parse_args(arguments)
    try:
        with _busy(f"{options.name} ..."):
            return options.command(options)
    except (ValueError, OSError) as error:
        print(sentence(error), file=sys.stderr)
        return 2


@contextmanager
def _busy(text: str) -> Iterator[None]:
    """A spinner on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


def _fit(options: argparse.Namespace) -> int:
    from analysis.estimate import draws_csv, to_text
    from analysis.sources import fit_law, read_points

    found = read_points(options.source, options.law, options.x, _counting(options))
    fit = fit_law(
        found, options.law, options.x, options.bootstrap, options.seed, options.delta, compare=True
    )
    if options.draws is not None:
        _give(draws_csv(fit), options.draws)
    _give(to_text(fit.as_json()), options.json)
    return 0


def _predict(options: argparse.Namespace) -> int:
    from analysis.estimate import to_text
    from analysis.predict import check_target, predict
    from analysis.sources import fit_law, law_of, read_points

    if options.reducible is not None:
        return _for_reducible(options)
    names = [name for name in X_NAMES if getattr(options, name) is not None]
    wanted = {name: getattr(options, name) for name in names}
    if not wanted:
        raise ValueError(
            "predict: no target; wanted --flops C, --params N or --tokens D, or two of them for a "
            "law of N and D, or --reducible NATS. Give at least one."
        )
    check_target(options.law, wanted)
    x = names[0]
    found = read_points(options.source, options.law, x, _counting(options))
    fit = fit_law(found, options.law, x, options.bootstrap, options.seed)
    law = law_of(options.law, x)
    answer = predict(found, fit, law, wanted, options.bootstrap, options.seed)
    _give(to_text(answer), options.json)
    return 0


def _for_reducible(options: argparse.Namespace) -> int:
    from analysis.consequences import for_reducible
    from analysis.estimate import to_text
    from analysis.sources import fit_law, read_points

    found = read_points(options.source, options.law, options.x, _counting(options))
    fit = fit_law(found, options.law, options.x, options.bootstrap, options.seed)
    needed = for_reducible(fit, options.reducible, options.per_sample)
    answer = {
        "law": fit.law,
        "reducible": options.reducible,
        "tokens_per_sample": options.per_sample,
        "needed": {name: each.as_json() for name, each in needed.items()},
        "warnings": fit.warnings,
        "fit": fit.as_json(),
    }
    _give(to_text(answer), options.json)
    return 0


def _suggest(options: argparse.Namespace) -> int:
    from analysis.estimate import to_text
    from analysis.suggest import Wish, suggest

    names = [name for name in X_NAMES if getattr(options, name) is not None]
    target = {name: getattr(options, name) for name in names}
    wish = Wish(options.shrink, target, options.budget, options.runs)
    answer, study = suggest(
        options.source, options.law, options.x, _counting(options), wish, options.bootstrap,
        options.seed, options.domain, options.learning_rate, options.out,
    )  # fmt: skip
    _give(study, options.out)
    _give(to_text(answer), options.json)
    return 0


def _report(options: argparse.Namespace) -> int:
    from analysis.report import write_report

    for line in write_report(
        options.results,
        options.out,
        _counting(options),
        options.bootstrap,
        options.seed,
        options.data_limits,
        options.critical_batch,
    ):
        print(line)
    return 0


def _counting(options: argparse.Namespace) -> "Counting":
    from analysis.runs import Counting

    return Counting(
        options.count_params,
        options.count_flops,
        options.split,
        tuple(options.include),
        options.variant,
    )


def _give(text: str, path: Path | None) -> None:
    if path is None:
        print(text, end="")
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m analysis", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    fit = commands.add_parser("fit", help="fit a law and print its constants as JSON")
    predict = commands.add_parser("predict", help="fit a law and predict one run from it")
    suggest = commands.add_parser("suggest", help="write the study that shrinks an interval most")
    report = commands.add_parser("report", help="write report.html, fits.json and points.csv")
    for command in (fit, predict, suggest):
        _add_source(command)
    _add_targets(predict, "the {} to predict for")
    _add_targets(suggest, "the {} of a prediction whose interval is to shrink")
    _add_fit(fit)
    _add_predict(predict)
    _add_suggest(suggest)
    report.add_argument(
        "results", type=Path, metavar="RESULTS_DIR", help="a study's results folder"
    )
    report.add_argument("--out", type=Path, required=True, metavar="DIR")
    report.add_argument(
        "--data-limits",
        type=Path,
        metavar="RESULTS_DIR",
        help="take L(D) from another study on the same data, to see where it contradicts L(C)",
    )
    report.add_argument(
        "--critical-batch",
        type=Path,
        metavar="RESULTS_DIR",
        help="take B_crit(L) from another study on the same data, to bring compute to C_min",
    )
    for name, command, function in (
        ("fitting", fit, _fit),
        ("predicting", predict, _predict),
        ("suggesting", suggest, _suggest),
        ("reporting", report, _report),
    ):
        command.set_defaults(command=function, name=name)
        _add_common(command)
    return parser


def _add_source(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="a study's results folder, or a CSV with a header",
    )
    command.add_argument("--law", required=True, choices=LAWS)
    command.add_argument("--json", type=Path, metavar="FILE", help="write there, not stdout")
    command.add_argument(
        "--x",
        choices=X_NAMES,
        default="params",
        help="what the laws of one variable depend on (default: params; predict takes the "
        "target's)",
    )


def _add_targets(command: argparse.ArgumentParser, text: str) -> None:
    for name, symbol in zip(X_NAMES, "NDC", strict=True):
        command.add_argument(f"--{name}", type=float, metavar=symbol, help=text.format(name))


def _add_fit(fit: argparse.ArgumentParser) -> None:
    fit.add_argument(
        "--delta",
        type=_positive,
        metavar="D",
        help="of Huber's loss on log residuals (default: 1e-3, or with fewer than 100 points 1.345 "
        "residual scales where that is more)",
    )
    fit.add_argument("--draws", type=Path, metavar="FILE", help="write every bootstrap draw as CSV")


def _add_predict(predict: argparse.ArgumentParser) -> None:
    predict.add_argument(
        "--reducible",
        type=float,
        metavar="NATS",
        help="instead: the N, D or C for so many nats above the irreducible loss",
    )
    predict.add_argument(
        "--per-sample",
        type=_positive,
        default=1.0,
        metavar="TOKENS",
        help="NATS are per image or clip of so many tokens (default: per token)",
    )


def _add_suggest(suggest: argparse.ArgumentParser) -> None:
    suggest.add_argument("--out", type=Path, required=True, metavar="STUDY.toml")
    suggest.add_argument(
        "--shrink",
        metavar="NAME",
        help="the constant whose interval is to shrink (alpha, a, E, ...)",
    )
    suggest.add_argument(
        "--budget",
        type=float,
        metavar="FLOPS",
        help="of all new runs together (default: what the dearest run of the data cost)",
    )
    suggest.add_argument(
        "--runs", type=_count, default=8, metavar="K", help="at most so many (default: 8)"
    )
    suggest.add_argument("--domain", metavar="NAME", help="of the new runs, where SOURCE is a CSV")
    suggest.add_argument(
        "--learning-rate",
        metavar="RATE",
        help="a number or a named rule (default: that of the runs; for a CSV the family's)",
    )


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--bootstrap",
        type=_count,
        default=1000,
        metavar="N",
        help="bootstrap fits behind the intervals (default: 1000)",
    )
    command.add_argument(
        "--seed", type=_count, default=0, metavar="S", help="of the bootstrap (default: 0)"
    )
    command.add_argument(
        "--count-params",
        choices=PARAM_COUNTS,
        default=PARAM_COUNTS[0],
        help="which parameters N counts, for results folders",
    )
    command.add_argument(
        "--count-flops",
        choices=FLOP_COUNTS,
        default=FLOP_COUNTS[0],
        help="C as 6 N D or exact, for results folders",
    )
    command.add_argument(
        "--include",
        nargs="+",
        choices=INCLUDES,
        default=[],
        help="take in runs that are kept out by default",
    )
    command.add_argument(
        "--variant", metavar="NAME", help="of a study of several variants, the one to fit"
    )
    command.add_argument(
        "--split",
        default="valid",
        metavar="NAME",
        help="evaluations of which split (default: valid)",
    )


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative; wanted 0 or more")
    return value


if __name__ == "__main__":
    sys.exit(main())
