"""A promise: kept by as little as it takes, or refused naming the nearest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import onnx_igpc
from onnx_igpc import Calibration, Keep
from onnx_igpc.cli import main
from onnx_igpc.compression.pipeline import CompressResult
from onnx_igpc.errors import CheckFailedError, UsageError
from onnx_igpc.report.digest import read_digest
from tests.calibration_graphs import images, saved
from tests.helpers import GraphBuilder
from tests.planning.test_budget import CHANNELS, classifier


def kept(data: Any, promise: str, **options: Any) -> CompressResult:
    return onnx_igpc.compress(classifier(), Keep(promise, **options), calibration=data)


def valued() -> onnx.ModelProto:
    """A network without class scores."""
    builder = GraphBuilder()
    builder.input("x", ["n", 16, 6, 6])
    value = "x"
    for number in range(3):
        value = builder.activation(
            builder.conv(value, f"conv{number}", 16, 16), f"relu{number}", "Relu"
        )
    builder.conv(value, "last", 16, 16, kernel=3)
    builder.output("last", ["n", 16, 4, 4])
    return builder.model()


@pytest.fixture(scope="module")
def data() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((240, CHANNELS, 6, 6)).astype(np.float32)


def test_agreement_is_kept_by_less_than_everything(data: np.ndarray) -> None:
    result = kept(data, "agreement=90%")
    damage, selection = result.report.damage, result.report.selection
    assert damage is not None
    assert damage.interval is not None
    assert damage.interval[0] >= 0.9
    assert result.report.rewritten
    assert selection is not None
    assert selection.chosen[0] < 0.9
    assert selection.tried
    shares = {round(plan.share, 6) for plan in selection.tried}
    assert round(selection.chosen[0], 6) in shares
    options = read_digest(result.model).options  # type: ignore[union-attr]
    assert (options.keep, options.minimize) == ("agreement=90%", "pointwise-parameters")


def test_less_is_promised_by_less() -> None:
    shares = []
    for promise in ("output=0.6", "output=0.2"):
        report = onnx_igpc.compress(valued(), Keep(promise), calibration=images(60, 16)).report
        assert report.selection is not None
        shares.append(report.selection.chosen[0])
    assert shares[0] < shares[1]


def test_what_is_minimised_counts(data: np.ndarray) -> None:
    result = kept(data, "agreement=90%", minimize="macs")
    macs = result.report.totals.macs
    assert macs.after < macs.before


def test_relative_error_of_a_model_without_class_scores() -> None:
    x = images(60, 16)
    result = onnx_igpc.compress(valued(), Keep("output=0.4"), calibration=x)
    assert result.report.damage is not None
    assert 0 < (result.report.damage.relative_error or 0) <= 0.4


def test_what_nothing_keeps_names_the_nearest(data: np.ndarray) -> None:
    with pytest.raises(CheckFailedError, match=r"keeps output=1e-09.*with \d+(\.\d)?% of"):
        onnx_igpc.compress(valued(), Keep("output=1e-09"), calibration=data[:40, :16])


def test_too_little_data_to_show_it(data: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"takes 381 held-out samples or more, here are 100"):
        kept(data[:200], "agreement=99%")
    with pytest.raises(UsageError, match="held-out"):
        kept(Calibration(data[:200], holdout=0.0), "agreement=90%")
    with pytest.raises(UsageError, match="labelled data"):
        kept(data[:60], "accuracy=-1")


def test_the_command(tmp_path: Path, data: np.ndarray) -> None:
    model, out = tmp_path / "m.onnx", tmp_path / "small.onnx"
    onnx.save(classifier(), model)
    arrays = saved(tmp_path, x=data)
    given = [str(model), "-o", str(out), "--calibration", str(arrays)]
    done = CliRunner().invoke(main, ["compress", *given, "--keep", "agreement=90%"])
    assert done.exit_code == 0, done.output
    assert out.exists()
    for wrong, told in (
        (["--keep", "agreement=90%", "--target", "macs=50%"], "--target and --keep"),
        (["--keep", "agreement=90%", "--ch", "8"], "--ch and --keep"),
        (["--minimize", "macs"], "give --keep"),
        (["--keep", "agreement=9"], "--keep 'agreement=9'"),
    ):
        refused = CliRunner().invoke(main, ["compress", *given, *wrong])
        assert refused.exit_code == 2
        assert told in refused.output
