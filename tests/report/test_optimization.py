"""The report of an optimization as data: read back as it was, and nothing else is taken for one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from onnx_igpc.errors import ModelError
from onnx_igpc.report.html.optimization_page import render_optimization
from onnx_igpc.report.optimization import (
    ImagesReport,
    OptimizationReport,
    PictureReport,
    PointReport,
    StatedReport,
    StepReport,
)
from onnx_igpc.report.sections import DamageReport
from onnx_igpc.report.tree import RewriteReport
from onnx_igpc.runtime.racing import Interval


def point(name: str, agreement: float, milliseconds: float) -> PointReport:
    damage = DamageReport(
        samples=100, agreement=agreement, interval=(agreement - 0.04, min(agreement + 0.02, 1.0))
    )
    speed = None if name == "original" else Interval(10 / milliseconds, 1.1, 3.0)
    return PointReport(
        name=name,
        file=f"steps/{name}.onnx",
        precision="fp32",
        cut=False,
        trained=False,
        damage=damage,
        holds=agreement > 0.94,
        file_bytes=1000,
        milliseconds=milliseconds,
        speedup=speed,
    )


def report() -> OptimizationReport:
    points = [point("original", 1.0, 10.0), point("int8", 0.97, 4.0), point("<b>cut", 0.5, 2.0)]
    return OptimizationReport(
        key="k",
        model="model.onnx",
        promise="agreement=90%",
        promise_given=False,
        where="cpu (1 thread, batch 1)",
        limit_seconds=60.0,
        images=ImagesReport(source="images", total=200, fit=100, choose=100, state=0),
        pictures=[
            PictureReport(
                shape=[3, 4, 4], low=-1.0, high=1.0, mean=0.0, deviation=0.5, picture="data:,"
            )
        ],
        steps=[
            StepReport(name="int8", kind="quantize", status="done", command="onnx-igpc quantize m"),
            StepReport(name="trained", kind="finetune", status="skipped", note="no time"),
        ],
        points=points,
        chosen="int8",
        stated=[StatedReport(data="held-out images", damage=points[1].damage, chosen_among=2)],
        verdict=["chosen: int8", "latency: 10 ms", "agreement: 97 %", "size: 1 kB", "next: more"],
        report=RewriteReport(),
    )


def test_it_is_read_back_as_it_was() -> None:
    made = report()
    again = OptimizationReport.from_json(made.to_json())
    assert again == made
    assert again.chosen_point.name == "int8"
    assert again.original.milliseconds == 10.0


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}', '{"version": 1}', "[" * 10000])
def test_nothing_else_is_one(text: str) -> None:
    with pytest.raises(ModelError, match="not the report of an optimization"):
        OptimizationReport.from_json(text)


def test_a_damaged_field_is_refused() -> None:
    data = json.loads(report().to_json())
    data["points"][0]["milliseconds"] = "fast"
    with pytest.raises(ModelError, match=r"points\[0\].milliseconds"):
        OptimizationReport.from_json(json.dumps(data))


def test_the_page_shows_every_point_and_marks_the_chosen_one() -> None:
    page = render_optimization(report(), "model.onnx")
    for style, count in (("chosen", 2), ("measured", 2), ("measured-not", 2)):
        assert page.count(f'class="{style}"') == count, style  # the point, and the legend
    assert page.count('class="interval"') == 3
    assert page.count('class="mark"') == 1  # the promise
    assert "&lt;b&gt;cut" in page
    assert "<b>cut" not in page
    assert "onnx-igpc</code>" not in page
    assert page.index("What was tried") < page.index("Step by step")
    assert 'src="data:,"' in page


def test_a_step_that_was_not_taken_shows_no_command() -> None:
    page = render_optimization(report(), "model.onnx")
    assert page.count('<li class="left-out"><b>trained</b>, skipped: no time</li>') == 1


def test_a_promise_of_values_is_drawn_by_the_error() -> None:
    made = report()
    for each, error in zip(made.points, (0.0, 0.03, 0.4), strict=True):
        each.damage = DamageReport(samples=100, relative_error=error, output="boxes")
    page = render_optimization(replace(made, promise="output=0.05"), "model.onnx")
    assert "1 − relative error" in page
    assert page.count('class="mark"') == 1
    assert 'class="interval"' not in page
