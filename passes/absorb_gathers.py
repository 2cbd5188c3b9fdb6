"""Removing Gathers of channels whose order the nodes before or behind them can take over."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from onnx_igpc.graph.channels.region import (
    CannotReorderError,
    ChannelRegion,
    NewConstant,
    NodeChange,
    Operators,
)
from onnx_igpc.graph.channels.rules import channel_rules
from onnx_igpc.graph.cost import FIXED_TENSORS_KEY, fixed_tensors
from onnx_igpc.graph.edit import GraphEdit
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.traversal import NodeHolder, copied
from onnx_igpc.graph.view import GraphView, NodeRef
from onnx_igpc.layout.permutations import compose_gathers, invert_permutation, is_order
from onnx_igpc.passes.base import Pass, PassResult
from onnx_igpc.passes.merge_gathers import channel_gather
from onnx_igpc.report.tree import Permutation
from onnx_igpc.sites.find import Kept
from onnx_igpc.sites.rewrite import Outcome, StageIo


class AbsorbGathers(Pass):
    """Remove Gathers that reorder channels: what makes their input, or reads their output, does it.

    Rules:

    * Only nodes named in ``nodes`` are removed: Gathers along axis 1 whose constant indices are a
      permutation of all channels.
    * The Gather's input t takes the order that the Gather would give it, or else its output the
      order that t has. Everything that makes or reads a reordered tensor takes part, or nothing is
      changed and ``kept`` says what stands in the way: graph inputs and outputs, other scopes,
      quantization, operators that see several channels at once or are not known.
    * A dense Conv has its filters (weight and bias) or the input channels of its kernel reordered,
      and ends the region; so does a Gather named in ``nodes``, which gets other indices. A grouped Conv
      keeps each group together and hands on the order of its groups; a depthwise one hands on all.
    * Elementwise operators, pooling, padding and resizing of the other axes hand on the order;
      constants with one value per channel are reordered.
    * Reordered tensors get new names, and their value_info with them; nodes keep theirs. Reordered
      constants are new, and the old ones are left to the dead-code pass.
    * Nodes named in ``leave`` stay as they are. ``permutations`` are those of an earlier run, which
      those of this one build on.
    """

    def __init__(
        self,
        nodes: Collection[str],
        leave: Collection[str] = (),
        permutations: Iterable[Permutation] = (),
    ) -> None:
        self.nodes = nodes
        self.operators = Operators(channel_rules(nodes), leave)
        self.absorbed: list[str] = []
        """The Gathers that are gone."""
        self.permuted: list[str] = []
        """The nodes that differ: other constants, or other names of what they read or make."""
        self.renamed: dict[tuple[str, str], str] = {}
        """The tensor that stands for a former one, by scope and the former one's name."""
        self._orders: dict[str, tuple[str, tuple[int, ...]]] = {
            name: (former, tuple(known.order))
            for known in permutations
            for name, former in known.tensors.items()
        }

    @property
    def permutations(self) -> list[Permutation]:
        """The reordered tensors, those of one order together."""
        by_order: dict[tuple[int, ...], dict[str, str]] = {}
        for name, (former, order) in self._orders.items():
            by_order.setdefault(order, {})[name] = former
        return [Permutation(tensors, list(order)) for order, tensors in by_order.items()]

    def updated(self, outcome: Outcome) -> Outcome:
        """A site with the names that its tensors have now, without the Gathers that are gone.

        ``tensors`` and ``bias`` stay as they were before, when the site was checked.
        """
        path = (outcome if isinstance(outcome, Kept) else outcome.site).ref.scope.path

        def now(name: str) -> str:
            return self.renamed.get((path, name), name)

        if isinstance(outcome, Kept):
            return replace(outcome, output=now(outcome.output))
        return replace(
            outcome,
            input=now(outcome.input),
            output=now(outcome.output),
            convolutions=tuple(now(name) for name in outcome.convolutions),
            stages={
                key: StageIo(now(stage.input), now(stage.output))
                for key, stage in outcome.stages.items()
            },
            nodes=tuple(name for name in outcome.nodes if name not in self.absorbed),
        )

    def run(self, model: OpenModel) -> PassResult:
        result = PassResult()
        # Regions that share nodes take turns, because each round reads a fresh view.
        while self._absorb_once(model, result):
            pass
        result.changed = list(self.absorbed)
        result.removed.sort()
        result.inputs_removed.sort()
        return result

    def _absorb_once(self, model: OpenModel, result: PassResult) -> bool:
        view, edit = GraphView(model), GraphEdit(model, result.removed)
        writer = _Writer(view, edit)
        result.kept.clear()
        touched: set[int] = set()
        dropped: set[int] = set()
        for ref in view.nodes:
            if ref.op_type != "Gather" or ref.proto.name not in self.nodes:
                continue
            try:
                region, changes = self._absorbable(view, ref)
                members = _members(view, changes)
            except CannotReorderError as reason:
                result.kept[ref.proto.name] = str(reason)
                continue
            if not touched.isdisjoint(members):
                continue
            touched.update(members)
            dropped |= {id(each.ref.node) for each in changes if each.dropped}
            writer.write(region, changes, members)
            self._note(region, members.values(), dropped, writer)
        # Before sub-graphs move: applying the edit copies them with the nodes that hold them.
        writer.rename_values()
        result.add_removed(edit.apply())
        _declare_fixed(model.proto, writer.fixed)
        return bool(dropped)

    def _absorbable(self, view: GraphView, ref: NodeRef) -> tuple[ChannelRegion, list[NodeChange]]:
        """The region that takes over the Gather's order, and what becomes of its nodes."""
        indices = channel_gather(view, ref)
        if indices is None:
            raise CannotReorderError("its indices are not constant channels")
        if not is_order(indices):
            raise CannotReorderError("it also replicates or leaves out channels")
        order = tuple(indices)
        reasons = []
        for tensor, wanted, where in (
            (ref.node.inputs[0], order, "before it"),
            (ref.node.outputs[0], invert_permutation(order), "behind it"),
        ):
            region = ChannelRegion(view, self.operators, ref.scope)
            try:
                region.grow(tensor, wanted)
                changes = region.changes()
                if any(each.ref is ref and each.dropped for each in changes):
                    return region, changes
                reasons.append(f"how many channels it reads is not known ({where})")
            except CannotReorderError as reason:
                reasons.append(f"{reason} ({where})")
        raise CannotReorderError("; ".join(reasons))

    def _note(
        self, region: ChannelRegion, members: Iterable[NodeRef], dropped: set[int], writer: _Writer
    ) -> None:
        """Note what was permuted and renamed, under the names that tensors had at first."""
        path = region.scope.path
        for former, now in writer.substitutes.items():
            firsts = [key for key, latest in self.renamed.items() if latest == former]
            for scope, first in [(path, former), *firsts]:
                if scope == path:
                    self.renamed[scope, first] = now
        for tensor in region.tensors:
            order = region.new_order(tensor)
            now = writer.substitutes[tensor.name]
            first, before = self._orders.pop(tensor.name, (tensor.name, None))
            composed = order if before is None else compose_gathers(before, order)
            self._orders.setdefault(now, (first, composed))
        for ref in sorted(members, key=lambda ref: ref.index):
            name = ref.name
            if name in self.permuted:
                self.permuted.remove(name)
            (self.absorbed if id(ref.node) in dropped else self.permuted).append(name)


def _members(view: GraphView, changes: Sequence[NodeChange]) -> dict[int, NodeRef]:
    """The nodes that change: those of the region, and what reads the output of a dropped one."""
    members = {id(change.ref.node): change.ref for change in changes}
    for change in changes:
        if not change.dropped:
            continue
        output = change.ref.node.outputs[0]
        if view.is_output(output):
            raise CannotReorderError(f"'{output.name}' is an output of the graph")
        for reader in view.consumers(output):
            if reader.scope.holder is not change.ref.scope.holder:
                raise CannotReorderError(f"{reader.label} reads '{output.name}' in a sub-graph")
            members[id(reader.node)] = reader
    return members


@dataclass
class _Writer:
    """Writes regions into an edit; what concerns values, not nodes, follows when it is applied."""

    view: GraphView
    edit: GraphEdit
    fixed: list[str] = field(default_factory=list)
    substitutes: dict[str, str] = field(default_factory=dict)
    """New names of the region written last."""
    _made: dict[tuple[int, str], list[tuple[np.ndarray, str]]] = field(default_factory=dict)
    _renamed: list[tuple[NodeHolder, dict[str, str], set[str]]] = field(default_factory=list)

    def write(
        self, region: ChannelRegion, changes: Sequence[NodeChange], members: dict[int, NodeRef]
    ) -> None:
        """Write one region."""
        dropped = {id(change.ref.node): change.ref for change in changes if change.dropped}
        gone = {str(ref.proto.output[0]) for ref in dropped.values()}
        self.substitutes = {
            tensor.name: self.edit.names.unique(f"{_plain(tensor.name)}/permuted")
            for tensor in region.tensors
            if tensor.name not in gone
        }
        self._renamed.append((region.scope.holder, dict(self.substitutes), gone))
        # In the order of the graph, so that a Gather behind a Gather finds what the first one read.
        for ref in sorted(dropped.values(), key=lambda ref: ref.index):
            source, output = str(ref.proto.input[0]), str(ref.proto.output[0])
            self.substitutes[output] = self.substitutes.get(source, source)
        constants = {id(change.ref.node): change.constants for change in changes}
        for key, ref in members.items():
            nodes = [] if key in dropped else [self._changed(ref, constants.get(key, ()))]
            self.edit.replace(ref, nodes)

    def _changed(self, ref: NodeRef, constants: Sequence[NewConstant]) -> onnx.NodeProto:
        node = copied(ref.proto)
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = self.substitutes.get(name, name)
        for constant in constants:
            node.input[constant.index] = self._constant(ref, constant)
        return node

    def _constant(self, ref: NodeRef, constant: NewConstant) -> str:
        """A new constant, or the one that another reader of the old one was given."""
        holder, former = ref.scope.holder, str(ref.proto.input[constant.index])
        known = self._made.setdefault((id(holder), former), [])
        for values, name in known:
            if np.array_equal(values, constant.values):
                return name
        base = _plain(ref.name)
        name = self.edit.constant(holder, f"{base}/permuted_{constant.label}", constant.values)
        known.append((constant.values, name))
        if former in fixed_tensors(self.edit.model.proto):
            self.fixed.append(name)
        return name

    def rename_values(self) -> None:
        """Rename the value_info of reordered tensors, and remove that of dropped ones."""
        for holder, names, gone in self._renamed:
            for index in range(len(holder.value_info) - 1, -1, -1):
                entry = holder.value_info[index]
                if entry.name in gone:
                    del holder.value_info[index]
                else:
                    entry.name = names.get(entry.name, entry.name)


def _plain(name: str) -> str:
    """A name without what an earlier round appended to it."""
    base, mark, _ = str(name).rpartition("/permuted")
    return base if mark else str(name)


def _declare_fixed(proto: onnx.ModelProto, names: Sequence[str]) -> None:
    """Copies of tensors that the model declares to be no parameters are none either."""
    for entry in proto.metadata_props:
        if entry.key == FIXED_TENSORS_KEY and names:
            entry.value = json.dumps([*json.loads(entry.value), *names])
