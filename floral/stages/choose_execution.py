"""Choose how a run is computed (how many clients at once, how many threads), and set the precision of the device."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch

from floral.config.reading import ConfigError
from floral.core.precision import Precision
from floral.core.spec import Refused
from floral.engine import devices, execution
from floral.engine.simulate import Execution, Simulation
from floral.engine.state import State


def resolve_execution(
    simulation: Simulation,
    state: State,
    folder: Path,
    values: str,
    backend: str,
    threads: int,
    precision: str = "fp32",
    committed: Callable[[], Mapping[str, Any] | None] = lambda: None,
) -> Execution:
    """Return how a run is computed: the backend, how many clients are trained at once, and the number of threads.

    With the backend "auto", a run with committed results is computed as these were: `committed` returns their
    execution. Otherwise, the first run measures which choice is fastest.

    The first run writes the choice to a file in the parent of the run's folder. All runs that differ only in the seed
    use the choice in this file, so that a repeated run has bit-identical results. The name of the file contains
    `values`, a hash of the run's configuration without the seed. If several processes measure at the same time, all of
    them use the choice that is written first.

    Raises:
        ConfigError: the backend cannot be used for the method, or the file is damaged.
    """
    version = torch.__version__.split("+")[0]
    how = backend if precision == "fp32" else f"{backend}-{precision}"
    path = folder.parent / f"execution-{values}-{simulation.device.type}-{how}-{threads}t-torch{version}.json"
    if not path.exists():
        pinned = _as_committed(simulation, state, committed(), threads, precision) if backend == "auto" else None
        measured = pinned or measure_execution(simulation, state, backend, threads, precision)
        private = path.with_name(f"{path.name}.{os.getpid()}")
        private.write_text(json.dumps(asdict(measured)))
        try:
            os.link(private, path)
        except FileExistsError:
            pass  # another seed was first; its choice is used
        finally:
            private.unlink()
    try:
        return Execution(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{path}: damaged ({error}); remove this file, and the next run measures again which backend is fastest"
        ) from error


def measure_execution(
    simulation: Simulation, state: State, backend: str, threads: int, precision: str = "fp32"
) -> Execution:
    """Choose the backend, how many clients are trained at once, and the number of threads.

    With the backend "auto", several choices are timed on this run, and the fastest is returned.

    Raises:
        ConfigError: the backend cannot be used for the method.
    """
    try:
        return execution.choose(
            simulation, state, cast(execution.Backend, backend), threads, cast(Precision, precision)
        )
    except Refused as reason:
        raise ConfigError(
            f"`backend: {backend}` cannot be used for this method: {reason}; set `backend: auto`"
        ) from None


def _as_committed(
    simulation: Simulation, state: State, committed: Mapping[str, Any] | None, threads: int, precision: str
) -> Execution | None:
    """Return the execution of committed results. Return None if this run cannot be computed in this way.

    This is so if there are no committed results, if their device or precision is another one, if this run has fewer
    cores, or if the method has changed so that the backend cannot compute it any more.
    """
    if committed is None or committed["device"] != simulation.device.type:
        return None
    fields = {name: committed[name] for name in Execution.__dataclass_fields__ if name in committed}
    pinned = Execution(**{**fields, "reason": "as in the committed results of this run"})
    if pinned.precision != precision or pinned.cores > threads:
        return None
    if pinned.backend == "loop":
        return pinned
    try:
        return next(iter(execution.measure(simulation, state, [pinned])))  # with a smaller chunk if memory is short
    except Refused:
        return None


def configure_device(device: torch.device, precision: str) -> None:
    """Set the precision with which the device computes, and make its algorithms deterministic.

    Raises:
        ConfigError: the device does not support this precision.
    """
    try:
        devices.settle(device, cast(Precision, precision))
    except Refused as reason:
        raise ConfigError(f"`precision: {precision}`: {reason}") from None
