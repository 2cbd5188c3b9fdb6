"""Broken and hostile data, options and measurements: a correct result, or one line and nothing written."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from onnx_igpc.data.sources import open_data
from onnx_igpc.errors import DataError
from onnx_igpc.graph.inputs import model_inputs
from tests.helpers import pointwise_model
from tests.hostile_data import (
    CHANNELS,
    SIDE,
    good_png,
    hostile_arrays,
    hostile_images,
    hostile_preprocessing,
    hostile_sensitivity,
)
from tests.test_hostile_models import command


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A network that takes small pictures."""
    proto = pointwise_model(CHANNELS, 12)
    for axis in (2, 3):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = SIDE
        proto.graph.output[0].type.tensor_type.shape.dim[axis].dim_value = SIDE
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "good"
    folder.mkdir()
    for name in "abcd":
        (folder / f"{name}.png").write_bytes(good_png())
    return folder


def calibrate(model: Path, *arguments: str | Path) -> int:
    """Compress with calibration data: nothing is written where it is refused."""
    output = model.with_name("out.onnx")
    code = command("compress", model, "-o", output, "--ch", "1", "-q", *arguments)
    assert output.exists() == (not code)
    output.unlink(missing_ok=True)
    return code


@pytest.mark.parametrize("kind", ["arrays", "images"])
def test_data(kind: str, model: Path, tmp_path: Path) -> None:
    """Some of it can be used after all: a name that leads out of an archive is only a name."""
    folder = tmp_path / "data"
    folder.mkdir()
    make = hostile_arrays if kind == "arrays" else hostile_images
    codes = {}
    for name, path in make(folder):
        codes[name] = calibrate(model, "--calibration", path)
        assert command("verify", model, model, "--data", path) == codes[name], name
    assert [name for name, code in codes.items() if not code] == (
        ["npz: paths that lead out"] if kind == "arrays" else ["tar: paths that lead out"]
    )
    assert not list(tmp_path.rglob("*hacked*"))
    assert not Path("/tmp/hacked.npy").exists()
    assert not Path("/tmp/hacked.png").exists()


def test_options_in_a_file(model: Path, images: Path, tmp_path: Path) -> None:
    for name, text in hostile_preprocessing():
        file = tmp_path / "preprocess.json"
        file.write_text(text)
        assert calibrate(model, "--calibration", images, "--preprocess", file) == 2, name


def test_measurements_in_a_file(model: Path, images: Path, tmp_path: Path) -> None:
    target = ("--target", "pointwise-parameters=80%")
    for name, text in hostile_sensitivity():
        file = tmp_path / "sensitivity.json"
        file.write_text(text)
        code = calibrate(model, "--calibration", images, *target, "--sensitivity", file)
        assert code == 2, name


def one_line(error: DataError) -> None:
    assert "\n" not in str(error)


def _flips(content: bytes, count: int) -> Iterator[bytes]:
    generator = np.random.default_rng(11)
    for _ in range(count):
        damaged = bytearray(content)
        for position in generator.integers(0, len(content), generator.integers(1, 4)):
            damaged[position] ^= 1 << int(generator.integers(0, 8))
        yield bytes(damaged)


def _formats() -> Iterator[tuple[str, bytes]]:
    """A picture in every format that is read."""
    import io

    from PIL import Image

    picture = Image.fromarray(np.arange(SIDE * SIDE * 3, dtype=np.uint8).reshape(SIDE, SIDE, 3))
    for suffix, kind in (
        (".jpg", "JPEG"),
        (".png", "PNG"),
        (".bmp", "BMP"),
        (".webp", "WEBP"),
        (".ppm", "PPM"),
        (".tif", "TIFF"),
    ):
        buffer = io.BytesIO()
        picture.save(buffer, kind)
        yield suffix, buffer.getvalue()


@pytest.mark.parametrize(("suffix", "content"), list(_formats()), ids=lambda part: str(part)[:5])
def test_flipped_bits_in_images(suffix: str, content: bytes) -> None:
    """An image is read or refused; nothing else comes out of a decoder."""
    specs = model_inputs(pointwise_model(CHANNELS, 12))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"a{suffix}"
        for damaged in _flips(content, 60):
            file.write_bytes(damaged)
            try:
                list(open_data(folder, specs))
            except DataError as error:
                one_line(error)


def test_flipped_bits_in_archives(tmp_path: Path) -> None:
    """The same of .npz files: their directory, their headers and their content."""
    specs = model_inputs(pointwise_model(CHANNELS, 12))
    file = tmp_path / "a.npz"
    np.savez_compressed(file, x=np.random.default_rng(0).random((4, CHANNELS, 5, 5), np.float32))
    read = 0
    for damaged in _flips(file.read_bytes(), 150):
        file.write_bytes(damaged)
        try:
            read += sum(batch.count for batch in open_data(file, specs))
        except DataError as error:
            one_line(error)
    assert read > 0
