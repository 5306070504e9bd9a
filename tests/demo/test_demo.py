"""The demonstration, its data and the command line: tiny runs, exit codes, sentences for what is missing."""

from __future__ import annotations

import gzip
import io
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from conversion_ext.__main__ import main, registered
from conversion_ext.backends.base import available
from conversion_ext.data import datasets as data
from conversion_ext.demo import demo, networks, rival
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
def story(tiny: data.Dataset) -> demo.Story:
    return demo.run(tiny, T=3, recipes=["default"], epochs=1, progress=False)


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


def test_every_installed_framework_runs_and_spikingjellys_converter_beside_it(story):
    frameworks = [name for name in available() if name != "reference"]
    names = [row.name for row in story.rows]
    assert [name for name in names if name.startswith("default, ")] == [f"default, {each}" for each in frameworks]
    assert "plain: 99.9 % per layer" in names
    assert not {"spikingjelly"} & set(frameworks) or "SpikingJelly 99.9 %" in names


def test_accuracy_is_that_of_the_predictions(tiny, story):
    labels = tiny.test.tensors[1].tolist()
    for row in story.rows:
        for predicted, accuracy in zip(row.predictions.tolist(), row.accuracy.tolist(), strict=True):
            assert accuracy == pytest.approx(sum(p == y for p, y in zip(predicted, labels, strict=True)) / 30)
        assert row.spikes > 0
    assert story.T == len(story.rows[0].accuracy) == 3


def test_same_seed_same_story(tiny, story):
    torch.manual_seed(99)
    again = demo.run(tiny, ["reference"], T=3, recipes=["default"], epochs=1, progress=False)
    assert (again.ann_accuracy, again.twin_accuracy) == (story.ann_accuracy, story.twin_accuracy)
    ours = [next(row for row in each.rows if row.name.startswith("default")) for each in (again, story)]
    assert torch.equal(ours[0].predictions, ours[1].predictions)
    assert "identical" not in str(again)


def test_the_table_tells_accuracy_cost_and_limit(story):
    text = str(story)
    assert "T=3  latency  spikes per image  seconds to convert" in text
    assert f"{100 * story.twin_accuracy:.2f}" in next(line for line in text.splitlines() if "static limit" in line)
    if len([name for name in available() if name != "reference"]) > 1:
        assert "identical decisions for every image at each T = 1 ... 3" in text
    assert json.loads(json.dumps(story.to_dict()))["T"] == 3


def test_spikingjelly_is_counted_as_its_neurons_fire(tiny):
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import functional, neuron

    torch.manual_seed(0)
    ann = demo.network().eval()
    snn = rival.converted(ann, DataLoader(tiny.calibration, 16), "99.9 %")
    x = tiny.test.tensors[0][:4]
    outputs, spikes = rival.run(snn, iter(x.split(2)), 3)
    total: list[torch.Tensor] = []
    for module in snn.modules():
        if isinstance(module, neuron.IFNode):
            module.register_forward_hook(lambda _, __, out: total.append(out))
    functional.reset_net(snn)
    with torch.no_grad():
        steps = [snn(x) for _ in range(3)]
    assert spikes == sum(float((out != 0).sum()) for out in total) / 4
    torch.testing.assert_close(outputs[-1], sum(steps) / 3)


def row(name: str, predictions: list[list[int]]) -> demo.Row:
    predicted = torch.tensor(predictions)
    return demo.Row(name, predicted, predicted.double().mean(1), 2, 1.0, 0.0)


def test_differing_decisions_are_counted():
    one, two, same = row("d, one", [[0, 1], [2, 2]]), row("d, two", [[0, 2], [2, 1]]), row("d, too", [[0, 1], [2, 2]])
    assert demo._comparison([one, two], 2) == ["Decisions differ, of 2 steps x 2 images: one and two: 2."]
    assert demo._comparison([one, same], 2) == [
        "one and too made identical decisions for every image at each T = 1 ... 2."
    ]
    assert demo._comparison([one], 2) == []


def test_report_and_picture_are_written(story, tmp_path):
    from matplotlib.image import imread

    report = story.write(tmp_path / "new")
    assert report.read_text("utf-8").startswith("<!doctype html>")
    picture = imread(report.with_name("accuracy.png"))
    assert picture.shape[0] > 300
    assert picture[..., :3].std() > 0.05


def test_a_resnet_is_made_of_its_weights_and_the_shortcuts_as_convolutions_are_the_same():
    torch.manual_seed(0)
    published = networks.ResNet(1).eval()
    x = torch.rand(2, 3, 32, 32)
    state = {f"module.{key}": value for key, value in published.state_dict().items()}  # as DataParallel saves them
    torch.testing.assert_close(networks.resnet_of(state)(x), published(x))
    with pytest.raises(ValueError, match=r"not those of a CIFAR ResNet.*conversion-ext convert"):
        networks.resnet_of(nn.Linear(2, 2).state_dict())
    with pytest.raises(ValueError, match="not those of a CIFAR ResNet"):
        networks.resnet_of(published.state_dict() | {"more": x})


def write_jpegs(folder: Path, count: int = 40) -> torch.Tensor:
    """Write a file of JPEG copies of images of one colour each, and return the colours [count, 3]."""
    from PIL import Image

    colours = torch.randint(256, (2 * count, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    held: dict[str, np.ndarray] = {}
    for part, some in (("train", colours[:count]), ("test", colours[count:])):
        files = []
        for colour in some:
            buffer = io.BytesIO()
            Image.fromarray(colour.expand(32, 32, 3).numpy().copy()).save(buffer, "JPEG", quality=98)
            files.append(np.frombuffer(buffer.getvalue(), np.uint8))
        held[f"{part}_jpeg"] = np.concatenate(files)
        held[f"{part}_offsets"] = np.cumsum([0, *map(len, files)])
        held[f"{part}_labels"] = np.arange(count) % 10
    np.savez(folder / "cifar10_jpeg.npz", **held)
    return colours


def test_jpeg_copies_of_cifar10_are_read_and_normalized(tmp_path, monkeypatch):
    colours = write_jpegs(tmp_path).float() / 255
    monkeypatch.setenv("CONVERSION_EXT_DATA", str(tmp_path))
    cifar = data.load("cifar10")
    images = torch.cat([cifar.train.tensors[0], cifar.test.tensors[0]])
    assert images.shape == (80, 3, 32, 32)
    expected = (colours - torch.tensor(data.MEAN)) / torch.tensor(data.STD)
    torch.testing.assert_close(images.mean((2, 3)), expected, atol=0.05, rtol=0)
    assert cifar.test.tensors[1].tolist() == [i % 10 for i in range(40)]


def test_no_cifar10_says_where_it_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVERSION_EXT_DATA", str(tmp_path))
    with pytest.raises(data.MissingError, match=r"cifar-10-batches-py or cifar10_jpeg.npz.*CONVERSION_EXT_DATA"):
        data.load("cifar10")
    monkeypatch.setenv("CONVERSION_EXT_DATA", str(tmp_path / "none"))
    with pytest.raises(data.MissingError, match="no such folder"):
        data.load("cifar10")


def test_a_published_network_is_shown_without_training(tmp_path, monkeypatch):
    write_jpegs(tmp_path)
    monkeypatch.setenv("CONVERSION_EXT_DATA", str(tmp_path))
    monkeypatch.setattr(demo, "train", lambda *args: pytest.fail("trained a network that was given"))
    torch.manual_seed(0)
    torch.save({"state_dict": networks.ResNet(1).state_dict()}, tmp_path / "resnet.pth")
    options = {"T": 2, "weights": tmp_path / "resnet.pth", "recipes": ["default"], "images": 8}
    story = demo.run("cifar10", ["reference"], progress=False, **options)
    assert (story.data, story.images) == ("cifar10", 8)


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
    arguments = ["--backend", "reference", "--recipe", "default", "--T", "2", "--out", str(tmp_path / "out")]
    assert main(["demo", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "default, reference" in printed
    assert "Why the plain conversion decides unlike the ANN" in printed
    assert str(tmp_path / "out" / "report.html") in printed
    assert (tmp_path / "out" / "report.html").stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["demo", "--T", "0"], "T=0"),
        (["demo", "--data", "mnist"], "digits, fashion-mnist"),
        (["demo", "--backend", "brian"], "brian"),
        (["demo", "--out", "/no/such/folder/a"], "/no/such/folder"),
        (["demo", "--recipe", "none such"], "none such"),
        (["demo", "--weights", "none.pt"], "use --data cifar10"),
        (["demo", "--data", "cifar10", "--weights", "none.pt"], "none.pt: there is no such file"),
        (["demo", "--data", "cifar10", "--weights", str(Path(__file__))], "cannot be read as a state dict"),
        (["check", "nothing", "--input", "1,64"], "module:factory"),
        (["check", "no_such_module:net", "--input", "1,64"], "no_such_module"),
        (["check", "torch.nn:NoSuchThing", "--input", "1,64"], "NoSuchThing"),
        (["check", "builtins:dict", "--input", "1,64"], "dict"),
        (["check", "torch.nn:Linear", "--arg", "3", "--input", "1,64"], "Linear(3) raised TypeError"),
        (["convert", "torch.nn:ReLU", "--data", "nothing.npz", "--out", "a"], "no such data"),
        (["convert", "torch.nn:ReLU", "--data", "digits", "--out", "/no/such/a"], "/no/such/a"),
        (["convert", "torch.nn:ReLU", "--data", "digits", "--out", "."], "is a folder"),
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


def test_an_unexpected_fault_is_a_sentence_too(capsys, monkeypatch):
    def fail(options: object) -> int:
        raise ZeroDivisionError("none\nat all")

    monkeypatch.setattr("conversion_ext.__main__.info", fail)
    assert main(["info", "a"]) == 2
    written = capsys.readouterr().err
    assert written == "error: unexpected ZeroDivisionError: none (conversion-ext --traceback ... shows where)\n"
    with pytest.raises(ZeroDivisionError):
        main(["--traceback", "info", "a"])


@pytest.mark.parametrize("suffix", ["npz", "pt"])
def test_files_that_hold_no_images_are_one_sentence(suffix, tmp_path, capsys):
    arguments = ["convert", "torch.nn:ReLU", "--out", str(tmp_path / "a"), "--data"]
    (tmp_path / f"text.{suffix}").write_text("hello")
    assert main([*arguments, str(tmp_path / f"text.{suffix}")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    torch.save({"a": 1, "b": torch.tensor(2.0)}, tmp_path / "odd.pt")
    assert main([*arguments, str(tmp_path / "odd.pt")]) == 2
    assert "holds no array [N, ...]" in capsys.readouterr().err


def test_help_and_version_do_not_import_torch():
    code = (
        "import sys, conversion_ext_command as c\ntry: c.main([sys.argv[1]])\nexcept SystemExit as e: code = e.code\n"
    )
    code += "assert 'torch' not in sys.modules and code == 0"
    for option, expected in (("--help", "diagnose"), ("--version", "conversion-ext 0.")):
        command = [sys.executable, "-c", code, option]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
        assert expected in done.stdout
