"""A folder of a pretrained model, as the library transformers of Hugging Face writes it."""

from __future__ import annotations

import json
from pathlib import Path

from floral.config.reading import ConfigError

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
INSTALL = "install it with: pip install tokenizers transformers"
"""Remedy in messages about a missing package of Hugging Face."""


def weights(folder: Path) -> list[Path]:
    """Return the files of weights in the folder, sorted by name."""
    return sorted(folder.glob("*.safetensors"))


def number(config: Path, key: str) -> int | None:
    """Return a whole number from 0 on of config.json, or None if the file cannot be read or has no such number."""
    try:
        value = json.loads(config.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return value if type(value) is int and value >= 0 else None


def padding_id(config: Path) -> int:
    """Return the token id that fills up short texts: `pad_token_id` in config.json.

    Raises:
        ConfigError: the file cannot be read, or names no such id.
    """
    padding = number(config, "pad_token_id")
    if padding is None:
        raise ConfigError(
            f"{config}: `pad_token_id` cannot be read; name the folder of a pretrained model, and write into this file "
            "the id of a token that no text contains"
        )
    return padding
