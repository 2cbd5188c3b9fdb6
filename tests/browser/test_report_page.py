"""The page in a browser: Chromium through playwright, skipped where either is missing.

The browser is the one that CHROMIUM names, or else chromium or google-chrome on the PATH.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from onnx_igpc.report.html import render_html
from onnx_igpc.report.tree import RewriteReport
from tests.html_reports import hostile_report, network_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the PATH: install it, or name it in CHROMIUM"
)
# For machines that do much else; nothing here waits for a time to pass.
_PATIENCE_MS = 120_000


@dataclass
class Opened:
    """A page in the browser, and what went wrong or was asked of a network in it."""

    page: Any
    complaints: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The sites that are shown, from top to bottom."""
        rows: list[str] = self.page.locator("tr.site:visible bdi").all_inner_texts()
        return rows

    def column(self, place: int) -> list[float]:
        """The values that a column sorts by, without empty ones."""
        cells = self.page.locator(f"tr.site td:nth-child({place})[data-value]")
        values: list[str] = cells.evaluate_all("cells => cells.map(cell => cell.dataset.value)")
        return [float(value) for value in values]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        # Everywhere but on a desktop there is no user namespace for the sandbox; the pages are ours.
        browser = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=_PATIENCE_MS
        )
        yield browser
        browser.close()


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens a report; at the end of the test nothing may have been complained about."""
    shown: list[Opened] = []

    def opened(report: RewriteReport | None = None, width: int = 1280, **options: Any) -> Opened:
        path = tmp_path / "report.html"
        path.write_text(render_html(report or network_report(), "small.onnx"), encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        context.set_default_timeout(_PATIENCE_MS)
        made = Opened(context.new_page())
        made.page.on("console", lambda message: made.complaints.append(message.text))
        made.page.on("pageerror", lambda error: made.complaints.append(str(error)))
        made.page.on("dialog", lambda dialog: made.complaints.append(dialog.message))
        made.page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith("data:") or request.url == path.as_uri()
                else made.complaints.append(request.url)
            ),
        )
        made.page.goto(path.as_uri())
        shown.append(made)
        return made

    yield opened
    for each in shown:
        assert each.complaints == []
        each.page.context.close()


def test_a_heading_sorts_both_ways_and_says_so(show: Any) -> None:
    opened = show()
    heading = opened.page.locator("thead th", has_text="Parameters")
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    values = opened.column(6)
    assert values == sorted(values, reverse=True)
    heading.get_by_role("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert opened.column(6) == sorted(values)
    assert opened.page.locator('th[aria-sort="ascending"]').count() == 1


def test_names_sort_as_a_person_counts(show: Any) -> None:
    opened = show()
    by_name = opened.page.get_by_role("button", name="Sort by Site")
    by_name.focus()
    opened.page.keyboard.press("Space")
    assert opened.names == [f"/features/{number}/conv" for number in range(12)]
    opened.page.keyboard.press("Space")
    assert opened.names[0] == "/features/11/conv"


def test_sites_without_a_value_come_last_either_way(show: Any) -> None:
    opened = show()
    by_error = opened.page.get_by_role("button", name="Sort by Error")
    for _ in range(2):
        by_error.click()
        assert opened.names[-3:] == [f"/features/{number}/conv" for number in (3, 7, 11)]


def test_the_filter_takes_names_reasons_and_status(show: Any) -> None:
    opened = show()
    search = opened.page.get_by_label("Name or reason")
    search.fill("FEATURES/1")
    assert opened.names == [f"/features/{number}/conv" for number in (1, 10, 11)]
    assert opened.page.locator("#shown").inner_text() == "3 of 12 sites"
    search.fill("excluded features/7")
    assert opened.names == ["/features/7/conv"]
    search.fill("")
    opened.page.get_by_label("Show").select_option("kept")
    assert len(opened.names) == 3
    search.fill("nothing is called so")
    assert opened.names == []
    assert opened.page.locator("#shown").inner_text() == "0 of 12 sites"


def test_a_row_opens_by_mouse_and_by_keyboard(show: Any) -> None:
    opened = show()
    button = opened.page.get_by_role("button", name="/features/0/conv")
    detail = opened.page.locator("#" + button.get_attribute("aria-controls"))
    assert not detail.is_visible()
    opened.page.locator("tr.site").first.locator("td").nth(1).click()
    assert detail.is_visible()
    assert button.get_attribute("aria-expanded") == "true"
    button.click()
    assert not detail.is_visible()
    button.press("Enter")
    assert detail.is_visible()
    button.press("Space")
    assert not detail.is_visible()
    assert button.get_attribute("aria-expanded") == "false"


def test_an_open_row_stays_with_its_site_and_goes_with_it(show: Any) -> None:
    opened = show()
    opened.page.get_by_role("button", name="/features/4/conv").click()
    opened.page.get_by_role("button", name="Sort by Error").click()
    before = "tr.site:has(button[aria-expanded=true]) + tr.detail.open"
    assert opened.page.locator(before).count() == 1
    opened.page.get_by_label("Name or reason").fill("features/5")
    assert opened.page.locator("tr.detail:visible").count() == 0


def test_the_whole_page_can_be_reached_with_the_tab_key(show: Any) -> None:
    opened = show(network_report(3))
    reached = set()
    for _ in range(60):
        opened.page.keyboard.press("Tab")
        reached.add(opened.page.evaluate("document.activeElement.textContent.trim()"))
    assert {"Skip to the sites", "/features/2/conv", "Latency"} <= reached


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(
    show: Any, tmp_path: Path, width: int, scheme: str
) -> None:
    opened = show(width=width, color_scheme=scheme)
    for place in (0, 3):
        opened.page.locator("button.opens").nth(place).click()
    for summary in opened.page.locator("summary").all():
        summary.click()
    assert _too_wide(opened.page) == []
    assert opened.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    opened.page.screenshot(path=tmp_path / f"{scheme}_{width}.png", full_page=True)


@pytest.mark.parametrize("width", [390, 1280])
def test_a_hostile_model_runs_nothing_and_fits(show: Any, width: int) -> None:
    opened = show(hostile_report(), width=width)
    for button in opened.page.locator("button.opens").all():
        button.click()
    assert opened.page.locator("img:not(.picture img)").count() == 0
    assert _too_wide(opened.page) == []


def test_pictures_of_the_weights_are_decoded(show: Any) -> None:
    opened = show(hostile_report())
    opened.page.locator("button.opens").first.click()
    pictures = opened.page.locator("tr.detail.open .picture img")
    assert pictures.count() == 2
    sizes = pictures.evaluate_all("all => all.map(img => [img.naturalWidth, img.naturalHeight])")
    assert sizes == [[40, 24], [40, 24]]


def test_light_and_dark_differ_and_can_be_read(show: Any) -> None:
    for scheme in ("light", "dark"):
        opened = show(color_scheme=scheme)
        opened.page.locator("button.opens").first.click()
        for text in ("body", ".lede", ".note", "thead th", "nav a", ".change", "dt", ".reason"):
            found = opened.page.locator(text).first
            ink = found.evaluate("each => getComputedStyle(each).color")
            paper = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert _contrast(ink, paper) >= 4.5, (scheme, text, ink, paper)
        assert (_luminance(paper) < 0.1) == (scheme == "dark")


def test_without_scripts_everything_is_open(show: Any) -> None:
    opened = show(java_script_enabled=False)
    assert opened.page.locator("tr.detail:visible").count() == 12
    assert not opened.page.locator(".controls").is_visible()


def test_printed_on_white_without_what_only_a_screen_can_use(show: Any) -> None:
    opened = show(color_scheme="dark", width=690)  # what margins leave of A4
    opened.page.locator("button.opens").first.click()
    opened.page.emulate_media(media="print", color_scheme="dark")
    assert _too_wide(opened.page) == []
    assert opened.page.locator("thead th", has_text="Channels").is_visible()
    assert not opened.page.locator(".controls").is_visible()
    paper = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert _luminance(paper) == 1.0


def _too_wide(page: Any) -> list[str]:
    """What reaches beyond the window, except what scrolls in itself or is hidden on purpose."""
    found: list[str] = page.evaluate(
        """() => [...document.querySelectorAll("body *")]
          .filter(each => !each.closest(".scroll") && each.checkVisibility())
          .filter(each => each.getBoundingClientRect().right > window.innerWidth + 0.5)
          .map(each => each.tagName + " " + each.textContent.slice(0, 40))"""
    )
    return found


def _contrast(first: str, second: str) -> float:
    """Contrast ratio of two CSS colours (WCAG 2.2, definition of contrast ratio)."""
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


def _luminance(color: str) -> float:
    """Relative luminance of ``rgb(r, g, b)`` (WCAG 2.2, definition of relative luminance)."""
    parts = [float(each) / 255 for each in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [
        each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
