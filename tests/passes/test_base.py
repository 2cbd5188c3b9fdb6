"""What every pass is, and the order of a pipeline."""

from __future__ import annotations

from onnx_igpc.graph.model import OpenModel
from onnx_igpc.passes import FoldBatchNorm, MergeGathers, Pass, PassResult, Pipeline
from tests.helpers import pointwise_model


class Recording(Pass):
    def __init__(self, seen: list[str], label: str) -> None:
        self.seen = seen
        self.label = label

    @property
    def name(self) -> str:
        return self.label

    def run(self, model: OpenModel) -> PassResult:
        self.seen.append(self.label)
        return PassResult(changed=[self.label] if self.label == "second" else [])


def test_a_pipeline_runs_its_passes_in_order() -> None:
    seen: list[str] = []
    pipeline = Pipeline([Recording(seen, "first"), Recording(seen, "second")])
    results = pipeline.run(OpenModel(pointwise_model()))
    assert seen == list(results) == ["first", "second"]
    assert not results["first"]
    assert results["second"]


def test_passes_go_by_the_names_of_their_classes() -> None:
    model = OpenModel(pointwise_model(batch_norm=True))
    results = Pipeline([FoldBatchNorm(), MergeGathers()]).run(model)
    assert results["FoldBatchNorm"].changed == ["bn_node"]
    assert not results["MergeGathers"]
