"""A network that was saved and loaded simulates bit-equally, whatever it is made of and wherever it is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import conversion_ext as cx
from conversion_ext.errors import FileError
from conversion_ext.exchange import catalogue
from conversion_ext.integer import integers
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.neurons import PLIF, Filtered, Neuron
from tests.live import make_live
from tests.papers import bias_free, images, network_for
from tests.zoo import FAMILIES, SMALL

BACKENDS = ("spikingjelly", "snntorch", "reference")
NEURONS = [cls for cls in catalogue.family(Neuron) if cls.step is not Neuron.step]


def assert_same(first: cx.Simulation, second: cx.Simulation) -> None:
    pairs = zip(tree_leaves(first.outputs), tree_leaves(second.outputs), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert first.total_steps == second.total_steps
    assert first.firing_rate.keys() == second.firing_rate.keys()
    assert all(torch.equal(rate, second.firing_rate[key]) for key, rate in first.firing_rate.items())


def assert_kept(snn: SpikingNetwork, x: Tensor, folder: Path, **options) -> SpikingNetwork:
    """Save, load, compare; return what was loaded."""
    loaded = cx.load(cx.save(snn, folder / "network.safetensors"), **options)
    T = 8 + getattr(snn.conversion.recipe.readout, "start", 0)
    assert_same(cx.simulate(snn, x, T=T), cx.simulate(loaded, x, T=T))
    assert loaded.conversion.recipe == snn.conversion.recipe
    assert str(loaded.conversion.table()) == str(snn.conversion.table())
    kept = {"backend", "versions"}
    facts = ({k: v for k, v in each.record.plain().items() if k not in kept} for each in (snn, loaded))
    assert next(facts) == next(facts)
    return loaded


def small(backend: str = "reference", **options) -> SpikingNetwork:
    return cx.convert(bias_free(), images(), **{"T": 8, "backend": backend, "progress": False, **options})


@pytest.mark.parametrize("fold", [True, False], ids=["folded", "unfolded"])
@pytest.mark.parametrize("name", cx.recipes.names())
def test_recipes(name: str, fold: bool, tmp_path: Path) -> None:
    ann, x = network_for(name), images()
    snn = cx.convert(ann, x, recipe=name, T=8, fold=fold, backend="reference", progress=False)
    assert_kept(snn, x, tmp_path)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["default", "default-signed", "default-multilevel", "hao2023", "hao2023_cos"])
def test_backends(name: str, backend: str, tmp_path: Path) -> None:
    ann, x = network_for(name), images()
    snn = cx.convert(ann, x, recipe=name, T=8, backend=backend, progress=False)
    assert type(assert_kept(snn, x, tmp_path)) is type(snn)


@pytest.mark.parametrize("neuron", NEURONS, ids=lambda cls: cls.__name__)
def test_neurons(neuron: type[Neuron], tmp_path: Path) -> None:
    value = neuron()
    snn = small(recipe=cx.Recipe(neuron=value, family=value.family))
    assert_kept(snn, images(), tmp_path)


@pytest.mark.parametrize("name", SMALL)
def test_networks(name: str, tmp_path: Path) -> None:
    build, shape = SMALL[name]
    x = torch.rand(4, *shape)
    assert_kept(cx.convert(build().eval(), x, backend="spikingjelly", progress=False), x, tmp_path)


@pytest.mark.parametrize("origin", BACKENDS)
@pytest.mark.parametrize("target", BACKENDS)
def test_another_backend_gives_the_same_spikes(origin: str, target: str, tmp_path: Path) -> None:
    loaded = assert_kept(small(origin), images(), tmp_path, backend=target)
    assert loaded.conversion.backend == target
    assert type(loaded) is type(small(target))
    cx.reset(loaded)


@pytest.mark.parametrize("origin", BACKENDS)
def test_what_neurons_learned(origin: str, tmp_path: Path) -> None:
    recipe = cx.Recipe(neuron=Filtered(PLIF(beta=0.9), tau=1.5)) if origin == "reference" else cx.Recipe(neuron=PLIF())
    snn = small(origin, recipe=recipe, T=None)
    for site in snn.sites().values():
        for parameter in site.neuron.parameters():
            parameter.data.fill_(0.625)
    assert_kept(snn, images(), tmp_path)
    assert_kept(snn, images(), tmp_path, backend="reference")


def test_fine_tuned(tmp_path: Path) -> None:
    x, y = images(16), torch.arange(16) % 5
    result = cx.finetune(small(fold=False), [(x, y), (x, y)], T=4, epochs=1, progress=False)
    assert_kept(result.snn, x, tmp_path)


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_integers(backend: str, tmp_path: Path) -> None:
    snn = integers(small(backend), images(), overflow="saturate")
    loaded = assert_kept(snn, images(), tmp_path)
    assert loaded.conversion.widths == snn.conversion.widths


@pytest.mark.parametrize("backend", BACKENDS)
def test_floors_and_strict_thresholds(backend: str, tmp_path: Path) -> None:
    recipe = cx.Recipe(neuron=cx.IF(0.25, floor=-1.0, strict=True))
    snn = small(backend, recipe=recipe)
    assert_kept(snn, images(), tmp_path)
    assert_kept(integers(snn, images()), images(), tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    assert_kept(small().to(dtype), images().to(dtype), tmp_path)


def test_trainable_weights_stay_so_and_tied_ones_tied(tmp_path: Path) -> None:
    build, shape = SMALL["tied"]
    snn = cx.convert(build().eval(), torch.rand(4, *shape), backend="reference", fold=False, progress=False)
    loaded = cx.load(cx.save(snn, tmp_path / "a"))
    found, wanted = (dict(each.named_parameters()) for each in (loaded, snn))
    assert found.keys() == wanted.keys()
    assert all(found[name].requires_grad == wanted[name].requires_grad for name in wanted)
    assert loaded.state_dict().keys() == snn.state_dict().keys()


def test_a_loaded_network_is_like_any_other(tmp_path: Path) -> None:
    loaded = cx.load(cx.save(small(), tmp_path / "a"))
    again = cx.load(cx.save(loaded, tmp_path / "b"))
    assert_same(cx.simulate(loaded, images(), T=8), cx.simulate(again, images(), T=8))
    cx.twin(loaded, 8)(images())
    assert cx.synops(loaded, images(), 8).synops > 0


def test_a_fresh_process_needs_neither_the_ann_nor_its_class(tmp_path: Path) -> None:
    snn, x = small("snntorch"), images()
    path = cx.save(snn, tmp_path / "network.safetensors")
    torch.save((x, cx.simulate(snn, x, T=8).outputs), tmp_path / "expected.pt")
    program = (
        "import sys, torch; torch.set_num_threads(1); import conversion_ext as cx\n"
        "x, outputs = torch.load(sys.argv[2])\n"
        "snn = cx.load(sys.argv[1])\n"
        "assert torch.equal(cx.simulate(snn, x, T=8).outputs, outputs)\n"
        "assert not any(name.startswith('tests') for name in sys.modules)\n"
    )
    command = [sys.executable, "-c", program, str(path), str(tmp_path / "expected.pt")]
    subprocess.run(command, check=True, cwd=Path(cx.__file__).parents[1])


@pytest.mark.slow
def test_a_fresh_process_loads_every_recipe_and_three_networks_of_torchvision(tmp_path: Path) -> None:
    made = {name: (network_for(name), images(), {"recipe": name, "T": 8}) for name in cx.recipes.names()}
    for name in ("resnet", "mobilenet_v2", "densenet"):
        build, shape = FAMILIES[name]
        made[name] = (make_live(build(), *shape), torch.rand(2, *shape), {})
    expected = {}
    for name, (ann, x, options) in made.items():
        snn = cx.convert(ann.eval(), x, progress=False, **options)
        T = 8 + getattr(snn.conversion.recipe.readout, "start", 0)
        cx.save(snn, tmp_path / f"{name}.safetensors")
        expected[name] = (x, T, cx.simulate(snn, x, T=T).outputs)
    torch.save(expected, tmp_path / "expected.pt")
    program = (
        "import sys, torch; torch.set_num_threads(1); import conversion_ext as cx\n"
        "folder = sys.argv[1]\n"
        "for name, (x, T, outputs) in torch.load(folder + '/expected.pt').items():\n"
        "    snn = cx.load(f'{folder}/{name}.safetensors')\n"
        "    assert torch.equal(cx.simulate(snn, x, T=T).outputs, outputs), name\n"
        "assert not {'torchvision', 'tests'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, cwd=Path(cx.__file__).parents[1])


class Doubled(nn.Module):
    """A module that no file can name until it is registered."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


def test_a_class_of_ones_own_is_refused_by_name(tmp_path: Path) -> None:
    ann = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Doubled(), nn.Linear(4, 2))
    snn = cx.convert(ann, torch.rand(8, 4), skip=("2",), backend="reference", progress=False)
    with pytest.raises(FileError, match=r"Doubled.*register_operator"):
        cx.save(snn, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_subclass_that_only_inherits_is_its_base(tmp_path: Path) -> None:
    class Layer(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 4)
            self.owner = object()

    ann = nn.Sequential(Layer(), nn.ReLU(), nn.Linear(4, 2))
    snn = cx.convert(ann, torch.rand(8, 4), backend="reference", progress=False)
    loaded = assert_kept(snn, torch.rand(8, 4), tmp_path)
    assert type(loaded.body.get_submodule("0")) is nn.Linear


def test_wrong_requests_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"snn is a Sequential; pass what"):
        cx.save(bias_free(), tmp_path / "a")
    with pytest.raises(FileError, match=r"cannot be written: .*folder"):
        cx.save(small(), tmp_path / "none" / "a")
    with pytest.raises(TypeError, match=r"path=3: name a file in a folder"):
        cx.save(small(), 3)  # type: ignore[arg-type]
    for device in ("gpu0", 1.5):
        with pytest.raises(ValueError, match=r"device=.*name one that is here, such as 'cpu'"):
            cx.load(cx.save(small(), tmp_path / "a"), device=device)
    with pytest.raises(FileError, match=r"cannot be read: No such file"):
        cx.load(tmp_path / "none")
    with pytest.raises(FileError, match=r"cannot be read"):
        cx.load(tmp_path)
    with pytest.raises(cx.errors.UnknownNameError, match=r"no backend named 'brian'"):
        cx.load(cx.save(small(), tmp_path / "a"), backend="brian")


def test_device_and_default_backend(tmp_path: Path) -> None:
    path = cx.save(small("snntorch"), tmp_path / "a")
    assert cx.load(path, device="meta").body.get_submodule("0").weight.is_meta
    assert cx.load(path).conversion.backend == "snntorch"
