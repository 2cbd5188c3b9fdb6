"""Training data in any order: the same samples as the streaming sources give, and augmentation."""

from __future__ import annotations

import io
import multiprocessing
import os
import tarfile
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from onnx_igpc.calibration.options import Calibration
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.data.sources import open_data
from onnx_igpc.errors import DataError, UsageError
from onnx_igpc.graph.inputs import InputSpec, model_inputs
from onnx_igpc.planning.options import Published
from onnx_igpc.torch_bridge.training import preparation
from onnx_igpc.torch_bridge.training.augment import (
    Augmentation,
    Draw,
    EpochDraws,
    flip_and_shift,
    mixed,
    parse_augmentation,
    part_of,
)
from onnx_igpc.torch_bridge.training.data import open_training_data
from onnx_igpc.torch_bridge.training.finetune import finetune
from onnx_igpc.torch_bridge.training.loader import BatchLoader
from onnx_igpc.torch_bridge.training.options import Run
from tests.torch_bridge.training_cases import classifier, short, smaller

INPUTS = [InputSpec("x", np.dtype(np.float32), ("n", 3, 6, 6))]
PLAIN = Augmentation()


def picture(seed: int, side: int = 9, mode: str = "RGB") -> bytes:
    channels = (3,) if mode == "RGB" else ()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 2, *channels), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, mode).save(file, "png")
    return file.getvalue()


def image_folder(root: Path, count: int = 6, mode: str = "RGB") -> Path:
    for index in range(count):
        folder = root / ("cat", "dog", "emu")[index % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.png").write_bytes(picture(index, mode=mode))
    return root


def shard(path: Path, first: int, count: int) -> Path:
    with tarfile.open(path, "w") as archive:
        for index in range(first, first + count):
            for name, content in (
                (f"k{index}.png", picture(index)),
                (f"k{index}.cls", str(index % 2).encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def assert_same_as_streamed(path: Path, inputs: list[InputSpec]) -> None:
    streamed = open_data(path, inputs, batch_size=1)
    found = open_training_data(path, inputs)
    assert found.size == streamed.size
    assert found.classes == streamed.classes
    for index, batch in reversed(list(enumerate(streamed))):
        sample = found.sample(index, PLAIN, None)
        for name, values in batch.feeds.items():
            assert np.array_equal(sample[name], values[0])
            assert sample[name].dtype == values.dtype
        if batch.labels is not None:
            assert found.labels is not None
            assert found.labels[index] == batch.labels[0]


class TestSources:
    def test_image_folder(self, tmp_path: Path) -> None:
        assert_same_as_streamed(image_folder(tmp_path / "images"), INPUTS)

    def test_shards(self, tmp_path: Path) -> None:
        shard(tmp_path / "a.tar", 0, 4)
        shard(tmp_path / "b.tar", 4, 3)
        assert_same_as_streamed(tmp_path, INPUTS)
        assert_same_as_streamed(tmp_path / "a.tar", INPUTS)

    def test_folder_inside_an_archive(self, tmp_path: Path) -> None:
        image_folder(tmp_path / "set" / "train")
        with tarfile.open(tmp_path / "set.tar", "w") as archive:
            archive.add(tmp_path / "set", arcname=".")
        assert_same_as_streamed(tmp_path / "set.tar" / "train", INPUTS)

    @pytest.mark.parametrize("suffix", ["npz", "npy"])
    def test_arrays(self, tmp_path: Path, suffix: str) -> None:
        values = np.random.default_rng(0).random((5, 3, 6, 6))
        for number in range(2):
            path = tmp_path / f"{number}.{suffix}"
            if suffix == "npz":
                np.savez(path, x=values + number, labels=np.arange(5))
            else:
                np.save(path, values + number)
        assert_same_as_streamed(tmp_path, INPUTS)

    def test_compressed_archives_are_refused(self, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
            archive.add(image_folder(tmp_path / "images"), arcname="images")
        with pytest.raises(DataError, match=r"random order, .* unpack it to \.tar"):
            open_training_data(tmp_path / "a.tar.gz", INPUTS)

    @pytest.mark.parametrize(
        ("name", "message"), [("nothing", "no such file"), ("a.txt", "not a data source")]
    )
    def test_what_is_no_data(self, tmp_path: Path, name: str, message: str) -> None:
        (tmp_path / "a.txt").write_text("a")
        with pytest.raises(DataError, match=message):
            open_training_data(tmp_path / name, INPUTS)

    def test_unreadable_images_are_replaced_or_refused(self, tmp_path: Path) -> None:
        root = image_folder(tmp_path / "images", 120)
        (root / "cat" / "0.png").write_bytes(b"no picture")
        data = open_training_data(root, INPUTS)
        loader = BatchLoader(data, ["x"], PLAIN)
        batch = next(loader.plain(iter([[0, 1, 2]])))
        assert batch.count == 3
        assert np.array_equal(batch.inputs[0][0], batch.inputs[0][2])
        assert batch.labels is not None
        assert data.labels is not None
        assert batch.labels[1] == data.labels[2]
        for name in ("3.png", "6.png"):
            (root / "cat" / name).write_bytes(b"no picture")
        with pytest.raises(DataError, match="more than 1% of 120 images cannot be read"):
            list(loader.plain(iter([list(range(60))])))

    def test_workers_give_the_same_batches(self, tmp_path: Path) -> None:
        data = open_training_data(image_folder(tmp_path / "images"), INPUTS)
        augmentation = Augmentation(flip=True, shift=2)
        batches = [
            list(
                BatchLoader(data, ["x"], augmentation, workers=workers).training(
                    iter([[0, 3], [5, 1]]), seed=1, view=2
                )
            )
            for workers in (0, 1)
        ]
        for one, other in zip(*batches, strict=True):
            assert np.array_equal(one.inputs[0], other.inputs[0])

    def test_workers_stay_from_epoch_to_epoch(self, tmp_path: Path) -> None:
        """Also behind an epoch that was left in its middle; what they had prepared of it is not what comes next."""
        data = open_training_data(image_folder(tmp_path / "images"), INPUTS)
        loader = BatchLoader(data, ["x"], Augmentation(flip=True), workers=1)
        alone = BatchLoader(data, ["x"], Augmentation(flip=True))
        seen = []
        for epoch in range(3):
            orders = [[epoch, 3], [5, 1], [2, 4]]
            batches = loader.training(iter(orders), seed=1, view=epoch)
            wanted = alone.training(iter(orders), seed=1, view=epoch)
            for made, expected in zip(
                islice(batches, 1 if epoch == 0 else 3), wanted, strict=False
            ):
                assert np.array_equal(made.inputs[0], expected.inputs[0])
            seen.append({child.pid for child in multiprocessing.active_children()})
        assert seen[0] == seen[1] == seen[2] != set()


class TestAugmentation:
    def test_words(self) -> None:
        assert parse_augmentation(None, images=True) == Augmentation(shift=None)
        assert parse_augmentation(None, images=False) == Augmentation()
        assert parse_augmentation(["flip", "shift=3"], images=False) == Augmentation(True, 3)
        assert parse_augmentation(["crop"], images=True) == Augmentation(crop=True)
        assert not parse_augmentation(["none"], images=True).does_anything
        for wrong in (
            ["turn"],
            ["none", "flip"],
            ["shift=-1"],
            ["shift="],
            ["crop", "resized-crop"],
        ):
            with pytest.raises(UsageError, match="`augment`"):
                parse_augmentation(wrong, images=True)
        for word in ("crop", "resized-crop"):
            with pytest.raises(UsageError, match=f"{word} is for images"):
                parse_augmentation([word], images=False)

    @pytest.mark.parametrize(
        "words",
        [
            ["flip"],
            ["shift=2"],
            ["flip", "shift", "crop"],
            ["none"],
            ["flip", "resized-crop", "mixup"],
        ],
    )
    def test_description_reads_back(self, words: list[str]) -> None:
        assert parse_augmentation(words, images=True).describe() == words

    def test_draws_depend_on_seed_epoch_and_index_alone(self) -> None:
        augmentation = Augmentation(flip=True, shift=1)
        assert EpochDraws(augmentation, 9, 0, 1)[4] == EpochDraws(augmentation, 9, 0, 1)[4]
        assert EpochDraws(augmentation, 9, 0, 1)[4] != EpochDraws(augmentation, 9, 0, 2)[4]

    def test_the_part_of_a_resized_crop(self) -> None:
        draws = EpochDraws(Augmentation(resized_crop=True), 500, 0, 0)
        parts = [part_of(60, 30, draws[index]) for index in range(500)]
        areas = [(right - left) * (low - top) / 1800 for left, top, right, low in parts]
        assert all(
            0 <= left < right <= 60 and 0 <= top < low <= 30 for left, top, right, low in parts
        )
        assert max(areas) > 0.5
        assert min(areas) == pytest.approx(0.3, abs=0.05)
        assert len({left for left, *_ in parts}) > 10

    def test_a_resized_crop_has_the_size_of_the_input(self, tmp_path: Path) -> None:
        data = open_training_data(image_folder(tmp_path), INPUTS, Preprocessing(resize=6, crop=6))
        augmentation = Augmentation(resized_crop=True)
        whole = Draw(False, (0, 0), (0, 0), (1.0, 11 / 9))
        found = data.sample(0, augmentation, whole)["x"]
        with Image.open(io.BytesIO(picture(0))) as image:
            wanted = np.asarray(image.resize((6, 6), Image.Resampling.BILINEAR)) / 255
        assert np.allclose(found, wanted.transpose(2, 0, 1), atol=1e-6)
        corner = data.sample(0, augmentation, replace(whole, part=(0.3, 1.0)))["x"]
        assert corner.shape == found.shape
        assert not np.allclose(corner, found)

    def test_a_third_is_mixed_with_another_sample(self, tmp_path: Path) -> None:
        images = np.random.default_rng(0).random((60, 3, 6, 6), np.float32)
        labels = np.arange(60) % 2
        np.savez(tmp_path / "d.npz", x=images, labels=labels)
        data = open_training_data(tmp_path / "d.npz", INPUTS)
        loader = BatchLoader(data, ["x"], Augmentation(mixup=True))
        batch = next(loader.training(iter([list(range(60))]), 0, 0))
        draws = EpochDraws(Augmentation(mixup=True), 60, 0, 0)
        mixes = [draws[index].mix for index in range(60)]
        assert 10 <= sum(mix is not None for mix in mixes) <= 30
        for index, mix in enumerate(mixes):
            wanted = images[index]
            if mix is not None:
                assert 0 <= mix.weight <= 0.5
                wanted = wanted * (1 - mix.weight) + images[mix.index] * mix.weight
            assert np.allclose(batch.inputs[0][index], wanted, atol=1e-6)
        assert batch.labels is not None
        assert batch.labels.tolist() == labels.tolist()

    def test_what_is_mixed(self) -> None:
        half = [
            (np.float16([1, 2]), np.float16([3, 4]), [2, 3]),
            (np.uint8([0, 255]), np.uint8([255, 0]), [128, 128]),
            (np.int64([7, 8]), np.int64([1, 2]), [7, 8]),
            (np.array([True, False]), np.array([False, False]), [True, False]),
        ]
        for one, other, wanted in half:
            found = mixed({"a": one}, {"a": other}, 0.5)["a"]
            assert (found.dtype, found.tolist()) == (one.dtype, wanted)

    def test_shift_repeats_the_edge(self) -> None:
        values = np.arange(12.0).reshape(1, 3, 4)
        down_right = Draw(False, (0.999, 0.999), (0, 0))
        moved = flip_and_shift(values, Augmentation(shift=1), down_right, (1, 2))
        assert moved[0].tolist() == [[5, 6, 7, 7], [9, 10, 11, 11], [9, 10, 11, 11]]

    def test_shifts_are_equally_frequent(self) -> None:
        draws = EpochDraws(Augmentation(shift=1), 3000, 0, 0)
        values = np.arange(9.0).reshape(1, 3, 3)
        middles = [
            flip_and_shift(values, Augmentation(shift=1), draws[i], (1, 2))[0, 1, 1]
            for i in range(3000)
        ]
        counts = np.bincount(np.array(middles, int), minlength=9)
        assert counts.min() > 250
        assert counts.max() < 420

    def test_flip_is_left_to_right_in_either_layout(self) -> None:
        values = np.arange(6.0).reshape(1, 2, 3)
        draw = Draw(True, (0, 0), (0, 0))
        flipped = flip_and_shift(values, Augmentation(flip=True), draw, (1, 2))
        assert flipped[0].tolist() == [[2, 1, 0], [5, 4, 3]]
        inner = flip_and_shift(values.transpose(1, 2, 0), Augmentation(flip=True), draw, (0, 1))
        assert np.array_equal(inner.transpose(2, 0, 1), flipped)

    def test_crop_takes_a_piece_of_the_resized_image(self, tmp_path: Path) -> None:
        root = image_folder(tmp_path / "images", 1)
        data = open_training_data(root, INPUTS, Preprocessing(resize=9, crop=6))
        whole = open_training_data(
            root,
            [InputSpec("x", np.dtype(np.float32), ("n", 3, None, None))],
            Preprocessing(resize=9),
        ).sample(0, PLAIN, None)["x"]
        draw = Draw(False, (0, 0), (0.99, 0.5))
        piece = data.sample(0, Augmentation(crop=True), draw)["x"]
        assert np.array_equal(piece, whole[:, 3:9, 3:9])


def test_fine_tuning_on_images_takes_the_preprocessing_of_the_report(tmp_path: Path) -> None:
    from onnx_igpc.compression.pipeline import compress

    teacher = classifier()
    root = image_folder(tmp_path / "images", 18, mode="L")
    chosen = Preprocessing(mean=(0.5,), std=(0.25,))
    small = compress(teacher, Published(4), calibration=Calibration(root, preprocessing=chosen))
    small.save(tmp_path / "small.onnx")
    result = finetune(
        tmp_path / "small.onnx",
        teacher=teacher,
        data=root,
        recipe=short(epochs=1),
        run=Run(workers=0),
    )
    assert result.report.finetune
    used = result.report.finetune.data.preprocessing
    assert used == chosen.resolved(model_inputs(teacher)[0])
    assert result.report.finetune.recipe["augment"] == ["shift"]
    assert result.history[0].accuracy is not None


def test_images_of_different_sizes_are_refused(tmp_path: Path) -> None:
    model = smaller(classifier())
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "side"
    root = image_folder(tmp_path / "images", 4, mode="L")
    (root / "cat" / "0.png").write_bytes(picture(0, side=7, mode="L"))
    with pytest.raises(DataError, match="cannot be trained in one batch: give `resize` and `crop`"):
        finetune(
            onnx.ModelProto.FromString(model.SerializeToString()), data=root, run=Run(workers=0)
        )


def test_workers_are_as_many_as_there_are_processors_to_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a container there are fewer than the machine has, and PyTorch warns of more workers than that."""
    images: Any = SimpleNamespace(preprocessing=Preprocessing())
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert preparation._workers(images, None, 1) == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 3}, raising=False)
    assert preparation._workers(images, None, 1) == 2
    assert preparation._workers(images, None, 2) == 1
    assert preparation._workers(images, 5, 2) == 5
