"""What a graph pass is: a small class that edits an OpenModel and says what it did.

A pass states its rules in its docstring, keeps no global state, and can run alone on a ten-line
graph. To add one: a file in ``passes/``, an import in ``passes/__init__.py``, a test.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from onnx_igpc.graph.model import OpenModel


@dataclass
class PassResult:
    """What a pass changed.

    ``changed`` names the nodes it rewrote, merged, folded or removed; ``kept`` gives the reason for
    each node that it looked at and left alone; ``orphans`` are values that lost a consumer and may
    be dead now.
    """

    changed: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    orphans: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.changed)


class Pass(ABC):
    """One rewrite of the graph."""

    @property
    def name(self) -> str:
        return type(self).__name__

    @abstractmethod
    def run(self, model: OpenModel) -> PassResult:
        """Edit ``model`` in place."""
