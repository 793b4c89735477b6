"""The report in a real browser with the network cut."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from floral.stages.report import report

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]


@pytest.fixture
def browser(missing) -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        missing("chromium: no program of this name on the path; .ci/setup installs it")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def address(tmp_path: Path, results: Path, suite_runs) -> str:
    return report("quickstart", suite_runs, results, tmp_path / "reports", partial=True).as_uri()


def opened(browser: Browser, address: str, width: int, scheme: str) -> Page:
    """The page, after asserting that it asked for nothing but itself and complained about nothing."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    context.set_offline(True)
    asked: list[str] = []
    complaints: list[str] = []
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    page.wait_for_load_state("load")
    assert asked == [address] and complaints == []
    return page


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_opens_alone_and_fits(browser, address, width, scheme):
    page = opened(browser, address, width, scheme)
    assert page.locator("#main table").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator("figure svg").count() >= 8
    too_wide = (
        "[...document.querySelectorAll('figure svg')].filter(s => s.getBoundingClientRect().right > innerWidth)"
        ".filter(s => !s.closest('.wide')).length"  # which scrolls in a box of its own
    )
    assert page.evaluate(too_wide) == 0
    boxes = "[...document.querySelectorAll('.wide, .scroll')].filter(b => b.getBoundingClientRect().right > innerWidth)"
    assert page.evaluate(f"{boxes}.length") == 0


def test_every_entry_of_the_contents_leads_somewhere(browser, address):
    page = opened(browser, address, 1280, "light")
    for link in page.locator("nav a").all():
        assert page.locator(link.get_attribute("href")).count() == 1


def test_ink_changes_with_the_scheme(browser, address):
    inks = set()
    for scheme in ("light", "dark"):
        page = opened(browser, address, 1280, scheme)
        inks.add(page.evaluate("getComputedStyle(document.querySelector('figure svg .role-title-text text')).fill"))
    assert len(inks) == 2


def test_columns_sort_across_families(browser, address):
    page = opened(browser, address, 1280, "light")
    names = "[...document.querySelectorAll('#main .gt_table tbody .gt_stub')].map(cell => cell.textContent)"
    heading = page.locator("#main .gt_table thead tr:last-child th").first
    heading.click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert page.evaluate(names)[:3] == ["FLoRAL 1\u00a0%", "Ensemble", "FedAvg"]
    heading.press("Enter")
    assert page.evaluate(names)[:3] == ["Ensemble", "FLoRAL 1\u00a0%", "FedAvg"]  # which has no mean, and stays last
    assert len(page.evaluate(names)) == 5
    families = "[...document.querySelectorAll('#main .gt_group_heading_row')].filter(row => !row.hidden).length"
    assert page.evaluate(families) == 2  # what stands apart does so sorted too
    heading.press("Enter")
    assert heading.get_attribute("aria-sort") is None and page.evaluate(families) == 5
    assert page.evaluate(names)[:3] == ["FedAvg", "Ensemble", "FLoRAL 1\u00a0%"]


def test_a_method_can_be_followed(browser, address):
    page = opened(browser, address, 1280, "light")
    page.locator(".legend button").first.click()
    assert page.locator("figure svg .dim").count() > 0
    page.locator(".legend button").first.click()
    assert page.locator("figure svg .dim").count() == 0


def test_prints_with_everything_open(browser, address, tmp_path):
    page = opened(browser, address, 1280, "light")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 0
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")
