"""The trained model of a run: its tensors, and predictions of any client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.core.spec import Method, View
from floral.engine.evaluate import prediction_view
from floral.engine.state import State, client_view
from floral.nn.model import Model
from floral.runs.outdated import why_not_the_trained_model
from floral.stages.assemble import build_simulation, make_problem


class TrainedModel:
    """The model of a finished run, on the CPU.

    tensors: all parameters after the last round, by the names <group>/<parameter>. Tensors of a PRIVATE group have one
    entry per client on the first axis, and those of a CLUSTERED group one per cluster.
    """

    run: Run
    tensors: dict[str, Tensor]

    def __init__(self, run: Run, folder: Path, results: Path) -> None:
        """Read the model of a run from its folder. Its data and partition are read from the folder `results`.

        Raises:
            ConfigError: the run has no model, its data are missing, or its code or files have changed since it was
                trained.
        """
        if run.task.noop:
            raise ConfigError(f"model: a run of the task {run.task.name!r} trains no model; choose another run")
        self.run, self._folder, self._results = run, folder, results
        self._check_code()
        self._simulation, self._data = build_simulation(run, results, torch.device("cpu"))
        self._shape = self._data.shape
        self.tensors = _tensors(folder / "model.safetensors")
        self._state = State.of({f"value/{name}": tensor for name, tensor in self.tensors.items()})

    def _check_code(self) -> None:
        """Check that a model that is built now is the one that was trained.

        Raises:
            ConfigError: code or files of the run have changed.
        """
        if reasons := why_not_the_trained_model(self.run, self._folder):
            raise ConfigError(
                f"model: run {self._folder.name.rpartition('-')[2]}: {' and '.join(reasons)}, so its values would be "
                "used in another model than they were trained in; restore what it was trained with, or train it again"
            )

    @property
    def clients(self) -> int:
        """The number of clients."""
        return self._simulation.data.clients

    @property
    def method(self) -> Method:
        """The method of the run."""
        return self._simulation.method

    def build_model(self) -> Model:
        """Return the task's model, with its initial values.

        Raises:
            ConfigError: code or files of the run have changed since it was trained.
        """
        self._check_code()
        return make_problem(self.run, self._data, torch.device("cpu"), torch.float32, self._results).build_model()

    def view(self, client: int, argument: str = "client") -> View:
        """Return the values with which a client predicts: parameter group → name → tensor, without a client axis.

        Raises:
            ConfigError: there is no such client. The message names the `argument` of the caller.
        """
        if client not in range(self.clients):
            raise ConfigError(f"{argument}: {client!r} is no client; give a number from 0 to {self.clients - 1}")
        data, clients = self._simulation.data, torch.tensor([client])
        with torch.no_grad():
            pools = data.pool_of_client[clients]
            return client_view(*prediction_view(self.method, self._state, data.train, pools, clients, False))

    def predict(self, x: Any, client: int) -> Tensor:
        """Return the outputs [N, outputs] of a client's model for inputs x [N, …]: logits, or regression values.

        x has the type and shape of the data as they are stored: for example, images are uint8 [N, H, W]. The inputs are
        scaled and normalised as in training. The shift of the client's cluster, such as a rotation, is not applied.

        Raises:
            ConfigError: there is no such client, or x has a wrong shape.
        """
        view = self.view(client, "predict: client")
        inputs = torch.from_numpy(np.ascontiguousarray(x)) if not isinstance(x, Tensor) else x
        if tuple(inputs.shape[1:]) != self._shape:
            raise ConfigError(
                f"predict: x: has the shape {list(inputs.shape)}, but the model needs [N, "
                f"{', '.join(map(str, self._shape))}]; give a batch of inputs"
            )
        with torch.no_grad():
            return self.method.predict(view, self._simulation.data.test.decode(inputs), None, None)[0]


def _tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a run's model.safetensors, and those of the file of private values that it names."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
            private = (file.metadata() or {}).get("private")
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{path}: the model cannot be read ({error}); train the run again, or copy the file from where it was "
            "trained"
        ) from None
    return tensors if private is None else tensors | _tensors(path.with_name(private))
