"""config/methods → the terminal: every variant by family, its source, who holds which group, what the server sees."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass

import torch

from floral.config import catalogue
from floral.config.schema.method import Variant
from floral.core.spec import Method, Problem, Refused
from floral.models import mlp
from floral.stages.build import method_of

CLIENTS, CLUSTERS, SHAPE, OUTPUTS = 4, 2, (4, 4), 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """A variant as it is on a small MLP; on one with batch norm where it refuses the plain one."""

    variant: str
    title: str
    family: str
    source: str
    what: tuple[str, str]
    oracle: bool
    global_only: bool
    server_sees: tuple[str, ...]
    """Of a single client."""
    secure_aggregation: bool
    """Whether a protocol that reveals nothing but sums can carry it."""
    scopes: dict[str, str]
    """group → shared, clustered, private or frozen; empty where both models are refused."""
    refusal: str | None
    """Why it refuses the plain model."""

    @property
    def holders(self) -> str:
        """As in "base shared, head private"."""
        return ", ".join(f"{group} {scope}" for group, scope in self.scopes.items()) or "nothing was built"

    @property
    def seen(self) -> str:
        """As in "server sees sizes, routes"."""
        limit = "" if self.secure_aggregation else " (no secure aggregation)"
        return f"server sees {', '.join(self.server_sees) or 'nothing'}{limit}"


def methods(as_json: bool = False) -> None:
    """Print every variant of config/methods."""
    found = rows()
    print(json.dumps([asdict(row) for row in found], indent=1, ensure_ascii=False) if as_json else text(found))


def rows() -> list[Row]:
    """All variants, by family."""
    found = [_row(catalogue.variant(name)) for name in catalogue.variant_index()]
    return sorted(found, key=lambda row: row.family)


def text(found: list[Row]) -> str:
    """Families with one line per variant: name, title, who holds what, what is seen, source; a refusal on its own."""
    columns = [[row.variant, row.title, row.holders, row.seen, row.source] for row in found]
    widths = [max(map(len, column)) for column in zip(*columns, strict=True)]
    lines: list[str] = []
    for family, members in itertools.groupby(zip(found, columns, strict=True), key=lambda pair: pair[0].family):
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
    """The variant on a problem of a few clients; nothing of its size matters for who holds what."""

    def build_model(width: float = 1.0):
        return mlp.build(SHAPE, OUTPUTS, hidden=8, batch_norm=batch_norm, width=width)

    problem = Problem(
        build_model=build_model, clients=CLIENTS, cohort=CLIENTS, clusters=CLUSTERS,
        true_cluster=torch.arange(CLIENTS) % CLUSTERS, lr=0.01, router_lr=0.01, shape=SHAPE, outputs=OUTPUTS,
        batch=4, loss="cross_entropy", switches=catalogue.fidelity("corrected").switches, seed=0,
    )  # fmt: skip
    return method_of(variant, problem)
