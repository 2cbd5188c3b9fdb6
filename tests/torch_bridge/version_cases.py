"""One-node models for every version of every operator, also those that ship no node tests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import onnx_igpc.torch_bridge.operators  # noqa: F401
from onnx_igpc.torch_bridge.registry import find_operator

Array = np.ndarray


@dataclass
class Case:
    """Inputs and attributes of one node.

    Attributes:
        inputs: Arrays fed at run time.
        constants: Further inputs, kept as initializers.
        attributes: Attributes of the node.
        outputs: Number of outputs that are used and compared.
    """

    inputs: list[Array]
    constants: list[Array | None] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1

    def model(self, op_type: str, version: int) -> onnx.ModelProto:
        """The model; ``version`` is the opset."""
        names = [f"x{i}" for i in range(len(self.inputs))]
        fixed = ["" if c is None else f"c{i}" for i, c in enumerate(self.constants)]
        outputs = [f"y{i}" for i in range(self.outputs)]
        node = helper.make_node(op_type, names + fixed, outputs, name="node", **self.attributes)
        graph = helper.make_graph(
            [node],
            "case",
            [
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
                )
                for name, value in zip(names, self.inputs, strict=True)
            ],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            [
                numpy_helper.from_array(value, name)
                for name, value in zip(fixed, self.constants, strict=True)
                if value is not None
            ],
        )
        opsets = [helper.make_opsetid("", version)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@cache
def schema_versions() -> dict[str, list[int]]:
    """Operator -> the versions of its schema that are not deprecated, oldest first."""
    found: dict[str, list[int]] = defaultdict(list)
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and not schema.deprecated:
            found[schema.name].append(schema.since_version)
    return {name: sorted(versions) for name, versions in found.items()}


def all_cases() -> Iterator[tuple[str, int, Case]]:
    """(operator, version, case) for each case and each version that the bridge implements."""
    for op_type, make in sorted(CASES.items()):
        for version in schema_versions()[op_type]:
            if find_operator("", op_type, version) is not None:
                for case in make(version):
                    yield op_type, version, case


def uniform(*shape: int, low: float = -2.0, high: float = 2.0) -> Array:
    rng = np.random.default_rng(sum(shape) + len(shape))
    return rng.uniform(low, high, shape).astype(np.float32)


def integers(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


X = uniform(2, 4, 7, 6)
Maker = Callable[[int], list[Case]]
CASES: dict[str, Maker] = {}


def case_of(*names: str) -> Callable[[Maker], Maker]:
    def add(make: Maker) -> Maker:
        CASES.update(dict.fromkeys(names, make))
        return make

    return add


@case_of("Abs", "Ceil", "Exp", "Floor", "Neg", "Relu", "Sigmoid", "Tanh", "Softplus", "Softsign",
       "Elu", "Selu", "LeakyRelu", "HardSigmoid", "Erf", "Sign", "Identity", "Round", "HardSwish",
       "Celu", "ThresholdedRelu", "Shrink", "Gelu", "Mish", "Sin", "Cos", "Atan", "Sinh", "Cosh",
       "Asinh", "IsNaN", "Size", "Shape", "Swish")  # fmt: skip
def _unary(version: int) -> list[Case]:
    return [Case([X])]


@case_of("Log", "Sqrt", "Reciprocal", "Acos", "Asin", "Atanh", "Tan")
def _unary_of_positive(version: int) -> list[Case]:
    return [Case([uniform(2, 3, 5, low=0.1, high=0.9)])]


@case_of("Acosh")
def _acosh(version: int) -> list[Case]:
    return [Case([uniform(2, 3, low=1.5, high=9)])]


@case_of("Add", "Sub", "Mul", "Div")
def _binary(version: int) -> list[Case]:
    if version < 7:
        column = uniform(4, low=1, high=2)
        return [Case([X, X + 5]), Case([X, column], attributes={"broadcast": 1, "axis": 1})]
    whole = np.array([[7, -7, 9]])
    return [
        Case([X, uniform(4, 1, 1, low=1, high=2)]),
        Case([X], [np.array(2.5, np.float32)]),
        Case([X], [np.array([2.5], np.float32)]),
        Case([whole, np.array([[2], [3]])]),
    ]


@case_of("Pow")
def _pow(version: int) -> list[Case]:
    positive = np.abs(X) + 0.5
    cases = [Case([positive], [np.array(2.0, np.float32)]), Case([positive, X])]
    return cases if version >= 7 else cases[1:]


@case_of("Mod")
def _mod(version: int) -> list[Case]:
    whole = np.array([5, -7, 9])
    return [Case([whole, np.array([3, 3, -4])]), Case([X, X[::-1] + 5], attributes={"fmod": 1})]


@case_of("Sum", "Mean", "Max", "Min")
def _variadic(version: int) -> list[Case]:
    other = X[::-1].copy() if version < 8 else uniform(4, 1, 6)
    return [Case([X, other, X * 2]), Case([X])]


@case_of("And", "Or", "Xor")
def _boolean(version: int) -> list[Case]:
    return [Case([X > 0, X[::-1] > 0])]


@case_of("Greater", "Less", "GreaterOrEqual", "LessOrEqual")
def _comparison(version: int) -> list[Case]:
    return [Case([X, X[::-1].copy()])]


@case_of("Equal")
def _equal(version: int) -> list[Case]:
    return [Case([(X * 2).astype(np.int64), (X[::-1] * 2).astype(np.int64)])]


@case_of("Clip")
def _clip(version: int) -> list[Case]:
    low, high = np.float32(-0.5), np.float32(1.0)
    if version < 11:
        return [Case([X], attributes={"min": float(low), "max": float(high)}), Case([X])]
    return [
        Case([X], [np.array(low), np.array(high)]),
        Case([X], [np.array(0, np.float32)]),
        Case([X], [None, np.array(high)]),
        Case([X, np.array(low), np.array(high)]),
    ]


@case_of("Cast")
def _cast(version: int) -> list[Case]:
    names = {"INT64": TensorProto.INT64, "BOOL": TensorProto.BOOL, "DOUBLE": TensorProto.DOUBLE}
    return [Case([X], attributes={"to": n if version < 6 else v}) for n, v in names.items()]


@case_of("Softmax", "LogSoftmax", "Hardmax")
def _softmax(version: int) -> list[Case]:
    return [Case([X]), Case([X], attributes={"axis": 2}), Case([X], attributes={"axis": 3})]


@case_of("PRelu")
def _prelu(version: int) -> list[Case]:
    if version < 7:
        return [Case([X], [uniform(4)])]
    return [Case([X], [uniform(4, 1, 1)]), Case([X], [uniform(1)]), Case([X], [uniform(7, 6)])]


@case_of("Conv")
def _conv(version: int) -> list[Case]:
    weight, bias = uniform(6, 4, 3, 3), uniform(6)
    plain = {"kernel_shape": [3, 3]}
    cases = [
        Case([X], [weight, bias], {**plain, "pads": [1, 1, 1, 1], "strides": [2, 2]}),
        Case([X], [uniform(6, 2, 3, 3)], {"group": 2, "pads": [0, 1, 2, 1]}),
        Case([X], [weight], {"dilations": [2, 2], "pads": [2, 2, 2, 2]}),
        Case([X[:, :, 0]], [uniform(5, 4, 3)]),
        Case([uniform(1, 2, 4, 5, 6)], [uniform(3, 2, 2, 3, 2)]),
        Case([X, weight]),
        Case([X], [weight], {"auto_pad": "", "pads": [1, 0, 1, 0]}),
    ]
    for auto_pad in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        cases.append(Case([X], [weight, bias], {"auto_pad": auto_pad, "strides": [2, 2]}))
    return cases


@case_of("ConvTranspose")
def _conv_transpose(version: int) -> list[Case]:
    weight, bias = uniform(4, 3, 3, 3), uniform(3)
    twice = {"strides": [2, 2]}
    return [
        Case([X], [weight, bias]),
        Case([X], [weight, bias], {**twice, "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
        Case([X], [weight, bias], {**twice, "pads": [0, 1, 1, 0]}),
        Case([X], [weight, bias], {**twice, "output_shape": [14, 12]}),
        Case([X], [weight, bias], {**twice, "auto_pad": "SAME_UPPER"}),
        Case([X], [weight, bias], {**twice, "auto_pad": "SAME_LOWER"}),
        Case([X], [uniform(4, 2, 2, 2)], {**twice, "group": 2, "dilations": [2, 1]}),
    ]


@case_of("Gemm")
def _gemm(version: int) -> list[Case]:
    a, b, c = uniform(3, 4), uniform(5, 4), uniform(5)
    flags = {} if version >= 7 else {"broadcast": 1}
    return [
        Case([a], [b, c], {"transB": 1, **flags}),
        Case([a.T.copy()], [b.T.copy(), c], {"transA": 1, "alpha": 0.5, "beta": 2.0, **flags}),
        *([Case([a], [b], {"transB": 1})] if version >= 11 else []),
    ]


@case_of("MatMul")
def _matmul(version: int) -> list[Case]:
    return [Case([X], [uniform(6, 3)]), Case([X, X.transpose(0, 1, 3, 2).copy()])]


@case_of("BatchNormalization")
def _batch_norm(version: int) -> list[Case]:
    tensors = [uniform(4), uniform(4), uniform(4), uniform(4, low=0.5, high=2)]
    attributes = {"epsilon": 1e-3, **({"is_test": 1} if version < 7 else {})}
    return [Case([X], list(tensors), attributes)]


@case_of("InstanceNormalization")
def _instance_norm(version: int) -> list[Case]:
    return [Case([X], [uniform(4), uniform(4)])]


@case_of("LayerNormalization")
def _layer_norm(version: int) -> list[Case]:
    return [
        Case([X], [uniform(6), uniform(6)]),
        Case([X], [uniform(7, 6)], {"axis": 2}),
        Case([X], [uniform(6), uniform(6)], {"axis": 2}),
        Case([X], [uniform(6), uniform(6)], outputs=3),
    ]


@case_of("LRN")
def _lrn(version: int) -> list[Case]:
    return [Case([X], attributes={"size": size, "alpha": 0.1}) for size in (1, 3, 5)]


@case_of("LpNormalization")
def _lp_norm(version: int) -> list[Case]:
    return [Case([X], attributes={"p": p, "axis": 1}) for p in (1, 2)]


@case_of("MeanVarianceNormalization")
def _mvn(version: int) -> list[Case]:
    return [Case([X])]


@case_of("MaxPool")
def _max_pool(version: int) -> list[Case]:
    cases = _pools(version, since_ceil=10, since_dilations=10)
    if version >= 8:
        cases.append(Case([X], [], {"kernel_shape": [2, 3], "pads": [1, 1, 0, 1]}, outputs=2))
    if version in (8, 10, 11):
        column = {"kernel_shape": [2, 2], "storage_order": 1}
        cases.append(Case([X], [], column, outputs=2))
    return cases


@case_of("AveragePool")
def _average_pool(version: int) -> list[Case]:
    cases = _pools(version, since_ceil=10, since_dilations=19)
    if version == 1:  # what padding counts for was not said yet
        cases = [case for case in cases if not {"pads", "auto_pad"} & set(case.attributes)]
    if version >= 7:
        cases += [
            Case(case.inputs, [], {**case.attributes, "count_include_pad": 1}) for case in cases
        ]
    return cases


@case_of("LpPool")
def _lp_pool(version: int) -> list[Case]:
    return _pools(version, since_ceil=18, since_dilations=18)[:3]


def _pools(version: int, since_ceil: int, since_dilations: int) -> list[Case]:
    kernel = {"kernel_shape": [3, 3]}
    settings: list[dict[str, Any]] = [
        {**kernel, "strides": [2, 2], "pads": [1, 1, 1, 1]},
        {**kernel, "strides": [2, 2], "pads": [0, 1, 1, 0]},
        {**kernel, "auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {**kernel, "auto_pad": "SAME_LOWER"},
        {**kernel, "auto_pad": "VALID", "strides": [2, 1]},
        {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1]},
    ]
    if version >= since_ceil:
        settings.append({**kernel, "strides": [2, 2], "ceil_mode": 1})
        settings.append({**kernel, "strides": [2, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1})
        settings.append({**kernel, "strides": [2, 2], "pads": [0, 1, 1, 1], "ceil_mode": 1})
    if version >= since_dilations:
        settings.append({**kernel, "dilations": [2, 1], "pads": [1, 1, 1, 1]})
    cases = [Case([X], [], attributes) for attributes in settings]
    cases.append(Case([X[:, :, 0]], [], {"kernel_shape": [2], "strides": [2]}))
    return cases


@case_of("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _global_pool(version: int) -> list[Case]:
    return [Case([X]), Case([X[:, :, 0]])]
