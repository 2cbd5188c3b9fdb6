"""onnxruntime's static quantization, called in one place: in bounded memory, and without its chatter."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnx_igpc.data.batches import Batch, Data
from onnx_igpc.errors import DataError, IgpcError, ModelError, first_line
from onnx_igpc.lowering.quantization.options import Method
from onnx_igpc.lowering.quantization.target import Target
from onnx_igpc.runtime.session import import_onnxruntime

PERCENTILE = 99.99
_WARNING, _FATAL = 2, 4  # of onnxruntime's log; the first is its default
# Probabilities of many classes need more than 256 levels.
_KEPT_IN_FLOAT = ("Softmax", "LogSoftmax")


class BatchReader:
    """Data as onnxruntime's calibrators read it, batch by batch: see ``CalibStridedMinMax`` below.

    A calibrator keeps what inner tensors hold for all that it reads in one go, so it is given one batch
    at a time. ``tell``: called with every batch's number.
    """

    def __init__(self, data: Iterable[Batch], batches: int, tell: Callable[[int], None]) -> None:
        self._data = data
        self._batches = batches
        self._tell = tell
        self._stream: Iterator[Batch] = iter(())
        self._ready: list[dict[str, np.ndarray]] = []

    def __len__(self) -> int:
        return self._batches

    def set_range(self, start_index: int, end_index: int) -> None:
        """Make the next batch ready; onnxruntime asks for them in order, from 0 on."""
        if start_index == 0:
            self._stream = iter(self._data)
        self._tell(start_index)
        self._ready = [batch.feeds for batch in (next(self._stream, None),) if batch is not None]

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The batch that is ready, once."""
        return self._ready.pop() if self._ready else None


def count_batches(data: Data) -> int:
    """How many batches data has, all of which are read once.

    Raises:
        DataError: there is no sample, or what the data raises.
    """
    count = sum(1 for _ in data)
    if not count:
        raise DataError(f"{data.describe().source}: no sample could be read")
    return count


def optimize(source: Path, target: Path, name: str) -> None:
    """What the quantizer asks for first: constants folded, shapes inferred.

    Raises:
        ModelError: it cannot be done; ``name`` is the model's.
    """
    with _quiet(name):
        from onnxruntime.quantization.shape_inference import quant_pre_process

        # Symbolic shapes are for transformers, and need sympy.
        quant_pre_process(source, target, skip_symbolic_shape=True)


def quantize_file(
    source: Path,
    target: Path,
    reader: BatchReader,
    method: Method,
    integers: Target,
    excluded: Mapping[str, str],
    name: str,
) -> None:
    """Quantize an optimized model file (QDQ, a scale for each channel of a weight).

    Raises:
        ModelError: onnxruntime cannot quantize it; ``name`` is the model's.
        DataError: what the data raises.
    """
    with _quiet(name):
        from onnxruntime.quantization import (
            CalibrationDataReader,
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quantize_static,
        )

        assert issubclass(BatchReader, CalibrationDataReader)
        methods = {
            "minmax": CalibrationMethod.MinMax,
            "percentile": CalibrationMethod.Percentile,
            "entropy": CalibrationMethod.Entropy,
        }
        activations = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}
        quantize_static(
            source,
            target,
            reader,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_operators(),
            per_channel=True,
            reduce_range=integers.reduce_range,
            activation_type=activations[integers.activations],
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(excluded),
            calibrate_method=methods[method],
            extra_options={
                "ActivationSymmetric": integers.symmetric,
                "CalibPercentile": PERCENTILE,
                # Batches read in one go, for every method in spite of its name.
                "CalibStridedMinMax": 1,
            },
        )


def _operators() -> Sequence[str]:
    """The operators that are quantized by default, but those that lose too much."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return sorted({*QDQRegistry, *QLinearOpsRegistry} - {*_KEPT_IN_FLOAT})


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Nothing on stdout or in the log, and any error of the quantizer as one of ours."""
    runtime = import_onnxruntime("quantizing a model")
    before: Any = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    # The sessions that it makes take what is set for all; it cannot be asked what that was.
    runtime.set_default_logger_severity(_FATAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except (IgpcError, MemoryError, OSError):
        raise
    except Exception as error:  # the quantizer raises whatever it meets
        raise ModelError(f"{name}: onnxruntime cannot quantize it: {first_line(error)}") from error
    finally:
        runtime.set_default_logger_severity(_WARNING)
        logging.disable(before)
