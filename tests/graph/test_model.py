"""Reading and writing without loss; files that appear whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_igpc.errors import ModelError, UsageError
from onnx_igpc.graph import model as model_io
from onnx_igpc.graph.cost import count
from onnx_igpc.graph.model import OpenModel, load_model, open_model, save_model
from onnx_igpc.graph.traversal import tensors
from onnx_igpc.graph.view import GraphView
from onnx_igpc.sites.find import find_sites
from tests.helpers import pointwise_model, run
from tests.rich_model import rich_model, set_fields

MODELS = os.environ.get("ONNX_IGPC_MODELS")
MODEL_FILES = sorted(Path(MODELS).glob("*.onnx")) if MODELS else []
IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


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


# --------------------------------------------------------------------------- one file


def test_rich_model_has_what_it_promises() -> None:
    model = rich_model()
    paths = {path for path, _ in set_fields(model)}
    for part in (
        "metadata_props",
        "graph[0].metadata_props",
        "node[0].metadata_props",
        "node[0].doc_string",
        "attribute[0].doc_string",
        "input[0].metadata_props",
        "type[0].denotation",
        "dim[1].denotation",
        "initializer[0].metadata_props",
        "quantization_annotation",
        "sparse_initializer",
        "functions[0].metadata_props",
        "ref_attr_name",
        "training_info[0].update_binding",
        "g[0].metadata_props",
        "model_version",
    ):
        assert any(part in path for path in paths), part


def test_round_trip_in_one_file_is_byte_identical(tmp_path: Path) -> None:
    model = rich_model()
    source, target = tmp_path / "a.onnx", tmp_path / "b.onnx"
    source.write_bytes(model.SerializeToString())
    save_model(open_model(source), target)
    assert target.read_bytes() == source.read_bytes()
    assert list(set_fields(load_model(target))) == list(set_fields(model))
    assert sorted(tmp_path.iterdir()) == [source, target]


@pytest.mark.parametrize("weights", ["initializer", "constant", "input"])
@pytest.mark.parametrize("opset", [7, 17])
def test_saved_model_runs_the_same(weights: str, opset: int, tmp_path: Path) -> None:
    model = pointwise_model(weights=weights, opset=opset)  # type: ignore[arg-type]
    save_model(model, tmp_path / "m.onnx")
    again = load_model(tmp_path / "m.onnx")
    assert again.SerializeToString() == model.SerializeToString()
    np.testing.assert_array_equal(run(again)["y"], run(model)["y"])


def test_unknown_fields_of_a_newer_format_survive(tmp_path: Path) -> None:
    # Field 999 of ModelProto, a varint: what a future version of ONNX may write.
    data = pointwise_model().SerializeToString() + b"\xb8\x3e\x07"
    (tmp_path / "m.onnx").write_bytes(data)
    save_model(open_model(tmp_path / "m.onnx"), tmp_path / "n.onnx")
    assert (tmp_path / "n.onnx").read_bytes() == data


@pytest.mark.skipif(not MODEL_FILES, reason="ONNX_IGPC_MODELS names no folder of models")
@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: path.stem)
def test_real_models_round_trip(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    save_model(open_model(path), target)
    before, after = onnx.load(path), onnx.load(target)
    assert list(set_fields(after)) == list(set_fields(before))
    assert target.read_bytes() == before.SerializeToString()


@pytest.mark.skipif(not MODEL_FILES, reason="ONNX_IGPC_MODELS names no folder of models")
@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: path.stem)
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


def test_a_failing_write_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    target.write_bytes(b"old")

    def fail(file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    with pytest.raises(UsageError, match=r"cannot write .*m\.onnx: No space left"):
        model_io.write_atomically(target, fail)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_output_in_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        save_model(pointwise_model(), tmp_path / "none" / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(IS_ROOT, reason="the superuser may write everywhere")
def test_output_in_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UsageError, match="Permission denied"):
            save_model(pointwise_model(), tmp_path / "m.onnx")
    finally:
        tmp_path.chmod(0o700)


def test_permissions_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above for any user, root too: making the temporary file is what is refused."""

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    with pytest.raises(UsageError, match=r"cannot write .*m\.onnx: Permission denied"):
        save_model(pointwise_model(), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_output_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").mkdir()
    with pytest.raises(UsageError, match="cannot write"):
        save_model(pointwise_model(), tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


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


def test_a_long_name_is_no_problem(tmp_path: Path) -> None:
    target = tmp_path / ("n" * 230 + ".onnx")
    save_model(pointwise_model(), target)
    assert load_model(target)


# --------------------------------------------------------------------------- unreadable input


def refused(path: Path, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        open_model(path)
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message


def test_missing_file_and_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none.onnx", "does not exist")
    refused(tmp_path, "is a folder")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a model, but a text\n",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        bytes(1000),
        b"PK\x03\x04" + bytes(50),
        onnx.TensorProto(dims=[3], data_type=1, name="t").SerializeToString(),
        onnx.ModelProto(ir_version=8).SerializeToString(),
    ],
    ids=["empty", "text", "png", "zeros", "zip", "tensor", "no graph"],
)
def test_files_that_are_no_models(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    refused(path, "not an ONNX model|damaged")


def test_truncated_at_every_tenth(tmp_path: Path) -> None:
    data = pointwise_model(64, 64).SerializeToString()
    path = tmp_path / "m.onnx"
    for tenth in range(10):
        path.write_bytes(data[: len(data) * tenth // 10])
        refused(path, "truncated|empty|damaged")


def test_weights_that_do_not_fill_their_shape(tmp_path: Path) -> None:
    model = pointwise_model()
    model.graph.initializer[0].dims[0] = 10**12
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    refused(tmp_path / "m.onnx", "'conv_w' needs .* bytes but holds 4096: the file is damaged")
    model.graph.initializer[0].dims[0] = -32
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    refused(tmp_path / "m.onnx", "negative dimension")


def test_values_that_are_too_few_are_found_when_read() -> None:
    tensor = helper.make_tensor("t", TensorProto.FLOAT, [4], [1.0, 2.0, 3.0, 4.0])
    del tensor.float_data[2:]
    with pytest.raises(ModelError, match="'t' cannot be read"):
        OpenModel(pointwise_model()).array(tensor)


@pytest.mark.parametrize("build", [rich_model, pointwise_model])
def test_random_damage_is_an_error_or_a_model(
    build: Callable[[], onnx.ModelProto], tmp_path: Path
) -> None:
    """Nothing but a ModelError comes out of reading, counting and searching a damaged file."""
    whole = build().SerializeToString()
    generator = np.random.default_rng(0)
    path = tmp_path / "m.onnx"
    refusals = []
    for _ in range(150):
        damaged = bytearray(whole)
        for position in generator.integers(0, min(len(whole), 900), 2):
            damaged[position] = generator.integers(0, 256)
        path.write_bytes(damaged)
        try:
            model = open_model(path)
            count(model)
            find_sites(GraphView(model))
        except ModelError as error:
            refusals.append(str(error))
    assert 10 < len(refusals) < 150
    assert not any("\n" in refusal for refusal in refusals)
