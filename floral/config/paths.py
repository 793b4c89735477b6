"""Where the YAML files are."""

from __future__ import annotations

import os
from pathlib import Path

CONFIG = Path(os.environ.get("FLORAL_CONFIG", "config"))
"""Folder of the YAML files, relative to the project's root, where every command is typed."""
