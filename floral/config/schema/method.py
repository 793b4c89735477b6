"""Define the YAML keys of a method: hyper-parameters, variants, and what the server sees of a client."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from floral.config.schema.base import Frozen


class Parameter(Frozen):
    """A hyper-parameter of a method, with its meaning, default and allowed values."""

    default: float | int | bool | str = Field(description="Default value of the parameter.")
    doc: str = Field(description="Meaning of the parameter, in one sentence with its unit.")
    choices: tuple[Any, ...] | None = Field(default=None, description="Allowed words, or true and false.")
    at_least: float | None = Field(default=None, description="Smallest allowed number, inclusive.")
    above: float | None = Field(default=None, description="Lower bound of allowed numbers, exclusive.")
    at_most: float | None = Field(default=None, description="Largest allowed number, inclusive.")
    whole_from: float | None = Field(
        default=None, description="Numbers from this value on must be whole, such as a rank that is a share below 1."
    )
    later: bool = Field(
        default=False,
        description="Whether the parameter was added after the first results; its default does not change the hash.",
    )

    def accept(self, value: Any) -> Any:
        """Return `value` in the type of this hyper-parameter if it is an allowed value.

        Raises:
            ValueError: the value is not allowed. The message gives the allowed values.
        """
        if self.choices is not None and isinstance(value, str | bool):
            if value not in self.choices:
                raise ValueError(f"{value!r} is not allowed; choose one of {', '.join(map(str, self.choices))}")
            return value
        if isinstance(self.default, bool) != isinstance(value, bool):
            raise ValueError(f"{value!r} has the wrong type; give a {type(self.default).__name__}")
        if isinstance(value, int | float) and not isinstance(value, bool):
            if abs(value) > sys.float_info.max or not math.isfinite(value):
                raise ValueError(f"{value!r} is not a finite number; give a finite one")
            if isinstance(self.default, str) and self.at_least is None and self.above is None:
                raise ValueError(f"{value!r} is not allowed; choose one of {', '.join(map(str, self.choices or ()))}")
            below = (self.at_least is not None and value < self.at_least) or (
                self.above is not None and value <= self.above
            )
            if below or (self.at_most is not None and value > self.at_most):
                limits = {"at least": self.at_least, "above": self.above, "at most": self.at_most}
                allowed = " and ".join(f"{words} {limit}" for words, limit in limits.items() if limit is not None)
                raise ValueError(f"{value!r} is out of range; give a number {allowed}")
            return self._number(value)
        if not isinstance(value, type(self.default)):
            raise ValueError(f"{value!r} has the wrong type; give a {type(self.default).__name__}")
        return value

    def _number(self, value: int | float) -> int | float:
        """Return a number as a float, or as an int if the hyper-parameter needs a whole number.

        So the values 1 and 1.0 give the same run.

        Raises:
            ValueError: the number is not a whole number, but the parameter must be one.
        """
        is_whole = isinstance(self.default, int) if self.whole_from is None else value >= self.whole_from
        if not is_whole:
            return float(value)
        if value != int(value):
            raise ValueError(f"{value!r} is not a whole number; set {math.floor(value)} or {math.ceil(value)}")
        return int(value)


SERVER_SEES = {
    "sizes": "its number of training samples, used as a weight",
    "routes": "its clusters, or its weights of the clusters",
    "updates": "its own update, not only a sum over clients",
    "rows": "its training samples, or statistics of them",
}
"""Word for what a server may learn about a single client → its meaning, in words of the report."""
ServerSees = tuple[Literal["sizes", "routes", "updates", "rows"], ...]

STATEMENTS = {
    "as_published": "As published",
    "chosen_here": "Chosen here",
    "differs": "Different from the source",
}
"""YAML key of statements that compare a method with its source → heading of these statements in lists of methods."""

Condition = Literal["one_local_step", "one_cluster"]
"""Property of a task under which two variants give the same results. floral/report/degenerate.py tests it."""


class Equal(Frozen):
    """A statement that two variants give the same results on some tasks.

    The statement belongs to a method or variant. `variant` names the other variant, and `when` says on which tasks the
    results are the same. The results are the same only if all hyper-parameters that both variants have are equal.
    """

    variant: str = Field(description="Name of the variant with the same results.")
    when: Condition = Field(description="Property of the tasks on which the results are the same.")


class VariantEntry(Frozen):
    """The YAML entry of a variant. It lists the hyper-parameters whose values differ from the method's defaults."""

    title: str = Field(description="Title of the variant in reports.")
    set: Mapping[str, Any] = Field(
        default_factory=dict, description="Values of hyper-parameters that differ from the method's defaults."
    )
    what: tuple[str, str] | None = Field(
        default=None, description="Description of the variant in two lines; by default the description of the method."
    )
    as_published: tuple[str, ...] = Field(
        default=(), description="Statements for this variant only, added to `as_published` of the method."
    )
    chosen_here: tuple[str, ...] = Field(
        default=(), description="Statements for this variant only, added to `chosen_here` of the method."
    )
    differs: tuple[str, ...] = Field(
        default=(), description="Statements for this variant only, added to `differs` of the method."
    )
    oracle: bool = Field(
        default=False,
        description="Whether the variant reads the true clusters. If so, it is only a reference for others.",
    )
    global_only: bool = Field(
        default=False, description="Whether all clients get the same model. Such a model cannot fit different concepts."
    )
    equals: tuple[Equal, ...] = Field(
        default=(), description="Other variants with the same results on some tasks, added to `equals` of the method."
    )
    server_sees: ServerSees | None = Field(
        default=None,
        description="What the server learns about a single client; by default `server_sees` of the method.",
    )


class MethodFile(Frozen):
    """A file of config/methods, with the description, hyper-parameters and variants of a method."""

    family: str = Field(description="Family of the method; reports group methods by family.")
    source: str = Field(description="Publication of the method, such as an arXiv number.")
    version: int = Field(
        default=1,
        ge=1,
        description="Version of the method's code. Increase it when the same run gives other numbers: its runs get new "
        "names.",
    )
    what: tuple[str, str] = Field(description="Description of the method in two lines: model, then training.")
    as_published: tuple[str, ...] = Field(
        default=(),
        description="List of what is as in the publication or its public code. Each entry ends with its place there in "
        "brackets: an equation, algorithm, section or file.",
    )
    chosen_here: tuple[str, ...] = Field(
        default=(), description="List of what the source leaves open, with what was chosen here."
    )
    differs: tuple[str, ...] = Field(
        default=(), description="List of what differs from the source, with the reason where it is not plain."
    )
    server_sees: ServerSees = Field(
        description=f"What the server learns about a single client: a list of {', '.join(SERVER_SEES)}; [] for nothing."
    )
    equals: tuple[Equal, ...] = Field(
        default=(), description="Variants that give the same results as those of this method on some tasks."
    )
    parameters: Mapping[str, Parameter] = Field(
        default_factory=dict, description="Hyper-parameters of the method by name."
    )
    variants: Mapping[str, VariantEntry] = Field(description="Variants of the method by name.")


class Variant(Frozen):
    """A variant of a method: the method with a value for every hyper-parameter."""

    name: str
    method: str
    title: str
    family: str
    source: str
    what: tuple[str, str]
    as_published: tuple[str, ...] = ()
    chosen_here: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()
    oracle: bool
    global_only: bool = False
    server_sees: ServerSees
    equals: tuple[Equal, ...] = ()
    params: Mapping[str, Any]

    @property
    def optimal_router(self) -> bool:
        """Whether the router always gives a client's true cluster the weight 1 and all other clusters the weight 0.

        A router is the part of a method that gives each client a weight for each cluster.
        """
        return self.params.get("router") == "optimal"

    @property
    def secure_aggregation(self) -> bool:
        """Whether the method works with secure aggregation, a protocol that shows the server only sums over clients.

        The method works with it if the server sees neither the update nor the samples of a single client. The server
        may know how many samples a client has and which clusters the client uses. Source: Bonawitz et al. 2017.
        """
        return not {"updates", "rows"} & set(self.server_sees)
