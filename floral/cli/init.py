"""Make the folder of a new study, with an example of each file that a study can have."""

from __future__ import annotations

import csv
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from floral.config import paths
from floral.config.reading import ConfigError

EXAMPLE = Path(__file__).with_name("study")
"""The files of a new study, except those that the package has already and the data."""
PROFILES = ("local", "gpu", "slurm")
SITES = 6


def init(folder: Path) -> None:
    """Write the files of a new study into a folder that does not exist yet or is empty.

    The files are written beside the folder first, so an error leaves no half study.

    Raises:
        ConfigError: the folder is not empty, or it is a file.
    """
    folder = folder.absolute()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: this is a file; choose another name for the folder of the study")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: this folder is not empty; choose a new folder, for example {folder / 'study'}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        new = Path(temporary) / "study"
        shutil.copytree(EXAMPLE, new, ignore=shutil.ignore_patterns("__pycache__"))
        (new / "gitignore").rename(new / ".gitignore")
        for profile in PROFILES:
            shutil.copytree(paths.PACKAGE / "workflow" / "profiles" / profile, new / profile)
        settings = (paths.PACKAGE / "config" / "config.yaml").read_text(encoding="utf-8")
        settings = re.sub(r"(?m)^suite: \w+", "suite: flowers", settings)
        (new / "config" / "config.yaml").write_text(settings, encoding="utf-8")
        (new / "data").mkdir()
        _write_flowers(new / "data" / "flowers.csv")
        new.rename(folder)


def _write_flowers(path: Path) -> None:
    """Write the iris data of scikit-learn as a table. A column assigns each flower to a site."""
    from sklearn.datasets import load_iris

    iris: Any = load_iris()
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["site", "species", "sepal_length", "sepal_width", "petal_length", "petal_width"])
        for i, (values, label) in enumerate(zip(iris.data, iris.target, strict=True)):
            table.writerow([f"site{i % SITES}", iris.target_names[label], *values])
