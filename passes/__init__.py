"""Graph passes, imported as :mod:`onnx_igpc.passes`; one pass per file.

What a pass of another package needs besides is here as well: the model that it edits, the view on its graph and
the edit.
"""

if __name__ != "onnx_igpc.passes":
    raise ImportError(
        f"import this package as onnx_igpc.passes, not as {__name__}: "
        "the bare name would load a second copy of every class"
    )

from onnx_igpc.graph.edit import GraphEdit
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.traversal import opset_version, subgraphs
from onnx_igpc.graph.view import GraphView
from onnx_igpc.passes.absorb_gathers import AbsorbGathers
from onnx_igpc.passes.base import Pass, PassResult
from onnx_igpc.passes.collapse_blocks import CollapseBlocks
from onnx_igpc.passes.fold_batch_norm import FoldBatchNorm
from onnx_igpc.passes.fold_site_batch_norm import FoldSiteBatchNorm
from onnx_igpc.passes.group_pointwise import GroupPointwise
from onnx_igpc.passes.lower_blocks import LowerBlocks
from onnx_igpc.passes.lower_dense import LowerDense
from onnx_igpc.passes.lower_folded_sum import LowerFoldedSum
from onnx_igpc.passes.lower_literal import LowerLiteral
from onnx_igpc.passes.lower_matmul import LowerMatMul
from onnx_igpc.passes.lower_merged_groups import LowerMergedGroups
from onnx_igpc.passes.lower_padded import LowerPadded
from onnx_igpc.passes.lower_slices import LowerSlices
from onnx_igpc.passes.lower_transpose import LowerTranspose
from onnx_igpc.passes.lower_whole_rows import LowerWholeRows
from onnx_igpc.passes.lowering import Lowering
from onnx_igpc.passes.merge_gathers import MergeGathers
from onnx_igpc.passes.narrow_channels import NarrowChannels

__all__ = [
    "AbsorbGathers",
    "CollapseBlocks",
    "FoldBatchNorm",
    "FoldSiteBatchNorm",
    "GraphEdit",
    "GraphView",
    "GroupPointwise",
    "LowerBlocks",
    "LowerDense",
    "LowerFoldedSum",
    "LowerLiteral",
    "LowerMatMul",
    "LowerMergedGroups",
    "LowerPadded",
    "LowerSlices",
    "LowerTranspose",
    "LowerWholeRows",
    "Lowering",
    "MergeGathers",
    "NarrowChannels",
    "OpenModel",
    "Pass",
    "PassResult",
    "opset_version",
    "subgraphs",
]
