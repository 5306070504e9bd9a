"""The contract of a tuner: it corrects a spiking network against its ANN, layer by layer, before folding."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.fx import GraphModule

from conversion_ext import graph
from conversion_ext.errors import require
from conversion_ext.network.depths import depths
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.stepping import Stepping
from conversion_ext.neurons import IF, Neuron, SignedEncoder
from conversion_ext.registry import Registry, class_of
from conversion_ext.tuners.walk import OutputStop, SiteStop, SynapseStop, Task
from conversion_ext.types import Reset

__all__ = ["ResidualTuner", "SteppingTuner", "Tuner", "register_tuner", "tuners"]


@dataclass(frozen=True, kw_only=True)
class Tuner:
    """Base of all tuners: frozen values that work without arguments and take T from ``convert``.

    Tuners act in the order of the recipe, and share one walk over the calibration data (see ``walk``): at each weight
    layer and then at each site, in graph order, every tuner is called in turn. One that changes the whole network ends
    the walk; tuners behind it walk over the network that it leaves. A tuner changes only what its docstring declares,
    and never makes its objective worse on the calibration data. Sums over the data are taken by ``stop.exact_sum``, so
    that several processes, each with a part of the data, get the same result.
    """

    @property
    def needs_calibration(self) -> bool:
        """Whether it works on calibration data, and then for a number of steps T."""
        return True

    @property
    def counts_steps(self) -> bool:
        """Whether what it sets belongs to single steps from the reset, so that sites must not wait or warm up."""
        return False

    @property
    def changes_network(self) -> bool:
        """Whether it changes the whole network, so that the walk over layers ends before it."""
        return type(self).tune_network is not Tuner.tune_network

    def check(self, neuron: Neuron) -> None:
        """Raise unless it can work with the neurons of a recipe."""

    def tune(self, stop: SiteStop | SynapseStop | OutputStop) -> None:
        """Change the layer, the site or the weights of the output at which the walk has stopped, in place."""
        if isinstance(stop, SiteStop):
            self.tune_site(stop)
        elif isinstance(stop, SynapseStop):
            self.tune_synapse(stop)
        else:
            self.tune_output(stop)

    def objective(self, stop: SiteStop | SynapseStop | OutputStop) -> Tensor | None:
        """Return what ``tune`` never makes larger at this stop, for each value or in all; None: it tunes nothing."""
        return None

    def tune_synapse(self, stop: SynapseStop) -> None:
        """Change the weight layer at which the walk has stopped, in place; by default nothing."""

    def tune_site(self, stop: SiteStop) -> None:
        """Change the site at which the walk has stopped, in place; by default nothing."""

    def tune_output(self, stop: OutputStop) -> None:
        """Change the weights of the steps in the mean output, ``stop.weights``; by default nothing."""

    def tune_network(self, task: Task) -> None:
        """Change the whole network, in place, when the walk is over; by default nothing."""


@dataclass(frozen=True, kw_only=True)
class SteppingTuner(Tuner):
    """Base of tuners that act while simulating: they decide how sites are stepped, and need no calibration data."""

    @property
    def needs_calibration(self) -> bool:
        """Whether it works on calibration data: no."""
        return False

    def stepping(self, depth: int) -> Stepping:
        """Return how the neurons of a site are stepped, the ``depth``-th on the longest chain of sites to it."""
        raise TypeError(f"{type(self).__name__} must define stepping().")

    def reaches(self, site: SpikingSite) -> bool:
        """Return whether ``site`` is stepped so."""
        return True

    def install(self, body: GraphModule) -> None:
        """Exchange the stepping of the sites of ``body``."""
        places = depths(body)
        for _, site in graph.modules_called(body, SpikingSite):
            if self.reaches(site):
                site.stepping = self.stepping(places[site.key])


@dataclass(frozen=True, kw_only=True)
class ResidualTuner(SteppingTuner):
    """Base of those that read potentials: what is left in an IF neuron with soft reset is input minus spikes.

    Encoders of signed values are stepped as before.
    """

    def check(self, neuron: Neuron) -> None:
        """Raise unless ``neuron`` is IF with soft reset and without a floor."""
        keeps = type(neuron) is IF and neuron.reset is Reset.SUBTRACT and neuron.floor is None
        require(keeps, f"{self} needs IF neurons with soft reset and without a floor, and here they are {neuron}.")
        require(neuron.ahead == 0, f"{self} sets the pace of sites, and so does look-ahead; leave out one of them.")

    def reaches(self, site: SpikingSite) -> bool:
        """Return whether ``site`` stands for a ReLU; raise where its neurons are of another kind."""
        if isinstance(site.spec, SignedEncoder):
            return False
        self.check(site.spec)
        return True


tuners: Registry[type[Tuner]] = Registry("tuner", class_of(Tuner), "a class derived from Tuner")


def register_tuner(name: str, tuner: type[Tuner]) -> type[Tuner]:
    """Add a tuner class under ``name``; it must work without arguments."""
    return tuners.register(name, tuner)
