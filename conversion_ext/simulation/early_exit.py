"""Let go of samples whose decision is safe: the batch shrinks, and with it the work."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.readouts.confidence import Confidence
from conversion_ext.simulation.decoder import Decoder
from conversion_ext.simulation.engine import Engine
from conversion_ext.simulation.recorder import Recorder

__all__ = ["run_until_safe"]

# Where no more of a batch still wait for their decision, the others are dropped: that copies states and runs the
# prologue, about as much work as a step.
SPARSE = 0.75


def run_until_safe(
    engine: Engine, inputs: tuple[Any, ...], T: int, recorder: Recorder, decoder: Decoder, rule: Confidence
) -> tuple[Tensor, Tensor]:
    """Return the output [N, classes] at which each sample exited, and after how many steps [N].

    Results per sample equal those of a run without early exit. Finished samples are removed from the batch (inputs,
    neuron states, readout) once they make up at least 25 % of it. The network is reset in the end, since its samples
    stand at different times.
    """
    N = len(inputs[0])
    rows = torch.arange(N, device=inputs[0].device)
    steps, outputs, waiting = torch.full_like(rows, T), torch.empty(0), torch.ones_like(rows, dtype=torch.bool)
    with engine.running(recorder.counts):
        static = engine.prologue(*inputs)
        for t in range(0, T, rule.every):
            K = min(rule.every, T - t)
            output = engine.advance(static, K)
            require(
                isinstance(output, Tensor) and output.dim() == 2 and output.shape[1] > 1,
                "exit= looks at class scores [N, classes], and this network has another output; simulate it in full.",
            )
            for _ in decoder.steps(output, K):
                pass
            (decoded,) = decoder.decode()
            (done,) = torch.where(waiting & (rule.done(decoded, t + K) | (t + K == T)))
            outputs = outputs if len(outputs) else torch.empty_like(decoded)
            if not len(done):
                continue
            outputs[rows[done]], steps[rows[done]], waiting[done] = decoded[done], t + K, False
            recorder.settle(done, rows[done], N)
            (on,) = torch.where(waiting)
            if not len(on):
                break
            if len(on) <= SPARSE * len(rows):
                decoder.keep(on)
                recorder.keep(on)
                engine.state.select(on, len(rows))
                rows, waiting = rows[on], waiting[on]
                inputs = tuple(v[on] if isinstance(v, Tensor) else v for v in inputs)
                static = engine.prologue(*inputs)
    engine.state.reset()
    return outputs.clone(), steps.clone()
