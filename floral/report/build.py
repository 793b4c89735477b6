"""Run folders → reports/<suite>/: one page that stands alone, summary.parquet, tables for LaTeX, vector figures."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup, escape

from floral.config import catalogue
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.io.locks import held
from floral.report import words
from floral.report.collect import Collected, collect
from floral.report.draw import draw, draws
from floral.report.figures import Figure
from floral.report.sections import setup
from floral.report.sections.base import Material, Section
from floral.report.sections.registry import SECTIONS
from floral.report.style import APART, styles
from floral.report.summarise import usual_seeds
from floral.report.tables import unbroken
from floral.runs.missing_data import split

TEMPLATE = Path(__file__).parents[2] / "reports" / "template"
EMBEDDED = {"style": "style.css", "theme": "theme.js", "script": "script.js"}


def report(
    suite_name: str,
    runs: Iterable[Run],
    results: Path,
    reports: Path = Path("reports"),
    partial: bool = False,
    allow_missing: bool = False,
) -> Path:
    """Build the report of a suite from its run folders and return the path of its page.

    With `allow_missing` it leaves out the runs whose data are not there, and names these.

    It is built in a folder beside the old one, which it replaces at the end. Built again from equal results it has
    equal bytes: its only time is the last run's.

    Raises:
        ConfigError: a run has no result (and `partial` is false), or a result is unreadable, or no run is left.
    """
    runs = list(runs)
    command = words.command(suite_name, runs, allow_missing)
    runs, missing = split(runs, results) if allow_missing else (runs, [])
    with held(results / "report" / f"{suite_name}.lock", f"building the report of {suite_name}"):
        collected = collect(suite_name, runs, results)
        if collected.unfinished and not partial:
            first = collected.unfinished[0].run
            raise ConfigError(
                f"suite {suite_name!r}: {len(collected.unfinished)} of {len(runs)} runs have no result (the first: "
                f"{first.task.name}/{first.variant.name}/seed{first.seed}); finish them with "
                f"`{command}`, or report what is there with "
                f"`{words.partial_command(suite_name, runs)}`"
            )
        _replace(collected, runs, reports, {"command": command, "missing": missing})
    return reports / suite_name / "index.html"


def _replace(collected: Collected, runs: list[Run], reports: Path, said: Mapping[str, Any]) -> None:
    final, fresh, old = (
        reports / f"{prefix}{collected.suite}{end}" for prefix, end in (("", ""), (".", ".new"), (".", ".old"))
    )
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    _build(collected, runs, fresh, final, said)
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    fresh.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _build(collected: Collected, runs: list[Run], folder: Path, last: Path, said: Mapping[str, Any]) -> None:
    methods = [(c.id, c.title, c.variant.name, c.variant.family, c.variant.oracle) for c in collected.methods]
    shown = styles(methods, _yaml("styles.yaml"))
    figures = {
        configuration.id: draw(collected, shown, configuration)
        for configuration in collected.configurations
        if draws(collected, configuration)
    }
    material = Material(collected=collected, styles=shown, captions=_yaml("captions.yaml"), figures=figures)
    sections = [made for make in SECTIONS if (made := make(material)) is not None]
    collected.summary.drop("setting", "contender").write_parquet(folder / "summary.parquet")
    (folder / "tables").mkdir()
    for table in (part.table for section in sections for part in section.parts):
        (folder / "tables" / f"{table.name}.tex").write_text(table.latex, encoding="utf-8")
    (folder / "figures").mkdir()
    for figure in (figure for section in sections for row in section.figures for figure in row):
        (folder / "figures" / f"{figure.name}.csv").write_text(figure.csv, encoding="utf-8")
        (folder / "figures" / f"{figure.name}.svg").write_text(figure.svg, encoding="utf-8")
        (folder / "figures" / f"{figure.name}.pdf").write_bytes(_pdf(figure, last / "figures" / figure.name))
    (folder / "index.html").write_text(_page(material, sections, runs, said), encoding="utf-8")


def _pdf(figure: Figure, last: Path) -> bytes:
    """The last report's file if it shows the same picture: the converter orders fonts at random, bytes would differ."""
    same = [last.with_suffix(suffix) for suffix in (".svg", ".pdf")]
    if all(path.exists() for path in same) and same[0].read_text(encoding="utf-8") == figure.svg:
        return same[1].read_bytes()
    return figure.pdf


def _page(material: Material, sections: list[Section], runs: list[Run], said: Mapping[str, Any]) -> str:
    collected, shown = material.collected, material.styles
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE), autoescape=jinja2.select_autoescape(["html", "j2"]),
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"unbroken": unbroken, "code": _code}
    return environment.get_template("page.html.j2").render(
        suite=words.suite(collected.suite),
        sections=sections,
        captions=material.captions,
        verdict=words.verdict(collected, shown),
        leaders=words.leaders(collected, shown),
        degenerate=words.degenerate(collected, shown),
        state=words.state(collected),
        without_result=words.without_result(collected),
        **said,
        collected=collected,
        styles=shown,
        apart=list(APART.values()),
        usual=usual_seeds(collected),
        provenance=(provenance := words.provenance(collected)),
        setup=setup.paragraphs(collected, provenance["facts"]),
        checklist=setup.checklist(collected, provenance["facts"], said["command"]),
        switches=_switches(runs),
        **{name: (TEMPLATE / file).read_text(encoding="utf-8") for name, file in EMBEDDED.items()},
    )


def _code(text: str) -> Markup:
    """What stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


# ----------------------------------------------------------------------------------------- small reads


def _yaml(name: str) -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load((TEMPLATE / name).read_text(encoding="utf-8"))
    return value


def _switches(runs: list[Run]) -> list[dict[str, Any]]:
    """Every fidelity switch with the values that the suite's runs have, and its line of config/fidelity.yaml."""
    documented = catalogue.switches()
    used: dict[str, set[str]] = {}
    for rules in {run.fidelity.model_dump_json(): run.fidelity for run in runs}.values():
        for name, value in rules.switches.items():
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
