"""compress --lowering auto: sites that would be slower stay dense, the others are written for speed.

What is fast is known before anything is fitted: a trial with random weights is raced. Sites that are
slower than dense then keep their own weights, so that nothing is lost where nothing is won.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx_igpc.compression.weighing import kept_layout
from onnx_igpc.data.progress import Progress
from onnx_igpc.graph.model import OpenModel, PathLike, snapshot
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.lowering.cache import RaceCache, cache_folder
from onnx_igpc.lowering.latency import LatencyBudget, RandomRewrite
from onnx_igpc.lowering.lower import finish, prepare
from onnx_igpc.lowering.race import structure
from onnx_igpc.lowering.selection import CHOSEN, FINAL_ROUNDS, Selection, select, slower_reason
from onnx_igpc.lowering.site_races import DENSE, LITERAL, lowered, race_whole, uniform
from onnx_igpc.passes.group_pointwise import GroupPointwise
from onnx_igpc.report.digest import read_digest
from onnx_igpc.report.result import CompressResult
from onnx_igpc.runtime.setting import Setting
from onnx_igpc.sites.find import PointwiseSite
from onnx_igpc.sites.subgraph import find_subgraphs

NOT_LOWERED = (
    "nothing was added to what is rewritten already, which is not lowered: use onnx-igpc lower"
)


@dataclass
class LoweringRun:
    """The lowering of one rewrite, chosen in :meth:`plan` and written in :meth:`finish`."""

    setting: Setting
    allow_slower: bool
    cache: RaceCache
    progress: Progress | None = None
    planned: tuple[Selection, OpenModel] | None = None
    """What was chosen, and for which model, whose weights are random."""

    @classmethod
    def open(
        cls,
        model: OpenModel,
        setting: Setting | None,
        allow_slower: bool,
        cache: PathLike | bool,
        progress: Progress | None,
    ) -> LoweringRun:
        """A run with the arguments of :func:`~onnx_igpc.compression.pipeline.compress`.

        Raises:
            UsageError: a batch size that the model does not take.
        """
        fitted = (setting or Setting()).fitted(model.proto)
        return cls(fitted, allow_slower, RaceCache(cache_folder(cache)), progress)

    def latency(self, opened: OpenModel, rewrite: RandomRewrite) -> LatencyBudget:
        """What a budget of time is measured with."""
        return LatencyBudget(opened, self.setting, self.cache, rewrite, self.progress)

    def plan(self, opened: OpenModel, group: GroupPointwise, rewrite: RandomRewrite) -> None:
        """Choose lowerings for what ``group`` plans, and let it keep dense what is slower.

        Raises as :func:`~onnx_igpc.lowering.selection.select`.
        """
        tried = rewrite(group.plan, snapshot(opened))
        if not tried.report.rewritten:
            return
        prepare(tried.opened, tried.report)
        selection = select(
            tried.opened,
            self.setting,
            self.cache,
            allow_slower=self.allow_slower,
            progress=self.progress,
        )
        slower = {name for name, label in selection.choices.items() if label == DENSE}
        self.planned = selection, tried.opened
        planned = group.plan

        def plan(site: PointwiseSite) -> GroupLayout:
            slow = site.name in slower
            return kept_layout(site, slower_reason(self.setting)) if slow else planned(site)

        group.plan = plan

    def finish(self, result: CompressResult) -> CompressResult:
        """Write the rewritten model as chosen, and say so in its report.

        Raises:
            CheckFailedError: the lowered model deviates, which is a defect of this tool.
        """
        if self.planned is None or not result.changed or not result.report.rewritten:
            if read_digest(result.opened.proto) is not None and not result.changed:
                result.report.warnings.append(NOT_LOWERED)
            return result
        selection, tried = self.planned
        before = snapshot(result.opened)
        removed = prepare(result.opened, result.report)
        present = [site.name for site in find_subgraphs(result.opened)[0]]
        choices = {name: selection.choices.get(name, LITERAL) for name in present}
        self._race_again(selection, tried, lowered(result.opened, choices))
        said = selection.to_dict(self.cache)
        return finish(before, result.opened, result.report, removed, choices, said)

    def _race_again(self, selection: Selection, tried: OpenModel, final: OpenModel) -> None:
        """Race what is written, where it differs from what was raced in more than its weights."""
        raced = lowered(tried, selection.choices)
        if structure(final.proto) == structure(raced.proto):
            return
        variants = {
            LITERAL: lowered(tried, uniform(selection.races, LITERAL)),
            DENSE: lowered(tried, uniform(selection.races, DENSE)),
            CHOSEN: final,
        }
        selection.whole = race_whole(variants, self.setting, FINAL_ROUNDS, CHOSEN)
