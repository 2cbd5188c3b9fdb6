"""One model of a benchmark: its size, its weights, which provider runs its nodes, its digest."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from onnx_igpc.data.random_inputs import random_inputs
from onnx_igpc.errors import CheckFailedError, UsageError
from onnx_igpc.graph.inputs import Shapes, resolve_shapes
from onnx_igpc.graph.model import OpenModel, file_bytes, open_model
from onnx_igpc.report.benchmark import ModelFacts
from onnx_igpc.report.digest import read_digest
from onnx_igpc.report.quantization import counts
from onnx_igpc.report.tree import RewriteReport
from onnx_igpc.runtime.footprint import measure
from onnx_igpc.runtime.profile import ExecutionProfile, misplaced_message, read_profile
from onnx_igpc.runtime.racing import race, timed_run
from onnx_igpc.runtime.session import (
    Session,
    make_session,
    provider_label,
    provider_name,
    run_session,
    session_inputs,
)
from onnx_igpc.runtime.setting import Setting

_PROFILED_RUNS = 6
_CONSTANT_ROUNDS = 8
_QUANTIZED = ("QLinear", "DequantizeLinear", "ConvInteger", "MatMulInteger")


class Contender:
    """One model of a race; weights that it lists as inputs are made constant.

    digest: the report that a rewritten model carries, None for any other. quantized: whether it
    computes with integers.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        opened = open_model(path)
        weights = {tensor.name for tensor in opened.proto.graph.initializer}
        kept = [value for value in opened.proto.graph.input if value.name not in weights]
        self.constant_weights = len(opened.proto.graph.input) - len(kept)
        self.file_bytes = file_bytes(path, opened.proto)
        self.digest: RewriteReport | None = read_digest(opened.proto)
        self.quantized = any(
            node.op_type.startswith(_QUANTIZED) for node in opened.proto.graph.node
        )
        # As a path where nothing changes, which spares memory.
        self.model: OpenModel | str = path
        if self.constant_weights:
            # Otherwise onnxruntime may not fold BatchNorm into them, and the race would be about that.
            del opened.proto.graph.input[:]
            opened.proto.graph.input.extend(kept)
            self.model = opened
        self._proto: onnx.ModelProto = opened.proto

    def profile(
        self, provider: str, threads: int | None, feeds: Mapping[str, np.ndarray], runs: int
    ) -> ExecutionProfile:
        """Which provider ran which node and for how long, over ``runs`` runs after a first one.

        Raises CheckFailedError where the provider asked for ran none of the nodes.
        """
        with tempfile.TemporaryDirectory(prefix="onnx-igpc-", ignore_cleanup_errors=True) as folder:
            session = make_session(
                self.model, provider, threads=threads, profile=Path(folder) / "profile"
            )
            for _ in range(runs + 1):
                run_session(session, feeds)
            profile = read_profile(session.end_profiling(), self._proto, skip_first=True)
        if not profile.ran_on(provider):
            raise CheckFailedError(
                f"{self.path}: {provider_label(provider_name(provider))} ran none of the nodes; "
                f"{profile.describe()}"
            )
        return profile

    def facts(
        self,
        session: Session,
        setting: Setting,
        *,
        footprint: bool,
        per_operator: bool,
    ) -> ModelFacts:
        """Profile the model and measure its footprint. Raises as benchmark() says."""
        provider, threads = setting.provider, setting.threads
        batch, shapes = setting.batch, setting.shapes
        inputs = session_inputs(session)
        feeds = random_inputs(inputs, batch=batch, shapes=batched(shapes, batch))
        profile = self.profile(provider, threads, feeds, _PROFILED_RUNS)
        misplaced = profile.misplaced(provider)
        notes = []
        if self.constant_weights:
            notes.append(self._constants_note(session, provider, threads, feeds))
        if self.quantized:
            notes.append(
                f"quantized; its layers ran as {counts(profile.layers()) or 'nothing known'}"
            )
        resolved = resolve_shapes(inputs, batch, batched(shapes, batch))
        return ModelFacts(
            path=self.path,
            file_bytes=self.file_bytes,
            footprint=measure(self.path, provider=provider, threads=threads, shapes=dict(resolved))
            if footprint
            else None,
            constant_weights=self.constant_weights,
            executed=profile.describe(),
            operators=profile.nodes if per_operator else None,
            profiled_runs=_PROFILED_RUNS,
            notes=tuple(notes),
            misplaced=misplaced_message(misplaced, provider) if misplaced else None,
        )

    def _constants_note(
        self,
        session: Session,
        provider: str,
        threads: int | None,
        feeds: Mapping[str, np.ndarray],
    ) -> str:
        """What making weights constant brought: the file as it is, raced against what is raced."""
        as_listed = make_session(self.path, provider, threads=threads)
        runs = [timed_run(each, feeds, provider) for each in (as_listed, session)]
        before, after = 1000 * np.median(race(runs, rounds=_CONSTANT_ROUNDS), axis=0)
        return (
            f"{self.constant_weights} weights that the model lists as inputs were made constant: "
            f"{before:.3g} ms as it lists them, {after:.3g} ms as raced"
        )


def natural_batch(sessions: Sequence[Session], shapes: Shapes | None) -> int:
    """The batch that the models or the given shapes fix, or 1; UsageError where they disagree."""
    first = [spec for session in sessions for spec in session_inputs(session)[:1]]
    given = {shape[0] for name, shape in (shapes or {}).items() if name in {s.name for s in first}}
    fixed = {spec.fixed_batch for spec in first if spec.fixed_batch is not None}
    if len(fixed) > 1:
        raise UsageError(f"the models have different fixed batch sizes: {sorted(fixed)}")
    return min(fixed or given or {1})


def batched(shapes: Shapes | None, batch: int) -> dict[str, tuple[int, ...]]:
    """Given shapes with another first dimension."""
    return {name: (batch, *shape[1:]) for name, shape in (shapes or {}).items()}
