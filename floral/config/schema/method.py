"""Values of a method: hyper-parameters, variants, and what the server sees."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from floral.config.schema.base import Frozen


class Parameter(Frozen):
    """A hyper-parameter of a method: its default and its allowed values."""

    default: float | int | bool | str = Field(description="Default value of the parameter.")
    doc: str = Field(description="Meaning of the parameter, in one sentence with its unit.")
    choices: tuple[Any, ...] | None = Field(default=None, description="Allowed words or switches.")
    at_least: float | None = Field(default=None, description="Smallest allowed number, inclusive.")
    above: float | None = Field(default=None, description="Lower bound of allowed numbers, exclusive.")
    at_most: float | None = Field(default=None, description="Largest allowed number, inclusive.")
    later: bool = Field(
        default=False,
        description="Whether the parameter was added after the first results; at its default, runs keep their hash.",
    )

    def accept(self, value: Any) -> Any:
        """Return `value` if it is allowed.

        Raises:
            ValueError: it is not; the message lists the allowed values.
        """
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
    "sizes": "its number of training samples, used as a weight",
    "routes": "its clusters, or its weights of the clusters",
    "updates": "its own update, not only a sum over clients",
    "rows": "its training samples, or statistics of them",
}
"""What a server may learn about a single client → the meaning of the word."""
ServerSees = tuple[Literal["sizes", "routes", "updates", "rows"], ...]
Condition = Literal["one_local_step", "one_cluster"]
"""Property of a task under which two methods coincide. floral/report/degenerate.py tests it."""


class Equal(Frozen):
    """Another variant that gives the same results on some tasks, with equal values of all shared parameters."""

    variant: str = Field(description="Name of the variant with the same results.")
    when: Condition = Field(description="Property of the tasks on which the results are the same.")


class VariantEntry(Frozen):
    """A named variant of a method in config/methods: the values that differ from the method's defaults."""

    title: str = Field(description="Title of the variant in reports.")
    set: Mapping[str, Any] = Field(
        default_factory=dict, description="Values of hyper-parameters that differ from the method's defaults."
    )
    what: tuple[str, str] | None = Field(
        default=None, description="Description in two lines; by default that of the method."
    )
    oracle: bool = Field(
        default=False, description="Whether the variant reads the true clusters, so that it is only a reference."
    )
    global_only: bool = Field(
        default=False, description="Whether all clients get the same model, which cannot fit a concept shift."
    )
    equals: tuple[Equal, ...] = Field(
        default=(), description="Further variants with the same results on some tasks, beside those of the method."
    )
    server_sees: ServerSees | None = Field(
        default=None, description="What the server learns about a single client; by default that of the method."
    )


class MethodFile(Frozen):
    """A file of config/methods: a method's description, hyper-parameters and named variants."""

    family: str = Field(description="Family of the method, under which reports group it.")
    source: str = Field(description="Publication of the method, such as an arXiv number.")
    what: tuple[str, str] = Field(description="Description of the method in two lines: model, then training.")
    server_sees: ServerSees = Field(
        description=f"What the server learns about a single client: a list of {', '.join(SERVER_SEES)}; [] for nothing."
    )
    equals: tuple[Equal, ...] = Field(
        default=(), description="Variants of other methods with the same results on some tasks."
    )
    parameters: Mapping[str, Parameter] = Field(
        default_factory=dict, description="Hyper-parameters of the method by name."
    )
    variants: Mapping[str, VariantEntry] = Field(description="Variants of the method by name.")


class Variant(Frozen):
    """A variant with the value of every hyper-parameter."""

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
        """Whether the router is fixed to the true cluster of each client."""
        return self.params.get("router") == "optimal"

    @property
    def secure_aggregation(self) -> bool:
        """Whether secure aggregation can carry the method.

        The server then needs only sizes, routes and sums over all clients or over the clients of one cluster. Secure
        aggregation reveals nothing but sums (Bonawitz et al. 2017).
        """
        return not {"updates", "rows"} & set(self.server_sees)
