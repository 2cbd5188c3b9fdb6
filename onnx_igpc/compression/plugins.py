"""Graph passes from other packages: found by their entry points, run behind the rewrite, checked.

A package declares a pass in the entry-point group ``onnx_igpc.passes``, as a class derived from
:class:`~onnx_igpc.passes.Pass` that takes no arguments. Nothing of it is imported unless its name is
asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from onnx_igpc.errors import CheckFailedError, ModelError, UsageError, did_you_mean
from onnx_igpc.evaluation.equivalence import check_same_outputs
from onnx_igpc.graph.model import OpenModel, snapshot
from onnx_igpc.graph.traversal import scopes
from onnx_igpc.passes import Pass, PassResult

GROUP = "onnx_igpc.passes"


@dataclass(frozen=True)
class PluginPass:
    """A pass and where it comes from: ``label`` is its name with the package and its version."""

    name: str
    label: str
    run_pass: Pass


def available() -> dict[str, EntryPoint]:
    """The passes that installed packages declare, by name; none of them is imported."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name)}


def load_plugins(wanted: str | Pass | Iterable[str | Pass] | None) -> list[PluginPass]:
    """The passes with these names, in this order; a :class:`Pass` stands for itself.

    Raises:
        UsageError: there is no pass of that name.
        ModelError: a package's pass cannot be imported or is none.
    """
    found = available()
    several = (wanted,) if isinstance(wanted, (str, Pass)) else wanted or ()
    return [
        PluginPass(each.name, each.name, each) if isinstance(each, Pass) else _load(each, found)
        for each in several
    ]


def _load(name: str, found: dict[str, EntryPoint]) -> PluginPass:
    entry = found.get(name)
    if entry is None:
        known = f"there are {', '.join(found)}" if found else "no installed package brings one"
        raise UsageError(f"there is no pass {name!r}: {known}{did_you_mean(name, found)}")
    package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
    label = f"{name} ({package})"
    try:
        made = entry.load()()
    except Exception as error:  # whatever another package's code does at import
        raise ModelError(f"the pass {label} cannot be loaded: {_in_words(error)}") from error
    if not isinstance(made, Pass):
        raise ModelError(f"the pass {label} is no onnx_igpc.passes.Pass but {type(made).__name__}")
    return PluginPass(name, label, made)


def run_plugin(plugin: PluginPass, model: OpenModel, inserted: Sequence[str]) -> PassResult:
    """Run one pass on a rewritten model, and check that it left what it must.

    The nodes that the rewrite inserted (``inserted``) have to be there still, and the model has to
    compute what it did before, on random inputs.

    Raises:
        ModelError: the pass failed, or returned no PassResult.
        CheckFailedError: it removed an inserted node, or changed what the model computes.
    """
    before = snapshot(model)
    try:
        result: object = plugin.run_pass.run(model)  # it may not keep to its annotation
    except Exception as error:  # whatever another package's code does
        raise ModelError(f"the pass {plugin.label} failed: {_in_words(error)}") from error
    if not isinstance(result, PassResult):
        kind = type(result).__name__
        raise ModelError(f"the pass {plugin.label} returned {kind} in the place of a PassResult")
    if result:
        names = {node.name for scope in scopes(model.proto) for node in scope.holder.node}
        if missing := [name for name in inserted if name not in names]:
            raise CheckFailedError(
                f"the pass {plugin.label} removed {missing[0]!r}, which is part of a rewritten site"
            )
        check_same_outputs(before, model, f"the pass {plugin.label}", "it may not change them")
    return result


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
