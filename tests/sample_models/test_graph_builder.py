"""Layers of the graph builder against their definitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

from sample_models.geometry import Feature, Pads, same_pads
from sample_models.graph_builder import Activation, GraphBuilder
from sample_models.initializers import Fans, glorot_uniform, he_normal, variance_scaling
from sample_models.rounding import round_channels

Values = npt.NDArray[np.floating[Any]]


def evaluate(graph: GraphBuilder, result: Feature, image: Values) -> Values:
    """Runs the graph up to ``result`` for one image (channels, height, width); flat values."""
    model = graph.finish(graph.flatten(result, "out"))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = session.run(None, {"input": image[None].astype(np.float32)})[0]
    flat: Values = np.asarray(values)[0]
    return flat


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [
        (224, 3, 2, Pads(0, 0, 1, 1)),
        (224, 5, 2, Pads(1, 1, 2, 2)),
        (31, 3, 2, Pads(1, 1, 1, 1)),
        (8, 3, 1, Pads(1, 1, 1, 1)),
        (8, 1, 1, Pads(0, 0, 0, 0)),
        (8, 1, 2, Pads(0, 0, 0, 0)),
    ],
)
def test_same_pads_are_those_of_tensorflow(
    size: int, kernel: int, stride: int, expected: Pads
) -> None:
    assert same_pads((size, size), (kernel, kernel), stride) == expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("linear", lambda x: x),
        ("relu", lambda x: np.maximum(x, 0)),
        ("relu6", lambda x: np.clip(x, 0, 6)),
        ("swish", lambda x: x / (1 + np.exp(-x))),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
        ("hard_sigmoid", lambda x: np.clip(x + 3, 0, 6) / 6),
        ("hard_swish", lambda x: x * np.clip(x + 3, 0, 6) / 6),
    ],
)
def test_activations(kind: Activation, expected: Callable[[Values], Values]) -> None:
    image = np.linspace(-8, 8, 25).reshape(1, 5, 5)
    graph = GraphBuilder("g", (5, 5), channels=1)
    values = evaluate(graph, graph.activation(graph.image, kind, "act"), image)
    np.testing.assert_allclose(values, expected(image).ravel(), rtol=1e-5, atol=1e-6)


def test_interleave_takes_every_nth_channel() -> None:
    graph = GraphBuilder("g", (1, 1), channels=7)
    values = evaluate(
        graph, graph.interleave(graph.image, 3, "mix"), np.arange(7.0).reshape(7, 1, 1)
    )
    assert values.tolist() == [0, 3, 6, 1, 4, 2, 5]


def test_average_pool_leaves_padding_out_of_the_mean() -> None:
    graph = GraphBuilder("g", (3, 3), channels=1)
    pooled = graph.average_pool(graph.image, 3, 1, "pool", padding="same")
    np.testing.assert_allclose(evaluate(graph, pooled, np.ones((1, 3, 3))), np.ones(9))


def test_weights_have_the_variance_that_was_asked_for() -> None:
    generator = np.random.default_rng(0)
    shape, fans = (256, 128, 3, 3), Fans(fan_in=128 * 9, fan_out=256 * 9)
    for initializer, variance in (
        (glorot_uniform, 2 / (fans.fan_in + fans.fan_out)),
        (he_normal, 2 / fans.fan_in),
        (variance_scaling(2.0, "fan_out", "truncated_normal"), 2 / fans.fan_out),
        (variance_scaling(1 / 3, "fan_out", "uniform"), 1 / 3 / fans.fan_out),
    ):
        weight = initializer(generator, shape, fans)
        assert weight.shape == shape
        assert weight.dtype == np.float32
        assert weight.var() == pytest.approx(variance, rel=0.02)
        assert abs(weight.mean()) < 0.01 * weight.std()


def test_truncated_normal_has_no_tail() -> None:
    weight = he_normal(np.random.default_rng(0), (100_000,), Fans(2, 2))
    assert np.abs(weight).max() <= 2 / 0.8796 + 1e-3


@pytest.mark.parametrize(
    ("channels", "rounded"), [(1, 8), (11.9, 16), (12, 16), (19.2, 24), (18, 24), (100, 104)]
)
def test_round_channels_never_takes_more_than_a_tenth(channels: float, rounded: int) -> None:
    assert round_channels(channels) == rounded
    assert rounded % 8 == 0
    assert rounded >= 0.9 * channels
