"""External data: read only from the model's folder, checked before anything relies on it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnx_igpc.errors import ModelError
from onnx_igpc.graph.external_data import (
    ExternalData,
    content_name,
    expected_bytes,
    is_external,
    set_location,
)
from onnx_igpc.graph.model import load_model, open_model
from tests.helpers import pointwise_model

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)


def external(
    location: str, offset: int | None = None, length: int | None = None
) -> onnx.TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3, 4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder ``model`` with a data file ``w.bin``, and ``secret.bin`` of the same size beside."""
    inside = tmp_path / "model"
    (inside / "sub").mkdir(parents=True)
    for path in (inside / "w.bin", inside / "sub" / "w.bin", tmp_path / "secret.bin"):
        path.write_bytes(VALUES.tobytes())
    return inside


@pytest.mark.parametrize("location", ["w.bin", "sub/w.bin", "./w.bin"])
def test_values_are_read(location: str, folder: Path) -> None:
    data = ExternalData(folder)
    for tensor in (external(location), external(location, 0), external(location, 0, 48)):
        data.check(tensor)
        np.testing.assert_array_equal(data.array(tensor), VALUES)


def test_offset_selects_bytes(folder: Path) -> None:
    (folder / "long.bin").write_bytes(b"\0" * 128 + VALUES.tobytes() + b"\1" * 16)
    data = ExternalData(folder)
    data.check(external("long.bin", 128, 48))
    np.testing.assert_array_equal(data.array(external("long.bin", 128, 48)), VALUES)


@pytest.mark.parametrize(
    "location",
    [
        "../secret.bin",
        "sub/../../secret.bin",
        "sub/../w.bin",
        "..",
        "",
        "..\\secret.bin",
        "C:\\secret.bin",
        "w.bin\0",
    ],
)
def test_locations_outside_the_folder_are_refused(location: str, folder: Path) -> None:
    data = ExternalData(folder)
    for use in (data.check, data.array, data.read_bytes):
        with pytest.raises(ModelError, match=r"outside the model's folder.*save the model again"):
            use(external(location))


def test_absolute_locations_are_refused_even_inside(folder: Path) -> None:
    for path in (folder.parent / "secret.bin", folder / "w.bin"):
        with pytest.raises(ModelError, match="outside the model's folder"):
            ExternalData(folder).check(external(str(path)))


def test_links_out_of_the_folder_are_refused(folder: Path) -> None:
    (folder / "link.bin").symlink_to(folder.parent / "secret.bin")
    (folder / "out").symlink_to(folder.parent)
    (folder / "fine.bin").symlink_to(folder / "w.bin")
    data = ExternalData(folder)
    for location in ("link.bin", "out/secret.bin"):
        with pytest.raises(ModelError, match="outside the model's folder"):
            data.check(external(location))
    np.testing.assert_array_equal(data.array(external("fine.bin")), VALUES)


def test_missing_data_is_named(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.bin of tensor 'w' is missing"):
        ExternalData(folder).check(external("none.bin"))
    with pytest.raises(ModelError, match="is missing"):
        ExternalData(folder).check(external("sub"))


def test_truncated_data(folder: Path) -> None:
    (folder / "w.bin").write_bytes(VALUES.tobytes()[:-1])
    with pytest.raises(ModelError, match=r"ends before tensor 'w' \(bytes 0 to 48\)"):
        ExternalData(folder).check(external("w.bin", 0, 48))
    with pytest.raises(ModelError):
        ExternalData(folder).check(external("w.bin"))
    with pytest.raises(ModelError, match="ends before"):
        ExternalData(folder).check(external("w.bin", 4096, 48))


def test_data_that_shrinks_after_the_check_is_not_copied(folder: Path) -> None:
    data = ExternalData(folder)
    tensor = external("w.bin", 0, 48)
    data.check(tensor)
    (folder / "w.bin").write_bytes(b"short")
    with pytest.raises(ModelError):
        data.write([tensor], io.BytesIO())


@pytest.mark.parametrize("length", [0, 47, 49])
def test_wrong_length(length: int, folder: Path) -> None:
    (folder / "w.bin").write_bytes(bytes(100))
    with pytest.raises(ModelError, match=f"needs 48 bytes, but its entry says {length}"):
        ExternalData(folder).check(external("w.bin", 0, length))


@pytest.mark.parametrize(("key", "value"), [("offset", "-4"), ("length", "-1"), ("offset", "x")])
def test_nonsense_entries(key: str, value: str, folder: Path) -> None:
    tensor = external("w.bin")
    tensor.external_data.add(key=key, value=value)
    with pytest.raises(ModelError, match=r"negative|unreadable"):
        ExternalData(folder).check(tensor)


def test_a_length_that_is_left_out_is_that_of_the_shape(folder: Path) -> None:
    (folder / "two.bin").write_bytes(VALUES.tobytes() + bytes(48))
    data = ExternalData(folder)
    data.check(external("two.bin", 0))
    np.testing.assert_array_equal(data.array(external("two.bin", 0)), VALUES)
    np.testing.assert_array_equal(data.array(external("two.bin", 48)), np.zeros((3, 4)))


def test_a_model_in_memory_has_no_external_data() -> None:
    with pytest.raises(ModelError, match="pass its path instead"):
        ExternalData(None).array(external("w.bin"))


def test_open_model_checks_every_tensor(tmp_path: Path) -> None:
    onnx.save(
        pointwise_model(),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="m.data",
        size_threshold=0,
    )
    data = (tmp_path / "m.data").read_bytes()
    open_model(tmp_path / "m.onnx")
    (tmp_path / "m.data").write_bytes(data[:-1])
    with pytest.raises(ModelError, match="ends before"):
        open_model(tmp_path / "m.onnx")
    (tmp_path / "m.data").unlink()
    with pytest.raises(ModelError, match="missing"):
        open_model(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("data_type", "count", "expected"),
    [
        (TensorProto.FLOAT, 3, 12),
        (TensorProto.FLOAT16, 3, 6),
        (TensorProto.BFLOAT16, 3, 6),
        (TensorProto.DOUBLE, 3, 24),
        (TensorProto.BOOL, 3, 3),
        (TensorProto.COMPLEX128, 3, 48),
        (TensorProto.INT4, 3, 2),
        (TensorProto.FLOAT8E4M3FN, 3, 3),
        (TensorProto.STRING, 3, None),
        (TensorProto.UNDEFINED, 3, None),
    ],
)
def test_expected_bytes(data_type: int, count: int, expected: int | None) -> None:
    assert expected_bytes(TensorProto(data_type=data_type, dims=[count])) == expected


def test_expected_bytes_of_a_scalar_and_of_nothing() -> None:
    assert expected_bytes(TensorProto(data_type=TensorProto.FLOAT)) == 4
    assert expected_bytes(TensorProto(data_type=TensorProto.FLOAT, dims=[0, 5])) == 0


def test_set_location_replaces_inline_data() -> None:
    tensor = onnx.numpy_helper.from_array(VALUES, "w")
    assert not is_external(tensor)
    set_location(tensor, "w.bin", 64, 48)
    assert is_external(tensor)
    assert not tensor.HasField("raw_data")
    entries = {entry.key: entry.value for entry in tensor.external_data}
    assert entries == {"location": "w.bin", "offset": "64", "length": "48"}


def test_write_copies_from_file_scratch_and_message(folder: Path) -> None:
    data = ExternalData(folder)
    new = data.to_scratch("new", VALUES + 1)
    assert (new.name, list(new.dims), new.data_type) == ("new", list(VALUES.shape), 1)
    np.testing.assert_array_equal(data.array(new), VALUES + 1)
    inline = onnx.numpy_helper.from_array(VALUES + 2, "inline")
    tensors = [external("w.bin"), new, inline]
    file = io.BytesIO()
    offsets = data.write(tensors, file)
    assert [offsets[id(tensor)] for tensor in tensors] == [0, 64, 128]
    for index, tensor in enumerate(tensors):
        start = offsets[id(tensor)]
        assert file.getvalue()[start : start + 48] == (VALUES + index).tobytes()


def test_content_name_depends_on_content_alone() -> None:
    first = content_name("m.onnx", io.BytesIO(b"abc"))
    assert first == content_name("m.onnx", io.BytesIO(b"abc"))
    assert first != content_name("m.onnx", io.BytesIO(b"abd"))
    assert first == "m.onnx.ba7816bf8f01cfea.data"


def test_links_of_a_model_cache_are_followed_into_the_folder_of_the_real_model(
    tmp_path: Path,
) -> None:
    """Caches of model hubs: the model and its data are links into one folder of blobs."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    saved = pointwise_model(64, 64)
    onnx.save(saved, blobs / "m.onnx", save_as_external_data=True, location="d", size_threshold=0)
    model = load_model(blobs / "m.onnx")
    (blobs / "m.onnx").rename(blobs / "aaaa")
    (blobs / "d").rename(blobs / "bbbb")
    (snapshot / "m.onnx").symlink_to("../blobs/aaaa")
    (snapshot / "d").symlink_to("../blobs/bbbb")
    loaded = load_model(snapshot / "m.onnx")
    for before, after in zip(model.graph.initializer, loaded.graph.initializer, strict=True):
        np.testing.assert_array_equal(
            onnx.numpy_helper.to_array(before), onnx.numpy_helper.to_array(after)
        )
