"""The module that an ONNX graph becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import nn

from onnx_igpc.torch_bridge.weights import Untied


class OnnxModule(nn.Module):
    """An ONNX graph as a module; made by :func:`onnx_igpc.torch_bridge.to_torch`.

    Parameters are the float weights of the graph. Dots in ONNX names become sub-modules, so that
    the keys of ``state_dict()`` are the ONNX names (``bindings`` has the few that differ).

    Attributes:
        input_names: Graph inputs, in the order of the arguments of the module.
        output_names: Graph outputs, in the order of the results.
        code: Source of the forward function.
        bindings: PyTorch name -> ONNX name of each tensor that is written back.
        untied: ONNX names of tensors that got storage of their own, see
            :class:`~onnx_igpc.torch_bridge.weights.Untied`.
    """

    def __init__(
        self,
        program: Callable[..., Any],
        code: str,
        input_names: Sequence[str],
        output_names: Sequence[str],
        bindings: Mapping[str, str],
        untied: Mapping[str, Untied],
    ) -> None:
        super().__init__()
        self._program = program
        self.code = code
        self.input_names = tuple(input_names)
        self.output_names = tuple(output_names)
        self.bindings = dict(bindings)
        self.untied = dict(untied)

    def forward(self, *inputs: torch.Tensor) -> Any:
        """Run the graph.

        Args:
            inputs: One tensor for each name in ``input_names``, with the shape and dtype that the
                graph declares (float32 where it declares half precision).

        Returns:
            The graph output, or a tuple of all of them.
        """
        if len(inputs) != len(self.input_names):
            raise TypeError(
                f"the graph has {len(self.input_names)} inputs "
                f"({', '.join(self.input_names)}), got {len(inputs)} tensors"
            )
        return self._program(self, *inputs)

    def add_tensor(self, path: str, tensor: torch.Tensor, *, trained: bool, kept: bool) -> None:
        """Register a tensor under a dotted path, making the sub-modules on the way."""
        *scopes, leaf = path.split(".")
        owner: nn.Module = self
        for scope in scopes:
            if scope not in owner._modules:
                owner.add_module(scope, nn.Module())
            owner = owner.get_submodule(scope)
        if trained:
            owner.register_parameter(leaf, nn.Parameter(tensor))
        else:
            owner.register_buffer(leaf, tensor, persistent=kept)

    def extra_repr(self) -> str:
        return f"inputs={list(self.input_names)}, outputs={list(self.output_names)}"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a bridged module cannot be pickled: save its state_dict() and load it into "
            "to_torch(model), or write the weights into the model with from_torch"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxModule:
        import copy

        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin
