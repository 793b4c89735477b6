"""Reader of sentences with ratings, in tab-separated files with one domain each, such as one genre."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from floral.config import pretrained
from floral.data.readers import TEST_SHARE, Labelled, select_test
from floral.data.sources import DataError, RawFile, content
from floral.data.tokens import token_ids

TOKENIZER_FILES = (pretrained.TOKENIZER, pretrained.CONFIG)
"""Names of the last two files: the tokenizer of a pretrained model, and the configuration of this model."""
LOWEST, HIGHEST = -4.0, 4.0
"""Range of the ratings (Hutto and Gilbert, ICWSM 2014)."""


def rated_sentences(files: Sequence[RawFile], *, tokens: int) -> Labelled:
    """Read sentences with ratings, and turn them into token ids.

    Each file has the lines `id <tab> rating from -4 to 4 <tab> sentence` of one domain. A sentence with an id `a_b`
    belongs to natural client a of its file, such as a review; the others have none. The last two files are
    tokenizer.json and config.json of a pretrained model.

    x [N, T] holds the token ids. T is the length of the longest sentence, but at most `tokens`. Longer sentences are
    cut as the tokenizer does it, and shorter ones are filled up at the end. y [N] holds the ratings.

    `select_test` selects a fifth of the sentences of each natural client for the test, and of the sentences without one
    a fifth of each domain.

    Raises:
        DataError: a file is not UTF-8, a line has not three cells, a rating is no number from -4 to 4, a sentence is
            empty or longer than the model allows, or the tokenizer does not fit the model.
        ConfigError: config.json has no padding id.
    """
    *domains, tokenizer, config = files
    by_domain = [list(_lines(raw)) for raw in domains]
    lines = list(chain.from_iterable(by_domain))
    texts = [line.text for line in lines]
    ids = token_ids(texts, lambda number: lines[number].place, tokenizer.location, config.location, tokens)
    domain = np.repeat(np.arange(len(domains), dtype=np.int32), list(map(len, by_domain)))
    names = list(dict.fromkeys(line.client for line in lines if line.client))
    number = {name: at for at, name in enumerate(names)}
    client = np.array([number.get(line.client, -1) for line in lines], np.int32)
    test = select_test(np.where(client < 0, len(names) + domain, client), TEST_SHARE, "rated sentences split")
    ratings = np.array([line.rating for line in lines], np.float32)
    return Labelled(
        train_x=ids[~test], train_y=ratings[~test], test_x=ids[test], test_y=ratings[test], classes=None, scale=1,
        train_client=client[~test], test_client=client[test], client_names=tuple(names),
        train_domain=domain[~test], test_domain=domain[test], domains=tuple(map(_domain_name, domains)),
    )  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A sentence with its rating, its natural client (empty if it has none), and its place."""

    place: str
    client: str
    rating: float
    text: str


READERS: dict[str, Callable[..., Labelled]] = {"rated_sentences": rated_sentences}


def _lines(raw: RawFile) -> Iterator[Line]:
    """Yield the sentences of a file. Lines may end with CR LF or LF, and quotes are part of a sentence."""
    rows = content(raw.location).removesuffix(b"\n").split(b"\n")
    for row, cells in enumerate((line.removesuffix(b"\r").split(b"\t") for line in rows), start=1):
        place = f"{raw.location}: row {row}"
        if len(cells) != 3:
            raise DataError(f"{place}: expected three cells (id, rating, sentence) between tabs, found {len(cells)}")
        try:
            name, rated, text = (cell.decode() for cell in cells)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{place}: this row is not UTF-8 text: it has byte {error.object[error.start]:#04x}; save the file as "
                "UTF-8"
            ) from None
        try:
            rating = float(rated)
        except ValueError:
            rating = math.nan
        if not LOWEST <= rating <= HIGHEST:
            raise DataError(
                f"{place}: the rating {rated!r} is no number from {LOWEST:g} to {HIGHEST:g}; correct it, or remove the "
                "row"
            )
        group, separator, _ = name.partition("_")
        yield Line(place, f"{_domain_name(raw)} {group}" if separator else "", rating, text)


def _domain_name(raw: RawFile) -> str:
    """Return the name of the domain of a file, such as `tweets` for tweets_GroundTruth.txt."""
    return Path(raw.file.path).name.partition(".")[0].removesuffix("_GroundTruth")
