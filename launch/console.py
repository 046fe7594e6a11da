"""Telling the user: one line on stderr, once for all ranks; errors in words."""

import errno
import os
import sys


def say(line: str) -> None:
    if first_rank():
        print(line, file=sys.stderr, flush=True)


def first_rank() -> bool:
    """Whether this process is alone, or the first of those that train together."""
    return int(os.environ.get("RANK", "0")) == 0


def sentence(error: Exception) -> str:
    """An error as a person can use it; the system's own words are given the path and advice."""
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "Free some space" if full else "Check the path and its permissions"
        return f"{where}{error.strerror}. {advice}, then run the same command again."
    return str(error)
