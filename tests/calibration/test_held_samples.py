"""Samples that are kept and shared out: each is there once, as it was read, until the end."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_igpc.calibration import held_samples
from onnx_igpc.calibration.activation_store import ActivationStore
from onnx_igpc.calibration.held_samples import HeldSamples, Part
from onnx_igpc.data.batches import Batch, Data, SourceDescription
from onnx_igpc.errors import DataError
from onnx_igpc.graph.inputs import InputSpec, model_inputs
from tests.calibration_graphs import ListData
from tests.helpers import GraphBuilder, pointwise_model


class BatchList:
    """Batches as they are given, labelled where all of them are."""

    def __init__(self, *batches: Batch) -> None:
        self._batches = batches
        self.size = sum(batch.count for batch in batches)
        self.labelled = all(batch.labels is not None for batch in batches)
        self.classes: tuple[str, ...] | None = ("cat", "dog")
        self.preprocessing = None
        self.skipped: list[str] = []

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)

    def describe(self) -> SourceDescription:
        return SourceDescription("batches", self.size, self.labelled, None, ["unreadable"])


def flat_model(batch: int | str = "batch") -> onnx.ModelProto:
    """x float32[batch, 2] -> y."""
    builder = GraphBuilder()
    builder.input("x", [batch, 2])
    builder.output(builder.add("Relu", ["x"], "y"))
    return builder.model()


def numbered(count: int) -> np.ndarray:
    """Samples that hold their own number."""
    return np.repeat(np.arange(count, dtype=np.float32)[:, None], 2, axis=1)


def held_of(model: onnx.ModelProto, data: Data) -> HeldSamples:
    return HeldSamples(data, model_inputs(model))


def seen(part: Part) -> list[int]:
    """The numbers of the samples of a part, as its batches hold them."""
    return [int(row[0]) for batch in part for row in batch.feeds["x"][: batch.count]]


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 70), folds=st.integers(1, 6), batch=st.integers(1, 9))
def test_folds_are_disjoint_cover_all_and_are_of_nearly_one_size(
    count: int, folds: int, batch: int
) -> None:
    model = flat_model()
    with held_of(model, ListData(model, {"x": numbered(count)}, batch)) as held:
        parts = held.all().folds(folds)
        assert len(parts) == min(folds, count)
        assert sorted(number for part in parts for number in seen(part)) == list(range(count))
        sizes = [part.size for part in parts]
        assert max(sizes) - min(sizes) <= 1
        for part in parts:
            rest = held.all().without(part)
            assert not set(seen(rest)) & set(seen(part))
            assert sorted(seen(rest.joined(part))) == list(range(count))


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 40), most=st.integers(0, 50))
def test_some_of_the_samples_are_from_all_over(count: int, most: int) -> None:
    model = flat_model()
    with held_of(model, ListData(model, {"x": numbered(count)})) as held:
        taken = seen(held.all().take(most))
        assert len(taken) == len(set(taken)) == min(most, count)
        if len(taken) > 1:
            assert max(np.diff(taken)) <= -(-count // len(taken))


def test_a_fixed_batch_is_filled_up_and_what_fills_it_does_not_count() -> None:
    model = flat_model(batch=4)
    data = ListData(model, {"x": numbered(7)})
    with held_of(model, data) as held:
        assert len(held) == 7, "the last batch of the data was filled up, too"
        batches = list(Part(held, [0, 2, 3, 4, 6]))
    assert [batch.count for batch in batches] == [4, 1]
    assert [batch.feeds["x"][:, 0].tolist() for batch in batches] == [[0, 2, 3, 4], [6, 6, 6, 6]]


def test_inputs_without_a_batch_dimension_keep_their_batches_whole() -> None:
    shift = np.float32([1, 2, 3])
    batches = [
        Batch({"x": numbered(2), "shift": shift}, None, 2),
        Batch({"x": numbered(5), "shift": shift}, np.arange(4), 4),
    ]
    dtype = np.dtype(np.float32)
    specs = [InputSpec("x", dtype, ("batch", 2)), InputSpec("shift", dtype, ("n",))]
    with HeldSamples(BatchList(*batches), specs) as held:
        assert len(held) == 2
        assert not held.divisible
        assert held.all().size == 6
        first, second = held.all().folds(2)
        assert (first.size, second.size) == (2, 4)
        for part, given_batch in zip((first, second), batches, strict=True):
            (batch,) = part
            assert batch.count == given_batch.count
            np.testing.assert_array_equal(batch.feeds["x"], given_batch.feeds["x"])
            np.testing.assert_array_equal(batch.feeds["shift"], shift)
        assert batch.labels is not None
        np.testing.assert_array_equal(batch.labels, np.arange(4))


def test_a_scalar_input_keeps_batches_whole() -> None:
    scale = np.float32(3)
    batch = Batch({"x": numbered(3), "scale": scale}, None, 3)  # type: ignore[dict-item]
    specs = [InputSpec("x", np.dtype(np.float32), ("batch", 2))]
    with HeldSamples(BatchList(batch, batch), specs) as held:
        assert [each.feeds["scale"].shape for each in held.all()] == [(), ()]


def test_labels_stay_with_their_samples() -> None:
    data = BatchList(
        Batch({"x": numbered(3)}, np.array([10, 11, 12]), 3),
        Batch({"x": numbered(6)[3:]}, np.array([13, 14]), 2),
    )
    with held_of(flat_model(), data) as held:
        (batch,) = Part(held, [4, 0, 3])
        said = held.all().folds(2)[1].describe()
    assert batch.labels is not None
    assert batch.labels.tolist() == [14, 10, 13]
    assert batch.feeds["x"][:, 0].tolist() == [4, 0, 3]
    assert (said.source, said.samples, said.labelled) == ("batches", 2, True)
    assert (held.all().classes, held.all().labelled) == (("cat", "dog"), True)


def test_images_of_other_sizes_are_batches_of_their_own() -> None:
    sizes = [4, 4, 6, 6, 4]
    data = BatchList(
        *(Batch({"x": np.zeros((1, 3, size, size), np.float32)}, None, 1) for size in sizes)
    )
    with held_of(pointwise_model(), data) as held:
        shapes = [batch.feeds["x"].shape[::3] for batch in held.all()]
    assert shapes == [(2, 4), (2, 6), (1, 4)]


def test_the_order_is_drawn_once_and_the_same_each_time() -> None:
    model = flat_model()
    orders = []
    for _ in range(2):
        with held_of(model, ListData(model, {"x": numbered(30)})) as held:
            orders.append(held.order)
            assert seen(held.all()) == list(range(30))
    assert orders[0] == orders[1] != list(range(30))


@pytest.mark.parametrize("error", [None, RuntimeError("on the way")], ids=["done", "failed"])
def test_temporary_files_are_gone_after_the_end(
    error: Exception | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(held_samples, "ActivationStore", partial(ActivationStore, memory_bytes=0))
    x = np.random.default_rng(0).standard_normal((4, 32, 23, 23)).astype(np.float32)

    def use() -> None:
        with held_of(pointwise_model(), BatchList(Batch({"x": x}, None, 4))) as held:
            assert len(list(tmp_path.rglob("*.npy"))) == 4
            (batch,) = Part(held, [3, 1])
            np.testing.assert_array_equal(batch.feeds["x"], x[[3, 1]])
            del batch
            if error is not None:
                raise error

    if error is None:
        use()
    else:
        with pytest.raises(RuntimeError, match="on the way"):
            use()
    assert list(tmp_path.iterdir()) == []


def test_no_samples_are_an_error_that_names_the_data() -> None:
    with pytest.raises(DataError, match="batches: no sample could be read"):
        held_of(flat_model(), BatchList())
