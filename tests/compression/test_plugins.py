"""Passes of other packages: found when asked for, checked, and reported; the example of the docs."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

import onnx_igpc
from onnx_igpc.cli import main
from onnx_igpc.compression import plugins
from onnx_igpc.errors import UsageError
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.passes import Pass, PassResult
from onnx_igpc.report.digest import read_digest
from tests.helpers import GraphBuilder, run

EXAMPLE = Path(__file__).parents[2] / "examples" / "pass_plugin"


def install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, version: str, declared: dict[str, str]
) -> None:
    """What pip leaves of a package with these entry points, on the path of this test."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"{key} = {value}" for key, value in declared.items()]
    (info / "entry_points.txt").write_text("\n".join(["[onnx_igpc.passes]", *lines, ""]))
    monkeypatch.syspath_prepend(str(folder))


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The example of examples/pass_plugin as its pyproject.toml declares it; the label in reports."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    declared = project["entry-points"]["onnx_igpc.passes"]
    install(tmp_path / "site", monkeypatch, project["name"], project["version"], declared)
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.delitem(sys.modules, "remove_identity", raising=False)
    return f"remove-identity ({project['name']} {project['version']})"


def model_with_identities() -> onnx.ModelProto:
    """x -> Identity -> 1x1 conv -> Identity -> Dropout -> 3x3 conv -> Identity -> y."""
    builder = GraphBuilder()
    builder.input("x", [1, 32, 5, 5])
    value = builder.conv(builder.add("Identity", ["x"], "copied"), "conv", 32, 32)
    value = builder.add("Identity", [value], "again")
    value = builder.add("Dropout", [value], "dropped")
    value = builder.conv(value, "last", 32, 32, kernel=3, group=32, pads=[1] * 4)
    builder.output(builder.add("Identity", [value], "y"), [1, 32, 5, 5])
    return builder.model()


def compress(path: Path, *options: str) -> Result:
    words = ["compress", str(path), "-o", str(path.with_name("o.onnx")), "--ch", "8", *options]
    return CliRunner().invoke(main, words)


def test_the_example_runs_by_its_name_and_is_in_the_report(tmp_path: Path, example: str) -> None:
    path = tmp_path / "m.onnx"
    model = model_with_identities()
    onnx.save(model, path)
    result = compress(path, "--pass", "remove-identity")
    assert result.exit_code == 0, result.output
    assert f"pass {example}: 5 nodes changed" in result.stdout
    written = onnx.load(path.with_name("o.onnx"))
    kinds = [node.op_type for node in written.graph.node]
    assert kinds.count("Identity") == 1  # the output's name has to stay
    assert "Dropout" not in kinds
    report = read_digest(written)
    assert report is not None
    assert report.options.passes == [example]
    changed = report.passes[example]
    assert changed[:3] == ["copied_node", "again_node", "dropped_node"]
    assert "last_node" in changed
    without = onnx_igpc.compress(model, onnx_igpc.Published(8)).model
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 32, 5, 5)).astype(np.float32)}
    assert np.array_equal(run(written, feeds)["y"], run(without, feeds)["y"])


def test_the_example_leaves_alone_what_it_must(example: str) -> None:
    from remove_identity import RemoveIdentity

    builder = GraphBuilder()
    builder.input("x", [1, 4, 5, 5])
    builder.add("Identity", ["x"], "inner")
    for name, value in (("ratio", np.float32(0.5)), ("training", True), ("yes", True)):
        builder.initializers.append(onnx.numpy_helper.from_array(np.array(value), name))
    builder.add("Dropout", ["x", "ratio", "training"], "trained")
    branch = GraphBuilder()
    branch.add("Identity", ["inner"], "taken")
    branch.outputs.append(onnx.helper.make_tensor_value_info("taken", 1, [1, 4, 5, 5]))
    graph = branch.graph("branch")
    builder.add("If", ["yes"], "y", then_branch=graph, else_branch=graph)
    builder.add("Add", ["y", "trained"], "z")
    builder.output("z", [1, 4, 5, 5])
    model = builder.model()
    before = model.SerializeToString()
    result = RemoveIdentity().run(OpenModel(model))
    assert not result
    assert "inner_node" in result.kept
    assert model.SerializeToString() == before


def test_nothing_is_imported_that_is_not_asked_for(tmp_path: Path, example: str) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model_with_identities(), path)
    assert compress(path).exit_code == 0
    assert "remove_identity" not in sys.modules


def test_an_unknown_name_lists_what_there_is(tmp_path: Path, example: str) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model_with_identities(), path)
    result = compress(path, "--pass", "remove-identities")
    assert result.exit_code == 2
    assert "there is no pass 'remove-identities': there are remove-identity" in result.stderr
    assert "Did you mean 'remove-identity'?" in result.stderr
    assert not path.with_name("o.onnx").exists()


def test_without_any_package_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "available", dict)
    with pytest.raises(UsageError, match="no installed package brings one"):
        plugins.load_plugins(["x"])


BAD = """
from onnx_igpc.passes import Pass, PassResult

class Fails(Pass):
    def run(self, model):
        raise KeyError("weight")

class Nothing(Pass):
    def run(self, model):
        return None

class Doubles(Pass):
    def run(self, model):
        for tensor in model.proto.graph.initializer:
            if tensor.name == "last_w":
                tensor.raw_data = tensor.raw_data[:4] * (len(tensor.raw_data) // 4)
        return PassResult(changed=["last_node"])

class Renames(Pass):
    def run(self, model):
        for node in model.proto.graph.node:
            node.name = node.name + "_new"
        return PassResult(changed=["all"])

def number():
    return 3
"""


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("fails", 2, "the pass fails (bad-passes 0.3) failed: KeyError: 'weight'"),
        ("nothing", 2, "the pass nothing (bad-passes 0.3) returned NoneType"),
        ("number", 2, "is no onnx_igpc.passes.Pass but int"),
        ("missing", 2, "the pass missing (bad-passes 0.3) cannot be loaded: ModuleNotFoundError"),
        ("doubles", 1, "deviates by"),
        ("renames", 1, "which is part of a rewritten site"),
    ],
)
def test_what_a_pass_does_wrong_is_one_line_that_names_it(
    name: str, code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    declared = {each.lower(): f"bad_passes:{each}" for each in ("Fails", "Nothing", "Doubles")}
    declared |= {"renames": "bad_passes:Renames", "number": "bad_passes:number"}
    install(site, monkeypatch, "bad-passes", "0.3", {**declared, "missing": "no_such_module:X"})
    (site / "bad_passes.py").write_text(BAD)
    monkeypatch.delitem(sys.modules, "bad_passes", raising=False)
    path = tmp_path / "m.onnx"
    onnx.save(model_with_identities(), path)
    result = compress(path, "--pass", name)
    assert result.exit_code == code, result.output
    [line] = result.stderr.strip().splitlines()
    assert message in line
    assert f"{name} (bad-passes 0.3)" in line
    assert not path.with_name("o.onnx").exists()


class Nothing(Pass):
    """Looks at the model and leaves it."""

    def __init__(self, seen: list[int]) -> None:
        self.seen = seen

    def run(self, model: OpenModel) -> PassResult:
        self.seen.append(len(model.proto.graph.node))
        return PassResult()


def test_from_python_a_pass_can_be_given_itself() -> None:
    seen: list[int] = []
    model = model_with_identities()
    result = onnx_igpc.compress(
        model, onnx_igpc.Published(8), passes=[Nothing(seen), Nothing(seen)]
    )
    assert seen == [len(result.model.graph.node)] * 2  # behind the rewrite
    assert result.report.passes == {"Nothing": []}
    same = onnx_igpc.compress(model, onnx_igpc.Published(100), passes=[Nothing(seen)])
    assert not same.changed


def test_a_pass_alone_changes_the_model(example: str) -> None:
    result = onnx_igpc.compress(
        model_with_identities(), onnx_igpc.Published(100), passes=["remove-identity"]
    )
    assert result.changed
    assert result.report.passes[example]
