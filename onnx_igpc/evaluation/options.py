"""What a comparison has to hold."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_igpc.errors import UsageError


@dataclass(frozen=True)
class Thresholds:
    """What has to hold of a candidate; nothing where all are left out.

    Args:
        min_agreement: the least top-1 agreement, and of class numbers the least share that is equal, 0 to 1.
        atol: with ``rtol``, the bound ``max|a - b| <= atol + rtol max|b|`` for every other output, b
            being the original's; 0 where only the other one is given.
        rtol: see ``atol``.

    Raises:
        UsageError: a value that cannot be meant.
    """

    min_agreement: float | None = None
    atol: float | None = None
    rtol: float | None = None

    def __post_init__(self) -> None:
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise UsageError(f"min_agreement must lie between 0 and 1, not {self.min_agreement}")
        for name, value in (("atol", self.atol), ("rtol", self.rtol)):
            if value is not None and not value >= 0:
                raise UsageError(f"{name} must not be negative, not {value}")
