"""Build the folder reports/<suite>/ from the run folders of a suite: a page, summary.parquet, tables and figures."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from floral.config import catalogue
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.settings import FigurePreset
from floral.io.locks import held
from floral.report import commands, sentences
from floral.report.charts.render import PRESETS, Figure, Preset
from floral.report.collect import Collected, collect
from floral.report.compact_table import compact_tables
from floral.report.draw import draw, has_figures
from floral.report.latex import article, seeds_sentence, with_seeds
from floral.report.overview import answers, near_the_best, overview
from floral.report.sections import setup
from floral.report.sections.base import Material, Section
from floral.report.sections.failures import without_result
from floral.report.sections.provenance import provenance
from floral.report.sections.registry import SECTIONS
from floral.report.style import UNRANKED_GROUPS, method_styles
from floral.report.suites_page import write_suites_page
from floral.report.summarise import usual_seeds
from floral.report.templates import embedded, environment, template_yaml
from floral.runs.missing_data import split_by_data
from floral.runs.outdated import outdated, outdated_lines


def report(
    suite_name: str,
    runs: Iterable[Run],
    results: Path,
    reports: Path = Path("reports"),
    partial: bool = False,
    allow_missing: bool = False,
    figures: FigurePreset = "column",
) -> Path:
    """Build the report of a suite from its run folders, and return the path of the report's page.

    `partial`: report also if some runs are unfinished. `allow_missing`: leave out runs whose data set is not on this
    machine. The page then names these data sets. `figures`: the size of figures, for a paper or a slide.

    The new report is built in a temporary folder, which replaces the old report at the end. Equal results give files
    that are equal byte for byte.

    Raises:
        ConfigError: a result file cannot be read; all runs are left out because their data sets are missing; or a run
            has no result and `partial` is False.
    """
    runs = list(runs)
    command = commands.command(suite_name, runs, allow_missing)
    runs, missing = split_by_data(runs, results) if allow_missing else (runs, [])
    with held(results / "report" / f"{suite_name}.lock", f"building the report of {suite_name}"):
        collected = collect(suite_name, runs, results)
        if collected.unfinished and not partial:
            first = collected.unfinished[0].run
            raise ConfigError(
                f"suite {suite_name!r}: {len(collected.unfinished)} of {len(runs)} runs have no result in {results} "
                f"(the first is {first.task.name}/{first.variant.name}/seed{first.seed}); finish them with "
                f"`{command}`, or report only the finished runs with "
                f"`{commands.partial_command(suite_name, runs)}`"
            )
        texts = {"command": command, "missing": missing, "outdated": outdated_lines(runs, outdated(runs, results))}
        _replace(collected, runs, reports, texts, PRESETS[figures])
    write_suites_page(results, reports)
    return reports / suite_name / "index.html"


def _replace(collected: Collected, runs: list[Run], reports: Path, texts: Mapping[str, Any], preset: Preset) -> None:
    """Build the new report in a temporary folder, and then replace the old report by it.

    texts: values for the page's template that do not come from the results, such as the shell command that finishes the
    runs.
    """
    final, fresh, old = (
        reports / f"{prefix}{collected.suite}{end}" for prefix, end in (("", ""), (".", ".new"), (".", ".old"))
    )
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    _build(collected, runs, fresh, final, texts, preset)
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    fresh.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _build(
    collected: Collected, runs: list[Run], folder: Path, last: Path, texts: Mapping[str, Any], preset: Preset
) -> None:
    styles = method_styles(collected.methods, template_yaml("styles.yaml"))
    figures = {
        configuration.id: draw(collected, styles, configuration, preset)
        for configuration in collected.configurations
        if has_figures(collected, configuration)
    }
    captions = with_seeds(template_yaml("captions.yaml"), usual_seeds(collected))
    material = Material(collected=collected, styles=styles, captions=captions, figures=figures, preset=preset)
    sections = [section for make in SECTIONS if (section := make(material)) is not None]
    collected.summary.drop("configuration", "method_id").write_parquet(folder / "summary.parquet")
    (folder / "tables").mkdir()
    compact = compact_tables(collected, styles)
    for name, latex in {**compact, **{part.table.name: part.table.latex for s in sections for part in s.parts}}.items():
        (folder / "tables" / f"{name}.tex").write_text(latex, encoding="utf-8")
    (folder / "figures").mkdir()
    for figure in (figure for section in sections for row in section.figures for figure in row):
        (folder / "figures" / f"{figure.name}.csv").write_text(figure.csv, encoding="utf-8")
        (folder / "figures" / f"{figure.name}.svg").write_text(figure.svg, encoding="utf-8")
        (folder / "figures" / f"{figure.name}.pdf").write_bytes(_pdf(figure, last / "figures" / figure.name))
    (folder / "article.tex").write_text(_article(material, sections, list(compact)), encoding="utf-8")
    (folder / "index.html").write_text(_page(material, sections, runs, texts), encoding="utf-8")


def _article(material: Material, sections: list[Section], compact: list[str]) -> str:
    """Return article.tex, which shows all figures and tables of the report. `compact` names tables without section."""
    seeds = seeds_sentence(usual_seeds(material.collected))
    figures = [
        [
            (
                figure,
                f"{material.captions[section.id]['title']}, {figure.title}: {figure.subtitle}. {figure.see} {seeds}",
            )
            for row in section.figures
            for figure in row
        ]
        for section in sections
    ]
    tables = [compact, *([part.table.name for part in section.parts] for section in sections)]
    return article(sentences.suite(material.collected.suite)["title"], figures, tables)


def _pdf(figure: Figure, last: Path) -> bytes:
    """Return the figure as PDF. If its SVG has not changed since the last report, return the PDF file of that report.

    The converter to PDF embeds fonts in random order. Without this rule, equal figures would have different PDF files.
    """
    svg, pdf = (last.with_suffix(suffix) for suffix in (".svg", ".pdf"))
    if svg.exists() and pdf.exists() and svg.read_text(encoding="utf-8") == figure.svg:
        return pdf.read_bytes()
    return figure.pdf


def _page(material: Material, sections: list[Section], runs: list[Run], texts: Mapping[str, Any]) -> str:
    collected, styles = material.collected, material.styles
    origin = provenance(collected)
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            suite=sentences.suite(collected.suite),
            sections=sections,
            captions=material.captions,
            counts=sentences.counts(collected),
            answers=answers(collected, styles),
            overview=overview(collected, styles),
            near_the_best=near_the_best,
            degenerate=sentences.degenerate(collected, styles),
            state=sentences.state(collected),
            without_result=without_result(collected),
            **texts,
            collected=collected,
            styles=styles,
            unranked_groups=list(UNRANKED_GROUPS.values()),
            usual=usual_seeds(collected),
            provenance=origin,
            setup=setup.paragraphs(collected, origin["facts"]),
            checklist=setup.checklist(collected, origin["facts"], texts["command"]),
            switches=_switches(runs),
            **embedded(),
        )
    )


def _switches(runs: list[Run]) -> list[dict[str, Any]]:
    """Return the name, values and description of each fidelity switch, one row per switch.

    The published code of the paper differs in some points from the text of the paper. A fidelity switch is a setting
    for one such point. Its official value follows the code, and its corrected value follows the text. A row has these
    two values, and the values that the runs of this report use.
    """
    documented = catalogue.switches()
    used: dict[str, set[str]] = {}
    for fidelity in {run.fidelity.model_dump_json(): run.fidelity for run in runs}.values():
        for name, value in fidelity.switches.items():
            used.setdefault(name, set()).add(str(value))
    return [
        {
            "name": name,
            "values": ", ".join(sorted(values)),
            "official": str(documented[name].official),
            "corrected": str(documented[name].corrected),
            "doc": documented[name].doc,
        }
        for name, values in used.items()
        if name in documented
    ]
