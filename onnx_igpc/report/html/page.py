"""The report as a page: one file that needs no other, no network and no script to be read."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files

from onnx_igpc.report.benchmark import BenchmarkReport
from onnx_igpc.report.damage import ordered_warnings
from onnx_igpc.report.html.blocks_table import blocks_table
from onnx_igpc.report.html.channels_table import channels_table
from onnx_igpc.report.html.choice_chart import choice_chart
from onnx_igpc.report.html.depth_charts import depth_charts
from onnx_igpc.report.html.elements import Child, Element, element, to_html, verbatim
from onnx_igpc.report.html.findings import machine, making, verification
from onnx_igpc.report.html.latency_charts import latency_charts
from onnx_igpc.report.html.layout_drawing import Drawings
from onnx_igpc.report.html.ledger import ledger, percent_left
from onnx_igpc.report.html.site_detail import SiteDetails
from onnx_igpc.report.html.sites_table import sites_table
from onnx_igpc.report.html.texts import percent, short_names
from onnx_igpc.report.html.training_charts import training_charts
from onnx_igpc.report.numbers import exact
from onnx_igpc.report.quantization import damage_text, types_text
from onnx_igpc.report.sections import DamageReport
from onnx_igpc.report.tree import RewriteReport


def render_html(report: RewriteReport, title: str) -> str:
    """The page of a report.

    Nothing in it comes from elsewhere: styles, script and pictures are in the page, and its
    Content-Security-Policy forbids everything else. Text from the model is escaped.

    Args:
        report: what was done and measured; parts that it lacks are left out of the page.
        title: the name of the model that the page is about.
    """
    drawings = Drawings()
    sections = report_sections(report, title, drawings)
    return document(title, _header(report, title), sections, drawings, report.tool)


def report_sections(report: RewriteReport, title: str, drawings: Drawings) -> list[Element]:
    """The sections of a report's page, those left out of which nothing is known."""
    report = replace(report, benchmark=_with_short_paths(report.benchmark))
    sections = [
        section("brought", "What it cost and brought", [ledger(report, title)]),
        section("depth", "Along the network", depth_charts(report)),
        section("choice", "The budget", [choice_chart(report.selection)]),
        section("training", "Fine-tuning", training_charts(report.finetune)),
        section(
            "latency", "Latency", [*latency_charts(report.benchmark), *machine(report.benchmark)]
        ),
        section("verified", "Verification", verification(report.verify)),
        section("blocks", "Residual blocks that were collapsed", blocks_table(report.blocks)),
        section("channels", "Convolutions with fewer channels", channels_table(report.narrowed)),
        section("sites", "Every pointwise convolution", sites_table(report, SiteDetails(drawings))),
        section("made", "How it was made", making(report)),
    ]
    return [each for each in sections if each is not None]


def document(
    title: str,
    header: Sequence[Child],
    sections: Sequence[Element],
    drawings: Drawings,
    tool: str,
) -> str:
    """A page of such sections, with links to them below its header."""
    style, script = _resource("report.css"), _resource("report.js")
    head = element(
        "head",
        None,
        element("meta", {"charset": "utf-8"}),
        element(
            "meta",
            {"http-equiv": "Content-Security-Policy", "content": _policy(style, script)},
        ),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("meta", {"name": "color-scheme", "content": "light dark"}),
        element("meta", {"name": "referrer", "content": "no-referrer"}),
        element("link", {"rel": "icon", "href": "data:,"}),
        element("title", None, f"{title}: onnx-igpc report"),
        verbatim("style", style),
        verbatim("script", script),
    )
    sites = any(each.get("id") == "sites" for each in sections)
    body = element(
        "body",
        None,
        element("a", {"class": "skip", "href": "#sites"}, "Skip to the sites") if sites else None,
        drawings.definitions(),
        element("header", None, header, _contents(sections)),
        element("main", None, sections),
        element("footer", None, element("p", None, f"Written by {tool}.")),
    )
    return to_html(element("html", {"lang": "en"}, head, body))


def _header(report: RewriteReport, title: str) -> list[Child]:
    warnings = ordered_warnings(report)
    return [
        element("p", {"class": "kicker"}, "onnx-igpc report"),
        element("h1", None, element("bdi", None, title)),
        element("p", {"class": "lede"}, " ".join(_sentences(report))),
        element("ul", {"class": "warnings"}, [element("li", None, each) for each in warnings])
        if warnings
        else None,
    ]


def _sentences(report: RewriteReport) -> list[str]:
    """What was done, and what is left of the model."""
    said = []
    if report.rewritten or (report.sites and not report.blocks and not report.narrowed):
        said.append(
            f"{len(report.rewritten)} of {len(report.sites)} pointwise convolutions are interleaved "
            "grouped ones."
        )
    if report.blocks:
        one = len(report.blocks) == 1
        said.append(
            f"{len(report.blocks)} residual block{'' if one else 's'} became one pointwise convolution"
            f"{'' if one else ' each'}."
        )
    if report.narrowed:
        read = sum(each.channels.before or 0 for each in report.narrowed)
        left_in = sum(each.channels.after or 0 for each in report.narrowed)
        said.append(
            f"{len(report.narrowed)} pointwise convolutions read fewer channels, {left_in:,} in the place of {read:,}."
        )
    left = [
        f"{share} of its {what}"
        for what, change in (
            ("parameters", report.totals.parameters),
            ("multiply-accumulates", report.totals.macs),
        )
        if (share := percent_left(change)) is not None
    ]
    if (kept := _answers(report.damage)) is not None:
        said.append(kept)
    if left:
        said.append(f"The model has {' and '.join(left)} left.")
    if report.finetune is not None:
        count, samples = len(report.finetune.epochs), exact(report.finetune.data.samples)
        said.append(f"It was fine-tuned for {count} epoch{'s'[: count != 1]} on {samples} samples.")
    elif report.calibration is not None:
        samples = exact(report.calibration.samples)
        said.append(f"The weights were fitted on {samples} samples and not trained.")
    if report.quantization is not None:
        said.append(f"It was {types_text(report.quantization)}.")
        if (damage := damage_text(report.quantization)) is not None:
            said.append(f"{damage[:1].upper()}{damage[1:]}.")
    return said


def _answers(damage: DamageReport | None) -> str | None:
    """What is left of the original's answers; ``None`` where that is not known."""
    if damage is None or damage.unknown is not None or damage.agreement is None:
        return None
    on = f"on {percent(damage.agreement)} of {exact(damage.samples)} samples"
    left_out = " that were left out of the fit" if damage.fitted is not None else ""
    return f"It gives the original's answer {on}{left_out}."


def section(name: str, title: str, contents: Sequence[Child]) -> Element | None:
    """A section with its heading; ``None`` where there is nothing in it."""
    filled = [each for each in contents if each is not None]
    if not filled:
        return None
    return element(
        "section",
        {"id": name, "aria-labelledby": f"{name}-title"},
        element("h2", {"id": f"{name}-title"}, title),
        contents,
    )


def _contents(sections: Sequence[Element]) -> Element:
    """Links to the sections."""
    links = []
    for section in sections:
        heading = section.find("h2")
        assert heading is not None
        link = element("a", {"href": f"#{section.get('id')}"}, heading.text)
        links.append(element("li", None, link))
    return element("nav", {"aria-label": "Sections"}, element("ul", None, links))


def _with_short_paths(benchmark: BenchmarkReport | None) -> BenchmarkReport | None:
    """The benchmark with names of files in the place of paths, where they tell the models apart."""
    if benchmark is None:
        return None
    paths = [each.path for each in benchmark.models]
    names = short_names(paths + [t.path for race in benchmark.races for t in race.timings])
    races = (
        replace(race, timings=tuple(replace(t, path=names[t.path]) for t in race.timings))
        for race in benchmark.races
    )
    models = (replace(each, path=names[each.path]) for each in benchmark.models)
    return replace(benchmark, models=tuple(models), races=tuple(races))


@cache
def _resource(name: str) -> str:
    return files("onnx_igpc.report.html").joinpath(name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Only this style and this script, and pictures that are in the page (W3C CSP Level 3)."""
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
    return f"'sha256-{digest}'"
