"""Turn trained PyTorch networks into spiking ones, inside SpikingJelly and snnTorch.

```python
import conversion_ext as cx

snn = cx.convert(ann, calibration_batches, T=4)  # modules of SpikingJelly, or with backend="snntorch" of snnTorch
run = cx.simulate(snn, images, T=4)              # run.output [N, classes]: the mean over the steps
print(cx.evaluate(snn, test_loader, T=4, ann=ann))
```

In the order of a project: `check` tells what cannot be converted, `convert` converts, `simulate` and `evaluate` run,
`forecast` tells the accuracy that more steps would give, `diagnose` what is lost and where, `tune` finds the best
network within a latency, `finetune` trains on with surrogate gradients, `synops` counts operations, `save` and `load`
keep the result. A `Recipe` holds the choices of a conversion: neurons (`neurons`), thresholds (`normalizers`),
corrections (`tuners`), input and output (`encoders`, `readouts`). `python -m conversion_ext methods` lists everything
that is registered, and `register_recipe` and its like add to it.
"""

from __future__ import annotations

from conversion_ext import (
    analysis,
    backends,
    encoders,
    errors,
    neurons,
    nn,
    normalizers,
    readouts,
    recipes,
    training,
    tuners,
)
from conversion_ext.analysis.diagnosis import Diagnosis as Diagnosis
from conversion_ext.analysis.diagnosis import diagnose
from conversion_ext.analysis.evaluation import Evaluation, evaluate
from conversion_ext.analysis.operations import OperationCount as OperationCount
from conversion_ext.analysis.synaptic_operations import synops
from conversion_ext.analysis.tuning import TuneResult as TuneResult
from conversion_ext.analysis.tuning import tune
from conversion_ext.analysis.twins import Forecast as Forecast
from conversion_ext.analysis.twins import forecast, twin
from conversion_ext.backends.base import register_backend
from conversion_ext.capture.passes.base import register_pass
from conversion_ext.conversion.pipeline import convert
from conversion_ext.errors import CalibrationError, ConversionError, Problem, UnsupportedError
from conversion_ext.exchange import from_nir, load, save, to_nir
from conversion_ext.exchange.checks import check
from conversion_ext.network.state import reset
from conversion_ext.network.table import Conversion
from conversion_ext.neurons import IF, SignedIF
from conversion_ext.normalizers import Maximum, MeanSquaredError, Percentile
from conversion_ext.normalizers.base import register_normalizer
from conversion_ext.operators.base import register_operator
from conversion_ext.readouts.confidence import Confidence as Confidence
from conversion_ext.recipes import register_recipe
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.simulation.simulation import Simulation, simulate
from conversion_ext.training.finetuning import FinetuneResult as FinetuneResult
from conversion_ext.training.finetuning import finetune
from conversion_ext.tuners import BiasCorrection, WeightCompensation, register_tuner
from conversion_ext.types import PerChannel, PerLayer, Reset

__all__ = [
    "IF",
    "BiasCorrection",
    "CalibrationError",
    "Conversion",
    "ConversionError",
    "Evaluation",
    "Maximum",
    "MeanSquaredError",
    "PerChannel",
    "PerLayer",
    "Percentile",
    "Problem",
    "Recipe",
    "Reset",
    "SignedIF",
    "Simulation",
    "UnsupportedError",
    "WeightCompensation",
    "analysis",
    "backends",
    "check",
    "convert",
    "diagnose",
    "encoders",
    "errors",
    "evaluate",
    "finetune",
    "forecast",
    "from_nir",
    "load",
    "neurons",
    "nn",
    "normalizers",
    "readouts",
    "recipes",
    "register_backend",
    "register_normalizer",
    "register_operator",
    "register_pass",
    "register_recipe",
    "register_tuner",
    "reset",
    "save",
    "simulate",
    "synops",
    "to_nir",
    "training",
    "tune",
    "tuners",
    "twin",
]
__version__ = "0.1.0"
