"""What is written is never worse than what was given."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

import onnx_igpc
from onnx_igpc.cli import main
from onnx_igpc.errors import DataError
from onnx_igpc.report.sections import JudgedReport
from onnx_igpc.torch_bridge import to_torch
from onnx_igpc.torch_bridge.training.finetune import finetune
from onnx_igpc.torch_bridge.training.result import FinetuneResult
from tests.torch_bridge.training_cases import SIDE, classifier, short, smaller, write_data


def judgement(result: FinetuneResult) -> JudgedReport:
    run = result.report.finetune
    assert run
    assert run.judged
    return run.judged


def _ruin(module: torch.nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        parameter.data *= 3


# A rate that stays high: the curve goes up again.
RUN: dict[str, Any] = {
    "lr": 0.3, "schedule": "constant", "warmup": 0.0, "epochs": 24, "feature_loss": 0.0
}  # fmt: skip


class TestNeverWorse:
    def test_a_rate_that_ruins_the_network(self, tmp_path: Path) -> None:
        teacher = classifier()
        small = smaller(teacher)
        data = write_data(tmp_path / "d.npz", teacher, labels=False)
        output = tmp_path / "out.onnx"
        recipe = short(lr=3.0, epochs=2)
        result = finetune(small, teacher=teacher, data=data, output=output, recipe=recipe)
        assert not result.gained
        judged = judgement(result)
        assert judged.epoch == 0
        assert judged.on == "held-out"
        assert judged.samples == 16
        assert judged.before == judged.after < judged.least_after_training
        for before, after in zip(
            small.graph.initializer, onnx.load(output).graph.initializer, strict=True
        ):
            assert before.SerializeToString() == after.SerializeToString()
        [warning] = [text for text in result.report.warnings if "did not help" in text]
        assert f"warning: {warning}" in result.summary()
        assert "the weights are as they were given" in warning

    def test_the_best_epoch_is_what_is_written(self, tmp_path: Path) -> None:
        teacher = classifier()
        data = write_data(tmp_path / "d.npz", teacher, labels=False)
        result = finetune(smaller(teacher), teacher=teacher, data=data, recipe=short(**RUN))
        judged = judgement(result)
        curve = [row.val_judged or 0.0 for row in result.history]
        assert judged.after == min(judged.before, *curve)
        best = judged.epoch
        assert 0 < best < RUN["epochs"]
        shorter = finetune(
            smaller(teacher), teacher=teacher, data=data, recipe=short(**{**RUN, "epochs": best})
        )
        assert shorter.model.graph.initializer == result.model.graph.initializer

    def test_a_gain_that_rounding_takes_away(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Half precision: judged are the weights as they are written."""
        teacher = classifier(dtype=np.float16)
        data = write_data(tmp_path / "d.npz", classifier(), labels=False)
        small = smaller(teacher)
        result = finetune(small, teacher=teacher, data=data, recipe=short(epochs=12))
        judged = judgement(result)
        assert result.gained
        assert judged.after != result.history[judged.epoch - 1].val_judged
        monkeypatch.setattr(
            "onnx_igpc.torch_bridge.training.finetune.to_torch",
            lambda model: to_torch(model).apply(_ruin),
        )
        ruined = finetune(small, teacher=teacher, data=data, recipe=short(epochs=12))
        assert not ruined.gained
        assert ruined.model.graph.initializer == small.graph.initializer

    def test_the_sites_do_not_hide_the_outputs(self, tmp_path: Path) -> None:
        """With a heavy weight on the sites the loss falls while the outputs go astray."""
        teacher = classifier()
        data = write_data(tmp_path / "d.npz", teacher, labels=False)
        recipe = short(feature_loss=1e6, epochs=1, freeze=("head_w",))
        row = finetune(smaller(teacher), teacher=teacher, data=data, recipe=recipe).history[0]
        assert row.val_judged is not None
        assert row.val_loss is not None
        assert row.val_judged < 1e3 < row.val_loss

    def test_exit_code(self, tmp_path: Path) -> None:
        teacher = classifier()
        onnx.save(teacher, tmp_path / "m.onnx")
        onnx.save(smaller(teacher), tmp_path / "s.onnx")
        data = write_data(tmp_path / "d.npz", teacher, labels=False)
        words = ["finetune", str(tmp_path / "s.onnx"), "--teacher", str(tmp_path / "m.onnx")]
        words += ["--data", str(data), "-o", str(tmp_path / "o.onnx"), "--epochs", "1", "--lr", "3"]
        plain = CliRunner().invoke(main, words)
        assert plain.exit_code == 0, plain.output
        assert "training did not help" in plain.stdout
        assert re.search(r"  val loss [0-9.]+  val agreement [0-9.]+%  ", plain.stderr)
        strict = CliRunner().invoke(main, [*words, "--require-gain"])
        assert strict.exit_code == 1
        assert "error: training made nothing better" in strict.stderr
        assert (tmp_path / "o.onnx").is_file()

    @pytest.mark.parametrize(("count", "kind", "held"), [
        (1, "training", 1), (2, "held-out", 1), (12, "held-out", 3), (64, "held-out", 16),
        (200, "held-out", 40), (600, "held-out", 60),
    ])  # fmt: skip
    def test_how_much_is_held_out(self, tmp_path: Path, count: int, kind: str, held: int) -> None:
        teacher = classifier()
        data = write_data(tmp_path / "d.npz", teacher, count)
        result = finetune(smaller(teacher), teacher=teacher, data=data, recipe=short(epochs=1))
        judged, run = judgement(result), result.report.finetune
        assert (judged.on, judged.samples) == (kind, held)
        assert run
        assert run.data.samples == (count if kind == "training" else count - held)
        assert run.val
        assert (run.val.kind, run.val.samples) == (kind, held)


class TestDataOfAnotherKind:
    """Compressed with loud images, of which the original is sure; trained on faint ones, of which it is not."""

    @pytest.fixture
    def teacher(self) -> onnx.ModelProto:
        model = classifier()
        for tensor in model.graph.initializer:
            if tensor.name == "head_w":
                quieter = onnx.numpy_helper.to_array(tensor) * np.float32(0.1)
                tensor.CopyFrom(onnx.numpy_helper.from_array(quieter, tensor.name))
        return model

    @pytest.fixture
    def small(self, teacher: onnx.ModelProto) -> onnx.ModelProto:
        result = onnx_igpc.compress(
            teacher, onnx_igpc.Published(4), calibration={"x": self.images(0, 30.0)}
        )
        calibration = result.report.calibration
        assert calibration is not None
        assert calibration.confidence is not None
        assert calibration.confidence > 0.9
        return result.model

    @staticmethod
    def images(seed: int, loudness: float) -> np.ndarray:
        generator = np.random.default_rng(seed)
        return loudness * generator.standard_normal((64, 1, SIDE, SIDE)).astype(np.float32)

    def saved(self, path: Path, seed: int, loudness: float) -> Path:
        np.savez(path, x=self.images(seed, loudness))
        return path

    def test_it_is_refused_to_be_judged_by_it(
        self, teacher: onnx.ModelProto, small: onnx.ModelProto, tmp_path: Path
    ) -> None:
        faint = self.saved(tmp_path / "faint.npz", 1, 0.01)
        output = tmp_path / "out.onnx"
        said = (
            r"far less sure of its answers on the held-out samples than on those that compress was given \(its "
            r"highest class probability is \d+% on average, not \d+%\): they are of another kind, .*: give `val`"
        )
        with pytest.raises(DataError, match=said):
            finetune(small, teacher=teacher, data=faint, output=output, recipe=short())
        assert not output.exists()

    def test_validation_data_decides(
        self, teacher: onnx.ModelProto, small: onnx.ModelProto, tmp_path: Path
    ) -> None:
        faint = self.saved(tmp_path / "faint.npz", 1, 0.01)
        for loudness, doubted in ((30.0, False), (0.01, True)):
            val = self.saved(tmp_path / f"val_{loudness}.npz", 2, loudness)
            result = finetune(small, teacher=teacher, data=faint, val=val, recipe=short(epochs=1))
            run = result.report.finetune
            assert run is not None
            assert any("of another kind" in note for note in run.notes) == doubted

    def test_data_of_the_same_kind_is_not_doubted(
        self, teacher: onnx.ModelProto, small: onnx.ModelProto, tmp_path: Path
    ) -> None:
        loud = self.saved(tmp_path / "loud.npz", 1, 30.0)
        result = finetune(small, teacher=teacher, data=loud, recipe=short(epochs=1))
        run = result.report.finetune
        assert run is not None
        assert not any("of another kind" in note for note in run.notes)
