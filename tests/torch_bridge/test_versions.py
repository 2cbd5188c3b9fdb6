"""Every version of every operator against onnxruntime, or onnx's own evaluator where it is older."""

from __future__ import annotations

import warnings
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from onnx_igpc.torch_bridge import to_torch
from tests.torch_bridge import version_cases_layout  # noqa: F401  (adds its cases)
from tests.torch_bridge.version_cases import CASES, Case, all_cases

BY_OPERATOR: dict[str, list[tuple[int, Case]]] = {name: [] for name in CASES}
for _operator, _version, _case in all_cases():
    BY_OPERATOR[_operator].append((_version, _case))
# Before 1.23, onnx's own evaluator computes some versions of these otherwise than their text says.
WRONG_REFERENCE = {"AveragePool", "GRU", "LpNormalization"} if onnx.__version__ < "1.23" else set()
# Before 1.29, onnxruntime leaves padding out of the mean where the last window is cut off.
_RUNTIME = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
WRONG_RUNTIME = {"AveragePool"} if _RUNTIME < (1, 29) else set()


def _judge(model: onnx.ModelProto, case: Case) -> tuple[str, list[np.ndarray]]:
    feeds = {info.name: value for info, value in zip(model.graph.input, case.inputs, strict=True)}
    operator = model.graph.node[0].op_type
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        if operator not in WRONG_RUNTIME:
            return "onnxruntime", session.run(None, feeds)
    except Exception:
        pass
    if operator in WRONG_REFERENCE:
        return "nobody", []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return "onnx reference", list(ReferenceEvaluator(model).run(None, feeds))
    except Exception:
        return "nobody", []


@pytest.mark.parametrize("operator", sorted(BY_OPERATOR))
def test_versions(operator: str) -> None:
    torch.set_num_threads(1)
    assert BY_OPERATOR[operator], "no version of this operator is implemented"
    for version, case in BY_OPERATOR[operator]:
        model = case.model(operator, version)
        judge, expected = _judge(model, case)
        with torch.no_grad():
            results = to_torch(model).eval()(*[torch.from_numpy(v) for v in case.inputs])
        results = results if isinstance(results, tuple) else (results,)
        said = f"{operator}-{version} {case.attributes} against {judge}"
        for got, want in zip(results, expected, strict=False):
            assert got.shape == want.shape, said
            np.testing.assert_allclose(got.numpy(), want, rtol=1e-4, atol=2e-5, err_msg=said)


def test_most_cases_have_a_judge(capsys: pytest.CaptureFixture[str]) -> None:
    judges = Counter(
        _judge(case.model(operator, version), case)[0]
        for operator, cases in BY_OPERATOR.items()
        for version, case in cases
    )
    with capsys.disabled():
        print(f"\noperator versions: {dict(judges)}")
    assert judges["nobody"] < 0.1 * judges.total()
