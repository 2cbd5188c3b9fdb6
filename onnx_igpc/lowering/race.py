"""Racing ways to write a model down, on the machine and at the setting that they are meant for.

A race is known by what decides its times: the structure of every contender (operators, attributes,
shapes and types, not the values of weights), the precision in which it runs, the number of threads, the
provider, the version of onnxruntime and the processor. Races of equal keys are run once and kept in a cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx

from onnx_igpc.data.random_inputs import random_inputs
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.lowering.cache import RaceCache, read_seconds
from onnx_igpc.lowering.options import FLOAT32, INT8, Precision
from onnx_igpc.lowering.quantization.raced import quantized_cut_out, quantized_for_race
from onnx_igpc.runtime.racing import race, timed_run
from onnx_igpc.runtime.session import (
    make_session,
    session_inputs,
)
from onnx_igpc.runtime.setting import Setting

SITE_ROUNDS = 15
"""Turns of each contender in the race of one site."""
_HEAT_ROUNDS = 4
_ALL_ROUNDS = 7
# A contender that is so much slower than the fastest after the heat is not raced further.
_OUT = 1.3
# How wide the middle half of the fastest's times may be, and how often rounds are added otherwise.
_SPREAD = 0.1
_MORE = 2
# Values of small integer tensors are structure: indices of a Gather, sizes of a Split.
_SMALL = 64


def as_run(model: OpenModel, setting: Setting, precision: Precision) -> OpenModel:
    """The model in the form in which it will run; itself where that is the form it has.

    Raises:
        ModelError: onnxruntime cannot quantize it.
    """
    return quantized_for_race(model, setting) if precision == INT8 else model


def race_models(
    models: Sequence[OpenModel], setting: Setting, rounds: int, seed: int = 0
) -> np.ndarray:
    """Seconds of one run of each model in each round: float64[rounds, models].

    All models have the inputs of the first; they are fed the same seeded random numbers.

    Raises:
        UsageError, CheckFailedError: as :func:`onnx_igpc.runtime.session.make_session`.
        ModelError: a model that onnxruntime cannot load or run.
    """
    sessions = [make_session(model, setting.provider, threads=setting.threads) for model in models]
    inputs = session_inputs(sessions[0])
    feeds = random_inputs(inputs, batch=setting.batch, seed=seed, shapes=setting.shapes)
    runs = [timed_run(session, feeds, setting.provider) for session in sessions]
    return race(runs, rounds=rounds, clock=setting.clock)


def race_site(
    contenders: Mapping[str, OpenModel],
    setting: Setting,
    cache: RaceCache,
    precision: Precision = FLOAT32,
) -> dict[str, float]:
    """Median seconds of each contender: cut-outs of one site, raced in the form in which they will run.

    Contenders that are far behind after a first heat have their time from that. Where times vary
    much, there are more rounds. Raises as :func:`race_models`.
    """
    names = list(contenders)

    def measure() -> dict[str, float]:
        runs = _cut_runs(contenders, setting, precision)
        heat = np.median(race(runs, rounds=_HEAT_ROUNDS, clock=setting.clock), axis=0)
        seconds = dict(zip(names, map(float, heat), strict=True))
        left = [i for i in range(len(names)) if heat[i] <= _OUT * heat.min()]
        final = _settled([runs[i] for i in left], setting.clock)
        seconds.update((names[i], float(time)) for i, time in zip(left, final, strict=True))
        return seconds

    return _cached(race_key(contenders, setting, precision), names, cache, measure)


def race_all(
    contenders: Mapping[str, OpenModel],
    setting: Setting,
    cache: RaceCache,
    precision: Precision = FLOAT32,
) -> dict[str, float]:
    """As :func:`race_site`, but all contenders race to the end, in fewer rounds."""
    names = list(contenders)

    def measure() -> dict[str, float]:
        runs = _cut_runs(contenders, setting, precision)
        medians = np.median(race(runs, rounds=_ALL_ROUNDS, warmup=1, clock=setting.clock), axis=0)
        return dict(zip(names, map(float, medians), strict=True))

    return _cached(f"all {race_key(contenders, setting, precision)}", names, cache, measure)


def _cut_runs(
    contenders: Mapping[str, OpenModel], setting: Setting, precision: Precision
) -> list[Callable[[], object]]:
    models = list(contenders.values())
    if precision == INT8:
        models = [quantized_cut_out(model, setting) for model in models]
    sessions = [make_session(model, setting.provider, threads=setting.threads) for model in models]
    # Cut-outs have all sizes of their own, and may differ in the names of their inputs.
    return [
        timed_run(session, random_inputs(session_inputs(session)), setting.provider)
        for session in sessions
    ]


def _cached(
    key: str, names: list[str], cache: RaceCache, measure: Callable[[], dict[str, float]]
) -> dict[str, float]:
    if (known := cache.get(key)) is not None:
        if (seconds := read_seconds(known, names)) is not None:
            return seconds
        cache.damaged(key)
    seconds = measure()
    cache.put(key, seconds)
    return seconds


def _settled(runs: Sequence[Callable[[], object]], clock: Callable[[], float]) -> np.ndarray:
    """Medians, over more rounds where the fastest's times are spread widely."""
    times = race(runs, rounds=SITE_ROUNDS, clock=clock)
    for _ in range(_MORE):
        fastest = times[:, np.median(times, axis=0).argmin()]
        low, median, high = np.percentile(fastest, [25, 50, 75])
        if high - low <= _SPREAD * median:
            break
        times = np.concatenate([times, race(runs, rounds=SITE_ROUNDS, clock=clock)])
    return np.asarray(np.median(times, axis=0))


def race_key(
    contenders: Mapping[str, OpenModel], setting: Setting, precision: Precision = FLOAT32
) -> str:
    """Equal for races whose times must be equal but for noise; ``contenders`` are not quantized yet."""
    forms = {name: structure(model.proto) for name, model in sorted(contenders.items())}
    text = json.dumps({"environment": environment(setting, precision), "contenders": forms})
    return hashlib.sha256(text.encode()).hexdigest()


def environment(setting: Setting, precision: Precision) -> dict[str, object]:
    """What decides the times of a given float model."""
    known = setting.environment()
    return known if precision == FLOAT32 else {**known, "precision": precision}


def structure(model: onnx.ModelProto) -> str:
    """A digest of the graph without names and without the values of weights."""
    numbers: dict[str, int] = {}

    def number(name: str) -> int:
        return numbers.setdefault(name, len(numbers)) if name else -1

    graph = model.graph
    inputs = [
        [number(value.name), value.type.SerializeToString(deterministic=True).hex()]
        for value in graph.input
    ]
    nodes = []
    for node in graph.node:
        attributes = sorted(
            attribute.SerializeToString(deterministic=True).hex()
            for attribute in node.attribute
            if not (node.op_type == "Constant" and attribute.t.ByteSize() > 4 * _SMALL)
        )
        ends = [[number(name) for name in part] for part in (node.input, node.output)]
        nodes.append([node.op_type, attributes, ends])
    stored = []
    for tensor in graph.initializer:
        if tensor.name in numbers:
            integers = tensor.data_type in (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
            small = integers and int(np.prod(tensor.dims)) <= _SMALL
            values = onnx.numpy_helper.to_array(tensor).tolist() if small else None
            stored.append([number(tensor.name), tensor.data_type, list(tensor.dims), values])
    stored.sort(key=lambda entry: entry[0])
    outputs = [number(value.name) for value in graph.output]
    opsets = sorted((each.domain, each.version) for each in model.opset_import)
    text = json.dumps([opsets, inputs, nodes, stored, outputs])
    return hashlib.sha256(text.encode()).hexdigest()
