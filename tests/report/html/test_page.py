"""The page of a report: what it says, and that nothing from a model can be more than text in it."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from onnx_igpc.report.html import render_html
from onnx_igpc.report.html.elements import element, to_html, verbatim, visible
from onnx_igpc.report.sections import DamageReport, MeasuredOn, Thumbnail
from onnx_igpc.report.selection import LatencyReport, TriedPlan
from onnx_igpc.report.tree import Change, RewriteReport, SiteReport, Totals
from tests.html_reports import (
    HOSTILE,
    benchmark_report,
    finetune_report,
    hostile_report,
    lowering_report,
    network_report,
    selection_report,
    verify_report,
)


class Page(HTMLParser):
    """All elements of a page as (tag, attributes), and its text outside of styles and scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.raw: dict[str, str] = {}
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.raw[self._inside] = self.raw.get(self._inside, "") + data
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_everything_that_was_done_and_measured_is_on_the_page() -> None:
    page = Page(render_html(network_report(), "small.onnx"))
    for said in (
        "9 of 12 pointwise convolutions",
        "35.0\xa0% of its parameters",
        "2.00M700k35.0\xa0% left",
        "8.00M2.80M",
        "2.5\xa0ms2\xa0ms1.25 × as fast",
        "98.3\xa0%99.2\xa0%+0.9 points",
        "100.0\xa0%99.7\xa0%−0.3 points",
        "expect to fine-tune before use",
        "chosen: 39.8\xa0% left, damage 0.014",
        "validation data: 20.0\xa0% to 88.0\xa0%",
        "1 rounds beyond 5\xa0ms",
        "at best 1.60 ×, of which 78\xa0% is reached",
        "kept: excluded by --exclude",
        "y = K x + L P K x",
        "ch16",
    ):
        assert said in page.text, said
    assert "not measured" not in page.text


def test_the_page_is_about_the_model_of_its_title_and_no_other_that_ends_alike() -> None:
    report = network_report()
    assert report.benchmark is not None
    (race,) = report.benchmark.races
    last = replace(race.timings[1], path="models/xsmall.onnx", median_ms=1.0)
    races = (replace(race, timings=(*race.timings, last)),)
    model = replace(report.benchmark.models[1], path=last.path)
    models = (*report.benchmark.models, model)
    report.benchmark = replace(report.benchmark, races=races, models=models)
    assert "2.5\xa0ms2\xa0ms1.25 × as fast" in Page(render_html(report, "small.onnx")).text
    assert "2.5\xa0ms1\xa0ms1.25 × as fast" in Page(render_html(report, "xsmall.onnx")).text


def test_what_is_missing_says_how_to_get_it() -> None:
    report = RewriteReport(totals=Totals(Change(10, 5), Change(10, 5)))
    page = Page(render_html(report, "small.onnx"))
    assert "onnx-igpc benchmark ORIGINAL.onnx small.onnx --report FILE.html" in page.text
    assert "onnx-igpc verify ORIGINAL.onnx small.onnx --data DATA --report FILE.html" in page.text
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert not ids & {"sites", "training", "latency", "choice", "depth", "verified"}


def test_what_calibration_measured_stands_in_where_nothing_was_verified() -> None:
    report = network_report()
    report.verify = None
    report.damage = DamageReport(agreement=0.9067, samples=300)
    assert "90.7\xa0%" in Page(render_html(report, "a")).text
    report.notes.append(MeasuredOn.FITTED.note)
    on = "on 300 samples of the data that the weights were fitted to"
    assert on in Page(render_html(report, "a")).text
    report.damage = DamageReport(relative_error=0.0375, output="boxes", samples=300)
    page = Page(render_html(report, "a"))
    assert "of output boxes, on 300 samples of the data" in page.text
    assert "3.75\xa0%" in page.text


def held_out(agreement: float = 0.75) -> RewriteReport:
    """A report with nothing measured but damage on held-out data."""
    report = network_report()
    report.verify = report.benchmark = None
    report.notes = [MeasuredOn.LEFT_OUT.note]
    fitted = DamageReport(agreement=0.955, interval=(0.9, 1.0), kl=0.1, samples=300)
    report.damage = DamageReport(
        agreement=agreement, interval=(0.657, 0.825), kl=0.42, samples=100, fitted=fitted
    )
    return report


def test_damage_stands_before_the_savings_with_its_interval_and_the_fitted_figure() -> None:
    page = Page(render_html(held_out(), "small.onnx"))
    on = "on 100 samples of data that was neither fitted to nor chosen by"
    for said in (
        "75.0\xa0% of 100 samples that were left out of the fit. The model has 35.0\xa0% of its",
        f"{on}; 95\xa0% interval 65.7\xa0% to 82.5\xa0%–75.0\xa0%needs training",
        f"Kullback-Leibler of class probabilities, nats, {on}–0.42",
        "on 300 samples that it was fitted to, which flatters–95.5\xa0%",
    ):
        assert said in page.text, said
    assert page.text.index(on) < page.text.index("2.00M700k")
    assert "0.1Accuracy" not in page.text  # the fit's own divergence says nothing
    (interval,) = (each for each in page.all("rect") if each.get("class") == "bar-interval")
    assert interval["x"] == "65.70%"
    assert interval["width"] == "16.80%"


def test_large_damage_stands_above_all_other_warnings() -> None:
    large = "agreement 3.0% on 100 samples not used for the fit: this model needs training"
    text = Page(render_html(held_out(0.03), "small.onnx")).text
    assert text.index(large) < text.index("expect to fine-tune before use")
    assert "needs training" not in Page(render_html(held_out(0.9), "small.onnx")).text


def test_unknown_damage_is_told_and_the_fitted_figure_named_as_flattering() -> None:
    report = held_out()
    fitted = DamageReport(agreement=0.955, samples=12)
    report.damage = DamageReport(samples=0, unknown="12 samples are too few", fitted=fitted)
    text = Page(render_html(report, "small.onnx")).text
    assert "Damage12 samples are too few" in text
    assert "on 12 samples that it was fitted to, which flatters–95.5\xa0%" in text
    assert "left out of the fit" not in text


def test_damage_stands_beside_a_verification_on_random_inputs_only() -> None:
    report = held_out()
    report.verify = verify_report()
    assert "75.0\xa0%needs" not in Page(render_html(report, "small.onnx")).text
    report.verify = replace(report.verify, random=True)
    assert "75.0\xa0%needs" in Page(render_html(report, "small.onnx")).text


def test_latency_is_what_compress_raced_where_no_benchmark_did() -> None:
    report = held_out()
    assert "onnx-igpc benchmark" in Page(render_html(report, "small.onnx")).text
    assert report.selection is not None
    report.selection.latency = LatencyReport(
        predicted=0.45, measured=0.5, damage=0.1, dense_seconds=0.004, tried=[]
    )
    text = Page(render_html(report, "small.onnx")).text
    assert "with random weights; before: the dense model4\xa0ms2\xa0ms2.00 × as fast" in text
    report.lowering = lowering_report()
    text = Page(render_html(report, "small.onnx")).text
    assert "batch 1, 1 thread, cpu; raced when it was lowered, before: all sites dense" in text
    assert "2.90 to 3.10 × as fast3\xa0ms1\xa0ms3.00 × as fast" in text
    assert "onnx-igpc benchmark" not in text
    report.benchmark = benchmark_report()
    text = Page(render_html(report, "small.onnx")).text
    assert "2.5\xa0ms2\xa0ms1.25 × as fast" in text
    assert "raced when" not in text


def test_measured_plans_stand_beside_the_predicted_curve() -> None:
    report = held_out()
    assert report.selection is not None
    report.selection.measured_damage = 0.02
    report.selection.tried = [
        TriedPlan(share=0.41, predicted=0.01, measured=0.05, agreement=0.8),
        TriedPlan(share=0.398, predicted=0.014, measured=0.02),
        TriedPlan(share=0.5, predicted=0.014, measured=float("inf")),
    ]
    page = Page(render_html(report, "small.onnx"))
    assert "damage 0.014 predicted, 0.02 measured" in page.text
    assert "41.0\xa0%0.010.0580.0\xa0%39.8\xa0%0.0140.02–" in page.text
    points = [each for each in page.all("circle") if each.get("class") == "measured"]
    assert [each["cx"] for each in points if "%" in str(each["cx"])] == ["41.00%", "39.80%"]


def test_the_fits_that_were_tried_the_best_first() -> None:
    report = held_out()
    assert report.calibration is not None
    report.calibration.fit = "b"
    report.calibration.chosen_by = {"a": 0.5, "b": 0.25}
    text = Page(render_html(report, "small.onnx")).text
    assert "each left outfitdamageb0.25chosena0.5" in text


@pytest.mark.parametrize("title", ["small.onnx", HOSTILE])
def test_a_hostile_model_brings_no_element_and_no_attribute(title: str) -> None:
    page = Page(render_html(hostile_report(), title))
    assert {tag for tag, _ in page.elements} <= {
        *("html", "head", "meta", "link", "title", "style", "script", "body", "header", "main"),
        *("footer", "nav", "section", "h1", "h2", "h3", "p", "a", "ul", "li", "table", "caption"),
        *("thead", "tbody", "tr", "th", "td", "span", "code", "svg", "rect", "line", "path"),
        *("circle", "text", "desc", "symbol", "use", "figure", "figcaption", "div", "label"),
        *("input", "select", "option", "output", "button", "bdi", "b", "strong", "dl", "dt", "dd"),
        *("img", "details", "summary"),
    }
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    for attributes in page.all("img"):
        assert str(attributes["src"]).startswith("data:image/png;base64,")
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert {str(each.get("href")) for each in page.all("link")} == {"data:,"}
    assert "<img src=x onerror=alert(1)>" in page.text, "the name is there, as text"


def test_characters_that_cannot_be_seen_are_written_out() -> None:
    text = render_html(hostile_report(), HOSTILE)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    assert "\\u202eevil\\u0000\\u001b[31m\U0001f480" in text
    assert visible("слой/卷积 é") == "слой/卷积 é"
    assert visible("\ud800") == "\\ud800"
    text.encode("utf-8")


def test_the_policy_allows_this_style_and_this_script_and_nothing_else() -> None:
    page = Page(render_html(network_report(), "small.onnx"))
    (policy,) = [
        str(each["content"])
        for each in page.all("meta")
        if each.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for kind in ("style", "script"):
        digest = hashlib.sha256(page.raw[kind].encode()).digest()
        assert rules[f"{kind}-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert "unsafe" not in policy
    addresses = [
        str(value)
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "action", "data", "poster", "srcset")
    ]
    assert [each for each in addresses if not each.startswith(("#", "data:"))] == []


def test_what_ids_refer_to_is_there_once() -> None:
    page = Page(render_html(network_report(), "small.onnx"))
    ids = [str(attributes["id"]) for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for name in ("aria-labelledby", "aria-controls", "for"):
            for wanted in str(attributes.get(name) or "").split():
                assert wanted in ids, (name, wanted)
        if str(attributes.get("href") or "").startswith("#"):
            assert str(attributes["href"])[1:] in ids


def test_tables_and_drawings_speak_to_screen_readers() -> None:
    page = Page(render_html(network_report(), "small.onnx"))
    assert all(each.get("scope") in ("row", "col") for each in page.all("th"))
    for attributes in page.all("svg"):
        named = attributes.get("aria-label") or attributes.get("aria-labelledby")
        nested = "viewbox" in attributes  # a part of a drawing that is named as a whole
        assert named or attributes.get("aria-hidden") == "true" or nested
    assert all(each.get("alt") for each in page.all("img"))


def test_layouts_that_sites_share_are_drawn_once() -> None:
    page = Page(render_html(network_report(60), "small.onnx"))
    assert len(page.all("use")) > 3 * len(page.all("symbol"))


def test_a_large_network_stays_small() -> None:
    # Without pictures: at most 6 KB a site, so that 500 sites are 3 MB.
    assert len(render_html(network_report(500), "a")) < 500 * 6000


def test_the_page_is_the_same_each_time() -> None:
    assert render_html(network_report(), "a") == render_html(network_report(), "a")


def test_reports_without_what_a_part_needs() -> None:
    unknown = SiteReport("a", None, None, "kept", "weight is computed at run time")
    broken = SiteReport(
        "b",
        8,
        8,
        "rewritten",
        thumbnails={"M": Thumbnail(cells=(1, 1), shape=(8, 8), largest=1.0, data="?")},
    )
    report = RewriteReport(
        sites=[unknown, broken],
        selection=replace(selection_report(), curve=[], chosen=(0.0, 0.0)),
        finetune=finetune_report(epochs=1),
    )
    page = Page(render_html(report, "a"))
    assert "weight is computed at run time" in page.text
    assert "? → ?" in page.text


def test_elements_escape_and_refuse() -> None:
    assert to_html(element("p", {"title": '"<&'}, "<b>&")).endswith(
        '<p title="&quot;<&amp;">&lt;b&gt;&amp;</p>'
    )
    with pytest.raises(ValueError, match="not the text of a script"):
        verbatim("script", "</script>")
    with pytest.raises(ValueError, match="not the text of a p"):
        verbatim("p", "text")
