"""One client on one model, in an environment where that client is installed.

``python client_runners.py CLIENT MODEL FEEDS.npz OUT`` imports numpy and the client, nothing of this
project. A runtime runs the model on the feeds (Netron: draws it) and writes ``OUT.npz``; a tool writes ``OUT.onnx``.
The last line of stdout is the client's version. What the client raises ends the process with
code 1 and its type and text as the last line of stderr; a crash of native code ends it otherwise.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Feeds = dict[str, np.ndarray]
_OPSET_PER_CHANNEL = 13
_DRAWN_MS = 120_000
_CHROMIUM = [
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync", "--disable-quic"),
    *("--disable-background-networking", "--disable-component-update"),
]


def openvino(model: Path, feeds: Feeds, outputs: list[str]) -> tuple[str, list[np.ndarray]]:
    """OpenVINO on the CPU in float32."""
    import openvino as ov

    core = ov.Core()
    # Newer processors would compute in bfloat16, which is no comparison.
    compiled = core.compile_model(
        core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    results = compiled(feeds)
    values = [np.asarray(results[compiled.output(index)]) for index in range(len(outputs))]
    return str(ov.__version__), values


def opencv(model: Path, feeds: Feeds, outputs: list[str]) -> tuple[str, list[np.ndarray]]:
    """OpenCV's DNN module on the CPU."""
    import cv2

    net = cv2.dnn.readNetFromONNX(str(model))
    for name, values in feeds.items():
        net.setInput(values, name)
    names = list(net.getUnconnectedOutLayersNames())
    results = dict(zip(names, net.forward(names), strict=True))
    # Its older engine calls an output after the layer that makes it: then the order must do.
    wanted = outputs if set(outputs) <= set(results) else names
    return str(cv2.__version__), [np.asarray(results[name]) for name in wanted]


def netron(model: Path, feeds: Feeds, outputs: list[str]) -> tuple[str, list[np.ndarray]]:
    """Netron, served on this machine and shown in a headless Chromium: how many nodes it draws."""
    import netron as client
    from playwright.sync_api import sync_playwright

    host, port = client.serve(str(model), None, ("127.0.0.1", 0))
    here = f"http://{host}:{port}/"
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path, args=_CHROMIUM)
        page = browser.new_page()
        # Nothing but the page itself, whatever it wants to load or report.
        page.route(lambda url: not url.startswith(here), lambda route: route.abort())
        page.goto(here)
        page.locator("#message-button").click()
        page.wait_for_selector("#canvas g.graph-node", timeout=_DRAWN_MS)
        drawn = page.locator("#canvas g.graph-node").count()
        browser.close()
    client.stop()
    return str(client.__version__), [np.array(drawn)]


def onnxslim(model: Path, out: Path, batches: list[Feeds]) -> str:
    """onnxslim with its defaults."""
    import onnx
    import onnxslim as client

    onnx.save(client.slim(str(model)), out)
    return str(client.__version__)


def onnxsim(model: Path, out: Path, batches: list[Feeds]) -> str:
    """onnxsim (onnx-simplifier) with its defaults, which compare the result with the input."""
    import onnx
    import onnxsim as client

    simplified, agrees = client.simplify(str(model))
    if not agrees:
        raise ValueError("onnxsim's own check says that its result differs from the input")
    onnx.save(simplified, out)
    return str(client.__version__)


def fp16(model: Path, out: Path, batches: list[Feeds]) -> str:
    """onnxconverter-common's conversion to float16, inputs and outputs left as they are.

    Old models list their weights among the inputs; those are to be converted.
    """
    from importlib.metadata import version

    import onnx
    from onnxconverter_common import float16

    proto = onnx.load(model)
    weights = {tensor.name for tensor in proto.graph.initializer}
    ends = {value.name for value in (*proto.graph.input, *proto.graph.output)} - weights
    onnx.save(float16.convert_float_to_float16(proto, keep_io_types=sorted(ends)), out)
    return version("onnxconverter-common")


def quantize_dynamic(model: Path, out: Path, batches: list[Feeds]) -> str:
    """onnxruntime's dynamic quantization; 8-bit unsigned weights, for which it has convolutions."""
    import onnxruntime
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as run

    run(_prepared(model, out), out, weight_type=QuantType.QUInt8)
    return str(onnxruntime.__version__)


def quantize_static(model: Path, out: Path, batches: list[Feeds]) -> str:
    """onnxruntime's static quantization (QDQ) calibrated on all batches.

    A scale per channel from opset 13 on, before which DequantizeLinear has only one.
    """
    import onnx
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader
    from onnxruntime.quantization import quantize_static as run

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = iter(batches)

        def get_next(self) -> Feeds | None:
            return next(self._batches, None)

    prepared = _prepared(model, out)
    opsets = {each.domain: each.version for each in onnx.load(prepared).opset_import}
    run(prepared, out, Reader(), per_channel=opsets[""] >= _OPSET_PER_CHANNEL)
    return str(onnxruntime.__version__)


def _prepared(model: Path, out: Path) -> Path:
    """What onnxruntime's quantization asks for first: shapes inferred, graph optimised."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = out.with_suffix(".prepared.onnx").absolute()
    source = str(model.absolute())
    with contextlib.chdir(prepared.parent):  # it leaves files where it runs, if it fails
        quant_pre_process(source, str(prepared))
    return prepared


RUNTIMES: Mapping[str, Callable[[Path, Feeds, list[str]], tuple[str, list[np.ndarray]]]] = {
    "openvino": openvino,
    "opencv": opencv,
    "netron": netron,
}
"""What gives arrays: the model's outputs or, Netron, the number of nodes drawn."""
TOOLS: Mapping[str, Callable[[Path, Path, list[Feeds]], str]] = {
    "onnxslim": onnxslim,
    "onnxsim": onnxsim,
    "fp16": fp16,
    "quantize_dynamic": quantize_dynamic,
    "quantize_static": quantize_static,
}
MODULES: Mapping[str, str] = {
    "openvino": "openvino",
    "opencv": "cv2",
    "netron": "netron",
    "onnxslim": "onnxslim",
    "onnxsim": "onnxsim",
    "fp16": "onnxconverter_common",
    "quantize_dynamic": "onnxruntime",
    "quantize_static": "onnxruntime",
}
"""The module that must be installed, by client."""


def save_feeds(path: Path, batches: list[Feeds], outputs: list[str]) -> None:
    """Write inputs by name, batch by batch, and the outputs' names as one .npz, whatever the names."""
    arrays: dict[str, Any] = {
        f"{number}/{index}": values
        for number, feeds in enumerate(batches)
        for index, values in enumerate(feeds.values())
    }
    np.savez(path, names=np.array(list(batches[0])), outputs=np.array(outputs), **arrays)


def load_feeds(path: Path) -> tuple[list[Feeds], list[str]]:
    """What :func:`save_feeds` wrote."""
    with np.load(path) as stored:
        names = [str(name) for name in stored["names"]]
        count = sum(key.endswith("/0") for key in stored.files)
        batches = [
            {name: stored[f"{number}/{index}"] for index, name in enumerate(names)}
            for number in range(count)
        ]
        return batches, [str(name) for name in stored["outputs"]]


def main(client: str, model: Path, feeds_file: Path, out: Path) -> None:
    """Run one client; see the module's text."""
    batches, outputs = load_feeds(feeds_file)
    if client in RUNTIMES:
        version, values = RUNTIMES[client](model, batches[0], outputs)
        np.savez(out.with_suffix(".npz"), *values)
    else:
        version = TOOLS[client](model, out.with_suffix(".onnx"), batches)
    print(version)


if __name__ == "__main__":
    try:
        main(sys.argv[1], *map(Path, sys.argv[2:5]))
    except Exception as error:
        text = " ".join(str(error).split())
        sys.exit(f"{type(error).__name__}: {text}")
