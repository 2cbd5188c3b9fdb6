"""Images as data: order, labels, subsets, damage, doubts."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from onnx_igpc.data.batches import data_doubts
from onnx_igpc.data.class_folders import labelled_by_folder
from onnx_igpc.data.images import spread
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.data.sources import open_data
from onnx_igpc.errors import DataError, UsageError
from onnx_igpc.graph.inputs import InputSpec
from onnx_igpc.torch_bridge.training.augment import parse_augmentation
from onnx_igpc.torch_bridge.training.data import open_training_data
from tests.data.image_files import F32, PLAIN, SPEC, labels, png, values, write_folder, write_tar

CLASSES = {"cat/b.png": png(1), "cat/a.png": png(2), "ant/c.PNG": png(3), "ant/notes.txt": b"x"}


def test_class_folders_are_counted_in_sorted_order(tmp_path: Path) -> None:
    data = open_data(write_folder(tmp_path, CLASSES), [SPEC], PLAIN, batch_size=2)
    assert values(data) == [3, 2, 1]
    assert labels(data) == [0, 1, 1]
    assert data.classes == ("ant", "cat")
    assert [batch.count for batch in data] == [2, 1]
    assert values(data) == [3, 2, 1]  # a second pass gives the same
    assert data.preprocessing == Preprocessing(
        resize=4, crop=4, scale=1.0, layout="nchw", color="rgb"
    )


def test_integer_folders_are_class_indices(tmp_path: Path) -> None:
    files = {"0010/a.png": png(1), "0002/b.png": png(2), "0002/deep/c.png": png(3)}
    data = open_data(write_folder(tmp_path, files), [SPEC], PLAIN)
    assert (values(data), labels(data), data.classes) == ([2, 3, 1], [2, 2, 10], None)


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    data = open_data(write_folder(tmp_path, {"b.png": png(1), "a.png": png(2)}), [SPEC], PLAIN)
    assert not data.labelled
    assert values(data) == [2, 1]
    assert next(iter(data)).labels is None


def test_parts_of_a_data_set_are_not_classes(tmp_path: Path) -> None:
    files = {"set/train/cat/a.png": png(1), "set/test/cat/b.png": png(2)}
    with pytest.raises(
        DataError, match=r"parts test, train of a data set: name one, as .*/set/train"
    ):
        open_data(write_folder(tmp_path, files), [SPEC])
    assert values(open_data(tmp_path / "set/test", [SPEC], PLAIN)) == [2]


@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz", "s.tgz"])
def test_tar_gives_what_the_folder_gives(tmp_path: Path, name: str) -> None:
    files = {f"top/{key}": content for key, content in CLASSES.items()}
    data = open_data(write_tar(tmp_path / name, files), [SPEC], PLAIN, batch_size=2)
    assert (values(data), labels(data)) == ([1, 2, 3], [1, 1, 0])  # in archive order
    inside = open_data(tmp_path / name / "top/cat", [SPEC], PLAIN)
    assert values(inside) == [1, 2]
    assert not inside.labelled


def test_webdataset_shards(tmp_path: Path) -> None:
    write_tar(tmp_path / "1.tar", {"00.png": png(3), "00.cls": b"7"})
    write_tar(
        tmp_path / "0.tar",
        {"00.cls": b"5\n", "00.png": png(1), "01.jpg.png": png(2), "01.cls": b"6"},
    )
    data = open_data(tmp_path, [SPEC], PLAIN)
    assert (values(data), labels(data)) == ([1, 2, 3], [5, 6, 7])
    write_tar(tmp_path / "1.tar", {"00.png": png(3)})
    with pytest.raises(DataError, match=r"00\.png has no .cls"):
        open_data(tmp_path, [SPEC])
    write_tar(tmp_path / "1.tar", {"00.png": png(3), "00.cls": b"cat"})
    with pytest.raises(DataError, match=r"00\.cls holds no class index"):
        open_data(tmp_path, [SPEC])


def test_tar_stops_reading_after_the_last_chosen_image(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", {f"{i}.png": png(i) for i in range(8)})
    assert values(open_data(path, [SPEC], PLAIN, samples=2)) == [0, 4]


@pytest.mark.parametrize("keep", [700, 1300])
def test_damaged_archive_is_one_line(tmp_path: Path, keep: int) -> None:
    path = write_tar(tmp_path / "s.tar", {f"{i}.png": png(i) for i in range(8)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="cannot be read as a tar archive"):
        values(open_data(path, [SPEC]))
    (tmp_path / "b.tar.gz").write_bytes(b"no")
    with pytest.raises(DataError, match="cannot be read as a tar archive"):
        open_data(tmp_path / "b.tar.gz", [SPEC])


def test_few_corrupt_images_are_skipped_and_named(tmp_path: Path) -> None:
    files = {f"{i:03}.png": png(i) for i in range(200)} | {"007.png": b"broken"}
    data = open_data(write_folder(tmp_path, files), [SPEC], PLAIN)
    for _ in range(2):
        assert len(values(data)) == 199
        [skipped] = data.skipped
        assert skipped.startswith("007.png: ")
    assert data.describe().skipped == data.skipped


def test_many_corrupt_images_are_refused(tmp_path: Path) -> None:
    files = {f"{i:03}.png": png(i) for i in range(200)}
    files |= {f"{i:03}.png": b"broken" for i in (3, 5, 9)}
    data = open_data(write_folder(tmp_path, files), [SPEC])
    with pytest.raises(DataError, match=r"more than 1% of 200 images cannot be read: 003.png"):
        list(data)


def test_samples_come_from_all_classes(tmp_path: Path) -> None:
    files = {f"{c}/{i}.png": png(10 * c + i) for c in range(3) for i in range(6)}
    root = write_folder(tmp_path, files)
    assert labels(open_data(root, [SPEC], samples=6)) == [0, 0, 1, 1, 2, 2]
    assert values(open_data(root, [SPEC], PLAIN, samples=3)) == [0, 10, 20]


@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=8), samples=st.integers(1, 60))
def test_spread_is_balanced(sizes: list[int], samples: int) -> None:
    labelling = [c for c, size in enumerate(sizes) for _ in range(size)]
    chosen = spread(labelling, len(labelling), samples)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(samples, len(labelling))
    counts = Counter(labelling[i] for i in chosen)
    unfinished = [counts[c] for c, size in enumerate(sizes) if counts[c] < size]
    if unfinished:
        assert max(counts.values()) - min(unfinished) <= 1
    evenly = spread(None, len(labelling), samples)
    assert len(evenly) == len(chosen)
    gaps = np.diff(evenly)
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


def test_class_level_is_below_single_folders() -> None:
    index = labelled_by_folder(["a/b/x/1.png", "a/b/y/2.png"], "s")[0]
    assert index.classes == ("x", "y")
    assert labelled_by_folder(["0042/1.png"], "s")[0].labels == (42,)
    assert labelled_by_folder(["1.png", "x/2.png"], "s")[0].labels is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "none", "no such file or folder"),
        (lambda p: write_folder(p, {"a.txt": b""}), "no images"),
        (lambda p: write_folder(p, {"a.txt": b""}) / "a.txt", "not a data source"),
        (lambda p: write_tar(p / "a.tar", {"a.txt": b""}), "no images"),
    ],
)
def test_missing_and_empty_data_is_refused(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_data(make(tmp_path), [SPEC])


def test_images_that_the_model_cannot_take_are_refused_before_a_run(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"a.png": png(1)})
    with pytest.raises(DataError, match="4 x 4 pixels"):
        open_data(root, [SPEC], Preprocessing(resize=8, crop=8))
    with pytest.raises(DataError, match="images feed one input"):
        open_data(root, [SPEC, SPEC])
    with pytest.raises(UsageError, match="samples"):
        open_data(root, [SPEC], samples=0)


def test_images_of_different_size_run_in_batches_of_one_size(tmp_path: Path) -> None:
    files = {"a.png": png(1, 4), "b.png": png(2, 4), "c.png": png(3, 6)}
    data = open_data(
        write_folder(tmp_path, files), [InputSpec("x", F32, ("n", 3, "h", "w"))], PLAIN
    )
    assert [batch.feeds["x"].shape for batch in data] == [(2, 3, 4, 4), (1, 3, 6, 6)]


def test_fixed_batch_is_filled_up_and_counted(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {f"{i}/{i}.png": png(i) for i in range(3)})
    batches = list(open_data(root, [InputSpec("x", F32, (2, 3, 4, 4))], PLAIN, batch_size=8))
    assert [(len(b.feeds["x"]), b.count) for b in batches] == [(2, 2), (2, 1)]
    assert batches[1].labels is not None
    assert batches[1].labels.tolist() == [2]


def test_float16_model_gets_float16(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"a.png": png(1)})
    [batch] = open_data(root, [InputSpec("x", np.dtype(np.float16), (1, 3, 4, 4))])
    assert batch.feeds["x"].dtype == np.float16


def doubts(path: Path) -> list[str]:
    data = open_data(path, [SPEC], Preprocessing(mean=(0.1, 0.2, 0.3)))
    assert data_doubts(data) == []  # before it was read
    list(data)
    return data_doubts(data)


def noise(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_images_without_variety_are_doubted(tmp_path: Path) -> None:
    black = write_folder(tmp_path / "black", {f"{i}.png": png(0) for i in range(3)})
    assert doubts(black) == ["all 3 samples are equal, of one colour, as black is: check the data"]
    same = write_folder(tmp_path / "same", {f"{i}.png": noise(0) for i in range(3)})
    assert doubts(same) == ["all 3 samples are equal: check the data"]
    plain = {f"{i}.png": png(i) for i in range(2)} | {"x.png": noise(0)}
    assert doubts(write_folder(tmp_path / "plain", plain)) == [
        "2 of 3 samples are of one colour: check the data"
    ]
    varied = write_folder(tmp_path / "varied", {f"{i}.png": noise(i) for i in range(3)})
    assert doubts(varied) == []
    assert doubts(write_folder(tmp_path / "one", {"1.png": noise(0)})) == []


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_as_exif_says(tmp_path: Path, orientation: int) -> None:
    """An upright picture is stored turned; every use reads it upright."""
    upright = np.zeros((4, 4, 3), np.uint8)
    upright[0, :, 0], upright[:, 0, 1] = 250, [10, 60, 120, 240]
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    [batch] = open_data(tmp_path, [SPEC], PLAIN)
    assert np.array_equal(batch.feeds["x"][0], upright.transpose(2, 0, 1))
    training = open_training_data(tmp_path, [SPEC], PLAIN)
    sample = training.sample(0, parse_augmentation(("none",), images=True), None)
    assert np.array_equal(sample["x"], upright.transpose(2, 0, 1))
