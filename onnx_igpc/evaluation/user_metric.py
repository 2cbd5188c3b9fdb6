"""A user's own metric, named as ``module:attribute``, over both models' outputs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnx_igpc.errors import UsageError

Outputs = dict[str, np.ndarray]


class Metric:
    """A metric over a data set.

    The attribute is a function ``(outputs_original, outputs_candidate, labels)`` that returns a number
    or a dictionary of numbers: it is called batch by batch, and its values are averaged over the
    samples. What is no average over samples (mean average precision, IoU over a data set) is a class:
    one instance is made, its ``update`` takes the same arguments batch by batch, and its ``result()``
    returns the numbers. Outputs are dictionaries of arrays by output name, labels int64[samples] or
    None.

    Raises UsageError where the attribute cannot be imported, and where it fails or returns no numbers.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        target = _imported(name)
        self._metric = target() if isinstance(target, type) else None
        self._function = target
        self._sums: dict[str, float] = {}
        self._samples = 0

    def update(
        self, original: Outputs, candidate: Outputs, labels: np.ndarray | None, count: int
    ) -> None:
        """Add one batch of ``count`` samples."""
        try:
            if self._metric is not None:
                self._metric.update(original, candidate, labels)
                return
            values = self._numbers(self._function(original, candidate, labels))
        except UsageError:
            raise
        except Exception as error:  # it is the user's code: anything can come out of it
            raise UsageError(
                f"metric {self._name} failed: {type(error).__name__}: {error}"
            ) from error
        self._samples += count
        for key, value in values.items():
            self._sums[key] = self._sums.get(key, 0.0) + value * count

    def result(self) -> dict[str, float]:
        """The values over all batches."""
        if self._metric is not None:
            return self._numbers(self._metric.result())
        return {key: total / self._samples for key, total in self._sums.items()}

    def _numbers(self, value: Any) -> dict[str, float]:
        short = self._name.rpartition(":")[2]
        values = dict(value) if isinstance(value, Mapping) else {short: value}
        numbers: dict[str, float] = {}
        for key, number in values.items():
            array = np.asarray(number)
            if array.size != 1 or array.dtype.kind not in "fiub":
                raise UsageError(
                    f"metric {self._name} must return a number or a dictionary of numbers, "
                    f"not {type(number).__name__}"
                )
            numbers[str(key)] = float(array.reshape(()))
        return numbers


def _imported(name: str) -> Any:
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise UsageError(f"metric {name!r}: write it as module:function")
    folder = str(Path.cwd())
    sys.path.insert(0, folder)  # an installed command does not look where the user stands
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"metric {name!r} cannot be imported: {error}") from error
    finally:
        sys.path.remove(folder)
