"""compress and inspect as a whole: what is written, and what the report says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_igpc import compress, inspect
from onnx_igpc.compression.summary import NO_DATA_WARNING, NOTHING_WARNING, RANDOM_WARNING
from onnx_igpc.errors import ModelError, UsageError
from onnx_igpc.graph.cost import count
from onnx_igpc.graph.external_data import external_locations
from onnx_igpc.graph.model import file_bytes, load_model
from onnx_igpc.planning.options import Published
from onnx_igpc.sites.find import SiteFilter
from tests.helpers import GraphBuilder, options_of, pointwise_model, run
from tests.passes.graphs import copy_of
from tests.untouched import assert_untouched


def network(**options: Any) -> onnx.ModelProto:
    """Three pointwise layers a, b, c with BatchNorm and ReLU, a residual sum, and a head."""
    builder = GraphBuilder(**options)
    value = builder.input("x", [1, 20, 6, 6])
    for name, F in (("a", 40), ("b", 40), ("c", 20)):
        value = builder.conv(value, name, 20 if name == "a" else 40, F, bias=name == "b")
        value = builder.batch_norm(value, f"{name}_bn", F)
        value = builder.activation(value, f"{name}_act", "Relu")
    builder.add("Add", [value, "x"], "sum")
    pooled = builder.add("GlobalAveragePool", ["sum"], "pooled")
    builder.add("Flatten", [builder.conv(pooled, "head", 20, 10, bias=True)], "scores")
    builder.output("scores", [1, 10])
    return builder.model()


def saved(model: onnx.ModelProto, folder: Path, *, external: bool = False) -> Path:
    path = folder / "model.onnx"
    onnx.save(
        copy_of(model),
        path,
        save_as_external_data=external,
        location="model.data",
        size_threshold=0,
    )
    return path


def test_the_report_counts_what_was_written(tmp_path: Path) -> None:
    before = network()
    result = compress(saved(before, tmp_path), Published(8))
    result.save(tmp_path / "small.onnx")
    written = load_model(tmp_path / "small.onnx")
    totals = result.report.totals
    dense, cost = count(before), count(written)
    assert totals.parameters.before == dense.parameters
    assert totals.parameters.after == cost.parameters < dense.parameters
    assert totals.macs.before == dense.macs
    assert totals.macs.after == cost.macs < dense.macs
    assert totals.file_bytes.before == (tmp_path / "model.onnx").stat().st_size
    assert totals.file_bytes.after == (tmp_path / "small.onnx").stat().st_size
    names = {"a", "b", "c", "head"}
    assert totals.pointwise_parameters.before == sum(dense.nodes[n].weights for n in names)
    other = totals.parameters.after - totals.pointwise_parameters.after  # type: ignore[operator]
    assert other == dense.parameters - totals.pointwise_parameters.before
    assert_untouched(before, written, result.report)
    assert written == result.model
    assert run(written)["scores"].shape == (1, 10)


def test_every_pointwise_convolution_is_listed_with_its_numbers() -> None:
    before = network()
    result = compress(before, Published(8))
    sites = {site.name: site for site in result.report.sites}
    assert list(sites) == ["a_node", "b_node", "c_node", "head_node"]
    assert [sites[name].reason for name in sites] == [
        None,
        None,
        None,
        "head: only Flatten before output 'scores'",
    ]
    after = count(result.model)
    for name in ("a", "b", "c"):
        site = sites[f"{name}_node"]
        convolutions = [
            after.nodes[node.output[0]]
            for node in result.model.graph.node
            if node.op_type == "Conv" and node.name in site.nodes
        ]
        assert site.k is not None
        weights = site.k.weights + (site.l.weights if site.l else 0)
        assert site.parameters.after == weights + 40 * (name == "b")
        assert site.parameters.after == sum(each.weights for each in convolutions)
        assert site.macs.before == count(before).nodes[name].macs
        assert site.macs.after == sum(each.macs or 0 for each in convolutions) == 36 * weights
        assert site.error is not None
        assert 0 < site.error < 1
    assert sites["head_node"].parameters.before == sites["head_node"].parameters.after == 210


@pytest.mark.parametrize("scheme", ["v1", "v2"])
def test_inspect_says_what_compress_does(scheme: str) -> None:
    options: dict[str, Any] = {"channels_per_group": 8, "scheme": scheme, "include_heads": True}
    plan = inspect(network(), **options_of(**options))
    done = compress(network(), **options_of(**options)).report
    assert plan.totals.parameters == done.totals.parameters
    assert plan.totals.macs == done.totals.macs
    assert plan.totals.pointwise_parameters == done.totals.pointwise_parameters
    for planned, site in zip(plan.sites, done.sites, strict=True):
        site.error = None
        assert planned == site
    assert not plan.checks
    assert plan.warnings == []


def test_the_argument_is_not_changed() -> None:
    model = network()
    copy = copy_of(model)
    assert compress(model, Published(8), fold_batch_norm=True).changed
    inspect(model, Published(8))
    assert model == copy
    assert compress(model, Published(100)).model is not model


def test_equal_options_give_equal_bytes(tmp_path: Path) -> None:
    path = saved(network(), tmp_path)
    for name in ("one", "two"):
        compress(path, Published(8)).save(tmp_path / f"{name}.onnx")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    seeds = [
        compress(path, Published(8, init="random", seed=seed)).model.SerializeToString()
        for seed in (1, 1, 2)
    ]
    assert seeds[0] == seeds[1] != seeds[2]


@pytest.mark.parametrize("external", [False, True])
def test_nothing_to_rewrite_is_a_copy(tmp_path: Path, external: bool) -> None:
    path = saved(network(), tmp_path, external=external)
    result = compress(path, Published(64))
    target = tmp_path / "out"
    target.mkdir()
    result.save(target / "small.onnx")
    assert (target / "small.onnx").read_bytes() == path.read_bytes()
    assert result.report.warnings == [NOTHING_WARNING]
    assert not result.changed
    totals = result.report.totals
    assert totals.file_bytes.before == totals.file_bytes.after == file_bytes(path)
    assert load_model(target / "small.onnx") == load_model(path)


def test_a_model_without_pointwise_convolutions() -> None:
    builder = GraphBuilder()
    builder.add("Relu", [builder.input("x", [1, 4])], "y")
    builder.output("y", [1, 4])
    result = compress(builder.model())
    assert result.report.sites == []
    assert result.report.warnings == [NOTHING_WARNING]
    assert result.model == builder.model()


def test_external_data_in_and_out(tmp_path: Path) -> None:
    before = network()
    path = saved(before, tmp_path, external=True)
    result = compress(path, Published(8))
    target = tmp_path / "out"
    target.mkdir()
    result.save(target / "small.onnx")
    data = [file.name for file in target.iterdir() if file.suffix == ".data"]
    assert set(data) == external_locations(
        onnx.load(target / "small.onnx", load_external_data=False)
    )
    assert len(data) == 1
    onnx.checker.check_model(str(target / "small.onnx"), full_check=True)
    written = load_model(target / "small.onnx")
    whole = compress(before, Published(8)).model
    for model in (written, whole):
        del model.metadata_props[:]  # the digests differ in the size of the input
        for tensor in model.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    assert written == whole
    np.testing.assert_array_equal(run(written)["scores"], run(whole)["scores"])


def test_include_and_exclude() -> None:
    def statuses(**options: Any) -> list[bool]:
        report = compress(network(), **options_of(channels_per_group=8, **options)).report
        return [site.rewritten for site in report.sites]

    assert statuses(include=["a_*", "c_node"]) == [True, False, True, False]
    assert statuses(exclude=["b*"]) == [True, False, True, False]
    assert statuses(include=["?_node"], exclude=["c*"]) == [True, True, False, False]
    assert statuses(include_heads=True) == [True] * 4
    with pytest.raises(UsageError, match=r"`include` 'A_node' matches no .*near matches: .*a_node"):
        statuses(include=["A_node"])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "paper and fitted": ({"form": "paper", "init": "fitted"}, "cannot be fitted"),
    "ch": ({"channels_per_group": 0}, "`channels_per_group` must be at least 1, not 0"),
    "scheme": ({"scheme": "v3"}, "`scheme` must be one of"),
    "form": ({"form": "square"}, "`form` must be one of linear, paper"),
    "init": ({"init": "zero"}, "`init` must be"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_that_are_refused(case: str) -> None:
    options, message = REFUSED[case]
    with pytest.raises(UsageError, match=message):
        compress(network(), **options_of(**options))


def test_the_output_is_never_the_input(tmp_path: Path) -> None:
    path = saved(network(), tmp_path)
    content = path.read_bytes()
    for result in (compress(path, Published(8)), compress(path, Published(64))):
        with pytest.raises(UsageError, match="is the input itself"):
            result.save(path)
    assert path.read_bytes() == content
    with pytest.raises(ModelError, match="does not exist"):
        compress(tmp_path / "other.onnx")


def test_warnings_say_how_the_weights_were_made() -> None:
    assert compress(network(), Published(8)).report.warnings == [NO_DATA_WARNING]
    random = compress(network(), Published(8, init="random")).report
    assert random.warnings == [RANDOM_WARNING]
    assert compress(network(), Published(8, form="paper")).report.warnings == [RANDOM_WARNING]


@pytest.mark.parametrize(("value", "reason"), [(np.nan, "NaN"), (np.inf, "infinite values")])
def test_weights_that_are_not_finite_are_kept(value: float, reason: str) -> None:
    before = pointwise_model(40, 24)
    kernel = numpy_helper.to_array(before.graph.initializer[0]).copy()
    kernel[3, 4] = value
    before.graph.initializer[0].raw_data = kernel.tobytes()
    result = compress(before, Published(8))
    assert result.report.sites[0].reason == f"weight holds {reason}"
    assert result.model == before


def test_quantized_weights_are_kept() -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 40, 5, 5])
    builder.initializer("q", np.ones((24, 40, 1, 1), np.int8))
    builder.initializer("scale", np.full(24, 0.1, np.float32))
    builder.add("DequantizeLinear", ["q", "scale"], "w", axis=0)
    builder.add("Relu", [builder.add("Conv", ["x", "w"], "conv")], "y")
    builder.output("y", [1, 24, 5, 5])
    before = builder.model()
    result = compress(before, Published(8))
    assert result.report.sites[0].reason == "weight is quantized (behind DequantizeLinear)"
    assert result.model == before
    assert result.report.sites[0].parameters.before == 24 * 40


def test_weights_that_were_graph_inputs_lose_their_entry() -> None:
    before = pointwise_model(40, 24, weights="input")
    result = compress(before, Published(8))
    assert result.report.inputs_removed == ["conv_w"]
    assert any("were listed as graph inputs" in note for note in result.report.notes)
    names = [entry.name for entry in result.model.graph.input]
    assert names == [entry.name for entry in before.graph.input if entry.name != "conv_w"]


def test_weights_that_would_overflow_are_kept() -> None:
    """K and L may need larger values than the dense layer, which float16 has not."""
    before = pointwise_model(40, 24, dtype=np.float16)
    kernel = numpy_helper.to_array(before.graph.initializer[0])
    large = 6e4 * np.sign(kernel.astype(np.float32))
    before.graph.initializer[0].raw_data = large.astype(np.float16).tobytes()
    result = compress(before, Published(8))
    assert result.report.sites[0].reason == "the weights of K and L would not be finite in float16"
    assert result.model == before


def test_where_nothing_is_rewritten_no_weights_are_doubted() -> None:
    """Folding alone changes the model, and fits nothing."""
    model = network()
    result = compress(model, sites=SiteFilter(exclude="*"), fold_batch_norm=True)
    assert result.changed
    assert NO_DATA_WARNING not in result.report.warnings
    assert NO_DATA_WARNING in compress(model).report.warnings
