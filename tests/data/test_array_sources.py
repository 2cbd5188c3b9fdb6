"""Arrays as data: streaming, batches, what cannot be fed; and random data."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from onnx_igpc.data.batches import random_data
from onnx_igpc.data.sources import open_data
from onnx_igpc.errors import DataError, UsageError
from onnx_igpc.graph.inputs import InputSpec
from tests.data.image_files import F32, PLAIN, SPEC, labels, values

ARRAY = np.arange(5 * 3 * 4 * 4, dtype=np.float64).reshape(5, 3, 4, 4)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_rows_are_streamed(tmp_path: Path, compressed: bool, order: str) -> None:
    save = np.savez_compressed if compressed else np.savez
    arrays = {"x": np.asarray(ARRAY, order=order), "labels": np.arange(5)}  # type: ignore[call-overload]
    save(tmp_path / "a.npz", **arrays)
    data = open_data(tmp_path / "a.npz", [SPEC], batch_size=2)
    batches = list(data)
    assert [batch.count for batch in batches] == [2, 2, 1]
    fed = np.concatenate([batch.feeds["x"] for batch in batches])
    assert fed.dtype == np.float32
    np.testing.assert_array_equal(fed, ARRAY)
    assert labels(data) == [0, 1, 2, 3, 4]
    assert data.preprocessing is None


def test_npz_of_two_inputs_and_the_name_of_one(tmp_path: Path) -> None:
    other = InputSpec("mask", np.dtype(bool), ("n", 2))
    np.savez(tmp_path / "two.npz", x=ARRAY, mask=np.zeros((5, 2), bool))
    [batch] = open_data(tmp_path / "two.npz", [SPEC, other])
    assert batch.feeds["mask"].dtype == np.bool_
    np.savez(tmp_path / "one.npz", anything=ARRAY, labels=np.arange(5))
    assert open_data(tmp_path / "one.npz", [SPEC]).size == 5
    with pytest.raises(DataError, match=r"no array named 'x'.* it has anything"):
        open_data(tmp_path / "one.npz", [SPEC, other])


def test_npy_and_folders_of_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", ARRAY)
    np.save(tmp_path / "a.npy", ARRAY[0] + 1000)  # one sample, without a batch dimension
    data = open_data(tmp_path, [SPEC], batch_size=4)
    assert values(data) == [1000, 0, 48, 96, 144, 192]
    assert values(open_data(tmp_path, [SPEC], samples=2)) == [1000, 96]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": ARRAY[:, :2]}, r"\[5, 2, 4, 4\] does not fit x float32\[n, 3, 4, 4\]"),
        ({"x": ARRAY.astype(np.uint8)}, "uint8 cannot be fed"),
        ({"x": ARRAY, "labels": np.arange(4)}, "labels must be 5 integers"),
        ({"x": ARRAY, "labels": np.arange(5.0)}, "labels must be 5 integers"),
        ({"x": ARRAY[:0]}, "no samples"),
        ({"x": np.array([{}], dtype=object)}, "Python objects"),
    ],
)
def test_unusable_arrays_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        open_data(tmp_path / "a.npz", [SPEC])


def test_damaged_array_files_are_one_line(tmp_path: Path) -> None:
    for name in ("a.npz", "a.npy"):
        (tmp_path / name).write_bytes(b"not numpy")
        with pytest.raises(DataError, match="not a readable NumPy file"):
            open_data(tmp_path / name, [SPEC])


def test_preprocessing_of_arrays_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ARRAY)
    with pytest.raises(UsageError, match="preprocessing is for images"):
        open_data(tmp_path / "a.npy", [SPEC], PLAIN)


def test_random_samples_do_not_depend_on_the_batch_size() -> None:
    one, four = (
        np.concatenate([b.feeds["x"] for b in random_data([SPEC], samples=6, batch_size=size)])
        for size in (1, 4)
    )
    np.testing.assert_array_equal(one, four)
    assert one.shape == (6, 3, 4, 4)
    assert not np.array_equal(one[0], one[1])


def test_random_data_for_inputs_without_a_common_batch() -> None:
    inputs = [InputSpec("x", F32, (1, 3)), InputSpec("size", F32, (2,)), InputSpec("s", F32, ())]
    batches = list(random_data(inputs, samples=2))
    assert [{k: v.shape for k, v in b.feeds.items()} for b in batches] == [
        {"x": (1, 3), "size": (2,), "s": ()}
    ] * 2


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "holds NaN"),
        (np.inf, "holds infinite values"),
        (1e300, "holds values that float32 cannot hold"),
    ],
)
def test_arrays_that_are_not_finite_are_refused_by_place(
    tmp_path: Path, suffix: str, value: float, message: str
) -> None:
    array = np.zeros((5, 3, 4, 4))
    array[3, 1, 2, 2] = value
    path = tmp_path / f"d.{suffix}"
    np.save(path, array) if suffix == "npy" else np.savez(path, x=array)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=rf"d\.{suffix}: sample 3 of 'x' {message}"):
            list(open_data(path, [SPEC]))
