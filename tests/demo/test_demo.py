"""The demonstration, its data and the command line: tiny runs, exit codes, sentences for what is missing."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from conversion_ext.__main__ import main, registered
from conversion_ext.backends.base import available
from conversion_ext.data import datasets as data
from conversion_ext.demo import demo
from conversion_ext.errors import UnknownNameError


class Convertible(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 36, 3))


class NoActivation(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 3))


def first(part: TensorDataset, count: int) -> TensorDataset:
    return TensorDataset(*(tensor[:count] for tensor in part.tensors))


@pytest.fixture(scope="module")
def tiny() -> data.Dataset:
    digits = data.load("digits")
    return data.Dataset("digits", first(digits.train, 256), first(digits.calibration, 32), first(digits.test, 30))


@pytest.fixture(scope="module")
def report(tiny: data.Dataset) -> demo.Report:
    return demo.run(tiny, T=6, epochs=1, progress=False)


# Data


def test_digits_are_split_without_overlap():
    from sklearn.datasets import load_digits

    digits = data.load("digits")
    images = [part.tensors[0].flatten(1).numpy() * 16 for part in (digits.train, digits.test)]
    ours = np.concatenate(images).astype(int)
    theirs = load_digits(return_X_y=True)[0].astype(int)
    assert sorted(map(tuple, ours)) == sorted(map(tuple, theirs))
    assert len(digits.test) == 600
    assert torch.equal(digits.calibration.tensors[0], digits.train.tensors[0][: len(digits.calibration)])


def test_digits_split_does_not_depend_on_the_global_seed():
    torch.manual_seed(1)
    one = data.load("digits").test.tensors[1]
    torch.manual_seed(2)
    assert torch.equal(one, data.load("digits").test.tensors[1])


def write_idx(folder: Path, prefix: str, images: np.ndarray, labels: np.ndarray) -> None:
    header = struct.pack(">IIII", 0x803, *images.shape)
    with gzip.open(folder / f"{prefix}-images-idx3-ubyte.gz", "wb") as file:
        file.write(header + images.tobytes())
    with gzip.open(folder / f"{prefix}-labels-idx1-ubyte.gz", "wb") as file:
        file.write(struct.pack(">II", 0x801, len(labels)) + labels.tobytes())


def test_fashion_mnist_files_are_read(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    parts = {p: (rng.integers(0, 256, (n, 28, 28), np.uint8), rng.integers(0, 10, n, np.uint8))
             for p, n in (("train", 5), ("t10k", 3))}  # fmt: skip
    for prefix, part in parts.items():
        write_idx(tmp_path, prefix, *part)
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path)
    fashion = data.load("fashion-mnist")
    for ours, prefix in ((fashion.train, "train"), (fashion.test, "t10k")):
        images, labels = parts[prefix]
        assert np.array_equal((ours.tensors[0][:, 0] * 255).round().numpy().astype(np.uint8), images)
        assert ours.tensors[1].tolist() == labels.tolist()


def test_half_a_fashion_mnist_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path)
    with pytest.raises(data.MissingError, match=r"train-images.*apt-get install dataset-fashion-mnist"):
        data.load("fashion-mnist")


def test_no_fashion_mnist_says_what_to_install(tmp_path, monkeypatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "absent")
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", refuse)
    with pytest.raises(data.MissingError, match=r"no network.*apt-get install dataset-fashion-mnist"):
        data.load("fashion-mnist")


def test_no_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(data.MissingError, match=r"scikit-learn is not installed.*pip install 'conversion-ext\[demo\]'"):
        data.load("digits")


def test_unknown_data_set_lists_the_known():
    with pytest.raises(UnknownNameError, match="'mnist'.*digits, fashion-mnist"):
        data.load("mnist")


# Demonstration


def test_every_installed_framework_runs_with_each_normalizer(report):
    frameworks = [name for name in available() if name != "reference"]
    expected = [(framework, normalizer) for framework in frameworks for normalizer in demo.NORMALIZERS]
    assert [(curve.backend, curve.normalizer) for curve in report.curves] == expected


def test_accuracy_is_that_of_the_predictions(tiny, report):
    labels = tiny.test.tensors[1].tolist()
    for curve in report.curves:
        for row, accuracy in zip(curve.predictions.tolist(), curve.accuracy.tolist(), strict=True):
            assert accuracy == pytest.approx(sum(p == y for p, y in zip(row, labels, strict=True)) / 30)
        assert 0 < curve.firing_rate < 1


def test_same_seed_same_report(tiny, report):
    torch.manual_seed(99)
    again = demo.run(tiny, ["reference"], T=6, epochs=1, progress=False)
    assert again.ann_accuracy == report.ann_accuracy
    assert torch.equal(again.curves[0].predictions, report.curves[0].predictions)


def test_frameworks_predict_the_same_and_the_table_says_so(report):
    if len({curve.backend for curve in report.curves}) < 2:
        pytest.skip("one framework is installed")
    assert "identical predictions for every image at each T = 1 ... 6" in str(report)


def curve(backend: str, predictions: list[list[int]], labels: list[int]) -> demo.Curve:
    predicted = torch.tensor(predictions)
    return demo.Curve(backend, "maximum", predicted, (predicted == torch.tensor(labels)).double().mean(1), 0.25)


def test_differing_predictions_are_counted():
    a = curve("one", [[0, 1], [2, 2]], [2, 2])
    b = curve("two", [[0, 2], [2, 1]], [2, 2])
    report = demo.Report("digits", 2, 1.0, (a, b))
    assert "Predictions differ, of 2 steps x 2 images: one and two, maximum: 2." in str(report)


@pytest.mark.parametrize(("ann_accuracy", "expected"), [(1.0, None), (0.76, 2), (0.75, 2), (0.5, 1), (0.77, None)])
def test_latency_is_the_first_step_within_a_point(ann_accuracy, expected):
    labels = [1, 1, 1, 1]
    assert curve("one", [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]], labels).latency(ann_accuracy) == expected


def test_plot_is_a_picture(report, tmp_path):
    from matplotlib.image import imread

    report.plot(tmp_path / "plot.png")
    picture = imread(tmp_path / "plot.png")
    assert picture.shape[0] > 300
    assert picture[..., :3].std() > 0.05


def test_training_learns_and_leaves_eval_mode(tiny):
    ann = demo.network()
    demo.train(ann, tiny.train, epochs=20, progress=False)
    assert not any(module.training for module in ann.modules())
    images, labels = tiny.train.tensors
    with torch.no_grad():
        assert (ann(images).argmax(1) == labels).float().mean() > 0.8


# Command line


def test_demo_command(capsys, tmp_path, monkeypatch, tiny):
    monkeypatch.setattr(demo, "load", lambda name: tiny)
    assert main(["demo", "--backend", "reference", "--T", "4", "--plot", str(tmp_path / "out.png")]) == 0
    printed = capsys.readouterr().out
    assert "ANN" in printed
    assert "99.9 percentile" in printed
    assert str(tmp_path / "out.png") in printed
    assert (tmp_path / "out.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["demo", "--T", "0"], "T=0"),
        (["demo", "--data", "mnist"], "digits, fashion-mnist"),
        (["demo", "--backend", "brian"], "brian"),
        (["demo", "--plot", "/no/such/folder/a.png"], "/no/such/folder"),
        (["check", "nothing", "--input", "1,64"], "module:factory"),
        (["check", "no_such_module:net", "--input", "1,64"], "no_such_module"),
        (["check", "torch.nn:NoSuchThing", "--input", "1,64"], "NoSuchThing"),
        (["check", "builtins:dict", "--input", "1,64"], "dict"),
        (["check", "torch.nn:Linear", "--arg", "3", "--input", "1,64"], "Linear(3) raised TypeError"),
        (["convert", "torch.nn:ReLU", "--data", "nothing.npz", "--out", "a"], "no such data"),
        (["convert", "torch.nn:ReLU", "--data", "digits", "--out", "/no/such/a"], "/no/such/a"),
        (["convert", "torch.nn:ReLU", "--weights", "none.pt", "--data", "digits", "--out", "a"], "none.pt"),
        (["diagnose", "no.net", "torch.nn:ReLU", "--data", "digits"], "no.net"),
        (["check", "tests.demo.test_demo:Convertible", "--input", "1,1,8,8", "--recipe", "none such"], "none such"),
    ],
)
def test_bad_requests_are_one_sentence_and_exit_code_2(arguments, sentence, capsys, monkeypatch):
    monkeypatch.setattr(demo, "train", lambda *args: pytest.fail("trained before looking at the request"))
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert sentence in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("shape", ["1,x", "", "0,3"])
def test_bad_shape_is_a_usage_error(shape, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["check", "torch.nn:Identity", "--input", shape])
    assert "1,1,28,28" in capsys.readouterr().err


def test_check_command(capsys):
    assert main(["check", "tests.demo.test_demo:Convertible", "--input", "1,1,8,8"]) == 0
    assert "no problems" in capsys.readouterr().out
    assert main(["check", "tests.demo.test_demo:NoActivation", "--input", "1,1,8,8"]) == 1
    assert "1 problem found" in capsys.readouterr().out


def test_methods_command_lists_everything_registered(capsys):
    from conversion_ext import recipes
    from conversion_ext.backends.base import backends
    from conversion_ext.normalizers.base import normalizers
    from conversion_ext.operators import operators
    from conversion_ext.tuners import tuners

    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    for registry in (backends, normalizers, operators, recipes, tuners):
        assert registry.names()
        for name in registry.names():
            # What lives here is what converted networks hold, which nobody brings along.
            assert (name in printed) != name.startswith("conversion_ext.")
    assert all(method.effect for method in registered()), "something registered has no docstring"


def test_equal_problems_are_one_line(capsys):
    assert main(["check", "tests.demo.test_demo:TwiceRefused", "--input", "2,4"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2, printed  # the two layers, the number
    assert printed[0].startswith("one (test_demo.py:")
    assert "), two (test_demo.py:" in printed[0]
    assert "2 problems found" in printed[1]


class TwiceRefused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.GRU(4, 4), nn.GRU(4, 4)

    def forward(self, x):
        return self.two(self.one(x)[0])[0]


def test_factories_take_arguments(capsys):
    arguments = ["--arg", "64", "--arg", "out_features=3", "--arg", "bias=False"]
    assert main(["check", "torch.nn:Linear", *arguments, "--input", "1,64"]) == 1
    assert "torch.nn:Linear: 1 problem found" in capsys.readouterr().out  # no activation


def test_a_network_is_converted_saved_and_diagnosed(tmp_path, capsys):
    torch.manual_seed(0)
    weights, net, report = (tmp_path / name for name in ("ann.pt", "net.safetensors", "report.html"))
    ann = Convertible()
    torch.save(ann.state_dict(), weights)
    np.savez(tmp_path / "data.npz", x=np.random.rand(32, 1, 8, 8).astype("float32"), y=np.arange(32) % 3)
    model = ["tests.demo.test_demo:Convertible", "--weights", str(weights), "--data", str(tmp_path / "data.npz")]
    assert main(["convert", *model, "--T", "4", "--backend", "reference", "--out", str(net)]) == 0
    assert "binary" in capsys.readouterr().out
    assert main(["diagnose", str(net), *model, "--T", "4", "--html", str(report)]) == 0
    assert "agreement" in capsys.readouterr().out
    assert report.read_text("utf-8").startswith("<!doctype html>")


def test_help_and_version_do_not_import_torch():
    code = (
        "import sys, conversion_ext_command as c\ntry: c.main([sys.argv[1]])\nexcept SystemExit as e: code = e.code\n"
    )
    code += "assert 'torch' not in sys.modules and code == 0"
    for option, expected in (("--help", "diagnose"), ("--version", "conversion-ext 0.")):
        command = [sys.executable, "-c", code, option]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
        assert expected in done.stdout
