import errno
import gzip
import hashlib
import os

import pytest

from floral.config.schema.data import DataFile
from floral.data import sources
from floral.data.sources import DataError, obtain

CONTENT = bytes(range(256)) * 4000
PACKED = gzip.compress(CONTENT, mtime=0, compresslevel=0)
SHA = hashlib.sha256(CONTENT).hexdigest()


def file(mirror, *paths, sha256=SHA):
    return DataFile(path="set/raw.bin.gz", urls=tuple(mirror.url + path for path in paths), sha256=sha256)


def test_a_download_reports_its_progress_and_is_kept(mirror, tmp_path):
    mirror.serve["/a.gz"] = PACKED
    lines = []
    found = obtain(file(mirror, "/a.gz"), tmp_path, report=lines.append)
    assert found.verified and found.sha256 == SHA
    assert [path.name for path in tmp_path.iterdir()] == ["raw.bin.gz"]
    assert sources.content(found.location) == CONTENT
    assert len(lines) >= 10 and f"{len(PACKED):,} of {len(PACKED):,} bytes" in lines[-1]
    assert obtain(file(mirror, "/a.gz"), tmp_path).location == found.location
    assert len(mirror.seen) == 1


def test_a_partial_download_is_resumed(mirror, tmp_path):
    mirror.serve["/a.gz"] = PACKED
    (tmp_path / "raw.bin.gz.part").write_bytes(PACKED[:1000])
    obtain(file(mirror, "/a.gz"), tmp_path)
    assert mirror.seen == [("/a.gz", "bytes=1000-")]
    assert (tmp_path / "raw.bin.gz").read_bytes() == PACKED


def test_a_whole_partial_file_needs_no_byte(mirror, tmp_path):
    mirror.serve["/a.gz"] = PACKED
    (tmp_path / "raw.bin.gz.part").write_bytes(PACKED)
    assert obtain(file(mirror, "/a.gz"), tmp_path).sha256 == SHA


def test_a_connection_that_breaks_is_taken_up_where_it_broke(mirror, tmp_path):
    mirror.serve["/a.gz"], mirror.cut = PACKED, [True, True]
    obtain(file(mirror, "/a.gz"), tmp_path)
    assert [wanted is None for _, wanted in mirror.seen] == [True, False, False]


def test_a_mirror_without_ranges_starts_again(mirror, tmp_path):
    mirror.serve["/a.gz"], mirror.ranges = PACKED, False
    (tmp_path / "raw.bin.gz.part").write_bytes(b"x" * 1000)
    assert obtain(file(mirror, "/a.gz"), tmp_path).sha256 == SHA


def test_the_next_mirror_is_tried(mirror, tmp_path):
    mirror.serve["/wrong.gz"], mirror.serve["/b.gz"] = gzip.compress(b"an error page"), PACKED
    assert obtain(file(mirror, "/missing.gz", "/wrong.gz", "/b.gz"), tmp_path).sha256 == SHA


def test_a_part_from_a_mirror_that_packed_differently_is_thrown_away(mirror, tmp_path):
    mirror.serve["/a.gz"] = PACKED
    (tmp_path / "raw.bin.gz.part").write_bytes(gzip.compress(CONTENT)[:900])
    assert obtain(file(mirror, "/a.gz"), tmp_path).sha256 == SHA
    assert [wanted for _, wanted in mirror.seen] == ["bytes=900-", None]


def test_a_mirror_that_breaks_and_is_wrong_is_given_up(mirror, tmp_path):
    mirror.serve["/a.gz"], mirror.cut = gzip.compress(CONTENT + b"!", compresslevel=0), [True, False] * 9
    (tmp_path / "raw.bin.gz.part").write_bytes(PACKED[:1000])
    with pytest.raises(DataError, match="is not as expected"):
        obtain(file(mirror, "/a.gz"), tmp_path)
    assert list(tmp_path.iterdir()) == [] and len(mirror.seen) == 4


def test_a_wrong_hash_leaves_nothing(mirror, tmp_path):
    mirror.serve["/a.gz"] = gzip.compress(b"something else")
    with pytest.raises(DataError) as error:
        obtain(file(mirror, "/a.gz"), tmp_path)
    for part in (
        "set/raw.bin.gz",
        SHA,
        hashlib.sha256(b"something else").hexdigest(),
        mirror.url,
        "remedy",
        "FLORAL_DATA",
    ):
        assert part in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_missing_everywhere_names_file_folder_urls_and_remedy(mirror, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError) as error:
        obtain(file(mirror, "/a.gz", "/b.gz"), tmp_path / "raw", [tmp_path / "mine"])
    for part in (
        str(tmp_path / "mine" / "set" / "raw.bin.gz"),
        "/a.gz: HTTP Error 404",
        "/b.gz",
        "FLORAL_DATA",
        "data_dir",
    ):
        assert part in str(error.value)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("name, body", [("raw.bin.gz", PACKED), ("raw.bin", CONTENT), ("raw.bin.gz", CONTENT)])
def test_the_data_folder_comes_first_packed_or_not(mirror, tmp_path, name, body):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_bytes(body)
    found = obtain(file(mirror, "/a.gz"), tmp_path / "raw", [tmp_path])
    assert found.location == tmp_path / "set" / name and found.sha256 == SHA
    assert not mirror.seen and not (tmp_path / "raw").exists()


def test_an_altered_file_of_the_user_is_an_error_and_stays(mirror, tmp_path):
    mirror.serve["/a.gz"] = PACKED
    (tmp_path / "set").mkdir()
    altered = tmp_path / "set" / "raw.bin.gz"
    altered.write_bytes(gzip.compress(CONTENT + b"!"))
    with pytest.raises(DataError) as error:
        obtain(file(mirror, "/a.gz"), tmp_path / "raw", [tmp_path])
    assert str(altered) in str(error.value) and SHA in str(error.value) and "remedy" in str(error.value)
    assert altered.exists() and not mirror.seen


@pytest.mark.parametrize(
    "damage", [lambda packed: packed[:-2000], lambda packed: packed[:50] + b"#" * 50 + packed[100:]]
)
def test_a_damaged_gzip_file_is_an_error(tmp_path, damage):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "raw.bin.gz").write_bytes(damage(gzip.compress(os.urandom(9000))))
    with pytest.raises(DataError, match=r"raw\.bin\.gz: this gzip file is truncated or damaged .* remedy"):
        obtain(DataFile(path="set/raw.bin.gz"), tmp_path / "raw", [tmp_path])


def test_a_full_disk_is_said_and_leaves_nothing(mirror, tmp_path, monkeypatch):
    mirror.serve["/a.gz"] = PACKED

    def fill(url, part, report):
        part.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sources, "_transfer", fill)
    with pytest.raises(DataError, match="the disk is full, nothing was written"):
        obtain(file(mirror, "/a.gz"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_not_installed_is_named(tmp_path):
    missing = DataFile(path="x.csv", urls=("package:no_such_package/x.csv", "package:numpy/no_such_file"))
    with pytest.raises(DataError, match=r"(?s)no_such_package is not installed.*numpy has no file no_such_file"):
        obtain(missing, tmp_path)
