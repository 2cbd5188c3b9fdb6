"""What the paths of a stage read, with the fewest nodes: one order for all, a Split, or Gathers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx_igpc.layout.group_layout import GroupedStage
from onnx_igpc.layout.permutations import compose_gathers, invert_permutation


@dataclass(frozen=True)
class PathSources:
    """What each path reads.

    ``order`` is gathered once, for all paths, or ``None`` if the stage's input is read as it is.
    ``parts`` has the paths that read one part each of a Split of that, by index, with its size.
    ``gathers`` has for each path what it gathers from the stage's input for itself, or ``None``.
    """

    order: tuple[int, ...] | None
    parts: dict[int, int]
    gathers: tuple[tuple[int, ...] | None, ...]


def path_sources(stage: GroupedStage, interleave: Sequence[int] | None) -> PathSources:
    """What the paths of ``stage`` read where ``interleave`` comes before it.

    A common order is used where it leaves no path with a Gather of its own: then there is one
    Gather, that the producer of the channels may take over, and at most one Split.
    """
    everything = tuple(range(stage.in_channels))
    inputs = [
        path.inputs if interleave is None else compose_gathers(interleave, path.inputs)
        for path in stage.paths
    ]
    order = tuple(dict.fromkeys(i for each in inputs for i in each))
    if sorted(order) == list(everything):
        position = invert_permutation(order)
        moved = [tuple(position[i] for i in each) for each in inputs]
        partial = [index for index, each in enumerate(moved) if each != everything]
        shared_out = tuple(i for index in partial for i in moved[index])
        if not partial or (len(partial) > 1 and shared_out == everything):
            return PathSources(
                None if order == everything else order,
                {index: len(moved[index]) for index in partial},
                (None,) * len(inputs),
            )
    return PathSources(None, {}, tuple(None if each == everything else each for each in inputs))
