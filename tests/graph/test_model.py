"""Reading and writing without loss; files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_igpc.errors import ModelError, UsageError
from onnx_igpc.graph import model as model_io
from onnx_igpc.graph.cost import count
from onnx_igpc.graph.model import OpenModel, load_model, open_model, save_model
from onnx_igpc.graph.view import GraphView
from onnx_igpc.sites.find import find_sites
from tests.helpers import pointwise_model, run
from tests.real_models import each_model
from tests.rich_model import rich_model, set_fields

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


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


@each_model
def test_real_models_round_trip(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    save_model(open_model(path), target)
    before, after = onnx.load(path), onnx.load(target)
    assert list(set_fields(after)) == list(set_fields(before))
    assert target.read_bytes() == before.SerializeToString()


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
