"""What a model and its data are, as far as a recipe depends on it: looked at before the networks are built."""

from __future__ import annotations

import glob

import torch
from onnx import ModelProto

from onnx_igpc.report.tree import RewriteReport
from onnx_igpc.torch_bridge import to_torch
from onnx_igpc.torch_bridge.running import as_list, in_words
from onnx_igpc.torch_bridge.training.comparable import Survey
from onnx_igpc.torch_bridge.training.data import TrainingData
from onnx_igpc.torch_bridge.training.loader import TensorBatch
from onnx_igpc.torch_bridge.training.losses import find_scores
from onnx_igpc.torch_bridge.training.pairing import Pair, pair_feature, with_outputs
from onnx_igpc.torch_bridge.training.penultimate import find_last_layer
from onnx_igpc.torch_bridge.training.recipe import Form, Recipe


def find_form(
    recipe: Recipe,
    data: TrainingData,
    taught: bool,
) -> Form:
    """What the data and the loss alone say."""
    preprocessing = data.preprocessing
    return Form(
        images=preprocessing is not None,
        sized=preprocessing is not None and preprocessing.output_size() is not None,
        labels=recipe.loss in ("ce", "kd+ce") or (recipe.loss is None and not taught),
    )


def find_feature(
    models: tuple[ModelProto, ModelProto],
    surveys: tuple[Survey, Survey],
    digest: RewriteReport | None,
    names: list[str],
    scores: str | None,
    probe: TensorBatch,
) -> tuple[Pair | None, tuple[str, ...]]:
    """The penultimate feature of student and teacher, and which weights of the student lie behind it, as globs.

    names: of the outputs that are compared. scores: which of them holds the class scores, None to find it.
    The layer is found in the teacher: in the student it may be rewritten.
    """
    student, teacher = models
    if not names:
        return None, ()
    plain = with_outputs(student, [], names)
    module = to_torch(plain).eval()
    inputs = list(probe.inputs)
    with torch.no_grad(), in_words(inputs):
        found = find_scores(plain, as_list(module(*inputs)), probe.count, scores)
    layer = find_last_layer(teacher, found.name) if found is not None else None
    if layer is None:
        return None, ()
    feature = pair_feature(layer.feature, *surveys, digest, layer.spatial)
    if feature is None or feature.tensor in names:
        return None, ()
    trained = {module.bindings.get(path, path) for path, _ in module.named_parameters()}
    return feature, tuple(glob.escape(name) for name in sorted(layer.weights & trained))
