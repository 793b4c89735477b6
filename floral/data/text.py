"""Readers of text: windows of T tokens whose next tokens are the labels, cut from the text of each speaker or user.

x [N, T] holds token ids, and y [N, T] the token after each position. The windows of a client neither overlap nor leave
gaps, and no window mixes clients. The end of a text that is too short for a window is dropped.

In the order of the text, the first 80 % of the windows of a client are training samples and the rest are test samples.
Clients with fewer than two windows have no samples. `classes` is the size of the vocabulary of the whole file.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from floral.data.readers import Labelled
from floral.data.sources import DataError, RawFile, content

CHARACTERS = 80
"""Window length T in characters (arXiv 1812.01097, Shakespeare)."""
WORDS = 20
"""Window length T in token ids (arXiv 2003.00295, StackOverflow)."""
TRAIN_SHARE = 0.8
"""Share of a client's windows that are training samples."""
MAX_TOKENS = 1 << 20
"""Upper bound of token ids, exclusive. A model has one row of weights per id, and ids are exact in float32."""

SPEECH = re.compile(r"(?:\A|\n\n)([^\n:]+):\n")
"""The name of a speaker on a separate line after an empty line. The speech ends at the next name."""

Tokens = npt.NDArray[np.int64]


def speeches(files: Sequence[RawFile]) -> Labelled:
    """Read the text of a play, with a line `NAME:` before each speech, and cut it into windows of characters.

    Each name is a natural client. The text of a client consists of its speeches in order, one per line, without the
    names. The file must be in UTF-8.

    Raises:
        DataError: the text is not UTF-8, has no speaker, or no speaker has text for two windows.
    """
    place = files[0].location
    text = _decoded(content(place), str(place)).replace("\r\n", "\n")
    headings = list(SPEECH.finditer(text))
    if not headings:
        raise DataError(
            f"{place}: this text has no line with a speaker's name; write a line `NAME:` before each speech, after an "
            "empty line"
        )
    speeches_of: dict[str, list[str]] = {}
    ends = [*(heading.start() for heading in headings[1:]), len(text)]
    for heading, end in zip(headings, ends, strict=True):
        speeches_of.setdefault(heading[1], []).append(text[heading.end() : end].strip("\n"))
    return _characters({name: ["\n".join(client)] for name, client in speeches_of.items()}, str(place))


def character_table(files: Sequence[RawFile]) -> Labelled:
    """Read text from a parquet table of strings, and cut it into windows of characters.

    The columns are `character_id` (the natural client), `x`, and optionally `y`, the character after x. The table of
    flwrlabs/shakespeare has one row for every position of a text, so that its rows overlap. If a row continues the row
    before it by one character, the two rows are joined. The joined texts are cut into windows.

    Raises:
        DataError: the file is not parquet, has other columns or a missing value, or no client has text for two windows.
    """
    place = str(files[0].location)
    table = parquet_table(files[0], {"character_id": pl.String, "x": pl.String})
    if "y" not in table.columns:
        table = table.with_columns(y=pl.lit(""))
    by_client = {part["character_id"][0]: part for part in table.partition_by("character_id", maintain_order=True)}
    texts = {name: _rejoined(part["x"].to_list(), part["y"].to_list()) for name, part in by_client.items()}
    return _characters(texts, place)


def token_table(files: Sequence[RawFile]) -> Labelled:
    """Read token ids from a parquet table with one post per row, and cut them into windows.

    The columns are `user_id` and `tokens`, a list of token ids. The oldest post of a user comes first. The text of a
    user is the sequence of all the user's posts.

    Raises:
        DataError: the file is not parquet, has other columns or a missing value, a token id is negative or not below
        1,048,576, or no user has text for two windows.
    """
    place = str(files[0].location)
    table = parquet_table(files[0], {"user_id": None, "tokens": pl.List})
    if not table.schema["tokens"].inner.is_integer():  # type: ignore[attr-defined]
        raise DataError(f"{place}: the column tokens has type {table.schema['tokens']}; save lists of integers in it")
    posts = table["tokens"].explode().drop_nulls()
    if len(posts) and (int(posts.min()) < 0 or int(posts.max()) >= MAX_TOKENS):  # type: ignore[arg-type]
        bad = posts.filter((posts < 0) | (posts >= MAX_TOKENS))[0]
        raise DataError(f"{place}: token id {bad} is out of range; use ids 0, 1, … below {MAX_TOKENS:,}")
    by_user = table.group_by("user_id", maintain_order=True).agg(pl.col("tokens").explode())
    texts = {
        str(user): [tokens.drop_nulls().cast(pl.Int64).to_numpy()]
        for user, tokens in zip(by_user["user_id"], by_user["tokens"], strict=True)
    }
    return _cut(texts, WORDS, int(posts.max()) + 1 if len(posts) else 0, place)  # type: ignore[arg-type]


def instructions(files: Sequence[RawFile]) -> Labelled:
    """Read instructions and responses from a parquet table, and cut them into windows of characters.

    The columns are `instruction`, `response`, `category` (the natural client), and optionally `context`, all strings. A
    row becomes the lines instruction, context and response. The text of a category has its rows in order, with an empty
    line between them.

    Raises:
        DataError: the file is not parquet, has other columns or a missing value, a category is empty, or no category
            has text for two windows.
    """
    place = str(files[0].location)
    table = parquet_table(files[0], dict.fromkeys(("instruction", "response", "category"), pl.String))
    if len(empty := (table["category"].str.strip_chars() == "").arg_true()):
        raise DataError(
            f"{place}: row {empty[0]} (counted from 0): the category is empty; write one, or remove the row"
        )
    texts: dict[str, list[str]] = {}
    for row in table.iter_rows(named=True):
        parts = row["instruction"], row.get("context"), row["response"]
        texts.setdefault(row["category"], []).append("\n".join(filter(None, parts)))
    return _characters({name: ["\n\n".join(rows)] for name, rows in texts.items()}, place)


READERS: dict[str, Callable[..., Labelled]] = {
    "speeches": speeches,
    "character_table": character_table,
    "token_table": token_table,
    "instructions": instructions,
}


def _decoded(data: bytes, place: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: this file is not UTF-8 text: it has byte {data[error.start]:#04x} at position {error.start:,} "
            f"(line {data[: error.start].count(10) + 1:,}); save it as UTF-8"
        ) from None


def parquet_table(raw: RawFile, columns: dict[str, type[pl.DataType] | None]) -> pl.DataFrame:
    """Read a parquet table, and check its columns.

    `columns` maps the name of each required column to its type, or to None if any type is allowed. These columns must
    have no missing value.

    Raises:
        DataError: the file is not parquet, has other columns, or a missing value.
    """
    try:
        table = pl.read_parquet(io.BytesIO(content(raw.location)))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise DataError(
            f"{raw.location}: this file is not a parquet file, or it is truncated ({error}); remedy: replace it by a "
            "complete copy"
        ) from None
    for name, kind in columns.items():
        if name not in table.columns or (kind is not None and not isinstance(table.schema[name], kind)):
            expected = ", ".join(f"{column} ({kind.__name__})" if kind else column for column, kind in columns.items())
            raise DataError(
                f"{raw.location}: expected the columns {expected}, found {dict(table.schema)}; rename or convert the "
                "columns"
            )
        if missing := table[name].null_count():
            raise DataError(
                f"{raw.location}: {missing} rows have no value in column {name}; give them a value, or remove them"
            )
    return table


def _rejoined(rows: Sequence[str], follows: Sequence[str | None]) -> list[str]:
    """Join overlapping rows of characters into texts: the rows "hell", "ello" and "llo!" become "hello!".

    A row that does not continue the row before it by one character begins a new text.

    `follows` holds the character after each row. It is an empty string or None if this character is not given.
    """
    texts: list[list[str]] = []
    before = None
    for row, after in zip(rows, follows, strict=True):
        if before is not None and len(row) == len(before[0]) and row[:-1] == before[0][1:]:
            texts[-1].append(row[-1])
        else:
            if before is not None and before[1]:
                texts[-1].append(before[1])
            texts.append([row])
        before = row, after
    if before is not None and before[1]:
        texts[-1].append(before[1])
    return ["".join(parts) for parts in texts]


def _characters(clients: Mapping[str, Sequence[str]], place: str) -> Labelled:
    """Cut the texts of each client into windows. The id of a character is its position in the sorted vocabulary."""
    vocabulary = sorted(set().union(*(text for texts in clients.values() for text in texts)))
    id_of = {character: rank for rank, character in enumerate(vocabulary)}
    ids = {
        name: [np.array([id_of[character] for character in text], np.int64) for text in texts]
        for name, texts in clients.items()
    }
    return _cut(ids, CHARACTERS, len(vocabulary), place)


def _cut(clients: Mapping[str, Sequence[Tokens]], length: int, vocabulary: int, place: str) -> Labelled:
    """Cut the texts of each client into windows of `length` tokens. Each window is a sample. `clients`: name → texts.

    Clients with text for fewer than two windows have no samples.

    A window needs one more token after it, because labels are the next tokens.
    """
    kind = np.uint8 if vocabulary <= 256 else np.int32
    sides: dict[str, list[Tokens]] = {name: [] for name in ("train_x", "train_y", "test_x", "test_y")}
    owners: dict[str, list[int]] = {"train": [], "test": []}
    names = []
    for name, texts in clients.items():
        x, y = (np.concatenate([_windows(text, length, moved) for text in texts]) for moved in (0, 1))
        if len(x) < 2:
            continue
        train = min(len(x) - 1, max(1, round(TRAIN_SHARE * len(x))))
        for side, rows in (("train", slice(train)), ("test", slice(train, None))):
            sides[f"{side}_x"].append(x[rows])
            sides[f"{side}_y"].append(y[rows])
            owners[side].append(len(x[rows]))
        names.append(name)
    if not names:
        raise DataError(
            f"{place}: none of the {len(clients)} clients has text for two windows of {length} tokens; add longer texts"
        )
    arrays = {name: np.concatenate(parts) for name, parts in sides.items()}
    number = np.arange(len(names), dtype=np.int32)
    train_client, test_client = (np.repeat(number, owners[side]) for side in ("train", "test"))
    return Labelled(
        train_x=arrays["train_x"].astype(kind), train_y=arrays["train_y"],
        test_x=arrays["test_x"].astype(kind), test_y=arrays["test_y"],
        classes=vocabulary, scale=1, train_client=train_client, test_client=test_client, client_names=tuple(names),
    )  # fmt: skip


def _windows(text: Tokens, length: int, moved: int) -> Tokens:
    """Cut a text into n windows of `length` tokens, and return their inputs or their labels [n, length].

    If `moved` is 0, the inputs are returned. If it is 1, the labels are returned, where the label of a token is the
    next token. n is the largest number of windows for which the text has one more token after the last window.
    """
    count = max(0, len(text) - 1) // length
    return text[moved : moved + count * length].reshape(count, length)
