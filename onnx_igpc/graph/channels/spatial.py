"""Whether Pad, Resize, Upsample and the reductions leave the axis of channels alone.

Each function gives the reason why a node does not, or ``None``. Sizes must be constant: what is
computed at run time might concern channels.
"""

from __future__ import annotations

import numpy as np

from onnx_igpc.graph.channels.region import ChannelRegion
from onnx_igpc.graph.view import NodeRef

_UNKNOWN = "has sizes that are computed at run time"
_CHANNELS = 1


def pads_channels(region: ChannelRegion, ref: NodeRef) -> str | None:
    """Pad: the amounts are an attribute up to opset 10, then an input; later with axes."""
    pads = _setting(region, ref, ("pads", 1))
    axes = _setting(region, ref, (None, 3))
    if pads is None or (ref.has_input(3) and axes is None):
        return _UNKNOWN
    count = len(pads) // 2
    place = _place(region, axes, count)
    if place is None:
        return _UNKNOWN
    inside = place < count and (pads[place] != 0 or pads[count + place] != 0)
    return "pads channels" if inside else None


def resizes_channels(region: ChannelRegion, ref: NodeRef) -> str | None:
    """Resize and Upsample: scales as an attribute or input, or sizes."""
    if ref.attribute("coordinate_transformation_mode", b"") == b"tf_crop_and_resize":
        return "crops"
    if ref.attribute("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        return "keeps the aspect ratio of its sizes"
    # Three inputs are those of opset 11 and later: X, roi, scales and sizes.
    modern = len(ref.node.inputs) > 2
    scales = _setting(region, ref, ("scales", 2 if modern else 1))
    sizes = _setting(region, ref, (None, 3))
    given = ref.attribute("axes")
    axes = None if given is None else np.asarray(given)
    known = sizes if sizes is not None and sizes.size else scales
    if known is None or not known.size:
        return _UNKNOWN
    place = _place(region, axes, len(known))
    if place is None:
        return _UNKNOWN
    wanted = len(region.new_order(ref.node.outputs[0])) if known is sizes else 1
    return "resizes channels" if place < len(known) and known[place] != wanted else None


def reduces_channels(region: ChannelRegion, ref: NodeRef) -> str | None:
    """Reductions: the axes are an attribute, or an input in later opsets."""
    if not ref.attribute("keepdims", 1):
        return "drops dimensions"
    axes = _setting(region, ref, ("axes", 1))
    if axes is None or not axes.size:
        return "reduces all axes, or some that are computed at run time"
    place = _place(region, axes, len(axes))
    if place is None:
        return _UNKNOWN
    return "reduces channels" if place < len(axes) else None


def _setting(
    region: ChannelRegion, ref: NodeRef, where: tuple[str | None, int]
) -> np.ndarray | None:
    """A list of numbers that is an attribute or a constant input; ``None`` if it is neither."""
    name, index = where
    value = ref.attribute(name) if name else None
    if value is not None:
        return np.asarray(value)
    constant = region.constant(ref, index)
    return constant.values().reshape(-1) if constant else None


def _place(region: ChannelRegion, axes: np.ndarray | None, count: int) -> int | None:
    """Where in a list for ``axes`` (all, if ``None``) channels are; ``count`` if they are not in it.

    ``None`` if an axis is counted from the end and the number of dimensions is not known.
    """
    if axes is None:
        return _CHANNELS
    if (axes < 0).any() and region.rank is None:
        return None
    counted = [int(axis) % region.rank if region.rank else int(axis) for axis in axes]
    return counted.index(_CHANNELS) if _CHANNELS in counted else count
