"""Text files, from their bytes to the rows of speakers and users."""

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from floral.config import data_sets
from floral.config.reading import ConfigError
from floral.config.run import PartitionJob
from floral.config.schema.data import DataFile, DataSet
from floral.config.schema.partition import Partition
from floral.data import text
from floral.data.sources import DataError, RawFile
from floral.data.text import CHARACTERS, MAX_TOKENS, WORDS
from floral.stages import fetch as fetch_stage
from floral.stages.partition import partition

ROMEO, JULIET = "But soft, what light? " * 40, "Deny thy father and refuse thy name; " * 9


def raw(path):
    return RawFile(file=DataFile(path=path.name), location=path, sha256="", verified=False)


def written(tmp_path, content):
    path = tmp_path / "play.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [raw(path)]


def tabled(tmp_path, **columns):
    path = tmp_path / "table.parquet"
    pl.DataFrame(columns).write_parquet(path)
    return [raw(path)]


def play(*speeches):
    return "\n\n".join(f"{name}:\n{said}" for name, said in speeches) + "\n"


def texts(found):
    """Each client's text as it can be read off its windows, and the letters of all of them."""
    for client in range(found.natural_clients):
        both = [
            np.concatenate(
                [getattr(found, f"{side}_{xy}")[getattr(found, f"{side}_client") == client] for side in SIDES]
            )
            for xy in "xy"
        ]
        yield both[0].ravel(), both[1].ravel()


SIDES = ("train", "test")


def test_windows_are_a_speakers_own_text_in_order_and_labels_the_next_character(tmp_path):
    half = len(ROMEO) // 2
    found = text.speeches(
        written(
            tmp_path,
            play(("ROMEO", ROMEO[:half]), ("JULIET", JULIET), ("ROMEO", ROMEO[half:].strip()), ("PAGE", "Ay: no!")),
        )
    )
    said = [ROMEO[:half] + "\n" + ROMEO[half:].strip(), JULIET]
    letters = np.array(sorted({*said[0], *said[1], *"Ay: no!"}))
    assert found.classes == len(letters) and found.scale == 1 and found.natural_clients == 2
    assert found.client_names == ("ROMEO", "JULIET")  # PAGE has text for no window
    assert (found.train_x.dtype, found.train_y.dtype) == (np.uint8, np.int64)
    for (x, y), whole in zip(texts(found), said, strict=True):
        count = (len(whole) - 1) // CHARACTERS * CHARACTERS
        assert "".join(letters[x]) == whole[:count]
        assert "".join(letters[y]) == whole[1 : count + 1]


def test_the_first_four_fifths_train_and_later_windows_test(tmp_path):
    found = text.speeches(written(tmp_path, play(("A", "x" * 801), ("B", "y" * 161), ("C", "z" * 160))))
    assert np.bincount(found.train_client).tolist() == [8, 1]  # C has text for one window
    assert np.bincount(found.test_client).tolist() == [2, 1]
    assert found.train_client.dtype == np.int32 and found.train_x.shape[1] == CHARACTERS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ROMEO:\nsoft\n\xff\xfe", "not UTF-8 text: it has byte 0xff at position 12 .line 3"),
        ("just words\nand words", "no line with a speaker's name; write a line `NAME:`"),
        ("", "no line with a speaker's name"),
        (play(("ROMEO", "short")), "none of the 1 clients has text for two windows of 80 tokens"),
    ],
)
def test_text_that_is_none(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as error:
        text.speeches(written(tmp_path, content))
    assert "play.txt" in str(error.value)


def test_windows_line_ends_make_no_difference(tmp_path):
    plain = play(("A", "one\n" * 60), ("B", "two\n" * 60))
    unix, windows = (text.speeches(written(tmp_path, plain.replace("\n", end))) for end in ("\n", "\r\n"))
    assert np.array_equal(unix.train_x, windows.train_x) and unix.classes == windows.classes


@pytest.mark.parametrize("with_y", [True, False])
def test_a_table_of_overlapping_rows_is_the_text_it_was_made_of(tmp_path, with_y):
    """Rows of two roles, mixed; the second role has two texts, whose windows do not run into each other."""
    said = {"HAMLET": ["To be, or not to be. " * 20], "GHOST": ["Mark me! " * 30, "Adieu, adieu. " * 20]}
    rows = [
        (role, whole[at : at + 80], whole[at + 80])
        for role, wholes in said.items()
        for whole in wholes
        for at in range(len(whole) - 80)
    ]
    hamlet = len(said["HAMLET"][0]) - 80
    rows = rows[:100] + rows[hamlet : hamlet + 60] + rows[100:hamlet] + rows[hamlet + 60 :]
    columns = dict(zip(("character_id", "x", "y"), zip(*rows, strict=True), strict=True))
    found = text.character_table(tabled(tmp_path, **{k: list(v) for k, v in columns.items() if k != "y" or with_y}))
    letters = np.array(sorted({letter for wholes in said.values() for whole in wholes for letter in whole}))
    for (x, y), wholes in zip(texts(found), said.values(), strict=True):
        ends = [len(whole) - (not with_y) for whole in wholes]  # without y the very last character is unknown
        counts = [(end - 1) // 80 * 80 for end in ends]
        expected = [[whole[moved : moved + n] for whole, n in zip(wholes, counts, strict=True)] for moved in (0, 1)]
        assert ["".join(letters[x]), "".join(letters[y])] == ["".join(parts) for parts in expected]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.lists(st.integers(0, 300), max_size=90), min_size=1, max_size=4), min_size=1, max_size=5))
def test_posts_of_a_user_are_one_text(tmp_path_factory, users):
    path = tmp_path_factory.mktemp("posts")
    ids = [user for user, posts in enumerate(users) for _ in posts]
    lists = pl.Series([post for posts in users for post in posts], dtype=pl.List(pl.Int64))
    files = tabled(path, user_id=ids, tokens=lists)
    streams = [np.concatenate([np.array(post, int) for post in posts]) for posts in users]
    held = [stream for stream in streams if (len(stream) - 1) // WORDS >= 2]
    if not held:
        with pytest.raises(DataError, match="two windows of 20 tokens"):
            text.token_table(files)
        return
    found = text.token_table(files)
    assert found.classes == max(max(stream, default=0) for stream in streams) + 1
    whose = [str(user) for user, stream in enumerate(streams) if (len(stream) - 1) // WORDS >= 2]
    assert found.client_names == tuple(whose)
    assert found.train_x.dtype == (np.uint8 if found.classes <= 256 else np.int32)
    for (x, y), stream in zip(texts(found), held, strict=True):
        count = (len(stream) - 1) // WORDS * WORDS
        assert np.array_equal(x, stream[:count]) and np.array_equal(y, stream[1 : count + 1])


@pytest.mark.parametrize(
    ("reader", "columns", "message"),
    [
        ("token_table", {"user": [1], "tokens": [[1]]}, r"expected the columns user_id, tokens \(List\), found"),
        ("token_table", {"user_id": [1], "tokens": [1]}, "expected the columns"),
        ("token_table", {"user_id": [1], "tokens": [["a"]]}, "column tokens has type .*; save lists of integers"),
        ("token_table", {"user_id": [1, None], "tokens": [[1], [2]]}, "1 rows have no value in column user_id"),
        ("token_table", {"user_id": [1], "tokens": [[5, -1]]}, "token id -1 is out of range"),
        ("token_table", {"user_id": [1], "tokens": [[MAX_TOKENS]]}, "token id 1048576 is out of range"),
        ("character_table", {"character_id": ["A"], "text": ["b"]}, r"expected the columns character_id \(String\), x"),
        ("character_table", {"character_id": [1], "x": ["b"]}, "expected the columns"),
        ("character_table", {"character_id": ["A"], "x": ["b"]}, "none of the 1 clients has text for two windows"),
    ],
)
def test_wrong_tables(tmp_path, reader, columns, message):
    with pytest.raises(DataError, match=message) as error:
        getattr(text, reader)(tabled(tmp_path, **columns))
    assert "table.parquet" in str(error.value)


@pytest.mark.parametrize("reader", ["character_table", "token_table"])
def test_a_truncated_table(tmp_path, reader):
    (file,) = tabled(tmp_path, user_id=[1, 2], tokens=[[1], [2]])
    file.location.write_bytes(file.location.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"table\.parquet: this file is not a parquet file, or it is truncated"):
        getattr(text, reader)([file])


def test_from_the_file_to_natural_clients(tmp_path, monkeypatch):
    """Fetched, dealt by speaker, and refused by what needs a class for each row."""
    (tmp_path / "play.txt").write_text(play(*((f"SPEAKER {n}", f"{n} speaks. " * 60) for n in range(4))))
    entry = DataSet(title="Play", reader="speeches", files=(DataFile(path="play.txt"),))
    monkeypatch.setattr(data_sets, "data_lock", lambda: {"play": entry})
    folder = fetch_stage.fetch("play", tmp_path / "results", tmp_path)
    manifest = json.loads((folder / "card.json").read_text())
    assert manifest["shape"] == [CHARACTERS] and manifest["natural_clients"] == 4 and manifest["scale"] == 1

    def job(kind, **more):
        rule = Partition(kind=kind, min_rows=1, **more)
        return PartitionJob(
            task="t", data="play", data_digest=manifest["digest"], data_seed=None,
            clients=3, clusters=1, partition=rule, seed=0,
        )  # fmt: skip

    table = pl.read_parquet(partition(job("natural"), tmp_path / "results") / "partition.parquet")
    assert table["client"].n_unique() == 3 and set(table["split"]) == {"train", "validation", "test"}
    assert "class_counts" not in json.loads((tmp_path / "results" / job("natural").folder / "card.json").read_text())
    with pytest.raises(ConfigError, match=r"dirichlet` needs a class for each sample.*natural or iid"):
        partition(job("dirichlet", alpha=0.1), tmp_path / "results")
