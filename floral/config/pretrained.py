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


def padding_id(config: Path) -> int:
    """Return the token id that fills up short texts: `pad_token_id` in config.json.

    Raises:
        ConfigError: the file cannot be read, or names no such id.
    """
    try:
        padding = json.loads(config.read_text(encoding="utf-8"))["pad_token_id"]
    except (OSError, ValueError, KeyError, TypeError):
        padding = None
    if type(padding) is not int or padding < 0:
        raise ConfigError(
            f"{config}: `pad_token_id` cannot be read; name the folder of a pretrained model, and write into this file "
            "the id of a token that no text contains"
        )
    return padding
