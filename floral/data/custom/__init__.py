"""Read custom data (the user's own data set), with one reader for each file format.

If the data are wrong, a reader raises DataError. Its message names the file, the row or column, and the remedy.
"""

from __future__ import annotations

from collections.abc import Callable

from floral.data.custom.arrays import arrays
from floral.data.custom.groups import clients, domains
from floral.data.custom.images import folder
from floral.data.custom.pflib import pflib
from floral.data.custom.table import table
from floral.data.readers import Labelled

READERS: dict[str, Callable[..., Labelled]] = {
    "folder": folder, "table": table, "arrays": arrays, "clients": clients, "domains": domains,
    "pflib": pflib,
}  # fmt: skip
