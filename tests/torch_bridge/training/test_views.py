"""Views of the training samples that come again: read and shown to the teacher once, and learned as if they were not."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from onnx_igpc.data.dataset import Dataset
from onnx_igpc.data.preprocessing import CorruptImageError
from onnx_igpc.report.digest import read_digest
from onnx_igpc.torch_bridge.training.distributed import World
from onnx_igpc.torch_bridge.training.finetune import finetune
from onnx_igpc.torch_bridge.training.loader import BatchLoader, TensorBatch
from onnx_igpc.torch_bridge.training.options import Run
from onnx_igpc.torch_bridge.training.preparation import Job, prepare
from onnx_igpc.torch_bridge.training.recipe import Recipe
from onnx_igpc.torch_bridge.training.views import Views
from tests.torch_bridge.training_cases import arrays_of, classifier, smaller, write_data

# Of 48 samples that are trained on, 6 are left over in every epoch.
RECIPE = Recipe(base="few", epochs=6, views=2, batch_size=14, lr=1e-3, augment=("flip", "shift"))
ROOM = 10**7


@pytest.fixture
def job(teacher: onnx.ModelProto, compressed: onnx.ModelProto, data: Path) -> Job:
    world = World(0, 1, torch.device("cpu"))
    return prepare(
        compressed, teacher, read_digest(compressed), (Dataset(data), None), RECIPE, world, 0
    )


def views_of(job: Job, loader: BatchLoader | None = None, count: int = 2) -> Views:
    return Views(job.networks, job.data, loader or job.train, job.plan, 0, count)


def kept(job: Job, folder: Path, room: float = ROOM, loader: BatchLoader | None = None) -> Views:
    views = views_of(job, loader)
    assert views.keep(folder, room, job.some_batch())
    return views


def epochs(views: Views, count: int = 6) -> Iterator[TensorBatch]:
    for epoch in range(count):
        yield from views.batches(epoch)


def assert_same(one: TensorBatch, other: TensorBatch) -> None:
    assert one.count == other.count
    for ours, theirs in ((one.read, other.read), (one.taught, other.taught)):
        assert ours is not None
        assert theirs is not None
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert one.labels is not None
    assert other.labels is not None
    assert torch.equal(one.labels, other.labels)


class Counting:
    """Training data that counts what is read, some of which cannot be."""

    def __init__(self, data: Any, unreadable: tuple[int, ...] = ()) -> None:
        self._data, self._unreadable = data, unreadable
        self.read: Counter[int] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def sample(self, index: int, *rest: Any) -> Any:
        if index in self._unreadable:
            raise CorruptImageError(f"sample {index}")
        self.read[index] += 1
        return self._data.sample(index, *rest)


# All rows; some; fewer than those of one batch.
@pytest.mark.parametrize("rows", [96, 40, 5])
def test_batches_are_what_they_were(job: Job, tmp_path: Path, rows: int) -> None:
    whole = kept(job, tmp_path)
    assert whole.file is not None
    views = kept(job, tmp_path, whole.file.bytes // whole.file.rows * rows)
    assert views.file is not None
    assert views.file.rows == rows
    for one, other in zip(epochs(views), epochs(views_of(job)), strict=True):
        assert_same(one, other)


def test_every_view_is_read_once(job: Job, tmp_path: Path) -> None:
    data = Counting(job.data)
    loader = job.train.of(data)  # type: ignore[arg-type]
    views = kept(job, tmp_path, loader=loader)
    list(epochs(views, 12))
    assert data.read == Counter(dict.fromkeys(range(job.data.size), 2))


def test_views_differ_and_come_again(job: Job) -> None:
    seen = []
    for epoch in range(3):
        batches = list(views_of(job).batches(epoch))
        read = torch.cat([batch.read[0] for batch in batches if batch.read is not None])
        order = [sample for batch in job.plan.batches(epoch) for sample in batch]
        seen.append(dict(zip(order, read, strict=True)))
    sample = next(iter(seen[0].keys() & seen[1].keys() & seen[2].keys()))
    seen = [each[sample] for each in seen]
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])


def test_what_cannot_be_read_is_replaced_as_ever(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnx_igpc.torch_bridge.training.loader.MAX_CORRUPT", 1.0)
    loaders = [job.train.of(Counting(job.data, (3, 17))) for _ in range(2)]  # type: ignore[arg-type]
    pairs = zip(
        epochs(kept(job, tmp_path, loader=loaders[0])),
        epochs(views_of(job, loaders[1])),
        strict=True,
    )
    for one, other in pairs:
        assert_same(one, other)
    assert loaders[0].skipped == {"sample 3", "sample 17"}


def test_samples_that_are_not_computed_alone_are_not_kept(job: Job, tmp_path: Path) -> None:
    class Mixing:
        teacher = job.networks.teacher

        def known(self, batch: TensorBatch) -> TensorBatch:
            made = batch.inputs[0]
            return replace(batch, read=[made - made.mean(0)], taught=[])

    views = views_of(job)
    views.networks = Mixing()  # type: ignore[assignment]
    assert views.keep(tmp_path, ROOM, job.some_batch()) is None
    assert views.file is None


class TestRuns:
    def run(self, folder: Path, cache_size: float, **changes: Any) -> Any:
        teacher = classifier()
        data = write_data(folder / "d.npz", teacher)
        return finetune(
            smaller(teacher),
            data,
            teacher=teacher,
            recipe=replace(RECIPE, **changes),
            output=folder / "out.onnx",
            run=Run(workers=0, cache_size=cache_size),
        )

    @pytest.mark.parametrize("front", ["frozen", "train"])
    def test_a_run_comes_out_the_same(self, tmp_path: Path, front: str) -> None:
        with_it, without = (self.run(tmp_path, size, front=front) for size in (1.0, 0.0))
        notes = [
            [note for note in result.report.finetune.notes if "kept on disk" in note]
            for result in (with_it, without)
        ]
        assert notes[1] == []
        assert notes[0][0].startswith("what is made of the 2 views of each sample is kept on disk")
        assert ", 1 MiB (" in notes[0][0]
        assert "--cache-size 0" in notes[0][0]
        ours, theirs = arrays_of(with_it.model), arrays_of(without.model)
        for name, value in ours.items():
            if value.dtype == np.float32:
                np.testing.assert_allclose(value, theirs[name], rtol=1e-3, atol=1e-5)
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {"d.npz", "out.onnx", "out.finetune.csv", "out.finetune.json"}

    def test_what_never_comes_again_is_not_kept(self, tmp_path: Path) -> None:
        result = self.run(tmp_path, 1.0, views=None)
        assert result.report.finetune.recipe["views"] == 6
        assert not any("kept on disk" in note for note in result.report.finetune.notes)

    def test_without_augmentation_there_is_one_view(self, tmp_path: Path) -> None:
        result = self.run(tmp_path, 1.0, augment="none", base="many", views=None)
        assert result.report.finetune.recipe["views"] == 1
        assert any(
            "is made of each sample is kept on disk" in note
            for note in result.report.finetune.notes
        )

    def test_a_full_disk_is_said(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("os.posix_fallocate", full)
        notes = self.run(tmp_path, 1.0).report.finetune.notes
        assert any("cannot be kept on disk" in n and "No space left on device" in n for n in notes)
