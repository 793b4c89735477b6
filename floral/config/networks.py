"""Pretrained networks in config/data.lock: entries with `reader: weights`, which the keys of a model may name."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from floral.config import data_sets
from floral.config.reading import ConfigError
from floral.config.schema.data import CustomData, DataSet, Synthetic
from floral.config.schema.task import Model, Task

READER = "weights"
"""Value of `reader` in the entry of a network."""
KEYS = ("weights", "path")
"""Keys of a model that may name a network: its file of weights, or its folder."""
WEIGHTS = "*.safetensors"
"""Pattern of the names of files with weights."""


def network(name: object) -> DataSet | None:
    """Return the entry of a network in config/data.lock, or None if there is no network with this name."""
    entry = data_sets.data_lock().get(name) if isinstance(name, str) else None
    return entry if entry is not None and entry.reader == READER else None


def data_names() -> list[str]:
    """Return the names of the entries of config/data.lock that are data sets, and no networks."""
    return [name for name, entry in data_sets.data_lock().items() if entry.reader != READER]


def file_name(path: str) -> str:
    """Return the name under which a file of a network is stored: its name without folders and without .gz."""
    return Path(path).name.removesuffix(".gz")


def used(model: Model) -> dict[str, str]:
    """Return the networks of a model: key of the model → name of an entry in config/data.lock."""
    keys = model.all_keys
    return {key: keys[key] for key in KEYS if network(keys.get(key)) is not None}


def to_fetch(task: Task) -> list[str | CustomData]:
    """Return what is fetched for a task: its data, unless they are generated, and the names of its networks."""
    data = [] if task.noop or isinstance(task.data, Synthetic) else [task.data]
    return [*data, *dict.fromkeys(used(task.model).values())]


def cards(model: Model, results: Path) -> list[Path]:
    """Return the paths of the manifests (card.json) of a model's networks."""
    names = dict.fromkeys(used(model).values())
    return [results / "data" / str(data_sets.stored_data(name)) / "card.json" for name in names]


def hashes(name: str, pattern: str) -> list[str] | None:
    """Return the SHA-256 of the network's files whose names match a pattern, or their paths if data.lock has no hash.

    Return None if there is no network with this name.
    """
    entry = network(name)
    if entry is None:
        return None
    matching = [file for file in entry.files if fnmatchcase(file_name(file.path), pattern)]
    return [file.sha256 or file.path for file in matching]


def located(model: Model, results: Path | None) -> Model:
    """Return the keys of a model with the stored files in place of the names of networks.

    `weights` becomes the path of the file of weights, and `path` that of the folder in results/data.

    Raises:
        ConfigError: a network is not fetched, or its entry has not exactly one file of weights.
    """
    paths: dict[str, str] = {}
    for key, name in used(model).items():
        folder = (results or Path("results")) / "data" / str(data_sets.stored_data(name))
        if results is None or not (folder / "card.json").exists():
            raise ConfigError(f"{folder}: the network {name!r} is missing; make it with: floral fetch {name}")
        files = sorted(folder.glob(WEIGHTS))
        if key == "weights" and len(files) != 1:
            raise ConfigError(
                f"{data_sets.place(name)}: `weights: {name}` needs an entry with one file {WEIGHTS}, but it has "
                f"{len(files)}; name the network as `path`, or correct the entry"
            )
        paths[key] = str((files[0] if key == "weights" else folder).absolute())
    return model.model_copy(update=paths)
