"""Checks of a model file: valid before, valid after, and with the same inputs and outputs."""

from __future__ import annotations

import onnx

from onnx_igpc.errors import CheckFailedError, ModelError, first_line
from onnx_igpc.graph.model import OpenModel, PathLike, open_model

_INVALID = (
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    ValueError,
    RuntimeError,
)


# The operators of a site are the same in later versions, which onnxruntime may not load yet.
OPSET_CHECKED = 21


IR_CHECKED = 10


def check_original(model: OpenModel) -> None:
    """Refuse a model that is not valid ONNX before anything is done to it.

    Raises:
        ModelError: onnx.checker does not accept the model; the message quotes why.
    """
    try:
        onnx.checker.check_model(model.without_data())
    except _INVALID as error:
        advice = _shapeless(model.proto)
        raise ModelError(f"{model.name} is not valid ONNX: {first_line(error)}{advice}") from error


def _shapeless(model: onnx.ModelProto) -> str:
    """What to do about inputs without even a rank, which the checker refuses without their names."""
    names = [
        value.name
        for value in model.graph.input
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape")
    ]
    if not names:
        return ""
    return f" (input {', '.join(names)}: export the model with shapes; sizes may be dynamic)"


def load_checked(path: PathLike) -> onnx.ModelProto:
    """Read a model with all its data into memory, and refuse it as :func:`check_original` does.

    Raises:
        ModelError: as :func:`~onnx_igpc.graph.model.load_model`, or the model is not valid ONNX.
    """
    opened = open_model(path)
    check_original(opened)
    return opened.materialized() if opened.has_external_data else opened.proto


def shape_doubt(model: OpenModel) -> str | None:
    """What shape inference objects to in a model that is valid otherwise; ``None`` if nothing.

    Runtimes load such models, where a declared shape is wrong, say; they are not ours to refuse.
    """
    try:
        onnx.checker.check_model(model.without_data(), full_check=True)
    except _INVALID as error:
        return first_line(error)
    return None


def check_graph(
    original: onnx.ModelProto, model: OpenModel, doubt: str | None = None
) -> dict[str, str]:
    """Check that the written graph is valid and its interface unchanged; says so in words.

    ``original`` is the model before the rewrite; only its inputs and outputs are read. ``doubt`` is
    its :func:`shape_doubt`: where there is one, the written graph's shapes cannot be checked.

    Raises:
        CheckFailedError: it is not. That is a defect of this tool, never of the user's model.
    """
    return {
        "onnx.checker": _check_valid(model, doubt),
        "interface": _check_interface(original, model),
    }


def _check_valid(model: OpenModel, doubt: str | None) -> str:
    try:
        onnx.checker.check_model(model.without_data(), full_check=doubt is None)
    except _INVALID as error:
        raise CheckFailedError(
            f"the rewritten graph is not valid ONNX ({first_line(error)}): please report this"
        ) from error
    return "passed" if doubt is None else f"passed without shapes: the original has {doubt}"


def _check_interface(original: onnx.ModelProto, model: OpenModel) -> str:
    weights = {tensor.name for tensor in original.graph.initializer}
    for kind in ("input", "output"):
        before = [entry for entry in getattr(original.graph, kind) if entry.name not in weights]
        after = [entry for entry in getattr(model.proto.graph, kind) if entry.name not in weights]
        if before != after:
            raise CheckFailedError(f"the rewrite changed the graph's {kind}s: please report this")
    return "inputs and outputs unchanged"
