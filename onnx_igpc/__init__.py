"""onnx-igpc: make the pointwise convolutions of a trained CNN cheap; ONNX in, ONNX out.

What is public is what this package exports, with :mod:`onnx_igpc.passes` and :mod:`onnx_igpc.errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx_igpc._version import __version__

if TYPE_CHECKING:
    from onnx_igpc.calibration.options import Calibration
    from onnx_igpc.compression.optimization.optimize import optimize
    from onnx_igpc.compression.optimization.options import Optimization
    from onnx_igpc.compression.pipeline import compress, inspect
    from onnx_igpc.data.dataset import Dataset
    from onnx_igpc.data.preprocessing import Preprocessing
    from onnx_igpc.data.sources import open_data
    from onnx_igpc.evaluation.benchmark import benchmark
    from onnx_igpc.evaluation.options import Thresholds
    from onnx_igpc.evaluation.verify import verify
    from onnx_igpc.graph.inputs import model_inputs
    from onnx_igpc.layout.schemes import plan_layout
    from onnx_igpc.lowering.lower import lower_model as lower
    from onnx_igpc.lowering.options import Lowering
    from onnx_igpc.lowering.quantization.aware import finetune
    from onnx_igpc.lowering.quantization.options import Quantization
    from onnx_igpc.lowering.quantization.quantize import quantize_model as quantize
    from onnx_igpc.planning.options import Budget, Keep, Published
    from onnx_igpc.report.benchmark import BenchmarkReport
    from onnx_igpc.report.digest import read_digest
    from onnx_igpc.report.html import render_html
    from onnx_igpc.report.optimization import OptimizationReport
    from onnx_igpc.report.result import CompressResult
    from onnx_igpc.report.tree import RewriteReport
    from onnx_igpc.report.verification import VerifyReport
    from onnx_igpc.runtime.setting import Setting, Settings
    from onnx_igpc.sites.find import SiteFilter
    from onnx_igpc.torch_bridge import Inputs, from_torch, register_operator, to_torch
    from onnx_igpc.torch_bridge.training.optimizers import RelativeAdamW
    from onnx_igpc.torch_bridge.training.options import Run
    from onnx_igpc.torch_bridge.training.recipe import Recipe

_HOME = {
    "BenchmarkReport": "report.benchmark",
    "Budget": "planning.options",
    "Keep": "planning.options",
    "Calibration": "calibration.options",
    "CompressResult": "report.result",
    "Dataset": "data.dataset",
    "Inputs": "torch_bridge",
    "Lowering": "lowering.options",
    "Optimization": "compression.optimization.options",
    "OptimizationReport": "report.optimization",
    "Preprocessing": "data.preprocessing",
    "Published": "planning.options",
    "Quantization": "lowering.quantization.options",
    "Recipe": "torch_bridge.training.recipe",
    "RelativeAdamW": "torch_bridge.training.optimizers",
    "RewriteReport": "report.tree",
    "Run": "torch_bridge.training.options",
    "Setting": "runtime.setting",
    "Settings": "runtime.setting",
    "SiteFilter": "sites.find",
    "Thresholds": "evaluation.options",
    "VerifyReport": "report.verification",
    "benchmark": "evaluation.benchmark",
    "compress": "compression.pipeline",
    "finetune": "lowering.quantization.aware",
    "from_torch": "torch_bridge",
    "inspect": "compression.pipeline",
    "lower": "lowering.lower",
    "model_inputs": "graph.inputs",
    "open_data": "data.sources",
    "optimize": "compression.optimization.optimize",
    "plan_layout": "layout.schemes",
    "quantize": "lowering.quantization.quantize",
    "read_digest": "report.digest",
    "register_operator": "torch_bridge",
    "render_html": "report.html",
    "to_torch": "torch_bridge",
    "verify": "evaluation.verify",
}
_NAMED_OTHERWISE = {"lower": "lower_model", "quantize": "quantize_model"}

__all__ = [
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


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for, so that ``import onnx_igpc`` stays fast."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), _NAMED_OTHERWISE.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
