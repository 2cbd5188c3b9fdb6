"""Second moments of the inputs of pointwise convolutions, streamed through onnxruntime.

Memory does not depend on the number of samples: a batch runs, its activations are added to the
moments, and are let go. Tensors that would not fit side by side are tapped in several passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx

from onnx_igpc.calibration.taps import Tap
from onnx_igpc.data.batches import Batch, Data
from onnx_igpc.errors import DataError
from onnx_igpc.fitting.moments import Moments, MomentsAccumulator
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.traversal import all_names
from onnx_igpc.runtime.session import make_session, run_session
from onnx_igpc.sites.find import Rewritable

TAP_BYTES = 1 << 30
"""Activations that a pass over the data holds at once, in bytes, unless it is said otherwise."""


def untapped_reason(site: Rewritable) -> str | None:
    """Why the input of ``site`` cannot be observed while the model runs; ``None`` where it can."""
    scope = site.ref.scope
    if scope.in_function:
        return f"its input lies in the {scope.path.split('/')[0]}"
    if not scope.is_main:
        return f"its input lies in a sub-graph ({scope.path})"
    graph = scope.holder
    name = site.ref.proto.input[0]
    if isinstance(graph, onnx.GraphProto) and any(each.name == name for each in graph.initializer):
        return "its input is a constant"
    return None


def collect_moments(
    model: OpenModel,
    taps: Sequence[Tap],
    data: Data,
    *,
    memory_bytes: int = TAP_BYTES,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[Tap, Moments]:
    """Mean and centred second moments of what each tap reads, over all samples of the data.

    Args:
        model: the model, which is not changed.
        taps: tensors of the main graph, see :func:`untapped_reason`, and the positions that count.
        data: batches of all inputs of the model.
        memory_bytes: activations held at once; more taps than fit take further passes over the data.
        threads: of onnxruntime, its own choice if ``None``.
        progress: called with samples done and in all, counting every pass.

    A tap that read no position at all (an empty tensor on every batch) is missing in the result.

    Raises:
        DataError: no sample could be read, or a tensor is NaN or infinite somewhere; names it.
        ModelError: the model cannot run on the data.
    """
    wanted = list(dict.fromkeys(taps))
    passes = _passes(model, wanted, data, memory_bytes, threads) if wanted else []
    moments: dict[Tap, Moments] = {}
    done = 0
    for chosen in passes:
        sums: dict[Tap, MomentsAccumulator] = {}
        for batch, values in _activations(model, [tap.tensor for tap in chosen], data, threads):
            rows = feed_rows(batch)
            for tap in chosen:
                read = tap.read(values[tap.tensor], rows, batch.count)
                sums.setdefault(tap, MomentsAccumulator(len(read))).add(read)
            done += batch.count
            if progress is not None:
                progress(done, data.size * len(passes))
        if not sums:
            raise no_samples(data)
        found = {tap: added.result() for tap, added in sums.items()}
        moments |= {tap: each for tap, each in found.items() if each is not None}
    return moments


def feed_rows(batch: Batch) -> int:
    """Samples that a batch feeds, those that only fill up a fixed batch among them."""
    return max((len(values) for values in batch.feeds.values() if values.ndim), default=batch.count)


def no_samples(data: Data) -> DataError:
    """The error for data of which nothing could be read."""
    return DataError(f"{data.describe().source}: no sample could be read")


def _activations(
    model: OpenModel, tensors: Sequence[str], data: Data, threads: int | None
) -> Iterator[tuple[Batch, dict[str, np.ndarray]]]:
    """Every batch with the values of the tensors, inputs of the model among them."""
    fed = {value.name for value in model.proto.graph.input}
    inner = [name for name in dict.fromkeys(tensors) if name not in fed]
    session = make_session(model, threads=threads, extra_outputs=inner) if inner else None
    for batch in data:
        values = dict(batch.feeds)
        if session is not None:
            values |= run_session(session, batch.feeds, inner)
        yield batch, values


def _passes(
    model: OpenModel, taps: Sequence[Tap], data: Data, memory_bytes: int, threads: int | None
) -> list[list[Tap]]:
    """The taps in passes whose activations fit side by side, by their sizes on the first batch."""
    first = next(iter(data), None)
    if first is None:
        raise no_samples(data)
    sizes = _tensor_bytes(model, {tap.tensor for tap in taps}, first, threads)
    passes: list[list[Tap]] = []
    held: set[str] = set()
    used = 0
    order = {name: index for index, name in enumerate(dict.fromkeys(tap.tensor for tap in taps))}
    for tap in sorted(taps, key=lambda tap: order[tap.tensor]):
        size = 0 if tap.tensor in held else sizes.get(tap.tensor, 0)
        if not passes or (used and used + size > memory_bytes):
            passes.append([])
            held, used, size = set(), 0, sizes.get(tap.tensor, 0)
        passes[-1].append(tap)
        held.add(tap.tensor)
        used += size
    return passes


def _tensor_bytes(
    model: OpenModel, tensors: set[str], batch: Batch, threads: int | None
) -> dict[str, int]:
    """Bytes of each inner tensor on a batch, counted by the model itself, so that none is held."""
    fed = {value.name for value in model.proto.graph.input}
    inner = sorted(tensors - fed)
    if not inner:
        return {}
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    taken = all_names(proto)
    prefix = "size"
    while any(name.startswith(prefix) for name in taken):
        prefix += "_"
    counters = {name: f"{prefix}{index}" for index, name in enumerate(inner)}
    for name, counter in counters.items():
        proto.graph.node.add(op_type="Size", input=[name], output=[counter])
    counted = OpenModel(proto, model.data, model.path)
    session = make_session(counted, threads=threads, extra_outputs=list(counters.values()))
    sizes = run_session(session, batch.feeds, list(counters.values()))
    # 4 bytes an element: what is not float32 is read as float32, and float64 is rare.
    return {name: 4 * int(sizes[counter]) for name, counter in counters.items()}
