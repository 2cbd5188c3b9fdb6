"""What a benchmark measured, as it is in reports: races, limits of speed, and what each model is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnx_igpc.report.typed_json import to_values
from onnx_igpc.runtime.bandwidth import Bandwidth
from onnx_igpc.runtime.footprint import Footprint
from onnx_igpc.runtime.profile import NodeRun
from onnx_igpc.runtime.racing import Interval


@dataclass(frozen=True)
class ModelFacts:
    """A model apart from its speed.

    file_bytes: the model file and its external data. footprint: None where it was not asked for.
    constant_weights: weights that the model lists as inputs and that were made constant for the race.
    executed: which provider ran which share of the nodes. operators: the profile of the nodes, over
    ``profiled_runs`` runs, where it was asked for. notes: what a reader must know about this model's
    times. misplaced: the nodes with arithmetic that another provider ran than the one asked for, in
    words; None where there are none.
    """

    path: str
    file_bytes: int
    footprint: Footprint | None
    constant_weights: int
    executed: str
    operators: tuple[NodeRun, ...] | None
    profiled_runs: int
    notes: tuple[str, ...]
    misplaced: str | None


@dataclass(frozen=True)
class SiteLimit:
    """One site, in milliseconds a run: dense as profiled, by MACs alone, by memory alone, the limit."""

    name: str
    dense_ms: float
    arithmetic_ms: float
    memory_ms: float
    limit_ms: float

    @property
    def bound_by_memory(self) -> bool:
        """Whether moving its data takes longer than what is left of its arithmetic."""
        return self.memory_ms > self.arithmetic_ms


@dataclass(frozen=True)
class SpeedLimit:
    """The limit of one rewritten model against its original.

    speedup: the most that can be had. reached: the share of it that the measured speed-up is.
    limit_ms: the least time of a run, of which outside_ms lies outside the rewritten sites.
    memory_bound: how many sites are bound by memory.
    """

    speedup: float
    reached: float
    limit_ms: float
    outside_ms: float
    memory_bound: int
    sites: tuple[SiteLimit, ...]


@dataclass(frozen=True)
class Timing:
    """One model in one race. Times are milliseconds a run; samples_per_second from the median.

    speedup: over the first model, None for that one. rounds_ms: the time of every round, in order.
    limit: how much faster a rewritten model could at best be than the first one; None where there is
    no such limit, and no_limit then says why where the model was rewritten by this tool.
    """

    path: str
    median_ms: float
    quartiles_ms: tuple[float, float]
    samples_per_second: float
    speedup: Interval | None
    rounds_ms: tuple[float, ...] = ()
    limit: SpeedLimit | None = None
    no_limit: str | None = None


@dataclass(frozen=True)
class Race:
    """All models at one batch size and number of threads (None: onnxruntime's choice).

    bandwidth: of this machine with so many threads, where a limit needed it. Raises ValueError without
    timings.
    """

    batch: int
    threads: int | None
    timings: tuple[Timing, ...]
    bandwidth: Bandwidth | None = None

    def __post_init__(self) -> None:
        if not self.timings:
            raise ValueError("a race has no timings")


@dataclass(frozen=True)
class BenchmarkReport:
    """Everything that was measured; :meth:`to_dict` is its JSON form.

    failures: models whose arithmetic another provider ran in part than the one asked for, one line
    each: their times are not those of that provider.
    """

    provider: str
    onnxruntime: str
    machine: str
    rounds: int
    inputs: str
    models: tuple[ModelFacts, ...]
    races: tuple[Race, ...]
    failures: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        values: dict[str, Any] = to_values(self)
        return values
