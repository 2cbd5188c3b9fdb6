"""The mean of the weights that the stages of a training ended with.

Networks that a raised learning rate led apart and back lie around a minimum, and their mean nearer to it than
any of them (Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018,
arXiv:1803.05407). The statistics of BatchNormalization are averaged with the weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper


def averaged(models: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """A copy of the first model whose float32 initializers are the mean of all models' of that name."""
    result = onnx.ModelProto()
    result.CopyFrom(models[0])
    arrays = [{t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in models]
    for tensor in result.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            mean = np.mean([each[tensor.name] for each in arrays], axis=0, dtype=np.float64)
            tensor.CopyFrom(numpy_helper.from_array(mean.astype(np.float32), tensor.name))
    return result
