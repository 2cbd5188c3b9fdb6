"""Writing runs of consecutive channels as Slices instead of a Gather."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx_igpc.layout.group_layout import GroupedStage
from onnx_igpc.layout.path_sources import path_sources
from onnx_igpc.passes.lowering import Lowering
from onnx_igpc.sites.stages import write_after_k, write_k
from onnx_igpc.sites.subgraph import IgpcSubgraph
from onnx_igpc.sites.writer import SiteWriter

# As many Slices as this cost less than one Gather of the same channels.
_MOST_RUNS = 3


class LowerSlices(Lowering):
    """Read copied channels and parts of the input by Slice and Concat in the place of a Gather.

    Rules:

    * Applies where K or L has a path, or groups filled with copies, whose channels are at most three
      runs of consecutive ones: each run is a Slice (none, if it is the whole input), and several are
      joined by a Concat. An interleave stays a Gather.
    * Convolutions and the sum stay as they are.
    """

    label = "slices"

    def refusal(self, site: IgpcSubgraph, opset: int) -> str | None:
        layout = site.layout
        orders = [*_orders(layout.k, None)]
        if layout.l is not None:
            orders += _orders(layout.l, layout.interleave)
        if any(len(runs(order)) <= _MOST_RUNS for order in orders):
            return None
        return "no Gather takes a few runs of consecutive channels"

    def write(self, site: IgpcSubgraph, writer: SiteWriter) -> None:
        slicing = _Slicing(writer)
        k = write_k(writer, site, gather=slicing.gather)
        write_after_k(writer, site, k, gather=slicing.gather)


@dataclass
class _Slicing:
    writer: SiteWriter

    def gather(self, x: str, label: str, channels: Sequence[int], total: int) -> str:
        """Channels of ``x``, which has ``total``, by Slices where they are few runs."""
        found = runs(channels)
        if len(found) > _MOST_RUNS:
            return self.writer.gather(x, label, channels)
        parts = [
            x
            if (start, end) == (0, total)
            else self.writer.slice(x, f"{label}/slice", start, end, axis=1)
            for start, end in found
        ]
        return parts[0] if len(parts) == 1 else self.writer.concat(parts, f"{label}/copies")


def runs(channels: Sequence[int]) -> list[tuple[int, int]]:
    """The channels as ranges [start, end) of consecutive ones."""
    found: list[tuple[int, int]] = []
    for channel in channels:
        if found and found[-1][1] == channel:
            found[-1] = (found[-1][0], channel + 1)
        else:
            found.append((channel, channel + 1))
    return found


def _orders(stage: GroupedStage, interleave: Sequence[int] | None) -> list[tuple[int, ...]]:
    sources = path_sources(stage, interleave)
    orders = [sources.order, *sources.gathers]
    return [order for order in orders if order is not None]
