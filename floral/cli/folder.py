"""Print a folder of the settings, for the Makefile: `python -m floral.cli.folder results`."""

from __future__ import annotations

import sys

from floral.config.reading import ConfigError
from floral.config.settings import read_settings

if __name__ == "__main__":
    try:
        print(getattr(read_settings(), sys.argv[1]).absolute())
    except ConfigError as error:
        sys.exit(str(error))
