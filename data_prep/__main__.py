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

from data_prep.arguments import parser
from data_prep.files import recorded

if TYPE_CHECKING:
    from data_prep.manifest import Manifest


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    options = parser().parse_args(arguments)
    try:
        print(recorded(_COMMANDS[options.command](options)), flush=True)
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


_COMMANDS = {
    "list": _list,
    "build": _build,
    "check": _check,
    "show": _show,
    "train-tokenizer": _train_tokenizer,
    "train-codebook": _train_codebook,
    "questions": _questions,
}

if __name__ == "__main__":
    sys.exit(main())
