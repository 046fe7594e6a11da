"""Two small datasets, built once by the real `data_prep`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main as data_prep
from launch.config import RunConfig
from launch.results import RunResult
from tests.launch.small import train_alone


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """image-8x8: about 160 training rows of 192 tokens, smooth enough to be learned from."""
    folder = tmp_path_factory.mktemp("pictures")
    raw = folder / "raw"
    raw.mkdir()
    draw = np.random.default_rng(0)
    for number in range(200):
        ramp = np.linspace(0, 200, 8)[:, None, None] + draw.integers(0, 40, (8, 8, 3))
        Image.fromarray(ramp.astype(np.uint8)).save(raw / f"{number:03}.png")
    return build("image-8x8", raw, folder / "image-8x8")


@pytest.fixture(scope="session")
def mathematics(tmp_path_factory) -> Path:
    """mathematics: about 250 training rows of 512 tokens, where answers alone count."""
    folder = tmp_path_factory.mktemp("mathematics")
    raw = folder / "problems.txt"
    raw.write_text("".join(f"What is {n} + {n * 7}?\n{n * 8}\n" for n in range(6000)))
    return build("mathematics", raw, folder / "mathematics")


def build(domain: str, raw: Path, out: Path) -> Path:
    command = ["build", domain, "--raw", str(raw), "--out", str(out)]
    assert data_prep([*command, "--workers", "1", "--fractions", "0.8,0.1,0.1"]) == 0
    return out


@pytest.fixture(scope="session")
def alone(tmp_path_factory, pictures, mathematics):
    """What an uninterrupted run of a configuration gives: trained once, then remembered."""
    known: dict[str, RunResult] = {}
    folder = tmp_path_factory.mktemp("alone")

    def result(config: RunConfig) -> RunResult:
        key = f"{config.digest}-{config.parallel.model_dump_json()}"
        if key not in known:
            data = pictures if config.domain == "image-8x8" else mathematics
            known[key] = train_alone(config, data, folder / str(len(known)))
        return known[key]

    return result
