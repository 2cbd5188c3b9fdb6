"""The benchmark from random weights, on a few synthetic images: nothing here says how good anything is."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from benchmarks.cifar10.data import prepare
from benchmarks.cifar10.runs import Place
from benchmarks.from_scratch import __main__ as program
from benchmarks.from_scratch.arms import ALL_ARMS, SETUPS, Arm
from benchmarks.from_scratch.runs import (
    Plan,
    Row,
    read_row,
    train_arm,
    trained_path,
    write_untrained,
)
from benchmarks.from_scratch.table import markdown
from onnx_igpc.graph.cost import count
from tests.benchmarks.test_cifar10 import write_images

TINY = SETUPS["tiny"]
INTERLEAVED, PLAIN = Arm("v2", 16), Arm("v2", 16, interleaved=False)


def reach(model: onnx.ModelProto, site: str) -> np.ndarray:
    """bool[F, C]: which inputs of a rewritten layer each of its outputs depends on, by its nodes."""
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes = [n for n in model.graph.node if n.name.startswith(f"{site}/igpc/")]
    channels = _groups(nodes[0]) * arrays[nodes[0].input[1]].shape[1]
    known = {nodes[0].input[0]: np.eye(channels, dtype=int)}
    for node in nodes:
        first = known[node.input[0]]
        if node.op_type == "Conv":
            filters, width = arrays[node.input[1]].shape[:2]
            matrix = np.zeros((filters, len(first)), dtype=int)
            for row in range(filters):
                start = row // (filters // _groups(node)) * width
                matrix[row, start : start + width] = 1
            first = matrix @ first
        elif node.op_type == "Gather":
            first = first[arrays[node.input[1]]]
        elif node.op_type == "Add":
            first = first + known[node.input[1]]
        known[node.output[0]] = first
    return known[nodes[-1].output[0]] > 0


def _groups(node: onnx.NodeProto) -> int:
    return next(int(attribute.i) for attribute in node.attribute if attribute.name == "group")


# --------------------------------------------------------------------------------- arms


def test_every_arm_has_its_own_name_and_the_first_seed_comes_first() -> None:
    arms = SETUPS["small"].seeded_arms(2)
    assert len({arm.name for arm in arms}) == len(arms) == 2 * len(ALL_ARMS)
    assert [arm.name for arm in arms[:3]] == ["dense-0", "v2-16-0", "v2-16-not-interleaved-0"]
    assert {arm.seed for arm in arms[:6]} == {0}


def test_without_interleaves_everything_else_is_the_same() -> None:
    with_them, without = TINY.untrained(INTERLEAVED), TINY.untrained(PLAIN)
    gathers = [n.name for n in with_them.graph.node if n.op_type == "Gather"]
    assert gathers
    kept = [(n.op_type, n.name) for n in with_them.graph.node if n.op_type != "Gather"]
    assert [(n.op_type, n.name) for n in without.graph.node] == kept
    one, other = (
        {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        for model in (with_them, without)
    )
    assert {name for name in one if name not in other} == {f"{name}.indices" for name in gathers}
    for name, values in other.items():
        np.testing.assert_array_equal(values, one[name])
    costs = [count(model) for model in (with_them, without)]
    assert costs[0].parameters == costs[1].parameters
    assert costs[0].macs == costs[1].macs
    onnx.checker.check_model(without, full_check=True)


def test_without_interleaves_the_network_is_four_side_by_side() -> None:
    connected = []
    for arm in (INTERLEAVED, PLAIN):
        model = TINY.untrained(arm)
        known = np.eye(64, dtype=bool)
        for number in range(1, 13):
            layer = reach(model, f"conv_pw_{number}")
            is_square = layer.shape[0] == layer.shape[1]  # has a shortcut
            known = layer @ known | (known if is_square else False)
        connected.append(known)
    assert connected[0].all()
    # 16 of the 64 channels behind the dense convolutions reach 48 of the 192 before the classifier.
    apart = np.kron(np.eye(4, dtype=bool), np.ones((48, 16), dtype=bool))
    np.testing.assert_array_equal(connected[1], apart)


def test_seeds_draw_other_weights() -> None:
    for arm in (Arm(), INTERLEAVED, PLAIN):
        drawn = [TINY.untrained(replace(arm, seed=seed)) for seed in (0, 0, 1)]
        assert drawn[0] == drawn[1]
        assert drawn[0].graph.initializer != drawn[2].graph.initializer


def test_the_full_setup_counts_what_the_papers_print() -> None:
    setup = SETUPS["full"]
    found = {arm.plain_name: count(setup.untrained(arm)) for arm in setup.arms}
    assert {name: cost.parameters for name, cost in found.items()} == {
        "dense": 4_020_358,
        "v2-16": 623_226,
        "v2-32": 950_650,
    }
    assert (found["v2-16"].macs, found["v2-32"].macs) == (79_124_080, 119_528_816)
    assert setup.recipe.epochs == 50


# --------------------------------------------------------------------------------- runs


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    arrays = prepare(write_images(tmp_path / "images"), tmp_path / "work")
    plan = Plan("tiny", replace(TINY.recipe, epochs=2))
    places = [Place(*arrays, tmp_path / name, "cpu") for name in ("stopped", "through")]
    for place in places:
        plan.write(place.work)
        write_untrained([INTERLEAVED], TINY, place.work)
    assert read_row(PLAIN, places[0].work) is None

    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_arm(INTERLEAVED, plan, places[0], stop)
    row = read_row(INTERLEAVED, places[0].work)
    assert row is not None
    assert (row.epochs, row.accuracy) == (1, None)
    assert row.so_far is not None
    for place in places:
        train_arm(INTERLEAVED, plan, place, print)
    one, other = (onnx.load(trained_path(INTERLEAVED, place.work)) for place in places)
    assert one.graph.initializer == other.graph.initializer
    row = read_row(INTERLEAVED, places[0].work)
    assert row is not None
    assert row.epochs == 2
    assert row.accuracy is not None
    # What is finished is not done again.
    train_arm(INTERLEAVED, plan, places[0], stop)


# -------------------------------------------------------------------------------- table


def test_the_table_says_what_is_not_finished() -> None:
    done = Row(Arm(), 2000, 1000, 90_000, 26, 3600.0, 0.87, accuracy=0.8812)
    begun = Row(INTERLEAVED, 500, 100, 40_000, 7, 1234.0, so_far=0.71)
    lines = markdown([done, begun, Row(PLAIN, 500, 100, 40_000)], 26).splitlines()
    so_far = "not finished (71.00 so far)"
    assert lines[2:5] == [
        "| dense | 0 | 2,000 | 100.0 % | 1,000 | 90,000 | 26 | 3,600 | **88.12** |",
        f"| {INTERLEAVED.label} | 0 | 500 | 25.0 % | 100 | 40,000 | 7 of 26 | 1,234 | {so_far} |",
        f"| {PLAIN.label} | 0 | 500 | 25.0 % | 100 | 40,000 | 0 of 26 |  | not finished |",
    ]
    assert INTERLEAVED.label == "V2, 16 channels per group"
    assert PLAIN.label == "V2, 16 channels per group, not interleaved"


def test_the_table_has_the_papers_figures() -> None:
    lines = markdown([], 26).splitlines()
    ch = "channels per group"
    for line in (
        "| EfficientNet-B0 baseline | 224x224 | 4,020,358 | 100.0 % | 384,547,552 | 93.33 |  |",
        f"| kEffNet-B0, V2, 32 {ch} | 32x32 | 950,650 | 23.6 % | 119,528,816 | 93.67 | +0.34 |",
        f"| kMobileNet, V1, 16 {ch} | 224x224 | 244,298 | 7.6 % | 90,051,072 | 89.81 | -3.34 |",
    ):
        assert line in lines


# ------------------------------------------------------------------------------- program


def test_the_program_trains_what_is_missing_and_prints_the_table(tmp_path: Path) -> None:
    images, runs = write_images(tmp_path / "images"), tmp_path / "runs"
    run = partial(CliRunner().invoke, program.main, catch_exceptions=False)
    train = ["train", str(images), str(runs), "--setup", "tiny", "--device", "cpu"]
    nothing = run(["table", str(runs)])
    assert nothing.exit_code == 1
    assert "has no runs" in nothing.output
    assert run([*train, "--arm", "dense"]).exit_code == 0
    for arm in ALL_ARMS[1:]:
        assert f"| {arm.label} | 0 | " in run(["table", str(runs)]).output
    assert run(["table", str(runs)]).output.count("not finished") == len(ALL_ARMS) - 1
    first = (runs / "results" / "dense-0.json").read_bytes()
    again = run(train)
    assert again.exit_code == 0, again.output
    assert (runs / "results" / "dense-0.json").read_bytes() == first
    assert "not finished" not in run(["table", str(runs)]).output
    assert json.loads((runs / "results" / "v1-32-0.json").read_text())["steps"] == 4
    for words, code, said in (
        (["--arm", "v3-*"], 2, "--arm v3-* matches no arm"),
        (["--epochs", "3"], 1, "has runs of --setup tiny, 1 epochs of all images"),
    ):
        wrong = run([*train, *words])
        assert wrong.exit_code == code
        assert said in wrong.output


def test_an_arm_that_diverges_does_not_keep_the_others_from_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, runs = write_images(tmp_path / "images"), tmp_path / "runs"
    wild = replace(TINY, recipe=replace(TINY.recipe, lr=1e30), arms=(Arm(), INTERLEAVED))
    monkeypatch.setitem(SETUPS, "tiny", wild)
    train = ["train", str(images), str(runs), "--setup", "tiny", "--device", "cpu"]
    ended = CliRunner().invoke(program.main, train, catch_exceptions=False)
    assert ended.exit_code == 1
    assert "did not train to the end: dense-0, v2-16-0" in ended.output
    assert "NaN or infinite" in ended.output
