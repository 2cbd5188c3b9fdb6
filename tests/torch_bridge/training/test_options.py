"""The options of a run."""

from __future__ import annotations

import pytest

from onnx_igpc.errors import UsageError
from onnx_igpc.torch_bridge.training.options import Run


def test_runs_that_cannot_be_meant() -> None:
    with pytest.raises(UsageError, match="at least 0, not -1"):
        Run(workers=-1)
    with pytest.raises(UsageError, match="give one"):
        Run(resume=True, restart=True)
