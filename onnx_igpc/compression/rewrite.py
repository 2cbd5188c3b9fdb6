"""The rewrite of a graph: every site as planned, then what follows from it in the rest of the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnx_igpc.calibration.block_fits import MOST_SAMPLES, fit_blocks
from onnx_igpc.calibration.held_samples import Part
from onnx_igpc.calibration.narrow_fits import MOST_FITTED, fit_narrowings
from onnx_igpc.compression.plugins import PluginPass, run_plugin
from onnx_igpc.data.progress import Progress
from onnx_igpc.evaluation.equivalence import check_reordered
from onnx_igpc.evaluation.site_check import check_sites
from onnx_igpc.graph.model import OpenModel, snapshot
from onnx_igpc.graph.view import GraphView
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.passes import (
    AbsorbGathers,
    CollapseBlocks,
    FoldBatchNorm,
    GroupPointwise,
    MergeGathers,
    NarrowChannels,
    PassResult,
)
from onnx_igpc.passes.collapse_blocks import Collapsed
from onnx_igpc.passes.narrow_channels import Narrowed
from onnx_igpc.planning.search import Plan
from onnx_igpc.report.tree import Permutation, RewriteReport
from onnx_igpc.sites.find import FoundSites, SiteFilter, find_sites
from onnx_igpc.sites.residual_blocks import find_blocks
from onnx_igpc.sites.rewrite import Fitter, Form, Outcome, Rewritten
from onnx_igpc.sites.subgraph import RewrittenModel, SiteRecord


@dataclass
class GraphChanges:
    """What was done to a graph: ``outcomes`` of all sites, and by name what changed around them.

    ``renamed`` maps a tensor of the main graph, by its former name, to the one that stands for it;
    ``collapsed`` are residual blocks that are gone, ``narrowed`` channels of which some are.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    collapsed: list[Collapsed] = field(default_factory=list)
    narrowed: list[Narrowed] = field(default_factory=list)
    folded: list[str] = field(default_factory=list)
    folded_outputs: dict[tuple[str, str], str] = field(default_factory=dict)
    merged: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    inputs_removed: list[str] = field(default_factory=list)
    permuted: list[str] = field(default_factory=list)
    permutations: list[Permutation] = field(default_factory=list)
    renamed: dict[tuple[str, str], str] = field(default_factory=dict)
    passes: dict[str, list[str]] = field(default_factory=dict)
    checks: dict[str, str] = field(default_factory=dict)

    @property
    def rewritten(self) -> list[Rewritten]:
        return [each for each in self.outcomes if isinstance(each, Rewritten)]

    @property
    def inserted(self) -> list[str]:
        """The names of all inserted nodes."""
        return [name for done in self.rewritten for name in done.nodes]

    @property
    def any(self) -> bool:
        """Whether the graph differs from what it was."""
        return bool(
            self.rewritten
            or self.collapsed
            or self.narrowed
            or self.folded
            or any(self.passes.values())
        )


class Rewriter:
    """Edits one model in place, in steps; ``changes`` has what was done.

    Args:
        model: the model.
        digest: what an earlier run said of it; its nodes are left alone, its orders built upon.
    """

    def __init__(self, model: OpenModel, digest: RewriteReport | None = None) -> None:
        self.model = model
        self.changes = GraphChanges()
        self._digest = digest
        self._taken = (
            {n: site.name for site in digest.rewritten for n in site.nodes} if digest else {}
        )

    def fold_batch_norms(self) -> None:
        """Fold BatchNormalization into the convolutions of the model."""
        fold = FoldBatchNorm(self._taken)
        done = fold.run(self.model)
        self.changes.folded = done.changed
        self.changes.folded_outputs = fold.renamed
        self._list_removed(done)

    def find(self, site_filter: SiteFilter) -> FoundSites:
        """The sites of the model as it is now."""
        gone = {
            site.name: site.name for each in self.changes.collapsed for site in each.block.sites
        }
        return find_sites(GraphView(self.model), site_filter, self._taken | gone)

    def restructure(
        self, found: FoundSites, plan: Plan, data: Part, site_filter: SiteFilter
    ) -> FoundSites:
        """Collapse the residual blocks of a plan, and leave out the channels, fitted to the data, or to enough of it; the
        sites that are left.

        Raises:
            DataError: activations that are not finite.
            ModelError: the model cannot run on the data.
        """
        if plan.channels:
            fits = fit_narrowings(
                self.model, found.rewritable, plan.channels, data.take(MOST_FITTED)
            )
            narrow = NarrowChannels(fits, found).run(self.model)
            self.changes.narrowed = narrow.narrowed
            self._list_removed(narrow)
            return self.find(site_filter)
        if not plan.blocks:
            return found
        blocks = [block for block in find_blocks(found) if block.name in plan.blocks]
        weights = fit_blocks(self.model, blocks, data.take(MOST_SAMPLES))
        done = CollapseBlocks(weights, found).run(self.model)
        self.changes.collapsed = done.blocks
        self._list_removed(done)
        return self.find(site_filter)

    def rewrite(
        self,
        found: FoundSites,
        layouts: Mapping[str, GroupLayout],
        fitter: Fitter,
        form: Form = "linear",
        progress: Progress | None = None,
    ) -> None:
        """Rewrite each site as planned; :meth:`settle` comes next."""
        group = GroupPointwise(
            lambda site: layouts[site.name],
            fitter.weigh,
            form,
            rebias=fitter.rebias,
            found=found,
            on_site=progress,
        )
        grouped = group.run(self.model)
        self.changes.outcomes = grouped.outcomes
        self._list_removed(grouped)

    def settle(self, checked: bool = True) -> None:
        """Check the sites, and merge Gathers.

        Raises:
            CheckFailedError: a site does not compute what its weights say.
        """
        if checked:
            self.changes.checks["sites"] = check_sites(self.model, self.changes.rewritten)
        merged = MergeGathers(set(self.changes.inserted)).run(self.model)
        self.changes.merged = merged.changed
        self._list_removed(merged)

    def absorb(self, checked: bool = True) -> None:
        """Let producers take over the order of channels that learned groups read; checked as a whole.

        Raises:
            CheckFailedError: the model computes something else than before.
        """
        changes, digest = self.changes, self._digest
        earlier = digest.permutations if digest else ()
        absorb = AbsorbGathers(set(changes.inserted), self._taken, earlier)
        before = snapshot(self.model) if checked else None
        done = absorb.run(self.model)
        if not done:
            return
        self._list_removed(done)
        changes.permuted, changes.permutations = absorb.permuted, absorb.permutations
        changes.renamed = absorb.renamed
        if before is not None:
            changes.checks["order"] = check_reordered(before, self.model)
        changes.outcomes = [absorb.updated(outcome) for outcome in changes.outcomes]

    def run_plugins(self, plugins: Sequence[PluginPass]) -> None:
        """Run passes of other packages, each checked as :func:`run_plugin` says."""
        for plugin in plugins:
            done = run_plugin(plugin, self.model, self.changes.inserted)
            self.changes.passes[plugin.label] = done.changed
            self._list_removed(done)

    def _list_removed(self, done: PassResult) -> None:
        self.changes.removed += done.removed
        self.changes.inputs_removed += done.inputs_removed

    def result(self) -> RewrittenModel:
        """The model with the records of all its sites, those of the earlier run first."""
        earlier = [SiteRecord.of(site) for site in self._digest.rewritten] if self._digest else []
        new = [SiteRecord.of_rewritten(done) for done in self.changes.rewritten]
        return RewrittenModel.of(self.model, [*earlier, *new])
