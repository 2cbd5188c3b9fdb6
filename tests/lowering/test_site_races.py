"""Choosing lowerings: the fastest of each site, dense where nothing is gained, the whole as a judge."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_igpc.errors import CheckFailedError, UsageError
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.lowering import selection as select
from onnx_igpc.lowering import site_races as choose
from onnx_igpc.lowering.cache import RaceCache
from onnx_igpc.lowering.race import race_models
from onnx_igpc.lowering.site_races import SiteRace, lowered, race_whole
from onnx_igpc.runtime.profile import ExecutionProfile, NodeRun
from onnx_igpc.runtime.setting import Setting, device_name
from tests.helpers import GraphBuilder
from tests.lowering_cases import network, rewritten
from tests.lowering_prices import Prices, by_operator

GATHERS_COST = by_operator({"Gather": 100.0, "Conv": 10.0}, weight=0.01)
WEIGHTS_COST = by_operator({}, weight=1.0)
NODES_COST = by_operator({"Conv": 50.0, "MatMul": 50.0})


def several_sites(count: int = 3) -> OpenModel:
    """Sites one behind the other, the last of which is read by no convolution."""
    builder = GraphBuilder()
    builder.input("x", ["n", 32, 6, 6])
    value = "x"
    for number in range(count):
        builder.conv(value, f"wide{number}", 32, 32, kernel=3, pads=[1] * 4)
        builder.conv(f"wide{number}", f"conv{number}", 32, 32, bias=True)
        value = builder.add("Relu", [f"conv{number}"], f"relu{number}")
    builder.add("Neg", [value], "y")
    builder.output("y", ["n", 32, 6, 6])
    return rewritten(builder.model(), 8)


def selected(model: OpenModel, **options: object) -> select.Selection:
    cache = options.pop("cache", RaceCache())
    return select.select(model, Setting(threads=1), cache, **options)  # type: ignore[arg-type]


def test_the_fastest_lowering_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    Prices(GATHERS_COST).install(monkeypatch)
    model = several_sites()
    selection = selected(model, allow_slower=True)
    assert set(selection.choices) == {"conv0_node", "conv1_node", "conv2_node"}
    for race in selection.races:
        taken = selection.choices[race.name]
        others = [s for name, s in race.seconds.items() if name != "dense"]
        assert race.seconds[taken] <= choose.TIE * min(others)
    lowered_form = lowered(model, selection.choices).proto
    assert "Gather" not in {node.op_type for node in lowered_form.graph.node}


def test_what_is_slower_than_dense_is_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    Prices(NODES_COST).install(monkeypatch)
    selection = selected(several_sites())
    assert set(selection.choices.values()) == {"dense"}
    assert selection.reason("conv0_node") == "slower on cpu (1 thread, batch 1)"
    assert "dense" not in selected(several_sites(), allow_slower=True).choices.values()


def test_dense_and_literal_go_before_what_is_as_fast() -> None:
    race = SiteRace("site", {"literal": 1.019, "dense": 1.02, "matmul": 1.0})
    assert race.best(allow_slower=False) == "dense"
    assert race.best(allow_slower=True) == "literal"
    race.seconds["matmul"] = 0.99
    assert race.best(allow_slower=False) == "matmul"
    assert SiteRace("not raced").best(allow_slower=False) == "literal"


def test_equal_sites_share_one_key() -> None:
    model = several_sites(4)
    races = choose.race_sites(model, Setting(threads=1), RaceCache())
    keys = [race.key for race in races]
    assert keys[1] == keys[2]
    assert all(race.seconds["dense"] > 0 for race in races)
    assert races[1].seconds == races[2].seconds


def test_the_whole_decides_where_sites_promise_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product of matrices is cheap in the cut-outs, and dear in the whole."""
    cheap = {"MatMul": 0.0, "Reshape": 0.0, "Transpose": 0.0, "Conv": 50.0}
    Prices(by_operator(cheap), by_operator({"MatMul": 1e3})).install(monkeypatch)
    model = several_sites()
    races = choose.race_sites(model, Setting(), RaceCache())
    first = {race.name: race.best(False) for race in races}
    assert "matmul" in first.values()
    improver = choose.Improver(model, races, Setting(), False, 60.0)
    assert "matmul" not in improver.run(first).values()


def test_a_single_group_of_sites_is_changed_where_the_whole_gains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the whole, it is best to have just the Gathers of the last site, which is like no other."""
    model = several_sites()
    gathers = sum(
        node.op_type == "Gather" and node.name.startswith("conv2_node")
        for node in model.proto.graph.node
    )
    assert gathers > 0

    def whole(model: onnx.ModelProto) -> float:
        found = sum(node.op_type == "Gather" for node in model.graph.node)
        return 1.0 + 0.1 * abs(found - gathers)

    Prices(lambda model: 1.0, whole).install(monkeypatch)
    choices = selected(model).choices
    written = lowered(model, choices).proto.graph.node
    assert sum(node.op_type == "Gather" for node in written) == gathers


def test_time_for_whole_models_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    Prices(GATHERS_COST).install(monkeypatch)
    selection = selected(several_sites(), seconds=-1.0)
    assert any("were not tried in the whole model" in note for note in selection.notes)


def test_it_falls_back_where_the_chosen_is_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    Prices(GATHERS_COST).install(monkeypatch)
    raced = []

    def last_race(variants: dict[str, OpenModel], *_: object) -> choose.WholeRace:
        raced.append(sorted(variants))
        slow = {"literal": 2.0, "dense": 3.0, "chosen": 4.0 if len(raced) == 1 else 2.0}
        ratio = slow["literal"] / slow["chosen"]
        interval = choose.Interval(ratio, ratio, ratio)
        return choose.WholeRace(slow, {"literal": interval, "dense": interval})

    monkeypatch.setattr(select, "race_whole", last_race)
    selection = selected(several_sites())
    assert raced == [["chosen", "dense", "literal"]] * 2
    assert set(selection.choices.values()) == {"literal"}
    assert "the sites' races promised more than the whole model kept: all are literal" in (
        selection.notes
    )


def test_the_second_time_nothing_is_raced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = several_sites()
    first = selected(model, cache=RaceCache(tmp_path), seconds=5.0)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("raced again")

    monkeypatch.setattr("onnx_igpc.lowering.race.race", never)
    again = selected(several_sites(), cache=RaceCache(tmp_path), seconds=5.0)
    assert again.choices == first.choices
    assert again.whole == first.whole
    assert again.predicted == first.predicted


@pytest.mark.parametrize(
    "damage", [{"choices": ["fast"]}, {"seconds": {}}, {"ratio": 3}, {"predicted": None}]
)
def test_a_damaged_choice_is_made_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: dict[str, object]
) -> None:
    prices = Prices(GATHERS_COST).install(monkeypatch)
    first = selected(several_sites(), cache=RaceCache(tmp_path))
    for file in tmp_path.iterdir():
        data = json.loads(file.read_text())
        data["measured"] |= damage
        file.write_text(json.dumps(data))
    raced = prices.wholes
    cache = RaceCache(tmp_path)
    again = selected(several_sites(), cache=cache)
    assert prices.wholes > raced
    assert again.choices == first.choices
    assert cache.note is not None
    assert cache.note in again.notes


def test_another_model_is_not_taken_for_the_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prices = Prices(GATHERS_COST).install(monkeypatch)
    selected(several_sites(2), cache=RaceCache(tmp_path))
    raced = prices.wholes
    selected(several_sites(), cache=RaceCache(tmp_path))
    assert prices.wholes > raced


def test_the_prediction_starts_from_the_measured_literal_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Prices(GATHERS_COST).install(monkeypatch)
    selection = selected(several_sites())
    assert selection.whole is not None
    # Prices add up, so that the sum of the sites is exact.
    assert selection.predicted == pytest.approx(selection.whole.seconds["chosen"])


def test_whole_models_are_raced_in_turns() -> None:
    model = several_sites()
    variants = {"literal": model, "chosen": lowered(model, {"conv0_node": "dense"})}
    whole = race_whole(variants, Setting(threads=1), 3, "chosen")
    assert set(whole.seconds) == {"literal", "chosen"}
    assert set(whole.ratio) == {"literal"}
    assert all(each > 0 for each in whole.seconds.values())


def test_batches_and_shapes_reach_the_race() -> None:
    model = rewritten(network(32, 32, batch="n"), 8)
    seconds = race_models([model], Setting(threads=1, batch=2), 2)
    assert seconds.shape == (2, 1)
    assert (seconds > 0).all()
    with pytest.raises(UsageError, match="`shapes`"):
        race_models([model], Setting(shapes={"nobody": (1,)}), 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"provider": "gpu"}, "unknown execution provider 'gpu'"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
    ],
)
def test_settings_are_checked(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Setting(**wrong)  # type: ignore[arg-type]


def test_settings_in_words() -> None:
    assert Setting(threads=1).label == "cpu (1 thread, batch 1)"
    assert Setting(threads=2, batch=8).label == "cpu (2 threads, batch 8)"
    assert Setting().label == "cpu (onnxruntime's threads, batch 1)"
    assert device_name("cpu")


def test_a_provider_that_is_not_there_fails_the_check() -> None:
    with pytest.raises(CheckFailedError, match=r"pip install 'onnx-igpc\[gpu\]'"):
        select.select(several_sites(), Setting("cuda"), RaceCache())


def test_sites_of_unknown_shape_stay_literal(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 1, 6, 6])
    builder.add("NonZero", ["x"], "where")
    builder.add("Cast", ["where"], "floats", to=1)
    builder.add("Unsqueeze", ["floats", builder.stored("axes", np.array([0]))], "lines")
    builder.add("Tile", ["lines", builder.stored("times", np.array([1, 8, 1]))], "wide")
    builder.conv("wide", "conv", 32, 32, dims=1)
    builder.add("Relu", ["conv"], "y")
    builder.output("y")
    selection = selected(rewritten(builder.model(), 8))
    (race,) = selection.races
    assert not race.seconds
    assert selection.choices == {}
    assert "not raced: the shape of" in (selection.reason("conv_node") or "")


def test_a_provider_that_runs_nothing_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(compute: str) -> ExecutionProfile:
        shape = ((1, 32, 6, 6),)
        runs = [("conv", "Conv", compute), ("neg", "Neg", "CPUExecutionProvider")]
        return ExecutionProfile(
            tuple(NodeRun(name, op, where, None, shape, 1, 10) for name, op, where in runs)
        )

    model = several_sites()
    monkeypatch.setattr(select, "read_profile", lambda path: elsewhere("CUDAExecutionProvider"))
    said = select.check_provider_runs(model, Setting())
    assert said == "asked for cpu, but onnxruntime ran Conv conv on cuda"
    gone = ExecutionProfile(elsewhere("CUDAExecutionProvider").nodes[:1])
    monkeypatch.setattr(select, "read_profile", lambda path: gone)
    with pytest.raises(CheckFailedError, match="cpu ran none of the nodes; cuda ran 1 of 1"):
        select.check_provider_runs(model, Setting())


def test_a_batch_that_the_model_fixes() -> None:
    fixed, free = network(32, 32, batch=2), network(32, 32, batch="n")
    assert Setting().fitted(fixed).batch == 2
    assert Setting(batch=2).fitted(fixed).batch == 2
    assert Setting(batch=8).fitted(free).batch == 8
    with pytest.raises(UsageError, match="batch 8 was asked for, but the model takes only batch"):
        Setting(batch=8).fitted(fixed)


def test_large_models_are_raced_two_by_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "_BYTES_AT_ONCE", 1)
    prices = Prices(GATHERS_COST).install(monkeypatch)
    raced: list[int] = []
    counted = prices._race_models

    def counting(models: list[OpenModel], setting: Setting, rounds: int) -> np.ndarray:
        raced.append(len(models))
        return counted(models, setting, rounds)

    monkeypatch.setattr(choose, "race_models", counting)
    one_by_one = selected(several_sites())
    # The last race is that of literal, dense and chosen.
    assert set(raced[:-1]) == {2}
    monkeypatch.setattr(choose, "_BYTES_AT_ONCE", 2**30)
    assert one_by_one.choices == selected(several_sites()).choices
