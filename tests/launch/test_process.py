"""Which device a rank takes; the GPUs of a machine are told by its driver's folder."""

import pytest
import torch

from launch import process


@pytest.mark.parametrize("hidden", ["", " ", "-1"])
def test_hidden_gpus_are_no_machine_without_them(hidden, monkeypatch, tmp_path):
    monkeypatch.setattr(process, "GPU_NODE", tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    with pytest.raises(ValueError, match="hides every GPU of this machine; wanted one for each"):
        process.own_device()


def test_a_machine_without_a_driver_has_a_cpu(monkeypatch, tmp_path):
    monkeypatch.setattr(process, "GPU_NODE", tmp_path / "none")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert process.own_device() == torch.device("cpu")


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="LOCAL_RANK = 2 on a machine with 2 visible GPUs; wanted"):
        process.own_device()
