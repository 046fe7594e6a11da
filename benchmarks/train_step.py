"""One training step, ours (DeepSpeed + megatron-core) against a plain-PyTorch GPT.

    python -m benchmarks.train_step [--threads N] [--rounds N] [--precision fp32|bf16] [--compile]

Same shape, data type, batch, loss and optimizer; the two alternate in one process, so that noise
from other work on the machine meets both. The peer is written as one would write it in an
afternoon, and not slowly: fused attention, fused AdamW, `ignore_index` for tokens that do not
count; with `--compile`, which needs a compiler, through torch.compile too. Prints a table: tokens/s of
each (median of the rounds) and their ratio with its spread.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.synthetic import batch_of, run_of
from launch.batches import Batch
from launch.config import RunConfig
from launch.engine import Engine, start_process
from megatron_ext.shape import ModelShape, shape_of

CASES = {
    # name: (layers, width, sequence, rows, share of tokens that count, family)
    "mathematics L2 H32": (2, 32, 512, 4, 0.085, "henighan"),
    "mathematics L4 H32 (12.3k)": (4, 32, 512, 4, 0.085, "henighan"),
    "mathematics L4 H64": (4, 64, 512, 4, 0.085, "henighan"),
    "mathematics L8 H128": (8, 128, 512, 4, 0.085, "henighan"),
    "image-8x8 L4 H32 (12.3k)": (4, 32, 192, 32, 1.0, "henighan"),
    "image-8x8 L8 H128": (8, 128, 192, 32, 1.0, "henighan"),
    "text L4 H256, every token counts": (4, 256, 256, 8, 1.0, "kaplan"),
}


class PlainBlock(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        width, attention = shape.hidden_size, shape.attention_size
        self.heads = shape.num_attention_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * attention), nn.Linear(attention, width)
        self.up = nn.Linear(width, shape.ffn_hidden_size)
        self.down = nn.Linear(shape.ffn_hidden_size, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, -1))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class PlainGPT(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.embedding_rows, shape.hidden_size)
        self.positions = nn.Embedding(shape.seq_length, shape.hidden_size)
        self.blocks = nn.ModuleList(PlainBlock(shape) for _ in range(shape.num_layers))
        self.norm = nn.LayerNorm(shape.hidden_size)
        self.head = nn.Linear(shape.hidden_size, shape.embedding_rows, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions.weight
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def plain_step(
    config: RunConfig, batch: Batch, device: torch.device, *, compiled: bool = False
) -> Callable[[], None]:
    model: nn.Module = PlainGPT(config.shape).to(device)
    if compiled:
        model = torch.compile(model)  # type: ignore[assignment]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
    start = torch.full_like(batch.tokens[:, :1], config.shape.vocab_size)
    inputs = torch.cat((start, batch.tokens[:, :-1]), 1)
    targets = batch.tokens
    if batch.counted is not None:
        targets = targets.masked_fill(~batch.counted, -100)
    bf16 = config.precision == "bf16"

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = model(inputs)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def our_step(engine: Engine, batch: Batch) -> Callable[[], None]:
    return lambda: (engine.train_step(batch, 1e-3), None)[1]


def measure(steps: list[Callable[[], None]], rounds: int, seconds: float) -> list[list[float]]:
    """Steps per second of each, by round; every round runs each for about `seconds`."""
    rates: list[list[float]] = [[] for _ in steps]
    for step in steps:
        step()
        step()
    for _ in range(rounds):
        for index, step in enumerate(steps):
            began, count = time.perf_counter(), 0
            while time.perf_counter() - began < seconds:
                step()
                count += 1
            rates[index].append(count / (time.perf_counter() - began))
    return rates


def make_config(case: tuple, precision: str) -> RunConfig:
    layers, width, length, rows, _, family = case
    shape = shape_of(
        family, num_layers=layers, hidden_size=width, seq_length=length, vocab_size=256
    )
    return run_of(shape, rows, precision, family=family)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each side in a round")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true", help="the peer, by torch.compile")
    parser.add_argument("--case", action="append", help="only cases whose name holds this")
    arguments = parser.parse_args(words)
    torch.set_num_threads(arguments.threads)
    device = start_process()
    print(
        f"{arguments.threads} threads, {device}, {arguments.precision}, {arguments.rounds} rounds"
        f"{', peer compiled' if arguments.compile else ''}\n"
    )
    print("| case | N | plain PyTorch, tokens/s | ours, tokens/s | ratio (spread of rounds) |")
    print("|---|---:|---:|---:|---:|")
    for name, case in CASES.items():
        if arguments.case and not any(part in name for part in arguments.case):
            continue
        config = make_config(case, arguments.precision)
        torch.manual_seed(0)
        batch = batch_of(config, device, counted=case[4])
        engine = Engine(config, device)
        sides = [
            plain_step(config, batch, device, compiled=arguments.compile),
            our_step(engine, batch),
        ]
        plain, ours = measure(sides, arguments.rounds, arguments.seconds)
        ratios = sorted(b / a for a, b in zip(plain, ours, strict=True))
        per_step = config.tokens_per_step
        print(
            f"| {name} | {config.shape.params_non_embedding:,} "
            f"| {statistics.median(plain) * per_step:,.0f} "
            f"| {statistics.median(ours) * per_step:,.0f} "
            f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f}) |",
            flush=True,
        )
        engine.close()


if __name__ == "__main__":
    main()
