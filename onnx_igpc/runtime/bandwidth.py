"""How fast this machine moves a tensor through an operator that computes nothing to speak of.

Relu reads its input once and writes its output once. It is run by onnxruntime itself, with the same
provider and number of threads as the models, on tensors from what a core's own cache holds to what
only main memory does: what a convolution reads was written by the layer before, so that how fast it
comes depends on its size. The time of a run on a single number is taken off as what a run costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnx_igpc.runtime.racing import race, timed_run
from onnx_igpc.runtime.session import make_session

SIZES = (2**18, 2**20, 2**21, 2**22, 2**24, 2**26)
"""Bytes read and written together in one run."""

_ROUNDS = 15
_BYTES_PER_ELEMENT = 8  # a float32 read and one written
_OPSET = 17
_IR_VERSION = 8


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second, read and written together, at sizes in bytes, the smallest first."""

    sizes: tuple[int, ...]
    bytes_per_second: tuple[float, ...]

    def at(self, size: float) -> float:
        """The bandwidth for ``size`` bytes: between measured sizes on a line over their logarithms."""
        logs = [math.log(each) for each in self.sizes]
        return float(np.interp(math.log(max(size, 1.0)), logs, self.bytes_per_second))

    def seconds(self, size: int) -> float:
        """The time to move ``size`` bytes."""
        return size / self.at(size)


def measure_bandwidth(provider: str = "cpu", threads: int | None = None) -> Bandwidth:
    """Measure :data:`SIZES` on a provider: medians of interleaved rounds, a second or so in all.

    Raises as :func:`onnx_igpc.runtime.session.make_session`.
    """
    # A model's nodes follow each other while the threads are awake; here each is a run of its own.
    session = make_session(_relu(), provider, threads=threads, spinning=True)

    def runner(elements: int) -> Callable[[], object]:
        # Half of the numbers negative, as in a network.
        values = np.random.default_rng(0).standard_normal(elements, dtype=np.float32)
        return timed_run(session, {"x": values}, provider)

    elements = [1, *(size // _BYTES_PER_ELEMENT for size in SIZES)]
    medians = np.median(race([runner(count) for count in elements], rounds=_ROUNDS), axis=0)
    # A size whose time drowns in that of a run says nothing: at least a tenth of it counts.
    moved = np.maximum(medians[1:] - medians[0], medians[1:] / 10)
    rates = tuple(float(size / time) for size, time in zip(SIZES, moved, strict=True))
    return Bandwidth(SIZES, rates)


def _relu() -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], name="relu")],
        "bandwidth",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    opset = helper.make_opsetid("", _OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)
