"""Sentences with ratings: genres, natural clients, classes by thresholds, and files that are wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_bert import CONFIG

from floral.config import catalogue
from floral.config.reading import ConfigError
from floral.config.schema.data import DataFile
from floral.data.rated import rated_sentences
from floral.data.readers import Labelled
from floral.data.sources import DataError, RawFile
from floral.data.stored import rated_classes, read_data

LINES = b'1_1\t-0.9\ta bad film\r\n1_2\t0.5\tgood "good" book\r\n2_1\t4\ta day\n'
TOKENS = 7


def raw(path: Path) -> RawFile:
    return RawFile(file=DataFile(path=path.name), location=path, sha256="", verified=True)


def read(folder: Path, tokenizer: Path, **genres: bytes) -> Labelled:
    for name, content in genres.items():
        (folder / f"{name}_GroundTruth.txt").write_bytes(content)
    files = [folder / f"{name}_GroundTruth.txt" for name in genres]
    places = [*files, tokenizer / "tokenizer.json", tokenizer / "config.json"]
    return rated_sentences(list(map(raw, places)), tokens=TOKENS)


def test_sentences_become_token_ids_ratings_genres_and_natural_clients(tmp_path: Path, tokenizer: Path) -> None:
    tweets = b"".join(b"%d\t%.2f\tgood day\n" % (number, number / 10) for number in range(1, 11))
    data = read(tmp_path, tokenizer, reviews=LINES, tweets=tweets)
    assert data.domains == ("reviews", "tweets") and data.client_names == ("reviews 1", "reviews 2")
    assert data.classes is None and data.scale == 1 and len(data.train_x) == 10 and len(data.test_x) == 3
    texts = {tuple(row[row != 0].tolist()) for row in (*data.train_x, *data.test_x)}
    assert texts == {(2, 4, 6, 7, 3), (2, 5, 1, 5, 1, 8, 3), (2, 4, 9, 3), (2, 5, 9, 3)}, (
        "quotes are words of their own"
    )
    assert data.train_x.dtype == np.int32 and data.train_y.dtype == np.float32
    assert min(*data.train_y, *data.test_y) == np.float32(-0.9)
    clients = np.concatenate([data.train_client, data.test_client])  # type: ignore[list-item]
    domains = np.concatenate([data.train_domain, data.test_domain])  # type: ignore[list-item]
    assert np.bincount(clients + 1).tolist() == [10, 2, 1] and ((clients < 0) == (domains == 1)).all()
    cut = read(tmp_path, tokenizer, long=b"1\t1\tgood good good bad bad bad bad\n2\t1\ta day\n")
    assert sorted(map(tuple, np.concatenate([cut.train_x, cut.test_x]).tolist())) == [
        (2, 4, 9, 3, 0, 0, 0), (2, 5, 5, 5, 6, 6, 3)
    ]  # fmt: skip
    assert (data.test_domain == 1).sum() == 2, "a fifth of the sentences without a natural client"


def test_a_rating_on_a_threshold_is_in_the_class_nearer_to_0() -> None:
    ratings = np.array([-4, -0.6, -0.5, -0.1, 0, 0.5, 0.51, 4], np.float32)
    assert rated_classes(ratings, [-0.5, 0.5]).tolist() == [0, 0, 1, 1, 1, 1, 2, 2]
    assert rated_classes(ratings, [0.0]).tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


def test_the_real_sentences_have_the_published_numbers(stored: Callable[[str], Path]) -> None:
    results = stored("sentiment")
    manifest, arrays = read_data("sentiment", results, thresholds=[-0.5, 0.5])
    assert manifest["domains"] == ["tweets", "amazonReviewSnippets", "movieReviewSnippets", "nytEditorialSnippets"]
    assert manifest["natural_clients"] == 300 + 498 and manifest["classes"] == 3
    y, domain, client = (np.concatenate([arrays[f"{side}_{what}"] for side in ("train", "test")]) for what in
                         ("y", "domain", "client"))  # fmt: skip
    counts = [np.bincount(y[domain == genre]).tolist() for genre in range(4)]
    assert counts == [[1062, 838, 2300], [1218, 765, 1725], [5061, 562, 4982], [1688, 2402, 1100]]
    assert [len(np.unique(client[domain == genre])) for genre in range(4)] == [1, 300, 1, 498]
    full = np.concatenate([(arrays[side] != 0).all(1) for side in ("train_x", "test_x")])
    assert 0.03 < full.mean() < 0.035, "3 % have more than 48 tokens; a few have exactly 48"
    assert arrays["train_x"].shape[1] == 48 and 24 < (arrays["train_x"] != 0).sum(1).mean() < 25


WRONG: dict[str, tuple[bytes, str]] = {
    "two cells": (b"1\t0.5 good\n", "row 1: expected three cells .* found 2"),
    "four cells": (LINES + b"9\t1\ta\tday\n", "row 4: expected three cells .* found 4"),
    "empty row": (LINES + b"\n", "row 4: expected three cells .* found 1"),
    "not UTF-8": (LINES + b"9\t1\tcaf\xe9\n", "row 4: this row is not UTF-8 text: it has byte 0xe9; save the file"),
    "no number": (b"1\tgood\tgood\n", "row 1: the rating 'good' is no number from -4 to 4; correct it, or remove"),
    "too high": (LINES + b"9\t4.5\tgood\n", "row 4: the rating '4.5' is no number from -4 to 4"),
    "not finite": (b"1\tnan\tgood\n", "row 1: the rating 'nan' is no number"),
    "empty sentence": (b"1\t1\t  \r\n", "row 1: the text is empty; write one, or remove the row"),
    "long sentence": (LINES + b"9\t1\t" + b"good " * 10_000, "row 4: the text has 10,002 tokens, but .* takes 10;"),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_row_is_named_with_its_file(tmp_path: Path, tokenizer: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=rf"^{tmp_path}/tweets_GroundTruth\.txt: {message}"):
        read(tmp_path, tokenizer, tweets=content)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    (tokenizer / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 9}))
    with pytest.raises(DataError, match=r"tokenizer\.json: this tokenizer has the token id 9, but .*`vocab_size: 9`"):
        read(tmp_path, tokenizer, tweets=LINES)
    (tokenizer / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="`pad_token_id` cannot be read"):
        read(tmp_path, tokenizer, tweets=LINES)
    (tokenizer / "config.json").write_text(json.dumps(CONFIG))
    (tokenizer / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer\.json: tokenizers cannot read this file"):
        read(tmp_path, tokenizer, tweets=LINES)


def test_thresholds_belong_to_data_with_ratings(stored: Callable[[str], Path]) -> None:
    results = stored("sentiment")
    stored("digits")
    with pytest.raises(ConfigError, match=r"sentiment: the labels of these data are ratings, .* set `thresholds`"):
        read_data("sentiment", results)
    with pytest.raises(ConfigError, match=r"digits: `thresholds` is for data with ratings, .* remove `thresholds`"):
        read_data("digits", results, thresholds=[0.0])
    with pytest.raises(ConfigError, match=r"`thresholds: \[0\.5, -0\.5\]` do not ascend; sort them"):
        catalogue.task("sentiment_genres", {"thresholds": [0.5, -0.5]})
    with pytest.raises(ConfigError, match="`thresholds` needs a data set with ratings as `data`; remove the key"):
        catalogue.task("synthetic_linear", {"thresholds": [0.5]})
