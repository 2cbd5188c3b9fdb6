"""compress on calibration data: what it writes, what it reports, what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from onnx_igpc import compress
from onnx_igpc.calibration.options import Calibration
from onnx_igpc.compression.pipeline import CompressResult
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.errors import DataError, UsageError
from onnx_igpc.evaluation.damage import UnlabelledData, measure_damage
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.planning.options import Published
from onnx_igpc.report.digest import read_digest
from tests.calibration_graphs import ListData, hidden_sites_model, images, residual_model, saved
from tests.helpers import GraphBuilder, node_named, options_of, run, tensor_named

SIDES = ("sequential", "plain")


def _compressed(
    proto: onnx.ModelProto, x: np.ndarray, sequential: bool = True, ch: int = 4
) -> CompressResult:
    data = ListData(proto, {"x": x})
    return compress(proto, Published(ch), calibration=Calibration(data, sequential=sequential))


def _channel_means(proto: onnx.ModelProto, name: str, x: np.ndarray) -> np.ndarray:
    tapped = onnx.ModelProto()
    tapped.CopyFrom(proto)
    if name not in [output.name for output in tapped.graph.output]:
        tapped.graph.output.add().name = name
    values = run(tapped, {"x": x})[name]
    return np.asarray(values.mean(axis=(0, 2, 3), dtype=np.float64))


def test_mean_output_of_every_site_is_exact_in_the_written_model() -> None:
    proto, x = residual_model(16, blocks=3), images(20, 16)
    result = _compressed(proto, x)
    assert len(result.report.rewritten) == 6
    for site in result.report.rewritten:
        wanted, made = (_channel_means(each, site.output, x) for each in (proto, result.model))
        np.testing.assert_allclose(made, wanted, atol=2e-4, err_msg=site.name)


@pytest.mark.parametrize("sequential", [True, False], ids=SIDES)
def test_data_make_the_damage_smaller(sequential: bool) -> None:
    proto, x = residual_model(16, blocks=3), images(40, 16)
    blind = compress(proto, Published(4))
    fitted = _compressed(proto, x, sequential)
    expected = run(proto, {"x": x})["y"]
    distances = [
        np.linalg.norm(run(each.model, {"x": x})["y"] - expected) for each in (fitted, blind)
    ]
    assert distances[0] < 0.8 * distances[1]
    damage = measure_damage(proto, blind.opened, ListData(proto, {"x": x}))
    found = fitted.report.damage
    assert found is not None
    assert found.fitted is not None
    assert found.fitted.samples == damage.samples == 40
    assert found.samples == 40
    assert found.fitted.agreement >= damage.agreement


def test_in_sequence_the_output_is_nearer_to_the_original() -> None:
    proto, x = residual_model(16, blocks=4), images(60, 16)
    expected = run(proto, {"x": x})["y"]
    distance = [
        np.linalg.norm(run(_compressed(proto, x, sequential).model, {"x": x})["y"] - expected)
        for sequential in (True, False)
    ]
    assert distance[0] < 0.95 * distance[1]


def test_the_report_and_the_digest_say_what_was_done(tmp_path: Path) -> None:
    proto = residual_model(16)
    path = saved(tmp_path, x=images(12, 16))
    result = compress(proto, Published(4), calibration=Calibration(path, samples=9))
    report = result.report
    assert report.calibration is not None
    assert report.calibration.source == str(path)
    assert report.calibration.samples == 9
    assert report.calibration.sequential is True
    assert report.calibration.without_data == {}
    assert report.calibration.seconds > 0
    assert report.calibration.activation_bytes > 9 * 16 * 36 * 4
    assert report.calibration.spilled_bytes == 0
    assert not any("without data" in text for text in report.warnings)
    digest = read_digest(result.model)
    assert digest is not None
    assert digest.damage == report.damage
    assert digest.calibration is not None
    assert digest.calibration.samples == 9


def test_images_and_their_preprocessing(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    generator = np.random.default_rng(0)
    for index in range(6):
        # Class folders that are not the classes of the model are no concern of a calibration.
        folder = tmp_path / f"class{index % 3}"
        folder.mkdir(exist_ok=True)
        pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image.fromarray(pixels).save(folder / f"{index}.png")
    graph = GraphBuilder()
    graph.input("x", ["batch", 3, 6, 6])
    graph.conv("x", "stem", 3, 16, kernel=3)
    graph.conv("stem", "conv", 16, 16)
    graph.activation("conv", "act", "Relu")
    graph.add("GlobalAveragePool", ["act"], "pooled")
    graph.add("Flatten", ["pooled"], "y")
    graph.output("y")
    chosen = Preprocessing(scale=1 / 127.5, mean=(1.0,))
    result = compress(
        graph.model(), Published(4), calibration=Calibration(tmp_path, preprocessing=chosen)
    )
    assert result.report.preprocessing is not None
    assert result.report.preprocessing.crop == 6
    assert result.report.preprocessing.mean == (1.0,)
    assert result.report.damage is not None


def test_without_class_scores_the_damage_is_a_relative_error() -> None:
    graph = GraphBuilder()
    graph.input("x", ["batch", 16, 6, 6])
    graph.conv("x", "conv", 16, 16)
    graph.activation("conv", "y", "Relu")
    graph.output("y")
    proto, x = graph.model(), images(8, 16)
    result = _compressed(proto, x)
    expected, made = (run(each, {"x": x})["y"] for each in (proto, result.model))
    assert result.report.damage is not None
    damage = result.report.damage.fitted
    assert damage is not None
    assert damage.output == "y"
    error = np.linalg.norm(made - expected) / np.linalg.norm(expected)
    assert damage.relative_error == pytest.approx(error, rel=1e-4)
    assert 0.01 < error < 1


def test_sites_that_cannot_be_tapped_are_fitted_without_data() -> None:
    proto = hidden_sites_model(16)
    result = _compressed(proto, images(8, 16))
    report = result.report
    assert report.calibration is not None
    hidden = set(report.calibration.without_data)
    assert hidden == {"then_conv_node", "else_conv_node", "inner"}
    assert {site.name for site in report.rewritten} == hidden | {"conv_node"}
    assert any(text.startswith("3 sites were fitted without data") for text in report.warnings)


@pytest.mark.parametrize("sequential", [True, False], ids=SIDES)
def test_a_shared_weight_is_fitted_to_all_its_sites(sequential: bool) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ["batch", 16, 6, 6])
    graph.conv(x, "first", 16, 16, bias=True)
    graph.activation("first", "act", "Relu")
    graph.add("Conv", ["act", "first_w"], "second")
    graph.activation("second", "y", "Relu")
    graph.output("y")
    proto, values = graph.model(), images(20, 16)
    result = _compressed(proto, values, sequential)
    first, second = result.report.rewritten
    assert second.shares_weight_with == first.name
    kernels = [node_named(result.model, f"{site.name}/igpc/K").input[1] for site in (first, second)]
    assert kernels[0] == kernels[1]
    if sequential:
        for site in (first, second):
            wanted, made = (
                _channel_means(each, site.output, values) for each in (proto, result.model)
            )
            np.testing.assert_allclose(made, wanted, atol=2e-4)
    # Pooled, the weight is another than the one that fits the first site alone.
    only = onnx.ModelProto()
    only.CopyFrom(proto)
    other = numpy_helper.from_array(tensor_named(proto, "first_w") * 1.0, "other_w")
    only.graph.initializer.append(other)
    node_named(only, "second_node").input[1] = "other_w"
    single = _compressed(only, values, sequential)
    weights = [tensor_named(each.model, kernels[0]) for each in (result, single)]
    assert np.abs(weights[0] - weights[1]).max() > 1e-3


def test_a_bias_is_made_where_there_was_none_and_used_where_there_was() -> None:
    proto = residual_model(16)
    result = _compressed(proto, images(10, 16))
    for name in ("a0_node", "b0_node"):
        stage = "L" if f"{name}/igpc/L" in [n.name for n in result.model.graph.node] else "K"
        node = node_named(result.model, f"{name}/igpc/{stage}")
        assert len(node.input) == 3
        assert tensor_named(result.model, node.input[2]).any()
    assert "a0_b" not in [tensor.name for tensor in result.model.graph.initializer]


def test_half_precision() -> None:
    proto = residual_model(16, dtype=np.float16)
    result = _compressed(proto, images(16, 16).astype(np.float16))
    assert "6 of 6" in result.report.checks["sites"] or "4 of 4" in result.report.checks["sites"]
    assert {t.data_type for t in result.model.graph.initializer if "igpc" in t.name} <= {
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.INT64,
    }


def test_results_are_the_same_every_time() -> None:
    proto, x = residual_model(16), images(10, 16)
    first, second = (_compressed(proto, x).model.graph for _ in range(2))
    assert first == second


def test_folded_batch_norm_and_files_give_the_same_as_models(tmp_path: Path) -> None:
    proto, x = residual_model(16), images(10, 16)
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    data = ListData(proto, {"x": x})
    results = [
        compress(source, Published(4), calibration=data, fold_batch_norm=True)
        for source in (proto, path)
    ]
    assert results[0].model.graph == results[1].model.graph
    damage = results[0].report.damage
    assert damage is not None
    assert damage == results[1].report.damage


def test_nothing_to_rewrite_needs_no_data() -> None:
    proto = residual_model(8)
    result = _compressed(proto, images(0), ch=16)
    assert not result.changed
    assert result.report.damage is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "random"}, "random weights are not fitted to data"),
        ({"form": "paper"}, "random weights are not fitted to data"),
        ({"samples": 0}, "samples must be at least 1"),
    ],
)
def test_options_that_do_not_go_together(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    given = {"channels_per_group": 4, "data": saved(tmp_path, x=images(2)), **options}
    with pytest.raises(UsageError, match=message):
        compress(residual_model(), **options_of(**given))


def test_data_that_cannot_be_used() -> None:
    proto, x = residual_model(16), images(4, 16)
    with pytest.raises(DataError, match="no sample could be read"):
        _compressed(proto, x[:0])
    x[2, 3] = np.nan
    with pytest.raises(DataError, match="tensor 'x' holds NaN on the calibration data"):
        _compressed(proto, x)
    with pytest.raises(DataError, match="no such file or folder"):
        compress(proto, calibration="no/such/folder")


def test_unlabelled_data_describes_itself() -> None:
    proto = residual_model()
    data = ListData(proto, {"x": images(3)})
    data.labelled = True
    hidden = UnlabelledData(data)
    assert hidden.describe().labelled is False
    opened = OpenModel(proto)
    assert Calibration(data).open(opened) is data


def test_calibration_images_that_are_all_black_are_warned_of(tmp_path: Path) -> None:
    builder = GraphBuilder()
    builder.input("x", ["n", 3, 8, 8])
    value = builder.conv(builder.conv("x", "stem", 3, 16, kernel=3), "site", 16, 16)
    builder.conv(value, "last", 16, 16, kernel=3)
    builder.output("last", ["n", 16, 4, 4])
    (tmp_path / ".cache").mkdir()
    for number in range(4):
        for folder in (tmp_path, tmp_path / ".cache"):
            Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
    report = compress(builder.model(), Published(4), calibration=tmp_path).report
    told = "calibration data: all 4 samples are equal, of one colour, as black is: check the data"
    assert told in report.warnings
    assert "calibration data: hidden folder '.cache' left out (4 images)" in report.notes
