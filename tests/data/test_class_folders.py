"""Which images count and what their labels are, in folders as people have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnx_igpc.data.batches import data_notes
from onnx_igpc.data.class_folders import background_hint, label_problem
from onnx_igpc.data.dataset import Dataset
from onnx_igpc.data.sources import find_source, open_data
from onnx_igpc.errors import DataError
from onnx_igpc.evaluation.verify import verify
from onnx_igpc.torch_bridge.training.data import open_training_data
from tests import runtime_graphs as graphs
from tests.data.image_files import PLAIN, SPEC, labels, png, values, write_folder, write_tar

CLASSES = {"ant/1.png": png(1), "cat/2.png": png(2), "cat/3.png": png(3), "emu/4.png": png(4)}


def both(tmp_path: Path, files: dict[str, bytes], folders: tuple[str, ...] = ()) -> list[Path]:
    """The same files as a folder and as an archive."""
    root = write_folder(tmp_path / "folder", files)
    for folder in folders:
        (root / folder).mkdir(parents=True)
    return [root, write_tar(tmp_path / "files.tar", files)]


def test_stray_images_are_left_out_with_a_note(tmp_path: Path) -> None:
    for source in both(tmp_path, {**CLASSES, "overview.png": png(9)}):
        data = open_data(source, [SPEC], PLAIN)
        assert (values(data), labels(data)) == ([1, 2, 3, 4], [0, 1, 1, 2])
        assert data_notes(data) == ["1 image beside the class folders left out: overview.png"]


def test_stray_images_above_the_folder_of_the_classes(tmp_path: Path) -> None:
    files = {f"set/{name}": content for name, content in CLASSES.items()}
    for source in both(tmp_path, {"cover.png": png(9), **files}):
        assert labels(open_data(source, [SPEC], PLAIN)) == [0, 1, 1, 2]


def test_many_images_beside_folders_are_a_set_without_classes(tmp_path: Path) -> None:
    files = {f"{i}.png": png(i) for i in range(8)} | {"more/9.png": png(9), "less/8.png": png(8)}
    for source in both(tmp_path, files):
        data = open_data(source, [SPEC], PLAIN)
        assert (data.size, data.labelled) == (10, False)
        assert "no labels: 8 images lie beside the folders less, more" in data_notes(data)[0]


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "__MACOSX", "@eaDir", "cat/.thumbs"])
def test_hidden_folders_are_no_classes(tmp_path: Path, hidden: str) -> None:
    for source in both(tmp_path, {**CLASSES, f"{hidden}/5.png": png(5)}):
        data = open_data(source, [SPEC], PLAIN)
        assert (values(data), data.classes) == ([1, 2, 3, 4], ("ant", "cat", "emu"))
        assert data_notes(data) == [f"hidden folder {hidden.split('/')[-1]!r} left out (1 image)"]


def test_empty_classes_count(tmp_path: Path) -> None:
    root, _ = both(tmp_path, CLASSES, ("bee", ".cache"))
    data = open_data(root, [SPEC], PLAIN)
    assert (labels(data), data.classes) == ([0, 2, 2, 3], ("ant", "bee", "cat", "emu"))
    assert data_notes(data) == ["class folders without an image, which count: bee"]


def test_empty_folders_beside_class_indices_change_nothing(tmp_path: Path) -> None:
    files = {"0003/1.png": png(1), "0001/2.png": png(2)}
    root, _ = both(tmp_path, files, ("docs",))
    assert labels(open_data(root, [SPEC], PLAIN)) == [1, 3]


def test_images_of_unread_kinds_are_counted(tmp_path: Path) -> None:
    root, _ = both(tmp_path, {**CLASSES, "ant/a.heic": b"", "cat/b.gif": b"", "cat/c.gif": b""})
    assert find_source(root).index.notes == ("2 .gif files left out", "1 .heic files left out")  # type: ignore[union-attr]


def test_links_to_folders_are_followed_and_circles_end(tmp_path: Path) -> None:
    root, _ = both(tmp_path, CLASSES)
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("ant", "cat", "emu"):
        (linked / name).symlink_to(root / name)
    (root / "cat" / "again").symlink_to(root)
    assert labels(open_data(linked, [SPEC], PLAIN))[:3] == [0, 1, 1]


def test_training_reads_the_same_index(tmp_path: Path) -> None:
    files = {**CLASSES, "stray.png": png(9), ".trash/7.png": png(7)}
    for source in both(tmp_path, files, ("bee",)):
        streamed = open_data(source, [SPEC], PLAIN, label_offset=1)
        training = open_training_data(source, [SPEC], PLAIN, label_offset=1)
        assert training.labels is not None
        assert training.labels.tolist() == labels(streamed)
        assert training.classes == streamed.classes
        assert list(training.notes) == data_notes(streamed)


def test_label_offset_of_a_model_with_a_background_class(tmp_path: Path) -> None:
    """Five classes behind a background class; every score is fed, so the right answer is known."""
    scores = np.eye(6, dtype=np.float32)[[1, 2, 3, 4, 5, 1]]
    np.savez(tmp_path / "d.npz", x=scores, labels=np.array([0, 1, 2, 3, 4, 0]))
    model = graphs.linear(np.eye(6))
    report = verify(model, model, data=tmp_path / "d.npz")
    assert report.classifier is not None
    assert report.classifier.original is not None
    assert report.classifier.original.top1 == 0.0
    assert "100.0% rather than 0.0%: give --label-offset 1" in report.notes[-1]
    shifted = verify(model, model, data=Dataset(tmp_path / "d.npz", label_offset=1))
    assert shifted.classifier is not None
    assert shifted.classifier.original is not None
    assert shifted.classifier.original.top1 == 1.0
    assert not shifted.notes


def test_what_is_said_of_labels() -> None:
    found = np.arange(1000)
    names = [f"n{i}" for i in range(1000)]
    assert "`label_offset` 1" in (label_problem("d", found, names, 1001, None) or "")
    assert label_problem("d", found + 1, names, 1001, 1) is None
    assert "1000 class folders" in (label_problem("d", found, names, 10, None) or "")
    assert "`label_offset` -1" in (label_problem("d", found + 1, None, 1000, None) or "")
    assert "`label_offset` 1" in (background_hint(found, 1001) or "")
    assert background_hint(found, 1000) is None
    assert background_hint(found[:40], 1001) is None


def test_unlistable_folders_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, _ = both(tmp_path, CLASSES)

    def walk(*_: object, onerror: object = None, **__: object) -> list[object]:
        assert callable(onerror)
        onerror(PermissionError("no"))
        return []

    monkeypatch.setattr("os.walk", walk)
    with pytest.raises(DataError, match="no"):
        open_data(root, [SPEC])
