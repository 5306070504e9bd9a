"""The rate of a leaky integrate-and-fire neuron, smoothed so that it can be trained."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from conversion_ext.errors import require
from conversion_ext.neurons import Neuron, RefractoryLIF
from conversion_ext.nn.trained import Trained

__all__ = ["SoftLIF"]

STEP = 0.001  # seconds: what one time step of the spiking network stands for, as in the authors' simulations


class SoftLIF(Trained):
    """``amplitude / (tau_ref + tau_rc log(1 + 1 / J))`` with ``J = gamma log(1 + exp((gain x + bias - 1) / gamma))``.

    For gamma -> 0, J is ``max(gain x + bias - 1, 0)`` and this the rate of a LIF neuron times ``amplitude``; gamma
    makes its infinite slope at the threshold finite. Times in seconds, rates in Hz; with the defaults it is close to a
    ReLU from -1 to 10. In training, ``noise`` Hz of Gaussian noise (its standard deviation) is added to the rate where
    the neuron is above threshold and the result kept >= 0: so the network learns to bear the ripple of spikes. Noise is
    drawn from torch's generator, as that of ``nn.Dropout``.

    It becomes a :class:`~conversion_ext.neurons.RefractoryLIF` of the same constants with steps of 1 ms, whose spikes
    count ``amplitude / 1 ms``; no smoothing and no noise are left.

    Reference: Hunsberger, Eliasmith, arXiv:1510.08829 and arXiv:1611.05141; defaults from the authors' layers.
    """

    def __init__(
        self,
        amplitude: float = 0.063,
        tau_ref: float = 0.001,
        tau_rc: float = 0.05,
        gain: float = 0.825,
        bias: float = 1.0,
        gamma: float = 0.02,
        noise: float = 0.0,
    ) -> None:
        for name, value in {"amplitude": amplitude, "tau_rc": tau_rc, "gain": gain, "gamma": gamma}.items():
            require(0 < value < math.inf, f"SoftLIF({name}={value!r}): give a positive number.")
        require(
            STEP <= tau_ref < math.inf,
            f"SoftLIF(tau_ref={tau_ref!r}): a neuron sends one spike per step of 1 ms, so give {STEP} s or more.",
        )
        require(0 <= noise < math.inf, f"SoftLIF(noise={noise!r}): a standard deviation in Hz, 0 or more.")
        super().__init__()
        self.amplitude, self.tau_ref, self.tau_rc = amplitude, tau_ref, tau_rc
        self.gain, self.bias, self.gamma, self.noise = gain, bias, gamma, noise

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled rate, same shape."""
        y = (self.gain * x + self.bias - 1) / self.gamma
        # log J without underflow: far below threshold log(1 + exp(y)) = exp(y) to the last bit.
        low = y < -30.0
        log_j = math.log(self.gamma) + torch.where(low, y, F.softplus(y.masked_fill(low, 0.0)).log())
        rate = 1 / (self.tau_ref + self.tau_rc * F.softplus(-log_j))
        if self.training and self.noise:
            rate = torch.where(y > 0, rate + self.noise * torch.randn_like(rate), rate).clamp_min(0)
        return self.amplitude * rate

    @property
    def site_threshold(self) -> Tensor:
        """What one spike per step is worth."""
        return torch.tensor(self.amplitude / STEP)

    @property
    def site_neuron(self) -> Neuron:
        """The LIF neuron with these constants, in steps of 1 ms, its input in units of the threshold."""
        return RefractoryLIF(
            tau=self.tau_rc / STEP,
            refractory=self.tau_ref / STEP,
            gain=self.gain * self.amplitude / STEP,
            bias=self.bias,
        )

    def extra_repr(self) -> str:
        """Show the constants."""
        names = ("amplitude", "tau_ref", "tau_rc", "gain", "bias", "gamma", "noise")
        return ", ".join(f"{name}={getattr(self, name):.4g}" for name in names)
