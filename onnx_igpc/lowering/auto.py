"""compress --lowering auto: sites that would be slower stay dense, the others are written for speed.

What is fast is known before anything is fitted: a trial with random weights is raced. Sites that are
slower than dense then keep their own weights, so that nothing is lost where nothing is won.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnx_igpc.data.progress import Progress
from onnx_igpc.errors import with_flags
from onnx_igpc.graph.model import OpenModel, snapshot
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.lowering.cache import RaceCache, cache_folder
from onnx_igpc.lowering.latency import LatencyBudget, RandomRewrite
from onnx_igpc.lowering.lower import finish
from onnx_igpc.lowering.options import FLOAT32, INT8, LITERAL, Lowering, Precision
from onnx_igpc.lowering.preparation import prepare
from onnx_igpc.lowering.quantization.float_model import refuse_unsuitable
from onnx_igpc.lowering.race import as_run, structure
from onnx_igpc.lowering.selection import CHOSEN, FINAL_ROUNDS, Selection, select, slower_reason
from onnx_igpc.lowering.site_races import DENSE, lowered, race_whole, uniform
from onnx_igpc.report.digest import read_digest, write_digest
from onnx_igpc.report.result import CompressResult
from onnx_igpc.runtime.setting import Setting
from onnx_igpc.sites.find import FoundSites
from onnx_igpc.sites.rewrite import kept_layout
from onnx_igpc.sites.subgraph import find_subgraphs

NOT_LOWERED = (
    "nothing was added to what is rewritten already, which is not lowered: use onnx-igpc lower"
)

UNLOWERED = (
    "the time that this was chosen by is reached by lowering, which is left for later, since what is lowered "
    "cannot be trained: finetune, then"
)


@dataclass
class LoweringRun:
    """The lowering of one rewrite, chosen in :meth:`plan` and written in :meth:`finish`."""

    setting: Setting
    allow_slower: bool
    cache: RaceCache
    progress: Progress | None = None
    precision: Precision = FLOAT32
    literal: bool = False
    """Whether the model is chosen by what lowering would make of it, and written as it was rewritten."""
    planned: tuple[Selection, OpenModel] | None = None
    """What was chosen, and for which model, whose weights are random."""

    @classmethod
    def open(cls, model: OpenModel, lowering: Lowering, progress: Progress | None) -> LoweringRun:
        """A run for the model as the options say.

        Raises:
            UsageError: a batch size that the model does not take, or a model that cannot be raced in int8.
        """
        fitted = (lowering.setting or Setting()).fitted(model.proto)
        cache = RaceCache(cache_folder(lowering.cache))
        if lowering.precision == INT8:
            refuse_unsuitable(model)
        literal = lowering.kind == LITERAL
        return cls(fitted, lowering.allow_slower, cache, progress, lowering.precision, literal)

    def pricing(self, found: FoundSites, rewrite: RandomRewrite) -> LatencyBudget:
        """What a budget of time is measured with."""
        return LatencyBudget(
            found, self.setting, self.cache, rewrite, self.progress, self.precision
        )

    def keep_dense(
        self, found: FoundSites, layouts: Mapping[str, GroupLayout], rewrite: RandomRewrite
    ) -> dict[str, GroupLayout]:
        """The planned layouts, dense where those would be slower; lowerings are chosen for the others.

        Raises as :func:`~onnx_igpc.lowering.selection.select`.
        """
        tried = rewrite(layouts)
        if not tried.records:
            return dict(layouts)
        prepare(tried)
        selection = select(
            tried,
            self.setting,
            self.cache,
            allow_slower=self.allow_slower,
            precision=self.precision,
            progress=self.progress,
        )
        slower = {name for name, label in selection.choices.items() if label == DENSE}
        self.planned = selection, tried
        reason = slower_reason(self.setting, self.precision)
        return {
            site.name: kept_layout(site, reason) if site.name in slower else layouts[site.name]
            for site in found.rewritable
        }

    def finish(self, result: CompressResult) -> CompressResult:
        """Write the rewritten model as chosen, and say so in its report.

        Raises:
            CheckFailedError: the lowered model deviates, which is a defect of this tool.
        """
        if self.planned is None or not result.changed or not result.report.rewritten:
            if read_digest(result.opened.proto) is not None and not result.changed:
                result.report.warnings.append(NOT_LOWERED)
            return result
        if self.literal:
            return self._left_literal(result)
        selection, tried = self.planned
        before = snapshot(result.opened)
        removed = prepare(result.opened).put_into(result.report)
        present = [site.name for site in find_subgraphs(result.opened)[0]]
        choices = {name: selection.choices.get(name, LITERAL) for name in present}
        self._race_again(selection, tried, lowered(result.opened, choices))
        said = selection.described(self.cache)
        return finish(before, result.opened, result.report, removed, choices, said)

    def _left_literal(self, result: CompressResult) -> CompressResult:
        said = "" if self.precision == FLOAT32 else f" `precision` {self.precision}"
        result.report.notes.append(with_flags(f"{UNLOWERED} onnx-igpc lower{said}"))
        write_digest(result.opened.proto, result.report)
        return result

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
        variants = {n: as_run(m, self.setting, self.precision) for n, m in variants.items()}
        selection.whole = race_whole(variants, self.setting, FINAL_ROUNDS, CHOSEN)
