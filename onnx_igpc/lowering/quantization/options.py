"""How a model is quantized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from onnx_igpc.errors import UsageError, did_you_mean, texts
from onnx_igpc.runtime.setting import Setting

AUTO = "auto"
Method = Literal["minmax", "percentile", "entropy"]
METHODS: tuple[Method, ...] = get_args(Method)
ACTIVATIONS = ("uint8", "int8")


@dataclass(frozen=True)
class Quantization:
    """What is quantized, and how. Weights become int8, symmetric, with a scale for each channel.

    Args:
        method: how ranges of activations are found: ``"minmax"``, ``"percentile"``, ``"entropy"``;
            ``"auto"`` tries them and takes the one that does least damage to held-out samples.
        activations: ``"uint8"``, ``"int8"``, or ``"auto"`` for what suits the provider.
        reduce_range: whether weights get seven bits, for processors that saturate with eight;
            ``None`` for what suits this one.
        exclude: globs on the names of nodes that stay in float; a nameless node goes by the name of
            its first output.
        exclude_first: the layers that read the model's inputs stay in float.
        exclude_heads: the layers that make the model's outputs stay in float.
        setting: where the model will run: the provider decides what suits it.

    Raises:
        UsageError: a value that does not exist.
    """

    method: str = AUTO
    activations: str = AUTO
    reduce_range: bool | None = None
    exclude: str | Sequence[str] = ()
    exclude_first: bool = False
    exclude_heads: bool = False
    setting: Setting | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "exclude", texts("exclude", self.exclude))
        for name, known in (("method", METHODS), ("activations", ACTIVATIONS)):
            value = getattr(self, name)
            if value not in (AUTO, *known):
                choices = (AUTO, *known)
                hint = did_you_mean(value, choices) if isinstance(value, str) else ""
                raise UsageError(f"{name} {value!r}: choose from {', '.join(choices)}{hint}")
