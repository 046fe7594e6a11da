"""The words of the command line of `python -m data_prep`."""

import argparse
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The command is `command` of what it parses."""
    made = argparse.ArgumentParser(
        prog="python -m data_prep", description="Raw data -> tokens -> shards. See docs/data.md."
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="the domains and what raw input each takes")
    _add_build(
        commands.add_parser("build", help="raw input -> a dataset folder; run again to continue")
    )
    checking = commands.add_parser(
        "check", help="read every byte of a dataset; name the first bad shard"
    )
    checking.add_argument("dir", type=Path, metavar="DIR", help="or the PREFIX of a .bin/.idx pair")
    checking.add_argument("--domain", metavar="NAME", help="what a bare PREFIX holds")
    showing = commands.add_parser("show", help="rows back as text or PNG")
    showing.add_argument("dir", type=Path, metavar="DIR", help="or the PREFIX of a .bin/.idx pair")
    showing.add_argument("--domain", metavar="NAME", help="what a bare PREFIX holds")
    showing.add_argument(
        "--row",
        type=_numbers,
        required=True,
        metavar="I,J",
        help="number of the row, from 0; or of several",
    )
    showing.add_argument("--split", help="train, valid or test (default: the first that is there)")
    showing.add_argument(
        "--out", type=Path, metavar="FILE", help="where to write (default: text to the terminal)"
    )
    _add_codec(showing, "of a bare PREFIX: ")
    _add_tokenizer(commands.add_parser("train-tokenizer", help="text -> a SentencePiece tokenizer"))
    _add_codebook(
        commands.add_parser(
            "train-codebook", help="pictures or videos -> a VQ-VAE for 64x64 pixels"
        )
    )
    _add_questions(
        commands.add_parser("questions", help="test sets of mathematics, for `launch answers`")
    )
    return made


def _numbers(text: str) -> list[int]:
    """`3,17` -> [3, 17]."""
    try:
        return [int(each) for each in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}; wanted the number of a row, or of several with commas between, as in 3,17"
        ) from None


def _add_questions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="DIR/SET/MODULE.txt")
    parser.add_argument("--levels", metavar="A-B,C", help="entropy (1-19, or none with --sets)")
    parser.add_argument("--sets", metavar="NAMES", help="interpolate,extrapolate (or none with --levels)")  # fmt: skip
    parser.add_argument("--per-module", type=int, default=100, metavar="K", help="questions (100)")
    parser.add_argument("--all-modules", action="store_true", help="also the two that the paper excludes")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of files not there yet")
    parser.add_argument("--workers", type=int, metavar="N", help="worker processes (all cores)")


def _add_tokenizer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--raw", required=True, type=Path, metavar="PATH", help="what `text` takes")
    parser.add_argument(
        "--captions", action="store_true", help="--raw is what `text-to-image` takes"
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="the .model to write"
    )
    parser.add_argument("--vocabulary", required=True, type=int, metavar="N", help="pieces")


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


def _add_codec(parser: argparse.ArgumentParser, when: str = "") -> None:
    codec = parser.add_mutually_exclusive_group()
    codec.add_argument("--tokenizer", type=Path, metavar="FILE",
                       help=f"{when}what train-tokenizer wrote (text and caption domains)")  # fmt: skip
    codec.add_argument("--codebook", type=Path, metavar="FILE",
                       help=f"{when}what train-codebook wrote (image-codes and video-codes)")  # fmt: skip
