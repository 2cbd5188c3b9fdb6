"""What is public: the names that the package exports, light to import, and all that the pages import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import onnx_igpc
from tests.docs_runner import ROOT, blocks

PUBLIC = [
    "BenchmarkReport",
    "Budget",
    "Calibration",
    "CompressResult",
    "Dataset",
    "Inputs",
    "Keep",
    "Lowering",
    "Optimization",
    "OptimizationReport",
    "Preprocessing",
    "Published",
    "Quantization",
    "Recipe",
    "RelativeAdamW",
    "RewriteReport",
    "Run",
    "Setting",
    "Settings",
    "SiteFilter",
    "Thresholds",
    "VerifyReport",
    "__version__",
    "benchmark",
    "compress",
    "finetune",
    "from_torch",
    "inspect",
    "lower",
    "model_inputs",
    "open_data",
    "optimize",
    "plan_layout",
    "quantize",
    "read_digest",
    "register_operator",
    "render_html",
    "to_torch",
    "verify",
]
PUBLIC_MODULES = {"passes", "errors"}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))


def test_the_public_names_are_these() -> None:
    assert sorted(onnx_igpc.__all__) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_leads_somewhere(name: str) -> None:
    assert name in dir(onnx_igpc)
    value = getattr(onnx_igpc, name)
    assert name == "__version__" or value.__doc__


def test_what_is_not_public_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        onnx_igpc.compres


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, onnx_igpc; "
        "print(sorted({'torch', 'onnxruntime', 'onnx', 'numpy'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_compress_is_imported_without_what_few_models_need() -> None:
    code = (
        "import sys, onnx_igpc.compression.pipeline; "
        "print(sorted({'torch', 'onnxruntime', 'onnx.reference', 'rich'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def rooms_imported(code: str) -> set[str]:
    """The rooms of the package that Python code imports from."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module == "onnx_igpc":
            modules |= {
                f"onnx_igpc.{alias.name}" for alias in node.names if alias.name not in PUBLIC
            }
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return {module.split(".")[1] for module in modules if module.startswith("onnx_igpc.")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_import_what_is_public(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            deep = rooms_imported(block.code) - PUBLIC_MODULES
            assert not deep, f"{page.name}, line {block.line}: {', '.join(sorted(deep))}"


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_examples_import_what_is_public(file: Path) -> None:
    assert rooms_imported(file.read_text()) <= PUBLIC_MODULES


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_paths_that_pages_mention_exist(page: Path) -> None:
    """``onnx_igpc/...``, ``passes/...`` and ``tests/...`` in backticks are files or folders."""
    text = page.read_text()
    for path in re.findall(r"`((?:onnx_igpc|passes|tests|examples|docs)/[\w/.-]*)`", text):
        installed = path.replace("onnx_igpc/passes", "passes")  # where a wheel has them
        assert (ROOT / installed).exists(), f"{page.name}: {path} is not there"


def test_the_scan_notices_deep_imports() -> None:
    code = "from onnx_igpc.graph.model import OpenModel\nimport onnx_igpc.sites.find\n"
    assert rooms_imported(code) == {"graph", "sites"}
    assert rooms_imported("from onnx_igpc import graph, compress\n") == {"graph"}
    assert not rooms_imported("import onnx_igpc\nfrom onnx_igpc import Budget\n")
