"""The papers' studies: the published shapes and rates, a plan for each, and small twins that train."""

from pathlib import Path

import pytest

import launch
from benchmarks.synthetic import batch_of
from launch.devices import GPUS
from launch.engine import Engine, start_process
from launch.planner import choose
from launch.study import expand, load_study

STUDIES = Path(launch.__file__).parent / "studies"
PAPERS = sorted(
    path.stem
    for pattern in ("henighan-*.toml", "kaplan-*.toml", "porian-*.toml", "known-entropy-*.toml")
    for path in STUDIES.glob(pattern)
    if not path.stem.endswith("-small")
)
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


def test_the_shapes_of_one_size_are_of_one_size():
    for name, size, within in (("kaplan-shape", 2.5166e7, 0.02), ("kaplan-shape-small", 9.83e4, 0.03)):  # fmt: skip
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
        # Rounded to whole rows
        rows = 0.7576 * params**0.703 / run.shape.seq_length
        assert abs(run.batch.train_batch_size - rows) <= 0.5
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


@pytest.mark.parametrize("name", PAPERS)
def test_the_smallest_and_the_largest_run_have_a_plan(name):
    found = runs(name)
    for run in (found[0], found[-1]):
        plan = choose(run, GPUS["h100"], 8)
        assert plan.device_hours(run.train_steps) > 0


@pytest.mark.parametrize("name", [f"{name}-small" for name in PAPERS])
def test_the_small_twin_trains(name):
    """Two steps of its largest model on random tokens: half a minute's worth of a run would say no more."""
    run = runs(name)[-1]
    device = start_process()
    engine = Engine(run, device)
    batch = batch_of(run, device)
    first, second = (engine.train_step(batch, run.peak_learning_rate) for _ in range(2))
    assert second.loss < first.loss, "the same batch again"
    engine.close()
