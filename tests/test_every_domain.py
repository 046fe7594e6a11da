"""Every kind of data, from the real files to a falling loss: build, check, show, train.

Needs the folder of real sample files that the environment variable SAMPLE_DATA names.
"""

import subprocess
import sys

import numpy as np
import pytest

from data_prep.__main__ import main as data_prep
from data_prep.domain import domain_names
from data_prep.manifest import load_manifest
from launch.exits import DONE
from launch.results import read_result
from launch.run import run_all
from launch.strict import validate
from launch.study import Study, expand

PIECES = 2048
STEPS = 300
# Rows to make where the raw input is `generator`.
ROWS = 400
SPARSE = {"attention": "sparse", "positions": "factorised"}
# domain: (raw input below the folder of real files, or `generator`; rows of a batch, codec, model)
CASES = {
    "mathematics": ("generator", 2, None, {"family": "kaplan"}),
    "known-entropy": ("generator", 32, None, {}),
    "known-entropy-pairs": ("generator", 32, None, {}),
    "image-8x8": ("labelled/cifar10_train_imagefolder.tar", 8, None, {}),
    "image-16x16": ("labelled/tinyimagenet10-train-000000.tar", 4, None, SPARSE),
    "image-32x32": ("images", 1, None, SPARSE),
    "image-8x8-classes": ("labelled/cifar10_train_imagefolder.tar", 32, None, {"classes": 10}),
    "image-16x16-classes": (
        "labelled/tinyimagenet10-train-000000.tar",
        16,
        None,
        SPARSE | {"classes": 10},
    ),
    "image-32x32-classes": (
        "labelled/tinyimagenet10-val-000000.tar",
        8,
        None,
        SPARSE | {"classes": 10},
    ),
    "image-codes-16x16": ("labelled/tinyimagenet10-train-000000.tar", 8, "codebook-16", SPARSE),
    "image-codes-32x32": ("labelled/tinyimagenet10-val-000000.tar", 2, "codebook-32", SPARSE),
    "video-codes-16x16x16": ("videos", 1, "codebook-16", SPARSE),
    f"text-v{PIECES}": ("text", 2, "tokenizer", {"family": "kaplan"}),
    f"text-to-image-v{PIECES}": ("captions", 1, "tokenizer", {}),
    f"image-to-text-v{PIECES}": ("captions", 1, "tokenizer", {}),
}

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def codecs(sample_data, tmp_path_factory) -> dict[str, list[str]]:
    """A tokenizer and two codebooks, trained for a moment: what they are worth is not asked here."""
    folder = tmp_path_factory.mktemp("codecs")
    tokenizer = folder / "tokenizer.model"
    run(
        "train-tokenizer", "--raw", sample_data / "text", "--out", tokenizer, "--vocabulary", PIECES
    )
    made = {"tokenizer": ["--tokenizer", str(tokenizer)]}
    for codes in (16, 32):
        out = folder / f"codebook-{codes}.safetensors"
        run(
            "train-codebook", "--raw", sample_data / "labelled" / "tinyimagenet10-train-000000.tar",
            "--out", out, "--codes", codes, "--steps", 60, "--batch", 16, "--hidden", 16,
        )  # fmt: skip
        made[f"codebook-{codes}"] = ["--codebook", str(out)]
    return made


def run(*command: object) -> None:
    words = [sys.executable, "-m", "data_prep", *map(str, command)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_domain_is_forgotten():
    assert {name.removesuffix(f"-v{PIECES}") for name in CASES} == set(domain_names())


@pytest.mark.parametrize("name", CASES)
def test_from_raw_files_to_a_falling_loss(name, codecs, sample_data, tmp_path, capsys):
    raw, batch, codec, model = CASES[name]
    data = tmp_path / "data"
    made = raw == "generator"
    source = ("generator", "--rows", ROWS) if made else (sample_data / raw,)
    run(
        "build", name, "--raw", *source, "--out", data, "--fractions", "0.8,0.1,0.1",
        "--max-refused", "0.5", "--accept-damaged", *(codecs[codec] if codec else []),
    )  # fmt: skip
    assert data_prep(["check", str(data)]) == 0
    shown = tmp_path / "row.png"
    assert data_prep(["show", str(data), "--row", "0", "--out", str(shown)]) == 0
    assert shown.stat().st_size > 20
    assert load_manifest(data).rows("train") > 0

    length = load_manifest(data).seq_length
    study = {
        "name": "every-domain",
        "question": "Does the loss fall?",
        "domain": name,
        "precision": "fp32",
        "ladder": [{"num_layers": 2, "hidden_size": 32}],
        "budget": {"tokens": float(STEPS * batch * length)},
        "batch": {"train_batch_size": batch},
        "optimizer": {"learning_rate": 4e-3},
        "schedule": {"kind": "linear", "warmup_steps": 20},
        "model": model,
        "evaluation": {"rows": 8, "points_per_decade": 1},
    }
    (config,) = expand(validate(Study, study, "study.toml"), "study.toml")
    assert run_all([config], data, tmp_path / "results") == DONE
    losses = read_result(tmp_path / "results" / config.study / config.run_id).train["loss"]
    first, last = np.mean(losses[:10]), np.mean(losses[-30:])
    with capsys.disabled():
        print(f"\n{name}: {len(losses)} steps, loss {first:.3f} to {last:.3f} nats")
    # Untrained, a model knows nothing: the loss starts near log(vocabulary) and must end below it.
    assert last < 0.93 * first
