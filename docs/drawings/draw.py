"""The drawings of the documentation, made from the layouts that the package itself plans.

``python docs/drawings/draw.py`` writes the .svg files beside this one; a test checks that they are those
that this code makes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from svg import GROUP_COLORS, Drawing, Point  # noqa: E402

from onnx_igpc.layout.group_layout import GroupedStage  # noqa: E402
from onnx_igpc.layout.schemes import plan_layout  # noqa: E402

_STEP = 15.0  # from channel to channel


def rewrite() -> Drawing:
    """The dense layer beside the interleaved grouped one, every weight a line."""
    layout = plan_layout(16, 16, 4)
    assert layout.l is not None
    assert layout.interleave is not None
    drawing = Drawing(760, 356, "A dense 1x1 convolution and its interleaved grouped form")
    top = 74.0
    _dense(drawing, 60, 190, top, 16)
    drawing.text((125, 30), "dense 1×1 convolution", size=15)
    drawing.text((125, 50), "y = W x", kind="muted")
    drawing.text((125, 340), f"{layout.dense_weights} weights", kind="muted")
    drawing.arrow((222, 186), (262, 186))
    drawing.text((515, 30), "interleaved grouped", size=15)
    drawing.text((515, 50), "y = K x + L P K x", kind="muted")
    x_in, x_k, x_p, x_l, x_sum, x_out = 300.0, 390.0, 500.0, 590.0, 660.0, 716.0
    _stage(drawing, layout.k, x_in, x_k, top)
    color = _filter_colors(layout.k)
    for place, source in enumerate(layout.interleave):
        start, end = _at(x_k, top, source), _at(x_p, top, place)
        drawing.curve(start, end, color=color[source])
        drawing.dot(end, 3.5, color=color[source])
    _stage(drawing, layout.l, x_p, x_l, top)
    for index in range(16):
        made = _at(x_l, top, index)
        drawing.line([made, (x_sum - 8, made[1])], color=GROUP_COLORS[index // 4])
        drawing.line([(x_sum + 8, made[1]), _at(x_out, top, index)])
        drawing.dot(_at(x_out, top, index), 3.5)
    _sum(drawing, x_sum, top, x_k)
    for x, words in ((x_in, "x"), (x_out, "y")):
        drawing.text((x, top - 12), words)
    for x, words in ((345, "K"), (445, "P"), (545, "L")):
        drawing.text((x, 322), words, size=14)
    drawing.text(
        (515, 340),
        f"{layout.k.weights} + {layout.l.weights} = {layout.weights} weights",
        kind="muted",
    )
    return drawing


def _sum(drawing: Drawing, x: float, top: float, x_from: float) -> None:
    """The box of the sum, and the line that brings it what K made."""
    above = top - 14
    drawing.line([(x_from, top - 4), (x_from, above), (x, above), (x, top - 8)], width=1.5)
    drawing.line([(x - 4, top - 14), (x, top - 8), (x + 4, top - 14)], width=1.5)
    drawing.rect((x - 8, top - 8), (16, 15 * _STEP + 16), round_by=4)
    drawing.text((x, top + 7.5 * _STEP + 5), "+", size=16)


def uneven() -> Drawing:
    """Ten channels in groups of four: two of them are read twice, and one group makes one more."""
    layout = plan_layout(10, 10, 4)
    drawing = Drawing(480, 262, "Groups without divisibility: 10 channels in groups of 4")
    drawing.text((240, 28), "10 channels, 4 a group, 10 filters: K", size=15)
    top, middle = 62.0, 250.0
    gathered = layout.k.paths[0].inputs
    step = 14.0
    for place, source in enumerate(gathered):
        color = GROUP_COLORS[place // 4]
        again = place >= layout.in_channels
        start, end = (110.0, top + (source + 1) * step), (middle, top + place * step)
        drawing.line([start, end], color=color, dashed=again)
        drawing.dot(end, 3.5, color=color, hollow=again)
    for index in range(layout.in_channels):
        drawing.dot((110, top + (index + 1) * step), 3.5)
    made = 0
    for path in layout.k.paths:
        for group in range(path.groups):
            inputs = [4 * group + i for i in range(path.channels_per_group)]
            for _ in range(path.filters_per_group):
                target = (380.0, top + (made + 1) * step)
                for place in inputs:
                    drawing.line([(middle, top + place * step), target], color=GROUP_COLORS[group])
                drawing.dot(target, 3.5, color=GROUP_COLORS[group])
                made += 1
    drawing.text((110, top - 6), "x", kind="muted")
    drawing.text((middle, top - 12), "Gather", kind="muted")
    drawing.text((380, top - 6), "K x", kind="muted")
    drawing.text((240, 248), "dashed: channels that are read a second time", size=12, kind="muted")
    return drawing


def matrices() -> Drawing:
    """Where W, K, P, L and M = (I + L P) K are not zero."""
    layout = plan_layout(16, 16, 4)
    assert layout.l is not None
    assert layout.interleave is not None
    k, l_stage = _pattern(layout.k), _pattern(layout.l)
    p = [[1 if source == column else 0 for column in range(16)] for source in layout.interleave]
    through = _product(_product(l_stage, p), k)
    drawing = Drawing(760, 206, "The matrices of a rewritten layer")
    shown: list[tuple[str, list[list[int]], bool]] = [
        ("W", [[1] * 16 for _ in range(16)], False),
        ("K", k, True),
        ("P", p, False),
        ("L", l_stage, True),
        (
            "M = (I + L P) K",
            [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(k, through, strict=True)],
            False,
        ),
    ]
    for number, (name, pattern, grouped) in enumerate(shown):
        left = 28 + number * 146
        drawing.text((left + 60, 30), name, size=14)
        _matrix(drawing, (left, 44), pattern, grouped)
    weights = (layout.dense_weights, layout.k.weights, None, layout.l.weights, None)
    captions = [f"{count} weights" if count else "" for count in weights]
    captions[2], captions[4] = "a Gather", "every channel reaches y"
    for number, words in enumerate(captions):
        drawing.text((88 + number * 146, 188), words, size=12, kind="muted")
    return drawing


def savings() -> Drawing:
    """Weights left of a layer, over channels per group."""
    drawing = Drawing(590, 320, "Weights left over channels per group")
    left, right, top, bottom = 64.0, 470.0, 40.0, 262.0
    sizes, groups = (64, 128, 256, 512), (4, 8, 16, 32, 64, 128)
    drawing.text((24, 24), "weights left", anchor="start", kind="muted")
    drawing.text(((left + right) / 2, 308), "channels per group (--ch)", kind="muted")
    for share in (0, 25, 50, 75, 100):
        y = bottom - (bottom - top) * share / 100
        drawing.line([(left, y), (right, y)], width=0.5)
        drawing.text((left - 8, y + 4), f"{share} %", size=12, anchor="end", kind="muted")
    x_of = {ch: left + (right - left) * i / (len(groups) - 1) for i, ch in enumerate(groups)}
    for ch, x in x_of.items():
        drawing.text((x, bottom + 18), str(ch), size=12, kind="muted")
    for size, color in zip(sizes, GROUP_COLORS, strict=False):
        plans = [(ch, plan_layout(size, size, ch)) for ch in groups]
        points = [
            (x_of[ch], bottom - (bottom - top) * plan.weights / plan.dense_weights)
            for ch, plan in plans
        ]
        drawing.line(points, color=color, width=2)
        for point, (_, plan) in zip(points, plans, strict=True):
            drawing.dot(point, 4 if plan.replaced else 3, color=color)
    for row, (size, color) in enumerate(zip(sizes, GROUP_COLORS, strict=False)):
        y = 70.0 + 22 * row
        drawing.dot((496, y - 4), 4, color=color)
        drawing.text((506, y), f"{size} to {size}", size=12, anchor="start")
    return drawing


def workflow() -> Drawing:
    """Which command makes which file."""
    drawing = Drawing(760, 176, "Which command makes which file")
    files = (("model.onnx", 70), ("small.onnx", 290), ("tuned.onnx", 510), ("for a runtime", 692))
    for name, x in files:
        drawing.rect((x - 56, 52), (112, 36), round_by=6)
        drawing.text((x, 75), name)
    for (_, start), (_, end), words in zip(
        files, files[1:], ("compress", "finetune", "lower"), strict=False
    ):
        drawing.arrow((start + 58, 70), (end - 58, 70))
        drawing.text(((start + end) / 2, 60), words, size=12)
    data = (("a few hundred images", 180), ("images, the original as teacher", 400))
    for words, x in data:
        drawing.line([(x, 112), (x, 78)], dashed=True)
        drawing.text((x, 128), words, size=12, kind="muted")
    drawing.text(
        (380, 160), "inspect before; verify, benchmark and report at any point", kind="muted"
    )
    drawing.text(
        (380, 30), "every file is an ONNX model with the same inputs and outputs", kind="muted"
    )
    return drawing


def _dense(drawing: Drawing, x: float, x_out: float, top: float, channels: int) -> None:
    for target in range(channels):
        for source in range(channels):
            drawing.line([_at(x, top, source), _at(x_out, top, target)], width=0.5)
    for index in range(channels):
        drawing.dot(_at(x, top, index), 3.5)
        drawing.dot(_at(x_out, top, index), 3.5)
    drawing.text((x, top - 12), "x")
    drawing.text((x_out, top - 12), "y")


def _stage(drawing: Drawing, stage: GroupedStage, x: float, x_out: float, top: float) -> None:
    """Every weight of a stage of even groups; inputs keep the colours they have in L."""
    [path] = stage.paths
    for group in range(path.groups):
        color = GROUP_COLORS[group % len(GROUP_COLORS)]
        for i in range(path.filters_per_group):
            target = _at(x_out, top, group * path.filters_per_group + i)
            for place in range(path.channels_per_group):
                start = _at(x, top, group * path.channels_per_group + place)
                drawing.line([start, target], color=color)
            drawing.dot(target, 3.5, color=color)
    if x == 300.0:
        for index in range(stage.in_channels):
            drawing.dot(_at(x, top, index), 3.5)


def _filter_colors(stage: GroupedStage) -> list[str]:
    [path] = stage.paths
    return [GROUP_COLORS[index // path.filters_per_group] for index in range(path.filters)]


def _at(x: float, top: float, index: int) -> Point:
    return x, top + index * _STEP


def _pattern(stage: GroupedStage) -> list[list[int]]:
    """1 where the stage's matrix, filters x channels, has a weight."""
    rows = []
    for path in stage.paths:
        for index in range(path.filters):
            inputs = path.group_inputs(index // path.filters_per_group)
            rows.append([1 if column in inputs else 0 for column in range(stage.in_channels)])
    return rows


def _product(a: Sequence[Sequence[int]], b: Sequence[Sequence[int]]) -> list[list[int]]:
    columns = list(zip(*b, strict=True))
    return [[sum(x * y for x, y in zip(row, col, strict=True)) for col in columns] for row in a]


def _matrix(drawing: Drawing, at: Point, pattern: list[list[int]], grouped: bool) -> None:
    cell = 120 / len(pattern)
    drawing.rect(at, (120, 120), kind="empty")
    for row, values in enumerate(pattern):
        for column, value in enumerate(values):
            if value:
                corner = (at[0] + column * cell, at[1] + row * cell)
                # In M, what also reaches a filter directly, through K alone, is darker.
                color = GROUP_COLORS[row // 4] if grouped else ("#8c959f", "#3b78d8")[value > 1]
                drawing.rect(corner, (cell - 0.7, cell - 0.7), color=color)


DRAWINGS: dict[str, Callable[[], Drawing]] = {
    "rewrite": rewrite,
    "uneven": uneven,
    "matrices": matrices,
    "savings": savings,
    "workflow": workflow,
}
"""What each file shows, by its name without .svg."""


def main() -> None:
    """Write every file."""
    for name, draw in DRAWINGS.items():
        (HERE / f"{name}.svg").write_text(draw().render())


if __name__ == "__main__":
    main()
