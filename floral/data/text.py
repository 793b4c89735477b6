"""Text → windows of tokens per speaker or user: x [N, T] token ids, y [N, T] the token that follows each of them.

Windows of one client follow one another without a gap or an overlap, and none has text of two clients; what is left at
the end of a text, too short for a window, is dropped, so that no position has to be masked. The first 80 % of a
client's windows are its training rows and the rest its test rows, in the order of the text: what is tested was written
later. Clients with fewer than two windows have no row. The vocabulary, `classes`, is that of the whole file.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from floral.data.readers import Labelled
from floral.data.sources import DataError, RawFile, content

CHARACTERS = 80
"""T of a text that is read character by character (arXiv 1812.01097, Shakespeare)."""
WORDS = 20
"""T of a text that comes as token ids (arXiv 2003.00295, StackOverflow)."""
TRAIN = 0.8
"""Share of a client's windows that are training rows."""
MOST_TOKENS = 1 << 20
"""No token id is as large: a model has a row of weights for each, and ids stay exact in single precision."""

SPEECH = re.compile(r"(?:\A|\n\n)([^\n:]+):\n")
"""The name of a speaker on a line of its own, after an empty one; the speech reaches to the next."""

Tokens = npt.NDArray[np.int64]


def speeches(files: Sequence[RawFile]) -> Labelled:
    """Plain UTF-8 text with `NAME:` on a line before each speech, read character by character; a client is a name.

    A client's text is its speeches in their order, one per line. The names themselves are not part of it.

    Raises:
        DataError: the text is no UTF-8, no speaker is found, or none has text for two windows.
    """
    place = files[0].location
    text = _decoded(content(place), str(place)).replace("\r\n", "\n")
    found = list(SPEECH.finditer(text))
    if not found:
        raise DataError(f"{place}: no speaker found; a line NAME: is expected before each speech, after an empty line")
    said: dict[str, list[str]] = {}
    for speech, end in zip(found, [*(after.start() for after in found[1:]), len(text)], strict=True):
        said.setdefault(speech[1], []).append(text[speech.end() : end].strip("\n"))
    return _characters([["\n".join(speeches)] for speeches in said.values()], str(place))


def character_table(files: Sequence[RawFile]) -> Labelled:
    """A parquet table with columns `character_id` and `x`, strings, and perhaps `y`, the character that follows x.

    The table of flwrlabs/shakespeare has a row for every position of a text, so that rows overlap: they are put
    together to the text again where a row is the one before it moved by one character, and this is cut into windows.

    Raises:
        DataError: the file is no parquet, has other columns or a missing value, or nobody has text for two windows.
    """
    place = str(files[0].location)
    table = _table(files[0], {"character_id": pl.String, "x": pl.String})
    if "y" not in table.columns:
        table = table.with_columns(y=pl.lit(""))
    by_client = table.partition_by("character_id", maintain_order=True)
    return _characters([_rejoined(part["x"].to_list(), part["y"].to_list()) for part in by_client], place)


def token_table(files: Sequence[RawFile]) -> Labelled:
    """A parquet table with a column `user_id` and one of lists of token ids, `tokens`: a user's posts, oldest first.

    A user's text is all of its posts in a row.

    Raises:
        DataError: the file is no parquet, has other columns or a missing value, a token id is negative or not below
            1,048,576, or nobody has text for two windows.
    """
    place = str(files[0].location)
    table = _table(files[0], {"user_id": None, "tokens": pl.List})
    if not table.schema["tokens"].inner.is_integer():  # type: ignore[attr-defined]
        raise DataError(f"{place}: tokens must be lists of integers, found {table.schema['tokens']}")
    posts = table["tokens"].explode().drop_nulls()
    if len(posts) and (int(posts.min()) < 0 or int(posts.max()) >= MOST_TOKENS):  # type: ignore[arg-type]
        bad = posts.filter((posts < 0) | (posts >= MOST_TOKENS))[0]
        raise DataError(f"{place}: token id {bad} is out of range: ids are 0, 1, … below {MOST_TOKENS:,}")
    by_user = table.group_by("user_id", maintain_order=True).agg(pl.col("tokens").explode())["tokens"]
    texts = [[user.drop_nulls().cast(pl.Int64).to_numpy()] for user in by_user]
    return _cut(texts, WORDS, int(posts.max()) + 1 if len(posts) else 0, place)  # type: ignore[arg-type]


READERS: dict[str, Callable[..., Labelled]] = {
    "speeches": speeches,
    "character_table": character_table,
    "token_table": token_table,
}


def _decoded(data: bytes, place: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: not UTF-8 text: byte {data[error.start]:#04x} at position {error.start:,} (line "
            f"{data[: error.start].count(10) + 1:,}); remedy: save it as UTF-8"
        ) from None


def _table(raw: RawFile, columns: dict[str, type[pl.DataType] | None]) -> pl.DataFrame:
    """The table of a parquet file, in which every column has its type (None: any) and no missing value."""
    try:
        table = pl.read_parquet(io.BytesIO(content(raw.location)))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise DataError(
            f"{raw.location}: not a parquet file, or truncated ({error}); remedy: replace it by a whole copy"
        ) from None
    for name, kind in columns.items():
        if name not in table.columns or (kind is not None and not isinstance(table.schema[name], kind)):
            expected = ", ".join(f"{column} ({kind.__name__})" if kind else column for column, kind in columns.items())
            raise DataError(f"{raw.location}: expected the columns {expected}, found {dict(table.schema)}")
        if missing := table[name].null_count():
            raise DataError(f"{raw.location}: column {name}: {missing} rows have no value; fill or remove them")
    return table


def _rejoined(rows: Sequence[str], follows: Sequence[str | None]) -> list[str]:
    """The texts of which `rows` are overlapping windows, each moved by one character; `follows` comes after a row."""
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


def _characters(clients: Sequence[Sequence[str]], place: str) -> Labelled:
    """Windows of the texts of each client; a character's id is its rank among those that occur."""
    known = sorted(set().union(*(text for texts in clients for text in texts)))
    number = {character: rank for rank, character in enumerate(known)}
    ids = [[np.array([number[character] for character in text], np.int64) for text in texts] for texts in clients]
    return _cut(ids, CHARACTERS, len(known), place)


def _cut(clients: Sequence[Sequence[Tokens]], length: int, vocabulary: int, place: str) -> Labelled:
    """The rows of all clients with at least two windows of `length` tokens and the one that follows each."""
    kind = np.uint8 if vocabulary <= 256 else np.int32
    sides: dict[str, list[Tokens]] = {name: [] for name in ("train_x", "train_y", "test_x", "test_y")}
    owners: dict[str, list[int]] = {"train": [], "test": []}
    held = 0
    for texts in clients:
        x, y = (np.concatenate([_windows(text, length, moved) for text in texts]) for moved in (0, 1))
        if len(x) < 2:
            continue
        train = min(len(x) - 1, max(1, round(TRAIN * len(x))))
        for side, rows in (("train", slice(train)), ("test", slice(train, None))):
            sides[f"{side}_x"].append(x[rows])
            sides[f"{side}_y"].append(y[rows])
            owners[side].append(len(x[rows]))
        held += 1
    if not held:
        raise DataError(f"{place}: none of {len(clients)} clients has text for two windows of {length} tokens")
    arrays = {name: np.concatenate(parts) for name, parts in sides.items()}
    train_client, test_client = (np.repeat(np.arange(held, dtype=np.int32), owners[side]) for side in ("train", "test"))
    return Labelled(
        train_x=arrays["train_x"].astype(kind), train_y=arrays["train_y"],
        test_x=arrays["test_x"].astype(kind), test_y=arrays["test_y"],
        classes=vocabulary, scale=1, train_client=train_client, test_client=test_client,
    )  # fmt: skip


def _windows(text: Tokens, length: int, moved: int) -> Tokens:
    """[n, length]: the text from position `moved` on, cut so that a token follows each window at 0."""
    count = max(0, len(text) - 1) // length
    return text[moved : moved + count * length].reshape(count, length)
