"""`launch reshard`: whole parameters out of DeepSpeed's files, other tools' forms, and back."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from launch.__main__ import main
from launch.checkpoint_files import verify
from launch.config import save_config
from launch.folder import run_folder
from launch.results import read_result
from launch.run import run_all
from launch.safe_load import load_file as load_pickle
from launch.universal import STATES, Universal
from megatron_ext.model import VOCABULARY_TABLES, build_model, is_split, split_dimension
from tests.launch.small import assert_same_bits, config, train_until

CPU = torch.device("cpu")
PARALLEL = [{"zero_stage": 0}, {"zero_stage": 1}, {"zero_stage": 2}, {"zero_stage": 3}]


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def stopped(request, pictures, tmp_path_factory):
    """A run stopped in the fourth of eight steps, and the folder of its results."""
    results = tmp_path_factory.mktemp("stopped")
    run = config(8, precision=request.param, parallel={"zero_stage": 1})
    assert not train_until(run, pictures, results, step=3)
    return run, results


def weights_of(folder) -> dict[str, torch.Tensor]:
    return {path.stem: load_file(path)["fp32"] for path in folder.glob("*.safetensors")}


@pytest.fixture
def universal(stopped, tmp_path, capsys):
    run, results = stopped
    out = tmp_path / "out"
    assert main(["reshard", str(run_folder(results, run)), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out / 'step-4'}\n"
    return out / "step-4"


@pytest.mark.parametrize("parallel", PARALLEL)
def test_a_run_continues_from_it_to_the_same_bits(
    parallel, stopped, universal, alone, pictures, tmp_path
):
    """One rank sums in one order whatever the stage, so even bf16 is equal where its sums are."""
    run, _ = stopped
    run = run.model_copy(update={"parallel": run.parallel.model_copy(update=parallel)})
    folder = run_folder(tmp_path / "results", run)
    save_config(run, folder)
    shutil.copytree(universal, folder / "checkpoints" / "step-4")
    assert run_all([run], pictures, tmp_path / "results") == 0
    found = read_result(folder)
    if parallel["zero_stage"] == 1:
        assert_same_bits(found, alone(run))
    else:  # without ZeRO bf16 adds micro-batches in bf16, see verify
        assert found.train["loss"] == pytest.approx(
            alone(run).train["loss"], rel=1e-5 if run.precision == "fp32" else 5e-3
        )


def test_it_is_verified_and_complete(stopped, universal):
    run, _ = stopped
    whole = verify(universal)
    assert (whole.step, whole.config_digest, whole.optimizer) == (4, run.digest, True)
    files = list((universal / "universal").glob("*.safetensors"))
    assert sum(load_file(file)["fp32"].numel() for file in files) == run.shape.params_total
    for file in files:
        assert set(load_file(file)) == set(STATES)
    one = files[0]
    one.write_bytes(one.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match=f"{one.name}: sha256 .*; wanted"):
        verify(universal)


@pytest.mark.parametrize("form", ["safetensors", "megatron"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_other_forms_hold_the_same_weights_and_come_back(form, ranks, universal, tmp_path, capsys):
    there, back = tmp_path / form, tmp_path / "back"
    command = ["reshard", str(universal), "--to", form, "--out", str(there)]
    assert main([*command, "--tensor-parallel", str(ranks)]) == 0
    assert main(["reshard", str(there), "--out", str(back)]) == 0
    (step,) = back.iterdir()
    assert not verify(step).optimizer
    wanted, found = weights_of(universal / "universal"), weights_of(step / "universal")
    assert wanted.keys() == found.keys()
    for name, weight in wanted.items():
        assert torch.equal(weight, found[name]), name


def test_megatron_core_loads_its_form(stopped, universal, tmp_path):
    run, _ = stopped
    assert main(["reshard", str(universal), "--to", "megatron", "--out", str(tmp_path)]) == 0
    import argparse

    state = load_pickle(
        tmp_path / "iter_0000004/mp_rank_00/model_optim_rng.pt", also=[argparse.Namespace]
    )
    model = build_model(run.shape, seed=1, init_std=0.02, device=CPU).gpt
    missing, unexpected = model.load_state_dict(state["model"], strict=False)
    assert not unexpected
    assert all(name.endswith("_extra_state") for name in missing)
    assert state["iteration"] == 4
    assert state["args"].num_layers == run.shape.num_layers


def test_weights_alone_do_not_continue_a_run(stopped, universal, pictures, tmp_path, capsys):
    run, _ = stopped
    there, back = tmp_path / "there", tmp_path / "back"
    assert main(["reshard", str(universal), "--to", "megatron", "--out", str(there)]) == 0
    assert main(["reshard", str(there), "--out", str(back)]) == 0
    folder = run_folder(tmp_path / "results", run)
    save_config(run, folder)
    shutil.copytree(back / "step-4", folder / "checkpoints" / "step-4")
    assert run_all([run], pictures, tmp_path / "results") == 2
    assert (
        "holds weights alone, from another tool; wanted the optimizer's" in capsys.readouterr().err
    )


def test_each_parameter_is_cut_as_megatron_core_cuts_it(stopped, monkeypatch):
    """The names say which parameters are split, and by what; the built model agrees."""
    run, _ = stopped
    model = build_model(run.shape, seed=0, init_std=0.02, device=CPU)
    for name, parameter in model.named_parameters():
        dimension = split_dimension(name)
        assert is_split(parameter) == (dimension is not None), name
        if dimension is not None:
            assert parameter.partition_dim == dimension, name
    assert set(VOCABULARY_TABLES) <= {name for name, _ in model.named_parameters()}


def test_parts_and_numbers_of_a_parameter(tmp_path):
    """Any stretch of a rank's part is what cutting the whole parameter gives."""
    name = "gpt.decoder.layers.0.mlp.linear_fc2.weight"
    whole = torch.arange(5 * 6.0).view(5, 6)
    save_file({state: whole.clone() for state in STATES}, tmp_path / f"{name}.safetensors")
    table = "gpt.output_layer.weight"
    save_file({"fp32": torch.arange(14.0).view(7, 2)}, tmp_path / f"{table}.safetensors")
    for rank in range(2):
        reader = Universal(tmp_path, rank, 2)
        part = whole[:, 3 * rank : 3 * rank + 3].reshape(-1)
        for start in range(15):
            for count in range(1, 16 - start):
                found = reader.part(name, "exp_avg", (5, 3), start, count)
                assert torch.equal(found, part[start : start + count])
        padded = torch.cat((torch.arange(14.0), torch.zeros(2)))[8 * rank :][:8]
        assert torch.equal(reader.part(table, "fp32", (4, 2)), padded)
    with pytest.raises(ValueError, match=r"holds a parameter of shape \[5, 6\]; wanted \[4, 6\]"):
        Universal(tmp_path, 0, 2).part(name, "fp32", (4, 3))
    with pytest.raises(ValueError, match="no such file; wanted the whole parameter"):
        Universal(tmp_path, 0, 2).part("gpt.other", "fp32", (4, 3))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{empty}", "--out", "{new}"], "{empty}: no checkpoint; wanted a run folder"),
        (["{missing}", "--out", "{new}"], "{missing}: no checkpoint; wanted a run folder"),
        (["{good}", "--out", "{file}"], "--out {file}: this is a file; wanted a folder"),
        (["{good}", "--out", "{done}"], "step-4: exists already; wanted a new folder"),
        (
            ["{good}", "--out", "{new}", "--tensor-parallel", "3"],
            "parallel.tensor_model_parallel_size = 3 does not divide num_attention_heads = 2",
        ),
    ],
)
def test_bad_input_is_refused(arguments, words, universal, tmp_path, capsys):
    places = {name: tmp_path / name for name in ("empty", "missing", "new", "file", "done")}
    places["empty"].mkdir()
    places["file"].write_text("")
    (places["done"] / "step-4").mkdir(parents=True)
    places["good"] = universal
    filled = [each.format(**places) for each in arguments]
    assert main(["reshard", *filled]) == 2
    assert words.format(**places) in capsys.readouterr().err
    assert universal.exists()


def test_deepspeeds_own_converter_gives_the_same(stopped, universal, tmp_path):
    run, results = stopped
    source = tmp_path / "copy"
    shutil.copytree(run_folder(results, run) / "checkpoints" / "step-4", source)
    model_states = source / "mp_rank_00_model_states.pt"
    state = load_pickle(model_states, mmap=False)
    state["universal_checkpoint_info"] = {"universal_checkpoint_version": 0.2}
    torch.save(state, model_states)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder"]
    command += [str(source), "--output_folder", str(tmp_path / "theirs"), "--no_strict"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ours = sorted((universal / "universal").glob("*.safetensors"))
    assert len(ours) == len(list((tmp_path / "theirs" / "zero").glob("gpt.*")))
    for file in ours:
        mine = load_file(file)
        for name in STATES:
            theirs = torch.load(
                tmp_path / "theirs" / "zero" / file.stem / f"{name}.pt", weights_only=False
            )["param"]
            assert torch.equal(mine[name].view(-1), theirs.view(-1)), (file.stem, name)
    step = json.loads((universal / "universal" / "optimizer.json").read_text())["step"]
    assert step == 4


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("a part is missing", "linear_fc1.bias is (16,); wanted (32,), as "),
        ("a part is truncated", "model_optim_rng.pt: not readable"),
        ("the step is a word", "'release'; wanted the number of a step"),
        ("an index is broken", "not the index of safetensors files; wanted JSON with a weight_map"),
        ("a tensor file is truncated", "not readable (Error while deserializing header"),
    ],
)
def test_damaged_forms_of_other_tools_are_refused(damage, words, universal, tmp_path, capsys):
    there = tmp_path / "there"
    form = "megatron" if "part" in damage or "step" in damage else "safetensors"
    command = ["reshard", str(universal), "--to", form, "--out", str(there)]
    assert main([*command, "--tensor-parallel", "2"]) == 0
    if damage == "a part is missing":
        shutil.rmtree(there / "iter_0000004" / "mp_rank_01")
    elif damage == "a part is truncated":
        path = there / "iter_0000004" / "mp_rank_01" / "model_optim_rng.pt"
        path.write_bytes(path.read_bytes()[:-2000])
    elif damage == "the step is a word":
        (there / "latest_checkpointed_iteration.txt").write_text("release\n")
    elif damage == "an index is broken":
        (there / "model.safetensors.index.json").write_text('{"weight_map": [')
    else:
        path = there / "model-00001-of-00001.safetensors"
        path.write_bytes(path.read_bytes()[:100])
    assert main(["reshard", str(there), "--out", str(tmp_path / "back")]) == 2
    error = capsys.readouterr().err
    assert words in error, error
    assert not list((tmp_path / "back").glob("*")), "nothing half-made is left"
