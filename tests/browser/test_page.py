"""The report in a real browser with the network cut."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from playwright.sync_api import Browser, Page
from projects import ROOT
from run_folders import ACCURACY, make_run, write_run, write_suite

from floral.report.build import _page, report
from floral.report.collect import collect
from floral.report.sections.base import Material
from floral.report.style import REFERENCE, method_styles
from floral.report.summarise import comparisons, result_unit, results
from floral.report.templates import template_yaml

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
ROWS = "[...document.querySelectorAll('%s .gt_table tbody .gt_stub')].map(cell => cell.textContent)"
COLOUR = "OVERVIEW.methods.find(method => method.short === '%s').colour"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One page for all tests, which only read it; each opens it in a context of its own."""
    folder = tmp_path_factory.mktemp("page")
    runs = write_suite(folder / "results")
    return report("quickstart", runs, folder / "results", folder / "reports", partial=True).as_uri()


def opened(browser: Browser, address: str, width: int = 1280, scheme: str = "light", section: str = "") -> Page:
    """The page with a section unfolded, after asserting that it asked for nothing but itself and complained of nothing.

    section: the id of the section, or `all` for all sections.
    """
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
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
    if section == "all":
        page.locator("#unfold").click()
        page.wait_for_function("document.querySelectorAll('script[type=\"text/packed\"]').length === 0")
    elif section:
        page.evaluate(f"openSection('{section}')")
    assert asked == [address] and complaints == []
    return page


PACKED_BYTES_PER_RUN, MAX_ELEMENTS, MAX_SCREENS, MAX_PRINTED_PAGES = 2400, 15_000, 20, 25


def test_a_page_of_a_thousand_runs_stays_small(browser, tmp_path):
    """Bytes, elements, height, width and printed pages make a page slow to open, long to read and dear to print."""
    tasks = ("digits_rotate", "digits_label_shift", "mnist_rotate", "mnist_label_shift", "fashion_rotate")
    runs = [make_run(task, variant, seed) for task in tasks for variant in ACCURACY for seed in range(25)]
    for run in runs:
        write_run(tmp_path / "results", run)
    path = report("quickstart", runs, tmp_path / "results", tmp_path / "reports")
    assert len(runs) == 1000 and path.stat().st_size < PACKED_BYTES_PER_RUN * len(runs)
    page = opened(browser, path.as_uri(), 1400)
    assert page.evaluate("document.querySelectorAll('*').length") < MAX_ELEMENTS
    assert page.evaluate("document.documentElement.scrollHeight") < MAX_SCREENS * 900
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert "1000 runs" in page.inner_text("main").replace(",", "").replace("\u202f", "")
    printed = page.pdf(format="A4")
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b(?!s)", printed)) <= MAX_PRINTED_PAGES


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_opens_alone_and_fits(browser, address, width, scheme):
    page = opened(browser, address, width, scheme, "all")
    assert page.locator("#main table").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator("figure svg").count() >= 8
    too_wide = (
        "[...document.querySelectorAll('figure svg')].filter(s => s.getBoundingClientRect().right > innerWidth)"
        ".filter(s => !s.closest('.broad')).length"  # which scrolls in a box of its own
    )
    assert page.evaluate(too_wide) == 0
    boxes = (
        "[...document.querySelectorAll('.drawing, .scroll')].filter(b => b.getBoundingClientRect().right > innerWidth)"
    )
    assert page.evaluate(f"{boxes}.length") == 0
    page.evaluate("document.querySelector('table.heat').parentElement.scrollLeft = 200")
    assert page.evaluate("document.querySelector('table.heat tbody th').getBoundingClientRect().left") >= 0


def test_the_contents_unfold_the_section_they_lead_to(browser, address):
    page = opened(browser, address)
    for link in page.locator("nav a").all():
        assert page.locator(link.get_attribute("href")).count() == 1
    assert page.locator("details.fold[open]").count() == 0 and page.locator("#main table").count() == 0
    page.locator("nav a[href='#main']").click()
    page.locator("#main table").first.wait_for()
    assert page.locator("details.fold[open]").count() == 1
    folds = page.locator("details.fold > summary").all_text_contents()
    assert all(len(summary.split()) > 4 for summary in folds), "a title and what the section says"


def test_one_button_unfolds_everything_and_folds_it_again(browser, address):
    page = opened(browser, address, section="all")
    assert page.locator("details.fold details").count() > 5
    assert page.locator("details.fold:not([open]), details.fold details:not([open])").count() == 0
    page.locator("#unfold").click()
    assert page.locator("details.fold[open], details.fold details[open]").count() == 0


# ------------------------------------------------------------------------------------------------ the overview

CELLS = (
    "[...document.querySelectorAll('table.heat tr[data-method]')]"
    ".filter(row => !row.hidden).map(row => row.innerText.trim())"
)


def shown(page: Page) -> dict[str, list[str]]:
    """Return the visible rows of the overview, as method → texts of its cells."""
    rows = [row.replace("\u00a0", " ").split("\t") for row in page.evaluate(CELLS)]
    return {name.strip(): [cell.strip() for cell in cells] for name, *cells in rows}


def test_a_cell_shows_the_mean_the_difference_or_the_rank(browser, address):
    page = opened(browser, address)
    assert shown(page)["FLoRAL 1 %"][0] == "86.0" and shown(page)["FedAvg"][0] == "1/3 diverged"
    page.locator("#intervals").check()
    assert shown(page)["FLoRAL 1 %"][0] == "86.0 ± 2.5"
    page.locator("[data-mode=difference]").click()
    rows = shown(page)
    assert rows["FLoRAL 1 %"][0] == "reference" and rows["Constant"][0] == "\u221275.0"
    page.locator("[data-mode=rank]").click()
    rows = shown(page)
    assert rows["FLoRAL 1 %"][:2] == ["1", "1"] and rows["Constant"][0] == "\u2013"
    csv = page.evaluate("view.mode = 'mean', showTable(), FORMATS.CSV(rowsToCopy())")
    assert '"FLoRAL 1 %","86.0 ± 2.5"' in csv.replace("\u00a0", " ")


def test_the_overview_is_filtered_and_sorted(browser, address):
    page = opened(browser, address)
    first, *_, last = shown(page)
    assert (first, last) == ("FLoRAL 1 %", "Constant")
    page.locator("[data-chip=families][value=Controls]").click()
    assert list(shown(page)) == ["Constant"] and page.locator("#shown").text_content() == "1 of 5 methods"
    page.locator("#reset").click()
    assert len(shown(page)) == 5
    page.locator("#find").fill("fed")
    assert list(shown(page)) == ["FedAvg"]
    page.locator("#find").fill("")
    page.locator("[data-chip=tasks][value=synthetic_linear]").click()
    assert shown(page)["FedAvg"][0].startswith("1.4") and len(shown(page)["FedAvg"]) == 4
    assert page.locator("#tradeoff select").input_value() == "synthetic_linear", "the figure follows"
    assert page.locator(".heat [aria-sort] button").inner_text() == "Rank among 2"
    heading = page.locator(".heat th[data-column=synthetic_linear]")
    heading.locator("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending", "the smallest error is first"
    heading = page.locator(".heat th[data-column=method]")
    heading.locator("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert list(shown(page)) == ["Ensemble", "FedAvg", "FLoRAL 1 %", "FLoRAL 1 % (optimal router)", "Constant"]


def test_the_largest_accuracy_is_first_and_show_all_forgets_the_order(browser, address):
    page = opened(browser, address)
    heading = page.locator(".heat th[data-column=digits_rotate]")
    heading.locator("small").click()
    assert heading.get_attribute("aria-sort") == "descending" and list(shown(page))[:2] == ["FLoRAL 1 %", "Ensemble"]
    page.locator("#reset").click()
    assert heading.get_attribute("aria-sort") is None and page.locator("#reset").is_hidden()


def test_a_search_brings_the_table_into_view(browser, address):
    page = opened(browser, address, 390)
    page.evaluate("document.documentElement.style.scrollBehavior = 'auto', scrollTo(0, 0)")
    page.evaluate("document.getElementById('find').value = 'fed'")
    page.locator("#find").dispatch_event("input")
    assert 0 <= page.evaluate("table.getBoundingClientRect().top") < 800


def test_an_answer_opens_its_runs_and_leads_to_its_methods_and_back(browser, address):
    page = opened(browser, address, 390)
    page.locator("#answers button.name").first.click()
    assert (
        page.evaluate("document.activeElement.id") == "cell-title"
        and page.locator("dialog").evaluate("d => d.scrollTop") == 0
    )
    assert page.locator("dialog").evaluate("d => d.scrollWidth <= d.clientWidth")
    page.keyboard.press("Escape")
    page.evaluate("addEventListener('popstate', () => { window.isBack = true; })")
    page.evaluate("leadTo(OVERVIEW.tasks[0], 'near')")
    assert list(shown(page)) == page.evaluate("OVERVIEW.tasks[0].near.map(id => methodsById.get(id).title)")
    page.go_back()
    page.wait_for_function("window.isBack")
    assert page.url == address


def test_a_cell_leads_to_its_runs(browser, address):
    page = opened(browser, address)
    page.locator("tr[data-method=floral_1] td button").first.click()
    told = page.locator("dialog").inner_text()
    assert "86.0 ± 2.5" in told and "floral show digits_rotate/floral_1/seed2-" in told
    page.locator("#to-curves").click()
    page.locator("#curves figure").first.wait_for()
    assert page.locator("#curves .legend [aria-pressed=true]").text_content() == "FLoRAL 1 %"


def test_the_figure_of_costs_names_the_best_at_their_cost(browser, address):
    page = opened(browser, address)
    assert "FLoRAL 1 % 86.0 with 4" in page.locator("#tradeoff svg").get_attribute("aria-label").replace("\u00a0", " ")
    page.locator("#tradeoff .leader").first.hover()
    assert "±" in page.locator("#tip").text_content()
    page.locator("#tradeoff select").select_option("synthetic_linear")
    assert "MSE" in page.locator("#tradeoff svg").get_attribute("aria-label")
    outside = """svg => [...svg.querySelectorAll(".tick")].filter(text => {
        const [box, figure] = [text.getBoundingClientRect(), svg.getBoundingClientRect()];
        return box.right > figure.right + 0.5 || box.left < figure.left - 0.5;
    }).map(text => text.textContent)"""
    for width in (390, 1400):
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate("drawTradeoff()")
        assert page.locator("#tradeoff svg").evaluate(outside) == []


# --------------------------------------------------------------------------------- comparison of two methods


def test_two_methods_are_compared_as_in_python(browser, tmp_path):
    """All pairs of seven methods, with accuracies of the reference runs of `methods`; as errors, the same numbers."""
    names = [name for name in ACCURACY if name != "constant"]
    tasks = {
        "digits_rotate": "digits_rotate",
        "digits_label_shift": "digits_label_shift",
        "synthetic_linear": "digits_rotate",
    }
    runs = [make_run(task, name, seed) for task in tasks for name in names for seed in range(5)]
    for run in runs:
        write_run(tmp_path, run)
    summary = pl.read_parquet(ROOT / "reports/reference/methods/summary.parquet")
    values = {(row["task"], row["variant"], row["seed"]): row["test_accuracy"] for row in summary.iter_rows(named=True)}
    column = pl.Series([values[tasks[run.task.name], run.variant.name, run.seed] for run in runs])
    collected = collect("quickstart", runs, tmp_path)
    collected = replace(collected, summary=collected.summary.with_columns(test_accuracy=column, test_loss=column))
    styles = method_styles(collected.methods, template_yaml("styles.yaml"))
    material = Material(collected=collected, styles=styles, captions=template_yaml("captions.yaml"), figures={})
    (tmp_path / "index.html").write_text(
        _page(material, [], runs, {"command": "", "missing": [], "outdated": []}), "utf-8"
    )
    page = opened(browser, (tmp_path / "index.html").as_uri())
    told = page.evaluate("""OVERVIEW.tasks.map(task => [task.id, OVERVIEW.methods.flatMap(a => OVERVIEW.methods
        .filter(b => b !== a).map(b => [a.id, b.id, pairedDifference(a, b, task), comparison(a, b, task)]))])""")
    kinds = Counter()
    for task, pairs in told:
        configuration = next(item for item in collected.configurations if item.id == task)
        unit, paired = result_unit(configuration), results(collected, configuration)
        to_reference = comparisons(collected, configuration)
        assert len(pairs) == 42
        for first, second, numbers, sentence in pairs:
            expected, words = paired.difference(first, second), sentence["verdict"] + sentence["numbers"]
            assert [numbers[end] for end in ("mean", "low", "high")] == pytest.approx(
                [expected.mean, expected.low, expected.high], rel=1e-9, abs=1e-9
            )
            item = to_reference.get(first if second == REFERENCE else second if first == REFERENCE else "")
            is_better = (expected.mean > expected.neutral) == unit.higher_is_better
            order = (
                f"{styles[first].title} is {'better' if is_better else 'worse'} than {styles[second].title} on {task}"
            )
            start = f"As a single pair: {order}" if expected.is_decided else f"Not decided on {task}"
            if item is not None:
                p = "< 0.001" if item.p < 0.001 else f"= {item.p:.3f}"
                assert f"p {p} after Holm's correction" in words
                after_holm = f"Not decided after Holm's correction on {task}"
                start = order if item.survives else after_holm if expected.is_decided else start
            assert sentence["verdict"].startswith(start)
            kinds[start.split(styles[first].title)[0]] += 1
            ends = re.search(r"95 % interval: (\S+) to (\S+)", words).groups()
            low, high = sorted(float(end.replace("\u2212", "-")) for end in ends)
            low, high = (-high, -low) if " worse " in sentence["verdict"] and not unit.logarithmic else (low, high)
            assert (low > expected.neutral or high < expected.neutral) == expected.is_decided
            assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.051)
    assert len(kinds) >= 5 and min(kinds.values()) > 1, "every kind of verdict"


def test_the_sentence_follows_the_menus_and_says_what_cannot_be_compared(browser, address):
    page = opened(browser, address, 390)
    first, second = page.locator("#compare [name=first]"), page.locator("#compare [name=second]")
    told = page.locator("#compare [role=status]")
    assert first.input_value() != "floral_1" and second.input_value() == "floral_1"
    first.select_option("floral_1")  # the two change places
    assert first.input_value() == "floral_1" and second.input_value() != "floral_1"
    second.select_option("fedavg")
    assert told.inner_text().startswith(
        "FLoRAL 1 % and FedAvg cannot be compared on digits_rotate. FedAvg has no mean (1/3"
    )
    page.locator("#compare [name=task]").select_option("synthetic_linear")
    assert " on synthetic_linear" in told.inner_text()


# --------------------------------------------------------------------------------------------------- sections


def test_columns_sort_across_families(browser, address):
    page = opened(browser, address, section="main")
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
    page.locator("#main .gt_table thead th").first.locator("button").press("Enter")
    assert page.evaluate(names)[:3] == ["Ensemble", "FedAvg", "FLoRAL 1\u00a0%"], "words sort as words"


def test_a_search_keeps_the_rows_that_have_every_word(browser, address):
    page = opened(browser, address, section="provenance")
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
    page = opened(browser, address, section="all")
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
    page = opened(browser, address, section="all")
    folder = Path(address.removeprefix("file://")).parent
    figures = page.locator("figure.plot").count()
    places = [link.get_attribute("href") for link in page.locator("figcaption a").all()]
    assert len(places) == 3 * figures > 0
    assert all((folder / place).stat().st_size for place in places)
    places = [link.get_attribute("href") for link in page.locator("p.files a").all()]
    assert places and all((folder / place).stat().st_size for place in places)
    assert all(len(told.split()) > 3 for told in page.locator("figcaption").all_text_contents())


def test_a_chosen_scheme_wins_over_the_systems(browser, address):
    page = opened(browser, address, section="result")
    paper = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.querySelector('.plot svg .role-title-text text')).fill"
    light, black = page.evaluate(paper), page.evaluate(ink)
    switch = page.locator("button.theme")
    switch.click()
    assert switch.text_content() == "Colours: light" and page.evaluate(paper) == light
    switch.press("Enter")
    assert switch.text_content() == "Colours: dark" and page.evaluate(paper) != light
    assert page.evaluate(ink) != black
    page.reload()
    assert page.locator("button.theme").text_content() == "Colours: dark"
    page.emulate_media(media="print")
    assert page.evaluate(paper) == light


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault_beyond_minor(browser, address, scheme, missing):
    if not AXE.exists():
        missing(f"axe-core: no {AXE}; .ci/setup installs it (npm ci --prefix tests/browser)")
    page = opened(browser, address, scheme=scheme, section="all")
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']}).then(result => result.violations)")
    told = [f"{one['impact']} {one['id']}: {one['nodes'][0]['html'][:200]}" for one in found]
    assert [line for line in told if line.startswith(("moderate", "serious", "critical"))] == []


def test_a_method_can_be_followed(browser, address):
    page = opened(browser, address, section="curves")
    page.locator(".legend button").first.click()
    assert page.locator("figure svg .dim").count() > 0
    page.locator(".legend button").first.click()
    assert page.locator("figure svg .dim").count() == 0


def test_prints_what_is_unfolded(browser, address):
    page = opened(browser, address, section="main")
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible() and not page.locator("#controls .row").first.is_visible()
    assert page.locator("#main table").first.is_visible() and page.locator("#costs summary").is_visible()
