"""What the Python API takes where one or several are meant, and data that is in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_igpc import compress, inspect, verify
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.data.sources import as_data, open_data
from onnx_igpc.errors import DataError, IgpcError, UsageError, texts
from onnx_igpc.evaluation.benchmark import benchmark
from onnx_igpc.graph.inputs import InputSpec
from onnx_igpc.passes import Pass, PassResult
from onnx_igpc.planning.options import Published
from onnx_igpc.runtime.setting import Settings
from onnx_igpc.sites.find import SiteFilter
from onnx_igpc.torch_bridge.training.recipe import Recipe
from tests.helpers import GraphBuilder, options_of, pointwise_model

F32 = np.dtype(np.float32)
IMAGE, SCALE = InputSpec("x", F32, ("n", 3, 4, 4)), InputSpec("s", F32, ("n", 2))


def two_sites() -> onnx.ModelProto:
    builder = GraphBuilder()
    builder.input("x", ["n", 48, 5, 5])
    value = builder.conv(builder.conv("x", "Conv_1", 48, 48), "Other_2", 48, 48)
    value = builder.conv(value, "last", 48, 48, kernel=3, group=48, pads=[1] * 4)
    builder.output(value, ["n", 48, 5, 5])
    return builder.model()


def images(count: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((count, 3, 4, 4))
    return values.astype(np.float32)


class TestTexts:
    def test_one_is_not_taken_letter_by_letter(self) -> None:
        assert texts("include", "Conv_*") == ("Conv_*",)
        assert texts("include", ["a", "b"]) == texts("include", iter("ab")) == ("a", "b")
        assert texts("include", None) == ()

    @pytest.mark.parametrize("given", [3, ["a", 3], [None], b"ab", Path("a")])
    def test_anything_else_is_refused(self, given: Any) -> None:
        with pytest.raises(UsageError, match=r"^include takes one text or several, not "):
            texts("include", given)

    def test_include_and_exclude(self) -> None:
        model = two_sites()
        for chosen in ({"include": "Conv_*"}, {"exclude": "Other*"}):
            for report in (
                inspect(model, **options_of(channels_per_group=12, **chosen)),  # type: ignore[arg-type]
                compress(model, **options_of(channels_per_group=12, **chosen)).report,  # type: ignore[arg-type]
            ):
                assert [site.name for site in report.rewritten] == ["Conv_1_node"]
        assert compress(
            model, Published(12), sites=SiteFilter(include="Conv_*")
        ).report.options.include == ["Conv_*"]
        assert SiteFilter(include="Conv_*").include == ("Conv_*",)  # type: ignore[arg-type]

    def test_a_recipe(self) -> None:
        recipe = Recipe(augment="flip", freeze="head*")
        assert (recipe.augment, recipe.freeze) == (("flip",), ("head*",))
        assert Recipe(augment=["flip", "crop"]).to_dict()["augment"] == ["flip", "crop"]
        assert Recipe().augment is None
        with pytest.raises(UsageError, match="freeze takes one text or several"):
            Recipe(freeze=[1])  # type: ignore[list-item]

    def test_passes(self) -> None:
        class Nothing(Pass):
            name = "nothing"

            def run(self, model: object) -> PassResult:
                return PassResult()

        model = pointwise_model(48, 48)
        report = compress(model, Published(12), passes=Nothing()).report
        assert list(report.passes) == ["nothing"]
        with pytest.raises(UsageError, match="there is no pass 'no-such'"):
            compress(model, Published(12), passes="no-such")

    def test_a_race_of_one(self, tmp_path: Path) -> None:
        path = tmp_path / "m.onnx"
        onnx.save(two_sites(), path)
        data = np.zeros((2, 48, 5, 5), np.float32)
        result = benchmark(
            path,
            settings=Settings(batches=2, threads=1),
            data=data,
            rounds=2,
            warmup=0,
            footprint=False,
        )
        assert [(race.batch, race.threads) for race in result.races] == [(2, 1)]
        assert result.inputs == "arrays in memory"


class TestArraysInMemory:
    def test_they_are_what_their_file_is(self, tmp_path: Path) -> None:
        arrays = {"x": images(5), "s": np.ones((5, 2), np.float64), "labels": np.arange(5) % 2}
        np.savez(tmp_path / "a.npz", **arrays)
        specs = [IMAGE, SCALE]
        for samples in (None, 3):
            ours = as_data(arrays, specs, samples=samples, batch_size=2)
            theirs = open_data(tmp_path / "a.npz", specs, samples=samples, batch_size=2)
            assert (ours.size, ours.labelled) == (theirs.size, True)
            for one, other in zip(ours, theirs, strict=True):
                assert one.count == other.count
                assert np.array_equal(one.labels, other.labels)  # type: ignore[arg-type]
                for name in ("x", "s"):
                    assert one.feeds[name].dtype == F32
                    assert np.array_equal(one.feeds[name], other.feeds[name])
        assert as_data(arrays, specs).describe().source == "arrays in memory"

    def test_one_input_needs_no_name(self) -> None:
        [batch] = as_data(images(3), [IMAGE])
        assert np.array_equal(batch.feeds["x"], images(3))
        [single] = as_data({"any": images(1)[0]}, [IMAGE])
        assert np.array_equal(single.feeds["x"], images(1))

    def test_tensors_of_other_libraries(self) -> None:
        torch = pytest.importorskip("torch")
        [batch] = as_data(torch.from_numpy(images(3)), [IMAGE])
        assert np.array_equal(batch.feeds["x"], images(3))
        with pytest.raises(DataError, match=r"^arrays in memory cannot be used"):
            as_data(torch.ones(1, 3, 4, 4, requires_grad=True), [IMAGE])

    def test_opened_data_is_taken_as_it_is(self) -> None:
        data = as_data(images(3), [IMAGE])
        assert as_data(data, [IMAGE]) is data

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ([images(1)[0]], "data is a path, an array or a dict of arrays by input"),
            (3, "not int"),
            ({"x": [1.0, 2.0]}, "data is a path"),
            (images(2)[:, :2], r"of shape \[2, 2, 4, 4\] does not fit"),
            (np.zeros((2, 3, 4, 4), np.uint8), "scale and convert it first"),
            (images(0), "hold no samples"),
            ({"x": images(2), "labels": np.zeros(3, int)}, "labels must be 2 integers"),
            ({"x": images(2), "y": images(2), "labels": np.zeros(2)}, "labels must be 2 integers"),
            ({"y": images(2), "z": images(2)}, "no array named 'x'"),
            (np.array([[object()]]), "does not fit"),
        ],
    )
    def test_what_cannot_be_used_is_one_line(self, given: Any, message: str) -> None:
        with pytest.raises(IgpcError, match=message) as caught:
            as_data(given, [IMAGE])
        assert "\n" not in str(caught.value)

    def test_lengths_and_options(self) -> None:
        with pytest.raises(DataError, match=r"different numbers of samples: .*one row a sample"):
            as_data({"x": images(2), "s": np.zeros((3, 2), np.float32)}, [IMAGE, SCALE])
        with pytest.raises(UsageError, match="preprocessing is for images"):
            as_data(images(2), [IMAGE], Preprocessing(resize=4))
        with pytest.raises(UsageError, match="samples must be at least 1"):
            as_data(images(2), [IMAGE], samples=0)

    @pytest.mark.parametrize("given", [lambda values: values, lambda values: {"x": values}])
    def test_compress_and_verify(self, given: Callable[[np.ndarray], Any], tmp_path: Path) -> None:
        values = np.random.default_rng(1).standard_normal((8, 48, 5, 5)).astype(np.float32)
        np.save(tmp_path / "d.npy", values)
        model = two_sites()
        ours = compress(model, Published(12), calibration=given(values))
        theirs = compress(model, Published(12), calibration=tmp_path / "d.npy")
        weights = [result.model.graph.initializer for result in (ours, theirs)]
        assert list(weights[0]) == list(weights[1])
        one, other = (
            verify(model, ours.model, data=data) for data in (given(values), tmp_path / "d.npy")
        )
        assert one.outputs == other.outputs

    def test_other_data_is_one_line_before_any_work(self) -> None:
        model = two_sites()
        for call in (
            lambda: compress(model, Published(12), calibration=[1]),  # type: ignore[arg-type]
            lambda: verify(model, model, data=iter([])),  # type: ignore[arg-type]
        ):
            with pytest.raises(DataError, match="data is a path, an array or a dict of arrays"):
                call()
