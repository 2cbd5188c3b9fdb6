"""Sessions: providers, fallbacks, models too large for one protobuf, extra outputs."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from onnx_igpc.errors import CheckFailedError, MissingExtraError, ModelError, UsageError
from onnx_igpc.graph.model import open_model
from onnx_igpc.runtime import session as runtime
from onnx_igpc.runtime import session_source
from onnx_igpc.runtime.session import check_provider, make_session, provider_name, run_session
from tests import runtime_graphs as graphs
from tests.helpers import GraphBuilder, pointwise_model

X = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)


class FakeSession:
    """A session that came up without the provider that was asked for."""

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


def expected(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    w = onnx.numpy_helper.to_array(model.graph.initializer[0])[:, :, 0, 0]
    return np.asarray(np.maximum(np.einsum("fc,bchw->bfhw", w, x), 0).mean(axis=(2, 3)))


def test_session_from_model_and_from_path(tmp_path: Path) -> None:
    model = graphs.classifier()
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    for source in (model, path, str(path)):
        result = run_session(make_session(source, threads=1), {"x": X})
        np.testing.assert_allclose(result["scores"], expected(model, X), rtol=1e-5, atol=1e-6)


def test_extra_outputs_come_after_the_models_own(tmp_path: Path) -> None:
    model = graphs.classifier()
    before = model.SerializeToString()
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, location="w.bin")
    for source in (graphs.classifier(), path):
        result = run_session(make_session(source, extra_outputs=["c", "c"]), {"x": X})
        assert list(result) == ["scores", "c"]
        assert result["c"].shape == (2, 5, 8, 8)
        assert result["c"].min() < 0
    assert graphs.classifier().SerializeToString() == before


def test_model_with_external_data_needs_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(
        graphs.classifier(), path, save_as_external_data=True, size_threshold=0, location="w.bin"
    )
    model = onnx.load(path, load_external_data=False)
    with pytest.raises(ModelError, match="external files: pass its path"):
        make_session(model)
    session = make_session(open_model(path))
    want = expected(graphs.classifier(), X)
    np.testing.assert_allclose(run_session(session, {"x": X})["scores"], want, rtol=1e-5)


def test_model_too_large_to_serialize_goes_through_a_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(session_source, "MAX_INLINE_BYTES", 100)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = graphs.classifier(classes=200)
    model.doc_string = "kept"
    before = model.SerializeToString()
    session = make_session(model)
    [folder] = tmp_path.iterdir()
    assert (folder / "model.onnx").is_file()
    assert onnx.load(folder / "model.onnx").doc_string == "kept"
    np.testing.assert_allclose(
        run_session(session, {"x": X})["scores"], expected(model, X), rtol=1e-5, atol=1e-6
    )
    assert model.SerializeToString() == before
    del session
    gc.collect()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("provider", "install"),
    [
        ("cuda", r"pip install 'onnx-igpc\[gpu\]'"),
        ("tensorrt", r"pip install 'onnx-igpc\[gpu\]' tensorrt"),
        ("openvino", "pip install onnxruntime-openvino"),
        ("migraphx", "pip install onnxruntime-migraphx"),
        ("coreml", "an onnxruntime build that has it"),
    ],
)
def test_unavailable_provider_says_how_to_get_it(
    provider: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(
        CheckFailedError, match=f"{provider} is not in .*, which has cpu: .*{install}"
    ) as raised:
        make_session(graphs.classifier(), provider)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 1


def test_fallback_to_another_provider_is_a_failed_check() -> None:
    log = ["noise", "2026 [E:onnxruntime:Default] Failed to load libcublas.so.12"]
    with pytest.raises(CheckFailedError, match=r"asked for cuda but .* CPU: .*libcublas") as raised:
        check_provider(FakeSession(), "cuda", log)  # type: ignore[arg-type]
    assert raised.value.exit_code == 1
    check_provider(FakeSession(), "cpu")  # type: ignore[arg-type]


def test_fallback_inside_onnxruntime_is_caught_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The C++ side reports a provider that cannot be loaded on stderr only, and carries on."""
    made = {}

    def fall_back(*args: object, **options: object) -> FakeSession:
        made.update(options)
        os.write(2, b"[E:onnxruntime:Default] libcudnn.so.9: cannot open shared object file\n")
        return FakeSession()

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: list(runtime.PROVIDERS.values())
    )
    monkeypatch.setattr(onnxruntime, "InferenceSession", fall_back)
    monkeypatch.setattr(
        onnxruntime, "preload_dlls", lambda: made.update(preloaded=True), raising=False
    )
    with pytest.raises(CheckFailedError, match=r"asked for cuda .* libcudnn.so.9: cannot open"):
        make_session(graphs.classifier(), "cuda")
    assert made["preloaded"]
    assert made["enable_fallback"] == 0
    assert made["providers"] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    with pytest.raises(CheckFailedError, match="asked for tensorrt"):
        make_session(graphs.classifier(), "tensorrt")
    assert made["providers"][1] == "CUDAExecutionProvider"


def test_missing_onnxruntime_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'onnx-igpc\[cpu\]'"):
        make_session(graphs.classifier())


def test_new_weights_of_a_model_kept_on_disk_reach_the_session(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model = graphs.classifier(classes=200)
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, location="w.bin")
    opened = open_model(path)
    weight = opened.array(opened.proto.graph.initializer[0])
    opened.proto.graph.initializer[0].CopyFrom(opened.new_tensor("w", -weight))
    result = run_session(make_session(opened), {"x": -X})
    want = expected(graphs.classifier(classes=200), X)
    np.testing.assert_allclose(result["scores"], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("source", "message"),
    [(b"hello", "onnxruntime cannot load it"), (None, "no such model file")],
)
def test_unreadable_model_is_one_line(tmp_path: Path, source: bytes | None, message: str) -> None:
    path = tmp_path / "bad.onnx"
    if source is not None:
        path.write_bytes(source)
    with pytest.raises(ModelError, match=message) as raised:
        make_session(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


def test_run_that_fails_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    session = make_session(graphs.classifier())
    with pytest.raises(ModelError, match=r"cannot run on x \[2, 4, 8, 8\]") as raised:
        run_session(session, {"x": np.zeros((2, 4, 8, 8), np.float32)})
    assert "\n" not in str(raised.value)
    assert capfd.readouterr().err == ""


def test_what_to_do_about_names_operators_and_batch_sizes_is_said() -> None:
    twins = pointwise_model()
    for node in twins.graph.node:
        node.name = "same"
    with pytest.raises(ModelError, match=r"two nodes.*give every node a name of its own"):
        make_session(twins)
    foreign = pointwise_model()
    foreign.graph.node[0].domain = "elsewhere"
    foreign.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    with pytest.raises(ModelError, match=r"not a registered.*compress without `calibration`"):
        make_session(foreign)
    builder = GraphBuilder()
    builder.input("x", ["batch", 4])
    builder.add("Reshape", ["x", builder.stored("shape", np.array([1, 4]))], "y")
    builder.output("y", [1, 4])
    with pytest.raises(ModelError, match=r"cannot run on x \[2, 4\].*export the model") as raised:
        run_session(make_session(builder.model(check=False)), {"x": np.zeros((2, 4), np.float32)})
    assert "\n" not in str(raised.value)
    model = pointwise_model()
    del model.graph.input[0].type.tensor_type.shape.dim[1:]
    for size in ("channels", "height", "width"):
        model.graph.input[0].type.tensor_type.shape.dim.add(dim_param=size)
    with pytest.raises(ModelError, match="with the channels that the model takes"):
        run_session(make_session(model), {"x": np.zeros((1, 3, 5, 5), np.float32)})


def test_session_is_quiet_about_weights_listed_as_inputs(
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = graphs.classifier()
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [5, 3, 1, 1]))
    make_session(model)
    assert capfd.readouterr().err == ""


def test_threads_of_a_session_stop_spinning_when_its_run_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise sessions that take turns, as in a benchmark, slow each other down."""
    made = []

    def spy(source: object, options: onnxruntime.SessionOptions, **rest: object) -> object:
        made.append(options.get_session_config_entry("session.force_spinning_stop"))
        return real(source, options, **rest)

    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    make_session(graphs.classifier(), threads=2)
    make_session(graphs.classifier(), threads=2, spinning=True)
    assert made == ["1", "0"]


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="unknown execution provider 'gpu'"):
        make_session(graphs.classifier(), "gpu")
    with pytest.raises(UsageError, match="threads"):
        make_session(graphs.classifier(), threads=0)
    with pytest.raises(UsageError, match="optimization"):
        make_session(graphs.classifier(), optimization="most")
    with pytest.raises(ModelError, match="no node of the model computes 'nothing'"):
        make_session(graphs.classifier(), extra_outputs=["nothing"])
    assert provider_name("CUDA") == provider_name("CUDAExecutionProvider")


def test_too_little_memory_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError(
            "pthread_create failed, error code: 12 error msg: Cannot allocate memory"
        )

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(ModelError, match=r"^not enough memory to load the model: pthread_create"):
        make_session(pointwise_model(4, 4))
