"""`python -m data_prep list | build | check | show | train-tokenizer | train-codebook | questions`: raw data -> tokens.

Results go to stdout, messages and progress to stderr. Exit status 0 only when all was done, 2 for bad input.
Nothing heavy is imported before it is known what is asked.
"""

import argparse
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.files import recorded

if TYPE_CHECKING:
    from data_prep.manifest import Manifest


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    options = _parser().parse_args(arguments)
    try:
        print(recorded(options.run(options)), flush=True)
    except BrokenPipeError:
        # Whoever read our output has gone, as `head` does. Python would complain once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (ValueError, OSError, RuntimeError) as error:
        print(f"python -m data_prep {options.command}: {_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues from here", file=sys.stderr)
        return 130
    return 0


def _sentence(error: Exception) -> str:
    from data_prep.workers import HOPELESS

    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        advice = (
            "Free some space or check the permissions"
            if error.errno in HOPELESS
            else "Check the path"
        )
        return f"{where}{error.strerror}. {advice}, then run the same command again."
    return str(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep", description="Raw data -> tokens -> shards. See docs/data.md."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="the domains and what raw input each takes")
    listing.set_defaults(run=_list)
    _add_build(
        commands.add_parser("build", help="raw input -> a dataset folder; run again to continue")
    )
    checking = commands.add_parser(
        "check", help="read every byte of a dataset; name the first bad shard"
    )
    checking.add_argument("dir", type=Path, metavar="DIR", help="or the PREFIX of a .bin/.idx pair")
    checking.add_argument("--domain", metavar="NAME", help="what a bare PREFIX holds")
    checking.set_defaults(run=_check)
    showing = commands.add_parser("show", help="one row back as text or PNG")
    showing.add_argument("dir", type=Path, metavar="DIR", help="or the PREFIX of a .bin/.idx pair")
    showing.add_argument("--domain", metavar="NAME", help="what a bare PREFIX holds")
    showing.add_argument(
        "--row", type=int, required=True, metavar="I", help="number of the row, from 0"
    )
    showing.add_argument("--split", help="train, valid or test (default: the first that is there)")
    showing.add_argument(
        "--out", type=Path, metavar="FILE", help="where to write (default: text to the terminal)"
    )
    _add_codec(showing, "of a bare PREFIX: ")
    showing.set_defaults(run=_show)
    _add_tokenizer(commands.add_parser("train-tokenizer", help="text -> a SentencePiece tokenizer"))
    _add_codebook(
        commands.add_parser(
            "train-codebook", help="pictures or videos -> a VQ-VAE for 64x64 pixels"
        )
    )
    _add_questions(
        commands.add_parser("questions", help="test sets of mathematics, for `launch answers`")
    )
    return parser


def _add_questions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="DIR/SET/MODULE.txt")
    parser.add_argument("--levels", metavar="A-B,C", help="entropy (1-19, or none with --sets)")
    parser.add_argument("--sets", metavar="NAMES", help="interpolate,extrapolate (or none with --levels)")  # fmt: skip
    parser.add_argument("--per-module", type=int, default=100, metavar="K", help="questions (100)")
    parser.add_argument("--all-modules", action="store_true", help="also the two that the paper excludes")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of files not there yet")
    parser.add_argument("--workers", type=int, metavar="N", help="worker processes (all cores)")
    parser.set_defaults(run=_questions)


def _add_tokenizer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--raw", required=True, type=Path, metavar="PATH", help="what `text` takes")
    parser.add_argument(
        "--captions", action="store_true", help="--raw is what `text-to-image` takes"
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="the .model to write"
    )
    parser.add_argument("--vocabulary", required=True, type=int, metavar="N", help="pieces")
    parser.set_defaults(run=_train_tokenizer)


def _add_codebook(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--raw", required=True, type=Path, metavar="PATH", help="pictures or videos"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE",
                        help="the file to write; run again to continue")  # fmt: skip
    parser.add_argument("--codes", type=int, default=16, choices=(16, 32),
                        help="codes a side: 16 with 4,096 entries, 32 with 1,024 (16)")  # fmt: skip
    parser.add_argument("--steps", type=int, default=20_000, metavar="N", help="(20000: for a GPU)")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="pictures a step (64)")
    parser.add_argument("--hidden", type=int, default=128, metavar="N", help="channels (128)")
    parser.add_argument("--entries", type=int, metavar="N", help="4096, or 1024 with 32 codes")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--workers", type=int, default=1, metavar="N",
                        help="processes that read and threads that train (1: the same file each time)")  # fmt: skip
    parser.set_defaults(run=_train_codebook)


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", help="one that `list` shows")
    parser.add_argument(
        "--raw",
        required=True,
        metavar="PATH",
        help="raw input; or generator (mathematics, known-entropy)",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="the dataset folder")
    parser.add_argument(
        "--split", help="put everything into train, valid or test (default: divide by a hash)"
    )
    parser.add_argument(
        "--fractions",
        default=None,
        metavar="A,B,C",
        help="shares of the hash split (0.96,0.02,0.02)",
    )
    parser.add_argument(
        "--rows", type=int, metavar="N", help="rows to generate, over all splits (generator only)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="seed of generated data (0)"
    )
    parser.add_argument(
        "--workers", type=int, default=None, metavar="N", help="worker processes (all cores)"
    )
    parser.add_argument(
        "--part", default="1/1", metavar="K/M", help="do only every M-th shard, from the K-th"
    )
    parser.add_argument("--max-refused", type=float, default=0.01, metavar="SHARE",
                        help="fail if more than this share of the items is unusable (0.01)")  # fmt: skip
    parser.add_argument("--accept-damaged", action="store_true",
                        help="build although a raw file is cut off or out of step, from what is readable")  # fmt: skip
    parser.add_argument(
        "--chunks-per-shard", type=int, default=None, metavar="N", help="smaller shards, more parts"
    )
    _add_codec(parser)
    parser.set_defaults(run=_build)


def _add_codec(parser: argparse.ArgumentParser, when: str = "") -> None:
    codec = parser.add_mutually_exclusive_group()
    codec.add_argument("--tokenizer", type=Path, metavar="FILE",
                       help=f"{when}what train-tokenizer wrote (text and caption domains)")  # fmt: skip
    codec.add_argument("--codebook", type=Path, metavar="FILE",
                       help=f"{when}what train-codebook wrote (image-codes and video-codes)")  # fmt: skip


def _codec(options: argparse.Namespace, domain: str) -> Path | None:
    """The tokenizer or codebook that is given; ValueError if it is not what `domain` takes."""
    from data_prep.domain import family

    wanted = family(domain).CODEC
    for kind in ("tokenizer", "codebook"):
        given: Path | None = getattr(options, kind)
        if given is not None and kind != wanted:
            advice = f"Give --{wanted} FILE instead" if wanted else "Leave it out"
            raise ValueError(
                f"--{kind} {given}: domain {domain} takes {'a ' + wanted if wanted else 'none'}; wanted no --{kind}. "
                f"{advice}."
            )
    return options.tokenizer or options.codebook


def _list(options: argparse.Namespace) -> str:
    from data_prep.domain import domain, domain_names, family

    lines = []
    for name in domain_names():
        here = domain(name)
        lines.append(f"{name}\n    {here.summary}")
        packing = "packed" if here.packed else "one document"
        kinds = ", ".join(kind.kind for kind in here.kinds)
        lines.append(
            f"    row: {here.seq_length} tokens, {packing}; vocabulary: {here.vocab_size}; kinds: {kinds}"
        )
        lines.append(f"    --raw: {family(name).RAW}")
    return "\n".join(lines)


def _build(options: argparse.Namespace) -> str:
    from data_prep.build import How, build, finished
    from data_prep.domain import domain
    from data_prep.plan import FRACTIONS, Request
    from data_prep.progress import bar, during

    request = Request(
        options.domain, options.raw, options.split, options.rows, options.seed,
        _fractions(options.fractions) if options.fractions else FRACTIONS, options.chunks_per_shard,
        _codec(options, options.domain),
    )  # fmt: skip
    part, parts = _part(options.part)
    before = finished(request, options.out, domain(options.domain))
    if before is not None:
        return f"{options.out}: already built\n{_counts(before)}"
    with bar("chunks") as tell:
        workers = len(os.sched_getaffinity(0)) if options.workers is None else options.workers
        how = How(
            workers=workers, part=part, parts=parts, max_refused=options.max_refused,
            accept_damaged=options.accept_damaged, command=shlex.join(sys.orig_argv), tell=tell,
            during=during,
        )  # fmt: skip
        manifest = build(request, options.out, how)
    if manifest is None:
        return f"{options.out}: part {options.part} done; the dataset is finished when the other parts are"
    for remark in _remarks(manifest, options.out):
        print(remark, file=sys.stderr)
    return f"{options.out}: built\n{_counts(manifest)}"


def _remarks(manifest: "Manifest", out: Path) -> list[str]:
    """What the one who built it should know about the newest build."""
    record = manifest.builds[-1]
    remarks = []
    if record.duplicates:
        remarks.append(f"{record.duplicates} duplicates left out; see {out / 'refused.jsonl'}")
    for split, count in record.shared.items():
        mine = "/".join(record.splits)
        remarks.append(
            f"about {count} documents of split {mine} are in split {split} too: a loss on one of them says little of "
            f"new data. Take them out of one of the two, or build all splits with one command, which divides by content"
        )
    if record.refused:
        remarks.append(f"{record.refused} items refused; see {out / 'refused.jsonl'}")
    if record.passed_over:
        endings = sorted(record.passed_over.items(), key=lambda each: (-each[1], each[0]))
        named = ", ".join(f"{count} {ending}" for ending, count in endings[:5])
        more = ", ..." if len(endings) > 5 else ""
        total = sum(record.passed_over.values())
        remarks.append(f"{total} files passed over, not of domain {manifest.domain}: {named}{more}")
    remarks += [f"{key}: damaged; what it has lost is missing here" for key in record.damaged]
    for split in record.splits:
        if not manifest.rows(split):
            tokens = sum(shard.tokens for shard in manifest.splits[split])
            remarks.append(
                f"split {split} has no row: {tokens} tokens of {manifest.seq_length} for one. "
                f"Give --raw more data, or other --fractions."
            )
    return remarks


def _fractions(text: str) -> tuple[float, float, float]:
    try:
        train, valid, test = (float(share) for share in text.split(","))
    except ValueError:
        raise ValueError(
            f"--fractions {text}: wanted three numbers (train, valid, test). For instance: --fractions 0.96,0.02,0.02"
        ) from None
    return train, valid, test


def _part(text: str) -> tuple[int, int]:
    """K/M, K from 1, as (K - 1, M)."""
    number, _, total = text.partition("/")
    if not (number.isdecimal() and total.isdecimal() and 1 <= int(number) <= int(total)):
        raise ValueError(f"--part {text}: wanted K/M with 1 <= K <= M. For instance: --part 1/4")
    return int(number) - 1, int(total)


def _counts(manifest: "Manifest") -> str:
    rows = [(split, manifest.rows(split)) for split in manifest.splits]
    return "\n".join(
        f"  {split:5} {count:12,} rows {count * manifest.seq_length:16,} tokens"
        for split, count in rows
    )


def _check(options: argparse.Namespace) -> str:
    from data_prep.check import check
    from data_prep.progress import bar

    with bar("shards") as tell:
        return check(options.dir, tell, options.domain)


def _show(options: argparse.Namespace) -> str:
    from data_prep.show import show

    codec = _codec(options, options.domain) if options.domain else None
    return show(options.dir, options.split, options.row, options.out, options.domain, codec)


def _questions(options: argparse.Namespace) -> str:
    from data_prep.progress import bar
    from data_prep.questions import make_questions, set_names

    names = set_names(options.levels, options.sets)
    with bar("files") as tell:
        made, left_out = make_questions(
            options.out, names, per_module=options.per_module, seed=options.seed,
            all_modules=options.all_modules, workers=options.workers, tell=tell,
        )  # fmt: skip
    for reason in left_out:
        print(f"left out: {reason}", file=sys.stderr)
    return f"{options.out}: {made} files of {options.per_module} questions"


def _train_tokenizer(options: argparse.Namespace) -> str:
    from data_prep.progress import during
    from data_prep.tokenizers import train

    with during(f"reading {recorded(str(options.raw))} and training the tokenizer"):
        return train(options.raw, options.out, options.vocabulary, options.captions)


def _train_codebook(options: argparse.Namespace) -> str:
    from data_prep.codebook_training import train

    return train(
        str(options.raw), options.out, codes=options.codes, steps=options.steps, batch=options.batch,
        hidden=options.hidden, seed=options.seed, entries=options.entries, workers=options.workers,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
