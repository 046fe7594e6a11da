"""Two random sources whose entropies are known exactly: what a model's loss can be checked against.

`MarkovSource` is a chain in which contexts of every order from 1 to k tell something, each order less than the one
before by the same factor while its contexts are more by the number of symbols. A model that has learned the contexts of
so many orders is therefore above the entropy rate by a power of their number: a scaling law with a known end.

`PairSource` makes pairs of two halves that share a known number of nats.

All entropies are in nats. The sources are fixed: their tables come from numpy's frozen generator, `RandomState`, whose
numbers are the same in every version.
"""

import functools
from dataclasses import dataclass

import numpy as np

# Rounds of the power iteration; the chains here need fewer than a hundred.
_MOST_ROUNDS = 10_000


@dataclass(frozen=True)
class MarkovSource:
    """A stationary Markov chain of `order` k over `symbols` A.

    `transition` [A^k, A]: the probability of each next symbol; a context's number has its newest symbol as the last
    digit in base A. `stationary` [A^k]: how often each context occurs; a row begins in it.
    """

    symbols: int
    order: int
    transition: np.ndarray
    stationary: np.ndarray

    @functools.cached_property
    def beginnings(self) -> tuple[np.ndarray, ...]:
        """The probability of every beginning of 0, 1, ..., k symbols, [A^length] each."""
        folded = (self.stationary.reshape(self.symbols**n, -1) for n in range(self.order + 1))
        return tuple(each.sum(1) for each in folded)

    @property
    def entropy_rate(self) -> float:
        """Nats a symbol once k symbols are known: sum over contexts of p(context) H(next | context)."""
        return float(self.stationary @ _entropy(self.transition))

    def position_entropies(self, length: int) -> np.ndarray:
        """The least possible mean loss at each position of a row [length]: H(x_t | x_0 .. x_(t-1))."""
        blocks = np.array([float(_entropy(each)) for each in self.beginnings])
        early = np.diff(blocks)[:length]
        return np.concatenate([early, np.full(length - early.size, self.entropy_rate)])

    def sample(self, rows: int, length: int, draw: np.random.Generator) -> np.ndarray:
        """Independent rows of the chain, int64 [rows, length]."""
        contexts = np.searchsorted(_steps(self.stationary), draw.random(rows), side="right")
        digits = self.symbols ** np.arange(self.order - 1, -1, -1)
        tokens = np.empty((rows, max(length, self.order)), np.int64)
        tokens[:, : self.order] = contexts[:, None] // digits % self.symbols
        steps = _steps(self.transition)
        for position in range(self.order, length):
            chosen = (draw.random(rows)[:, None] >= steps[contexts]).sum(1)
            tokens[:, position] = chosen
            contexts = self._next(contexts, chosen)
        return tokens[:, :length]

    def losses(self, tokens: np.ndarray) -> np.ndarray:
        """-log p(x_t | x_0 .. x_(t-1)) of rows, [rows, length] both: what the true source would lose on them."""
        found = np.empty(tokens.shape)
        contexts = np.zeros(len(tokens), np.int64)
        for position, symbol in enumerate(tokens.T.astype(np.int64)):
            if position < self.order:
                before = self.beginnings[position][contexts]
                contexts = contexts * self.symbols + symbol
                chance = self.beginnings[position + 1][contexts] / before
            else:
                chance = self.transition[contexts, symbol]
                contexts = self._next(contexts, symbol)
            found[:, position] = -np.log(chance)
        return found

    def _next(self, contexts: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        return contexts % self.symbols ** (self.order - 1) * self.symbols + chosen


@dataclass(frozen=True)
class PairSource:
    """Pairs: a left half of independent uniform symbols, and a right half that tells of it.

    The left half is cut into blocks, of `blocks[i]` symbols each. Right symbol i is what table i says of block i, with
    probability 1 - `noise`, else one of the others. A table gives each symbol equally often, so that the right half
    alone is uniform too, and each of its symbols shares log(symbols) - H(noise) nats with the left half.
    """

    symbols: int
    blocks: tuple[int, ...]
    noise: float
    tables: tuple[np.ndarray, ...]

    @property
    def noise_entropy(self) -> float:
        """H(right symbol | its block): what a right symbol costs whoever knows the left half."""
        wrong = self.noise / (self.symbols - 1)
        return float(_entropy(np.array([1 - self.noise] + [wrong] * (self.symbols - 1))))

    @property
    def mutual_information(self) -> float:
        """I(left; right) of a pair: the right symbols are independent of each other, so theirs add up."""
        return len(self.blocks) * (float(np.log(self.symbols)) - self.noise_entropy)

    def sample(self, pairs: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Left and right halves, int64 [pairs, sum(blocks)] and [pairs, len(blocks)]."""
        left = draw.integers(0, self.symbols, (pairs, sum(self.blocks)))
        said = self._said(left)
        shift = draw.integers(1, self.symbols, said.shape)
        wrong = draw.random(said.shape) < self.noise
        return left, np.where(wrong, (said + shift) % self.symbols, said)

    def right_losses(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """-log p(right symbol | left half) [pairs, len(blocks)]: what the true source would lose."""
        hit = self._said(left) == right
        return -np.log(np.where(hit, 1 - self.noise, self.noise / (self.symbols - 1)))

    def _said(self, left: np.ndarray) -> np.ndarray:
        said = np.empty((len(left), len(self.blocks)), np.int64)
        start = 0
        for number, (size, table) in enumerate(zip(self.blocks, self.tables, strict=True)):
            digits = self.symbols ** np.arange(size - 1, -1, -1)
            said[:, number] = table[left[:, start : start + size] @ digits]
            start += size
        return said


def markov_source(
    symbols: int, order: int, strength: float, decay: float, seed: int
) -> MarkovSource:
    """A chain with log p(x | context) = sum over orders j of strength decay^(j-1) g_j(last j symbols, x) + constant,
    the g_j independent standard normal numbers.

    The last order carries the strength of all that would follow, sqrt(sum of squares), so that the power law over the
    orders below it ends at the entropy rate and not below.
    """
    draw = np.random.RandomState(seed)
    logits = np.zeros((1, symbols))
    for number in range(1, order + 1):
        weight = strength * decay ** (number - 1)
        if number == order:
            weight /= np.sqrt(1 - decay**2)
        # The oldest symbol is the first digit: contexts that differ in it alone share what shorter ones say.
        logits = np.tile(logits, (symbols, 1))
        logits = logits + weight * draw.standard_normal((symbols**number, symbols))
    chances = np.exp(logits - logits.max(1, keepdims=True))
    transition = chances / chances.sum(1, keepdims=True)
    return MarkovSource(symbols, order, transition, _stationary(transition, symbols, order))


def pair_source(symbols: int, blocks: tuple[int, ...], noise: float, seed: int) -> PairSource:
    """Random balanced tables: each a permutation of the symbols, every one equally often."""
    draw = np.random.RandomState(seed)
    tables = tuple(draw.permutation(np.arange(symbols**size) % symbols) for size in blocks)
    return PairSource(symbols, blocks, noise, tables)


def _stationary(transition: np.ndarray, symbols: int, order: int) -> np.ndarray:
    """The distribution of contexts that a step leaves as it is, by power iteration."""
    chance = np.full(symbols**order, symbols ** -float(order))
    for _ in range(_MOST_ROUNDS):
        joint = chance[:, None] * transition
        following = joint.reshape(symbols, -1, symbols).sum(0).reshape(-1)
        following /= following.sum()
        if np.abs(following - chance).sum() < 1e-14:
            return following
        chance = following
    raise AssertionError("every transition is possible, so the chain forgets where it began")


def _entropy(chances: np.ndarray) -> np.ndarray:
    """-sum p log p over the last axis, in nats; every p is above zero."""
    return -(chances * np.log(chances)).sum(-1)


def _steps(chances: np.ndarray) -> np.ndarray:
    """Cumulative chances without the last, which is 1: a uniform number is at or above as many of them as its symbol's
    number."""
    return np.cumsum(chances, -1)[..., :-1]
