"""precision int8: what is raced is what quantize will make, dense included; what is written is float."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

import onnx_igpc
from onnx_igpc import Lowering, Published, Quantization
from onnx_igpc.cli import main
from onnx_igpc.errors import UsageError
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.lowering import latency, race
from onnx_igpc.lowering import site_races as choose
from onnx_igpc.lowering.cache import RaceCache
from onnx_igpc.lowering.lower import lower_model
from onnx_igpc.lowering.quantization.raced import quantized_cut_out, quantized_for_race
from onnx_igpc.lowering.race import race_all, race_key
from onnx_igpc.lowering.site_races import contenders_of, race_sites, surroundings_of
from onnx_igpc.report.digest import read_digest
from onnx_igpc.runtime.session import make_session, run_session, session_inputs
from onnx_igpc.runtime.setting import Setting
from tests.calibration_graphs import images, saved
from tests.lowering.test_cut_out import cut, outputs, residual
from tests.lowering.test_lower import assert_same_function, compressed, two_sites
from tests.lowering_cases import network, rewritten
from tests.lowering_prices import Prices, by_operator
from tests.planning.test_budget import CHANNELS, classifier

ONE = Setting(threads=1)
INT8 = Lowering(setting=ONE, cache=False, precision="int8")


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether all that convolutions and products read comes from integers, weights included."""
    made = {name: node.op_type for node in model.graph.node for name in node.output}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul")]
    reads = {made.get(name, "stored") for node in layers for name in node.input[:2]}
    return reads == {"DequantizeLinear"}


class Raced:
    """Every model that a race makes a session for, in the place of that race's times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.models: list[onnx.ModelProto] = []
        monkeypatch.setattr(race, "make_session", self._session)
        monkeypatch.setattr(race, "race", self._race)

    def _session(self, model: OpenModel, provider: str, **options: object) -> object:
        self.models.append(model.proto)
        return make_session(model, provider, threads=1)

    @staticmethod
    def _race(runs: Sequence[object], *, rounds: int, **options: object) -> np.ndarray:
        return np.tile(np.linspace(1e-6, 2e-6, len(runs)), (rounds, 1))


@pytest.mark.parametrize("opset", [11, 17])
def test_a_quantized_cut_out_has_integer_edges_and_kernels(opset: int) -> None:
    model = rewritten(network(32, 32, opset=opset, batch=1), 8)
    quantized = quantized_cut_out(cut(model), ONE)
    assert is_quantized(quantized.proto)
    graph = quantized.proto.graph
    integers = {onnx.TensorProto.UINT8, onnx.TensorProto.INT8}
    edges = [*graph.input, *graph.output]
    assert {value.type.tensor_type.elem_type for value in edges} <= integers
    given = {value.name for value in graph.input}
    assert all(node.op_type == "DequantizeLinear" for node in graph.node if given & set(node.input))
    assert all(values.dtype.itemsize == 1 for values in outputs(quantized).values())


def test_the_edges_are_all_that_the_integers_change() -> None:
    """The cut-out computes what its float form does, to eight bits."""
    plain = cut(rewritten(residual(), 8))
    quantized = quantized_cut_out(plain, ONE)
    graph = quantized.proto.graph
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}

    def scale(name: str) -> tuple[np.ndarray, np.ndarray]:
        node = next(
            each
            for each in graph.node
            if each.op_type.endswith("quantizeLinear" if name in each.input[:1] else "eLinear")
            and name in (each.input[0], each.output[0])
        )
        return stored[node.input[1]], stored[node.input[2]].astype(np.float32)

    session = make_session(quantized, threads=1)
    feeds = {
        spec.name: np.random.default_rng(0).integers(0, 255, spec.shape, dtype=np.uint8)
        for spec in session_inputs(session)
    }
    (source,) = plain.proto.graph.input
    (name,) = feeds
    step, zero = scale(name)
    floats = run_session(
        make_session(plain, threads=1),
        {source.name: step * (feeds[name] - zero).astype(np.float32)},
    )
    found = run_session(session, feeds)
    for (made, values), expected in zip(found.items(), floats.values(), strict=True):
        step, zero = scale(made)
        real = step * (values.astype(np.float32) - zero)
        assert np.linalg.norm(real - expected) < 0.1 * np.linalg.norm(expected)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_values_that_overflow_with_random_weights_are_raced_all_the_same() -> None:
    model = two_sites()
    factors = {"conv0_w": 1e30, "conv1_w": 1e10}
    for each in model.graph.initializer:
        if each.name in factors:
            values = np.abs(onnx.numpy_helper.to_array(each)) * np.float32(factors[each.name])
            each.CopyFrom(onnx.numpy_helper.from_array(values, each.name))
    assert is_quantized(quantized_for_race(OpenModel(model), ONE).proto)


def test_sites_are_raced_quantized_dense_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    raced = Raced(monkeypatch)
    (found,) = race_sites(rewritten(network(32, 32), 8), ONE, RaceCache(), precision="int8")
    assert found.seconds
    assert {"dense", "literal"} <= set(found.seconds)
    assert len(raced.models) == len(found.seconds)
    for model, label in zip(raced.models, found.seconds, strict=True):
        assert is_quantized(model) or label == "matmul"


def test_float_races_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    raced = Raced(monkeypatch)
    race_sites(rewritten(network(32, 32), 8), ONE, RaceCache())
    assert not any(node.op_type == "QuantizeLinear" for m in raced.models for node in m.graph.node)


def test_races_of_one_precision_are_not_taken_for_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Raced(monkeypatch)
    surroundings, (site,) = surroundings_of(rewritten(network(32, 32), 8), ONE)
    contenders, _ = contenders_of(surroundings, site)
    assert race_key(contenders, ONE, "int8") != race_key(contenders, ONE)
    cache = RaceCache()
    for precision in ("float32", "int8", "int8"):
        race_all(contenders, ONE, cache, precision)  # type: ignore[arg-type]
    assert (cache.misses, cache.hits) == (2, 1)


def test_what_is_written_is_float_and_quantize_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Raced(monkeypatch)
    before = compressed()
    result = lower_model(before, lowering=INT8)
    assert_same_function(before, result.model)
    assert not any("Quantize" in node.op_type for node in result.model.graph.node)
    said = result.report.lowering
    assert said is not None
    assert said.precision == "int8"
    assert set(said.sites["conv0_node"].seconds or {}) >= {"literal", "dense"}
    assert said.model is not None
    samples = images(30, 32)
    quantized = onnx_igpc.quantize(result.model, samples, quantization=Quantization("minmax"))
    assert quantized.report.lowering is not None
    assert quantized.report.lowering.precision == "int8"
    assert quantized.report.quantization is not None
    assert not any("fastest in float32" in note for note in quantized.report.notes)


def test_quantize_says_where_floats_were_chosen_by(monkeypatch: pytest.MonkeyPatch) -> None:
    Raced(monkeypatch)
    by_float = lower_model(compressed(), lowering=Lowering(setting=ONE, cache=False)).model
    options = Quantization("minmax")
    notes = onnx_igpc.quantize(by_float, images(30, 32), quantization=options).report.notes
    assert any("fastest in float32" in note and "--precision int8" in note for note in notes)


def test_whole_models_are_raced_quantized(monkeypatch: pytest.MonkeyPatch) -> None:
    raced = Raced(monkeypatch)
    lower_model(compressed(), lowering=INT8)
    wholes = [m for m in raced.models if any(value.name == "x" for value in m.graph.input)]
    assert len(wholes) >= 3
    assert all(is_quantized(model) for model in wholes)


def test_the_faster_precision_does_not_choose_for_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A site that is faster in float than dense, and slower in int8."""
    prices = Prices(by_operator({"Conv": 1.0, "Gather": 100.0}, weight=1.0)).install(monkeypatch)

    def site(
        contenders: Mapping[str, OpenModel], setting: Setting, cache: RaceCache, precision: str
    ) -> dict[str, float]:
        known = prices._race_site(contenders, setting, cache)
        return {**known, "dense": 1e-9} if precision == "int8" else known

    monkeypatch.setattr(choose, "race_site", site)
    original = two_sites()
    fast = onnx_igpc.compress(original, Published(8), lowering=Lowering(setting=ONE, cache=False))
    assert len(fast.report.rewritten) == 2
    monkeypatch.setattr(choose.Improver, "run", lambda self, choices: choices)
    kept = onnx_igpc.compress(original, Published(8), lowering=INT8)
    assert not kept.changed
    reasons = {each.reason for each in kept.report.kept}
    assert "slower in int8 on cpu (1 thread, batch 1)" in reasons


@pytest.mark.parametrize("kind", ["auto", "literal"])
def test_a_budget_of_time_is_a_share_of_dense_int8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def bytes_stored(model: onnx.ModelProto) -> float:
        tensors = model.graph.initializer
        return 1e-6 * sum(int(np.prod(each.dims)) for each in tensors if len(each.dims) == 4)

    prices = Prices(bytes_stored).install(monkeypatch)
    bases: list[onnx.ModelProto] = []

    def models(given: Sequence[OpenModel], setting: Setting, rounds: int) -> np.ndarray:
        bases.extend(each.proto for each in given)
        return prices._race_models(given, setting, rounds)

    for module in (choose, latency):
        monkeypatch.setattr(module, "race_models", models)
    monkeypatch.setattr(choose.Improver, "run", lambda self, choices: choices)
    result = onnx_igpc.compress(
        classifier(),
        onnx_igpc.Budget("latency=60%"),
        calibration=saved(tmp_path, x=images(40, CHANNELS)),
        lowering=replace(INT8, kind=kind),
    )
    assert bases
    assert all(is_quantized(model) for model in bases)
    said = result.report.selection
    assert said is not None
    assert said.latency is not None
    assert said.latency.precision == "int8"
    assert said.latency.measured <= 0.6
    assert not any("Quantize" in node.op_type for node in result.model.graph.node)
    later = [note for note in result.report.notes if "onnx-igpc lower --precision int8" in note]
    assert len(later) == (kind == "literal")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def test_the_commands_say_what_was_raced_and_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Raced(monkeypatch)
    dense, fast, page = (tmp_path / name for name in ("dense.onnx", "fast.onnx", "page.html"))
    onnx.save(two_sites(), dense)
    options = ("--precision", "int8", "--threads", 1, "--no-cache")
    small = ("--lowering", "auto", "--ch", 8, "--allow-slower", "--json", tmp_path / "said.json")
    result = invoke("compress", dense, "-o", fast, *small, *options, "--report", page)
    assert result.exit_code == 0, result.output
    assert "lowered for cpu, int8, threads 1" in result.stdout
    assert "times are of int8 forms" in result.stdout
    assert "onnx-igpc quantize" in result.stdout
    assert json.loads((tmp_path / "said.json").read_text())["lowering"]["precision"] == "int8"
    assert "both in int8" in page.read_text()
    digest = read_digest(onnx.load(fast))
    assert digest is not None
    assert digest.lowering is not None
    assert digest.lowering.precision == "int8"
    shown = invoke("report", fast).stdout
    assert "times" not in shown
    assert "onnx-igpc quantize comes next" in shown
    options = Quantization("minmax")
    onnx_igpc.quantize(fast, images(30, 32), quantization=options).save(tmp_path / "int8.onnx")
    assert "comes next" not in invoke("report", tmp_path / "int8.onnx").stdout


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown precision 'int4': choose from float32, int8"):
        Lowering(precision="int4")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="`precision` int8 is for what is measured, and 'dense'"):
        Lowering("dense", precision="int8")
    onnx.save(two_sites(), tmp_path / "dense.onnx")
    onnx.save(compressed(), tmp_path / "small.onnx")
    output = ("-o", tmp_path / "out.onnx", "--precision", "int8")
    for arguments, said in (
        (("compress", tmp_path / "dense.onnx"), "give --lowering auto or --target latency="),
        (("lower", tmp_path / "small.onnx", "--lowering", "dense"), "--precision int8 is for what"),
    ):
        result = invoke(*arguments, *output)
        assert result.exit_code == 2
        assert said in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out.onnx").exists()


def test_models_that_cannot_be_quantized_get_a_clear_word() -> None:
    half = network(32, 32, dtype=np.float16)
    with pytest.raises(UsageError, match="is in float16"):
        onnx_igpc.compress(half, Published(8), lowering=INT8)
    quantized = onnx_igpc.quantize(
        two_sites(), images(30, 32), quantization=Quantization("minmax")
    ).model
    del quantized.metadata_props[:]
    with pytest.raises(UsageError, match="is quantized already"):
        onnx_igpc.compress(quantized, Published(8), lowering=INT8)
