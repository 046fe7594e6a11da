"""What `launch reshard` writes for other tools is the same model there, or is refused."""

import json
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.folder import run_folder
from tests.launch.small import config, train_until


@pytest.fixture(scope="module")
def sparse(pictures, tmp_path_factory) -> Path:
    """The folder of a run whose layers alternate, with positions by axes."""
    results = tmp_path_factory.mktemp("sparse")
    run = config(4, model={"attention": "sparse", "positions": "factorised"})
    assert not train_until(run, pictures, results, step=1)
    return run_folder(results, run)


def test_megatron_s_form_of_what_megatron_does_not_have_is_refused(sparse, tmp_path, capsys):
    assert main(["reshard", str(sparse), "--to", "megatron", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert (
        f"{sparse}: has sparse attention (window 24), positions by axes (8, 8, 3); wanted" in said
    )
    assert "Use --to safetensors" in said
    assert list(tmp_path.iterdir()) == []


def test_safetensors_say_it_in_their_index(sparse, tmp_path):
    assert main(["reshard", str(sparse), "--to", "safetensors", "--out", str(tmp_path)]) == 0
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["beside_plain_gpt"] == [
        "sparse attention (window 24)",
        "positions by axes (8, 8, 3)",
    ]


def test_parts_of_an_earlier_export_for_more_ranks_go(pictures, tmp_path):
    run = config(4)
    assert not train_until(run, pictures, tmp_path, step=1)
    out, source = tmp_path / "out", str(run_folder(tmp_path, run))
    for ranks in (2, 1):
        command = ["reshard", source, "--to", "megatron", "--out", str(out)]
        assert main([*command, "--tensor-parallel", str(ranks)]) == 0
        (folder,) = out.glob("iter_*")
        assert len(list(folder.iterdir())) == ranks
    assert main(["reshard", str(out), "--out", str(tmp_path / "back")]) == 0
