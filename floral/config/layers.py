"""Find the YAML files of the study and of the package.

A study is a folder of the user. The files in its config/ are added to those of the package. A name in both is an error,
unless the file of the study has `overrides: true`. A config/ with the file parameters.yaml is complete, such as that of
the repository. Then the package's config/ is not read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from floral.config import paths, reading
from floral.config.reading import ConfigError

OVERRIDES = "overrides"
"""Key in a file of the study. If it is true, the file replaces the package's file of the same name."""


def folders() -> tuple[Path, ...]:
    """Return the config folders that are read: that of the study first, then that of the package."""
    study = paths.CONFIG_FOLDER
    return (study,) if (study / "parameters.yaml").exists() else (study, paths.PACKAGE / "config")


def files(name: str) -> list[Path]:
    """Return the existing files config/<name>: that of the study first, then that of the package."""
    return [path for folder in folders() if (path := folder / name).exists()]


def file(name: str) -> Path:
    """Return the file config/<name> of the study, or else of the package. If both lack it, return the study's path."""
    return next(iter(files(name)), paths.CONFIG_FOLDER / name)


def names(folder: str) -> list[str]:
    """Return the names of the YAML files in config/<folder>, without `.yaml`, sorted."""
    candidates = [path for layer in folders() for path in (layer / folder).glob("*.yaml")]
    return sorted({path.stem for path in candidates if not path.name.startswith(".")})


def read(name: str) -> dict[str, Any]:
    """Return the content of the file config/<name>, without the key `overrides`.

    Raises:
        ConfigError: the file cannot be read, or the study and the package both have it without `overrides: true`.
    """
    path, *replaced = files(name) or [file(name)]
    values = reading.read(path)
    if path.is_relative_to(paths.CONFIG_FOLDER):
        check_overrides(values.pop(OVERRIDES, False), str(path), str(replaced[0]) if replaced else None)
    return values


def check_overrides(overrides: Any, where: str, replaced: str | None) -> None:
    """Raise ConfigError unless `overrides` says truly whether an entry of the study replaces one of the package.

    `where` is the file of the study, or its entry. `replaced` is the file of the package with the same name, or None.
    """
    if not isinstance(overrides, bool):
        raise ConfigError(f"{where}: {OVERRIDES}: expected true or false, found {overrides!r}; write one of the two")
    if replaced is not None and not overrides:
        raise ConfigError(
            f"{where}: {replaced} has the same name; choose another name, or write `{OVERRIDES}: true` in {where} to "
            "replace the other"
        )
    if overrides and replaced is None:
        raise ConfigError(
            f"{where}: {OVERRIDES}: the package has nothing of this name to replace; remove this key, or correct the "
            "name"
        )
