"""What detectors add to a classifier: non-maximum suppression and pooling of regions."""

from __future__ import annotations

import torch

from onnx_igpc.torch_bridge.node import Node, Run
from onnx_igpc.torch_bridge.registry import Inputs, register_operator


@register_operator("NonMaxSuppression", since=10, inputs=Inputs(structural=(0, 1), host=(2, 3, 4)))
def non_max_suppression(node: Node) -> Run:
    centred = bool(node.get_int("center_point_box", 0))
    fixed = [node.constant_list(index) for index in (2, 3, 4)]

    def run(
        boxes: torch.Tensor, scores: torch.Tensor, *limits: torch.Tensor | None
    ) -> torch.Tensor:
        given = [None if v is None else v.reshape(-1).tolist() for v in limits]
        given += [None] * (3 - len(given))
        settings = [(f if g is None else g) for f, g in zip(fixed, given, strict=True)]
        most, overlap, least = (s[0] if s else None for s in settings)
        found = []
        for image in range(boxes.shape[0]):
            iou = _overlaps(_corners(boxes[image].detach(), centred))
            for label in range(scores.shape[1]):
                kept = _suppress(scores[image, label].detach(), iou, overlap or 0.0, least)
                found += [(image, label, box) for box in kept[: int(most or 0)]]
        return torch.tensor(found, dtype=torch.int64, device=boxes.device).reshape(-1, 3)

    return run


def _corners(boxes: torch.Tensor, centred: bool) -> torch.Tensor:
    """Boxes [n, 4] as lower and upper corner, whichever diagonal they were given by."""
    first, second = boxes[:, :2], boxes[:, 2:]
    if centred:
        first, second = first - second / 2, first + second / 2
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], 1)


def _overlaps(boxes: torch.Tensor) -> torch.Tensor:
    """Intersection over union of each pair of boxes, [n, n]."""
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    common = (high - low).clamp(min=0).prod(2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    union = area[:, None] + area[None, :] - common
    return torch.where(union > 0, common / union, torch.zeros_like(union))


def _suppress(
    scores: torch.Tensor, iou: torch.Tensor, overlap: float, least: float | None
) -> list[int]:
    order = scores.sort(descending=True, stable=True).indices
    if least is not None:
        order = order[scores[order] > least]
    # The rows are read on the CPU: asking the device for each pair would cost a round trip.
    close = (iou > overlap).cpu()
    kept: list[int] = []
    for box in order.tolist():
        if not bool(close[box, kept].any()):
            kept.append(box)
    return kept


@register_operator("RoiAlign", since=10, inputs=Inputs(structural=(1, 2)))
def roi_align(node: Node) -> Run:
    height, width = node.get_int("output_height", 1), node.get_int("output_width", 1)
    scale, ratio = node.get_float("spatial_scale", 1.0), node.get_int("sampling_ratio", 0)
    maximum = node.get_string("mode", "avg") == "max"
    default = "half_pixel" if node.version >= 16 else "output_half_pixel"
    centred = node.get_string("coordinate_transformation_mode", default) == "half_pixel"
    shift = 0.5 if centred else 0.0

    def run(x: torch.Tensor, rois: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        pooled = []
        for roi, image in zip(rois, images.tolist(), strict=True):
            left, top, right, bottom = (roi * scale - shift).tolist()
            # Without the half-pixel shift a region has at least one pixel.
            least = 0.0 if centred else 1.0
            ys, rows = _samples(top, max(bottom - top, least), height, ratio)
            xs, columns = _samples(left, max(right - left, least), width, ratio)
            weight_y = _bilinear_weights(ys, x.shape[2]).to(x)
            weight_x = _bilinear_weights(xs, x.shape[3]).to(x)
            if maximum:
                pooled.append(_max_of_samples(x[image], weight_y, weight_x, rows, columns))
                continue
            values = weight_y @ x[image] @ weight_x.T
            values = values.reshape(-1, height, rows, width, columns)
            pooled.append(values.mean((2, 4)))
        if not pooled:
            return x.new_zeros(0, x.shape[1], height, width)
        return torch.stack(pooled)

    return run


def _samples(start: float, extent: float, bins: int, ratio: int) -> tuple[torch.Tensor, int]:
    """Sampling positions of all bins along an axis, and how many there are in each bin."""
    step = extent / bins
    count = ratio if ratio > 0 else max(int(-(-extent // bins)), 1)
    offset = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    position = start + (torch.arange(bins, dtype=torch.float64).unsqueeze(1) + offset) * step
    return position.reshape(-1), count


def _bilinear_weights(position: torch.Tensor, size: int) -> torch.Tensor:
    """Interpolation weights [positions, size]; a position far outside reads zero."""
    inside = (position >= -1) & (position <= size)
    clamped = position.clamp(0, size - 1)
    low = clamped.floor().long()
    high = (low + 1).clamp(max=size - 1)
    share = clamped - low
    weights = torch.zeros(len(position), size, dtype=torch.float64)
    weights.scatter_add_(1, low.unsqueeze(1), ((1 - share) * inside).unsqueeze(1))
    weights.scatter_add_(1, high.unsqueeze(1), (share * inside).unsqueeze(1))
    return weights


def _max_of_samples(
    image: torch.Tensor, weight_y: torch.Tensor, weight_x: torch.Tensor, rows: int, columns: int
) -> torch.Tensor:
    """ONNX takes the maximum over the four weighted neighbours of all samples of a bin."""
    values = image[:, None, None] * weight_y[:, None, :, None] * weight_x[None, :, None, :]
    largest = values.amax((3, 4))  # [channels, samples y, samples x]
    shape = (len(image), largest.shape[1] // rows, rows, largest.shape[2] // columns, columns)
    return largest.reshape(shape).amax((2, 4))
