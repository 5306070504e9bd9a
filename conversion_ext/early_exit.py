"""Let go of samples whose decision is stable: the batch shrinks, and with it the work."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from conversion_ext.confidence import Confidence
from conversion_ext.engine import Decoder, Engine
from conversion_ext.errors import require
from conversion_ext.recorder import Recorder

__all__ = ["run_until_sure"]


def run_until_sure(
    engine: Engine, inputs: tuple[Any, ...], T: int, recorder: Recorder, decoder: Decoder, rule: Confidence
) -> tuple[Tensor, Tensor]:
    """Return the output [N, classes] with which each sample was let go, and after how many steps [N].

    What goes on is what would have gone on alone: states, readout and inputs of the other samples are dropped. The
    network is reset in the end, since its samples stand at different times.
    """
    N = len(inputs[0])
    rows = torch.arange(N, device=inputs[0].device)
    steps, outputs = torch.full_like(rows, T), torch.empty(0)
    memory = rule.begin(N, rows.device)
    with engine.running():
        static = engine.prologue(*inputs)
        for t in range(0, T, rule.every):
            K = min(rule.every, T - t)
            output = engine.advance(static, K)
            require(
                isinstance(output, Tensor) and output.dim() == 2,
                "exit= looks at class scores [N, classes], and this network has another output; simulate it in full.",
            )
            for _ in decoder.steps(output, K):
                pass
            (decoded,) = decoder.decode()
            memory = rule.look(memory, decoded)
            done = (memory[0] >= rule.stable) | (t + K == T)
            outputs = outputs if len(outputs) else decoded.new_empty(N, decoded.shape[1])
            outputs[rows[done]], steps[rows[done]] = decoded[done], t + K
            if done.any():
                recorder.settle(rows, N)
                (on,) = torch.where(~done)
                if not len(on):
                    break
                rows, memory = rows[on], (memory[0][on], memory[1][on])
                decoder.keep(on)
                engine.memories.keep(on)
                inputs = tuple(v[on] if isinstance(v, Tensor) else v for v in inputs)
                static = engine.prologue(*inputs)
    engine.memories.reset()
    return outputs.clone(), steps.clone()
