"""The folder that contains the YAML files."""

from __future__ import annotations

import os
from pathlib import Path

CONFIG_FOLDER = Path(os.environ.get("FLORAL_CONFIG", "config"))
"""Folder of the YAML files, relative to the project's root, in which every command is called."""
