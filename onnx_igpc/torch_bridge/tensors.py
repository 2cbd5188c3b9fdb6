"""ONNX tensors as PyTorch tensors, and trained values back into ONNX tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, numpy_helper

from onnx_igpc.errors import ModelError

#: The PyTorch type that values of an ONNX type are computed in. Half precision is computed in
#: float32; types that PyTorch barely supports go to the next signed type that holds them.
COMPUTE_TYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float32,
    TensorProto.BFLOAT16: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.BOOL: torch.bool,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT16: torch.int16,
    TensorProto.UINT16: torch.int32,
    TensorProto.INT32: torch.int32,
    TensorProto.UINT32: torch.int64,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT64: torch.int64,
}

HALF_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_WRITABLE = (TensorProto.FLOAT, TensorProto.DOUBLE, *HALF_TYPES)


def has_half(model: ModelProto) -> bool:
    """Whether a model holds or takes values in half precision."""
    typed = [tensor.data_type for tensor in model.graph.initializer]
    typed += [value.type.tensor_type.elem_type for value in model.graph.input]
    return any(kind in HALF_TYPES for kind in typed)


def compute_type(onnx_type: int, where: str) -> torch.dtype:
    """The PyTorch type for an ONNX element type; ModelError names ``where`` if there is none."""
    if onnx_type not in COMPUTE_TYPES:
        name = TensorProto.DataType.Name(onnx_type)
        raise ModelError(f"{where} has element type {name}, which the PyTorch bridge cannot hold")
    return COMPUTE_TYPES[onnx_type]


def to_tensor(proto: TensorProto) -> torch.Tensor:
    """A copy of an ONNX tensor on the CPU, in the type it is computed in."""
    where = f"tensor {proto.name!r}"
    dtype = compute_type(proto.data_type, where)
    if proto.data_location == TensorProto.EXTERNAL and not proto.HasField("raw_data"):
        raise ModelError(f"{where} is kept in an external file that was not loaded")
    try:
        array = numpy_helper.to_array(proto)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{where} cannot be read: {error}") from error
    return from_array(array, dtype)


def from_array(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """A numpy array (ml_dtypes included) as a CPU tensor of the given type."""
    numpy_type = torch.empty(0, dtype=dtype).numpy().dtype
    return torch.from_numpy(np.array(array, dtype=numpy_type, order="C"))


def store(proto: TensorProto, value: torch.Tensor, name: str = "") -> bool:
    """Write ``value`` into an ONNX float tensor, keeping its type and encoding.

    Nothing is touched if the tensor already holds these values. Returns whether it was rewritten. name: what
    a message calls the tensor, if it is not its own name.

    Raises:
        ModelError: Shape or type do not fit, or a value is not finite that was finite.
    """
    if proto.data_type not in _WRITABLE or list(value.shape) != list(proto.dims):
        raise ModelError(
            f"tensor {proto.name!r} of shape {list(proto.dims)} cannot take "
            f"trained values of shape {list(value.shape)}: the module is of another model"
        )
    old = numpy_helper.to_array(proto)
    with np.errstate(over="ignore"):  # what becomes infinite in half precision is refused below
        new = value.detach().cpu().contiguous().numpy().astype(old.dtype)
    _refuse_not_finite(name or proto.name, old, new)
    if old.tobytes() == new.tobytes():
        return False
    if proto.HasField("raw_data") or not old.size:
        proto.raw_data = new.astype(new.dtype.newbyteorder("<")).tobytes()
    elif proto.data_type == TensorProto.FLOAT:
        _replace(proto.float_data, new.ravel().tolist())
    elif proto.data_type == TensorProto.DOUBLE:
        _replace(proto.double_data, new.ravel().tolist())
    else:
        _replace(proto.int32_data, new.view(np.uint16).ravel().tolist())
    return True


def _refuse_not_finite(name: str, old: np.ndarray, new: np.ndarray) -> None:
    """Raise ModelError where a value is NaN or infinite, unless the model has it so."""
    broken = ~np.isfinite(new.astype(np.float64))
    if not broken.any() or not (broken & np.isfinite(old.astype(np.float64))).any():
        return
    raise ModelError(
        f"the weights for tensor {name!r} hold {int(broken.sum())} values that are NaN or infinite in "
        f"{old.dtype}: nothing was written"
    )


def constant_value(node: onnx.NodeProto) -> torch.Tensor:
    """The tensor that a Constant node holds, whatever the attribute it holds it in."""
    for attribute in node.attribute:
        match attribute.name:
            case "value":
                return to_tensor(attribute.t)
            case "value_float":
                return torch.tensor(attribute.f, dtype=torch.float32)
            case "value_floats":
                return torch.tensor(list(attribute.floats), dtype=torch.float32)
            case "value_int":
                return torch.tensor(attribute.i, dtype=torch.int64)
            case "value_ints":
                return torch.tensor(list(attribute.ints), dtype=torch.int64)
    raise ModelError(
        f"Constant node {node.name or node.output[0]!r} holds no dense number: "
        "strings and sparse values are not supported by the PyTorch bridge"
    )


def store_constant(node: onnx.NodeProto, value: torch.Tensor) -> bool:
    """:func:`store` for a Constant node."""
    for attribute in node.attribute:
        if attribute.name == "value":
            return store(attribute.t, value, node.output[0])
        if attribute.name == "value_floats":
            old = list(attribute.floats)
            _refuse_not_finite(node.output[0], np.array(old), value.detach().cpu().numpy())
            _replace(attribute.floats, value.detach().cpu().tolist())
            return old != list(attribute.floats)
        if attribute.name == "value_float":
            old_value = float(attribute.f)
            _refuse_not_finite(node.output[0], np.array(old_value), value.detach().cpu().numpy())
            attribute.f = float(value.detach())
            return old_value != float(attribute.f)
    raise ModelError(f"Constant node {node.output[0]!r} holds no float tensor any more")


def _replace(field: object, values: Sequence[float]) -> None:
    field[:] = values  # type: ignore[index]
