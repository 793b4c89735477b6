"""A number has the type of its key: 1 and 1.0 name the same run, and 1.5 of something that is counted is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from floral.config import catalogue, paths
from floral.config.reading import ConfigError, read
from floral.config.schema.method import Parameter
from floral.config.suites import suite_runs

PARAMETERS = [
    pytest.param(parameter, id=f"{method}-{key}")
    for method in catalogue.names("methods")
    for key, parameter in catalogue.method_file(method).parameters.items()
    if not isinstance(parameter.default, bool)
]


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_a_parameter_gives_equal_numbers_one_type(parameter: Parameter) -> None:
    numbers = [1, 2, 3, 8, parameter.default]
    for number in numbers:
        if not isinstance(number, str):
            accepted = []
            for spelling in (number, float(number)):
                try:
                    accepted.append(repr(parameter.accept(spelling)))
                except ValueError as error:
                    accepted.append(type(error).__name__)
            assert accepted[0] == accepted[1], (number, accepted)
            assert isinstance(parameter.default, str) or repr(parameter.accept(parameter.default)) == repr(
                parameter.default
            )


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_a_parameter_that_counts_refuses_a_fraction(parameter: Parameter) -> None:
    if isinstance(parameter.default, int) or parameter.whole_from is not None:
        with pytest.raises(ValueError, match=r"1\.5 is not a whole number; set 1 or 2|out of range"):
            parameter.accept(1.5)


@pytest.mark.parametrize(
    ("variant", "key"),
    [("fedrep", "head_epochs"), ("floral_1", "multiplier"), ("ensemble", "top"), ("floral_1", "rank")],
)
def test_a_fraction_of_a_count_names_file_and_key(write, variant: str, key: str) -> None:
    write(
        "suites/mine",
        title="Mine",
        runs=[{"tasks": ["digits_rotate"], "variants": [variant], "method": {key: 1.5}, "seeds": [0]}],
    )
    with pytest.raises(ConfigError, match=rf"config/suites/mine\.yaml: .*{key}: 1\.5 is not a whole number"):
        suite_runs("mine")


def _numbers(values: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], int | float]]:
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _numbers(value, (*path, key))
    elif isinstance(values, list):
        for place, value in enumerate(values):
            yield from _numbers(value, (*path, place))
    elif isinstance(values, int | float) and not isinstance(values, bool):
        yield path, values


def _with_value(values: Any, path: tuple[str | int, ...], value: int | float) -> Any:
    if not path:
        return value
    changed = dict(values) if isinstance(values, Mapping) else list(values)
    changed[path[0]] = _with_value(values[path[0]], path[1:], value)  # type: ignore[index]
    return changed


@pytest.mark.parametrize("name", catalogue.names("tasks"))
def test_a_task_gives_equal_numbers_one_type(name: str) -> None:
    values = read(paths.CONFIG_FOLDER / "tasks" / f"{name}.yaml")
    values.pop("extends", None)
    before = catalogue.task(name).model_dump_json()
    for path, number in _numbers(values):
        if number == int(number):
            spelling = float(number) if isinstance(number, int) else int(number)
            try:
                changed = catalogue.task(name, {path[0]: _with_value(values, path, spelling)[path[0]]})
            except ConfigError as error:
                assert str(path[0]) in str(error) and "extends" not in str(error)
            else:
                assert changed.model_dump_json() == before, path


@pytest.mark.parametrize(
    ("switch", "value"),
    [("mixture_floor", 0), ("preconditioner", 1), ("preconditioner", 1.0), ("mixture_floor", False)],
)
def test_a_switch_gives_equal_numbers_one_type(switch: str, value: Any) -> None:
    try:
        chosen = catalogue.fidelity("official", {switch: value})[switch]
    except ConfigError as error:
        assert f"{switch}: this switch cannot be {value!r}" in str(error)
        assert isinstance(value, bool) != isinstance(catalogue.switches()[switch].choices[0], bool)
    else:
        assert repr(chosen) in [repr(choice) for choice in catalogue.switches()[switch].choices]
