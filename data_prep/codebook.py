"""The VQ-VAE: a 64 x 64 picture <-> a square of codes, each the nearest of a codebook's entries. The file it lives in.

The network is that of van den Oord et al. 2017 ("Neural Discrete Representation Learning", section 4.1): strided 4 x 4
convolutions, each halving the side, two residual blocks (3 x 3, ReLU, 1 x 1), and the mirror image of it back.

A codebook file is one safetensors file: the tensors of `Network`, and in the header's metadata the key "codebook" with
`Facts` as JSON. Nothing in it is ever executed.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from data_prep.files import write_file

SIDE = 64
# Length of an entry, as in the paper's experiments.
WIDTH = 64
# Codes per side -> entries, the two shapes of Henighan et al. 2020, section 2.
STANDARD = {16: 4096, 32: 1024}
KEY = "codebook"
_MOST_ENTRIES = 1 << 16
_MOST_HIDDEN = 1024
# Pictures that go through the network at a time, always: the bits of a convolution depend on the size of its batch.
_BATCH = 8
# Vectors that look for their entry at a time: with 4,096 entries the distances just stay in the cache.
_ROWS = 256


@dataclass(frozen=True)
class Facts:
    """What a codebook is and how it was made; errors and use are those of `held_out` pictures.

    `reconstruction` is the mean squared error of a colour value of 0 to 255. `perplexity` is exp of the entropy of the
    codes: `entries` if all are used equally. `used` is the share of entries that occur at all.
    """

    codes: int
    entries: int
    hidden: int
    steps: int = 0
    batch: int = 0
    seed: int = 0
    pictures: int = 0
    held_out: int = 0
    reconstruction: float = 0.0
    perplexity: float = 0.0
    used: float = 0.0
    raw: str = ""
    torch: str = ""

    def __post_init__(self) -> None:
        sizes = (self.codes, self.entries, self.hidden)
        if (
            self.codes not in STANDARD
            or not 2 <= self.entries <= _MOST_ENTRIES
            or not 4 <= self.hidden <= _MOST_HIDDEN
            or self.hidden % 4
        ):
            raise ValueError(
                f"--codes {sizes[0]}, --entries {sizes[1]}, --hidden {sizes[2]}: no such codebook; wanted 16 or 32 "
                f"codes a side, 2 to {_MOST_ENTRIES} entries and a multiple of 4 up to {_MOST_HIDDEN} hidden channels. "
                f"For instance: --codes 16 --entries 4096 --hidden 128"
            )

    @property
    def psnr(self) -> float:
        """The reconstruction error in decibels below white."""
        return 10 * math.log10(255**2 / max(self.reconstruction, 1e-9))


class Residual(nn.Module):
    """x + 1x1(ReLU(3x3(ReLU(x)))) with a quarter of the channels in between."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(hidden, hidden // 4, 3, padding=1)
        self.narrow = nn.Conv2d(hidden // 4, hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[n, hidden, h, w] -> the same shape."""
        return x + self.narrow(functional.relu(self.wide(functional.relu(x))))


class Network(nn.Module):
    """Encoder, codebook and decoder. Pixels are scaled to -0.5 .. 0.5."""

    entries: Tensor  # [entries, WIDTH]

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        hidden = facts.hidden
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        channels, side = 3, SIDE
        while side > facts.codes:
            side //= 2
            more = hidden if side == facts.codes else hidden // 2
            down += [nn.Conv2d(channels, more, 4, stride=2, padding=1), nn.ReLU()]
            up = [nn.ReLU(), nn.ConvTranspose2d(more, channels, 4, stride=2, padding=1), *up]
            channels = more
        self.encoder = nn.Sequential(
            *down,
            nn.Conv2d(hidden, hidden, 3, padding=1),
            Residual(hidden),
            Residual(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, WIDTH, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(WIDTH, hidden, 3, padding=1), Residual(hidden), Residual(hidden), *up
        )
        self.register_buffer("entries", torch.zeros(facts.entries, WIDTH))
        _channels_last(self)

    def encode(self, pictures: Tensor) -> Tensor:
        """uint8 [n, 64, 64, 3] -> vectors [n, codes, codes, WIDTH]."""
        return self.encoder(scaled(pictures)).permute(0, 2, 3, 1)

    def decode(self, vectors: Tensor) -> Tensor:
        """vectors [n, codes, codes, WIDTH] -> scaled pixels [n, 3, 64, 64]."""
        return self.decoder(vectors.permute(0, 3, 1, 2))


def _channels_last(network: Network) -> Network:
    """The weights as pictures lie in memory: measured, training is 1.5 times as fast on a processor."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def scaled(pictures: Tensor) -> Tensor:
    """uint8 [n, 64, 64, 3] -> float32 [n, 3, 64, 64] of -0.5 to 0.5, in memory as it was: channels last."""
    return pictures.permute(0, 3, 1, 2).float() / 255 - 0.5


def pixels(values: Tensor) -> Tensor:
    """float32 [n, 3, 64, 64] -> uint8 [n, 64, 64, 3], the inverse of `scaled`, clipped."""
    return ((values + 0.5) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1)


class Lookup:
    """The nearest of some entries [entries, width] to each vector, by Euclidean distance; of equal ones the lowest."""

    def __init__(self, entries: Tensor) -> None:
        self._entries = entries.T
        # |x - e|^2 without |x|^2, which is the same for every entry.
        self._norms = (entries * entries).sum(1)

    def __call__(self, vectors: Tensor) -> Tensor:
        """vectors [n, width] -> indices int64 [n]."""
        return torch.cat([self._block(rows) for rows in vectors.split(_ROWS)])

    def _block(self, rows: Tensor) -> Tensor:
        distances = torch.addmm(self._norms, rows, self._entries, alpha=-2)
        if distances.is_cuda:
            return distances.argmin(1)
        # NumPy's argmin is twice as fast as torch's on a processor.
        return torch.from_numpy(distances.numpy().argmin(1))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads of torch for the while; with one, sums are always taken in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Codebook:
    """A trained network. The codes of a picture depend on nothing but the picture, this file, and torch with the
    kind of processor: not on the pictures beside it, nor on the number of threads."""

    def __init__(self, network: Network, facts: Facts) -> None:
        self.facts = facts
        self._network = _channels_last(network.cpu().eval().requires_grad_(False))
        self._lookup = Lookup(self._network.entries)

    def encode(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 [n, 64, 64, 3] -> codes uint16 [n, codes, codes]."""
        _check_array(pictures, (SIDE, SIDE, 3), 256, "pictures")
        shape = (self.facts.codes, self.facts.codes)
        return _batched(self._encode, pictures, (shape, np.dtype(np.uint16)))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """codes [n, codes, codes], integers below `entries` -> uint8 [n, 64, 64, 3]."""
        _check_array(codes, (self.facts.codes, self.facts.codes), self.facts.entries, "codes")
        return _batched(self._decode, codes, ((SIDE, SIDE, 3), np.dtype(np.uint8)))

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        tensors = {name: each.contiguous() for name, each in self._network.state_dict().items()}
        write_file(path, save(tensors, metadata={KEY: json.dumps(asdict(self.facts))}))

    @staticmethod
    def load(path: Path) -> "Codebook":
        """The codebook in a file; ValueError says what is wrong with another one."""
        facts, tensors = _read(path)
        with torch.device("meta"):
            network = Network(facts)
        wanted = {name: tuple(each.shape) for name, each in network.state_dict().items()}
        found = {name: tuple(each.shape) for name, each in tensors.items()}
        if found != wanted:
            name = min(set(found.items()) ^ set(wanted.items()))[0]
            raise _no_codebook(
                path, f"{name} is {found.get(name, 'missing')}", f"{wanted.get(name, 'nothing')}"
            )
        bad = [
            name
            for name, each in tensors.items()
            if each.dtype != torch.float32 or not each.isfinite().all()
        ]
        if bad:
            raise _no_codebook(path, f"{min(bad)} holds no finite float32 values", "such values")
        network.load_state_dict(tensors, assign=True)
        return Codebook(network, facts)

    def _encode(self, pictures: Tensor) -> Tensor:
        vectors = self._network.encode(pictures).reshape(-1, WIDTH)
        return self._lookup(vectors).reshape(-1, self.facts.codes, self.facts.codes)

    def _decode(self, codes: Tensor) -> Tensor:
        return pixels(self._network.decode(self._network.entries[codes.long()]))


def _check_array(values: np.ndarray, shape: tuple[int, ...], stop: int, what: str) -> None:
    good = values.shape[1:] == shape and np.issubdtype(values.dtype, np.integer)
    if not good or (values.size and not 0 <= values.min() <= values.max() < stop):
        span = f"{values.min()} to {values.max()}" if values.size else "empty"
        raise ValueError(
            f"{what}: {values.dtype} {list(values.shape)}, values {span}; wanted integers [n, "
            f"{', '.join(map(str, shape))}] of 0 to {stop - 1}. Give the codebook of this dataset."
        )


def _batched(function: Any, values: np.ndarray, result: tuple[tuple[int, ...], np.dtype]) -> Any:
    """function(tensor) -> tensor in batches of exactly _BATCH, the last one filled up with zeros."""
    shape, dtype = result
    out = np.empty((len(values), *shape), dtype)
    with threads(1), torch.inference_mode():
        for start in range(0, len(values), _BATCH):
            part = values[start : start + _BATCH]
            batch = np.zeros((_BATCH, *values.shape[1:]), values.dtype)
            batch[: len(part)] = part
            out[start : start + len(part)] = function(torch.from_numpy(batch)).numpy()[: len(part)]
    return out


def versions() -> dict[str, str]:
    """What decides the last bits of a vector, and so, once in a great while, a code."""
    return {"torch": torch.__version__, "processor": torch.backends.cpu.get_cpu_capability()}


def check_fit(path: Path, codes: int, entries: int) -> None:
    """ValueError if the file is no codebook of `codes` x `codes` codes and `entries` entries."""
    facts = Codebook.load(path).facts
    if (facts.codes, facts.entries) != (codes, entries):
        raise ValueError(
            f"{path}: a codebook of {facts.codes} x {facts.codes} codes and {facts.entries} entries; wanted "
            f"{codes} x {codes} and {entries}. Train one with: python -m data_prep train-codebook --raw PATH "
            f"--out FILE --codes {codes} --entries {entries}"
        )


def _no_codebook(path: Path, found: str, wanted: str) -> ValueError:
    return ValueError(
        f"{path}: {found}; wanted {wanted}, as in a whole file that train-codebook wrote. "
        f"Copy it again, or train one: python -m data_prep train-codebook --raw PATH --out FILE"
    )


def _read(path: Path) -> tuple[Facts, dict[str, Tensor]]:
    if not path.is_file():
        raise _no_codebook(path, "there is no such file", "a codebook")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
            if text is None:
                raise _no_codebook(path, f"its metadata lacks the key {KEY!r}", "a codebook")
            facts = _facts(path, text)
            return facts, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _no_codebook(path, f"cannot be read ({error})", "a safetensors file") from None


def _facts(path: Path, text: str) -> Facts:
    kinds = {field.name: field.type for field in fields(Facts)}
    try:
        given = json.loads(text)
        assert isinstance(given, dict)
        for name, value in given.items():
            assert type(value) is kinds[name]
        return Facts(**given)
    except (ValueError, KeyError, TypeError, AssertionError, RecursionError):
        raise _no_codebook(
            path, f"its metadata {KEY!r} is {text[:80]!r}", "the facts of a codebook"
        ) from None
