"""The shipped studies: the published shapes and rates, a plan for each run, and small twins that train."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import launch
from launch.__main__ import main
from launch.checkpoint_files import step_number, steps_of
from launch.config import RunConfig
from launch.devices import GPUS
from launch.folder import run_folder
from launch.plan import STATE_BYTES, disk_bytes
from launch.planner import AS_FAST, choose
from launch.results import RunResult, read_result
from launch.run import run_all
from launch.saved import find_saved
from launch.study import expand, load_study
from tests.launch.tiny_data import TinyData

STUDIES = Path(launch.__file__).parent / "studies"
ALL = sorted(path.stem for path in STUDIES.glob("*.toml"))
PAPERS = [
    name
    for name in ALL
    if name.startswith(("henighan-", "kaplan-", "porian-", "known-entropy-"))
    and not name.endswith("-small")
]
# What two cores train in minutes: the twins, and two that have none
SMALL = [name for name in ALL if name.endswith("-small") or f"{name}-small" not in ALL]
# Henighan et al. 2020, tables 5 and 4: N and the peak rate as printed
TABLE_5 = {1.23e4: 0.002686, 9.83e4: 0.001597, 7.86e5: 0.000950, 6.29e6: 0.000565,
           5.03e7: 0.000336, 4.03e8: 0.000200, 3.22e9: 0.000119}  # fmt: skip
TABLE_4 = {98304: 0.00164, 393216: 0.00144, 3145728: 0.00115, 12582912: 0.000959, 25165824: 0.000862,
           42467328: 0.000789, 84934656: 0.000692, 157286400: 0.000606, 393216000: 0.000479,
           679477248: 0.000402}  # fmt: skip
ROWS_OF_TABLE_1 = {
    "image-8x8", "image-16x16", "image-32x32", "image-codes-16x16", "image-codes-32x32",
    "text-to-image", "image-to-text", "video-codes-16x16x16", "mathematics",
}  # fmt: skip


def runs(name: str):
    path = STUDIES / f"{name}.toml"
    return expand(load_study(path), path)


def test_there_is_a_study_for_every_row_of_table_1_and_a_twin_for_each():
    assert {f"henighan-{row}" for row in ROWS_OF_TABLE_1} <= set(PAPERS)
    assert {path.stem for path in STUDIES.glob("*-small.toml")} >= {f"{n}-small" for n in PAPERS}


@pytest.mark.parametrize("row", sorted(ROWS_OF_TABLE_1))
def test_shapes_rates_batch_and_schedule_are_the_published_ones(row):
    table = TABLE_4 if "text" in row else TABLE_5
    found = runs(f"henighan-{row}")
    assert len(found) == len(table)
    if "text" in row:  # section 2.1
        assert {tuple(sorted(run.loss.weights.items())) for run in found} == {
            (("pixel", 9.0), ("text", 1.0))
        }
    for run, (params, rate) in zip(found, table.items(), strict=True):
        assert run.shape.params_non_embedding == pytest.approx(params, rel=5e-3)  # printed digits
        assert run.peak_learning_rate == pytest.approx(rate, rel=4e-3)
        assert run.train_steps == 250_000
        assert (run.schedule.kind, run.schedule.warmup_steps) == ("linear", 3000)
        assert run.schedule.final_fraction == 0.1
        assert run.tokens_per_step == (
            524_288 if row == "mathematics" else 128 * run.shape.seq_length
        )
        assert run.optimizer.weight_decay == (0.05 if row == "mathematics" else 0)
        sparse = row.startswith(("image-8", "image-1", "image-3", "image-c", "video"))
        assert (run.shape.attention_window > 0) == sparse


@pytest.mark.parametrize(
    ("name", "size", "within"),
    [
        ("kaplan-shape", 2.5166e7, 0.02),
        ("kaplan-shape-small", 98_304, 0.03),
        ("henighan-image-shape", 6.29e6, 0.025),  # a row of table 5
        ("henighan-image-shape-small", 24_576, 0.025),
        ("henighan-mathematics-shape", 2.5166e7, 0.025),
        ("henighan-mathematics-shape-small", 98_304, 0.025),
    ],
)
def test_the_shapes_of_one_size_are_of_one_size(name, size, within):
    for run in runs(name):
        assert run.shape.params_non_embedding == pytest.approx(size, rel=within)


INFORMATION = [name for name in PAPERS if name.endswith("-information")]


@pytest.mark.parametrize("name", [*INFORMATION, *(f"{name}-small" for name in INFORMATION)])
def test_what_fine_tunes_starts_from_models_of_its_sizes(name):
    """Half of the pairs are blanked, in the part that comes first; 10^4 steps in the paper (section 4.1)."""
    found = runs(name)
    before = runs(found[0].start.study)
    assert found[0].start.study == name.replace("-information", "")
    assert [run.shape for run in found] == [run.shape for run in before]
    assert {run.data.blanked.share for run in found} == {0.5}
    first = {"t": "text", "i": "image", "k": "left"}[found[0].domain[0]]
    assert {run.data.blanked.part for run in found} == {first}
    assert {run.loss.model_dump_json() for run in (*found, *before)} == {
        found[0].loss.model_dump_json()
    }
    if not name.endswith("-small"):
        assert {run.train_steps for run in found} == {10_000}


def test_l_n_d_is_trained_with_the_papers_dropout():
    for name in ("kaplan-params-data", "kaplan-params-data-small"):
        assert {run.model.dropout for run in runs(name)} == {0.1}
    assert {run.model.dropout for run in runs("kaplan-params")} == {0.0}


@pytest.mark.parametrize("name", ["porian-ladder", "porian-ladder-small"])
def test_porians_corrections_come_one_after_another(name):
    """Warm-up of N tokens; a cosine for each length; a constant rate with batch and rate by size. N has the head."""
    by_variant: dict[str, list] = {}
    for run in runs(name):
        by_variant.setdefault(run.variant, []).append(run)
    assert set(by_variant) == {"kaplan", "warm-up", "matched", "tuned"}
    assert len({run.schedule.warmup_steps for run in by_variant["kaplan"]}) == 1
    for variant in ("warm-up", "matched", "tuned"):
        for run in by_variant[variant]:
            assert run.warmup_tokens == run.shape.params_non_embedding_and_head
    kinds = {variant: found[0].schedule.kind for variant, found in by_variant.items()}
    assert kinds == {
        "kaplan": "cosine",
        "warm-up": "cosine",
        "matched": "cosine",
        "tuned": "constant",
    }
    assert len({run.tokens for run in by_variant["warm-up"]}) == 1
    assert len({run.tokens for run in by_variant["matched"]}) > 2
    for run in by_variant["tuned"]:
        params = run.shape.params_non_embedding_and_head
        # Rounded to whole rows, and to what eight devices can share where there are many
        rows = 0.7576 * params**0.703 / run.shape.seq_length
        shared = 8 if rows >= 32 else 1
        assert abs(run.batch.train_batch_size - rows) <= shared / 2
        assert run.batch.train_batch_size % shared == 0
        if name == "porian-ladder":
            assert run.peak_learning_rate == pytest.approx(3.7 * params**-0.36)


def test_schedules_have_the_same_summed_rate_after_the_warm_up():
    from launch.schedule import learning_rate

    def summed(run) -> float:
        first = run.schedule.warmup_steps + 1
        steps = range(first, run.train_steps + 1, max(1, run.train_steps // 5000))
        rates = [
            learning_rate(
                step * run.tokens_per_step,
                schedule=run.schedule,
                peak=run.peak_learning_rate,
                warmup_tokens=run.warmup_tokens,
                total_tokens=run.tokens,
            )
            for step in steps
        ]
        return sum(rates) / len(rates)

    found = {run.variant: summed(run) for run in runs("kaplan-schedule")}
    assert found.pop("half-cosine") == pytest.approx(found["cosine"] / 2, rel=1e-3)
    # 5,000 sampled points of smooth curves, and the rates have four digits
    assert max(found.values()) == pytest.approx(min(found.values()), rel=5e-3)


@pytest.mark.parametrize("name", [name for name in ALL if "shape" in name])
def test_a_study_of_shape_has_the_paper_s_optimum_between_its_aspects(name):
    """Henighan figure 4: near 5 for pictures and mathematics; Kaplan figure 5: flat over a factor of 40."""
    of_its_own = [run.shape for run in runs(name)]
    usual = {shape.ffn_hidden_size / shape.hidden_size for shape in of_its_own}
    aspects = sorted({shape.hidden_size / shape.num_layers for shape in of_its_own})
    assert aspects[-1] / aspects[0] >= (20 if name in SMALL else 40)
    if name.startswith("henighan"):
        assert usual == {4.0 if "mathematics" in name else 1.0}
        assert aspects[1] < 5 < aspects[-2], "the optimum is not at an end"


@pytest.mark.parametrize("name", [name for name in ALL if re.search(r"-data(-small)?$", name)])
def test_subsets_are_whole_rows_and_grow(name):
    by_size: dict[str, list[RunConfig]] = {}
    for run in runs(name):
        by_size.setdefault(run.shape.name, []).append(run)
    for found in by_size.values():
        subsets = sorted(run.data.unique_tokens for run in found)
        assert len(set(subsets)) == len(found) >= 3
        assert subsets[-1] >= 10 * subsets[0], "a decade of D"
        for run in found:
            assert run.data.unique_tokens >= run.shape.seq_length
            # The lowest loss is looked for after the warm-up.
            assert run.tokens > 2 * run.warmup_tokens


def test_l_d_of_mathematics_is_of_the_paper_s_model():
    """Henighan appendix B.2: 64 layers of 512, d_ff = 4 d, d_attn = d, and N >> D."""
    for run in runs("henighan-mathematics-data"):
        shape = run.shape
        assert (shape.num_layers, shape.hidden_size, shape.ffn_hidden_size) == (64, 512, 2048)
        assert shape.attention_size == 512
        assert run.data.unique_tokens < shape.params_non_embedding


ALONG = [
    name for name in ALL
    if name.removesuffix("-small").endswith(("-information", "-blanks"))
    or name.removesuffix("-small") in ("henighan-mathematics", "henighan-image-32x32", "kaplan-params")
]  # fmt: skip


@pytest.mark.parametrize("name", ALONG)
def test_what_is_measured_along_training_keeps_eight_checkpoints(name):
    """Henighan figures 13, 24, 25, 29, 32; Kaplan figures 8, 24. The comment says what disk that takes."""
    found = runs(name)
    for run in found:
        assert run.train_steps // run.checkpoint.keep_every == 8
        assert all(run.keeps(number * run.checkpoint.keep_every) for number in range(1, 9))
    text = (STUDIES / f"{name}.toml").read_text()
    said, unit = re.search(r"; ([\d.]+) (MB|GB) of disk", text).groups()
    in_all = sum(disk_bytes(run) for run in found) / {"MB": 1e6, "GB": 1e9}[unit]
    assert float(said) == pytest.approx(in_all, rel=0.02)  # at least two digits


@pytest.mark.parametrize("name", ALL)
def test_every_run_has_a_plan_on_one_gpu_of_either_kind(name):
    """As `launch plan STUDY.toml` asks."""
    for run in runs(name):
        least = run.flops_exact / GPUS["h100"].bf16 / 3600  # both have the same peak
        hours = {}
        for device in (GPUS["h100"], GPUS["h200"]):
            plan = choose(run, device, 1)
            hours[device.name] = plan.device_hours(run.train_steps)
            assert plan.bytes <= device.memory
            assert least < hours[device.name] < math.inf
        # More memory, and faster; of what is as fast the simplest is taken
        assert hours["h200"] <= AS_FAST * hours["h100"]


@pytest.mark.parametrize("name", PAPERS)
def test_a_node_of_eight_can_share_every_batch(name):
    """docs/experiments.md prices each study with --gpus 8: other batches have no plan there."""
    assert all(run.batch.train_batch_size % 8 == 0 for run in runs(name))


def test_the_table_has_disk_and_its_sum(capsys):
    name = "henighan-mathematics"
    assert main(["plan", str(STUDIES / f"{name}.toml")]) == 0
    header, *rows, total = capsys.readouterr().out.splitlines()
    found = runs(name)
    # Memory comes after it
    cells = [re.findall(r" ([\d.e+]+)GB ", row)[0] for row in rows]
    assert header.split()[-8] == "disk"
    of_each = [disk_bytes(run) / 1e9 for run in found]
    assert [float(cell) for cell in cells] == pytest.approx(of_each, rel=5e-3)  # three digits
    said = float(re.search(r"up to ([\d.e+]+)GB of disk", total).group(1))
    assert said == pytest.approx(sum(of_each), rel=5e-3)
    # By hand, for the largest: two that are last, eight that are kept, one being written
    largest = found[-1]
    assert disk_bytes(largest) == pytest.approx(11 * 14 * largest.shape.params_total, rel=0.01)


def test_disk_counts_the_checkpoints_that_shorter_runs_start_from():
    trunk = runs("ground-truth")[-1]
    alone = trunk.model_copy(update={"keep_steps": []})
    assert len(trunk.keep_steps) == 4
    checkpoint = (disk_bytes(trunk) - disk_bytes(alone)) / 4
    assert checkpoint > 16 * trunk.shape.params_total
    # Two that are last and one being written, and metrics.h5 itself
    assert 3 * checkpoint < disk_bytes(alone) < 4 * checkpoint


# --- training


STEPS = 2


@dataclass
class Trained:
    """Of each study a run of each variant, the smallest, cut to a few steps; trained when it is first asked for."""

    data: TinyData
    results: Path
    known: dict[str, list[tuple[RunConfig, RunResult]]] = field(default_factory=dict)

    def __call__(self, name: str) -> list[tuple[RunConfig, RunResult]]:
        if name not in self.known:
            short = [_short(run) for run in _smallest(name)]
            for start in {run.start.study for run in short if run.start}:
                self(start)  # what it begins with
            assert run_all(short, self.data(short[0].domain), self.results) == 0
            self.known[name] = [(run, read_result(run_folder(self.results, run))) for run in short]
        return self.known[name]


def _smallest(name: str) -> list[RunConfig]:
    """The first run of every variant: runs come smallest first."""
    first: dict[str, RunConfig] = {}
    for run in runs(name):
        first.setdefault(run.variant, run)
    return list(first.values())


def _short(run: RunConfig) -> RunConfig:
    """The same for a few steps, alone; what is kept along the run is kept at every step."""
    every = run.checkpoint.keep_every and 1
    return run.model_copy(
        update={
            "trunk": None,
            "keep_steps": [],
            "tokens": STEPS * run.tokens_per_step,
            "schedule": run.schedule.model_copy(update={"warmup_steps": 1, "warmup_tokens": None}),
            "evaluation": run.evaluation.model_copy(update={"rows": 2}),
            "checkpoint": run.checkpoint.model_copy(update={"keep_every": every}),
        }
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    folder = tmp_path_factory.mktemp("studies")
    return Trained(TinyData(folder / "data"), folder / "results")


@pytest.mark.parametrize("name", SMALL)
def test_a_run_of_each_variant_trains(name, trained):
    for run, result in trained(name):
        folder = run_folder(trained.results, run)
        assert result.finished
        assert len(result.train) == STEPS
        assert np.isfinite(result.train["loss"]).all()
        assert (result.train["grad_norm"] > 0).all()
        # Weights of variance 0.02^2 tell little: the first loss is that of equal chances for every token (or class).
        outcomes = run.shape.classes or run.shape.vocab_size
        if run.start is None or run.shape.classes:
            assert result.train["loss"][0] == pytest.approx(math.log(outcomes), rel=0.1)
        before = [each for each, _ in trained(run.start.study)] if run.start else []
        sources = {f"{each.run_id}/step-{STEPS}" for each in before} or {""}
        assert result.provenance[-1]["started_from"] in sources
        kept = [step_number(path) for path in steps_of(folder)]
        assert kept == (list(range(1, STEPS + 1)) if run.checkpoint.keep_every else [STEPS])
        # What `launch evaluate RUN/checkpoints/step-*` takes
        assert [saved.step for saved in find_saved(steps_of(folder))] == kept


def test_the_disk_that_is_foretold_is_an_upper_bound(trained):
    """fp32 without ZeRO has no master weights; the planner may yet choose ZeRO, so they are counted."""
    for run, _ in trained("kaplan-params-small"):
        folder = run_folder(trained.results, run)
        held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        states = STEPS * run.shape.params_total
        assert 12 * states < held < disk_bytes(run)
        assert STATE_BYTES[run.precision] * states < disk_bytes(run)
