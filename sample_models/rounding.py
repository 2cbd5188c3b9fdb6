"""How scaled channel numbers are rounded in the MobileNet and EfficientNet families."""

from __future__ import annotations


def round_channels(channels: float, divisor: int = 8) -> int:
    """The multiple of ``divisor`` nearest to ``channels``, but never less than 90 % of it.

    Source: ``make_divisible`` of the reference implementations of MobileNet V2/V3 and EfficientNet
    (there ``_depth`` and ``round_filters``).

    Args:
        channels: the scaled number of channels, positive.
        divisor: what the result is a multiple of; also the smallest result.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
