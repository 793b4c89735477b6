"""List all variants by family: their source, their parameter scopes, and what the server sees."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Any

import torch

from floral.config import catalogue
from floral.config.schema.method import Variant
from floral.core.spec import Method, Problem, Refused
from floral.models import mlp
from floral.stages.build import method_of

CLIENTS, CLUSTERS, SHAPE, OUTPUTS = 4, 2, (4, 4), 3
"""The small problem on which variants are built. Its size does not change the scope of a parameter group."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A variant, built on a small MLP. If the variant refuses that, the MLP has batch norm."""

    variant: str
    title: str
    family: str
    source: str
    what: tuple[str, str]
    oracle: bool
    global_only: bool
    server_sees: tuple[str, ...]
    """What the server sees of a single client."""
    secure_aggregation: bool
    """Whether the server needs only sums over clients, so that secure aggregation is possible."""
    scopes: dict[str, str]
    """Parameter group → shared, clustered, private or frozen. Empty if the variant refuses both models."""
    refusal: str | None
    """Why the variant refuses the MLP without batch norm; None if it does not."""

    @property
    def scopes_text(self) -> str:
        """The scopes as text: "base shared, head private"."""
        return ", ".join(f"{group} {scope}" for group, scope in self.scopes.items()) or "nothing was built"

    @property
    def server_text(self) -> str:
        """What the server sees, as text: "server sees sizes, routes"."""
        limit = "" if self.secure_aggregation else " (no secure aggregation)"
        return f"server sees {', '.join(self.server_sees) or 'nothing'}{limit}"

    @property
    def values(self) -> dict[str, Any]:
        """The columns for `--json`."""
        return asdict(self)


def rows() -> list[Row]:
    """All variants of config/methods, sorted by family."""
    variants = [_row(catalogue.variant(name)) for name in catalogue.variant_index()]
    return sorted(variants, key=lambda row: row.family)


def text(rows: list[Row]) -> str:
    """A table with one line per variant below the name of its family: name, title, scopes, what is seen, source.

    A refusal has a line of its own.
    """
    columns = [[row.variant, row.title, row.scopes_text, row.server_text, row.source] for row in rows]
    widths = [max(map(len, column)) for column in zip(*columns, strict=True)]
    lines: list[str] = []
    for family, members in itertools.groupby(zip(rows, columns, strict=True), key=lambda pair: pair[0].family):
        lines += ["", family]
        for row, cells in members:
            padded = (f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
            lines.append(f"  {'  '.join(padded)}".rstrip())
            if row.refusal:
                lines.append(f"  {'':<{widths[0]}}  refuses a model without batch norm: {row.refusal}")
    return "\n".join(lines[1:])


def _row(variant: Variant) -> Row:
    method: Method | None = None
    refusal: str | None = None
    for batch_norm in (False, True):
        try:
            method = _build(variant, batch_norm)
            break
        except Refused as reason:
            refusal = refusal or str(reason)
    groups = {} if method is None else method.groups
    return Row(
        variant=variant.name, title=variant.title, family=variant.family, source=variant.source, what=variant.what,
        oracle=variant.oracle, global_only=variant.global_only, refusal=refusal,
        server_sees=variant.server_sees, secure_aggregation=variant.secure_aggregation,
        scopes={name: group.scope.value for name, group in groups.items()},
    )  # fmt: skip


def _build(variant: Variant, batch_norm: bool) -> Method:
    """Build the variant on a problem of a few clients."""

    def build_model(width: float = 1.0):
        return mlp.build(SHAPE, OUTPUTS, hidden=8, batch_norm=batch_norm, width=width)

    problem = Problem(
        build_model=build_model, clients=CLIENTS, cohort=CLIENTS, clusters=CLUSTERS,
        true_cluster=torch.arange(CLIENTS) % CLUSTERS, lr=0.01, router_lr=0.01, shape=SHAPE, outputs=OUTPUTS,
        batch=4, loss="cross_entropy", switches=catalogue.fidelity("corrected").switches, seed=0,
    )  # fmt: skip
    return method_of(variant, problem)
