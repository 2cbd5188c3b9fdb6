"""Running AbsorbGathers on a small graph, and everything that must hold whatever it absorbs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnx_igpc.graph.model import OpenModel
from onnx_igpc.passes import AbsorbGathers, PassResult
from tests.helpers import GraphBuilder, random_feeds, run
from tests.passes.graphs import copy_of

C = 12
NEWEST = 21
Layers = Callable[[GraphBuilder, str], str]


def vector(b: GraphBuilder, name: str, *shape: int) -> str:
    return b.initializer(name, b.random(*shape))


def ints(b: GraphBuilder, name: str, *values: int) -> str:
    return b.initializer(name, np.array(values, np.int64))


def floats(b: GraphBuilder, name: str, *values: float) -> str:
    return b.initializer(name, np.array(values, np.float32))


@dataclass
class Absorbed:
    """What the pass made of a model."""

    before: onnx.ModelProto
    model: onnx.ModelProto
    absorb: AbsorbGathers
    result: PassResult
    deviation: float = 0.0
    gathers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gathers = [n.name for n in self.model.graph.node if n.op_type == "Gather"]


def absorbed(before: onnx.ModelProto, absorb: AbsorbGathers | None = None) -> Absorbed:
    """Run the pass on the Gathers named ``g...`` and check what must be so in any case.

    The outputs are the same, every renamed tensor has the stated order of the former one's channels,
    and what is not listed is byte-equal.
    """
    opened = OpenModel(copy_of(before))
    names = {node.name for node in before.graph.node if node.name.startswith("g")}
    absorb = absorb or AbsorbGathers(names)
    result = absorb.run(opened)
    onnx.checker.check_model(opened.proto, full_check=True)
    found = Absorbed(before, opened.proto, absorb, result)
    assert not {*result.changed} & {*result.kept}
    assert {*result.changed, *result.kept} <= names
    _check_untouched(found)
    found.deviation = _check_values(found)
    return found


def _check_untouched(found: Absorbed) -> None:
    listed = {*found.absorb.permuted, *found.result.changed}
    old, new = found.before.graph, found.model.graph

    def others(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
        made = ("/permuted_", "/constant", "/cast")
        return [
            node
            for node in graph.node
            if node.name not in listed
            and not (node.op_type in ("Constant", "Cast") and any(m in node.name for m in made))
        ]

    after = others(new)
    gone = [node for node in others(old) if node not in after]
    assert all(node.op_type in ("Constant", "Identity", "Reshape") for node in gone)
    assert after == [node for node in others(old) if node not in gone]
    assert [node.name for node in new.node if node.name in listed] == [
        node.name for node in old.node if node.name in {*found.absorb.permuted}
    ]
    assert list(new.output) == list(old.output)
    kept = {tensor.name: tensor for tensor in old.initializer}
    assert all("/permuted_" in t.name or t == kept[t.name] for t in new.initializer)
    if not found.result:
        assert found.model == found.before
        assert not found.absorb.permuted
        assert not found.absorb.renamed


def _check_values(found: Absorbed) -> float:
    """Outputs are the same and tensors have the orders that they are said to have."""
    pairs = {
        name: (former, entry.order)
        for entry in found.absorb.permutations
        for name, former in entry.tensors.items()
    }
    feeds = random_feeds(found.before)
    old = run(_tapped(found.before, [former for former, _ in pairs.values()]), feeds)
    new = run(_tapped(found.model, [*pairs]), feeds)
    worst = 0.0
    for output in found.before.graph.output:
        worst = max(worst, _deviation(old[output.name], new[output.name]))
    for name, (former, order) in pairs.items():
        worst = max(worst, _deviation(old[former][:, order], new[name]))
    half = any(np.asarray(value).dtype == np.float16 for value in old.values())
    assert worst <= (1e-2 if half else 1e-5)
    return worst


def _deviation(old: np.ndarray, new: np.ndarray) -> float:
    assert old.shape == new.shape
    assert np.isfinite(old).all()
    scale = float(np.abs(old.astype(np.float64)).max()) or 1.0
    return float(np.abs(old.astype(np.float64) - new.astype(np.float64)).max()) / scale


def _tapped(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    tapped = copy_of(model)
    known = {output.name for output in tapped.graph.output}
    kinds = {
        entry.name: entry
        for entry in onnx.shape_inference.infer_shapes(tapped, data_prop=True).graph.value_info
    }
    tapped.graph.output.extend(kinds[name] for name in dict.fromkeys(names) if name not in known)
    return tapped


def gather(builder: GraphBuilder, source: str, name: str, order: list[int] | None = None) -> str:
    """A Gather ``name`` of channels, in a random order if none is given."""
    indices = builder.generator.permutation(C) if order is None else order
    stored = builder.initializer(f"{name}_order", np.asarray(indices, np.int64))
    return builder.add("Gather", [source, stored], name, name=name, axis=1)


def grouped(builder: GraphBuilder, source: str, output: str, groups: int = 3) -> str:
    """K: a grouped pointwise convolution of C channels."""
    return builder.conv(source, output, C, C, group=groups, bias=True)


def start(opset: int = 17, dtype: type[np.generic] = np.float32, seed: int = 0) -> GraphBuilder:
    """x -> dense 3x3 Conv ``origin``."""
    builder = GraphBuilder(opset, dtype, seed=seed)
    builder.input("x", [1, 4, 6, 6])
    builder.conv("x", "origin", 4, C, kernel=3, bias=True, pads=[1] * 4)
    return builder


def finish(builder: GraphBuilder, source: str) -> onnx.ModelProto:
    """... -> Gather ``g`` -> K -> y."""
    grouped(builder, gather(builder, source, "g"), "K")
    builder.add("Neg", ["K"], "y")
    builder.output("y")
    return builder.model()
