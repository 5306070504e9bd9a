"""Checkpoints of finetune: another run, damaged files and folders that cannot be written are noticed at once."""

from __future__ import annotations

import os
import zipfile
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import conversion_ext as cx
from conversion_ext.training import ActivityBand, Distillation, ThroughTime, Training
from conversion_ext.training.checkpoints import data_digest, name_of
from conversion_ext.training.data import divide
from tests.live import perceptron

pytestmark = pytest.mark.filterwarnings("ignore:Not active on the calibration data")
X = torch.rand(40, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3


def network(seed: int = 0) -> nn.Module:
    return perceptron(6, 12, 3, seed=seed)


def tuned(path: Any, data: Any = (X, Y), **options: Any) -> Any:
    snn = cx.convert(network(), X, backend="reference", progress=False)
    training = Training(checkpoint=path, **options.pop("training", {}))
    return cx.finetune(snn, data, T=2, training=training, progress=False, **options)


def mean_loss(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs.mean(0), target)


OTHER = {
    "data": {"data": (X + 1, Y)},
    "data, validation": {"data": (X, (Y + 1) % 3)},
    "loss": {"loss": "tet"},
    "loss function": {"loss": mean_loss},
    "teacher": {"teacher": network(1)},
    "distillation": {"teacher": network(), "distillation": Distillation(2.0)},
    "regularizers": {"regularizers": (ActivityBand(),)},
    "gradient": {"gradient": ThroughTime(detach_reset=False)},
    "optimizer": {"training": {"optimizer": "sgd", "rate": 1e-3}},
    "weight decay": {"training": {"weight_decay": 0.1}},
    "metric": {"metric": "top5"},
}


@pytest.mark.parametrize("what", OTHER)
def test_a_run_that_differs_is_refused(tmp_path, what):
    base = {"teacher": network()} if what == "distillation" else {}
    if what == "metric":
        base = {"metric": "accuracy"}
    tuned(tmp_path / "run.pt", **base)
    named = what.removesuffix(" function")
    with pytest.raises(ValueError, match=f"belongs to a run with another .*{named}.*; delete it, or name another file"):
        tuned(tmp_path / "run.pt", **{**base, **OTHER[what]})
    assert tuned(tmp_path / "run.pt", **base).history  # its own run is done already


class Refused:
    """A module of the network that must not run: nothing is to be trained before a checkpoint is looked at."""

    def __call__(self, outputs: Any, target: Any) -> Any:
        raise AssertionError


@pytest.mark.parametrize("content", [b"", b"nonsense", None, {"a": 1}, [1, 2]], ids=str)
def test_a_file_that_is_no_checkpoint_is_refused_in_our_words(tmp_path, content):
    path = tmp_path / "run.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is None:  # a checkpoint cut off in the middle
        tuned(path)
        path.write_bytes(path.read_bytes()[:-200])
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"is no checkpoint of finetune\(\)") as caught:
        tuned(path, loss=Refused())
    assert "weights_only" not in str(caught.value)


def test_a_bit_that_has_changed_is_noticed(tmp_path):
    """Of the bytes of tensors, which torch.load takes as they are."""
    path = tmp_path / "run.pt"
    tuned(path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as parts:
        data = max(parts.infolist(), key=lambda part: part.file_size)
    content[data.header_offset + 140 + data.file_size // 4] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"is no checkpoint of finetune\(\): it is empty, damaged"):
        tuned(path, loss=Refused())


def test_arguments_that_have_another_place_name_it():
    snn = cx.convert(network(), X, backend="reference", progress=False)
    training = "training=cx.training.Training"
    for name, place in {
        "checkpoint": rf"{training}\(checkpoint=...\)", "lr": rf"{training}\(rate=...\)",
        "seed": rf"{training}\(seed=...\)", "nothing": "one of those that its help lists",
    }.items():  # fmt: skip
        with pytest.raises(TypeError, match=rf"finetune\(\) has no argument {name}=; write {place}"):
            cx.finetune(snn, (X, Y), T=2, **{name: 1})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Training\(checkpoint=5\): name a file"):
        Training(checkpoint=5)  # type: ignore[arg-type]


def test_a_place_that_cannot_be_written_is_noticed_before_training(tmp_path):
    with pytest.raises(ValueError, match="cannot be written .* a folder that exists"):
        tuned(tmp_path / "missing" / "run.pt", loss=Refused())
    with pytest.raises(ValueError, match="is a folder; name a file"):
        tuned(tmp_path, loss=Refused())
    if os.geteuid():  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(ValueError, match="cannot be written"):
            tuned(tmp_path / "locked" / "run.pt", loss=Refused())


def test_names_and_digests_are_the_same_in_every_process():
    assert name_of(mean_loss) == "tests.training.test_checkpoints.mean_loss"
    assert " at 0x" not in name_of(Refused())
    assert name_of(ThroughTime(surrogate=mean_loss)) == name_of(ThroughTime(surrogate=mean_loss))
    assert data_digest([(X, Y)]) == data_digest([(X.clone(), Y)]) != data_digest([(X, Y + 1)])
    other = X.clone()
    other[-1] += 1
    assert data_digest(TensorDataset(X, Y)) != data_digest(TensorDataset(other, Y))


def test_every_option_of_a_loader_is_kept():
    """Faults were persistent workers, prefetching and the context of processes."""
    options: dict[str, Any] = {
        "num_workers": 1, "persistent_workers": True, "prefetch_factor": 7, "multiprocessing_context": "fork",
        "timeout": 3, "pin_memory": False,
    }  # fmt: skip
    for part in divide(DataLoader(TensorDataset(X, Y), 8, shuffle=True, **options), None, 0):
        for name, value in options.items():
            kept = getattr(part, name)
            assert (kept.get_start_method() if name == "multiprocessing_context" else kept) == value


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_works_where_gradients_are_off(mode):
    snn = cx.convert(network(), X, backend="reference", progress=False)
    expected = cx.finetune(snn, (X, Y), T=2, progress=False)
    with mode():
        found = cx.finetune(snn, (X.clone(), Y.clone()), T=2, progress=False)
        assert not torch.is_grad_enabled()
    assert [e.loss for e in found.history[1:]] == [e.loss for e in expected.history[1:]]
