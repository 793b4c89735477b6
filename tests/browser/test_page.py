"""The report in a real browser with the network cut."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page
from run_folders import ACCURACY, make_run, write_run, write_suite

from floral.report.build import report

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
ROWS = "[...document.querySelectorAll('%s .gt_table tbody .gt_stub')].map(cell => cell.textContent)"
COLOUR = "[...document.querySelectorAll('.legend button')].find(b => b.textContent.trim() === '%s').dataset.colour"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One page for all tests, which only read it; each opens it in a context of its own."""
    folder = tmp_path_factory.mktemp("page")
    runs = write_suite(folder / "results")
    return report("quickstart", runs, folder / "results", folder / "reports", partial=True).as_uri()


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


def test_a_page_of_a_thousand_runs_stays_small(browser, tmp_path):
    """Bytes and elements, which its loading time follows: 15 MB are the limit."""
    tasks = ("digits_rotate", "digits_label_shift", "mnist_rotate", "mnist_label_shift", "fashion_rotate")
    runs = [make_run(task, variant, seed) for task in tasks for variant in ACCURACY for seed in range(25)]
    for run in runs:
        write_run(tmp_path / "results", run)
    path = report("quickstart", runs, tmp_path / "results", tmp_path / "reports")
    assert len(runs) == 1000 and path.stat().st_size < 15e6
    page = opened(browser, path.as_uri(), 1280, "light")
    assert page.evaluate("document.querySelectorAll('*').length") < 40_000
    assert "1000 runs" in page.inner_text("main").replace(",", "").replace("\u202f", "")


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
    names = ROWS % "#main"
    heading = page.locator("#main .gt_table thead tr:last-child th").first
    button = heading.locator("button")
    button.click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert page.evaluate(names)[:3] == ["FLoRAL 1\u00a0%", "Ensemble", "FedAvg"]
    button.press("Enter")
    assert page.evaluate(names)[:3] == ["Ensemble", "FLoRAL 1\u00a0%", "FedAvg"]  # which has no mean, and stays last
    assert len(page.evaluate(names)) == 5
    families = "[...document.querySelectorAll('#main .gt_group_heading_row')].filter(row => !row.hidden).length"
    assert page.evaluate(families) == 2  # what stands apart does so sorted too
    button.press("Enter")
    assert heading.get_attribute("aria-sort") is None and page.evaluate(families) == 5
    assert page.evaluate(names)[:3] == ["FedAvg", "Ensemble", "FLoRAL 1\u00a0%"]


def test_words_sort_as_words(browser, address):
    page = opened(browser, address, 1280, "light")
    page.locator("#main .gt_table thead th").first.locator("button").press("Enter")
    assert page.evaluate(ROWS % "#main")[:3] == ["Ensemble", "FedAvg", "FLoRAL 1\u00a0%"]


def test_a_search_keeps_the_rows_that_have_every_word(browser, address):
    page = opened(browser, address, 1280, "light")
    page.locator("#provenance details").last.locator("summary").click()
    box = page.locator("#provenance input[type=search]").last
    rows = "[...document.querySelectorAll('#provenance .runs tbody tr')].filter(row => !row.hidden).length"
    assert page.evaluate(rows) == 15
    box.fill("digits_rotate done")
    assert page.evaluate(rows) == 8
    assert page.locator("#provenance .search [role=status]").last.text_content() == "8 of 15 rows"
    page.locator("#provenance .runs th button").nth(2).click()  # a search outlives an order
    assert page.evaluate(rows) == 8
    box.fill("")
    assert page.evaluate(rows) == 15


def test_figures_tell_their_values_to_the_pointer_and_to_the_keys(browser, address):
    page = opened(browser, address, 1280, "light")
    tip, figure = page.locator("#tip"), page.locator("#result_digits_rotate svg")
    colour = page.evaluate(COLOUR % "FLoRAL 1 %")
    dot = figure.locator(f".mark-symbol [fill='{colour}']").first
    dot.hover()
    assert tip.text_content() == "FLoRAL 1 %: 86"  # seeds 85, 86 and 87
    page.mouse.move(2, 2)
    assert tip.text_content() == ""
    curve = page.locator("#rounds_digits_rotate svg")
    curve.focus()
    curve.press("Home")
    assert " at 0 (Round)" in (first := tip.text_content())
    curve.press("ArrowRight")
    assert tip.text_content() != first and tip.is_visible()
    curve.press("Escape")
    assert not tip.is_visible()


def test_the_data_behind_every_figure_lie_beside_it(browser, address):
    page = opened(browser, address, 1280, "light")
    folder = Path(address.removeprefix("file://")).parent
    figures = page.locator("figure.plot").count()
    places = [link.get_attribute("href") for link in page.locator("figcaption a").all()]
    assert len(places) == 3 * figures > 0
    assert all((folder / place).stat().st_size for place in places)
    assert all(len(told.split()) > 3 for told in page.locator("figcaption").all_text_contents())


def test_a_chosen_scheme_wins_over_the_systems(browser, address):
    page = opened(browser, address, 1280, "light")
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    switch = page.locator("button.theme")
    switch.click()
    assert switch.text_content() == "Colours: light" and page.evaluate(paper) == light
    switch.press("Enter")
    assert switch.text_content() == "Colours: dark" and page.evaluate(paper) != light
    page.reload()
    assert page.locator("button.theme").text_content() == "Colours: dark"
    page.emulate_media(media="print")
    assert page.evaluate(paper) == light


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault_beyond_minor(browser, address, scheme, missing):
    if not AXE.exists():
        missing(f"axe-core: no {AXE}; .ci/setup installs it (npm ci --prefix tests/browser)")
    page = opened(browser, address, 1280, scheme)
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']}).then(result => result.violations)")
    told = [f"{one['impact']} {one['id']}: {one['nodes'][0]['html'][:200]}" for one in found]
    assert [line for line in told if line.startswith(("moderate", "serious", "critical"))] == []


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
