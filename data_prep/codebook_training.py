"""`train-codebook`: pictures or videos -> one codebook file, and a picture of originals above reconstructions.

The loss is that of van den Oord et al. 2017: the reconstruction error, relative to the variance of the pixels, plus
`COMMITMENT` times the mean squared distance of the encoder's vectors to their entries; the gradient passes straight
through the look-up. The entries follow the vectors by exponential averages, and one that is used too little starts
again at a random vector of the batch (Dhariwal et al. 2020, "Jukebox", section 3.2).
"""

import hashlib
import io
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from data_prep.codebook import STANDARD, WIDTH, Codebook, Facts, Lookup, Network, scaled, threads
from data_prep.files import beside, check_writable, clear_temporaries, write_file
from data_prep.progress import bar
from data_prep.training_pictures import sample_pictures
from data_prep.workers import Progress

COMMITMENT = 0.25  # van den Oord et al. 2017, section 3.2
DECAY = 0.99
LEAST_USE = 1.0
# Falls linearly to 0. Measured on 64 x 64 photographs, 150 steps: error 1,487; with 3e-4, that of long runs, 2,406.
LEARNING_RATE = 1e-3
# 400 MB of pictures at most.
MOST_PICTURES = 1 << 15
MOST_HELD_OUT = 256
_SHOWN = 12
# A step takes milliseconds on a GPU and seconds on a processor: what a kill costs is counted in time.
SAVE_SECONDS = 60.0


@dataclass
class Averages:
    """The codebook while it is trained: exponential averages of each entry's use [entries] and sum [entries, WIDTH]."""

    counts: Tensor
    sums: Tensor

    @property
    def entries(self) -> Tensor:
        """[entries, WIDTH]: what the look-up uses."""
        return self.sums / self.counts[:, None]

    def update(self, vectors: Tensor, codes: Tensor, generator: torch.Generator) -> int:
        """Take in a batch: vectors [n, WIDTH] and their codes [n]. Returns how many entries started again."""
        counts = torch.bincount(codes, minlength=len(self.counts)).to(vectors)
        sums = torch.zeros_like(self.sums).index_add_(0, codes, vectors)
        self.counts.lerp_(counts, 1 - DECAY)
        self.sums.lerp_(sums, 1 - DECAY)
        dead = self.counts < LEAST_USE
        count = int(dead.sum())
        self.sums[dead] = draw_vectors(vectors, count, generator)
        self.counts[dead] = LEAST_USE
        return count


def draw_vectors(vectors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` different rows of `vectors`, at random."""
    chosen = torch.randperm(len(vectors), generator=generator)[:count]
    return vectors[chosen.to(vectors.device)]


def train(
    raw: str, out: Path, codes: int = 16, steps: int = 20_000, batch: int = 64, seed: int = 0,
    entries: int | None = None, hidden: int = 128, workers: int = 1,
) -> str:  # fmt: skip
    """Train on the pictures and videos below `raw` and write `out` and `out`.png; what came of it, in words.

    On a processor with one worker the same input and seed give the same file, to the last bit, also if the training was
    killed: every `SAVE_SECONDS` all that decides the next step is kept in `out`.training, which goes at the end. A
    GPU is used if there is one. ValueError for arguments or input that cannot be used.
    """
    facts = Facts(codes, STANDARD.get(codes, 0) if entries is None else entries, hidden)
    _check(facts, out, steps, batch, workers)
    with bar("tasks") as tell:
        pictures, refused = sample_pictures(
            Path(raw), min(MOST_PICTURES, steps * batch + MOST_HELD_OUT), seed, workers, tell
        )
    held_out = min(MOST_HELD_OUT, max(1, len(pictures) // 16))
    with threads(workers), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        learned = pictures[held_out:]
        training = _Training(Network(facts), steps, batch, seed)
        training.keep_in(beside(out, ".training"), facts, learned)
        network = _fit(training, learned)
    facts = replace(
        facts, steps=steps, batch=batch, seed=seed, pictures=len(pictures) - held_out, raw=raw,
        held_out=held_out, torch=torch.__version__,
    )  # fmt: skip
    codebook, shown = _judge(network, facts, pictures[:held_out])
    write_file(beside(out, ".png"), shown)
    codebook.save(out)
    training.forget()
    return _sentence(out, codebook.facts, refused)


def _check(facts: Facts, out: Path, steps: int, batch: int, workers: int) -> None:
    vectors = batch * facts.codes**2
    if steps < 1 or vectors < facts.entries or workers < 1:
        least = -(-facts.entries // facts.codes**2)
        raise ValueError(
            f"--steps {steps}, --batch {batch}, --workers {workers}: wanted at least 1 step, 1 worker, and a batch of "
            f"{least} pictures, as many vectors as there are entries. For instance: --steps 20000 --batch {4 * least}"
        )
    check_writable(out)


class _Training:
    """A network with all that decides its next step, and the file that it is kept in."""

    def __init__(self, network: Network, steps: int, batch: int, seed: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = network.to(self.device)
        self.step, self.steps, self.batch, self.seed = 0, steps, batch, seed
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
        self.averages: Averages | None = None
        self._path, self._settings = Path(), ""

    def keep_in(self, path: Path, facts: Facts, pictures: np.ndarray) -> None:
        """Save to `path` from now on; go on from what is there of the same training, ValueError if of another one."""
        given = {
            "codes": facts.codes, "entries": facts.entries, "hidden": facts.hidden, "steps": self.steps,
            "batch": self.batch, "seed": self.seed, "torch": torch.__version__,
            "pictures": hashlib.sha256(pictures.tobytes()).hexdigest(),
        }  # fmt: skip
        self._path, self._settings = path, json.dumps(given)
        if path.exists():
            self._load()

    def save(self) -> None:
        """Write the file, whole or not at all."""
        assert self.averages is not None
        tensors = {f"network.{name}": each for name, each in self.network.state_dict().items()}
        for number, parameter in enumerate(self.network.parameters()):
            kept = self.optimizer.state[parameter]
            tensors |= {f"adam.{number}.{name}": each for name, each in kept.items()}
        tensors |= {"counts": self.averages.counts, "sums": self.averages.sums}
        tensors |= {"generator": self.generator.get_state(), "step": torch.tensor(self.step)}
        whole = {name: each.contiguous().cpu() for name, each in tensors.items()}
        write_file(self._path, save(whole, metadata={"training": self._settings}))

    def _load(self) -> None:
        try:
            with safe_open(self._path, framework="pt") as file:
                found = (file.metadata() or {}).get("training")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            found, tensors = f"a file that cannot be read ({error})", {}
        if found != self._settings:
            raise ValueError(
                f"{self._path}: holds a training that was interrupted: {found}; wanted {self._settings}. Run the "
                f"command that began it, choose another --out, or delete this file to start over."
            )
        self.step = int(tensors["step"])
        self.generator.set_state(tensors["generator"])
        self.averages = Averages(tensors["counts"].to(self.device), tensors["sums"].to(self.device))
        names = self.network.state_dict()
        self.network.load_state_dict({name: tensors[f"network.{name}"] for name in names})
        for number, parameter in enumerate(self.network.parameters()):
            # In memory as the weights lie: other loops would round differently.
            self.optimizer.state[parameter] = {
                "step": tensors[f"adam.{number}.step"],
                **{
                    name: torch.empty_like(parameter).copy_(tensors[f"adam.{number}.{name}"])
                    for name in ("exp_avg", "exp_avg_sq")
                },
            }

    def forget(self) -> None:
        """Remove the file, and what was left where one was killed while it wrote it."""
        self._path.unlink(missing_ok=True)
        clear_temporaries(self._path.parent, self._path.name)


def _fit(training: _Training, pictures: np.ndarray) -> Network:
    """The training loop."""
    network, steps = training.network, training.steps
    variance = float((pictures[:256] / 255).var()) or 1.0
    saved = time.monotonic()
    with bar("steps") as tell:
        while training.step < steps:
            for group in training.optimizer.param_groups:
                group["lr"] = LEARNING_RATE * (1 - training.step / steps)
            error, codes, again = _step(training, pictures, variance)
            training.step += 1
            tell(training.step, steps, Progress(training.batch))
            if training.step % max(1, steps // 10) == 0:
                _report(training.step, steps, error.item(), codes, len(network.entries), again)
            if time.monotonic() - saved >= SAVE_SECONDS:
                training.save()
                saved = time.monotonic()
    assert training.averages is not None
    network.entries = training.averages.entries
    return network


def _step(training: _Training, pictures: np.ndarray, variance: float) -> tuple[Tensor, Tensor, int]:
    """One step: its reconstruction error, the codes of its batch, and how many entries started again."""
    network, generator = training.network, training.generator
    chosen = torch.randint(len(pictures), (training.batch,), generator=generator).numpy()
    inputs = torch.from_numpy(pictures[chosen]).to(training.device)
    vectors = network.encode(inputs)
    flat = vectors.detach().reshape(-1, WIDTH)
    if training.averages is None:
        first = draw_vectors(flat, len(network.entries), generator)
        training.averages = Averages(torch.ones(len(first), device=first.device), first.clone())
    entries = training.averages.entries
    codes = Lookup(entries)(flat)
    nearest = entries[codes].reshape(vectors.shape)
    through = vectors + (nearest - vectors).detach()
    error = functional.mse_loss(network.decode(through), scaled(inputs))
    loss = error / variance + COMMITMENT * functional.mse_loss(vectors, nearest)
    training.optimizer.zero_grad()
    loss.backward()
    training.optimizer.step()
    return error, codes, training.averages.update(flat, codes, generator)


def _report(step: int, steps: int, error: float, codes: Tensor, entries: int, again: int) -> None:
    """One line on stderr; ValueError if the training has gone wrong."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    if not np.isfinite(error):
        raise ValueError(
            f"step {step}: the reconstruction error is {error}; wanted a finite number. Try another --seed."
        )
    perplexity, used = use(codes.cpu().numpy(), entries)
    tqdm.write(
        f"step {step} of {steps}: reconstruction error {error * 255**2:.1f}, perplexity {perplexity:.0f} of "
        f"{entries}, {used:.1%} of the entries used, {again} started again",
        file=sys.stderr,
    )


def use(codes: np.ndarray, entries: int) -> tuple[float, float]:
    """(perplexity, share of the entries that occur) of some codes: exp of their entropy in nats."""
    counts = np.bincount(codes.reshape(-1), minlength=entries)
    share = counts[counts > 0] / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum())), float((counts > 0).mean())


def _judge(network: Network, facts: Facts, held_out: np.ndarray) -> tuple[Codebook, bytes]:
    """The codebook with its error and use on the held-out pictures, and a PNG of some of them above what came back."""
    codebook = Codebook(network, facts)
    codes = codebook.encode(held_out)
    back = codebook.decode(codes)
    error = float(np.square(held_out.astype(np.float64) - back).mean())
    perplexity, used = use(codes, facts.entries)
    judged = replace(facts, reconstruction=error, perplexity=perplexity, used=used)
    rows = [np.concatenate(list(each[:_SHOWN]), axis=1) for each in (held_out, back)]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(buffer, "PNG")
    return Codebook(network, judged), buffer.getvalue()


def _sentence(out: Path, facts: Facts, refused: Counter[str]) -> str:
    lines = [
        f"{out}: {facts.codes} x {facts.codes} codes of {facts.entries} entries, trained on {facts.pictures} pictures",
        f"  {facts.held_out} held-out pictures: reconstruction error {facts.reconstruction:.1f} (PSNR "
        f"{facts.psnr:.1f} dB), perplexity {facts.perplexity:.0f}, {facts.used:.1%} of the entries used",
        f"  originals above reconstructions: {out}.png",
    ]
    if refused:
        why, count = refused.most_common(1)[0]
        lines.append(f"  {refused.total()} items refused; most often ({count} times): {why}")
    return "\n".join(lines)
