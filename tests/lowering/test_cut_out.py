"""Cut-outs: one site with what decides how fast it runs, as a model of its own."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

from onnx_igpc.data.random_inputs import random_inputs
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.lowering.catalogue import applicable, fold_batch_norms, site_opset
from onnx_igpc.lowering.cut_out import UnknownShapeError, cut_out
from onnx_igpc.lowering.race import race_key, structure
from onnx_igpc.lowering.site_races import contenders_of, surroundings_of
from onnx_igpc.runtime.session import make_session, run_session, session_inputs
from onnx_igpc.runtime.setting import Setting
from tests.helpers import GraphBuilder
from tests.lowering_cases import network, rewritten


def cut(model: OpenModel, name: str = "conv_node", **sizes: int) -> OpenModel:
    surroundings, sites = surroundings_of(model, Setting(**sizes))
    return cut_out(surroundings, next(site for site in sites if site.name == name))


def outputs(model: OpenModel) -> dict[str, np.ndarray]:
    session = make_session(model, threads=1)
    return run_session(session, random_inputs(session_inputs(session)))


def operators(model: OpenModel) -> Counter[str]:
    return Counter(node.op_type for node in model.proto.graph.node)


def residual(first: str = "dense") -> onnx.ModelProto:
    """Conv, Clip, site, Add with what the site reads, Relu; the sum is read by two convolutions."""
    builder = GraphBuilder()
    builder.input("x", ["n", 32, 12, 12])
    group = {"dense": 1, "depthwise": 32}[first]
    builder.conv("x", "before", 32, 32, kernel=3, group=group, pads=[1, 1, 1, 1])
    builder.add("Relu", ["before"], "activated")
    builder.conv("activated", "conv", 32, 32, bias=True)
    builder.add("Add", ["conv", "activated"], "sum")
    builder.add("Relu", ["sum"], "behind")
    builder.conv("behind", "a", 32, 32, kernel=3, group=32, pads=[1, 1, 1, 1])
    builder.conv("behind", "b", 32, 4)
    builder.add("Concat", ["a", "b"], "y", axis=1)
    builder.output("y", ["n", 36, 12, 12])
    return builder.model()


@pytest.mark.parametrize("first", ["dense", "depthwise"])
def test_it_has_the_elementwise_nodes_and_stand_ins_for_convolutions(first: str) -> None:
    small = cut(rewritten(residual(first), 8))
    counts = operators(small)
    assert counts["Relu"] == 2
    # K and L, one before, and one for the two that read the sum.
    assert counts["Conv"] == 4
    begin = small.proto.graph.node[0]
    group = next(a.i for a in begin.attribute if a.name == "group")
    assert group == (32 if first == "depthwise" else 1)
    onnx.checker.check_model(small.proto, full_check=True)
    assert all(np.isfinite(each).all() for each in outputs(small).values())


def test_what_is_read_outside_is_read_here() -> None:
    model = rewritten(residual(), 8)
    small = cut(model)
    read = {name for node in small.proto.graph.node for name in node.input}
    made = {name for node in small.proto.graph.node for name in node.output}
    ends = {value.name for value in small.proto.graph.output}
    assert made <= read | ends


def test_sizes_are_those_of_the_setting() -> None:
    model = rewritten(residual(), 8)
    for batch in (1, 3):
        (source,) = cut(model, batch=batch).proto.graph.input
        sizes = [dim.dim_value for dim in source.type.tensor_type.shape.dim]
        assert sizes[0] == batch
        assert sizes[2:] == [12, 12]


def test_every_lowering_of_a_cut_out_computes_the_same() -> None:
    model = rewritten(residual(), 8)
    fold_batch_norms(model)
    surroundings, (site,) = surroundings_of(model, Setting())
    contenders, refused = contenders_of(surroundings, site)
    able = applicable(site, site_opset(model, site))
    assert set(contenders) == {name for name, why in able.items() if why is None}
    assert refused == {name: why for name, why in able.items() if why is not None}
    expected = outputs(contenders["literal"])
    for contender in contenders.values():
        for name, values in outputs(contender).items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_dtypes(dtype: type[np.generic]) -> None:
    small = cut(rewritten(network(32, 32, dtype=dtype), 8))
    kinds = {tensor.data_type for tensor in small.proto.graph.initializer}
    assert onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)) in kinds


def test_one_dimension_has_no_stand_ins() -> None:
    small = cut(rewritten(network(32, 32, dims=1), 8))
    assert operators(small)["Conv"] == 2
    assert all(np.isfinite(each).all() for each in outputs(small).values())


def test_a_shape_that_is_not_known_is_said() -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 1, 6, 6])
    builder.add("NonZero", ["x"], "where")
    builder.add("Cast", ["where"], "floats", to=1)
    builder.add("Unsqueeze", ["floats", builder.stored("axes", np.array([0]))], "lines")
    builder.add("Tile", ["lines", builder.stored("times", np.array([1, 8, 1]))], "wide")
    builder.conv("wide", "conv", 32, 32, dims=1)
    builder.add("Relu", ["conv"], "y")
    builder.output("y")
    with pytest.raises(UnknownShapeError, match="the shape of"):
        cut(rewritten(builder.model(), 8))


def test_structure_is_blind_to_weights_and_names_only() -> None:
    def form(seed: int, channels: int = 32, side: int = 6) -> str:
        builder = GraphBuilder(seed=seed)
        builder.input("x" if seed else "image", [1, channels, side, side])
        builder.conv("x" if seed else "image", f"conv{seed}", channels, 32)
        builder.output(f"conv{seed}")
        return structure(builder.model())

    assert form(0) == form(1)
    assert form(1) != form(1, channels=64)
    assert form(1) != form(1, side=8)


def test_keys_tell_settings_apart() -> None:
    model = rewritten(residual(), 8)
    surroundings, (site,) = surroundings_of(model, Setting())
    contenders, _ = contenders_of(surroundings, site)
    key = race_key(contenders, Setting(threads=1))
    assert key == race_key(contenders, Setting(threads=1))
    assert key != race_key(contenders, Setting(threads=2))
    assert key != race_key({"literal": contenders["literal"]}, Setting(threads=1))
