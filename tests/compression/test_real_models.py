"""compress on models of other makers, where a folder of them is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnx_igpc import compress
from onnx_igpc.graph.cost import count
from onnx_igpc.graph.model import load_model
from onnx_igpc.planning.options import Published
from onnx_igpc.runtime.session import make_session
from tests.real_models import each_model
from tests.untouched import assert_untouched


@pytest.mark.parametrize("ch", [8, 16, 32])
@each_model
def test_linear_form(path: Path, ch: int, tmp_path: Path) -> None:
    result = compress(path, Published(ch))
    result.save(tmp_path / "small.onnx")
    before, after = load_model(path), load_model(tmp_path / "small.onnx")
    report = result.report
    assert_untouched(before, after, report)
    assert report.totals.parameters.after == count(after).parameters
    assert report.totals.macs.after == count(after).macs
    if not result.changed:
        assert (tmp_path / "small.onnx").read_bytes() == path.read_bytes()
        return
    rewritten = len(report.rewritten)
    assert report.checks["sites"].startswith(f"{rewritten} of {rewritten} compute M x + b")
    session = make_session(tmp_path / "small.onnx", threads=1)
    stored = {tensor.name for tensor in before.graph.initializer}
    inputs = {entry.name for entry in before.graph.input} - stored
    assert {entry.name for entry in session.get_inputs()} >= inputs
    assert [entry.name for entry in session.get_outputs()] == [e.name for e in before.graph.output]


@pytest.mark.parametrize("scheme", ["v1", "v2"])
@each_model
def test_papers_form_and_folding(path: Path, scheme: str) -> None:
    before = load_model(path)
    result = compress(path, Published(8, scheme=scheme, form="paper"), fold_batch_norm=True)
    assert_untouched(before, result.model, result.report)
    again = compress(result.model, Published(8, scheme=scheme, form="paper"), fold_batch_norm=True)
    assert again.model.SerializeToString() == result.model.SerializeToString()
    plain = compress(path, Published(8, scheme=scheme, form="paper"))
    assert_untouched(before, plain.model, plain.report)
