"""Compressed models in other people's tools, each where it is installed; see benchmarks/clients.py."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.client_reference import BATCHES, Reference
from benchmarks.client_runners import MODULES, load_feeds, save_feeds
from benchmarks.clients import (
    CLIENTS,
    LOSSY,
    Outcome,
    Row,
    measure,
    table,
    try_client,
    verdict,
)
from onnx_igpc import Quantization, compress, quantize
from onnx_igpc.graph.model import save_model
from onnx_igpc.planning.options import Published
from tests.helpers import GraphBuilder, pointwise_model

DIGITS = Path(__file__).resolve().parents[1] / "sample_models" / "digits_net.onnx"
DATA = DIGITS.with_name("digits_calibration.npz")
TOLERANCE = 1e-3


def require(client: str) -> None:
    """Skip where a client, or what it needs, is not installed."""
    module = MODULES[client]
    needed = {
        "netron": ["playwright"],
        "quantize_dynamic": ["sympy"],
        "quantize_static": ["sympy"],
    }
    for name in (module, *needed.get(client, [])):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{client} needs {name}: pip install 'onnx-igpc[clients,browser]'")
    if client == "netron" and not (shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("netron is looked at in Chromium, which is not installed")


def uneven_model() -> GraphBuilder:
    """Layers whose layouts replicate channels, have uneven groups, and share a weight."""
    builder = GraphBuilder(opset=13)
    builder.input("x", [1, 36, 5, 5])
    value = builder.conv("x", "a", 36, 50, bias=True)
    value = builder.batch_norm(value, "norm", 50)
    value = builder.activation(value, "act", "Relu")
    value = builder.conv(value, "b", 50, 50, strides=[2, 2])
    value = builder.add("Conv", [value, "b_w"], "c")
    value = builder.conv(value, "last", 50, 50, kernel=3, group=50, pads=[1, 1, 1, 1])
    builder.output(builder.add("Relu", [value], "y"))
    return builder


@pytest.mark.parametrize("client", CLIENTS)
def test_digits_network(client: str, tmp_path: Path) -> None:
    require(client)
    compress(DIGITS, Published(16)).save(tmp_path / "small.onnx")
    original, small = (
        try_client(client, Reference.make(path, tmp_path), tmp_path)
        for path in (DIGITS, tmp_path / "small.onnx")
    )
    assert verdict(original, small, TOLERANCE) == "yes", (original, small)


def test_digits_network_calibrated(tmp_path: Path) -> None:
    """Layouts out of the wider family, channels put together by what they carry; on real inputs."""
    clients = [each for each in CLIENTS if each != "netron"]
    for client in clients:
        require(client)
    options = ["--target", "pointwise-parameters=50%", "--include", "conv_pw_3"]
    options += ["--calibration", str(DATA), "--samples", "16"]
    here = dict.fromkeys(clients, sys.executable)
    rows = measure(DIGITS, options, here, tmp_path, DATA)
    assert [row.verdict for row in rows] == ["yes"] * len(clients), rows


@pytest.mark.parametrize("client", [each for each in CLIENTS if each not in LOSSY])
def test_uneven_groups(client: str, tmp_path: Path) -> None:
    require(client)
    result = compress(uneven_model().model(), Published(8))
    assert len(result.report.rewritten) == 3
    result.save(tmp_path / "small.onnx")
    outcome = try_client(client, Reference.make(tmp_path / "small.onnx", tmp_path), tmp_path)
    assert verdict(outcome, outcome, TOLERANCE) == "yes", outcome


@pytest.mark.parametrize("client", ["openvino", "onnxslim", "onnxsim"])
def test_half_precision(client: str, tmp_path: Path) -> None:
    require(client)
    result = compress(pointwise_model(48, 48, dtype=np.float16), Published(16))
    assert result.report.rewritten
    save_model(result.model, tmp_path / "half.onnx")
    reference = Reference.make(tmp_path / "half.onnx", tmp_path)
    outcome = try_client(client, reference, tmp_path)
    assert verdict(outcome, outcome, reference.tolerance) == "yes", outcome


@pytest.mark.parametrize("shared", [False, True])
def test_static_quantization_of_a_plain_float16_graph(shared: bool, tmp_path: Path) -> None:
    """What docs/clients.md says of onnxruntime: no layer of ours is in this graph.

    Without float16 convolutions, the prepared graph computes them in float32. Where all that reads a
    Concat can do so, Concat is, too; where something else reads it, as our Gather would, it stays in
    float16 and is given a QuantizeLinear. Should this test fail, correct the page.
    """
    require("quantize_static")
    builder = GraphBuilder(opset=17, dtype=np.float16)
    builder.input("x", [1, 4, 6, 6])
    halves = [builder.conv("x", name, 4, 4) for name in ("a", "b")]
    builder.add("Concat", halves, "both", axis=1)
    builder.output(builder.conv("both", "y", 8, 4))
    if shared:
        builder.output("both")
    onnx.save(builder.model(), tmp_path / "plain.onnx")
    reference = Reference.make(tmp_path / "plain.onnx", tmp_path)
    outcome = try_client("quantize_static", reference, tmp_path)
    assert outcome.loads is not shared, outcome
    if shared:
        assert "Type 'tensor(float16)' of input parameter" in outcome.message
        assert "operator (QuantizeLinear)" in outcome.message


def test_feeds_keep_any_name(tmp_path: Path) -> None:
    first = {"a/b:0": np.ones(2, np.float32), "": np.zeros((1, 3), np.int64)}
    second = {name: values + 1 for name, values in first.items()}
    save_feeds(tmp_path / "feeds.npz", [first, second], ["out/1"])
    found, outputs = load_feeds(tmp_path / "feeds.npz")
    assert outputs == ["out/1"]
    assert [list(feeds) for feeds in found] == [list(first)] * 2
    np.testing.assert_array_equal(found[0]["a/b:0"], first["a/b:0"])
    np.testing.assert_array_equal(found[1][""], second[""])


def test_inputs_can_be_data(tmp_path: Path) -> None:
    """A sample at a time, spread over what is there."""
    reference = Reference.make(DIGITS, tmp_path, DATA)
    assert len(reference.batches) == BATCHES
    [name] = reference.batches[0]
    with np.load(DATA) as stored:
        [key] = [each for each in stored.files if stored[each].ndim == 4]
        np.testing.assert_array_equal(reference.batches[0][name], stored[key][:1])
    drawn = Reference.make(DIGITS, tmp_path)
    assert not np.array_equal(drawn.batches[0][name], reference.batches[0][name])
    assert not np.array_equal(drawn.batches[0][name], drawn.batches[1][name])


@pytest.mark.parametrize(
    ("original", "compressed", "said"),
    [
        (1e-6, 2e-6, "yes"),
        (1e-6, 1e-2, "BROKEN"),
        (1e-6, float("nan"), "BROKEN"),
        (0.5, 0.5, "neither"),
        (0.5, 1e-6, "better"),
    ],
)
def test_verdicts(original: float, compressed: float, said: str) -> None:
    first, second = (Outcome("openvino", True, "1", d, 20.0) for d in (original, compressed))
    assert verdict(first, second, TOLERANCE) == said
    assert f"| m | {said} |" in table([Row("m", said, first, second)])


def test_verdict_of_lossy_tools_is_about_what_they_lose() -> None:
    original, equal, worse = (Outcome("fp16", True, "1", 0.5, snr) for snr in (40, 39, 20))
    refused = Outcome("fp16", False, message="no")
    assert verdict(original, equal, TOLERANCE) == "yes"
    assert verdict(original, worse, TOLERANCE) == "worse"
    assert verdict(original, refused, TOLERANCE) == "BROKEN"
    assert verdict(refused, refused, TOLERANCE) == "neither"


def test_a_client_that_fails_is_an_outcome(tmp_path: Path) -> None:
    """Its last line is kept, and nothing is raised."""
    outcome = try_client("onnxsim", Reference.make(DIGITS, tmp_path), tmp_path, "/bin/false")
    assert not outcome.loads
    assert outcome.message == "exit code 1"


def test_a_quantized_model_in_openvino(tmp_path: Path) -> None:
    """What ``quantize`` writes, of the original and on top of a rewrite."""
    require("openvino")
    compress(DIGITS, Published(16)).save(tmp_path / "small.onnx")
    for model in (DIGITS, tmp_path / "small.onnx"):
        quantize(model, DATA, quantization=Quantization(method="minmax")).save(tmp_path / "q.onnx")
        reference = Reference.make(tmp_path / "q.onnx", tmp_path, DATA)
        outcome = try_client("openvino", reference, tmp_path)
        assert verdict(outcome, outcome, reference.tolerance) == "yes", outcome
