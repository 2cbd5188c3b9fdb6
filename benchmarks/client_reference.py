"""What a client's results are compared with: inputs, and what onnxruntime computes from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from benchmarks.client_runners import Feeds, save_feeds
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.data.random_inputs import random_inputs
from onnx_igpc.data.sources import open_data
from onnx_igpc.runtime.session import make_session, run_session, session_inputs

BATCHES = 8
"""The first is compared; quantization calibrates on all of them."""
# Largest difference of an output, as a part of its largest value. Layers are summed in another order.
TOLERANCE = 1e-3
TOLERANCE_HALF = 3e-2
# Models that are quantized already: values that a client rounds the other way are a step apart.
TOLERANCE_QUANTIZED = 0.1


@dataclass(frozen=True)
class Reference:
    """A model's inputs and what onnxruntime computes from the first of them, on disk for the clients."""

    model: Path
    batches: list[Feeds]
    outputs: Feeds
    feeds_file: Path

    @classmethod
    def make(
        cls,
        model: Path,
        folder: Path,
        data: Path | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> Reference:
        """Take inputs for a model from ``data``, or draw seeded ones, and run it on the first.

        There are 8 of them, of one sample where the model allows it, for the tools that calibrate.
        Raises ModelError where onnxruntime cannot run the model, DataError where data does not fit.
        """
        session = make_session(model, threads=1)
        inputs = session_inputs(session)
        if data is None:
            batches = [random_inputs(inputs, seed=seed) for seed in range(BATCHES)]
        else:
            opened = open_data(data, inputs, preprocessing, samples=BATCHES, batch_size=1)
            batches = [batch.feeds for batch in opened]
        outputs = run_session(session, batches[0])
        file = folder / f"{model.stem}.feeds.npz"
        save_feeds(file, batches, list(outputs))
        return cls(model, batches, outputs, file)

    @property
    def nodes(self) -> np.ndarray:
        """How many nodes a picture of the main graph shows: constants are parts of their readers."""
        graph = onnx.load(self.model, load_external_data=False).graph
        return np.array(sum(node.op_type != "Constant" for node in graph.node))

    @property
    def tolerance(self) -> float:
        """By how much of its largest value an output may differ, after the model's types."""
        graph = onnx.load(self.model, load_external_data=False).graph
        if any(node.op_type == "DequantizeLinear" for node in graph.node):
            return TOLERANCE_QUANTIZED
        half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.initializer)
        return TOLERANCE_HALF if half else TOLERANCE
