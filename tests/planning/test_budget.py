"""A budget for a whole model: reached, spent where it hurts least, repeatable, honest when it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnx_igpc
from onnx_igpc.compression import basis
from onnx_igpc.compression.pipeline import CompressResult
from onnx_igpc.errors import CheckFailedError, UsageError
from onnx_igpc.report.digest import read_digest
from tests.calibration_graphs import images, saved
from tests.helpers import options_of

CHANNELS = 24


def classifier() -> onnx.ModelProto:
    """Three square pointwise layers with ReLU between them, pooled into five class scores by a Gemm.

    The weight of the second layer has rank 3, so that it can be made small at no cost.
    """
    generator = np.random.default_rng(5)

    def scaled(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape) / np.sqrt(shape[-1])

    weights = {
        "w1": scaled(CHANNELS, CHANNELS),
        "w2": scaled(CHANNELS, 3) @ scaled(3, CHANNELS) * 3.0,
        "w3": scaled(CHANNELS, CHANNELS),
    }
    nodes, value = [], "x"
    for number in (1, 2, 3):
        conv, relu = f"conv{number}", f"relu{number}"
        nodes.append(onnx.helper.make_node("Conv", [value, f"w{number}"], [conv], name=conv))
        nodes.append(onnx.helper.make_node("Relu", [conv], [relu], name=relu))
        value = relu
    nodes += [
        onnx.helper.make_node("GlobalAveragePool", [value], ["pooled"], name="pool"),
        onnx.helper.make_node("Flatten", ["pooled"], ["flat"], name="flat"),
        onnx.helper.make_node("Gemm", ["flat", "head"], ["scores"], name="head"),
    ]
    tensors = [
        onnx.numpy_helper.from_array(w.reshape(*w.shape, 1, 1).astype(np.float32), name)
        for name, w in weights.items()
    ]
    head = generator.standard_normal((CHANNELS, 5)).astype(np.float32) * 4
    tensors.append(onnx.numpy_helper.from_array(head, "head"))
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "classifier",
        [onnx.helper.make_tensor_value_info("x", kind, ["n", CHANNELS, 6, 6])],
        [onnx.helper.make_tensor_value_info("scores", kind, ["n", 5])],
        tensors,
    )
    imports = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return saved(tmp_path, x=images(40, CHANNELS))


def compressed(data: Path, target: str, **options: Any) -> CompressResult:
    return onnx_igpc.compress(classifier(), calibration=data, **options_of(target, **options))


def weights_left(result: CompressResult) -> int:
    return sum(
        sum(stage.weights for stage in (site.k, site.l) if stage)
        if site.rewritten
        else CHANNELS * CHANNELS
        for site in result.report.sites
    )


@pytest.mark.parametrize(
    ("share", "family"),
    [(70, "extended"), (40, "extended"), (20, "extended"), (70, "published"), (40, "published")],
)
def test_the_target_holds_on_the_graph_that_was_written(
    data: Path, share: int, family: str
) -> None:
    result = compressed(data, f"pointwise-parameters={share}%", family=family)
    assert weights_left(result) <= share / 100 * 3 * CHANNELS**2
    assert result.report.selection is not None
    assert result.report.selection.chosen[0] <= share / 100 + 1e-9
    schemes = {site.scheme for site in result.report.rewritten}
    if family == "published":
        assert schemes <= {"v2"}


def test_it_is_spent_where_it_hurts_least(data: Path) -> None:
    """The layer of rank 3 gives up its weights first: it loses nothing by it."""
    result = compressed(data, "pointwise-parameters=80%")
    left = {
        site.name: (site.parameters.after or 0) / (site.parameters.before or 1)
        for site in result.report.sites
    }
    assert left["conv2"] < 0.5
    assert left["conv1"] > left["conv2"]
    assert left["conv3"] > left["conv2"]
    assert result.report.damage is not None
    assert result.report.damage.agreement == 1.0


def test_whole_model_targets_count_the_whole_model(data: Path) -> None:
    for quantity in ("parameters", "macs"):
        result = compressed(data, f"{quantity}=60%")
        change = getattr(result.report.totals, quantity)
        assert change.after <= 0.6 * change.before


def test_less_budget_does_more_predicted_damage(data: Path) -> None:
    damages = []
    for share in (80, 50, 25):
        selection = compressed(data, f"pointwise-parameters={share}%").report.selection
        assert selection is not None
        damages.append(selection.predicted_damage)
        shares = [point[0] for point in selection.curve]
        assert shares == sorted(shares)
        assert selection.measure == "KL divergence, nats"
    assert damages == sorted(damages)


def test_what_cannot_be_reached_is_a_failed_check(data: Path) -> None:
    with pytest.raises(CheckFailedError, match=r"cannot be reached: the least is \d+\.\d%"):
        compressed(data, "pointwise-parameters=0.5%")


def test_measurements_are_kept_and_used_again(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "sensitivity.json"
    first = compressed(data, "pointwise-parameters=40%", save_sensitivity=file)
    again = compressed(data, "pointwise-parameters=40%", sensitivity=file)
    assert [s.layout for s in again.report.sites] == [s.layout for s in first.report.sites]
    other = classifier()
    changed = onnx.numpy_helper.to_array(other.graph.initializer[0]) * 2
    other.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(changed, "w1"))
    with pytest.raises(UsageError, match="no measurement of 'conv1'"):
        onnx_igpc.compress(
            other, onnx_igpc.Budget("pointwise-parameters=40%", sensitivity=file), calibration=data
        )


@pytest.mark.parametrize("text", ["", "{}", '{"version": 99, "sites": {}}'])
def test_a_file_of_another_kind_is_refused(data: Path, tmp_path: Path, text: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(UsageError, match="`sensitivity`"):
        compressed(data, "pointwise-parameters=40%", sensitivity=file)


def test_equal_runs_write_equal_bytes(data: Path) -> None:
    first = compressed(data, "pointwise-parameters=40%").model
    second = compressed(data, "pointwise-parameters=40%").model
    assert first.SerializeToString() == second.SerializeToString()


def test_learned_groups_are_no_worse_than_contiguous_ones(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Errors of fits in two metrics are not to be compared: both are to be fitted in one.
    monkeypatch.setattr(basis, "known_fisher", lambda *given: ({}, []))

    def errors(grouping: str) -> list[float]:
        report = onnx_igpc.compress(
            classifier(),
            onnx_igpc.Published(8, grouping=grouping),
            calibration=onnx_igpc.Calibration(data, sequential=False),
        ).report
        return [site.error or 0.0 for site in report.rewritten]

    contiguous, learned = errors("contiguous"), errors("learned")
    assert all(a <= b * (1 + 1e-3) for a, b in zip(learned, contiguous, strict=True))
    assert sum(learned) < sum(contiguous)


def test_the_digest_tells_the_choice(data: Path) -> None:
    result = compressed(data, "pointwise-parameters=40%")
    digest = read_digest(result.model)
    assert digest is not None
    assert digest.selection == result.report.selection
    assert [site.layout for site in digest.sites] == [site.layout for site in result.report.sites]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "pointwise-parameters=40%"}, "give `calibration`"),
        ({"grouping": "learned"}, "give `calibration`"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        onnx_igpc.compress(classifier(), **options_of(**options))
