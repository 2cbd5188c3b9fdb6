"""M read from the nodes of a written file, judged by the errors that the fit reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_igpc import compress
from onnx_igpc.fitting.weights import relative_error
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.passes import FoldBatchNorm
from onnx_igpc.planning.options import Budget, Published
from onnx_igpc.report.tree import SiteReport
from onnx_igpc.runtime.session import make_session, run_session
from onnx_igpc.sites.find import SiteFilter
from onnx_igpc.sites.site_matrix import SiteMatrices
from tests.helpers import GraphBuilder, node_named, pointwise_model, tensor_named

SAMPLES = Path(__file__).parents[2] / "sample_models"


@pytest.mark.parametrize(
    ("C", "F", "ch", "opset"), [(40, 24, 8, 17), (40, 24, 8, 11), (30, 57, 7, 17)]
)
def test_the_error_of_a_blind_fit_is_that_of_the_matrix(
    C: int, F: int, ch: int, opset: int
) -> None:
    dense = pointwise_model(C, F, opset=opset)
    result = compress(dense, Published(ch))
    (site,) = result.report.rewritten
    matrix = SiteMatrices(OpenModel(result.model), result.report).matrix(site)
    weight = tensor_named(dense, node_named(dense, site.name).input[1]).reshape(F, C)
    assert matrix is not None
    assert relative_error(weight.astype(np.float64), matrix) == pytest.approx(site.error, rel=1e-5)


def test_channels_that_a_budget_reordered_are_back_in_the_original_order(tmp_path: Path) -> None:
    path = SAMPLES / "digits_net.onnx"
    data = np.load(SAMPLES / "digits_calibration.npz")["input"][:128]
    np.savez(tmp_path / "data.npz", input=data)
    result = compress(
        path,
        Budget("pointwise-parameters=20%"),
        calibration=tmp_path / "data.npz",
        sites=SiteFilter(include=("conv_pw_1", "conv_pw_2")),
    )
    site = result.report.rewritten[0]
    assert site.input.endswith("/permuted"), "nothing was reordered: the test says nothing"
    matrix = SiteMatrices(OpenModel(result.model), result.report).matrix(site)
    dense = onnx.load(path)
    node = node_named(dense, site.name)
    dense.graph.output.append(onnx.helper.make_tensor_value_info(node.input[0], 1, None))
    x = run_session(make_session(dense), {"input": data})[node.input[0]]
    vectors = np.moveaxis(x, 1, -1).reshape(-1, x.shape[1]).astype(np.float64)
    # The fit moves the bias as well, so that the error is that of the centred inputs.
    vectors -= vectors.mean(axis=0)
    weight = tensor_named(dense, node.input[1]).reshape(-1, x.shape[1])
    assert matrix is not None
    lost = np.sum((vectors @ (weight - matrix).T) ** 2) / np.sum((vectors @ weight.T) ** 2)
    assert lost == pytest.approx(site.error, rel=1e-4)


def test_no_matrix_where_the_form_is_not_linear_or_nodes_are_gone() -> None:
    result = compress(
        SAMPLES / "digits_net.onnx",
        Published(16, form="paper"),
        sites=SiteFilter(include=("conv_pw_3",)),
    )
    (site,) = result.report.rewritten
    model = OpenModel(result.model)
    assert SiteMatrices(model, result.report).matrix(site) is None
    linear = compress(pointwise_model(40, 24), Published(8))
    (site,) = linear.report.rewritten
    matrices = SiteMatrices(OpenModel(linear.model), linear.report)
    assert matrices.matrix(site) is not None
    site.nodes = [*site.nodes, "gone"]
    assert matrices.matrix(site) is None
    assert matrices.matrix(SiteReport("kept", 40, 24, "kept")) is None


def test_the_matrix_of_a_site_that_a_batch_norm_was_folded_into() -> None:
    builder = GraphBuilder()
    x = builder.input("x", [1, 32, 5, 5])
    y = builder.conv(x, "pw", 32, 64, name="pw")  # K alone, one convolution
    y = builder.batch_norm(y, "bn", 64)
    builder.output(builder.add("Relu", [y], "y"), [1, 64, 5, 5])
    result = compress(builder.model(), Published(8))
    (site,) = result.report.rewritten
    plain = SiteMatrices(OpenModel(result.model), result.report).matrix(site)
    scale = tensor_named(result.model, _batch_norm(result.model).input[1])
    variance = tensor_named(result.model, _batch_norm(result.model).input[4])
    folded = OpenModel(result.model)
    assert FoldBatchNorm().run(folded).changed
    matrix = SiteMatrices(folded, result.report).matrix(site)
    assert plain is not None
    assert matrix is not None
    factor = scale / np.sqrt(variance + 1e-5)
    assert np.allclose(matrix, factor[:, None] * plain, rtol=1e-4, atol=1e-6)


def _batch_norm(model: onnx.ModelProto) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == "BatchNormalization")
