"""With `allow_missing: true`, try to fetch the missing data sets. Runs are skipped if their data cannot be fetched."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from floral.config import data_sets, networks
from floral.config.schema.data import CustomData
from floral.config.schema.task import Task
from floral.io.files import atomic
from floral.runs.missing_data import FETCH_ERROR, is_stored


def try_to_fetch(tasks: Iterable[Task], results: Path, data_dir: Path | None) -> None:
    """Try to fetch the missing data sets and networks of these tasks.

    If a fetch fails, the reason is written to the file missing.txt in the folder of the data set.
    """
    needed = {str(data_sets.stored_data(data)): data for task in tasks for data in networks.to_fetch(task)}
    missing = {
        name: data
        for name, data in needed.items()
        if not is_stored(name, results) and not (isinstance(data, CustomData) and data_sets.why_unreadable(data))
    }
    if not missing:
        return
    from floral.data.sources import DataError
    from floral.stages.fetch import fetch

    for name, data in missing.items():
        note = results / "data" / name / FETCH_ERROR
        try:
            fetch(data, results, data_dir)
        except DataError as error:
            atomic(note, str(error).encode())
        else:
            note.unlink(missing_ok=True)
