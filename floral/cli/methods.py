"""List variants by family, with their source, parameter groups, and what the server sees of a client.

`floral methods NAME` prints all that is known of a variant or method, also how it relates to its source.

The scope of a parameter group says which clients have the same values of these parameters. The group is shared by all
clients, clustered (one value per cluster), private to each client, or frozen (never trained).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import torch

from floral.cli.paragraphs import wrapped
from floral.config import catalogue, paths
from floral.config.reading import suggest
from floral.config.schema.method import STATEMENTS, Variant
from floral.core.spec import Method, Problem, Refused
from floral.models import mlp
from floral.stages.build import method_of

CLIENTS, CLUSTERS, SHAPE, OUTPUTS = 4, 2, (4, 4), 3
"""Size of the small problem for which variants are built. The size does not change the scope of a parameter group."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A variant in the list of `floral methods`.

    To find the scopes of its parameter groups, the variant is built with a small MLP without batch norm. If the variant
    refuses this MLP, it is built with an MLP that has batch norm.
    """

    variant: str
    method: str
    title: str
    family: str
    source: str
    what: tuple[str, str]
    as_published: tuple[str, ...]
    """What is as in the publication or its public code."""
    chosen_here: tuple[str, ...]
    """What the source leaves open, with what was chosen here."""
    differs: tuple[str, ...]
    """What differs from the source."""
    oracle: bool
    global_only: bool
    server_sees: tuple[str, ...]
    """Words for what the server sees of a single client."""
    secure_aggregation: bool
    """Whether the method works with secure aggregation, because the server needs only sums over clients."""
    scopes: dict[str, str]
    """Name of a parameter group → shared, clustered, private or frozen. Empty if the variant refuses both MLPs."""
    refusal: str | None
    """Why the variant refuses the MLP without batch norm. None if the variant accepts this MLP."""

    @property
    def scopes_text(self) -> str:
        """The scope of each parameter group as text, such as "base shared, head private".

        The scope is shared, clustered, private or frozen.
        """
        return ", ".join(f"{group} {scope}" for group, scope in self.scopes.items()) or "nothing was built"

    @property
    def server_text(self) -> str:
        """What the server sees of a single client, as text, such as "server sees sizes, routes".

        The word sizes stands for the client's number of samples. The word routes stands for the clusters that the
        client uses, or for the client's weights of the clusters.
        """
        limit = "" if self.secure_aggregation else " (no secure aggregation)"
        return f"server sees {', '.join(self.server_sees) or 'nothing'}{limit}"

    @property
    def facts(self) -> list[str]:
        """The parameter groups, what the server sees, and further properties of the variant as short texts."""
        return [
            self.scopes_text,
            self.server_text,
            *["knows the true clusters"] * self.oracle,
            *["one model for all"] * self.global_only,
            *[f"needs batch norm ({self.refusal})"] * bool(self.refusal),
        ]

    @property
    def values(self) -> dict[str, Any]:
        """All fields as a dictionary, which `--json` prints."""
        return asdict(self)


def rows(names: Collection[str] = ()) -> list[Row]:
    """Return all variants of config/methods, sorted by family.

    If `names` has names of variants and methods, return only these variants and the variants of these methods.

    Raises:
        ConfigError: a name is neither that of a variant nor that of a method.
    """
    index = catalogue.variant_index()
    for name in names:
        if name not in (valid_names := {*index, *index.values()}):
            place = str(paths.CONFIG_FOLDER / "methods")
            raise suggest("variant or method", name, valid_names, place, catalogue.published_names())
    selected = [name for name, method in index.items() if not names or {name, method} & set(names)]
    return sorted((_row(catalogue.variant(name)) for name in selected), key=lambda row: row.family)


def text(rows: list[Row]) -> str:
    """Return a table of all variants. Each family has a heading, and each variant has one line.

    The columns are the name, the title, the scope of each parameter group, what the server sees, and the source. If a
    variant refuses a model without batch norm, a second line gives the reason.
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


def details(rows: list[Row]) -> str:
    """Return all that is known of each variant: its description, its facts, and how it relates to its source."""
    return "\n\n".join(map(_details, rows))


def _details(row: Row) -> str:
    lines = [f"{row.variant}: {row.title}", *wrapped(f"{row.family}. Source: {row.source}"), ""]
    for line in (*row.what, "; ".join(row.facts)):
        lines += wrapped(line)
    for key, heading in STATEMENTS.items():
        if statements := getattr(row, key):
            lines += ["", f"  {heading}"]
            for statement in statements:
                lines += wrapped(statement, "    - ")
    return "\n".join(lines)


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
        variant=variant.name, method=variant.method, title=variant.title, family=variant.family, source=variant.source,
        what=variant.what, as_published=variant.as_published, chosen_here=variant.chosen_here, differs=variant.differs,
        oracle=variant.oracle, global_only=variant.global_only, refusal=refusal,
        server_sees=variant.server_sees, secure_aggregation=variant.secure_aggregation,
        scopes={name: group.scope.value for name, group in groups.items()},
    )  # fmt: skip


def _build(variant: Variant, batch_norm: bool) -> Method:
    """Build the variant with a small MLP, which has batch norm if `batch_norm` is true."""

    def build_model(width: float = 1.0, trained: bool = False):
        return mlp.build(SHAPE, OUTPUTS, hidden=8, batch_norm=batch_norm, width=width)

    problem = Problem(
        build_model=build_model, clients=CLIENTS, cohort=CLIENTS, clusters=CLUSTERS,
        true_cluster=torch.arange(CLIENTS) % CLUSTERS, lr=0.01, router_lr=0.01, shape=SHAPE, outputs=OUTPUTS,
        batch=4, loss="cross_entropy", switches=catalogue.fidelity("corrected").switches, seed=0,
    )  # fmt: skip
    return method_of(variant, problem)
