"""The table and the picture of the curves, out of the JSON files of the arms."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cifar10.runs import pointwise_share

HEADER = "| left | method | trained on | seed | parameters | MACs | before | after | agreement | steps | seconds |"
_RULE = "|--:|---|---|--:|--:|--:|--:|--:|--:|--:|--:|"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_WIDTH, _HEIGHT, _MARGIN, _KEY = 720, 360, 44, 190

Result = dict[str, Any]


def read_results(folder: Path) -> tuple[Result, list[Result]]:
    """The baseline, and the arms: larger shares first, then by accuracy."""
    baseline = json.loads((folder / "baseline.json").read_text())
    found = [
        json.loads(path.read_text())
        for path in sorted(folder.glob("*.json"))
        if path.name != "baseline.json"
    ]
    found.sort(key=lambda each: (-each["share"], -each["accuracy"], each["arm"]))
    return baseline, found


def markdown(baseline: Result, arms: Sequence[Result]) -> str:
    """The table; accuracies in per cent."""
    images = 10_000
    error = 100 * math.sqrt(baseline["accuracy"] * (1 - baseline["accuracy"]) / images)
    summary = (
        f"Baseline: {100 * baseline['accuracy']:.2f} % (standard error {error:.2f}), "
        f"{baseline['parameters']:,} parameters, {baseline['pointwise_parameters']:,} of them "
        f"pointwise, {baseline['macs']:,} MACs."
    )
    lines = [summary, "", HEADER, _RULE]
    lines += [_row(baseline, arm) for arm in arms]
    return "\n".join(lines) + "\n"


def _row(baseline: Result, arm: Result) -> str:
    left = 100 * pointwise_share(arm, baseline)
    return (
        f"| {left:.1f} % | {arm['method']} | {arm['trained_on']} | {arm['seed']} | "
        f"{arm['parameters']:,} | {arm['macs']:,} | {100 * arm['before']['accuracy']:.2f} | "
        f"{100 * arm['accuracy']:.2f} | {100 * arm['agreement']:.2f} | {arm['steps']:,} | "
        f"{arm['seconds']:.0f} |"
    )


def spread(arms: Sequence[Result]) -> list[str]:
    """A line for every arm that was run with several seeds: the mean and the standard deviation."""
    groups: dict[tuple[int, str, str], list[float]] = {}
    for arm in arms:
        key = (arm["share"], arm["method"], arm["trained_on"])
        groups.setdefault(key, []).append(100 * arm["accuracy"])
    lines = []
    for (share, method, matching), values in groups.items():
        if len(values) < 2:
            continue
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        lines.append(
            f"- {share} %, {method}, {matching}: {mean:.2f} over {len(values)} seeds, standard "
            f"deviation {deviation:.2f}"
        )
    return lines


def curves_svg(arms: Sequence[Result], title: str) -> str:
    """Agreement with the baseline on the training images, in per cent, by step; a line for each arm."""
    drawn = [arm for arm in arms if any("agreement" in point for point in arm["curve"])]
    points = [
        [(p["step"], 100 * p["agreement"]) for p in arm["curve"] if "agreement" in p]
        for arm in drawn
    ]
    last = max((x for line in points for x, _ in line), default=1)
    least = min((y for line in points for _, y in line), default=0)
    low = min(90, 10 * math.floor(least / 10))
    right, bottom = _WIDTH - _KEY, _HEIGHT - _MARGIN

    def place(x: float, y: float) -> str:
        across = _MARGIN + (right - _MARGIN) * x / last
        return f"{across:.1f},{_MARGIN + (bottom - _MARGIN) * (100 - y) / (100 - low):.1f}"

    start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    parts = [
        start + ' font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<text x="{_MARGIN}" y="22">{title}</text>',
    ]
    for level in range(low, 101, 10):
        _, y = place(0, level).split(",")
        parts.append(
            f'<path d="M{_MARGIN} {y}H{right}" stroke="#ddd"/>'
            f'<text x="{_MARGIN - 6}" y="{y}" dy="4" text-anchor="end">{level}</text>'
        )
    for tick in range(5):
        across, _ = place(last * tick / 4, low).split(",")
        parts.append(
            f'<text x="{across}" y="{bottom + 18}" text-anchor="middle">{last * tick / 4:.0f}</text>'
        )
    for number, (arm, line) in enumerate(zip(drawn, points, strict=True)):
        colour = _COLOURS[number % len(_COLOURS)]
        dash = ' stroke-dasharray="5 3"' if arm["matching"] == "logits" else ""
        path = " ".join(place(x, y) for x, y in line)
        key = _MARGIN + 18 * number
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>'
            f'<path d="M{right + 12} {key}h24" stroke="{colour}" stroke-width="1.6"{dash}/>'
            f'<text x="{right + 42}" y="{key + 4}">{arm["method"]}, {arm["matching"]}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"
