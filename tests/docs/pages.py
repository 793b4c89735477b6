"""The code blocks of the README and the documentation, and a copy of the project in which their files exist."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from projects import ROOT

PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
FENCE = re.compile(
    r'^(?P<indent> *)```(?P<language>\w+)(?: title="(?P<title>.+?)")?\n(?P<text>.*?)^(?P=indent)```$', re.M | re.S
)
COMMENT = re.compile(r"^<!--.*?-->$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file that it is to be saved as ("" if none), its text."""

    page: Path
    language: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.title or self.text.strip().splitlines()[0]}"


def blocks() -> list[Block]:
    """All fenced blocks, page by page."""
    found = []
    for page in PAGES:
        for fence in FENCE.finditer(page.read_text(encoding="utf-8")):
            text = re.sub(rf"^{fence['indent']}", "", fence["text"], flags=re.M)
            found.append(Block(page, fence["language"], fence["title"] or "", text))
    return found


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return COMMENT.sub("", FENCE.sub("", page.read_text(encoding="utf-8")))


def inline(page: Path) -> list[str]:
    """The pieces of code within sentences and tables."""
    return [code.replace("\\|", "|") for code in re.findall(r"`([^`]+)`", re.sub(r"\s+", " ", prose(page)))]


BLOCKS = blocks()
FILES = {block.title: block for block in BLOCKS if block.title}
"""Files that the pages ask the reader to save; one that two pages show is the same in both."""
