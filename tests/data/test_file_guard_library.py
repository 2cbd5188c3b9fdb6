"""Called from Python, nothing is written over what is read either."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_igpc import compress
from onnx_igpc.data.file_guard import FileGuard
from onnx_igpc.data.sources import open_data
from onnx_igpc.errors import UsageError
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.lowering.lower import lower_model
from onnx_igpc.lowering.options import Lowering
from onnx_igpc.planning.options import Budget, Published
from tests.data.guarded import C, contents
from tests.helpers import pointwise_model


class TestLibrary:
    def test_measurements_over_what_is_read(self, folder: Path) -> None:
        def check(file: str, calibration: object = "data.npz") -> None:
            before = contents(folder)
            with pytest.raises(UsageError, match="choose another output"):
                compress(
                    "outside.onnx",
                    Budget("pointwise-parameters=60%", sensitivity="s.json", save_sensitivity=file),
                    calibration=calibration,
                )
            assert contents(folder) == before

        for file in ("outside.onnx", "w.bin", "data.npz", "s.json"):
            check(file)
        check("data.npz", open_data("data.npz", model_inputs(onnx.load("outside.onnx"))))

    def test_results_know_what_was_read(self, folder: Path) -> None:
        result = compress("outside.onnx", Published(12), calibration="data.npz")
        before = contents(folder)
        for file in ("outside.onnx", "w.bin", "data.npz"):
            with pytest.raises(UsageError, match="choose another output"):
                result.save(file)
        lowered = lower_model("small.onnx", lowering=Lowering("literal"))
        [data] = folder.glob("small.onnx.*.data")
        for path in (data, "small.onnx"):
            with pytest.raises(UsageError, match="choose another output"):
                lowered.save(path)
        assert contents(folder) == before

    def test_models_in_memory_have_no_file(self, folder: Path) -> None:
        compress(pointwise_model(C, C), Published(12)).save("outside.onnx")
        assert not onnx.load("outside.onnx").graph.initializer[0].external_data

    def test_fine_tuning(self, folder: Path) -> None:
        pytest.importorskip("torch")
        from onnx_igpc.torch_bridge.training.finetune import finetune

        before = contents(folder)
        for output in ("small.onnx", "outside.onnx", "w.bin", "data.npz", "val.npz"):
            with pytest.raises(UsageError, match="choose another output"):
                finetune(
                    "small.onnx",
                    teacher="outside.onnx",
                    data="data.npz",
                    val="val.npz",
                    output=output,
                )
        assert contents(folder) == before

    def test_reads_without_files(self) -> None:
        guard = FileGuard()
        guard.reads_model(None, onnx.ModelProto())
        guard.reads_data(np.zeros(3), "data")
        guard.reads(None, "x")
        guard.writes(None, "x")
        guard.check()


@pytest.mark.parametrize("name", ["x" * 300, "a/" + "y" * 300, "a\0b", "none/at/all"])
def test_data_of_impossible_names(name: str, folder: Path) -> None:
    """What is wrong with data is said by whoever reads it; never an exception of the system."""
    guard = FileGuard()
    guard.reads_data(name, "--data")
    guard.reads(name, "--preprocess")
    guard.reads_model(name)
    guard.writes("o.json", "--json")
    guard.check()
