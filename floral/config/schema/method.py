"""Values of a method: hyper-parameters, variants, and what the server sees."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from floral.config.schema.base import Frozen


class Parameter(Frozen):
    """One hyper-parameter of a method: its default and what is allowed."""

    default: float | int | bool | str
    doc: str
    choices: tuple[Any, ...] | None = None
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    later: bool = Field(
        default=False, description="younger than results that are kept: a run at the default is the one without it"
    )

    def accept(self, value: Any) -> Any:
        """Return `value` if it is allowed, else raise ValueError with what is."""
        if self.choices is not None and isinstance(value, str | bool):
            if value not in self.choices:
                raise ValueError(f"{value!r} is not one of {', '.join(map(str, self.choices))}")
            return value
        if isinstance(self.default, bool) != isinstance(value, bool):
            raise ValueError(f"{value!r} is not a {type(self.default).__name__}")
        if isinstance(value, int | float) and not isinstance(value, bool):
            if not math.isfinite(value):
                raise ValueError(f"{value!r} is not a finite number")
            if isinstance(self.default, str) and self.at_least is None and self.above is None:
                raise ValueError(f"{value!r} is not one of {', '.join(map(str, self.choices or ()))}")
            below = (self.at_least is not None and value < self.at_least) or (
                self.above is not None and value <= self.above
            )
            if below or (self.at_most is not None and value > self.at_most):
                low = f"at least {self.at_least}" if self.at_least is not None else f"above {self.above}"
                raise ValueError(
                    f"{value!r} is out of range: {low}, at most {self.at_most if self.at_most is not None else 'any'}"
                )
        elif not isinstance(value, type(self.default)):
            raise ValueError(f"{value!r} is not a {type(self.default).__name__}")
        return value


SERVER_SEES = {
    "sizes": "how many training rows it has, the weight of a mean",
    "routes": "which clusters it belongs to",
    "updates": "what it trained, by itself and not only as part of a sum",
    "rows": "its training rows, or statistics of them",
}
"""What a server may get to know of a single client."""
ServerSees = tuple[Literal["sizes", "routes", "updates", "rows"], ...]
Condition = Literal["one_local_step", "one_cluster"]
"""What a task can be like that makes one method another; floral/stages/degenerate.py tests it."""


class Equal(Frozen):
    """`variant` with the same values of the parameters that both have gives the same results `when` a task is so."""

    variant: str
    when: Condition


class VariantEntry(Frozen):
    title: str
    set: Mapping[str, Any] = Field(default_factory=dict)
    what: tuple[str, str] | None = Field(default=None, description="instead of the method's two lines")
    oracle: bool = Field(default=False, description="reads the true clusters: a ceiling or control, not a rival")
    global_only: bool = Field(default=False, description="serves one model to all: cannot fit a concept shift")
    equals: tuple[Equal, ...] = Field(default=(), description="besides those of its method")
    server_sees: ServerSees | None = Field(default=None, description="where it differs from its method's")


class MethodFile(Frozen):
    """One file of config/methods: a method, what it is in two lines, its hyper-parameters and named variants."""

    family: str
    source: str
    what: tuple[str, str]
    server_sees: ServerSees = Field(
        description=f"what the server gets to know of a single client, [] or some of: {', '.join(SERVER_SEES)}"
    )
    equals: tuple[Equal, ...] = Field(default=(), description="tasks on which another variant gives the same results")
    parameters: Mapping[str, Parameter] = Field(default_factory=dict)
    variants: Mapping[str, VariantEntry]


class Variant(Frozen):
    """A method with all of its hyper-parameters resolved."""

    name: str
    method: str
    title: str
    family: str
    source: str
    what: tuple[str, str]
    oracle: bool
    global_only: bool = False
    server_sees: ServerSees
    equals: tuple[Equal, ...] = ()
    params: Mapping[str, Any]

    @property
    def optimal_router(self) -> bool:
        return self.params.get("router") == "optimal"

    @property
    def secure_aggregation(self) -> bool:
        """Whether the server needs only sums over clients (all, or those of one cluster) besides sizes and routes, so
        that a protocol that reveals nothing but sums (Bonawitz et al. 2017) can carry the method."""
        return not {"updates", "rows"} & set(self.server_sees)
