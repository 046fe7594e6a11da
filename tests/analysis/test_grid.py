"""Figures of pictures and clips: what is folded away, and the laws of a clip's frames, on planted losses."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.runs import Counting, read_runs
from analysis.views_grid import folded, grid_pictures, of_frame
from data_prep.domain import domain
from tests.analysis.planted import PlantedRun, Surface, write_study

CLIP = "video-codes-16x16x16"
AXES = domain(CLIP).grid
FRAMES, SIDE = 16, 16
SURFACE = Surface(irreducible=1.0, b=1e-12)  # nearly all of L(N)


def by_place(base):
    """Of a clip: frame t costs base (0.6 + 0.4 t^-0.8), one row as much as the next 1% less; 4096 places."""
    frame = 0.6 + 0.4 * np.arange(1.0, FRAMES + 1) ** -0.8
    row = 1 - 0.01 * np.arange(SIDE)
    return base * np.multiply.outer(np.outer(frame, row), np.ones(SIDE)).reshape(-1)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Six sizes with a constant rate, whose losses are the surface's, and in each frame its share of it."""
    made = [
        PlantedRun(f"c{width}", width, 4, tokens=4096 * 4 * 40, domain=CLIP, length=FRAMES * SIDE**2,
                   evaluations=6)
        for width in (16, 24, 32, 48, 64, 96)
    ]  # fmt: skip
    study = read_runs(write_study(tmp_path_factory.mktemp("clips") / "study", made, SURFACE))
    runs = []
    for run in study.runs:
        table = run.eval_rows("valid")
        loss = np.stack([by_place(each) for each in table["loss"]])
        count = np.full(loss.shape, 500)
        places = {"valid": {"step": table["step"], "loss": loss, "count": count}}
        runs.append(replace(run, eval_position=places))
    return replace(study, runs=tuple(runs))


def test_a_mean_over_axes_keeps_those_that_are_named():
    loss = by_place(2.0)
    count = np.ones(len(loss))
    as_grid = loss.reshape(FRAMES, SIDE, SIDE)
    maps = folded(loss, count, AXES, ("row", "column"))
    assert maps == pytest.approx(as_grid.mean(0))
    assert maps[0, 0] > maps[1, 0] == pytest.approx(maps[1, 1])
    assert folded(loss, count, AXES, ("frame",)) == pytest.approx(as_grid.mean((1, 2)))
    unknown = np.where(
        np.arange(len(loss)) < SIDE**2, np.nan, loss
    )  # nothing counted in the first frame
    left = folded(np.stack([loss, unknown]), np.stack([count, count]), AXES, ("frame",))
    assert left[0] == pytest.approx(as_grid.mean((1, 2)))
    assert np.isnan(left[1, 0])
    assert left[1, 1:] == pytest.approx(left[0, 1:])


def test_clips_are_drawn_by_frame_and_their_map_is_of_a_frame(clips):
    drawn = {each.name: each.caption for each in grid_pictures(clips, Counting())}
    assert set(drawn) == {"positions", "frames", "frames-size", "last-frame-params"}
    assert "by place in the frame</b>, mean of all frames" in drawn["positions"]
    assert "exponent 0.800" in drawn["frames"]
    # every frame falls as the whole does
    assert all(f"frame {t}: {SURFACE.alpha:.3f}" in drawn["frames-size"] for t in (2, 16))
    last = np.mean(1 - 0.01 * np.arange(SIDE)) * (0.6 + 0.4 * 16**-0.8)
    assert f"constant {last * SURFACE.irreducible:.3f}" in drawn["last-frame-params"]


def test_the_last_frame_has_a_frontier_where_learning_curves_have(clips):
    slow = Surface(irreducible=4.0, a=2e2, b=2e4)
    runs = []
    for run in clips.runs:
        table, params = run.eval.copy(), run.counts["params_non_embedding"]
        tokens = slow.best_tokens(params) * np.geomspace(0.02, 6, 30)
        table = np.repeat(table[:1], 30)
        table["step"], table["tokens"] = np.arange(1, 31), tokens
        table["flops"], table["loss"] = 6 * params * tokens, slow.loss(params, tokens)
        loss = np.stack([by_place(each) for each in table["loss"]])
        places = {"step": table["step"], "loss": loss, "count": np.full(loss.shape, 500)}
        config = run.config | {"schedule": {"kind": "constant"}}
        runs.append(replace(run, eval=table, config=config, eval_position={"valid": places}))
    drawn = {p.name: p.caption for p in grid_pictures(replace(clips, runs=tuple(runs)), Counting())}
    said = drawn["last-frame-flops"]
    exponent = float(said.partition("Exponent ")[2].split()[0])
    assert exponent == pytest.approx(slow.flops_exponent, abs=0.03)


def test_a_run_without_losses_by_position_is_no_point_of_a_frame(clips):
    first, *others = clips.runs
    study = replace(clips, runs=(replace(first, eval_position={}), *others))
    assert of_frame(study, Counting(), AXES, 3).runs[0].run_id == others[0].run_id
    assert len(of_frame(clips, Counting(), AXES, 3).runs) == len(clips.runs)


def test_pictures_say_pixels_and_codes_say_places(clips):
    for name, said in (("image-16x16", "by pixel</b>, mean of the colours"),
                       ("image-codes-16x16", "by place in the picture</b>")):  # fmt: skip
        length = domain(name).seq_length
        runs = tuple(
            replace(run, config=run.config | {"domain": name}, eval_position={"valid": {
                "step": np.array([1]), "loss": np.ones((1, length)), "count": np.ones((1, length))}})
            for run in clips.runs
        )  # fmt: skip
        (picture,) = grid_pictures(replace(clips, runs=runs), Counting())
        assert said in picture.caption
