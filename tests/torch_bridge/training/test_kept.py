"""Validation data is read and shown to the teacher once, and nothing comes out otherwise for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

from onnx_igpc.torch_bridge.training import kept, loop
from onnx_igpc.torch_bridge.training.finetune import finetune
from onnx_igpc.torch_bridge.training.kept import KeptBatches
from onnx_igpc.torch_bridge.training.loader import BatchLoader, TensorBatch
from tests.torch_bridge.training_cases import short

PLACES = [[0, 1], [2, 3], [4]]
# Of a batch of two: the inputs and what the teacher makes of them, float32[2, 3] each.
BATCH_BYTES = 2 * (2 * 3 * 4)


class Loader(BatchLoader):
    """Says which samples were read."""

    def __init__(self) -> None:
        self.read: list[list[int]] = []

    def plain(self, batches):  # type: ignore[no-untyped-def]
        for places in batches:
            self.read.append(places)
            values = torch.tensor(places, dtype=torch.float32)
            yield TensorBatch(
                (values[:, None].expand(-1, 3),), torch.tensor(places), len(places), []
            )


def twice(batch: TensorBatch) -> TensorBatch:
    """The student reads what the teacher does, which doubles it."""
    return replace(batch, read=list(batch.inputs), taught=[batch.inputs[0] * 2])


@pytest.mark.parametrize(
    ("most", "read_again"),
    [(10**6, []), (BATCH_BYTES, PLACES[1:]), (BATCH_BYTES - 1, PLACES)],
)
def test_what_fits_is_read_once(most: int, read_again: list[list[int]]) -> None:
    loader = Loader()
    batches = KeptBatches(loader, PLACES, twice, most)
    first = list(batches)
    assert loader.read == PLACES
    for _ in range(2):
        loader.read.clear()
        again = list(batches)
        assert loader.read == read_again
        for one, other in zip(first, again, strict=True):
            assert one.read is not None
            assert other.read is not None
            assert torch.equal(one.read[0], other.read[0])
            assert one.labels is not None
            assert other.labels is not None
            assert torch.equal(one.labels, other.labels)
            assert one.taught is not None
            assert other.taught is not None
            assert torch.equal(one.taught[0], other.taught[0])


def test_a_pass_that_was_broken_off() -> None:
    loader = Loader()
    batches = KeptBatches(loader, PLACES, twice)
    next(iter(batches))
    assert [batch.read[0][0, 0].item() for batch in batches if batch.read] == [0, 2, 4]
    assert loader.read == PLACES


def test_a_run_comes_out_the_same(
    monkeypatch: pytest.MonkeyPatch,
    teacher: onnx.ModelProto,
    compressed: onnx.ModelProto,
    data: Path,
) -> None:
    def run() -> onnx.ModelProto:
        return finetune(compressed, data, teacher=teacher, recipe=short()).model

    kept_all = run()
    monkeypatch.setattr(loop, "KeptBatches", lambda *args: kept.KeptBatches(*args, most=0))
    forgotten = run()
    for one, other in zip(kept_all.graph.initializer, forgotten.graph.initializer, strict=True):
        assert one.SerializeToString() == other.SerializeToString()
