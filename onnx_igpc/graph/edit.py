"""Editing a ModelProto in place: nodes replaced, constants added, names kept unique.

Edits are collected while a :class:`~onnx_igpc.graph.view.GraphView` is in use and applied at the
end, each list of nodes being written once; what loses its last reader by that is removed. Nothing
else is touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_igpc.graph.dead_values import Removed, remove_dead, unread_values
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.traversal import NodeHolder, all_names, opset_version, subgraphs
from onnx_igpc.graph.view import NodeRef, graphsurgeon_quiet

# From this version on, an initializer need not be an input of the graph.
IR_WITH_FREE_INITIALIZERS = 4
_OPSET_INT_CONSTANT = 9


class Names:
    """Names that are unique in the whole model, and none of those ``taken`` besides."""

    def __init__(self, model: onnx.ModelProto, taken: Iterable[str] = ()) -> None:
        self._taken = all_names(model).union(taken)

    def unique(self, wanted: str) -> str:
        """``wanted``, with a number behind it if it is taken; taken from now on."""
        name = wanted
        number = 2
        while name in self._taken:
            name = f"{wanted}_{number}"
            number += 1
        self._taken.add(name)
        return name


class GraphEdit:
    """Changes to the lists of nodes and initializers of a model, applied all at once.

    ``taken`` are further names not to use: of what was removed before, which the report tells of.
    """

    def __init__(self, model: OpenModel, taken: Iterable[str] = ()) -> None:
        self.model = model
        self.names = Names(model.proto, taken)
        self._replaced: dict[int, tuple[NodeHolder, dict[int, list[onnx.NodeProto]]]] = {}
        self._constants: dict[int, tuple[NodeHolder, list[onnx.NodeProto]]] = {}
        self._initializers: list[tuple[onnx.GraphProto, onnx.TensorProto]] = []

    def replace(self, ref: NodeRef, nodes: Sequence[onnx.NodeProto]) -> None:
        """Put ``nodes`` in the place of a node; none removes it."""
        holder = ref.scope.holder
        _, by_index = self._replaced.setdefault(id(holder), (holder, {}))
        by_index[ref.index] = list(nodes)

    def constant(self, holder: NodeHolder, wanted: str, values: np.ndarray) -> str:
        """Add a constant to a graph or function; returns its name.

        It becomes an initializer, or a Constant node where initializers cannot be had: in function
        bodies, and up to ir_version 3, in which every initializer must be an input of the graph.
        """
        name = self.names.unique(wanted)
        free = self.model.proto.ir_version >= IR_WITH_FREE_INITIALIZERS
        if isinstance(holder, onnx.GraphProto) and free:
            self._initializers.append((holder, self.model.new_tensor(name, values)))
            return name
        _, nodes = self._constants.setdefault(id(holder), (holder, []))
        nodes += self._constant_nodes(name, np.ascontiguousarray(values))
        return name

    def _constant_nodes(self, name: str, values: np.ndarray) -> list[onnx.NodeProto]:
        """A Constant node; before opset 9 those are float only, and a Cast makes the integers."""
        cast = values.dtype.kind in "iu" and opset_version(self.model.proto) < _OPSET_INT_CONSTANT
        made = self.names.unique(f"{name}/float") if cast else name
        stored = values.astype(np.float32) if cast else values
        constant = onnx.helper.make_node(
            "Constant",
            [],
            [made],
            name=self.names.unique(f"{name}/constant"),
            value=onnx.numpy_helper.from_array(stored, made),
        )
        if not cast:
            return [constant]
        to = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
        label = self.names.unique(f"{name}/cast")
        return [constant, onnx.helper.make_node("Cast", [made], [name], name=label, to=to)]

    def apply(self) -> Removed:
        """Write all changes into the model; what was read by the replaced nodes alone is removed."""
        old = [holder.node[i] for holder, by_index in self._replaced.values() for i in by_index]
        lost = {name for node in old for name in (*node.input, *node.output)}
        unread = unread_values(self.model.proto)
        self._write()
        return remove_dead(self.model.proto, lost, unread)

    def _write(self) -> None:
        # Inner graphs first: writing an outer list copies the nodes that hold the inner ones.
        holders = {key: holder for key, (holder, _) in (*self._replaced.items(),)}
        holders |= {key: holder for key, (holder, _) in self._constants.items()}
        for graph, tensor in self._initializers:
            graph.initializer.append(tensor)
        for key, holder in sorted(holders.items(), key=lambda entry: -_depth(self.model, entry[1])):
            replaced = self._replaced.get(key, (holder, {}))[1]
            added = self._constants.get(key, (holder, []))[1]
            nodes = list(added)
            for index, node in enumerate(holder.node):
                nodes.extend(replaced.get(index, [node]))
            # The messages are copied before the old list, and with it their owner, goes away.
            fresh = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
            del holder.node[:]
            holder.node.extend(fresh)
        self._replaced.clear()
        self._constants.clear()
        self._initializers.clear()


def _depth(model: OpenModel, holder: NodeHolder) -> int:
    """How many graphs enclose ``holder``."""
    pending: list[tuple[NodeHolder, int]] = [(model.proto.graph, 0)]
    pending += [(function, 0) for function in model.proto.functions]
    while pending:
        current, depth = pending.pop()
        if current is holder:
            return depth
        for node in current.node:
            pending += [(graph, depth + 1) for _, graph in subgraphs(node)]
    return 0


class SubgraphBuilder:
    """Builds a replacement subgraph with onnx-graphsurgeon, to be spliced into the model.

    ``origin`` is the node that is replaced: its doc string and metadata go to every new node.
    """

    def __init__(self, names: Names, origin: onnx.NodeProto) -> None:
        self._names = names
        self._origin = origin
        self._nodes: list[gs.Node] = []
        self.node_names: list[str] = []

    def add(
        self,
        op: str,
        inputs: Sequence[str],
        output: str,
        name: str,
        attributes: Sequence[onnx.AttributeProto] = (),
        **attrs: object,
    ) -> str:
        """Append a node; ``output`` and ``name`` are used as they are given. Returns ``output``."""
        self.add_with_outputs(op, inputs, [output], name, attributes, **attrs)
        return output

    def add_with_outputs(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        name: str,
        attributes: Sequence[onnx.AttributeProto] = (),
        **attrs: object,
    ) -> None:
        """Append a node that makes several tensors."""
        copied = {entry.name: onnx.helper.get_attribute_value(entry) for entry in attributes}
        node = gs.Node(
            op=op,
            name=name,
            attrs={**copied, **attrs},
            inputs=[gs.Variable(each) for each in inputs],
            outputs=[gs.Variable(each) for each in outputs],
        )
        self._nodes.append(node)
        self.node_names.append(name)

    def fresh(self, wanted: str) -> str:
        """A name that is unique in the model."""
        return self._names.unique(wanted)

    def build(self, opset: int) -> list[onnx.NodeProto]:
        """The nodes as protobuf messages."""
        with graphsurgeon_quiet():
            exported = gs.export_onnx(gs.Graph(nodes=self._nodes, opset=opset), do_type_check=False)
        nodes = list(exported.graph.node)
        for node in nodes:
            node.doc_string = self._origin.doc_string
            node.metadata_props.extend(self._origin.metadata_props)
        return nodes
