"""No file makes loading run anything, and whatever is no network of ours is refused in one sentence."""

from __future__ import annotations

import copy
import json
import pickle
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import conversion_ext as cx
from conversion_ext.errors import FileError
from conversion_ext.exchange import container
from tests.papers import bias_free, images


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    snn = cx.convert(bias_free(), images(), backend="reference", T=8, progress=False)
    return cx.save(snn, tmp_path_factory.mktemp("files") / "network.safetensors")


def refused(path: Path) -> str:
    with pytest.raises(FileError) as caught:
        cx.load(path)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert len(sentence) < 1000
    return sentence


class Trap:
    """Unpickling this would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def mutations(content: bytes, random: random.Random) -> Iterator[bytes]:
    """Cut, flip, overwrite, insert, repeat; then lengths of a header that no file has."""
    while True:
        at = random.randrange(len(content))
        yield content[:at]
        flipped = bytearray(content)
        flipped[at] ^= 1 << random.randrange(8)
        yield bytes(flipped)
        in_header = bytearray(content)
        in_header[random.randrange(2000)] ^= 1 << random.randrange(8)
        yield bytes(in_header)
        yield content[:at] + random.randbytes(random.randrange(1, 64)) + content[at:]
        yield content[:at] + content[at + random.randrange(1, 64) :]
        yield struct.pack("<Q", random.choice([0, 1, 2**31, 2**63, random.getrandbits(64)])) + content[8:]
        yield random.randbytes(random.randrange(200))
        yield struct.pack("<Q", 20000) + b"[" * 20000
        yield content + b" "


def assert_all_refused(original: Path, folder: Path, count: int) -> None:
    content, path = original.read_bytes(), folder / "mutated"
    source = mutations(content, random.Random(0))
    for _ in range(count):
        mutated = next(source)
        if mutated != content:
            path.write_bytes(mutated)
            refused(path)


def test_damaged_files(original: Path, tmp_path: Path) -> None:
    assert_all_refused(original, tmp_path, 200)


@pytest.mark.slow
def test_two_thousand_damaged_files(original: Path, tmp_path: Path) -> None:
    assert_all_refused(original, tmp_path, 2000)


def test_foreign_files(original: Path, tmp_path: Path) -> None:
    path, canary = tmp_path / "foreign", tmp_path / "canary"
    torch.save(bias_free(), path)
    assert "not a file that conversion_ext.save wrote" in refused(path)
    for protocol in range(2, 6):
        path.write_bytes(pickle.dumps(Trap(canary), protocol))
        refused(path)
    torch.save(Trap(canary), path)
    refused(path)
    safetensors.torch.save_file({"a": torch.zeros(2)}, path)
    assert "not a file that conversion_ext.save wrote" in refused(path)
    safetensors.torch.save_file({"a": torch.zeros(2)}, path, {"conversion_ext": "{}", "sha256": "0" * 64})
    refused(path)
    for text in (b"", b"\0" * 100, b"import os", json.dumps({"a": 1}).encode()):
        path.write_bytes(text)
        refused(path)
    assert not canary.exists()


def test_a_newer_format_says_so(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, data = container.read(original)
    monkeypatch.setattr(container, "FORMAT", 7)
    path = tmp_path / "newer"
    container.write(path, {**facts, "format": 7}, data)
    monkeypatch.undo()
    assert "is in format 7, written by conversion_ext 0.1.0, and this release reads formats up to 1" in refused(path)


# What follows is signed anew, so that nothing but the closed lists stands between a header and what it asks for.
def node(facts: dict[str, Any], op: str) -> dict[str, Any]:
    return next(n for n in facts["graph"]["nodes"] if n["op"] == op)


def call(target: Any, *args: Any, op: str = "call_function") -> Callable[[dict[str, Any]], None]:
    def change(facts: dict[str, Any]) -> None:
        nodes = facts["graph"]["nodes"]
        rest = {"kwargs": {}, "info": {"key": "trap"}}
        nodes.insert(2, {"op": op, "name": "trap", "target": target, "args": list(args), **rest})

    return change


def set_in(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(facts: dict[str, Any]) -> None:
        place = facts
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


def first_node(key: str, value: Any, op: str = "call_module") -> Callable[[dict[str, Any]], None]:
    return lambda facts: node(facts, op).update({key: value})


def first_module(kind: str, change: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    def apply(facts: dict[str, Any]) -> None:
        module = next(m for m in facts["modules"] if m["class"] == kind)
        module["attributes"].update(change)

    return apply


CODE = '__import__("pathlib").Path("CANARY").touch()'
INPUT = {"node": "input_1"}
TRAPS = {
    "function by path": call({"function": "os.system"}, "touch CANARY"),
    "function eval": call({"function": "builtins.eval"}, CODE),
    "function that is a string": call("eval", CODE),
    "module as a function": call({"module": 0}, INPUT),
    "getattr of a class": call({"function": "builtins.getattr"}, INPUT, "__class__"),
    "getattr of three": call({"function": "builtins.getattr"}, INPUT, "shape", 1),
    "method apply_": call("apply_", INPUT, op="call_method"),
    "method __reduce_ex__": call("__reduce_ex__", INPUT, 2, op="call_method"),
    "unknown op": call("x", op="call_anything"),
    "code in a node's name": first_node("name", f"x = 0\n    {CODE}\n    y"),
    "code in an input's name": first_node("target", f"x=({CODE})", "placeholder"),
    "code in a module's path": first_node("target", f'0"); {CODE}; ("'),
    "keyword of code": first_node("kwargs", {f"a={CODE}, b": 1}),
    "code as name of the network": set_in("graph", "name", value=f"A:\n  pass\n{CODE}\nclass B"),
    "path of a module that is not held": first_node("target", "forward"),
    "value of an unknown class": set_in("record", value={"value": ["pathlib.Path", {}]}),
    "value of another class": set_in("record", value={"value": ["Recipe", {}]}),
    "value with a wrong field": set_in("record", "value", 1, "T", value={"value": ["neuron.IF", {"v_init": 7}]}),
    "two entries": set_in("record", value={"value": ["Recipe", {}], "tuple": []}),
    "dtype that is a function": call({"function": "torch.cat"}, {"dtype": "load"}),
    "unknown kind of value": call({"function": "torch.cat"}, {"pickle": "gASVAAAA"}),
    "module of an unknown class": set_in("modules", 0, "class", value="subprocess.Popen"),
    "module that loads files": set_in("modules", 0, "class", value="torch.fx.GraphModule"),
    "module's method": first_module("torch.nn.Conv2d", {"forward": {"function": "torch.cat"}}),
    "module's call": first_module("torch.nn.Conv2d", {"_call_impl": {"function": "torch.cat"}}),
    "module's compiled call": first_module("torch.nn.Conv2d", {"_compiled_call_impl": {"function": "torch.cat"}}),
    "attribute that no site has": first_module("cx.SpikingSite", {"unheard_of": 1}),
    "module's hooks": first_module("torch.nn.Conv2d", {"_forward_hooks": {"dict": [[0, {"function": "torch.cat"}]]}}),
    "module's class": first_module("torch.nn.Conv2d", {"__class__": 1}),
    "module that holds itself": set_in("modules", 0, "children", value={"a": 0}),
    "module of no number": set_in("modules", 0, "children", value={"a": -1}),
    "tensor that is not there": first_node("args", [{"tensor": "nothing"}]),
    "overlapping strides": set_in("tensors", "0.weight", value={"stride": [0, 0, 0, 0]}),
    "huge strides": set_in("tensors", "0.weight", value={"stride": [2**62, 2**62, 2**62, 2**62]}),
    "negative strides": set_in("tensors", "0.weight", value={"stride": [-1, 1, 1, 1]}),
    "nodes in no order": lambda facts: facts["graph"]["nodes"].reverse(),
    "no output": lambda facts: facts["graph"]["nodes"].pop(),
    "no graph": lambda facts: facts.pop("graph"),
    "a list for a graph": set_in("graph", value=[]),
}


@pytest.mark.parametrize("name", TRAPS)
def test_headers_signed_anew(name: str, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    facts, data = container.read(original)
    facts = copy.deepcopy(facts)
    TRAPS[name](facts)
    path = tmp_path / "signed"
    container.write(path, facts, data)
    refused(path)
    assert not (tmp_path / "CANARY").exists()


def test_functions_called_by_name_are_of_the_list(tmp_path: Path) -> None:
    ann = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten())
    path = cx.save(cx.convert(ann, images(), backend="reference", progress=False), tmp_path / "a")
    facts, data = container.read(path)
    first_module("cx.SpikingMaxPool2d", {"function": "importlib"})(facts)
    container.write(path, facts, data)
    assert "it pools by 'importlib'" in refused(path)


def test_the_same_header_signed_anew_is_accepted(original: Path, tmp_path: Path) -> None:
    facts, data = container.read(original)
    container.write(tmp_path / "signed", facts, data)
    cx.load(tmp_path / "signed")
