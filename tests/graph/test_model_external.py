"""Models with external data: read, written and replaced without loss."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from onnx_igpc.errors import ModelError
from onnx_igpc.graph import model as model_io
from onnx_igpc.graph.model import OpenModel, load_model, open_model, save_model
from onnx_igpc.graph.traversal import tensors
from tests.helpers import pointwise_model, run
from tests.real_models import each_model
from tests.rich_model import rich_model, set_fields


def save_external(model: onnx.ModelProto, path: Path, one_file: bool = True) -> None:
    """As exporters write it: every tensor outside, in one file or one file each."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.save(
        copy,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=one_file,
        location=f"{path.name}_data" if one_file else None,
        size_threshold=0,
        convert_attribute=True,
    )


def without_data(model: onnx.ModelProto) -> list[tuple[str, object]]:
    """Every set field but those that say where the tensors' data lies."""
    places = (".raw_data", ".data_location", ".external_data")
    return [
        (path, value)
        for path, value in set_fields(model)
        if not any(place in path for place in places)
    ]


def arrays(model: OpenModel) -> list[bytes]:
    return [model.array(tensor).tobytes() for tensor in tensors(model.proto)]


@each_model
def test_real_models_round_trip_with_external_data(path: Path, tmp_path: Path) -> None:
    save_external(onnx.load(path), tmp_path / "e.onnx")
    source = open_model(tmp_path / "e.onnx")
    save_model(source, tmp_path / "m.onnx")
    again = open_model(tmp_path / "m.onnx")
    assert without_data(again.proto) == without_data(source.proto)
    assert arrays(again) == arrays(source)


# --------------------------------------------------------------------------- external data


@pytest.mark.parametrize("one_file", [True, False])
def test_round_trip_with_external_data(one_file: bool, tmp_path: Path) -> None:
    model = rich_model()
    save_external(model, tmp_path / "e.onnx", one_file)
    source = open_model(tmp_path / "e.onnx")
    assert source.has_external_data
    before = source.proto.SerializeToString()
    out = tmp_path / "out"
    out.mkdir()
    save_model(source, out / "m.onnx")
    assert source.proto.SerializeToString() == before, "saving must not edit the model"
    again = open_model(out / "m.onnx")
    assert without_data(again.proto) == without_data(model)
    assert arrays(again) == arrays(OpenModel(model))
    names = sorted(path.name for path in out.iterdir())
    assert len(names) == 2
    assert names[0] == "m.onnx"
    assert names[1].startswith("m.onnx.")
    assert names[1].endswith(".data")
    assert load_model(out / "m.onnx") == load_model(tmp_path / "e.onnx")


def test_written_data_is_aligned_and_named_by_its_content(tmp_path: Path) -> None:
    names = []
    for index, seed in enumerate((0, 0, 1)):
        save_external(pointwise_model(seed=seed), tmp_path / "e.onnx")
        folder = tmp_path / str(index)
        folder.mkdir()
        save_model(open_model(tmp_path / "e.onnx"), folder / "m.onnx")
        again = onnx.load(folder / "m.onnx", load_external_data=False)
        for tensor in again.graph.initializer:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            assert int(entries["offset"]) % 64 == 0
            assert int(entries["length"]) == np.prod(tensor.dims) * 4
        names.append(entries["location"])
    assert names[0] == names[1] != names[2]


def test_onnxruntime_and_onnx_read_what_is_written(tmp_path: Path) -> None:
    import onnxruntime as ort

    model = pointwise_model()
    save_external(model, tmp_path / "e.onnx")
    target = tmp_path / "m.onnx"
    save_model(open_model(tmp_path / "e.onnx"), target)
    onnx.checker.check_model(target)
    session = ort.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((2, 32, 5, 5)).astype(np.float32)
    np.testing.assert_array_equal(session.run(["y"], {"x": x})[0], run(model, {"x": x})["y"])


def test_new_tensors_of_a_model_with_external_data_leave_memory(tmp_path: Path) -> None:
    save_external(pointwise_model(), tmp_path / "e.onnx")
    source = open_model(tmp_path / "e.onnx")
    values = np.arange(32 * 32, dtype=np.float32).reshape(32, 32, 1, 1)
    tensor = source.new_tensor("conv_w", values)
    small = source.new_tensor("conv_b", np.zeros(32, np.float32))
    assert not tensor.raw_data
    assert small.raw_data
    np.testing.assert_array_equal(source.array(tensor), values)
    for old, new in zip(source.proto.graph.initializer, (tensor, small), strict=False):
        old.CopyFrom(new)
    save_model(source, tmp_path / "m.onnx")
    again = load_model(tmp_path / "m.onnx")
    np.testing.assert_array_equal(numpy_helper.to_array(again.graph.initializer[0]), values)


def test_new_tensors_of_a_model_in_one_file_stay_in_it() -> None:
    tensor = OpenModel(pointwise_model()).new_tensor("t", np.zeros((64, 64), np.float16))
    assert (tensor.name, len(tensor.raw_data)) == ("t", 64 * 64 * 2)
    assert tensor.data_type == TensorProto.FLOAT16


def test_a_model_too_large_for_one_message_is_written_with_external_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_io, "MAX_INLINE_BYTES", 2000)
    model = pointwise_model()
    save_model(model, tmp_path / "m.onnx")
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(ModelError, match="too large"):
        load_model(tmp_path / "m.onnx")
    monkeypatch.undo()
    assert load_model(tmp_path / "m.onnx").SerializeToString() == model.SerializeToString()


def test_writing_again_replaces_the_data_of_the_model_that_is_replaced(tmp_path: Path) -> None:
    other = tmp_path / "m.onnx.data"
    other.write_bytes(b"somebody else's")
    for seed in (0, 1):
        save_external(pointwise_model(seed=seed), tmp_path / "e.onnx")
        save_model(open_model(tmp_path / "e.onnx"), tmp_path / "m.onnx")
    own = list(tmp_path.glob("m.onnx.*.data"))
    assert len(own) == 1
    assert other.exists()
    assert load_model(tmp_path / "m.onnx") == load_model(tmp_path / "e.onnx")


# --------------------------------------------------------------------------- crashes and failures


@pytest.mark.parametrize("survived", [0, 1])
def test_a_crash_leaves_the_old_pair_or_the_new_pair(
    survived: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies at a rename: before the data's (0) or between data and model (1)."""
    target = tmp_path / "m.onnx"
    versions = []
    for seed in (0, 1):
        model = pointwise_model(seed=seed)
        save_external(model, tmp_path / f"{seed}.onnx")
        versions.append(model.SerializeToString())
    save_model(open_model(tmp_path / "0.onnx"), target)
    done = 0
    publish = model_io.publish

    class KilledError(BaseException):
        """Nothing catches it, as nothing catches a kill."""

    def dying(*arguments: object) -> None:
        nonlocal done
        if done == survived:
            raise KilledError
        done += 1
        publish(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(model_io, "publish", dying)
    with pytest.raises(KilledError):
        save_model(open_model(tmp_path / "1.onnx"), target)
    assert load_model(target).SerializeToString() == versions[0]
    monkeypatch.undo()
    save_model(open_model(tmp_path / "1.onnx"), target)
    assert load_model(target).SerializeToString() == versions[1]


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_written_files_have_the_permissions_of_new_files(mask: int, tmp_path: Path) -> None:
    save_external(pointwise_model(), tmp_path / "e.onnx")
    out = tmp_path / "out"
    out.mkdir()
    before = os.umask(mask)
    try:
        save_model(open_model(tmp_path / "e.onnx"), out / "m.onnx")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o666 & ~mask}
