"""The VQ-VAE: nearest entries, averages, training, and a file that is whole or refused."""

import json
import pickle
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from data_prep import codebook_training
from data_prep.codebook import (
    KEY,
    WIDTH,
    Codebook,
    Facts,
    Lookup,
    Network,
    check_fit,
    pixels,
    scaled,
    threads,
)
from data_prep.codebook_training import DECAY, Averages, train, use

STEPS = 160
ROOT = Path(__file__).parents[2]


def paint(folder, count):
    """So many pictures of smooth colours, each another one."""
    folder.mkdir()
    rows, columns = np.mgrid[:64, :64] / 64
    for number in range(count):
        draw = np.random.default_rng(number)
        a, b, c = draw.uniform(-1, 1, (3, 3))
        waves = np.sin(3 * (a * rows[..., None] + b * columns[..., None]) + 3 * c)
        Image.fromarray((127 + 120 * waves).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return paint(tmp_path_factory.mktemp("codebook") / "pictures", 96)


@pytest.fixture(scope="module")
def trained(raw, tmp_path_factory):
    """(file, what train said) of a tiny codebook."""
    out = tmp_path_factory.mktemp("trained") / "tiny.safetensors"
    return out, train(str(raw), out, steps=STEPS, batch=16, entries=64, hidden=16)


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (19, 64, 64, 3), dtype=np.uint8)


# --- the look-up


def nearest_by_definition(vectors, entries):
    """The lowest index of the smallest Euclidean distance, in float64."""
    distances = np.square(vectors[:, None].astype(np.float64) - entries[None]).sum(2)
    return distances.argmin(1), distances


def test_the_nearest_entry_and_of_equal_ones_the_lowest():
    """Small integers, so that float32 is exact and ties are many and real."""
    draw = np.random.default_rng(0)
    entries = draw.integers(-1, 2, (300, 6)).astype(np.float32)
    vectors = draw.integers(-1, 2, (1000, 6)).astype(np.float32)
    wanted, distances = nearest_by_definition(vectors, entries)
    assert ((distances == distances.min(1)[:, None]).sum(1) > 1).mean() > 0.5
    found = Lookup(torch.from_numpy(entries))(torch.from_numpy(vectors))
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(found.numpy(), wanted)


def test_of_real_vectors_none_is_nearer_than_float32_can_tell():
    draw = np.random.default_rng(1)
    entries = draw.standard_normal((512, WIDTH)).astype(np.float32)
    vectors = draw.standard_normal((700, WIDTH)).astype(np.float32)
    found = Lookup(torch.from_numpy(entries))(torch.from_numpy(vectors)).numpy()
    _, distances = nearest_by_definition(vectors, entries)
    # A sum of WIDTH + 1 products is off by at most (WIDTH + 2) eps times the sum of their sizes; two are compared.
    sizes = 2 * np.abs(vectors) @ np.abs(entries).T + np.square(entries).sum(1)
    bound = 2 * (WIDTH + 2) * np.finfo(np.float32).eps * sizes.max(1)
    chosen = distances[np.arange(len(found)), found]
    assert (chosen <= distances.min(1) + bound).all()
    assert (found == distances.argmin(1)).mean() > 0.99


# --- training


def test_averages_follow_the_vectors_and_unused_entries_start_again():
    generator = torch.Generator().manual_seed(0)
    averages = Averages(torch.tensor([50.0, 50.0, 1.0]), torch.randn(3, WIDTH, generator=generator))
    before = Averages(averages.counts.clone(), averages.sums.clone())
    vectors = torch.randn(8, WIDTH, generator=generator)
    codes = torch.tensor([0, 0, 0, 1, 0, 1, 0, 0])
    assert averages.update(vectors, codes, generator) == 1
    for code, count in ((0, 6), (1, 2)):
        counts = DECAY * before.counts[code] + (1 - DECAY) * count
        sums = DECAY * before.sums[code] + (1 - DECAY) * vectors[codes == code].sum(0)
        torch.testing.assert_close(averages.counts[code], counts)
        torch.testing.assert_close(averages.sums[code], sums)
        torch.testing.assert_close(averages.entries[code], sums / counts)
    assert averages.counts[2] == 1
    assert (averages.entries[2] == vectors).all(1).any()


def test_use_of_a_codebook():
    perplexity, used = use(np.array([[0, 1], [2, 3]]), 8)
    assert perplexity == pytest.approx(4)
    assert used == 0.5
    assert use(np.zeros((3, 3), int), 8) == (1.0, 1 / 8)


def test_training_learns_and_reports(raw, trained):
    out, said = trained
    facts = Codebook.load(out).facts
    made = (facts.codes, facts.entries, facts.hidden, facts.steps, facts.batch)
    assert made == (16, 64, 16, STEPS, 16)
    assert (facts.pictures, facts.held_out, facts.raw) == (90, 6, str(raw))
    # The mean colour of all pictures, the best answer without looking, is off by their variance.
    everything = np.stack([np.asarray(Image.open(path)) for path in raw.iterdir()])
    assert facts.reconstruction < 0.6 * everything.var()
    assert 1 < facts.perplexity <= facts.used * 64 <= 64
    assert f"reconstruction error {facts.reconstruction:.1f} (PSNR {facts.psnr:.1f} dB)" in said
    assert "16 x 16 codes of 64 entries, trained on 90 pictures" in said


def test_the_header_is_plain_json_and_the_picture_shows_what_the_file_does(trained):
    out, _ = trained
    data = out.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"][KEY])["entries"] == 64
    shown = np.asarray(Image.open(f"{out}.png"))
    assert shown.shape == (128, 6 * 64, 3)
    codebook = Codebook.load(out)
    originals = np.stack(np.split(shown[:64], 6, axis=1))
    back = np.concatenate(codebook.decode(codebook.encode(originals)), axis=1)
    np.testing.assert_array_equal(shown[64:], back)


def test_the_same_seed_gives_the_same_file_and_another_seed_another(raw, tmp_path):
    names = [("a", 3, 1), ("b", 3, 1), ("c", 4, 1)]
    for name, seed, workers in names:
        train(str(raw), tmp_path / name, 16, 5, 4, seed, 32, 8, workers)
    a, b, c = ((tmp_path / name).read_bytes() for name, _, _ in names)
    assert a == b
    assert a != c


def test_a_codebook_of_32_by_32_codes(raw, tmp_path):
    said = train(str(raw), tmp_path / "c", codes=32, steps=2, batch=1, hidden=8)
    codebook = Codebook.load(tmp_path / "c")
    assert codebook.facts.entries == 1024
    assert codebook.encode(np.zeros((1, 64, 64, 3), np.uint8)).shape == (1, 32, 32)
    assert "32 x 32 codes of 1024 entries" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": 8}, r"--codes 8, --entries 64, --hidden 8: no such codebook; wanted 16 or 32"),
        ({"entries": 1}, "--entries 1"),
        ({"entries": 65537}, "--entries 65537"),
        ({"hidden": 6}, "--hidden 6"),
        ({"steps": 0}, r"--steps 0.*wanted at least 1 step"),
        (
            {"entries": 4096},
            r"--batch 4.*wanted .* a batch of 16 pictures.*For instance: .*--batch 64",
        ),
        ({"out": Path("/nonexistent/c")}, r"--out .*the folder /nonexistent does not exist"),
        ({"out": ROOT}, r"--out .*is a folder"),
        ({"raw": "/nonexistent"}, "does not exist"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_work(raw, tmp_path, change, message):
    given = {
        "raw": str(raw),
        "out": tmp_path / "c",
        "entries": 64,
        "hidden": 8,
        "steps": 2,
        "batch": 4,
    }
    with pytest.raises(ValueError, match=message):
        train(**(given | change))


def test_raw_without_two_pictures_is_refused_with_the_reasons(tmp_path):
    folder = tmp_path / "bad"
    paint(folder, 1)
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "x.jpg").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"1 different pictures in 3 items \(refused: 1 x empty file\)"
    ):
        train(str(folder), tmp_path / "c", entries=64, hidden=8, steps=2, batch=4)
    assert not (tmp_path / "c").exists()


def stop(*arguments):
    raise KeyboardInterrupt


def test_a_training_that_was_stopped_goes_on_to_the_same_file(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(codebook_training, "SAVE_SECONDS", 0.0)  # after each step
    given = {"steps": 20, "batch": 4, "entries": 32, "hidden": 8}
    train(str(raw), tmp_path / "whole", **given)
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "whole.png"}
    with monkeypatch.context() as patch:
        patch.setattr(codebook_training, "SAVE_SECONDS", 60.0)
        patch.setattr(codebook_training, "_report", stop)  # at step 2, before anything is saved
        with pytest.raises(KeyboardInterrupt):
            train(str(raw), tmp_path / "c", **given)
    assert not (tmp_path / "c.training").exists()
    write = codebook_training.write_file
    with monkeypatch.context() as patch:
        seen = []
        patch.setattr(
            codebook_training,
            "write_file",
            lambda path, data: (write(path, data), seen.append(1), len(seen) == 5 and stop()),
        )
        with pytest.raises(KeyboardInterrupt):
            train(str(raw), tmp_path / "c", **given)
    kept = (tmp_path / "c.training").read_bytes()
    assert not (tmp_path / "c").exists()
    with pytest.raises(ValueError, match=r'c.training: holds a .*"seed": 0.*; wanted .*"seed": 1'):
        train(str(raw), tmp_path / "c", seed=1, **given)
    (tmp_path / "c.training").write_bytes(kept[:-1])
    with pytest.raises(ValueError, match=r"cannot be read .*; wanted .*delete this file"):
        train(str(raw), tmp_path / "c", **given)
    (tmp_path / "c.training").write_bytes(kept)
    (tmp_path / "c.training.123.tmp").write_bytes(kept[:9])
    with monkeypatch.context() as patch:
        steps = []
        patch.setattr(codebook_training, "_step", counted(steps))
        train(str(raw), tmp_path / "c", **given)
    assert len(steps) == 15
    assert (tmp_path / "c").read_bytes() == (tmp_path / "whole").read_bytes()
    names = {"whole", "whole.png", "c", "c.png"}
    assert {path.name for path in tmp_path.iterdir()} == names


def counted(steps):
    """`_step` that adds to `steps` what it is called for."""
    step = codebook_training._step

    def counting(training, *others):
        steps.append(training.step)
        return step(training, *others)

    return counting


def test_killed_in_training_it_leaves_no_file(raw, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom data_prep.codebook_training import train\n"
        "if __name__ == '__main__':\n"
        f"    train({str(raw)!r}, Path({str(tmp_path / 'c')!r}), steps=300, batch=4, entries=32, hidden=4)\n"
    )
    process = subprocess.Popen(
        [sys.executable, script], env={"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    with process.stderr:
        assert any("step 30 of 300" in line for line in process.stderr)
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert {path.name for path in tmp_path.iterdir()} == {"script.py"}


# --- pictures to codes and back


def test_codes_do_not_depend_on_the_pictures_beside_nor_on_threads(trained, pictures):
    codebook = Codebook.load(trained[0])
    together = codebook.encode(pictures)
    assert together.shape == (19, 16, 16)
    assert together.dtype == np.uint16
    alone = np.concatenate([codebook.encode(pictures[n : n + 1]) for n in range(19)])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(codebook.encode(pictures[::-1]), together[::-1])
    back = codebook.decode(together)
    np.testing.assert_array_equal(codebook.decode(together[5:6]), back[5:6])
    before = torch.get_num_threads()
    with threads(2):
        np.testing.assert_array_equal(codebook.encode(pictures), together)
        np.testing.assert_array_equal(codebook.decode(together), back)
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before


def test_vectors_do_not_depend_on_their_place_in_the_batch(trained, pictures):
    """The bits, not only the codes that hide them."""
    network = Codebook.load(trained[0])._network
    batch = torch.from_numpy(pictures[:8])
    with torch.inference_mode(), threads(1):
        straight, turned = network.encode(batch), network.encode(batch.flip(0)).flip(0)
    assert torch.equal(straight, turned)


def test_codes_are_the_nearest_entries_of_the_network(trained, pictures):
    codebook = Codebook.load(trained[0])
    with torch.inference_mode(), threads(1):
        vectors = codebook._network.encode(torch.from_numpy(pictures[:8])).reshape(-1, WIDTH)
    entries = codebook._network.entries.numpy()
    wanted, distances = nearest_by_definition(vectors.numpy(), entries)
    found = codebook.encode(pictures[:8]).reshape(-1)
    chosen = distances[np.arange(len(found)), found]
    np.testing.assert_allclose(chosen, distances.min(1), rtol=1e-4)
    assert (found == wanted).mean() > 0.99


def test_every_colour_comes_back_from_the_scale():
    colours = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(-1, -1, -1, 3)
    assert torch.equal(pixels(scaled(colours)), colours)


def test_no_pictures_no_codes(trained):
    codebook = Codebook.load(trained[0])
    assert codebook.encode(np.zeros((0, 64, 64, 3), np.uint8)).shape == (0, 16, 16)


@pytest.mark.parametrize(
    ("way", "values"),
    [
        ("encode", np.zeros((1, 32, 32, 3), np.uint8)),
        ("encode", np.zeros((1, 64, 64, 3), np.float32)),
        ("encode", np.full((1, 64, 64, 3), 256)),
        ("decode", np.zeros((1, 32, 32), np.uint16)),
        ("decode", np.full((1, 16, 16), 64)),
        ("decode", np.full((1, 16, 16), -1)),
    ],
)
def test_wrong_arrays_are_refused(trained, way, values):
    with pytest.raises(ValueError, match=r"values .*; wanted integers \[n, .*Give the codebook of"):
        getattr(Codebook.load(trained[0]), way)(values)


# --- the file


def tensors(facts):
    return {name: each.contiguous() for name, each in Network(facts).state_dict().items()}


SMALL = Facts(16, 8, 4)
META = json.dumps(vars(SMALL))


def changed(**change):
    return {KEY: json.dumps(vars(SMALL) | change)}


def with_nan():
    found = tensors(SMALL)
    found["entries"][0, 0] = float("nan")
    return found


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: b"", "wanted a safetensors file"),
        (lambda: b"hello, this is no codebook", "wanted a safetensors file"),
        (lambda: pickle.dumps({"entries": 1}), "wanted a safetensors file"),
        (lambda: struct.pack("<Q", 1 << 62) + b"{}", "wanted a safetensors file"),
        (lambda: save(tensors(SMALL)), "its metadata lacks the key 'codebook'"),
        (lambda: save(tensors(SMALL), {KEY: "[]"}), "wanted the facts of a codebook"),
        (lambda: save(tensors(SMALL), {KEY: "{"}), "wanted the facts of a codebook"),
        (lambda: save(tensors(SMALL), changed(entries="8")), "wanted the facts of a codebook"),
        (lambda: save(tensors(SMALL), changed(codes=17)), "wanted the facts of a codebook"),
        (lambda: save(tensors(SMALL), changed(entries=10**12)), "wanted the facts of a codebook"),
        (lambda: save(tensors(SMALL), changed(shape=3)), "wanted the facts of a codebook"),
        (
            lambda: save(tensors(SMALL), changed(entries=9)),
            r"entries is \(8, 64\); wanted \(9, 64\)",
        ),
        (lambda: save(tensors(SMALL), changed(hidden=8)), "decoder.0.bias is"),
        (lambda: save({"x": torch.zeros(1)}, {KEY: META}), "is missing; wanted"),
        (lambda: save(with_nan(), {KEY: META}), "entries holds no finite float32 values"),
        (
            lambda: save({k: v.double() for k, v in tensors(SMALL).items()}, {KEY: META}),
            "holds no finite float32 values",
        ),
    ],
)
def test_a_file_that_is_no_codebook_is_refused(tmp_path, data, message):
    path = tmp_path / "c"
    path.write_bytes(data())
    with pytest.raises(ValueError, match=message) as caught:
        Codebook.load(path)
    assert str(path) in str(caught.value)
    assert "train-codebook" in str(caught.value)


def test_a_missing_file_or_a_folder_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match="there is no such file; wanted a codebook"):
            Codebook.load(path)


def test_a_cut_off_file_is_refused_wherever_it_is_cut(trained, tmp_path):
    data = trained[0].read_bytes()
    path = tmp_path / "cut"
    for length in [*range(0, 3000, 151), *range(3000, len(data), len(data) // 20), len(data) - 1]:
        path.write_bytes(data[:length])
        # The advice must not name the file that was given: it may be something else.
        with pytest.raises(ValueError, match="wanted a safetensors file.* --out FILE$"):
            Codebook.load(path)


def test_a_mutated_header_is_refused_or_harmless(trained, tmp_path, pictures):
    data = np.frombuffer(trained[0].read_bytes(), np.uint8)
    draw = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        mutated = data.copy()
        mutated[draw.integers(0, 2500, 3)] = draw.integers(0, 256, 3)
        path = tmp_path / "mutated"
        path.write_bytes(mutated.tobytes())
        try:
            codes = Codebook.load(path).encode(pictures[:1])
        except ValueError:
            refused += 1
        else:
            assert codes.max() < 64
    assert refused > 50


def test_saved_and_loaded_is_the_same(trained, tmp_path):
    Codebook.load(trained[0]).save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == trained[0].read_bytes()


def test_a_codebook_of_another_shape_does_not_fit(trained):
    check_fit(trained[0], 16, 64)
    with pytest.raises(
        ValueError, match=r"16 x 16 codes and 64 entries; wanted 16 x 16 and 4096. Train"
    ):
        check_fit(trained[0], 16, 4096)
