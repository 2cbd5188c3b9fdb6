"""The package as a whole: what importing it costs and what it refuses."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "onnxruntime", "scipy", "onnx_graphsurgeon", "rich")


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_import_needs_no_heavy_module() -> None:
    code = f"import sys, onnx_igpc; print([m for m in {HEAVY!r} if m in sys.modules])"
    result = run_python(code)
    assert result.stdout.strip() == "[]", result.stderr


def test_inspecting_loads_nothing_that_only_fitting_and_running_need() -> None:
    code = (
        "import sys, onnx_igpc; onnx_igpc.inspect('sample_models/digits_net.onnx'); "
        "print([m for m in ('scipy', 'onnxruntime', 'torch') if m in sys.modules])"
    )
    result = run_python(code)
    assert result.stdout.strip() == "[]", result.stderr


def test_passes_refuses_its_bare_name() -> None:
    result = run_python("import sys; sys.path.insert(0, '.'); import passes")
    assert result.returncode == 1
    assert "import this package as onnx_igpc.passes" in result.stderr


def test_passes_is_part_of_the_package() -> None:
    result = run_python("import onnx_igpc.passes as p; print(p.__name__)")
    assert result.stdout.strip() == "onnx_igpc.passes", result.stderr


def test_public_names_stay_what_they_are_when_modules_of_that_name_are_imported() -> None:
    code = (
        "import onnx_igpc, onnx_igpc.evaluation.verify, onnx_igpc.compression.pipeline; "
        "print([type(getattr(onnx_igpc, name)).__name__ for name in ('verify', 'verify')])"
    )
    result = run_python(code)
    assert result.stdout.strip() == "['function', 'function']", result.stderr
