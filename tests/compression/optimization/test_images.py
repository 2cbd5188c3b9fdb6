"""The images shared out: each in one part, evenly, the same way every time, and shown as the model gets them."""

from __future__ import annotations

import base64
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnx_igpc import Dataset, Preprocessing
from onnx_igpc.compression.optimization.images import Shared, pictures, share_out
from onnx_igpc.data.sources import open_data
from onnx_igpc.errors import DataError
from onnx_igpc.graph.inputs import InputSpec

SPEC = InputSpec("x", np.dtype(np.float32), ("n", 3, 8, 8))


def folder_of(place: Path, count: int) -> Path:
    """Pictures in two class folders; the red of each is its number."""
    for number in range(count):
        there = place / f"class{number % 2}"
        there.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10, 8), (number, 7, 200)).save(there / f"{number // 2:03d}.png")
    return place


def reds(shared: Shared, part: Path) -> list[int]:
    data = open_data(part, [SPEC], shared.preprocessing, batch_size=1)
    assert not data.labelled
    return [round(float(batch.feeds["x"][0, 0, 0, 0]) * 255) for batch in data]


def test_a_folder_is_shared_out_by_links(tmp_path: Path) -> None:
    shared = share_out(Dataset(folder_of(tmp_path / "in", 40)), [SPEC], tmp_path / "data", None)
    assert (shared.counts.fit, shared.counts.choose, shared.counts.state) == (20, 20, 0)
    assert shared.state is None
    fit, choose = reds(shared, shared.fit), reds(shared, shared.choose)
    assert sorted(fit + choose) == list(range(40))
    # Held-out samples lie evenly spaced, in both folders.
    assert sum(number % 2 for number in choose) == 10
    assert all(file.is_symlink() for file in shared.fit.iterdir())


def test_an_archive_is_shared_out_alike(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 40)
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        for file in sorted(source.rglob("*.png")):
            archive.add(file, file.relative_to(source))
    links = share_out(Dataset(source), [SPEC], tmp_path / "links", None)
    copies = share_out(Dataset(tmp_path / "in.tar"), [SPEC], tmp_path / "copies", None)
    assert reds(links, links.choose) == reds(copies, copies.choose)


def test_arrays_are_shared_out_without_their_labels(tmp_path: Path) -> None:
    values = np.arange(600, dtype=np.float32).reshape(-1, 1, 1, 1) + np.zeros((1, 3, 8, 8), "f")
    np.savez(tmp_path / "in.npz", x=values, labels=np.zeros(600, np.int64))
    shared = share_out(Dataset(tmp_path / "in.npz"), [SPEC], tmp_path / "data", None)
    assert shared.state is not None
    assert (shared.counts.fit, shared.counts.choose, shared.counts.state) == (360, 120, 120)
    parts = [np.load(part) for part in (shared.fit, shared.choose, shared.state)]
    assert all(part.files == ["x"] for part in parts)
    numbers = [set(part["x"][:, 0, 0, 0].astype(int)) for part in parts]
    assert set.union(*numbers) == set(range(600))
    assert sum(map(len, numbers)) == 600


def test_sharing_out_is_done_once(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 20)
    first = share_out(Dataset(source), [SPEC], tmp_path / "data", None)
    before = sorted(file.name for file in first.fit.iterdir())
    folder_of(tmp_path / "in", 21)
    (source / "class0" / "010.png").unlink()
    again = share_out(Dataset(source), [SPEC], tmp_path / "data", None)
    assert sorted(file.name for file in again.fit.iterdir()) == before


def test_too_few_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="19 samples are too few to hold some out"):
        share_out(Dataset(folder_of(tmp_path / "in", 19)), [SPEC], tmp_path / "data", None)
    assert not (tmp_path / "data").exists()


def test_the_preprocessing_is_that_of_the_options_or_of_the_report(tmp_path: Path) -> None:
    source, recorded = folder_of(tmp_path / "in", 20), Preprocessing(mean=(0.5,))
    given = Dataset(source, Preprocessing(std=(2.0,)))
    ours = share_out(given, [SPEC], tmp_path / "a", recorded).preprocessing
    assert ours is not None
    assert (ours.mean, ours.std, ours.crop) == ((0.0,), (2.0,), 8)
    theirs = share_out(Dataset(source), [SPEC], tmp_path / "b", recorded).preprocessing
    assert theirs is not None
    assert theirs.mean == (0.5,)


def test_pictures_show_what_the_model_gets(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 20)
    wanted = Dataset(source, Preprocessing(color="bgr", mean=(0.5,)))
    shared = share_out(wanted, [SPEC], tmp_path / "data", None)
    shown = pictures(shared, [SPEC])
    assert len(shown) == 3
    assert shown[0].shape == [3, 8, 8]
    assert shown[0].high == pytest.approx(200 / 255 - 0.5, abs=1e-5)
    data = base64.b64decode(shown[0].picture.removeprefix("data:image/png;base64,"))
    red, green, blue = np.moveaxis(np.asarray(Image.open(io.BytesIO(data))), 2, 0)
    # In the colours of the photograph, whatever their order in the input.
    assert blue.min() == 255
    assert red.max() < 40
    assert green.max() < 40


def test_what_is_no_picture_is_not_shown(tmp_path: Path) -> None:
    values = np.zeros((20, 5), np.float32)
    np.savez(tmp_path / "in.npz", x=values)
    spec = InputSpec("x", np.dtype(np.float32), ("n", 5))
    assert (
        pictures(share_out(Dataset(tmp_path / "in.npz"), [spec], tmp_path / "d", None), [spec])
        == []
    )
