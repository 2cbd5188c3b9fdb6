"""What training for int8 adds to a run: where values are rounded, and on which samples ranges are found."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from onnx import ModelProto

from onnx_igpc.errors import UsageError, with_flags
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.report.training import Int8Report
from onnx_igpc.torch_bridge.running import in_words, placed
from onnx_igpc.torch_bridge.training.fake_quantization import FakeQuantization
from onnx_igpc.torch_bridge.training.held_out import Part, PlainBatches
from onnx_igpc.torch_bridge.training.int8_places import Places, Quantizer, find_places
from onnx_igpc.torch_bridge.training.loader import BatchLoader, TensorBatch
from onnx_igpc.torch_bridge.training.networks import Networks
from onnx_igpc.torch_bridge.training.recipe import INT8, Recipe

# The range of a tensor hardly grows behind so many samples, and is looked for after every epoch.
_OBSERVED = 128


@dataclass(frozen=True)
class Int8Recipe:
    """A recipe with ``precision`` int8, and what quantizes the model."""

    recipe: Recipe
    quantizer: Quantizer


def taken_apart(recipe: Recipe | Int8Recipe | None) -> tuple[Recipe, Quantizer | None]:
    """The recipe, and what quantizes the model where it is trained for int8.

    Raises:
        UsageError: nothing does.
    """
    if isinstance(recipe, Int8Recipe):
        return recipe.recipe, recipe.quantizer
    recipe = recipe or Recipe()
    if recipe.precision == INT8:
        raise UsageError("`precision` int8 is for onnx_igpc.finetune, which knows the quantizer")
    return recipe, None


def fake_quantization(
    model: ModelProto, quantizer: Quantizer, probe: TensorBatch
) -> FakeQuantization:
    """What rounds the model's values as the quantizer will. ``probe``: some samples.

    Raises:
        UsageError, ModelError: the model cannot be quantized.
    """
    names = [spec.name for spec in model_inputs(model)]
    tensors = [placed(tensor, torch.device("cpu")) for tensor in probe.inputs]
    with in_words(tensors):
        places = find_places(model, quantizer(model), dict(zip(names, tensors, strict=True)))
    if not places.weights:
        raise UsageError("`precision` int8: nothing in the model is quantized: leave it out")
    return FakeQuantization(places)


def described(places: Places, recipe: Recipe) -> Int8Report:
    """What the report says of it."""
    kinds = {each.levels for each in places.activations.values()}
    weights = {each.levels for each in places.weights.values()}
    return Int8Report(
        activations=len(places.activations),
        weights=len(places.weights),
        levels=[[each.lowest, each.highest] for each in sorted(kinds | weights, key=str)],
        unknown=places.unknown,
        from_epoch=first_epoch(recipe) + 1,
        observed=_OBSERVED,
    )


def doubts(places: Places) -> list[str]:
    """What a person should know of it."""
    if not places.unknown:
        return []
    listed = ", ".join(places.unknown[:3])
    return [
        with_flags(
            f"`precision` int8: {len(places.unknown)} tensors of the quantized model are not found in this one, and "
            f"not rounded in training: {listed}"
        )
    ]


def first_epoch(recipe: Recipe) -> int:
    """The first epoch, counted from 0, that is trained in fake int8; none without ``precision`` int8."""
    assert recipe.epochs is not None
    if recipe.precision != INT8:
        return recipe.epochs
    return recipe.epochs - math.ceil(recipe.int8_share * recipe.epochs)


def observe(networks: Networks, data: Part, loader: BatchLoader) -> dict[str, tuple[float, float]]:
    """The ranges of the student's tensors as its weights are now, over some samples of the data."""
    assert networks.int8 is not None
    student = networks.student.eval()
    batches = loader.plain(iter(PlainBatches(data, loader, {}, _OBSERVED).places()))
    device = networks.world.device
    inputs = ([placed(tensor, device) for tensor in batch.inputs] for batch in batches)
    return networks.int8.observe(student, inputs)
