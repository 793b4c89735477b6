"""The path of the folder that contains the project's YAML files."""

from __future__ import annotations

import os
from pathlib import Path

CONFIG_FOLDER = Path(os.environ.get("FLORAL_CONFIG", "config"))
"""Folder of the YAML files. A relative path starts at the project's root, where every command is called."""
