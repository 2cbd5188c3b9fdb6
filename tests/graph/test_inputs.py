"""Input descriptions, shapes and random values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnx_igpc.cli.options import parse_shape, parse_shapes
from onnx_igpc.data.random_inputs import random_inputs
from onnx_igpc.errors import ModelError, UsageError
from onnx_igpc.graph.inputs import (
    InputSpec,
    model_inputs,
    resolve_shapes,
)
from onnx_igpc.runtime.session import make_session, session_inputs
from tests import runtime_graphs as graphs

FLOAT = np.dtype(np.float32)


@pytest.mark.parametrize(
    "dims", [("batch", 3, 8, 8), (1, 3, 8, 8), (None, 3, None, "w"), (-1, 3, 4, 4)]
)
def test_model_and_session_describe_the_same_inputs(dims: tuple[int | str | None, ...]) -> None:
    model = graphs.classifier(dims=dims)
    model.graph.input.append(helper.make_tensor_value_info("w", 1, [5, 3, 1, 1]))
    specs = model_inputs(model)
    assert specs == session_inputs(make_session(model))
    assert [spec.name for spec in specs] == ["x"]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (("n", 3, "h", "w"), (4, 3, 224, 224)),
        (("n", None, None, None), (4, 3, 224, 224)),
        ((None, None, None, 3), (4, 224, 224, 3)),
        ((2, 3, 5, 7), (2, 3, 5, 7)),
        (("n", "length"), (4, 1)),
        (("n", "length", 64), (4, 224, 64)),
        ((), ()),
    ],
)
def test_dynamic_dimensions_get_a_sensible_size(
    shape: tuple[int | str | None, ...], expected: tuple[int, ...]
) -> None:
    assert resolve_shapes([InputSpec("x", FLOAT, shape)], batch=4) == {"x": expected}


def test_one_symbol_has_one_value() -> None:
    inputs = [
        InputSpec("mask", FLOAT, ("n", "h", "w", 1)),
        InputSpec("image", FLOAT, ("n", 3, "h", "w")),
    ]
    resolved = resolve_shapes(inputs, shapes={"image": (2, 3, 64, 96)})
    assert resolved == {"mask": (2, 64, 96, 1), "image": (2, 3, 64, 96)}
    assert list(resolved) == ["mask", "image"]


def test_shape_option() -> None:
    assert parse_shape("model/input:0:1,3,224,224") == ("model/input:0", (1, 3, 224, 224))
    assert parse_shapes(["a:1", "b:2,3"]) == {"a": (1,), "b": (2, 3)}
    for text in ("1,3", "x:", "x:1,a", "x:0,3", ":1,3"):
        with pytest.raises(UsageError, match="name:1,3,224,224"):
            parse_shape(text)
    spec = InputSpec("x", FLOAT, ("n", 3))
    with pytest.raises(UsageError, match=r"x:1,4 does not fit x float32\[n, 3\]"):
        resolve_shapes([spec], shapes={"x": (1, 4)})
    with pytest.raises(UsageError, match="no input 'y'"):
        resolve_shapes([spec], shapes={"y": (1, 4)})


@given(
    dtype=st.sampled_from(["f2", "f4", "f8", "i1", "u1", "i4", "i8", "?"]),
    seed=st.integers(0, 2**32),
)
def test_random_values_are_seeded_and_in_range(dtype: str, seed: int) -> None:
    spec = InputSpec("x", np.dtype(dtype), ("n", 50))
    first, second = (random_inputs([spec], batch=3, seed=seed)["x"] for _ in range(2))
    assert first.dtype == np.dtype(dtype)
    assert first.shape == (3, 50)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, random_inputs([spec], batch=3, seed=seed + 1)["x"])
    if dtype in ("i4", "i8"):
        assert set(np.unique(first)) <= {0, 1}


def test_string_input_is_refused() -> None:
    model = graphs.identity(elem_type=TensorProto.STRING)
    with pytest.raises(ModelError, match="'x' has type"):
        model_inputs(model)
