"""The GPU benchmark chooses its device before it works, and its table stands where a machine lacks something."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import conversion_ext as cx

pytest.importorskip("snntorch")
pytest.importorskip("spikingjelly")
pytest.importorskip("torchvision")
from tests.benchmarks import gpu  # noqa: E402


def test_without_a_gpu_it_says_so_and_the_cpu_can_try_the_script(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="--device cpu"):
        gpu.choose("cuda")
    assert gpu.choose("cpu") == torch.device("cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert gpu.choose("cuda").type == "cuda"


def test_a_row_that_fails_names_its_reason_and_the_others_stand(monkeypatch):
    ann = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)).eval()
    x = torch.rand(2, 1, 8, 8)
    snn = cx.convert(ann, x, backend="spikingjelly", progress=False)
    monkeypatch.setattr(torch, "compile", lambda *args, **options: (_ for _ in ()).throw(RuntimeError("no compiler")))
    rows = list(gpu.table(ann, snn, x, 2, [(x, torch.zeros(2))], 1))
    named = {row.split("|")[1].strip(): row for row in rows}
    assert "RuntimeError: no compiler" in named["ANN x T torch.compile"]
    assert named["ANN x T"].endswith("| 1.00 |")
    assert "ANN x T CUDA graph" not in named
    for name in ("simulate float32", "SpikingJelly s, torch", "snnTorch loop"):
        assert float(named[name].split("|")[3]) > 0
    assert sum(name.startswith("SpikingJelly m, ") for name in named) == 1


@pytest.mark.slow
def test_one_run_has_a_table_for_conversion_simulation_and_training(monkeypatch, tmp_path):
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)).eval()
    monkeypatch.setattr(gpu, "speed_network", lambda name: (ann, torch.rand(128, 1, 8, 8)))
    monkeypatch.setattr(torch, "compile", lambda *args, **options: (_ for _ in ()).throw(RuntimeError("no compiler")))
    sizes = ["--batches", "4", "--T", "2", "--images", "128", "--repeats", "1"]
    file = tmp_path / "results.md"
    gpu.main(["--network", "vgg", "--device", "cpu", "--write", str(file), *sizes])
    text = file.read_text()
    assert all(heading in text for heading in ("## On a GPU", "| vgg, batch 4, T = 2"))
    for row in ("convert T=4, 128 images streamed", "finetune, T = 4, 128 images", "simulate bfloat16"):
        (cells, *_) = (line.split("|") for line in text.splitlines() if row in line)
        assert float(cells[2].split()[0]) >= 0
