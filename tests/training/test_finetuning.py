"""cx.finetune: gradients against hand-written loops, the guard, what it returns, and a training that is killed."""

from __future__ import annotations

import copy
import itertools
import math
import os
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import conversion_ext as cx
from conversion_ext.simulation.inputs import Presentation
from conversion_ext.training import Distillation, Online, Rate, RateDistillation, ThroughTime, Training
from conversion_ext.training.batch_norm import Normalized, normalizable
from conversion_ext.training.data import divide
from conversion_ext.training.student import Student
from conversion_ext.types import Steps
from tests import zoo
from tests.live import live_inputs, make_live

BACKENDS = ("reference", "spikingjelly", "snntorch")
T = 3
# Where the steps of the output weigh alike, laws hold to the bit; weights have a test of their own.
EVEN = replace(
    cx.recipes.get("default"),
    tuners=tuple(t for t in cx.recipes.get("default").tuners if not isinstance(t, cx.tuners.OutputWeights)),
)


def convert(ann: nn.Module, x: Tensor, backend: str = "reference", **options) -> Any:
    if backend != "reference":
        pytest.importorskip(backend)
    return cx.convert(ann, x, T=T, backend=backend, progress=False, **{"recipe": EVEN} | options)


def residual(backend: str = "reference", samples: int = 96, **options):
    """Return a network with shortcuts and a max-pool, its conversion, inputs, and the ANN's decisions."""
    torch.manual_seed(0)
    ann = make_live(zoo.Residual(), *zoo.IMAGE)
    x = live_inputs(ann, *zoo.IMAGE, samples=samples)
    with torch.no_grad():
        return ann, convert(ann, x[:32], backend, **options), x, ann(x).argmax(1)


def finetune(snn, data, **options):
    """Call cx.finetune; options of ``Training`` go there."""
    names = {field.name for field in fields(Training)}
    training = Training(**{name: options.pop(name) for name in list(options) if name in names})
    return cx.finetune(snn, data, **{"T": T, "epochs": 1, "progress": False, "training": training} | options)


def snapshot(snn) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in snn.state_dict().items() if isinstance(v, Tensor)}


def gradients(snn, x: Tensor, y: Tensor, rule, detach_reset: bool = True) -> dict[str, Any]:
    """Return {parameter: gradient} of the mean output's cross-entropy by a rule of the package."""
    student = Student(snn, ("weights",), None, detach_reset, False)
    rule.prepare(student.snn)
    batch = Presentation(student.snn, (x,), T, 1, torch.Generator())
    for loss in rule.losses(student, student, batch, lambda outputs, rates: F.cross_entropy(outputs.mean(0), y)):
        loss.backward()
    return {name: p.grad for name, p in student.snn.named_parameters()}


def arctan(z: Tensor) -> Tensor:
    """Return [z >= 0] with the gradient of arctan(pi z) / pi, without a Function of autograd."""
    smooth = torch.atan(torch.pi * z) / torch.pi
    return smooth + ((z >= 0).to(z.dtype) - smooth).detach()


def perceptron(backend: str):
    """Return a conversion of linear, ReLU, linear in float64, its four parameters as leaves, inputs and classes."""
    torch.manual_seed(1)
    ann = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)).double()
    x, y = torch.rand(20, 6).double(), torch.randint(4, (20,))
    snn = convert(ann, x, backend, recipe=cx.Recipe(cx.Percentile(99.0, granularity=cx.PerChannel())))
    leaves = [p.detach().clone().requires_grad_() for p in snn.parameters()]
    return snn, leaves, x, y


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("detach_reset", [True, False])
def test_gradient_through_time_is_that_of_a_loop_by_hand(backend, detach_reset):
    snn, (w1, b1, w2, b2), x, y = perceptron(backend)
    v, outputs = torch.full((20, 9), 0.5, dtype=x.dtype), []
    for _ in range(T):
        v = v + F.linear(x, w1, b1)
        s = arctan(v - 1)
        v = v - (s.detach() if detach_reset else s)
        outputs.append(F.linear(s, w2, b2))
    F.cross_entropy(torch.stack(outputs).mean(0), y).backward()
    found = gradients(snn, x, y, ThroughTime(), detach_reset)
    for ours, leaf in zip(found.values(), (w1, b1, w2, b2), strict=True):
        # snnTorch's arctan has float32 constants.
        torch.testing.assert_close(ours, leaf.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_each_step_alone_is_that_of_a_loop_by_hand(backend):
    snn, (w1, b1, w2, b2), x, y = perceptron(backend)
    v, outputs = torch.full((20, 9), 0.5, dtype=x.dtype), []
    for _ in range(T):
        v = v.detach() + F.linear(x, w1, b1)
        s = arctan(v - 1)
        v = v - s
        outputs = [*(o.detach() for o in outputs), F.linear(s, w2, b2)]
        (F.cross_entropy(torch.stack(outputs).mean(0), y) / T).backward()
    for ours, leaf in zip(gradients(snn, x, y, Online()).values(), (w1, b1, w2, b2), strict=True):
        torch.testing.assert_close(ours, leaf.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_without_time_is_that_of_rounded_activations(backend):
    snn, (w1, b1, w2, b2), x, y = perceptron(backend)
    z = F.linear(x, w1, b1)
    rate = torch.floor(T * z + 0.5).clamp(0, T) / T
    through = z.clamp(0, 1)
    output = F.linear(through + (rate - through).detach(), w2, b2)
    torch.testing.assert_close(output.detach(), cx.twin(snn, T)(x).detach(), rtol=1e-12, atol=1e-12)
    F.cross_entropy(output, y).backward()
    for ours, leaf in zip(gradients(snn, x, y, Rate()).values(), (w1, b1, w2, b2), strict=True):
        torch.testing.assert_close(ours, leaf.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", [ThroughTime(), Online(2), Rate()], ids=lambda rule: type(rule).__name__)
def test_every_layer_has_a_gradient(backend, rule):
    _, snn, x, y = residual(backend)
    found = gradients(snn, x[:32], y[:32], rule)
    assert len(found) == 14
    assert all(gradient.abs().max() > 0 for gradient in found.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_recomputed_steps_give_the_same_gradient(backend):
    ann, snn, x, y = residual(backend)
    kept, recomputed = (gradients(snn, x[:16], y[:16], ThroughTime(steps)) for steps in (None, 2))
    for name, gradient in kept.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gradient", ["bptt", "rate", "online"])
def test_loss_falls_alike_in_all_frameworks(gradient):
    losses = []
    for backend in BACKENDS:
        _, snn, x, y = residual(backend)
        found = finetune(snn, (x, (y + 1) % 5), epochs=4, rate=5e-3, gradient=gradient)
        losses.append([epoch.loss for epoch in found.history[1:]])
        assert losses[-1][-1] < 0.8 * losses[-1][0]
        assert found.snn.conversion.backend == backend
    torch.testing.assert_close(torch.tensor(losses[1:]), torch.tensor(losses[:1] * 2), rtol=1e-3, atol=0)


def test_the_network_given_is_as_it_was_and_another_comes_back():
    ann, snn, x, y = residual()
    snn.body.head.bias.requires_grad_(False)
    before, flags, notes = snapshot(snn), [p.requires_grad for p in snn.parameters()], snn.conversion.notes
    cx.simulate(snn, x, T)
    found = finetune(snn, (x, (y + 1) % 5), epochs=3, rate=5e-3)
    after = snapshot(snn)
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert [p.requires_grad for p in snn.parameters()] == flags == [p.requires_grad for p in found.snn.parameters()]
    assert (snn.conversion.notes, snn.training) == (notes, False)
    assert all(p.grad is None for p in (*snn.parameters(), *found.snn.parameters()))
    learned = snapshot(found.snn)
    assert torch.equal(learned["body.head.bias"], before["body.head.bias"])  # frozen
    assert not torch.equal(learned["body.head.weight"], before["body.head.weight"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_result_is_a_converted_network(backend):
    ann, snn, x, y = residual(backend)
    found = finetune(snn, (x, (y + 1) % 5), epochs=3, rate=5e-3, validation=(x, (y + 1) % 5))
    tuned = found.snn
    assert found.best == max(range(4), key=lambda n: found.history[n].accuracy) > 0
    assert found.samples == len(x)
    accuracy = cx.evaluate(tuned, (x, (y + 1) % 5), T, ann=ann, progress=False).accuracy[-1]
    assert float(accuracy) == found.history[found.best].accuracy > found.history[0].accuracy
    assert "Fine-tuned for T=3" in tuned.conversion.notes[-1]
    assert type(tuned) is type(snn)
    assert tuned.training is False
    assert tuned.conversion.table() == snn.conversion.table()
    cx.reset(tuned)
    outputs = torch.stack([tuned(x) for _ in range(T)]).mean(0)
    cx.reset(tuned)
    torch.testing.assert_close(cx.simulate(tuned, x, T).output, outputs, rtol=1e-4, atol=1e-5)
    assert torch.equal(cx.simulate(copy.deepcopy(tuned), x, T).output, cx.simulate(tuned, x, T).output)


@pytest.mark.parametrize(("rate", "optimizer"), [(1e3, "adamw"), (1e38, "sgd")])
def test_an_absurd_rate_returns_the_network_given(rate, optimizer):
    _, snn, x, y = residual()
    found = finetune(snn, (x, y), epochs=2, rate=rate, optimizer=optimizer)
    assert found.best == 0
    assert found.history[0].accuracy > found.history[-1].accuracy
    assert "no epoch was better" in str(found)
    before, after = snapshot(snn), snapshot(found.snn)
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert found.snn.conversion.notes == snn.conversion.notes
    if optimizer == "sgd":
        assert math.isnan(found.history[-1].loss) or math.isinf(found.history[-1].loss)


def test_thresholds_and_potentials_learn_and_thresholds_stay_positive():
    _, snn, x, y = residual(fold=False)
    before = snapshot(snn)
    options = {"learn": ("thresholds", "potentials"), "epochs": 3, "validation": (x, (y + 1) % 5)}
    found = finetune(snn, (x, (y + 1) % 5), rate=0.05, **options)
    assert found.best > 0
    changed = {k for k, v in snapshot(found.snn).items() if not torch.equal(v, before[k])}
    assert changed
    assert {name.rpartition(".")[2] for name in changed} == {"threshold", "v_init"}
    whole = finetune(snn, (x, (y + 1) % 5), rate=0.05, fold=True, **options).snn
    assert (whole.conversion.folded, found.snn.conversion.folded) == (True, False)
    assert not any(site.scaled for site in whole.sites().values())
    torch.testing.assert_close(cx.simulate(whole, x, T).output, cx.simulate(found.snn, x, T).output)
    wild = finetune(snn, (x, (y + 1) % 5), optimizer="sgd", rate=1e4, **options)
    assert all((threshold > 0).all() for threshold in wild.snn.conversion.thresholds.values())


def test_batch_norm_starts_as_nothing_and_is_folded_away():
    _, snn, x, y = residual()
    student = Student(snn, ("weights",), None, True, False)
    student.normalize((x,), Steps(T, constant=True))
    assert len(list(normalizable(snn.body))) == sum(isinstance(m, Normalized) for m in student.modules()) == 6
    outputs, _ = student((x,), Steps(T, constant=True))  # the batch of its statistics
    torch.testing.assert_close(outputs.mean(0), cx.simulate(snn, x, T).output, rtol=1e-3, atol=1e-3)
    before = snapshot(snn)
    assert student.learned().keys() == dict(snn.named_parameters()).keys()
    for name, value in student.learned().items():
        torch.testing.assert_close(value, before[name], rtol=1e-4, atol=1e-5)
    found = finetune(snn, (x, (y + 1) % 5), epochs=4, rate=5e-3, normalize=True, validation=(x, (y + 1) % 5))
    assert found.history[-1].loss < 0.8 * found.history[1].loss
    assert found.best > 0


def test_folded_layer_is_layer_and_batch_norm():
    """Beside torch's BatchNorm, through a few steps of training statistics."""
    convolution, oracle, x = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), torch.rand(5, 3, 6, 6)
    module = Normalized(copy.deepcopy(convolution))
    with torch.no_grad():
        module.observe(convolution, None, convolution(x))
        oracle.load_state_dict(
            {"weight": module.scale, "bias": module.shift, "running_mean": module.mean, "running_var": module.variance,
             "num_batches_tracked": torch.tensor(0)}
        )  # fmt: skip
        for _ in range(3):
            x = 2 * torch.randn(5, 3, 6, 6) + 1
            torch.testing.assert_close(module(x), oracle(convolution(x)))
        whole = module.folded()
        expected = oracle.eval()(convolution(x))
        torch.testing.assert_close(F.conv2d(x, whole["weight"], whole["bias"]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_spikes_with_gradients_are_those_without(backend):
    _, snn, x, _ = residual(backend)
    outputs, _ = Student(snn, ("weights",), None, True, False)((x,), Steps(T, constant=True))
    assert torch.equal(outputs.mean(0), cx.simulate(snn, x, T, time_chunk=T).output)


def test_terms_are_added_and_see_rates_and_teacher():
    ann, snn, x, y = residual()
    seen: list[dict[str, Tensor]] = []

    def silence(rates):
        seen.append({key: rate.detach() for key, rate in rates.items()})
        return torch.stack([rate.mean() for rate in rates.values()]).mean()

    # One batch in order, so that its rates can be simulated.
    options = {"validation": (x, y), "rate": 1e-9}
    loader = [(x[:32], y[:32])]
    plain, taught, silent = (
        finetune(snn, loader, **options, **more).history[1].loss
        for more in ({}, {"teacher": ann}, {"regularizers": (silence,)})
    )
    run = cx.simulate(snn, x[:32], T)
    for key, rate in run.firing_rate.items():
        torch.testing.assert_close(seen[0][key], rate)
    expected = torch.stack([rate.mean() for rate in run.firing_rate.values()]).mean()
    assert silent - plain == pytest.approx(float(expected), rel=1e-4)
    with torch.no_grad():
        kl = F.kl_div(F.log_softmax(run.output / 4, 1), F.softmax(ann(x[:32]) / 4, 1), reduction="batchmean")
    assert taught - plain == pytest.approx(16 * float(kl), rel=1e-3)


def test_named_and_own_surrogates_reach_the_neurons():
    """A surrogate without slope stops every gradient but those behind the last neuron; names are the framework's."""

    def flat(z):
        return (z >= 0).to(z.dtype) + 0 * z

    for backend, name in (("spikingjelly", "Sigmoid"), ("snntorch", "fast_sigmoid"), ("reference", "atan")):
        _, snn, x, y = residual(backend)
        behind = Student(snn, ("weights",), flat, True, False)
        F.cross_entropy(behind((x[:8],), Steps(T, constant=True))[0].mean(0), y[:8]).backward()
        with_gradient = {n for n, p in behind.snn.named_parameters() if p.grad is not None and p.grad.any()}
        assert with_gradient == {"body.head.weight", "body.head.bias"}
        finetune(snn, (x, y), gradient=ThroughTime(surrogate=name))
        with pytest.raises(LookupError, match=f"surrogate='nothing': {backend} has .*{name}"):
            finetune(snn, (x, y), gradient=ThroughTime(surrogate="nothing"))


def test_a_tenth_of_the_samples_judges_and_is_not_learned_from():
    x, y = torch.arange(203.0)[:, None], torch.arange(203)
    for loader in ((x, y), DataLoader(TensorDataset(x, y), 7), [(x[i : i + 1], y[i : i + 1]) for i in range(203)]):
        learned, judges = (torch.cat([target for _, target in part]).tolist() for part in divide(loader, None, 0))
        assert len(judges) == 20
        assert sorted(learned + judges) == list(range(203))
        assert divide(loader, None, 1)[1] is not None
    given = DataLoader(TensorDataset(x, y), 7)
    assert divide(given, [(x, y)], 0) == (given, [(x, y)])


class Jittered(Dataset):
    """Images with noise of torch's global generator, as augmentations have."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index] + 0.05 * torch.rand(self.x[index].shape), self.y[index]


def interrupted(path: str, death: int | None, normalize: bool):
    """Fine-tune with everything that is random, for two epochs of 9 batches; die at the loss number ``death``."""
    torch.set_num_threads(1)
    _, snn, x, y = residual()
    snn.record = replace(
        snn.record, recipe_value=replace(snn.conversion.recipe, encoder=cx.encoders.Poisson(gain=0.1, signed=True))
    )
    number = itertools.count()

    def dropped(rates):
        if next(number) == death:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.stack([(rate * torch.rand(rate.shape)).mean() for rate in rates.values()]).mean()

    loader = DataLoader(Jittered(x, (y + 1) % 5), 10, shuffle=True, generator=torch.Generator().manual_seed(3))
    return finetune(
        snn, loader, epochs=2, rate=2e-3, checkpoint=path, checkpoint_every=2, regularizers=(dropped,), seed=5,
        validation=(x, (y + 1) % 5), normalize=normalize,
    )  # fmt: skip


@pytest.mark.parametrize(("death", "normalize"), [(7, False), (15, True)])
def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path, death, normalize):
    root, path = Path(__file__).parents[2], tmp_path / "killed.pt"
    code = f"from tests.training.test_finetuning import interrupted; interrupted({str(path)!r}, {death}, {normalize})"
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == -signal.SIGKILL
    assert torch.load(path, weights_only=True)["step"] == (6 if death == 7 else 4)
    resumed, whole = (interrupted(str(p), None, normalize) for p in (path, tmp_path / "whole.pt"))
    assert [(e.loss, e.accuracy) for e in resumed.history[1:]] == [(e.loss, e.accuracy) for e in whole.history[1:]]
    assert resumed.best == whole.best > 0
    one, two = snapshot(resumed.snn), snapshot(whole.snn)
    assert all(torch.equal(two[k], v) for k, v in one.items())


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    _, snn, x, y = residual()
    finetune(snn, (x, y), checkpoint=tmp_path / "run.pt")
    with pytest.raises(ValueError, match="belongs to a run with another number of epochs, learning rate; delete it"):
        finetune(snn, (x, y), checkpoint=tmp_path / "run.pt", epochs=2, rate=0.1)


def test_accelerate_trains_as_the_plain_loop_does():
    accelerate = pytest.importorskip("accelerate")
    _, snn, x, y = residual()
    options = {"epochs": 2, "rate": 5e-3}
    plain = finetune(snn, (x, (y + 1) % 5), **options)
    helped = finetune(snn, (x, (y + 1) % 5), accelerator=accelerate.Accelerator(cpu=True), **options)
    assert [e.loss for e in helped.history[1:]] == [e.loss for e in plain.history[1:]]
    one, two = snapshot(plain.snn), snapshot(helped.snn)
    assert all(torch.equal(two[k], v) for k, v in one.items())


BAD = {
    "snn is a ReLU; pass what": {"snn": nn.ReLU()},
    "T=0: give an integer >= 1": {"T": 0},
    "epochs=True: give an integer": {"epochs": True},
    "learn=.*: name some of weights": {"learn": ("biases",)},
    "they are folded into the weights": {"learn": ("thresholds",)},
    "no neuron of this network has parameters": {"learn": ("neurons",)},
    "no gradient named 'x'; there are: online, ottt, rate": {"gradient": "x"},
    "gradient=3: give a name": {"gradient": 3},
    "no loss named 'x'; there are: rate": {"loss": "x"},
    "teacher is a str; pass the ANN": {"teacher": "ann"},
    "needs a teacher: pass teacher=ann": {"distillation": cx.training.Distillation()},
    r"optimizer='x'\): choose one of adamw, sgd": {"optimizer": "x"},
    r"rate=-1\): the learning rate is": {"rate": -1},
    "leave out rate= and weight_decay=": {"optimizer": torch.optim.SGD, "rate": 1.0},
    "accelerator=3: give an accelerate.Accelerator": {"accelerator": 3},
    "one-shot iterator": {"loader": iter([])},
    "of unknown length or empty": {"loader": []},
    "cannot be divided .* give validation=": {
        "loader": DataLoader(TensorDataset(torch.ones(9), torch.ones(9)), sampler=range(9))
    },
    "without a target": {"loader": [torch.rand(2, 3, 8, 8)] * 2, "validation": (torch.rand(2, 3, 8, 8), torch.ones(2))},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_answered_in_a_sentence(message):
    _, snn, x, y = residual(samples=16)
    given = {"snn": snn, "loader": (x, y)} | BAD[message]
    with pytest.raises((ValueError, TypeError, LookupError), match=message):
        finetune(given.pop("snn"), given.pop("loader"), **given)


def test_a_tuner_that_acts_while_simulating_is_refused():
    ann, _, x, y = residual(samples=32)
    recipe = cx.Recipe(tuners=(cx.tuners.VoltageClamp(),))
    with pytest.raises(ValueError, match="acts while simulating"):
        finetune(convert(ann, x, recipe=recipe), (x, y))
    for rule in ("ThroughTime(0)", "Online(0)"):
        with pytest.raises(ValueError, match=">= 1"):
            eval(rule)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_teacher_takes_the_place_of_labels(backend):
    ann, snn, x, _ = residual(backend)
    found = finetune(snn, x, teacher=ann, epochs=3, validation=x[:64], training=Training(rate=3e-4))
    assert found.metric == "agreement with the teacher (accuracy)"
    assert found.samples == 64
    with torch.no_grad():
        decided = ann(x[:64]).argmax(1)
    for network, number in ((snn, 0), (found.snn, found.best)):
        agreement = (cx.simulate(network, x[:64], T).output.argmax(1) == decided).double().mean()
        assert found.history[number].score == pytest.approx(float(agreement))
    assert found.history[-1].loss < 0.95 * found.history[1].loss


def test_labels_do_not_matter_where_there_are_none():
    """Batches of inputs alone, in every form, give one training: that of outputs and activations."""
    ann, snn, x, _ = residual()
    forms = [list(x.split(16)), [(part,) for part in x.split(16)], [{"input": part} for part in x.split(16)]]
    losses = [
        [epoch.loss for epoch in finetune(snn, data, teacher=ann, training=Training(rate=1e-3)).history[1:]]
        for data in forms
    ]
    assert losses[0] == losses[1] == losses[2]
    terms = (Distillation(), RateDistillation())
    explicit = finetune(snn, forms[0], teacher=ann, distillation=terms, training=Training(rate=1e-3))
    assert [epoch.loss for epoch in explicit.history[1:]] == losses[0]
    with pytest.raises(cx.CalibrationError, match="teacher=ann"):
        finetune(snn, forms[0])


def test_the_default_rate_does_not_wreck_a_wide_network():
    """Weights of wide layers are small, and a step of 0.001 is 4 % of them."""
    torch.manual_seed(0)
    layers = [nn.Linear(32, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU()]
    ann = nn.Sequential(*layers, nn.Linear(1024, 8))
    for layer in ann[::2]:
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    x = torch.randn(640, 32)
    with torch.no_grad():
        y = ann(x).argmax(1)
    snn = convert(ann, x[:256])
    given, probed = finetune(snn, (x, y), training=Training(rate=1e-3)), finetune(snn, (x, y))
    assert given.history[0].score == probed.history[0].score
    assert given.history[1].score < given.history[0].score - 0.15  # what the probe is there for
    assert probed.history[1].score >= given.history[1].score + 0.05
    assert probed.best in (0, 1)


def test_a_rate_that_does_no_harm_is_taken_and_leaves_no_trace():
    """The training is the same to the bit as with that rate given."""
    _, snn, x, y = residual()
    y = (y + 1) % 5  # whatever lowers the loss is better than the start
    data = DataLoader(TensorDataset(x, y), 16, shuffle=True, generator=torch.Generator().manual_seed(3))
    again = DataLoader(TensorDataset(x, y), 16, shuffle=True, generator=torch.Generator().manual_seed(3))
    probed, given = finetune(snn, data), finetune(snn, again, training=Training(rate=1e-3))
    assert [e.loss for e in probed.history[1:]] == [e.loss for e in given.history[1:]]
