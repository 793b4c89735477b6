"""Read the templates in reports/template: HTML, texts, colours, and the files that are copied into a page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup, escape

from floral.report.tables import unbroken

TEMPLATE = Path(__file__).parents[2] / "reports" / "template"
EMBEDDED = {"style": "style.css", "theme": "theme.js", "script": "script.js"}
"""Files that are copied into a page."""


def environment() -> jinja2.Environment:
    """Return the environment that renders the HTML templates. An unknown name in a template is an error."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE), autoescape=jinja2.select_autoescape(["html", "j2"]),
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    templates.filters |= {"unbroken": unbroken, "code": _code}
    return templates


def embedded() -> dict[str, str]:
    """Return the contents of the files that are copied into a page, by the name of the template's variable."""
    return {name: (TEMPLATE / file).read_text(encoding="utf-8") for name, file in EMBEDDED.items()}


def template_yaml(name: str) -> dict[str, Any]:
    """Return the contents of a YAML file in reports/template."""
    value: dict[str, Any] = yaml.safe_load((TEMPLATE / name).read_text(encoding="utf-8"))
    return value


def _code(text: str) -> Markup:
    """Escape a text for HTML, and put its parts between backticks into <code> elements."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
