"""What a graph pass is: a small class that edits an OpenModel and says what it did.

A pass states its rules in its docstring, keeps no global state, and can run alone on a ten-line
graph. To add one: a file in ``passes/``, an import in ``passes/__init__.py``, a test.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from onnx_igpc.graph.dead_values import Removed
from onnx_igpc.graph.model import OpenModel


@dataclass
class PassResult:
    """What a pass changed.

    ``changed`` names the nodes it rewrote, merged, folded or removed; ``kept`` gives the reason for
    each node that it looked at and left alone; ``removed`` names the nodes and initializers that are
    gone with them, ``inputs_removed`` those of the initializers that were inputs of the graph.
    """

    changed: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    inputs_removed: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.changed)

    def add_removed(self, removed: Removed) -> None:
        """Take note of what an edit removed."""
        self.removed += removed.names
        self.inputs_removed += removed.inputs


class Pass(ABC):
    """One rewrite of the graph."""

    @property
    def name(self) -> str:
        return type(self).__name__

    @abstractmethod
    def run(self, model: OpenModel) -> PassResult:
        """Edit ``model`` in place."""
