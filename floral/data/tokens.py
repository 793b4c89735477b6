"""Token ids of texts, by the tokenizer of a pretrained model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from floral.config import pretrained
from floral.data.sources import DataError, content

TOKENS = 128
"""Number of token ids of a text with a class, unless `data.tokens` says otherwise."""
TEXTS_AT_ONCE = 10_000
"""Number of texts that are encoded at a time, because the package tokenizers needs about 100 bytes per token."""


SHORTEN = "shorten the text, or remove the row"
"""Remedy for a text that is longer than a model allows."""


def token_ids(
    texts: Sequence[str],
    place_of: Callable[[int], str],
    tokenizer: Path,
    config: Path,
    tokens: int,
    *,
    fill: bool = False,
    remedy: str | None = SHORTEN,
) -> npt.NDArray[np.int32]:
    """Return the token ids of N texts, int32 [N, T]. T is the length of the longest text, but at most `tokens`.

    Longer texts are cut as the tokenizer does it, and shorter ones are filled up at the end. `tokenizer` is the file
    tokenizer.json of a pretrained model. `config` is its config.json, which has the padding id. `place_of` gives the
    file and row of a text, for messages.

    Args:
        fill: whether T is always `tokens`.
        remedy: what to do with a text that has more tokens than the model has positions. None: it is cut.

    Raises:
        DataError: a text is empty, or has more tokens than the model has positions; the package tokenizers is missing
            or cannot read the file; or the tokenizer does not fit the model.
        ConfigError: the configuration has no padding id.
    """
    if (empty := next((number for number, text in enumerate(texts) if not text.strip()), None)) is not None:
        raise DataError(f"{place_of(empty)}: the text is empty; write one, or remove the row")
    encoder, padding = encoder_of(tokenizer, config)
    limit = None if remedy is None else pretrained.number(config, "max_position_embeddings")
    rows: list[npt.NDArray[np.int32]] = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        encoded = encoder.encode_batch(list(texts[start : start + TEXTS_AT_ONCE]))
        rows += [np.array(row.ids, np.int32) for row in encoded]
    for number, ids in enumerate(rows):
        if limit is not None and len(ids) > limit:
            raise DataError(
                f"{place_of(number)}: the text has {len(ids):,} tokens, but the model of {config} takes {limit:,}; "
                f"{remedy}"
            )
    encoder.enable_truncation(tokens)
    length = tokens if fill else min(tokens, max(map(len, rows), default=0))
    array = np.full((len(rows), length), padding, np.int32)
    for row, ids, text in zip(array, rows, texts, strict=True):
        cut_ids = ids if len(ids) <= tokens else encoder.encode(text).ids
        row[: len(cut_ids)] = cut_ids
    return array


def encoder_of(tokenizer: Path, config: Path) -> tuple[Any, int]:
    """Return the tokenizer of a pretrained model, which neither cuts nor fills up, and the id that fills up texts.

    `tokenizer` is the file tokenizer.json, and `config` is the config.json of the model.

    Raises:
        DataError: the package tokenizers is missing or cannot read the file, or the tokenizer has more token ids than
            the model.
        ConfigError: the configuration has no padding id.
    """
    try:
        from tokenizers import Tokenizer  # pyright: ignore[reportMissingImports] - of the extra `hf`
    except ImportError:
        raise DataError(f"`data.tokenizer` needs the package tokenizers; {pretrained.INSTALL}") from None
    padding, vocabulary = pretrained.padding_id(config), pretrained.number(config, "vocab_size")
    try:
        encoder = Tokenizer.from_str(content(tokenizer).decode())
    except Exception as error:  # tokenizers has no class of errors of its own
        raise DataError(f"{tokenizer}: tokenizers cannot read this file ({error}); download it again") from None
    largest = max(encoder.get_vocab(with_added_tokens=True).values(), default=0)
    if vocabulary is not None and largest >= vocabulary:
        raise DataError(
            f"{tokenizer}: this tokenizer has the token id {largest}, but the model of {config} has `vocab_size: "
            f"{vocabulary}`; use the tokenizer and the configuration of one model"
        )
    encoder.no_truncation()
    encoder.no_padding()
    return encoder, padding
