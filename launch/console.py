"""Telling the user: one line on stderr, once for all ranks."""

import os
import sys


def say(line: str) -> None:
    if first_rank():
        print(line, file=sys.stderr, flush=True)


def first_rank() -> bool:
    """Whether this process is alone, or the first of those that train together."""
    return int(os.environ.get("RANK", "0")) == 0
