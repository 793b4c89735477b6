"""Read the templates in reports/template: HTML, texts, colours, and the files that are copied into a page."""

from __future__ import annotations

import base64
import re
import zlib
from typing import Any

import jinja2
import yaml
from markupsafe import Markup, escape

from floral.config import paths
from floral.report.style import MAX_LINES
from floral.report.tables import unbroken

TEMPLATE = paths.PACKAGE / "reports" / "template"
EMBEDDED = {"style": "style.css", "theme": "theme.js", "script": "script.js", "overview_script": "overview.js"}
"""Files that are copied into a page."""


def environment() -> jinja2.Environment:
    """Return the environment that renders the HTML templates. An unknown name in a template is an error."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE), autoescape=jinja2.select_autoescape(["html", "j2"]),
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    templates.globals["MAX_LINES"] = MAX_LINES
    templates.filters |= {"unbroken": unbroken, "code": _code, "packed": packed}
    return templates


def embedded() -> dict[str, str]:
    """Return the contents of the files that are copied into a page, by the name of the template's variable."""
    return {name: (TEMPLATE / file).read_text(encoding="utf-8") for name, file in EMBEDDED.items()}


def packed(html: str) -> Markup:
    """Return HTML compressed and base64-coded, in an element from which the page unpacks it when readers open it.

    A page of a thousand runs then has a tenth of its bytes, and a browser does not lay out what stays folded.
    """
    code = base64.b64encode(zlib.compress(html.encode(), level=9)).decode()
    return Markup(f'<script type="text/packed">{code}</script>')


def unpacked(page: str) -> str:
    """Return the page with all its parts unpacked (see `packed`)."""

    def unpack(match: re.Match[str]) -> str:
        return zlib.decompress(base64.b64decode(match[1])).decode()

    return re.sub(r'<script type="text/packed">([^<]*)</script>', unpack, page)


def template_yaml(name: str) -> dict[str, Any]:
    """Return the contents of a YAML file in reports/template."""
    value: dict[str, Any] = yaml.safe_load((TEMPLATE / name).read_text(encoding="utf-8"))
    return value


def _code(text: str) -> Markup:
    """Escape a text for HTML, and put its parts between backticks into <code> elements."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
