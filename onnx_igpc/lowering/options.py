"""How a rewritten model is written for a runtime, and where that is measured."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_igpc.graph.model import PathLike
from onnx_igpc.runtime.setting import Setting

AUTO = "auto"


@dataclass(frozen=True)
class Lowering:
    """What is chosen, and by which measurements.

    Args:
        kind: ``"auto"`` measures on this machine and takes the fastest for each site; a name of
            :data:`~onnx_igpc.lowering.catalogue.LOWERINGS` takes that one wherever it applies.
        setting: where and how the model will run: what is measured.
        allow_slower: rewrite what is slower than dense, too, and never fold it back.
        cache: a folder for what was measured, ``True`` for the user's, ``False`` for none.
    """

    kind: str = AUTO
    setting: Setting | None = None
    allow_slower: bool = False
    cache: PathLike | bool = True
