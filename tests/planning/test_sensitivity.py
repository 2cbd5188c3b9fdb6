"""The damage of one rewritten site, measured on data, against running the changed model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx_igpc.calibration.graph_cuts import DenseWeight
from onnx_igpc.data.batches import random_data
from onnx_igpc.evaluation.differences import kl_divergence
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.view import GraphView
from onnx_igpc.planning.sensitivity import DamageProbe
from onnx_igpc.sites.find import Rewritable, find_sites
from tests.helpers import run


def classifier(bias: bool = True) -> onnx.ModelProto:
    """Two pointwise layers, pooled into five class scores."""
    generator = np.random.default_rng(3)

    def constant(name: str, *shape: int) -> onnx.TensorProto:
        values = generator.standard_normal(shape).astype(np.float32)
        return onnx.numpy_helper.from_array(values, name)

    def node(op: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
        return onnx.helper.make_node(op, inputs, [output], name=output, **attributes)

    nodes = [
        node("Conv", ["x", "w1", *(["b1"] if bias else [])], "a"),
        node("Relu", ["a"], "r"),
        node("Conv", ["r", "w2"], "c"),
        node("Relu", ["c"], "d"),
        node("GlobalAveragePool", ["d"], "p"),
        node("Flatten", ["p"], "scores"),
    ]
    weights = [constant("w1", 12, 8, 1, 1), constant("w2", 5, 12, 1, 1)]
    weights += [constant("b1", 12)] if bias else []
    graph = onnx.helper.make_graph(
        nodes,
        "classifier",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 8, 4, 4])],
        [onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["n", 5])],
        weights,
    )
    imports = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)


def probe_of(model: onnx.ModelProto) -> tuple[DamageProbe, list[Rewritable]]:
    opened = OpenModel(model)
    sites = find_sites(GraphView(opened)).rewritable
    data = random_data(model_inputs(model), samples=20, batch_size=8)
    return DamageProbe(opened, sites, [data], samples=12), sites


def damage(
    probe: DamageProbe, site: Rewritable, matrix: np.ndarray, bias: np.ndarray | None
) -> float:
    """Of one site that computes another matrix."""
    return probe.changing([site.name]).damage([{site.name: DenseWeight(matrix, bias)}]).value


def test_the_dense_layer_does_no_damage() -> None:
    probe, sites = probe_of(classifier())
    assert probe.samples == 12
    assert probe.measure == "KL divergence, nats"
    for site in sites:
        bias = site.bias.values() if site.bias else None
        assert damage(probe, site, site.weight_matrix(), bias) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("bias", [True, False])
def test_the_damage_is_that_of_the_changed_model(bias: bool) -> None:
    model = classifier(bias)
    probe, sites = probe_of(model)
    matrix = sites[0].weight_matrix() * 0.5
    offset = np.linspace(-1, 1, 12).astype(np.float32)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.initializer[:]
    for tensor in model.graph.initializer:
        if tensor.name == "w1":
            tensor = onnx.numpy_helper.from_array(matrix.reshape(12, 8, 1, 1), "w1")
        if tensor.name != "b1":
            changed.graph.initializer.append(tensor)
    changed.graph.initializer.append(onnx.numpy_helper.from_array(offset, "b1"))
    changed.graph.node[0].input[:] = ["x", "w1", "b1"]
    data = random_data(model_inputs(model), samples=20, batch_size=8)
    x = np.concatenate([batch.feeds["x"] for batch in data])[:12]
    before, after = run(model, {"x": x}), run(changed, {"x": x})
    expected = kl_divergence(before["scores"], after["scores"])
    assert expected > 1e-3
    assert damage(probe, sites[0], matrix, offset) == pytest.approx(expected, rel=1e-4)


def test_the_model_is_not_changed() -> None:
    model = classifier()
    before = model.SerializeToString()
    probe_of(model)
    assert model.SerializeToString() == before


def test_kl_of_scores_equals_kl_of_probabilities() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((2, 6, 4))
    p, q = (np.exp(each) / np.exp(each).sum(axis=1, keepdims=True) for each in (a, b))
    expected = float(np.mean(np.sum(p * np.log(p / q), axis=1)))
    assert kl_divergence(a, b) == pytest.approx(expected)
    assert kl_divergence(p, q) == pytest.approx(expected)
    assert kl_divergence(a, a) == 0.0


@pytest.mark.parametrize("end", ["ArgMax", "Sqrt"])
def test_outputs_that_no_difference_can_be_taken_of(end: str) -> None:
    """Class numbers say nothing of how much changed, and NaN nothing at all: neither counts as no damage."""
    model = classifier()
    model.graph.node.append(onnx.helper.make_node(end, ["scores"], ["best"]))
    kind = onnx.TensorProto.INT64 if end == "ArgMax" else onnx.TensorProto.FLOAT
    shape = ["k", 5] if end == "ArgMax" else ["n", 5]
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("best", kind, shape))
    probe, sites = probe_of(model)
    site = sites[0]
    matrix = site.weight_matrix().astype(np.float64)
    bias = site.bias.values() if site.bias is not None else None
    assert damage(probe, site, matrix, bias) == pytest.approx(0.0, abs=1e-9)
    assert 1e-3 < damage(probe, site, 0.5 * matrix, bias) < 1e3
    if end == "Sqrt":
        assert damage(probe, site, np.nan * matrix, bias) == 1e6
