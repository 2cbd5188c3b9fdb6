"""The report as a single HTML page; :func:`~onnx_igpc.report.html.page.render_html` makes it."""

from __future__ import annotations

from onnx_igpc.report.html.page import render_html

__all__ = ["render_html"]
