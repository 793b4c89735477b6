"""Choose the execution of a run (backend, chunk, threads), and prepare the process and the device for it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch

from floral.config.reading import ConfigError
from floral.core.spec import Refused
from floral.engine import devices, execution
from floral.engine.devices import Precision
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
) -> Execution:
    """Return the execution for a run, measured once and then read from a file beside the run's folder.

    All seeds with equal `values` (a hash) share the file, so that repeated runs have equal bits. When several processes
    measure at once, the first result is used by all.

    Raises:
        ConfigError: the backend cannot do the method, or the file is damaged.
    """
    version = torch.__version__.split("+")[0]
    how = backend if precision == "fp32" else f"{backend}-{precision}"
    path = folder.parent / f"execution-{values}-{simulation.device.type}-{how}-{threads}t-torch{version}.json"
    if not path.exists():
        measured = measure_execution(simulation, state, backend, threads, precision)
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
        raise ConfigError(f"{path}: damaged ({error}); remove it, and the next run measures again") from error


def measure_execution(
    simulation: Simulation, state: State, backend: str, threads: int, precision: str = "fp32"
) -> Execution:
    """Choose the execution for a backend; `auto` times the candidates on the run's own shapes.

    Raises:
        ConfigError: the backend cannot do the method.
    """
    try:
        return execution.choose(
            simulation, state, cast(execution.Backend, backend), threads, cast(Precision, precision)
        )
    except Refused as reason:
        raise ConfigError(f"backend: {backend} cannot do this method: {reason}; set `backend: auto`") from None


def configure_device(device: torch.device, precision: str) -> None:
    """Set the device's precision and deterministic algorithms.

    Raises:
        ConfigError: the device lacks this precision.
    """
    try:
        devices.settle(device, cast(Precision, precision))
    except Refused as reason:
        raise ConfigError(f"precision: {precision}: {reason}") from None
