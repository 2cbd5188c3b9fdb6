"""compress on what compress wrote: nothing is done twice, and the report goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from onnx_igpc import compress, inspect
from onnx_igpc.compression.summary import NOTHING_WARNING
from onnx_igpc.graph.cost import count
from onnx_igpc.planning.options import Published
from onnx_igpc.report.digest import read_digest
from onnx_igpc.sites.find import SiteFilter
from tests.compression.test_pipeline import network, saved
from tests.helpers import options_of, pointwise_model, run
from tests.untouched import assert_untouched

OPTIONS: list[dict[str, Any]] = [
    {},
    {"scheme": "v1"},
    {"form": "paper"},
    {"form": "paper", "scheme": "v1", "fold_batch_norm": True},
    {"fold_batch_norm": True},
    {"init": "random", "seed": 3},
    {"include": ["b_node"]},
    {"include": ["*"], "exclude": ["b_node"]},
    {"include_heads": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("external", [False, True])
def test_equal_options_change_nothing(
    tmp_path: Path, options: dict[str, Any], external: bool
) -> None:
    path = saved(network(), tmp_path, external=external)
    once, twice = tmp_path / "once", tmp_path / "twice"
    for folder in (once, twice):
        folder.mkdir()
    given = options_of(**{"channels_per_group": 8, **options})
    compress(path, **given).save(once / "m.onnx")
    again = compress(once / "m.onnx", **given)
    again.save(twice / "m.onnx")
    for file in once.iterdir():
        assert file.read_bytes() == (twice / file.name).read_bytes()
    assert again.report.warnings == [NOTHING_WARNING]
    assert len(list(once.iterdir())) == len(list(twice.iterdir()))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_other_options_leave_rewritten_sites_alone(options: dict[str, Any]) -> None:
    first = compress(network(), Published(8), sites=SiteFilter(exclude=("c_node",)))
    once = first.model
    second = compress(once, **options_of(**{"channels_per_group": 4, **options}))
    mine = {name for site in first.report.rewritten for name in site.nodes}
    before = {node.name: node for node in once.graph.node if node.name in mine}
    after = {node.name: node for node in second.model.graph.node if node.name in mine}
    assert after == before
    assert_untouched(once, second.model, second.report)
    names = [site.name for site in second.report.sites]
    assert sorted(names) == ["a_node", "b_node", "c_node", "head_node"], "K and L are no sites"
    assert second.report.sites[:2] == first.report.rewritten
    assert run(second.model)["scores"].shape == (1, 10)


def test_reports_are_merged() -> None:
    first = compress(network(), Published(8), sites=SiteFilter(exclude=("c_node",)))
    second = compress(first.model, Published(4))
    sites = {site.name: site for site in second.report.sites}
    assert (sites["a_node"].channels_per_group, sites["c_node"].channels_per_group) == (8, 4)
    assert any("2 sites were rewritten by an earlier run" in note for note in second.report.notes)
    totals = second.report.totals
    assert totals.parameters.after == count(second.model).parameters
    assert totals.pointwise_parameters.before == 20 * 40 + 40 * 40 + 40 + 40 * 20 + 20 * 10 + 10
    convolutions = [n.output[0] for n in second.model.graph.node if n.op_type == "Conv"]
    nodes = count(second.model).nodes
    assert totals.pointwise_parameters.after == sum(nodes[name].weights for name in convolutions)
    digest = read_digest(second.model)
    assert digest is not None
    assert digest.sites == second.report.sites


def test_folding_later_leaves_what_belongs_to_a_site() -> None:
    """In the paper's form the BatchNorms after K and L are the site's."""
    once = compress(
        network(), Published(8, form="paper"), sites=SiteFilter(exclude=("c_node",))
    ).model
    second = compress(
        once, Published(8), sites=SiteFilter(exclude=("c_node",)), fold_batch_norm=True
    )
    assert second.report.folded == ["c_bn_node"]
    left = [node.name for node in second.model.graph.node if node.op_type == "BatchNormalization"]
    assert len(left) == 3, "K without L, and K and L"
    assert all("/igpc/" in name for name in left)


def test_inspect_of_a_compressed_model() -> None:
    once = compress(network(), Published(8))
    plan = inspect(once.model, Published(8))
    assert plan.sites == once.report.sites
    assert plan.warnings == [NOTHING_WARNING]


def test_the_digest_tells_other_tools_apart() -> None:
    """A grouped convolution of somebody else is listed and kept, not taken for ours."""
    model = pointwise_model(40, 24)
    node = model.graph.node[0]
    node.attribute.append(onnx.helper.make_attribute("group", 2))
    kernel = onnx.numpy_helper.to_array(model.graph.initializer[0])[:, :20].copy()
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(kernel, "conv_w"))
    report = compress(model, Published(8)).report
    assert [site.reason for site in report.sites] == ["already a grouped convolution (2 groups)"]
