"""Module -> the same ONNX model with the module's values."""

from __future__ import annotations

import torch
from onnx import ModelProto, NodeProto, TensorProto, helper
from torch import nn

from onnx_igpc.errors import ModelError
from onnx_igpc.graph.traversal import copied
from onnx_igpc.torch_bridge.module import OnnxModule
from onnx_igpc.torch_bridge.tensors import store, store_constant
from onnx_igpc.torch_bridge.weights import Untied


def write_back(module: nn.Module, model: ModelProto) -> ModelProto:
    """See :func:`onnx_igpc.torch_bridge.from_torch`."""
    source = _unwrap(module)
    result = copied(model)
    writer = _Writer(result)
    state = dict(source.named_parameters()) | dict(source.named_buffers())
    # Copies of a shared tensor compare with it, so they come before it is overwritten.
    ordered = sorted(source.bindings.items(), key=lambda item: item[1] not in source.untied)
    for path, name in ordered:
        value = state[path].detach().cpu()
        if name in source.untied:
            writer.write_untied(source.untied[name], value)
        else:
            writer.write(name, value)
    return result


def _unwrap(module: nn.Module) -> OnnxModule:
    """The bridged module inside torch.compile and DistributedDataParallel wrappers."""
    while not isinstance(module, OnnxModule):
        inner = getattr(module, "_orig_mod", None) or getattr(module, "module", None)
        if not isinstance(inner, nn.Module):
            raise ModelError(f"{type(module).__name__} is not a module made by to_torch")
        module = inner
    return module


class _Writer:
    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers = {name: node for node in model.graph.node for name in node.output}

    def write(self, name: str, value: torch.Tensor) -> None:
        if name in self.initializers:
            store(self.initializers[name], value)
        elif name in self.producers and self.producers[name].op_type == "Constant":
            store_constant(self.producers[name], value)
        else:
            raise ModelError(f"the model has no tensor {name!r}: the module is of another model")

    def write_untied(self, entry: Untied, value: torch.Tensor) -> None:
        """Give the tensor a place of its own, if it is no longer what it shared."""
        producer = self.producers.get(entry.name)
        if entry.name in self.initializers or (producer and producer.op_type == "Constant"):
            self.write(entry.name, value)  # it got its place when these weights were last written
            return
        own = self._copy_of(entry.source)
        own.name = entry.name
        if not store(own, value):
            return
        if not entry.readers:
            self._replace_identity(entry.name, own)
            return
        self.graph.initializer.append(own)
        for output, index in entry.readers:
            self._producer(output).input[index] = entry.name

    def _copy_of(self, name: str) -> TensorProto:
        copy = TensorProto()
        if name in self.initializers:
            copy.CopyFrom(self.initializers[name])
        else:
            attribute = next((a for a in self._producer(name).attribute if a.name == "value"), None)
            if attribute is None:
                raise ModelError(
                    f"the model has no tensor {name!r}: the module is of another model"
                )
            copy.CopyFrom(attribute.t)
        return copy

    def _replace_identity(self, name: str, tensor: TensorProto) -> None:
        node = self._producer(name)
        node.op_type = "Constant"
        del node.input[:]
        node.attribute.append(helper.make_attribute("value", tensor))

    def _producer(self, name: str) -> NodeProto:
        if name not in self.producers:
            raise ModelError(f"the model has no value {name!r}: the module is of another model")
        producer: NodeProto = self.producers[name]
        return producer
