"""Write tables for LaTeX: floats of a two-column article that fit its page, and an article with all of them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from floral.report.charts.render import Figure
    from floral.report.style import Style
    from floral.report.tables import Cell, Column

SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": r"$|$",
}  # fmt: skip
SIGNS = {
    "\u2212": "$-$", "\u00b1": r"$\pm$", "\u2009": r"\,", "\u2013": "--", "\u2014": "---", "\u00a0": "~",
    "\u202f": r"\,", "×": r"$\times$", "÷": r"$\div$", "·": r"$\cdot$", "…": r"\dots{}", "→": r"$\rightarrow$",
    "≤": r"$\le$", "≥": r"$\ge$", "≈": r"$\approx$", "∞": r"$\infty$", "∑": r"$\sum$", "Σ": r"$\Sigma$",
    "Δ": r"$\Delta$", "π": r"$\pi$", "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "λ": r"$\lambda$",
    "μ": r"$\mu$", "ρ": r"$\rho$", "σ": r"$\sigma$", "τ": r"$\tau$", "²": "$^2$", "₀": "$_0$", "₁": "$_1$",
    "\u2018": "`", "\u2019": "'", "\u201c": "``", "\u201d": "''",
}  # fmt: skip
"""Signs that a LaTeX engine of today lacks in its text fonts, and their commands."""

BOLD = "Bold results cannot be told from the best one."
COLUMN_LETTERS = 52
"""A wider table spans both columns of the page. It is an estimate, in letters of the size `footnotesize`."""
MAX_ROWS = 40
"""Lines of the body that fit on a page below a caption. Longer tables are continued in a second float."""
HEADING_LETTERS = 12
"""Headings are broken into lines of about so many letters."""
NEEDS = r"% needs \usepackage{booktabs,graphicx}"

Row = tuple["Style", Mapping[str, "Cell"]]


def latex(text: str) -> str:
    """Return a text with LaTeX's special characters escaped and Unicode signs replaced by commands."""
    return "".join((SPECIAL | SIGNS).get(character, character) for character in text)


def table(name: str, columns: Sequence[Column], rows: Sequence[Row], caption: str, empty: Cell) -> str:
    """Return a table as one or several floats, one row per method, grouped by family. A missing cell shows `empty`.

    A narrow table is a float of one column, and a wide one spans both. Its letters have the size `footnotesize`, and
    become smaller where the table would be wider than its float. A long table is continued in further floats. If a cell
    is bold, the caption says what this means.
    """
    if any(cell.mark for _, cells in rows for cell in cells.values()):
        caption = f"{caption.rstrip('. ')}. {BOLD}"
    floats = []
    for number, part in enumerate(_pages(rows)):
        label = f"\\label{{tab:{name}}}" if number == 0 else ""
        text = latex(caption) if number == 0 else rf"Table~\ref{{tab:{name}}}, continued."
        floats.append(_float(columns, part, text + label, empty, is_continued=number > 0))
    return "\n".join([NEEDS, *floats]) + "\n"


def _pages(rows: Sequence[Row]) -> list[list[Row]]:
    """Divide rows into parts that fit on a page. The heading of a group takes a line, too."""
    pages: list[list[Row]] = [[]]
    lines, group = 0, None
    for row in rows:
        needed = 1 if row[0].group_title == group else 2
        if lines + needed > MAX_ROWS:
            pages.append([])
            lines, needed = 0, 2
        pages[-1].append(row)
        lines, group = lines + needed, row[0].group_title
    return pages


def _float(columns: Sequence[Column], rows: Sequence[Row], caption: str, empty: Cell, is_continued: bool) -> str:
    width = _letters([style.title for style, _ in rows])
    for column in columns:
        cells = [cells.get(column.id, empty) for _, cells in rows]
        texts = [f"{cell.text} {cell.note}" for cell in cells] + textwrap.wrap(column.title, HEADING_LETTERS)
        width += 2 + _letters(texts)
    kind = "table" if width <= COLUMN_LETTERS else "table*"
    counter = "\\addtocounter{table}{-1}\n" if is_continued else ""
    body = "\n".join([*_head(columns), *_body(columns, rows, empty)])
    return (
        f"\\begin{{{kind}}}[tp]\n\\centering\\footnotesize\\setlength{{\\tabcolsep}}{{3pt}}\n{counter}"
        f"\\caption{{{caption}}}\n"
        "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%\n"
        f"\\begin{{tabular}}{{@{{}}l{'r' * len(columns)}@{{}}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}}}\n"
        f"\\end{{{kind}}}"
    )


def _letters(texts: Iterable[str]) -> int:
    return max((len(text.strip()) for text in texts), default=0)


def _head(columns: Sequence[Column]) -> list[str]:
    lines = []
    if any(column.spanner for column in columns):
        cells, rules, start = [], [], 2
        for spanner, members in groupby(columns, key=lambda column: column.spanner):
            count = len(list(members))
            cells.append(rf"\multicolumn{{{count}}}{{c}}{{{_stacked(spanner, HEADING_LETTERS * count, 'c')}}}")
            rules += [rf"\cmidrule(lr){{{start}-{start + count - 1}}}"] if spanner else []
            start += count
        lines += [" & ".join(["", *cells]) + r" \\", " ".join(rules)]
    titles = [_stacked(column.title, HEADING_LETTERS, "r") for column in columns]
    return [*lines, " & ".join(["", *titles]) + r" \\", r"\midrule"]


def _stacked(text: str, letters: int, side: str) -> str:
    lines = textwrap.wrap(text, letters, break_long_words=False, break_on_hyphens=False)
    if len(lines) < 2:
        return latex(text)
    stacked = r"\\".join(map(latex, lines))
    return rf"\shortstack[{side}]{{{stacked}}}"


def _body(columns: Sequence[Column], rows: Sequence[Row], empty: Cell) -> list[str]:
    lines = []
    groups = [(title, list(members)) for title, members in groupby(rows, key=lambda row: row[0].group_title)]
    for number, (title, members) in enumerate(groups):
        lines += [r"\addlinespace[2pt]"] if number else []
        lines.append(rf"\multicolumn{{{len(columns) + 1}}}{{@{{}}l}}{{\itshape {latex(title)}}} \\")
        for style, cells in members:
            texts = [_cell(cells.get(column.id, empty)) for column in columns]
            lines.append(" & ".join([latex(style.title), *texts]) + r" \\")
    return lines


def _cell(cell: Cell) -> str:
    text = latex(cell.text)
    text = rf"\textbf{{{text}}}" if cell.mark else text
    return text + (rf" {{\scriptsize ({latex(cell.note)})}}" if cell.note else "")


def seeds_sentence(seeds: int) -> str:
    """Return the sentence of a caption that says how many seeds a result has."""
    return "One seed (n = 1)." if seeds == 1 else f"n = {seeds} seeds where no other n is given."


def with_seeds(captions: Mapping[str, Any], seeds: int) -> dict[str, Any]:
    """Return the texts of captions.yaml. Captions of LaTeX tables also say how many seeds a result has."""
    return {
        section: {
            key: f"{text.rstrip('. ')}. {seeds_sentence(seeds)}" if key.startswith("latex") else text
            for key, text in texts.items()
        }
        for section, texts in captions.items()
    }


def article(title: str, figures: Sequence[Sequence[tuple[Figure, str]]], tables: Sequence[Sequence[str]]) -> str:
    r"""Return a two-column article that shows all figures and tables of a report, to try them out and to copy from.

    figures: the figures of each section, with their captions. tables: the names of the tables of each section. Call
    `pdflatex article` in the folder of the report.
    """
    lines = [
        "% pdflatex article", r"\documentclass[10pt,twocolumn]{article}", r"\usepackage{booktabs,graphicx}",
        r"\begin{document}", rf"\title{{{latex(title)}}}\author{{}}\date{{}}", r"\maketitle",
    ]  # fmt: skip
    for of_section in figures:
        for figure, caption in of_section:
            kind = "figure*" if figure.is_wide else "figure"
            lines += [
                rf"\begin{{{kind}}}[tp]", r"\centering",
                rf"\includegraphics[width=\linewidth,height=.7\textheight,keepaspectratio]{{figures/{figure.name}.pdf}}",
                rf"\caption{{{latex(caption)}}}\label{{fig:{figure.name}}}", rf"\end{{{kind}}}",
            ]  # fmt: skip
        lines += [r"\clearpage"] if of_section else []
    for names in tables:
        lines += [rf"\input{{tables/{name}.tex}}" for name in names]
        lines += [r"\clearpage"] if names else []
    return "\n".join([*lines, r"\end{document}"]) + "\n"
