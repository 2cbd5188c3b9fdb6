"""Which kernels run a quantized model's layers, by onnxruntime's profile."""

from __future__ import annotations

from pathlib import Path

from onnx_igpc.data.random_inputs import random_inputs
from onnx_igpc.evaluation.contenders import Contender, batched
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.graph.model import open_model
from onnx_igpc.runtime.setting import Setting


def ran(model: Path, setting: Setting) -> tuple[dict[str, int], str]:
    """How many layers each operator of the runtime ran, and which provider ran the nodes.

    Raises:
        ModelError: the model cannot be run.
        CheckFailedError: the provider is not there, or ran none of the nodes.
    """
    inputs = model_inputs(open_model(model).proto)
    shapes = batched(setting.shapes, setting.batch)
    feeds = random_inputs(inputs, batch=setting.batch, shapes=shapes)
    profile = Contender(str(model)).profile(setting.provider, setting.threads, feeds, runs=1)
    return profile.layers(), profile.describe()
