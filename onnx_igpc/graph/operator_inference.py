"""The outputs of one operator, as far as they are known without running the model.

Types come from ONNX's own inference for a single node. What is computed from constants and shapes
alone, and is small, is evaluated with ONNX's reference implementation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TypeProto, defs, helper, numpy_helper, shape_inference

from onnx_igpc.graph.shape_values import MAX_KNOWN_ELEMENTS, Value, tensor_type
from onnx_igpc.graph.traversal import copied

# What an operator may raise for inputs or attributes that it cannot take.
EVALUATION_ERRORS = (
    onnx.checker.ValidationError,
    RuntimeError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
)
# Operators that make much of little; they are evaluated where inference tells how much.
_EXPANDING = frozenset(
    {
        "BlackmanWindow",
        "CenterCropPad",
        "Col2Im",
        "ConstantOfShape",
        "Expand",
        "EyeLike",
        "HammingWindow",
        "HannWindow",
        "MaxUnpool",
        "MelWeightMatrix",
        "OneHot",
        "Pad",
        "Range",
        "Resize",
        "Tile",
        "Upsample",
    }
)
_NOT_EVALUATED = frozenset(
    {
        "RandomNormal",
        "RandomUniform",
        "RandomNormalLike",
        "RandomUniformLike",
        "Bernoulli",
        "Multinomial",
    }
)


class OperatorInference:
    """Outputs of single operators under the given operator sets."""

    def __init__(self, imports: Sequence[onnx.OperatorSetIdProto], ir_version: int) -> None:
        self._imports = list(imports)
        self._ir_version = ir_version

    def infer(self, node: onnx.NodeProto, inputs: Sequence[Value | None]) -> list[Value]:
        """The outputs of an operator without a body."""
        constant = all(value is None or value.constant for value in inputs)
        constant = constant and node.op_type not in _NOT_EVALUATED
        shape = inputs[0].shape if inputs and inputs[0] else None
        if node.op_type in ("Shape", "Size") and shape is not None:
            return self._evaluate(node, [_zeros_like_shape(shape)])
        types = self._types(node, inputs)
        outputs = [Value(known, constant) for known in types]
        small = all((out.elements or 0) <= MAX_KNOWN_ELEMENTS for out in outputs) and outputs
        if node.op_type in _EXPANDING and any(out.elements is None for out in outputs):
            return outputs
        if constant and small and all(value is None or value.tensor for value in inputs):
            try:
                arrays = [
                    numpy_helper.to_array(v.tensor) if v and v.tensor else None for v in inputs
                ]
            except EVALUATION_ERRORS:
                return outputs
            outputs = self._evaluate(node, arrays) or outputs
        return outputs

    def _types(
        self, node: onnx.NodeProto, inputs: Sequence[Value | None]
    ) -> list[TypeProto | None]:
        types, data = {}, {}
        for name, value in zip(node.input, inputs, strict=True):
            if value is None:
                continue
            if value.type is None:
                return []
            types[name] = value.type
            if value.tensor is not None:
                data[name] = value.tensor
        try:
            schema = defs.get_schema(node.op_type, self._version(node.domain), node.domain)
            inferred = shape_inference.infer_node_outputs(
                schema, node, types, data, None, self._imports, self._ir_version
            )
        except (defs.SchemaError, shape_inference.InferenceError, *EVALUATION_ERRORS):
            return []
        return [inferred.get(name) for name in node.output]

    def _evaluate(self, node: onnx.NodeProto, arrays: Sequence[np.ndarray | None]) -> list[Value]:
        """The outputs of an operator on known inputs; none if it cannot be evaluated."""
        names = [f"i{index}" if array is not None else "" for index, array in enumerate(arrays)]
        alone = copied(node)
        del alone.input[:]
        alone.input.extend(names)
        inputs = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in zip(names, arrays, strict=True)
            if array is not None
        ]
        from onnx.reference import ReferenceEvaluator  # slow to import, and seldom needed

        results = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = helper.make_graph([alone], "constant", inputs, results)
        try:
            single = helper.make_model(graph, opset_imports=self._imports)
            feeds = {name: array for name, array in zip(names, arrays, strict=True) if name}
            outputs = ReferenceEvaluator(single).run(None, feeds)
            stored = iter([numpy_helper.from_array(np.asarray(output)) for output in outputs])
        except EVALUATION_ERRORS:
            return []
        values = []
        for name in node.output:
            tensor = next(stored) if name else None
            known = tensor_type(tensor.data_type, tensor.dims) if tensor is not None else None
            values.append(Value(known, True, None, tensor))
        return values

    def _version(self, domain: str) -> int:
        aliases = ("", "ai.onnx") if domain in ("", "ai.onnx") else (domain,)
        return next((int(e.version) for e in self._imports if e.domain in aliases), 1)


def _zeros_like_shape(shape: Sequence[int]) -> np.ndarray:
    """An array of that shape which takes no memory."""
    return np.broadcast_to(np.zeros((), np.float32), shape)
