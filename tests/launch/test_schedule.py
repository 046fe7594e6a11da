"""The learning rate: a pure function of tokens, and the papers' peak rates."""

import math

import pytest

from launch.schedule import Schedule, cooldown_start, learning_rate, peak_learning_rate
from megatron_ext.shape import shape_of
from tests.launch.small import config, expanded

WARMUP, TOTAL, PEAK = 1_000.0, 11_000.0, 2.0


def rate(tokens: float, **schedule) -> float:
    return learning_rate(
        tokens, schedule=Schedule(**schedule), peak=PEAK, warmup_tokens=WARMUP, total_tokens=TOTAL
    )


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "wsd"])
def test_every_kind_warms_up_linearly(kind):
    for part in (0.0, 0.001, 0.25, 0.5, 0.999):
        assert rate(part * WARMUP, kind=kind) == PEAK * (part * WARMUP) / WARMUP
    assert rate(WARMUP, kind=kind) == PEAK


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        # The rate as a part of the peak at 0, 1/4, 1/2 and all of the way after the warm-up.
        ({"kind": "constant"}, [1, 1, 1, 1]),
        ({"kind": "linear", "final_fraction": 0.1}, [1, 0.775, 0.55, 0.1]),
        ({"kind": "linear", "final_fraction": 0.0}, [1, 0.75, 0.5, 0]),
        ({"kind": "cosine", "final_fraction": 0.0}, [1, (2 + math.sqrt(2)) / 4, 0.5, 0]),
        ({"kind": "cosine", "final_fraction": 0.5}, [1, 0.5 + (2 + math.sqrt(2)) / 8, 0.75, 0.5]),
    ],
)
def test_values_along_the_way(schedule, values):
    way = TOTAL - WARMUP
    got = [rate(WARMUP + part * way, **schedule) for part in (0, 0.25, 0.5, 1)]
    # A handful of float64 operations on numbers of order 1.
    assert got == pytest.approx([PEAK * value for value in values], abs=8 * 2.0**-53 * PEAK)


def test_wsd_is_flat_then_falls_as_one_minus_the_root():
    wsd = {"kind": "wsd", "cooldown_fraction": 0.4, "final_fraction": 0.2}
    start = cooldown_start(Schedule(**wsd), TOTAL)
    assert start == pytest.approx(0.6 * TOTAL)
    assert rate(WARMUP + 1, **wsd) == rate(start, **wsd) == PEAK
    for part in (0.01, 0.25, 0.5, 1.0):
        wanted = PEAK * (1 - 0.8 * math.sqrt(part))
        # The root amplifies the rounding of `part` (an error of 2^-53 of TOTAL / way) near 0.
        assert rate(start + part * (TOTAL - start), **wsd) == pytest.approx(wanted, rel=1e-12)


def test_wsd_does_not_depend_on_the_length_before_the_cool_down():
    schedule = Schedule(kind="wsd", cooldown_fraction=0.2)
    for tokens in (1.0, 500.0, 1000.0, 5000.0, 8000.0):
        rates = {
            learning_rate(
                tokens, schedule=schedule, peak=PEAK, warmup_tokens=WARMUP, total_tokens=total
            )
            for total in (10_000.0, 20_000.0, 1e9)
        }
        assert len(rates) == 1


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd"])
def test_never_rises_after_the_warmup_and_never_leaves_its_range(kind):
    rates = [rate(tokens, kind=kind, final_fraction=0.1) for tokens in range(1000, 11_001, 10)]
    assert all(later <= earlier for earlier, later in zip(rates, rates[1:], strict=False))
    assert rates[0] == PEAK
    assert rates[-1] == pytest.approx(0.1 * PEAK, rel=8 * 2.0**-53)
    assert rate(2 * TOTAL, kind=kind, final_fraction=0.1) == rates[-1], "past the end: the end"


def test_no_warmup_starts_at_the_peak():
    for kind in ("constant", "linear", "cosine", "wsd"):
        first = learning_rate(
            0.0, schedule=Schedule(kind=kind), peak=PEAK, warmup_tokens=0.0, total_tokens=TOTAL
        )
        assert first == PEAK


def test_the_batch_size_does_not_change_the_schedule():
    """The same tokens, the same rate, whether 2 or 8 rows make a step."""
    schedule = {"kind": "cosine", "warmup_tokens": 8 * 192 * 5.0, "final_fraction": 0.1}
    rates = []
    for rows in (2, 8):
        run = config(40, batch={"train_batch_size": rows}, schedule=schedule)
        assert run.warmup_tokens == 8 * 192 * 5.0
        rates.append(
            {
                step * run.tokens_per_step: learning_rate(
                    step * run.tokens_per_step,
                    schedule=run.schedule,
                    peak=1.0,
                    warmup_tokens=run.warmup_tokens,
                    total_tokens=run.tokens,
                )
                for step in range(1, run.train_steps + 1)
            }
        )
    small, large = rates
    assert large.keys() < small.keys()
    assert all(small[tokens] == large[tokens] for tokens in large)


def test_warmup_steps_are_steps_of_this_batch():
    run = config(40, schedule={"warmup_steps": 7})
    assert run.warmup_tokens == 7 * run.tokens_per_step


@pytest.mark.parametrize(
    ("layers", "width", "printed"),
    # Henighan et al. 2020, Table 5: the printed rates, to their six decimals.
    [(4, 32, 0.002686), (8, 64, 0.001597), (16, 128, 0.000950), (32, 256, 0.000565),
     (64, 512, 0.000336), (128, 1024, 0.000200), (256, 2048, 0.000119)],
)  # fmt: skip
def test_the_henighan_rule_gives_table_5(layers, width, printed):
    shape = shape_of(
        "henighan", num_layers=layers, hidden_size=width, seq_length=192, vocab_size=256
    )
    rule = peak_learning_rate("henighan", shape.params_non_embedding)
    assert rule == pytest.approx(printed, abs=5e-7, rel=0), "half of the last printed digit"


@pytest.mark.parametrize(
    ("width", "layers", "printed"),
    # Henighan et al. 2020, Table 4: three digits each.
    [(64, 2, 0.00164), (128, 2, 0.00144), (256, 4, 0.00115), (512, 4, 0.000959),
     (512, 8, 0.000862), (768, 6, 0.000789), (768, 12, 0.000692), (1280, 8, 0.000606),
     (1280, 20, 0.000479), (1536, 24, 0.000402)],
)  # fmt: skip
def test_the_kaplan_rule_gives_table_4(width, layers, printed):
    shape = shape_of(
        "henighan-multimodal", num_layers=layers, hidden_size=width, seq_length=64, vocab_size=256
    )
    rule = peak_learning_rate("kaplan", shape.params_non_embedding)
    # The rule's slope 0.0001395 has four digits: 0.5e-7 x ln N (20) = 1e-6; the table rounds too.
    last_digit = 1e-5 if printed >= 1e-3 else 1e-6
    assert rule == pytest.approx(printed, abs=1e-6 + last_digit / 2)


def test_a_number_is_itself_and_a_rule_that_breaks_down_says_so():
    assert peak_learning_rate(0.003, 10**12) == 0.003
    with pytest.raises(
        ValueError, match=r"optimizer.learning_rate = 'kaplan' gives -.* at N = 1e\+12"
    ):
        peak_learning_rate("kaplan", 10**12)


def test_a_warm_up_may_follow_from_the_size():
    """Porian et al. 2024: as many tokens as parameters, the head counted."""
    (run,) = expanded(400, schedule={"warmup_tokens_per_param": 2.0}, batch={"train_batch_size": 8})
    assert run.warmup_tokens == 2 * run.shape.params_non_embedding_and_head
    assert run.schedule.warmup_tokens_per_param is None, "resolved, as it says in config.json"
    plain = config(
        400, schedule={"warmup_tokens": run.warmup_tokens}, batch={"train_batch_size": 8}
    )
    assert plain.run_id == run.run_id
    with pytest.raises(ValueError, match="warmup_steps and warmup_tokens_per_param are both given"):
        Schedule(warmup_steps=3, warmup_tokens_per_param=1.0)


def test_porians_rules_count_the_head():
    """Rate 3.7 N^-0.36, batch 0.7576 N^0.703 tokens, in whole rows and at least one."""
    tables = {"optimizer": {"learning_rate": "porian"}, "batch": {"train_batch_size": "porian"}}
    run = config(3000, **tables)
    params = run.shape.params_non_embedding_and_head
    assert run.peak_learning_rate == pytest.approx(3.7 * params**-0.36)
    rows = 0.7576 * params**0.703 / run.shape.seq_length
    assert run.batch.train_batch_size == round(rows) == 3
    smallest = config(3000, **tables, ladder=[{"num_layers": 1, "hidden_size": 8}])
    assert smallest.batch.train_batch_size == 1
    with pytest.raises(
        ValueError, match="batch.train_batch_size = 'large': Input should be 'porian'"
    ):
        config(batch={"train_batch_size": "large"})
