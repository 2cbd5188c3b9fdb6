"""Fine-tuning, for int8 too: what is trained is rounded where :func:`~onnx_igpc.quantize` will round it."""

from __future__ import annotations

import onnx

from onnx_igpc.data.dataset import Dataset
from onnx_igpc.graph.model import OpenModel, PathLike
from onnx_igpc.lowering.quantization.float_model import float_model, refuse_unsuitable
from onnx_igpc.lowering.quantization.raced import quantized_at_random
from onnx_igpc.runtime.setting import Setting
from onnx_igpc.torch_bridge.training.finetune import finetune as finetune_model
from onnx_igpc.torch_bridge.training.int8_places import Int8Model
from onnx_igpc.torch_bridge.training.int8_training import Int8Recipe
from onnx_igpc.torch_bridge.training.log import Reporter
from onnx_igpc.torch_bridge.training.options import Run
from onnx_igpc.torch_bridge.training.recipe import INT8, Recipe
from onnx_igpc.torch_bridge.training.result import FinetuneResult


def finetune(
    compressed: onnx.ModelProto | PathLike,
    data: PathLike | Dataset,
    *,
    teacher: onnx.ModelProto | PathLike | None = None,
    val: PathLike | Dataset | None = None,
    recipe: Recipe | None = None,
    output: PathLike | None = None,
    fold_batch_norm: bool = False,
    run: Run | None = None,
    progress: Reporter | None = None,
) -> FinetuneResult:
    """Train a model against the original as teacher, or with labels, and write it into the same graph.

    What comes out has the weights of the epoch whose loss on data that is not trained on is least, or those
    that were given, where no epoch is better than they are. With ``Recipe.precision`` int8 the training, and
    that loss, are in fake int8, rounded where ``quantize`` will round by default; what is written is float,
    and ``quantize`` comes after.

    Args:
        compressed: A ModelProto, which is not changed, or the path of a model file; usually what
            ``compress`` wrote, whose digest names the rewritten sites. For int8 it may be the original.
        data: Training data: a path, or a :class:`~onnx_igpc.Dataset` of all its samples. Without
            preprocessing of its own, images are preprocessed as the model's digest says.
        teacher: The model that was compressed. With it, no labels are needed.
        val: Data to judge the model by, before the first epoch and after each; it is not trained on. A
            path is read as ``data`` is. None holds out a part of ``data`` (``Recipe.hold_out``).
        recipe: How it is trained.
        output: The model file to write. Beside it lie the log and, until it is written, a checkpoint.
            None writes nothing.
        fold_batch_norm: Fold BatchNormalization into the convolutions of the written model.
        run: Device and worker processes, whether an earlier run is resumed, and where the log goes.
        progress: Called while the run goes on, in the process that leads.

    Returns:
        The trained model. It has a digest that tells the run if ``compressed`` has a digest, or it was trained
        for int8.

    Raises:
        UsageError: options that cannot be used as given or do not go together.
        ModelError: a model that cannot be read, was lowered for a runtime, or does not fit its teacher.
        DataError: data that is missing, does not fit the model, or lacks labels that are needed.
        CheckFailedError: the loss became NaN or infinite, or the written model does not compute what
            the trained module does.
        RunInterruptedError: SIGINT or SIGTERM came; a checkpoint was written.
        MissingExtraError: a package is not installed.
    """
    for_int8 = recipe is not None and recipe.precision == INT8
    return finetune_model(
        compressed,
        data,
        teacher=teacher,
        val=val,
        recipe=Int8Recipe(recipe, int8_model) if recipe is not None and for_int8 else recipe,
        output=output,
        fold_batch_norm=fold_batch_norm,
        run=run,
        progress=progress,
    )


def int8_model(model: onnx.ModelProto) -> Int8Model:
    """The model as :func:`~onnx_igpc.quantize` would prepare and quantize it by default; ranges mean nothing.

    Raises:
        UsageError: it is quantized, or in float16.
        ModelError: it cannot be quantized.
    """
    opened = OpenModel(model)
    refuse_unsuitable(opened)
    prepared = float_model(opened).model
    quantized = quantized_at_random(prepared, Setting().fitted(prepared.proto))
    return Int8Model(prepared.proto, quantized.proto)
