"""K and L seen as matrices and groups, and K written as it was found: what several lowerings need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Literal

import numpy as np

from onnx_igpc.fitting.weights import stage_matrix
from onnx_igpc.layout.group_layout import GroupedStage
from onnx_igpc.layout.path_sources import path_sources
from onnx_igpc.layout.permutations import (
    compose_gathers,
    interleave_permutation,
    invert_permutation,
)
from onnx_igpc.sites.subgraph import IgpcSubgraph
from onnx_igpc.sites.writer import NodeWriter, SiteWriter

# Given a tensor, a label, the channels wanted and how many the tensor has: the tensor with those.
Gathering = Callable[[str, str, Sequence[int], int], str]


def l_inputs(site: IgpcSubgraph) -> list[tuple[int, ...]]:
    """The rows of K that each path of L reads, after the interleave."""
    stage, order = site.layout.l, site.layout.interleave
    return [
        path.inputs if order is None else compose_gathers(order, path.inputs)
        for path in (stage.paths if stage else ())
    ]


def second_matrix(site: IgpcSubgraph) -> np.ndarray:
    """All that comes after K: A of y = A K x + b, float64 of shape (F, rows of K).

    That is L P, with the sum I + L P, and what is left of it where there is no L, in the order in which
    the site gives its filters.
    """
    layout = site.layout
    rows = layout.k.out_channels
    if layout.l is None:
        matrix = np.eye(rows)
    else:
        matrix = stage_matrix(layout.l, site.l)
        if layout.interleave is not None:
            matrix = matrix[:, list(invert_permutation(layout.interleave))]
        if layout.has_sum:
            matrix = matrix + np.eye(rows)
    order = layout.output_interleave
    return matrix if order is None else matrix[list(order)]


def write_k(writer: SiteWriter, site: IgpcSubgraph, gather: Gathering | None = None) -> str:
    """K as it was found; returns the tensor with its rows. ``gather`` writes channels it chooses.

    Where there is an L, that adds the bias; where K is all there is, it makes the site's output.
    """
    layout = site.layout
    alone = layout.l is None
    return write_stage(
        writer,
        site,
        site.input,
        "K",
        layout.k,
        bias=stage_bias(site) if alone else None,
        output=site.output if alone and layout.output_interleave is None else None,
        gather=gather,
    )


def stage_order(site: IgpcSubgraph, values: np.ndarray) -> np.ndarray:
    """One value for each filter, in the order in which the last stage makes the filters."""
    order = site.layout.output_interleave
    return values if order is None else values[list(invert_permutation(order))]


def stage_bias(site: IgpcSubgraph) -> np.ndarray | None:
    """What the site adds, as the last stage is to add it."""
    return None if site.bias is None else stage_order(site, site.bias)


def write_paths(
    writer: NodeWriter,
    x: str,
    label: str,
    stage: GroupedStage,
    interleave: Sequence[int] | None,
    order: Callable[[str, int | None, tuple[int, ...]], str],
    convolve: Callable[[str, str, int, str | None], str],
    output: str | None,
) -> str:
    """A stage path by path: Gather or Split where it needs one, grouped Conv, Concat.

    ``order`` puts the channels of a tensor in order for one path, or for all (``None``); ``convolve``
    makes one path of a tensor, with a label, the path's index and the name of what it makes.
    """
    sources = path_sources(stage, interleave)
    if sources.order is not None:
        x = order(x, None, sources.order)
    parts = writer.split(x, label, sources.parts) if sources.parts else {}
    single = len(stage.paths) == 1
    made = []
    for index, gathered in enumerate(sources.gathers):
        source = parts.get(index, x)
        if gathered is not None:
            source = order(source, index, gathered)
        name = label if single else f"{label}{index + 1}"
        made.append(convolve(source, name, index, output if single else None))
    return made[0] if single else writer.concat(made, f"{label}/concat", output)


def write_stage(
    writer: SiteWriter,
    site: IgpcSubgraph,
    x: str,
    label: Literal["K", "L"],
    stage: GroupedStage,
    *,
    interleave: Sequence[int] | None = None,
    bias: np.ndarray | None = None,
    output: str | None = None,
    gather: Gathering | None = None,
) -> str:
    """K or L of a site, which reads ``x``; with a bias of one value for each filter."""
    first = label == "K"
    weights = site.k if first else site.l
    single = len(stage.paths) == 1
    ends = list(accumulate(path.filters for path in stage.paths))

    def order(x: str, index: int | None, channels: tuple[int, ...]) -> str:
        name = f"{label if single or index is None else f'{label}{index + 1}'}/order"
        if gather is None:
            return writer.gather(x, name, channels)
        return gather(x, name, channels, stage.in_channels)

    def convolve(x: str, name: str, index: int, output: str | None) -> str:
        path = stage.paths[index]
        own = None if bias is None else bias[ends[index] - path.filters : ends[index]]
        return writer.conv(
            x, name, weights[index], groups=path.groups, bias=own, moving=first, output=output
        )

    return write_paths(writer, x, label, stage, interleave, order, convolve, output)


def write_after_k(
    writer: SiteWriter,
    site: IgpcSubgraph,
    k: str,
    shuffled: str | None = None,
    gather: Gathering | None = None,
) -> None:
    """Everything after K as compress writes it: interleave, L, the sum, an order of the output.

    ``shuffled`` is the tensor that L reads, if its interleave is written already. Where there is an
    L, it adds the bias.
    """
    layout = site.layout
    order = layout.output_interleave
    last = site.output if order is None else None
    y = k
    if layout.l is not None:
        y = write_stage(
            writer,
            site,
            shuffled or k,
            "L",
            layout.l,
            interleave=layout.interleave if shuffled is None else None,
            bias=stage_bias(site),
            output=None if layout.has_sum else last,
            gather=gather,
        )
        if layout.has_sum:
            y = writer.add(y, k, output=last)
    if order is not None:
        writer.gather(y, "output_order", order, site.output)


def transpose_step(order: Sequence[int]) -> int | None:
    """The step s of an order that takes every s-th channel first, where s divides their number.

    Such an order is the transpose of a matrix of shape (channels / s, s); ``None`` for any other.
    """
    total = len(order)
    step = order[1] if total > 1 else 0
    if step < 2 or total % step or tuple(order) != interleave_permutation(total, step):
        return None
    return step
