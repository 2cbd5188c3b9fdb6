"""Fisher information matrices of sites, against exact ones and against the same model written otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from onnx_igpc.calibration.graph_cuts import DenseWeight
from onnx_igpc.data.batches import random_data
from onnx_igpc.data.sources import as_data
from onnx_igpc.errors import DataError, ModelError
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.view import GraphView
from onnx_igpc.planning.sensitivity import DamageProbe
from onnx_igpc.sites.find import SiteFilter, find_sites
from onnx_igpc.torch_bridge.fisher import site_fisher
from tests.helpers import GraphBuilder, run

SIDE = 3


def classifier(
    dtype: type[np.generic] = np.float32,
    *,
    batch: int | str = "n",
    shared: bool = False,
    batch_norm: bool = False,
    ending: Sequence[str] = (),
) -> onnx.ModelProto:
    """x -> 1x1 Conv ``a`` [-> BatchNorm] -> Relu -> 1x1 Conv ``b`` -> Relu -> pooled into 6 scores."""
    builder = GraphBuilder(dtype=dtype, seed=3)
    builder.input("x", [batch, 6, SIDE, SIDE])
    a = builder.conv("x", "a", 6, 6, bias=True)
    if batch_norm:
        a = builder.batch_norm(a, "bn", 6)
    value = builder.add("Relu", [a], "ra")
    if not shared:
        builder.initializer("b_w", builder.random(6, 6, 1, 1))
    value = builder.add("Conv", [value, "a_w" if shared else "b_w"], "b")
    value = builder.add("Relu", [value], "rb")
    value = builder.add("GlobalAveragePool", [value], "p")
    value = builder.add("Flatten", [value], "flat")
    value = builder.add("Mul", [value, builder.initializer("four", np.array(4, dtype))], "scores")
    for op_type in ending:
        value = builder.add(op_type, [value], op_type.lower())
    builder.output(value, [batch, 6])
    return builder.model()


def samples(count: int, dtype: type[np.generic] = np.float32, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((count, 6, SIDE, SIDE)).astype(dtype)


def fisher(
    model: onnx.ModelProto, x: np.ndarray, *, batch_size: int = 16, seed: int = 0
) -> dict[str, np.ndarray]:
    data = as_data({"x": x}, model_inputs(model), batch_size=batch_size)
    opened = OpenModel(model)
    sites = find_sites(GraphView(opened), SiteFilter(include_heads=True)).rewritable
    return site_fisher(opened, sites, data, samples=len(x), seed=seed)


def assert_alike(ours: np.ndarray, theirs: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max())


def with_outputs(model: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return copy


def exact_of_b(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """E sum over positions of J^T (diag(p) - p p^T) J, J = dscores/db = 4 relu'(b) / positions."""
    found = run(with_outputs(model, "b", "scores"), {"x": x})
    exponents = np.exp(found["scores"].astype(np.float64))
    p = exponents / exponents.sum(axis=1, keepdims=True)
    slopes = (found["b"] > 0).reshape(len(x), 6, -1) * (4 / SIDE**2)
    middle = np.einsum("nf,fg->nfg", p, np.eye(6)) - np.einsum("nf,ng->nfg", p, p)
    return np.einsum("nfp,nfg,ngp->fg", slopes, middle, slopes) / len(x)


@pytest.mark.parametrize("ending", [(), ("Softmax",), ("LogSoftmax",)])
def test_it_is_the_fisher_information_of_the_classes(ending: Sequence[str]) -> None:
    """Logits, probabilities and their logarithms are one distribution."""
    model, x = classifier(ending=ending), samples(1600)
    found = fisher(model, x)
    assert set(found) == {"a_node", "b_node"}
    for G in found.values():
        assert G.shape == (6, 6)
        assert G.dtype == np.float64
        assert_alike(G, G.T, 1e-12)
        assert np.linalg.eigvalsh(G).min() > -1e-9
    assert_alike(found["b_node"], exact_of_b(model, x), 0.06)


def test_half_the_trace_is_the_damage_of_a_small_change() -> None:
    """Where there is one position, and the change is made to the bias: nothing is left but the second order."""
    model = classifier()
    x = np.repeat(np.repeat(samples(600)[:, :, :1, :1], SIDE, 2), SIDE, 3)
    G = fisher(model, x)["a_node"] * SIDE**2  # all positions move as one
    opened = OpenModel(model)
    sites = find_sites(GraphView(opened)).rewritable
    data = as_data({"x": x}, model_inputs(model), batch_size=100)
    probe = DamageProbe(opened, sites, [data], samples=600)
    step = 0.05 * np.random.default_rng(1).standard_normal(6)
    bias = sites[0].bias.values() + step
    changed = {sites[0].name: DenseWeight(sites[0].weight_matrix(), bias)}
    measured = probe.changing(changed).damage([changed]).value
    assert measured == pytest.approx(step @ G @ step / 2, rel=0.15)


@pytest.mark.parametrize("batch_size", [1, 5, 16])
def test_the_batches_do_not_matter(batch_size: int) -> None:
    x = samples(21)
    known, found = fisher(classifier(), x), fisher(classifier(), x, batch_size=batch_size)
    for name, G in known.items():
        assert_alike(found[name], G)


@pytest.mark.parametrize("scores", [True, False])
def test_rows_that_fill_up_a_fixed_batch_do_not_count(scores: bool) -> None:
    x = samples(6)
    model = classifier() if scores else scaled_values()[0]
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in (fixed.graph.input[0], fixed.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    found = fisher(fixed, x)
    for name, G in fisher(model, x).items():
        assert_alike(found[name], G)


def test_a_shared_weight_has_a_matrix_at_each_place() -> None:
    model = classifier(shared=True)
    apart = onnx.ModelProto()
    apart.CopyFrom(model)
    weight = next(each for each in model.graph.initializer if each.name == "a_w")
    apart.graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(weight), "own"))
    next(node for node in apart.graph.node if node.output[0] == "b").input[1] = "own"
    x = samples(12)
    known, found = fisher(apart, x), fisher(model, x)
    for name, G in known.items():
        assert_alike(found[name], G)
    assert np.abs(found["a_node"] - found["b_node"]).max() > 0.1 * np.abs(found["a_node"]).max()


def test_batch_normalization_uses_its_statistics() -> None:
    """The same as with the factor and the offset in the convolution, but for the factor."""
    model = classifier(batch_norm=True)
    stored = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    factor = stored["bn_scale"] / np.sqrt(stored["bn_var"] + 1e-5)
    folded = classifier()
    for tensor in folded.graph.initializer:
        values = stored[tensor.name]
        if tensor.name == "a_w":
            values = values * factor[:, None, None, None]
        if tensor.name == "a_b":
            values = (values - stored["bn_mean"]) * factor + stored["bn_shift"]
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    x = samples(12)
    found, known = fisher(model, x)["a_node"], fisher(folded, x)["a_node"]
    assert_alike(found, known * np.outer(factor, factor), 1e-4)


def test_half_precision_is_computed_in_single() -> None:
    """The same as of a model whose weights and data are rounded."""
    half, x = classifier(np.float16), samples(12, np.float16)
    rounded = classifier()
    for tensor, stored in zip(rounded.graph.initializer, half.graph.initializer, strict=True):
        values = numpy_helper.to_array(stored).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    found = fisher(half, x)
    for name, G in fisher(rounded, x.astype(np.float32)).items():
        assert found[name].dtype == np.float64
        assert_alike(found[name], G)


def scaled_values(*endings: str) -> tuple[onnx.ModelProto, np.ndarray]:
    """x -> 1x1 Conv ``a`` -> times a factor for each filter -> y, or what ``endings`` make of it."""
    builder = GraphBuilder(seed=5)
    builder.input("x", ["n", 6, "h", "w"])
    value = builder.conv("x", "a", 6, 6)
    factor = np.linspace(0.5, 2.0, 6).astype(np.float32)
    value = builder.add("Mul", [value, builder.initializer("f", factor.reshape(1, 6, 1, 1))], "y")
    if not endings:
        builder.output("y", ["n", 6, "h", "w"])
    for op_type in endings:
        kind = TensorProto.INT64 if op_type == "ArgMax" else 0
        attributes = {"axis": 1} if op_type == "ArgMax" else {}
        builder.add(op_type, [value], op_type.lower(), **attributes)
        builder.output(op_type.lower(), None, kind)
    return builder.model(), factor


def test_without_class_scores_outputs_count_by_their_relative_error() -> None:
    model, factor = scaled_values()
    x = samples(400)
    G = fisher(model, x)["a_node"]
    y = run(model, {"x": x})["y"].astype(np.float64)
    # J is diagonal, and random signs are exact there.
    power = np.sum(y**2) / len(x)
    np.testing.assert_allclose(np.diagonal(G), 2 * factor**2 * SIDE**2 / power, rtol=1e-4)
    assert_alike(G, np.diag(np.diagonal(G)), 0.1)
    opened = OpenModel(model)
    sites = find_sites(GraphView(opened), SiteFilter(include_heads=True)).rewritable
    data = as_data({"x": x}, model_inputs(model), batch_size=100)
    probe = DamageProbe(opened, sites, [data], samples=400)
    change = 0.1 * np.random.default_rng(0).standard_normal((6, 6))
    S = np.einsum("nchw,ndhw->cd", x, x) / (len(x) * SIDE**2)
    changed = {sites[0].name: DenseWeight(sites[0].weight_matrix() + change, None)}
    measured = probe.changing(changed).damage([changed]).value
    assert measured == pytest.approx(np.trace(G @ change @ S @ change.T) / 2, rel=0.05)


def test_every_output_counts_alike_whatever_its_unit() -> None:
    """Two outputs, one of them a thousand times the other: each brings half."""
    both, _ = scaled_values("Identity", "Neg")
    thousand = numpy_helper.from_array(np.array(1000, np.float32), "thousand")
    both.graph.initializer.append(thousand)
    node = next(node for node in both.graph.node if node.op_type == "Neg")
    node.op_type = "Mul"
    node.input.append("thousand")
    x = samples(30)
    one = np.diagonal(fisher(scaled_values()[0], x)["a_node"])
    # Signs of one value may cancel or add up: on average they do neither.
    np.testing.assert_allclose(np.diagonal(fisher(both, x)["a_node"]), one, rtol=0.2)


def test_outputs_that_number_classes_say_nothing() -> None:
    """Beside values they are left out; alone, the site's own output stands in for them."""
    x = samples(9)
    known = fisher(scaled_values()[0], x)["a_node"]
    beside = fisher(scaled_values("Identity", "ArgMax")[0], x)["a_node"]
    assert_alike(beside, known)
    alone = fisher(scaled_values("ArgMax")[0], x)["a_node"]
    assert_alike(np.diagonal(alone), np.full(6, np.diagonal(alone)[0]))
    assert alone[0, 0] > 0


def test_a_site_that_no_compared_output_depends_on_has_zeros() -> None:
    builder = GraphBuilder(seed=5)
    builder.input("x", ["n", 6, "h", "w"])
    builder.add("Relu", [builder.conv("x", "a", 6, 6)], "y")
    builder.add("ArgMax", [builder.conv("x", "b", 6, 4)], "number", axis=1)
    builder.add("Add", [builder.add("Round", [builder.conv("x", "c", 6, 6)], "r"), "y"], "z")
    builder.output("z", ["n", 6, "h", "w"])
    builder.output("number", None, TensorProto.INT64)
    found = fisher(builder.model(), samples(9))
    assert np.trace(found["a_node"]) > 0
    np.testing.assert_array_equal(found["b_node"], np.zeros((4, 4)))
    np.testing.assert_array_equal(found["c_node"], np.zeros((6, 6)))


def test_sites_of_sub_graphs_and_functions_are_left_out() -> None:
    body = helper.make_function(
        "own",
        "Block",
        ["v"],
        ["w"],
        [
            helper.make_node(
                "Constant", [], ["k"], value=numpy_helper.from_array(samples(6)[:, :, :1, :1])
            ),
            helper.make_node("Conv", ["v", "k"], ["w"], name="inner"),
        ],
        [helper.make_opsetid("", 17)],
    )
    model = classifier()
    model.functions.append(body)
    model.opset_import.append(helper.make_opsetid("own", 1))
    relu = next(node for node in model.graph.node if node.output[0] == "ra")
    relu.output[0] = "before"
    position = list(model.graph.node).index(relu) + 1
    model.graph.node.insert(position, helper.make_node("Block", ["before"], ["ra"], domain="own"))
    found = fisher(model, samples(9))
    assert set(found) == {"a_node", "b_node"}
    assert np.trace(found["a_node"]) > 0
    opened = OpenModel(model)
    inner = [s for s in find_sites(GraphView(opened)).rewritable if s.name == "inner"]
    data = random_data(model_inputs(model), samples=2)
    assert len(inner) == 1
    assert site_fisher(opened, inner, data) == {}


def test_a_sample_that_is_not_finite_is_left_out() -> None:
    model, x = classifier(), samples(16)
    known = fisher(model, x[:8])
    x[8:] = 3e38  # overflows
    for name, G in fisher(model, x).items():
        assert_alike(G, known[name])
    with pytest.raises(ModelError, match="gradients at 'a_node'"):
        fisher(model, x[8:])


def test_gradients_that_are_not_finite_are_an_error() -> None:
    """The root of zero has no slope."""
    builder = GraphBuilder(seed=5)
    builder.input("x", ["n", 6, "h", "w"])
    value = builder.add("Relu", [builder.conv("x", "a", 6, 6)], "r")
    nothing = builder.add("Sub", [value, value], "n")
    builder.add("Add", [builder.add("Sqrt", [nothing], "s"), value], "y")
    builder.output("y", ["n", 6, "h", "w"])
    with pytest.raises(ModelError, match="gradients at 'a_node' hold NaN"):
        fisher(builder.model(), samples(9))


def test_an_unknown_operator_is_the_error_of_the_bridge() -> None:
    model = classifier()
    node = next(node for node in model.graph.node if node.output[0] == "rb")
    node.op_type, node.domain = "QuickGelu", "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(ModelError, match="QuickGelu"):
        fisher(model, samples(2))


def test_nothing_else_changes() -> None:
    model, x = classifier(), samples(20)
    before, state = model.SerializeToString(), torch.get_rng_state()
    threads = torch.get_num_threads()
    first = fisher(model, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    assert model.SerializeToString() == before
    again, other = fisher(model, x), fisher(model, x, seed=1)
    for name, G in first.items():
        np.testing.assert_array_equal(again[name], G)
        assert np.abs(other[name] - G).max() > 1e-3 * np.abs(G).max()


def test_no_more_samples_are_read_than_asked_for() -> None:
    model, x = classifier(), samples(40)
    opened = OpenModel(model)
    sites = find_sites(GraphView(opened)).rewritable
    data = as_data({"x": x}, model_inputs(model), batch_size=16)
    known = fisher(model, x[:19])
    for name, G in site_fisher(opened, sites, data, samples=19).items():
        assert_alike(G, known[name])


def test_data_without_samples_are_an_error() -> None:
    model = classifier()
    opened = OpenModel(model)
    sites = find_sites(GraphView(opened)).rewritable
    data = random_data(model_inputs(model), samples=0)
    with pytest.raises(DataError, match="no sample"):
        site_fisher(opened, sites, data)
