"""`constraint` of a cluster file against the features that nodes have: sbatch's small language, read leniently.

    a    a&b    a,b    a|b    (a&b)|c    a*2    [a|b]    [a*2&b*1]

https://slurm.schedmd.com/sbatch.html#OPT_constraint. Slurm has the last word: what cannot be read here, or holds by a
rule that is not known here, is taken to fit. Counts are not judged. Without parentheses `&` is read before `|`, which
every other order of reading implies.
"""

import re
from collections.abc import Callable, Collection, Sequence

_TOKEN = re.compile(r"\s*([&|,()]|[^&|,()\[\]*!\s]+)")
_COUNT = re.compile(r"\*\s*\d+")
_BRACKETS = str.maketrans("[]", "()")


def names(constraint: str) -> list[str]:
    """The features that it speaks of; none where it cannot be read."""
    tokens = _tokens(constraint)
    return [each for each in tokens or () if each not in "&|,()"]


def fits(constraint: str, features: Collection[str]) -> bool:
    """Whether a node with these features may be one that it asks for. Of nodes that differ, as `[a*2&b]` asks for
    them, each needs one."""
    tokens = _tokens(constraint)
    if not tokens:
        return True
    if "[" in constraint or "*" in constraint:
        return any(each in features for each in names(constraint))
    return _holds(tokens, features)


def met(constraint: str, there: Collection[str]) -> bool:
    """Whether the features that are there, on whichever nodes, may be enough for it."""
    tokens = _tokens(constraint)
    return not tokens or _holds(tokens, there)


def _tokens(constraint: str) -> list[str] | None:
    """Names and operators, without counts; None for what is not of this language."""
    text = _COUNT.sub("", constraint).translate(_BRACKETS).strip()
    found, position = [], 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            return None
        found.append(token[1])
        position = token.end()
    try:
        return found if _Reader(found, ()).whole() is not None else None
    except IndexError:
        return None


def _holds(tokens: list[str], features: Collection[str]) -> bool:
    return bool(_Reader(tokens, features).whole())


class _Reader:
    """Reads tokens from left to right: alternatives of conjunctions of names or parentheses."""

    def __init__(self, tokens: list[str], features: Collection[str]) -> None:
        self._left, self._features = list(reversed(tokens)), features

    def whole(self) -> bool | None:
        """The truth of all of it; None where it is malformed."""
        value = self._alternatives()
        return None if self._left else value

    def _alternatives(self) -> bool | None:
        return self._row("|", self._conjunction, any)

    def _conjunction(self) -> bool | None:
        return self._row("&,", self._one, all)

    def _row(
        self,
        operators: str,
        part: Callable[[], bool | None],
        together: Callable[[Sequence[bool | None]], bool],
    ) -> bool | None:
        values = [part()]
        while self._left and self._left[-1] in operators:
            self._left.pop()
            values.append(part())
        return None if None in values else together(values)

    def _one(self) -> bool | None:
        token = self._left.pop()
        if token == "(":
            value = self._alternatives()
            return value if self._left.pop() == ")" else None
        return None if token in "&|,)" else token in self._features
