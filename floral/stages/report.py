"""Run folders → reports/<suite>/: one page that stands alone, summary.parquet, tables for LaTeX, vector figures."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import jinja2
import polars as pl
import yaml

from floral.config import ConfigError, Run, switches
from floral.figures import Figure
from floral.looks import Look, looks
from floral.stages import tuning_section, words
from floral.stages.collect import Collected, Setting, collect
from floral.stages.draw import draw
from floral.stages.locks import held
from floral.stages.summarise import REFERENCE, main_cells, unit, usual_seeds, worst, worst_cell
from floral.tables import EMPTY, Cell, Column, Table, amount, grid, unbroken

TEMPLATE = Path(__file__).parents[2] / "reports" / "template"
ACROSS = 4
"""Settings side by side in one table; more make a second table."""

WORST: dict[Literal["cluster", "decile"], str] = {"cluster": "Worst cluster, %", "decile": "Worst decile, %"}
COSTS = {
    "served": ("served", "Parameters"), "sent_down": ("down", "Floats per client and round"),
    "sent_up": ("up", "Floats per client and round"), "kept_private": ("private floats", "Kept by a client"),
    "bytes_per_round": ("per round", "Bytes, all clients"), "bytes": ("in all", "Bytes, all clients"),
    "passes_per_sample": ("passes", "Per sample"), "seconds": ("seconds", "Per run, measured"),
    "memory": ("peak bytes", "Per run, measured"),
}  # fmt: skip


def report(
    suite_name: str, runs: Iterable[Run], results: Path, reports: Path = Path("reports"), partial: bool = False
) -> Path:
    """Build the report of a suite from its run folders and return the path of its page.

    It is built in a folder beside the old one, which it replaces at the end. Built again from equal results it has
    equal bytes: its only time is the last run's.

    Raises:
        ConfigError: a run has no result (and `partial` is false), or a result is unreadable.
    """
    runs = list(runs)
    with held(results / "report" / f"{suite_name}.lock", f"building the report of {suite_name}"):
        collected = collect(suite_name, runs, results)
        if collected.unfinished and not partial:
            first = collected.unfinished[0].run
            raise ConfigError(
                f"suite {suite_name!r}: {len(collected.unfinished)} of {len(runs)} runs have no result (the first: "
                f"{first.task.name}/{first.variant.name}/seed{first.seed}); finish them with "
                f"`{words.command(suite_name, runs)}`, or report what is there with "
                f"`{words.partial_command(suite_name, runs)}`"
            )
        _replace(collected, runs, reports)
    return reports / suite_name / "index.html"


def _replace(collected: Collected, runs: list[Run], reports: Path) -> None:
    final, fresh, old = (
        reports / f"{prefix}{collected.suite}{end}" for prefix, end in (("", ""), (".", ".new"), (".", ".old"))
    )
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    _build(collected, runs, fresh, final)
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    fresh.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _build(collected: Collected, runs: list[Run], folder: Path, last: Path) -> None:
    contenders = [(c.id, c.title, c.variant.name, c.variant.family, c.variant.oracle) for c in collected.contenders]
    shown = looks(contenders, _yaml("looks.yaml"))
    figures = {setting.id: draw(collected, shown, setting) for setting in collected.settings}
    captions = _yaml("captions.yaml")
    tuning = tuning_section.section(collected, shown, captions["tuning"]["latex"])
    tables = {
        "main": _main(collected, shown, captions["main"]["latex"]),
        "worst": _worst(collected, shown, captions["worst"]["latex"]),
        "costs": _costs(collected, shown, captions["costs"]["latex"]),
        "tuning": {part.title: part.table for part in tuning},
    }
    collected.summary.drop("setting", "contender").write_parquet(folder / "summary.parquet")
    (folder / "tables").mkdir()
    for table in (table for group in tables.values() for table in group.values()):
        (folder / "tables" / f"{table.name}.tex").write_text(table.latex, encoding="utf-8")
    (folder / "figures").mkdir()
    for figure in (figure for kinds in figures.values() for figure in kinds.values()):
        (folder / "figures" / f"{figure.name}.svg").write_text(figure.svg, encoding="utf-8")
        (folder / "figures" / f"{figure.name}.pdf").write_bytes(_pdf(figure, last / "figures" / figure.name))
    page = _page(collected, runs, shown, figures, tables, captions, tuning=tuning)
    (folder / "index.html").write_text(page, encoding="utf-8")


def _pdf(figure: Figure, last: Path) -> bytes:
    """The last report's file if it shows the same picture: the converter orders fonts at random, bytes would differ."""
    same = [last.with_suffix(suffix) for suffix in (".svg", ".pdf")]
    if all(path.exists() for path in same) and same[0].read_text(encoding="utf-8") == figure.svg:
        return same[1].read_bytes()
    return figure.pdf


def _page(
    collected: Collected, runs: list[Run], shown: Mapping[str, Look], figures: Mapping[str, Mapping[str, Figure]],
    tables: Mapping[str, Mapping[str, Table]], captions: Mapping[str, Any], **sections: Any,
) -> str:  # fmt: skip
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE), autoescape=jinja2.select_autoescape(["html", "j2"]),
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["unbroken"] = unbroken
    return environment.get_template("page.html.j2").render(
        suite=words.suite(collected.suite),
        verdict=words.verdict(collected, shown),
        leaders=words.leaders(collected, shown),
        state=words.state(collected),
        without_result=words.without_result(collected),
        command=words.command(collected.suite, runs),
        collected=collected,
        looks=shown,
        figures=figures,
        tables=tables,
        captions=captions,
        **sections,
        usual=usual_seeds(collected),
        provenance=words.provenance(collected),
        switches=_switches(runs),
        style=(TEMPLATE / "style.css").read_text(encoding="utf-8"),
        script=(TEMPLATE / "script.js").read_text(encoding="utf-8"),
    )


# -------------------------------------------------------------------------------------------- tables


def _main(collected: Collected, shown: Mapping[str, Look], caption: str) -> dict[str, Table]:
    def columns(setting: Setting, cells: Mapping[str, Mapping[str, Cell]]) -> dict[str, str]:
        measured = unit(collected, setting)
        reference = shown[REFERENCE].title if REFERENCE in shown else ""
        titles = {
            "value": measured.title,
            "official": f"Official score{', %' if setting.metric == 'accuracy' else ''}",
            "difference": f"\u2212 {reference}, {measured.difference}",
        }
        return {key: title for key, title in titles.items() if any(key in row for row in cells.values())}

    found = {setting.id: main_cells(collected, shown, setting) for setting in collected.settings}
    return _tables("main", collected.settings, shown, found, columns, caption)


def _worst(collected: Collected, shown: Mapping[str, Look], caption: str) -> dict[str, Table]:
    cells: dict[str, dict[str, dict[str, Cell]]] = {}
    for setting in collected.settings:
        if setting.metric == "accuracy":
            for which in WORST:
                for one in worst(collected, setting, which):
                    cells.setdefault(setting.id, {}).setdefault(one.contender, {})[which] = worst_cell(
                        one, usual_seeds(collected)
                    )
    settings = [setting for setting in collected.settings if setting.id in cells]
    return _tables("worst", settings, shown, cells, lambda *_: dict(WORST), caption)


def _costs(collected: Collected, shown: Mapping[str, Look], caption: str) -> dict[str, Table]:
    tables = {}
    for setting in collected.settings:
        cells = _cost_cells(collected, setting)
        columns = [Column(id=key, title=title, spanner=spanner) for key, (title, spanner) in COSTS.items()]
        rows = [(look, cells[name]) for name, look in shown.items() if name in cells]
        if rows:
            name = f"costs_{setting.id}"
            tables[setting.title] = grid(name, columns, rows, f"{setting.title}: {caption}")
    return tables


def _cost_cells(collected: Collected, setting: Setting) -> dict[str, dict[str, Cell]]:
    """contender → cost → cell; seconds and memory are means over the seeds that are done, not the diverged ones."""
    if collected.costs.is_empty():
        return {}
    costs = collected.costs.filter(pl.col("setting") == setting.id)
    total = collected.summary.filter(pl.col("setting") == setting.id)
    cells: dict[str, dict[str, Cell]] = {}
    for (name,), rows in costs.group_by("contender", maintain_order=True):
        first, done = rows.row(0, named=True), rows.filter(pl.col("status") == "done")
        spent = total.filter(pl.col("contender") == name)["bytes"].max()
        values = {
            **first["parameters"], "bytes_per_round": first["bytes_per_round"], "bytes": spent,
            "passes_per_sample": first["passes_per_sample"],
            "seconds": done["seconds"].struct.field("total").mean(), "memory": done["peak_memory_bytes"].mean(),
        }  # fmt: skip
        cells[str(name)] = {
            key: EMPTY if value is None else Cell(text=amount(float(value)), order=float(value))
            for key, value in values.items()
        }
    return cells


def _tables(name, settings, shown, cells, columns, caption) -> dict[str, Table]:  # type: ignore[no-untyped-def]
    """Tables of ACROSS settings each, spanner by spanner; keyed by the settings' titles."""
    tables = {}
    for at in range(0, len(settings), ACROSS):
        group = settings[at : at + ACROSS]
        heads = [
            Column(id=f"{setting.id}.{key}", title=title, spanner=setting.title)
            for setting in group
            for key, title in columns(setting, cells[setting.id]).items()
        ]
        rows = []
        for id_, look in shown.items():
            own = {
                f"{setting.id}.{key}": cell for setting in group for key, cell in cells[setting.id].get(id_, {}).items()
            }
            if own:
                rows.append((look, own))
        if rows:
            label = name if len(settings) <= ACROSS else f"{name}_{at // ACROSS + 1}"
            tables[", ".join(setting.title for setting in group)] = grid(label, heads, rows, caption)
    return tables


# ----------------------------------------------------------------------------------------- small reads


def _yaml(name: str) -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load((TEMPLATE / name).read_text(encoding="utf-8"))
    return value


def _switches(runs: list[Run]) -> list[dict[str, Any]]:
    """Every fidelity switch with the values that the suite's runs have, and its line of config/fidelity.yaml."""
    documented = switches()
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
