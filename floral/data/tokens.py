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


def tokenised(
    texts: Sequence[Sequence[str]], tokenizer: Path, config: Path, tokens: int
) -> list[npt.NDArray[np.int32]]:
    """Return the token ids of texts, int32 [N, tokens] for each group of N texts.

    `tokenizer` is the file tokenizer.json of a pretrained model. `config` is its config.json, which has the padding id.
    Longer texts are cut at the end, and shorter ones are filled up at the end.

    Raises:
        DataError: the package tokenizers is missing or cannot read the file, or the tokenizer does not fit the model.
        ConfigError: the configuration has no padding id.
    """
    encoder, padding = encoder_of(tokenizer, config)
    encoder.enable_truncation(tokens)
    encoder.enable_padding(pad_id=padding, length=tokens)
    rows = [[row.ids for row in encoder.encode_batch(list(group))] for group in texts]
    return [np.array(ids, np.int32).reshape(len(ids), tokens) for ids in rows]


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


def sentence_ids(
    texts: Sequence[str], place_of: Callable[[int], str], tokenizer: Path, config: Path, tokens: int
) -> npt.NDArray[np.int32]:
    """Return the token ids of N texts, int32 [N, T], where T is the length of the longest text, at most `tokens`.

    Longer texts are cut as the tokenizer does it, and shorter ones are filled up at the end. `place_of` gives the file
    and row of a text, for messages. `tokenizer` and `config` are as for `tokenised`.

    Raises:
        DataError: a text is empty or has more tokens than the model has positions, or the tokenizer cannot be used.
        ConfigError: the configuration has no padding id.
    """
    if (empty := next((number for number, text in enumerate(texts) if not text.strip()), None)) is not None:
        raise DataError(f"{place_of(empty)}: the text is empty; write one, or remove the row")
    encoder, padding = encoder_of(tokenizer, config)
    limit = pretrained.number(config, "max_position_embeddings")
    rows: list[npt.NDArray[np.int32]] = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        encoded = encoder.encode_batch(list(texts[start : start + TEXTS_AT_ONCE]))
        rows += [np.array(row.ids, np.int32) for row in encoded]
    for number, ids in enumerate(rows):
        if limit is not None and len(ids) > limit:
            raise DataError(
                f"{place_of(number)}: the text has {len(ids):,} tokens, but the model of {config} takes {limit:,}; "
                "shorten the text, or remove the row"
            )
    encoder.enable_truncation(tokens)
    array = np.full((len(rows), min(tokens, max(map(len, rows)))), padding, np.int32)
    for row, ids, text in zip(array, rows, texts, strict=True):
        kept = ids if len(ids) <= tokens else encoder.encode(text).ids
        row[: len(kept)] = kept
    return array
