"""quantize: integers run, the answers stay, what the quantizer loses is there, refusals are one line."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnx_igpc
from onnx_igpc import Calibration, Preprocessing, Published, Quantization, Setting
from onnx_igpc.errors import IgpcError, ModelError, UsageError
from onnx_igpc.lowering.quantization.static import BatchReader
from onnx_igpc.report.digest import read_digest
from onnx_igpc.report.quantization import QuantizationReport, wilson_interval
from onnx_igpc.report.result import CompressResult
from tests.helpers import GraphBuilder, node_named, pointwise_model, run
from tests.rich_model import rich_model, set_fields

DIGITS = Path(__file__).parents[3] / "sample_models" / "digits_net.onnx"
DIGITS_DATA = DIGITS.with_name("digits_calibration.npz")
QUICK = Quantization(method="minmax", setting=Setting(threads=1))


def samples(model: onnx.ModelProto, count: int = 30, seed: int = 0) -> np.ndarray:
    stored = {tensor.name for tensor in model.graph.initializer}
    (value,) = (each for each in model.graph.input if each.name not in stored)
    dims = [dim.dim_value or 6 for dim in value.type.tensor_type.shape.dim][1:]
    return np.random.default_rng(seed).standard_normal((count, *dims)).astype(np.float32)


def quantized(model: onnx.ModelProto, options: Quantization = QUICK, **more: Any) -> CompressResult:
    return onnx_igpc.quantize(model, samples(model, **more), quantization=options)


def said(result: CompressResult) -> QuantizationReport:
    assert result.report.quantization is not None
    return result.report.quantization


def layers(opset: int = 17, weights: str = "initializer") -> onnx.ModelProto:
    """x -> first -> norm -> relu -> middle -> relu -> pool -> head (a product) -> y."""
    builder = GraphBuilder(opset, weights=weights)  # type: ignore[arg-type]
    builder.input("x", ["n", 3, 6, 6])
    value = builder.batch_norm(builder.conv("x", "first", 3, 16, kernel=3), "norm", 16)
    value = builder.conv(builder.activation(value, "act", "Relu"), "middle", 16, 16, bias=True)
    value = builder.add("GlobalAveragePool", [builder.activation(value, "act2", "Relu")], "pool")
    weight = builder.initializer("head_w", builder.random(16, 5))
    builder.output(builder.add("MatMul", [builder.add("Flatten", [value], "flat"), weight], "y"))
    return builder.model()


def test_integers_run_and_the_answers_stay() -> None:
    model = layers()
    result = quantized(model)
    feeds = {"x": samples(model, 8, seed=1)}
    expected, found = run(model, feeds)["y"], run(result.model, feeds)["y"]
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    report = said(result)
    assert report.integer == {"Conv": 2, "MatMul": 1}
    assert report.kernels is not None
    assert report.kernels["QLinearConv"] == 2
    assert report.executed is not None
    assert report.executed.startswith("cpu ran ")
    assert result.report.checks["interface"] == "inputs and outputs unchanged"
    assert result.report.folded == ["norm_node"]


def test_weights_have_a_scale_for_each_channel() -> None:
    found = quantized(layers()).model
    scales = {each.name: each.dims for each in found.graph.initializer}
    assert scales["middle_w_scale"] == [16]
    (weight,) = (each for each in found.graph.initializer if each.name == "middle_w_quantized")
    assert weight.data_type == onnx.TensorProto.INT8


def test_seven_bits_where_asked_for() -> None:
    options = Quantization(method="minmax", reduce_range=True)
    found = quantized(layers(), options).model
    (weight,) = (each for each in found.graph.initializer if each.name == "middle_w_quantized")
    assert np.abs(onnx.numpy_helper.to_array(weight)).max() <= 64


@pytest.mark.parametrize("opset", [9, 11, 12])
def test_an_opset_without_scales_for_channels_is_raised(opset: int) -> None:
    model = layers(opset, "input")
    result = quantized(model)
    assert said(result).opset == opset
    assert [each.version for each in result.model.opset_import] == [13]
    assert result.report.inputs_removed
    assert [value.name for value in result.model.graph.input] == ["x"]
    feeds = {"x": samples(model, 4, seed=1)}
    expected = run(model, feeds)["y"]
    assert np.abs(run(result.model, feeds)["y"] - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"exclude": "middle*"}, ["middle_node"]),
        ({"exclude_first": True}, ["first_node"]),
        ({"exclude_heads": True}, ["y_node"]),
    ],
)
def test_nodes_that_stay_in_float(options: dict[str, Any], kept: list[str]) -> None:
    result = quantized(layers(), Quantization(method="minmax", **options))
    assert list(said(result).excluded) == kept
    (name,) = kept
    stored = {tensor.name for tensor in result.model.graph.initializer}
    assert node_named(result.model, name).input[1] in stored
    assert sum(said(result).floating.values()) == 1


def test_nameless_nodes_are_excluded_by_their_outputs_and_stay_nameless() -> None:
    model = layers()
    for node in model.graph.node:
        node.name = ""
    result = quantized(model, Quantization(method="minmax", exclude="middle"))
    assert len(said(result).excluded) == 1
    outputs = {node.output[0]: node.name for node in result.model.graph.node}
    assert outputs["middle"] == ""


def test_a_glob_that_matches_nothing() -> None:
    with pytest.raises(UsageError, match=r"`exclude` 'midle_node' matches no node; .*middle_node"):
        quantized(layers(), Quantization(method="minmax", exclude="midle_node"))


def test_nothing_that_is_still_there_is_lost() -> None:
    model = layers()
    model.producer_name, model.doc_string, model.model_version = "me", "a model", 3
    model.metadata_props.add(key="k", value="v")
    model.graph.doc_string = "a graph"
    model.graph.metadata_props.add(key="graph", value="1")
    for node in model.graph.node:
        node.doc_string = f"doc of {node.name}"
        node.metadata_props.add(key="node", value=node.name)
    image = model.graph.input[0]
    image.doc_string, image.type.denotation = "an image", "IMAGE"
    image.metadata_props.add(key="value", value="1")
    info = model.graph.value_info.add()
    info.CopyFrom(onnx.helper.make_tensor_value_info("pool", onnx.TensorProto.FLOAT, None))
    info.metadata_props.add(key="value", value="2")
    found = quantized(model).model
    for name in ("input", "output", "name", "doc_string", "metadata_props"):
        assert getattr(found.graph, name) == getattr(model.graph, name), name
    for name in ("producer_name", "doc_string", "model_version", "ir_version", "opset_import"):
        assert getattr(found, name) == getattr(model, name), name
    assert [entry.key for entry in found.metadata_props][:1] == ["k"]
    assert len(found.metadata_props) == 2
    assert list(found.graph.value_info) == [info]
    for name in ("first_node", "middle_node"):
        node, before = node_named(found, name), node_named(model, name)
        assert (node.doc_string, list(node.metadata_props)) == (
            before.doc_string,
            list(before.metadata_props),
        )


def test_a_model_with_everything() -> None:
    model = rich_model()
    expected = dict(set_fields(model))
    result = quantized(model)
    found = dict(set_fields(result.model))
    for path in (".graph[0].doc_string[0]", ".graph[0].metadata_props[0].value[0]", ".domain[0]"):
        assert found[path] == expected[path]
    assert [each.name for each in result.model.functions] == ["Scale"] or any(
        "functions" in note for note in result.report.notes
    )
    assert any("training" in note for note in result.report.notes)
    feeds = {"x": samples(model, 2)}
    values = run(model, feeds)["y"]
    assert np.abs(run(result.model, feeds)["y"] - values).max() < 0.05 * np.abs(values).max()


def test_branches_keep_what_they_say() -> None:
    builder = GraphBuilder()
    builder.input("x", ["n", 3, 6, 6])
    builder.conv("x", "conv", 3, 4)
    zero = builder.initializer("zero", np.array(0, np.float32))
    builder.add("Greater", [builder.add("ReduceMax", ["x"], "most", keepdims=0), zero], "positive")
    branches = []
    for name in ("then", "else"):
        inner = GraphBuilder()
        inner.output(inner.add("Neg", ["conv"], f"{name}_out"))
        graph = inner.graph(name)
        graph.doc_string = f"branch {name}"
        graph.node[0].metadata_props.add(key="node", value=name)
        branches.append(graph)
    builder.add("If", ["positive"], "y", then_branch=branches[0], else_branch=branches[1])
    builder.output("y", ["n", 4, 6, 6])
    model = builder.model()
    found = quantized(model).model
    (node,) = (each for each in found.graph.node if each.op_type == "If")
    kept = [each.g for each in sorted(node.attribute, key=lambda each: each.name, reverse=True)]
    assert [each.doc_string for each in kept] == ["branch then", "branch else"]
    assert [each.node[0].metadata_props[0].value for each in kept] == ["then", "else"]


def test_a_model_is_quantized_alike_every_time() -> None:
    first, second = quantized(layers()), quantized(layers())
    assert first.model.SerializeToString(True) == second.model.SerializeToString(True)
    assert b"seconds" not in first.model.SerializeToString()


def test_a_compressed_model_keeps_its_report(tmp_path: Path) -> None:
    compressed = onnx_igpc.compress(DIGITS, Published(32))
    compressed.save(tmp_path / "small.onnx")
    result = onnx_igpc.quantize(tmp_path / "small.onnx", DIGITS_DATA, quantization=QUICK)
    assert [s.name for s in result.report.rewritten] == [
        s.name for s in compressed.report.rewritten
    ]
    names = {node.name for node in result.model.graph.node}
    assert {name for site in result.report.rewritten for name in site.nodes} <= names
    before = compressed.report.rewritten[0].parameters
    assert result.report.rewritten[0].parameters.before == before.before
    digest = read_digest(result.model)
    assert digest is not None
    assert digest.quantization is not None
    assert digest.quantization.method == "minmax"
    assert digest.quantization.data.source == DIGITS_DATA.name


def test_a_method_is_chosen_on_samples_of_its_own() -> None:
    options = Quantization(setting=Setting(threads=1))
    result = onnx_igpc.quantize(DIGITS, DIGITS_DATA, quantization=options)
    report = said(result)
    assert [each.method for each in report.tried] == ["minmax", "percentile", "entropy"]
    best = max(report.tried, key=lambda each: (each.agreement, -(each.relative_error or 0)))
    assert report.method == best.method
    counts = report.samples
    assert (counts.calibrated, counts.chosen_by, counts.measured) == (180, 60, 60)
    assert report.damage is not None
    assert report.damage.agreement is not None
    assert report.damage.agreement > 0.9
    assert report.interval == wilson_interval(report.damage.agreement, 60)


def test_too_few_samples_are_said_in_the_place_of_a_number() -> None:
    result = quantized(layers(), Quantization(), count=24)
    assert said(result).damage is None
    assert said(result).tried == []
    assert said(result).method == "minmax"
    assert result.report.warnings == [
        "the damage was not measured: of 24 samples none were held out, give 100 or more"
    ]


def test_images_are_preprocessed_as_the_report_says(tmp_path: Path) -> None:
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(4):
        pixels = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    builder = GraphBuilder()
    builder.input("x", ["n", 3, 6, 6])
    value = builder.conv("x", "stem", 3, 40, kernel=3, pads=[1] * 4)
    builder.output(builder.conv(builder.conv(value, "pw", 40, 40), "y", 40, 4, kernel=3))
    preprocessing = Preprocessing(mean=(0.5,), std=(0.25,))
    calibration = Calibration(tmp_path, preprocessing)
    small = onnx_igpc.compress(builder.model(), Published(8), calibration=calibration).model
    result = onnx_igpc.quantize(small, tmp_path, quantization=QUICK)
    used = result.report.preprocessing
    assert used is not None
    assert (used.mean, used.std) == ((0.5,), (0.25,))
    assert said(result).data.preprocessing == used


def test_the_quantizer_says_nothing_and_the_log_stays_as_it_was(
    capfd: pytest.CaptureFixture[str],
) -> None:
    quantized(layers(), Quantization())
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == logging.NOTSET


def refusals() -> dict[str, tuple[onnx.ModelProto, type[IgpcError], str]]:
    builder = GraphBuilder()
    builder.input("x", ["n", 3, 6, 6])
    builder.output(builder.activation("x", "y", "Relu"))
    return {
        "half": (
            pointwise_model(8, 8, dtype=np.float16),
            UsageError,
            r"is in float16 \(tensor conv_w\)",
        ),
        "nothing": (builder.model(), ModelError, "there is nothing to quantize"),
    }


@pytest.mark.parametrize("kind", ["half", "nothing"])
def test_what_is_refused(kind: str) -> None:
    model, error, text = refusals()[kind]
    with pytest.raises(error, match=text) as caught:
        quantized(model)
    assert "\n" not in str(caught.value)


def test_what_was_quantized_is_final() -> None:
    model = quantized(layers()).model
    data = samples(layers())
    text = "was quantized, which is final"
    for step in (onnx_igpc.compress, onnx_igpc.lower):
        with pytest.raises(UsageError, match=text):
            step(model)
    with pytest.raises(UsageError, match=text):
        onnx_igpc.quantize(model, data)
    del model.metadata_props[:]
    with pytest.raises(UsageError, match="is quantized already"):
        onnx_igpc.quantize(model, data)


def test_a_quantized_model_is_not_trained(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = tmp_path / "int8.onnx"
    quantized(layers()).save(path)
    np.savez(tmp_path / "x.npz", x=samples(layers()))
    with pytest.raises(UsageError, match="was quantized, which is final: fine-tune"):
        onnx_igpc.finetune(path, data=tmp_path / "x.npz", output=tmp_path / "o.onnx")


def test_nothing_that_was_read_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(layers(), path)
    result = onnx_igpc.quantize(path, samples(layers()), quantization=QUICK)
    with pytest.raises(UsageError, match="is the input itself"):
        result.save(path)


def test_batches_are_read_one_at_a_time() -> None:
    from onnx_igpc.data.sources import as_data
    from onnx_igpc.graph.inputs import model_inputs

    model = layers()
    data = as_data(samples(model, 10), model_inputs(model), batch_size=4)
    told: list[int] = []
    reader = BatchReader(data, 3, told.append)
    for _ in range(2):
        sizes = []
        for start in range(len(reader)):
            reader.set_range(start, start + 1)
            feeds = reader.get_next()
            assert feeds is not None
            sizes.append(len(feeds["x"]))
            assert reader.get_next() is None
        assert sizes == [4, 4, 2]
    assert told == [0, 1, 2, 0, 1, 2]


def test_intervals() -> None:
    assert wilson_interval(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson_interval(1.0, 60) == pytest.approx((0.9398, 1.0), abs=1e-4)
    assert wilson_interval(0.0, 0) == (0.0, 1.0)


def test_labels_of_the_data_are_none_of_its_business() -> None:
    """Class folders of calibration images need not be those of the model."""
    model = layers()
    labels = np.full(30, 999)
    data = {"x": samples(model), "labels": labels}
    both = Quantization(setting=Setting(threads=1))
    result = onnx_igpc.quantize(model, data, quantization=both)
    told = said(result)
    assert told.tried
    assert told.damage is not None
    assert told.damage.accuracy_change is None
    assert not told.data.labelled
