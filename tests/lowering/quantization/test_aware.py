"""Fine-tuning for int8: what is trained is what quantize writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

import onnx_igpc
from onnx_igpc import Quantization, Recipe, Run
from onnx_igpc.cli import main
from onnx_igpc.errors import UsageError
from onnx_igpc.lowering.quantization.aware import int8_model
from onnx_igpc.report.digest import read_digest
from onnx_igpc.report.sections import FinetuneReport
from onnx_igpc.torch_bridge.convert import convert
from onnx_igpc.torch_bridge.training import finetune as low_level
from onnx_igpc.torch_bridge.training.fake_quantization import FakeQuantization
from onnx_igpc.torch_bridge.training.int8_places import find_places
from onnx_igpc.torch_bridge.training.loop import RunInterruptedError
from tests.helpers import GraphBuilder, run
from tests.torch_bridge.training.test_checkpoint import stopping
from tests.torch_bridge.training_cases import arrays_of, classifier, short, smaller, write_data

# Of so few samples none is held out, so that quantize calibrates on all of them.
MINMAX = Quantization(method="minmax")


def images(model: onnx.ModelProto, count: int, seed: int = 0) -> np.ndarray:
    dims = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:]
    return np.random.default_rng(seed).standard_normal((count, *dims)).astype(np.float32)


def both(model: onnx.ModelProto) -> tuple[np.ndarray, np.ndarray, np.ndarray, FakeQuantization]:
    """Outputs of the model, of what quantize makes of it, and in fake int8."""
    name = model.graph.input[0].name
    data, tried = images(model, 24), images(model, 40, seed=1)
    places = find_places(model, int8_model(model), {name: torch.from_numpy(data[:8])})
    fake = FakeQuantization(places)
    module = convert(model, fake.hooks()).eval()
    fake.observe(module, [[torch.from_numpy(data)]])
    with torch.no_grad(), fake.int8():
        simulated = module(torch.from_numpy(tried)).numpy()
    quantized = onnx_igpc.quantize(model, data, quantization=MINMAX).model
    (before,) = run(model, {name: tried}).values()
    (after,) = run(quantized, {name: tried}).values()
    return before, after, simulated, fake


def gated() -> onnx.ModelProto:
    """Swish as exporters write it, a residual, a Gemm, and nothing that has a name."""
    graph = GraphBuilder(seed=5)
    x = graph.input("x", ["n", 3, 6, 6])
    stem = graph.batch_norm(graph.conv(x, "stem", 3, 8), "stem_bn", 8)
    x = graph.add("Mul", [stem, graph.activation(stem, "gate", "Sigmoid")], "swish")
    added = graph.add(
        "Add", [x, graph.conv(x, "inner", 8, 8, kernel=3, pads=[1, 1, 1, 1])], "added"
    )
    flat = graph.add("Flatten", [graph.add("GlobalAveragePool", [added], "pool")], "flat")
    graph.output(graph.add("MatMul", [flat, graph.initializer("w", graph.random(8, 4))], "y"))
    model = graph.model()
    for node in model.graph.node:
        node.name = ""
    return model


@pytest.mark.parametrize(
    "model", [classifier(), smaller(classifier()), gated()], ids=["dense", "rewritten", "gated"]
)
def test_fake_int8_computes_what_the_int8_model_does(model: onnx.ModelProto) -> None:
    before, after, simulated, fake = both(model)
    assert fake.places.unknown == []
    step = (max(before.max(), 0) - min(before.min(), 0)) / 255
    assert np.abs(simulated - after).max() <= 3 * step
    # Rounding moves the outputs by more than what fake int8 is away from int8.
    apart = np.linalg.norm(simulated - after)
    assert apart < 0.5 * np.linalg.norm(before - after)


def test_what_the_fold_does_inside_of_a_site_is_known() -> None:
    places = both(smaller(classifier()))[3].places
    assert any(each.fold is not None for each in places.activations.values())
    assert any(each.factor is not None for each in places.weights.values())


def test_gradients_go_straight_through_and_stop_beyond_the_range() -> None:
    model = classifier()
    *_, fake = both(model)
    module = convert(model, fake.hooks()).eval()
    inputs = torch.from_numpy(images(model, 8, seed=2)).requires_grad_()
    with fake.int8():
        module(inputs).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in module.parameters())
    low, high = fake.ranges["x"]
    with fake.int8():
        beyond = (inputs.detach() * 0 + 2 * max(high, -low)).requires_grad_()
        module(beyond).sum().backward()
    assert beyond.grad is not None
    assert not beyond.grad.any()


def section(result: onnx_igpc.CompressResult | object) -> FinetuneReport:
    found = result.report.finetune  # type: ignore[attr-defined]
    assert isinstance(found, FinetuneReport)
    return found


def test_an_original_is_trained_for_int8(tmp_path: Path) -> None:
    """It has no rewritten site, and without rounding nothing that could be learned."""
    model = classifier()
    data = write_data(tmp_path / "d.npz", model, 80, labels=False)
    recipe = short(precision="int8", epochs=4, lr=2e-3, batch_norm="train")
    result = onnx_igpc.finetune(
        model, data, teacher=model, recipe=recipe, output=tmp_path / "o.onnx"
    )
    said = section(result)
    assert said.int8 is not None
    assert (said.int8.from_epoch, said.int8.unknown) == (1, [])
    assert said.judged is not None
    assert said.judged.before > 0
    assert result.gained
    assert any("in fake int8" in line for line in result.summary())
    # In float it may well be further from the original than before, which is not what it is for.
    assert result.report.warnings == []
    written, before = onnx.load(tmp_path / "o.onnx"), arrays_of(model)
    assert [node.op_type for node in written.graph.node] == [n.op_type for n in model.graph.node]
    after = arrays_of(written)
    statistics = [name for name in before if name.endswith(("mean", "var"))]
    assert statistics
    assert all((before[name] == after[name]).all() for name in statistics)
    assert any((before[name] != after[name]).any() for name in before)
    quantized = onnx_igpc.quantize(tmp_path / "o.onnx", images(model, 30)).report
    assert quantized.quantization is not None
    assert quantized.quantization.method == "minmax"
    assert any("trained for int8" in note for note in quantized.notes)


def test_what_was_judged_is_what_quantize_brings(tmp_path: Path) -> None:
    teacher = classifier()
    data = write_data(tmp_path / "d.npz", teacher, 24, labels=False)
    val = write_data(tmp_path / "v.npz", teacher, 200, labels=False, seed=1)
    recipe = short(precision="int8", epochs=2)
    result = onnx_igpc.finetune(smaller(teacher), data, teacher=teacher, val=val, recipe=recipe)
    said = section(result)
    assert said.judged is not None
    best = said.epochs[said.judged.epoch - 1] if said.judged.epoch else said.val_before
    assert best is not None
    told = best.val_agreement if said.judged.epoch else best.agreement
    with np.load(data) as arrays:
        quantized = onnx_igpc.quantize(result.model, arrays["x"], quantization=MINMAX)
    found = onnx_igpc.verify(teacher, quantized.model, val).classifier
    assert found is not None
    assert found.agreement == pytest.approx(told, abs=0.02)
    digest = read_digest(result.model)
    assert digest is not None
    assert digest.finetune is not None
    assert digest.finetune.int8 == said.int8


def test_what_training_leaves_out_is_in_nobodys_way(tmp_path: Path) -> None:
    """An output of a size that depends on the data, made by an operator that the bridge has not."""
    model = classifier()
    model.graph.node.append(onnx.helper.make_node("NonZero", ["scores"], ["found"]))
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("found", onnx.TensorProto.INT64, [2, None])
    )
    data = write_data(tmp_path / "d.npz", classifier(), 48, labels=False)
    recipe = short(precision="int8", epochs=1)
    said = section(onnx_igpc.finetune(model, data, teacher=model, recipe=recipe))
    assert said.int8 is not None
    assert said.int8.unknown == []


def test_only_the_last_part_is_rounded() -> None:
    assert Recipe(precision="int8", epochs=10, int8_share=0.25).int8_share == 0.25
    with pytest.raises(UsageError, match="int8_share"):
        Recipe(precision="int8", int8_share=0)


def test_a_part_in_int8_leaves_statistics_to_the_rest(tmp_path: Path) -> None:
    model = classifier()
    data = write_data(tmp_path / "d.npz", model, 64, labels=False)
    recipe = short(precision="int8", epochs=4, int8_share=0.5, batch_norm="train", seed=1)
    result = onnx_igpc.finetune(smaller(model), data, teacher=model, recipe=recipe)
    said = section(result)
    assert said.int8 is not None
    assert said.int8.from_epoch == 3
    assert said.recipe["precision"] == "int8"


def test_what_cannot_be_quantized_is_refused(tmp_path: Path) -> None:
    half = classifier(dtype=np.float16)
    data = write_data(tmp_path / "d.npz", classifier(), 16, labels=False)
    recipe = short(precision="int8")
    with pytest.raises(UsageError, match="float16"):
        onnx_igpc.finetune(half, data, teacher=half, recipe=recipe)
    with pytest.raises(UsageError, match=r"onnx_igpc\.finetune"):
        low_level.finetune(classifier(), data, teacher=classifier(), recipe=recipe)


def test_a_resumed_run_is_the_same_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of an epoch, whose ranges are of weights that are gone."""
    monkeypatch.setattr("onnx_igpc.torch_bridge.training.loop._REPORT_SECONDS", 0.0)
    teacher = classifier()
    small = smaller(teacher)
    data = write_data(tmp_path / "d.npz", teacher, 64, labels=False)

    def trained(name: str, **more: Any) -> Path:
        onnx_igpc.finetune(
            small,
            data,
            teacher=teacher,
            val=data,
            recipe=short(precision="int8", epochs=3, int8_share=0.6),
            output=tmp_path / name,
            **more,
        )
        return tmp_path / name

    whole = trained("whole.onnx")
    with pytest.raises(RunInterruptedError):
        trained("parts.onnx", progress=stopping((2, 2)))
    parts = trained("parts.onnx", run=Run(resume=True))
    assert arrays_of(onnx.load(parts)).keys() == arrays_of(onnx.load(whole)).keys()
    for name, values in arrays_of(onnx.load(whole)).items():
        assert (arrays_of(onnx.load(parts))[name] == values).all(), name


def test_the_command_says_that_it_judged_in_fake_int8(tmp_path: Path) -> None:
    model = classifier()
    onnx.save(model, tmp_path / "m.onnx")
    data = write_data(tmp_path / "d.npz", model, 48, labels=False)
    command = [
        "finetune",
        f"{tmp_path}/m.onnx",
        "--teacher",
        f"{tmp_path}/m.onnx",
        "--data",
        f"{data}",
    ]
    command += ["-o", f"{tmp_path}/o.onnx", "--precision", "int8", "--epochs", "1"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert "samples, in fake int8: " in done.output
    assert "agreement with the original, in float: " in done.output
