"""Data by its name, and how it is read."""

from __future__ import annotations

import pytest

from onnx_igpc.data.dataset import Dataset
from onnx_igpc.errors import UsageError


def test_a_path_alone_is_a_dataset() -> None:
    given = Dataset("images/", samples=3)
    assert Dataset.of(given) is given
    assert Dataset.of("images/").source == "images/"
    assert Dataset.of(None).source is None


def test_no_samples() -> None:
    with pytest.raises(UsageError, match="samples must be at least 1, not 0"):
        Dataset("images/", samples=0)
