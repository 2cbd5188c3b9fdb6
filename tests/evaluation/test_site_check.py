"""The checks of a written graph catch what is wrong with it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_igpc import compress
from onnx_igpc.errors import CheckFailedError, ModelError
from onnx_igpc.evaluation.site_check import check_sites
from onnx_igpc.fitting.fit import random_weights
from onnx_igpc.graph.checks import check_graph, check_original
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.layout.schemes import plan_layout
from onnx_igpc.passes import GroupPointwise
from onnx_igpc.planning.options import Published
from onnx_igpc.sites.rewrite import Form, Rewritten
from tests.helpers import node_named, pointwise_model
from tests.passes.graphs import copy_of

Damage = Callable[[onnx.ModelProto], None]


def rewritten(
    C: int = 40, F: int = 24, form: Form = "linear", scheme: str = "v1", dtype: type = np.float32
) -> tuple[OpenModel, list[Rewritten]]:
    model = OpenModel(pointwise_model(C, F, batch_norm=form == "paper", dtype=dtype))
    layout = plan_layout(C, F, 8, scheme)
    group = GroupPointwise(
        lambda site: layout,
        lambda site, layout, scale: (random_weights(layout, 0, site.name, False), None),
        form,
    )
    return model, group.run(model).rewritten


def stored(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    found: onnx.TensorProto = next(t for t in model.graph.initializer if t.name == name)
    return found


def swap_an_index(model: onnx.ModelProto) -> None:
    tensor = stored(model, "conv_node/igpc/interleave.indices")
    values = numpy_helper.to_array(tensor).copy()
    values[[0, 1]] = values[[1, 0]]
    tensor.raw_data = values.tobytes()


def drop_the_bias(model: onnx.ModelProto) -> None:
    del node_named(model, "conv_node/igpc/L").input[2]


def add_the_bias_twice(model: onnx.ModelProto) -> None:
    node_named(model, "conv_node/igpc/K").input.append("conv_b")


def group_otherwise(model: onnx.ModelProto) -> None:
    """L with twice the groups of half the channels, from the same number of weights per group."""
    node = node_named(model, "conv_node/igpc/L")
    group = next(entry for entry in node.attribute if entry.name == "group")
    kernel = stored(model, node.input[1])
    group.i *= 2
    values = numpy_helper.to_array(kernel)[:, : kernel.dims[1] // 2]
    kernel.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), kernel.name))


def leave_out_k(model: onnx.ModelProto) -> None:
    node = node_named(model, "conv_node/igpc/add")
    node.input[1] = node.input[0]


def change_the_stride(model: onnx.ModelProto) -> None:
    node = node_named(model, "conv_node/igpc/K")
    next(entry for entry in node.attribute if entry.name == "strides").ints[:] = [2, 2]


BREAKS: list[Damage] = [
    swap_an_index,
    drop_the_bias,
    add_the_bias_twice,
    group_otherwise,
    leave_out_k,
    change_the_stride,
]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_right_passes(dtype: type[np.generic]) -> None:
    text = check_sites(*rewritten(dtype=dtype))
    assert text.startswith("1 of 1 compute M x + b (deviation below ")


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("damage", BREAKS)
def test_a_broken_site_is_caught(damage: Damage, dtype: type[np.generic]) -> None:
    model, rewrites = rewritten(32, 32, dtype=dtype)
    damage(model.proto)
    onnx.checker.check_model(model.proto)
    with pytest.raises(CheckFailedError, match=r"site 'conv_node' (deviates|cannot be run)"):
        check_sites(model, rewrites)


def test_rounding_of_terms_that_cancel_is_no_deviation() -> None:
    """Here L has weights of 75 whose products make an output of 2 (found by random networks)."""
    model = pointwise_model(9, 5, dtype=np.float16, seed=39)
    result = compress(model, Published(4))
    kernels = [numpy_helper.to_array(t) for t in result.model.graph.initializer if "/L" in t.name]
    assert max(np.abs(kernel).max() for kernel in kernels) > 50
    assert result.report.checks["sites"].startswith("1 of 1 compute M x + b")


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_a_small_bias_and_small_weights_are_checked_as_well(factor: float) -> None:
    """The bias is of another size than M x: both must still show."""
    for damage in (drop_the_bias, swap_an_index):
        model, rewrites = rewritten(32, 32)
        tensor = stored(model.proto, "conv_b")
        values = numpy_helper.to_array(tensor) * np.float32(factor)
        tensor.raw_data = values.tobytes()
        rewrites = [replace(rewrites[0], bias=values)]
        assert "1 of 1" in check_sites(model, rewrites)
        damage(model.proto)
        with pytest.raises(CheckFailedError):
            check_sites(model, rewrites)


@pytest.mark.parametrize("damage", [swap_an_index, group_otherwise])
def test_a_broken_site_in_the_papers_form_is_caught(damage: Damage) -> None:
    model, rewrites = rewritten(32, 32, "paper")
    assert "1 of 1 compute K x and L x" in check_sites(model, rewrites)
    damage(model.proto)
    with pytest.raises(CheckFailedError):
        check_sites(model, rewrites)


def test_without_a_rewrite_there_is_nothing_to_check() -> None:
    assert check_sites(*rewritten(4, 4)) == "nothing was rewritten"


def test_without_onnxruntime_there_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = compress(pointwise_model(40, 24), Published(8))
    assert result.report.checks["sites"] == "not run: onnxruntime is not installed"
    assert result.report.checks["onnx.checker"] == "passed"
    assert len(result.report.rewritten) == 1


def rename_an_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "z"
    node_named(model, "y").output[0] = "z"


def change_a_shape(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3


def fix_a_dynamic_dimension(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1


def add_an_input(model: onnx.ModelProto) -> None:
    model.graph.input.add().CopyFrom(model.graph.input[0])
    model.graph.input[-1].name = "more"


@pytest.mark.parametrize(
    "damage", [rename_an_output, change_a_shape, fix_a_dynamic_dimension, add_an_input]
)
def test_a_changed_interface_is_caught(damage: Damage) -> None:
    before = pointwise_model()
    after = copy_of(before)
    assert check_graph(before, OpenModel(after)) == {
        "onnx.checker": "passed",
        "interface": "inputs and outputs unchanged",
    }
    damage(after)
    with pytest.raises(CheckFailedError, match=r"changed the graph's (in|out)puts"):
        check_graph(before, OpenModel(after))


def test_weights_among_the_inputs_may_go() -> None:
    before = pointwise_model(weights="input")
    after = copy_of(before)
    del after.graph.input[1:]
    check_graph(before, OpenModel(after))


def test_an_invalid_graph_is_caught() -> None:
    before = pointwise_model()
    after = copy_of(before)
    node_named(after, "last_node").input[0] = "nowhere"
    with pytest.raises(CheckFailedError, match="not valid ONNX"):
        check_graph(before, OpenModel(after))


def test_types_that_do_not_fit_are_caught() -> None:
    before = pointwise_model()
    after = copy_of(before)
    cast = onnx.helper.make_node("Cast", ["act"], ["half"], to=onnx.TensorProto.FLOAT16)
    after.graph.node.insert(2, cast)
    node_named(after, "last_node").input[0] = "half"
    with pytest.raises(CheckFailedError, match="not valid ONNX"):
        check_graph(before, OpenModel(after))


@pytest.mark.parametrize("opset", range(22, onnx.defs.onnx_opset_version() + 1))
def test_operator_sets_that_onnxruntime_does_not_load_yet(opset: int) -> None:
    result = compress(pointwise_model(40, 24, opset=opset), Published(8))
    assert "1 of 1" in result.report.checks["sites"]


def test_an_invalid_original_is_the_users() -> None:
    model = pointwise_model()
    node_named(model, "last_node").input[0] = "nowhere"
    with pytest.raises(ModelError, match="the model is not valid ONNX") as raised:
        check_original(OpenModel(model))
    assert "\n" not in str(raised.value)


def test_wrong_shapes_of_the_original_are_not_ours() -> None:
    """onnxruntime warns of a wrong value_info and goes on, and so do we."""
    model = pointwise_model(40, 24)
    wrong = onnx.helper.make_tensor_value_info("conv", onnx.TensorProto.FLOAT, [1, 23, 5, 5])
    model.graph.value_info.append(wrong)
    checks = compress(model, Published(8)).report.checks
    assert checks["onnx.checker"].startswith("passed without shapes: the original has ")
    assert "1 of 1" in checks["sites"]
