"""Committed runs are not repeated: restored bit by bit, marked as such, and only where every value is the same."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path

import polars as pl
import pytest
import yaml
from printed import read_page
from projects import ROOT, Project
from run_folders import COSTS, make_run, write_run

from floral.config import code
from floral.config.reading import ConfigError
from floral.runs import reference, state
from floral.runs.state import is_finished

SUITE = "tiny"
PAGE = """<body data-files="beside">
<main>
<figure><svg></svg></figure>
<footer>
<p>Beside this page: <code>tables/*.tex</code></p>
</footer>
</main>"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project's root with a page; config/ is the real one."""
    (tmp_path / "config").symlink_to(ROOT / "config")
    page = tmp_path / "reports" / SUITE / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(PAGE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def page(place: Path, runs) -> None:
    """The report's table: these runs, and one that has not run."""
    names = [*(run.hash8 for run in runs), "missing0"]
    table = pl.DataFrame({"hash8": names, "status": ["done"] * len(runs) + ["missing"]})
    table.write_parquet(place / f"reports/{SUITE}/summary.parquet")


def made(place: Path, runs, of=()) -> Path:
    for run in runs:
        write_run(place / "results", run)
    page(place, runs)
    return reference.make(SUITE, [*runs, *of], place / "results", place / "reports" / SUITE, "snakemake …")


def test_runs_come_back_bit_by_bit_and_marked(place: Path) -> None:
    runs = [make_run("digits_rotate", "fedavg", 0), make_run("digits_rotate", "floral_1", 0)]
    folder = made(place, runs)
    before = {path: path.read_bytes() for run in runs for path in (place / "results" / run.folder).glob("*.parquet")}
    shutil.rmtree(place / "results")
    assert reference.restore({SUITE: runs}, place / "results") == runs
    assert all(path.read_bytes() == content for path, content in before.items()) and len(before) == 4
    assert all(is_finished(place / "results" / run.folder) for run in runs)
    assert reference.origin(place / "results" / runs[0].folder) == "tiny, commit unknown"
    assert reference.restore({SUITE: runs}, place / "results") == []  # what is there stays
    told = yaml.safe_load((folder / "provenance.yaml").read_text())
    assert told["runs"] == "2 of 2" and "cpu a CPU" in told["machines"][0] and (folder / "index.html").exists()


def test_a_changed_value_is_no_reference(place: Path) -> None:
    made(place, [make_run("digits_rotate", "fedavg", 0)])
    shutil.rmtree(place / "results")
    changed = make_run("digits_rotate", "fedavg", 0, rounds=5)
    assert reference.restore({SUITE: [changed]}, place / "results") == []
    assert not (place / "results" / changed.folder).exists()


def test_results_of_other_code_are_not_restored_and_named(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make_run("digits_rotate", "fedavg", 0), make_run("digits_rotate", "floral_1", 0)]
    made(place, runs)
    digest = code.digest
    monkeypatch.setattr(code, "digest", lambda path: "00000000" if path.endswith("methods/fedavg.py") else digest(path))
    assert reference.restore({SUITE: runs}, place / "fresh") == runs[1:]
    said = (
        "reports/reference/tiny/runs.zip: 1 run made by other code and not taken: floral/methods/fedavg.py has changed"
    )
    assert capsys.readouterr().err.splitlines() == [said]


def test_what_was_restored_is_made_anew_on_request(place: Path) -> None:
    runs = [make_run("digits_rotate", "fedavg", seed) for seed in (0, 1)]
    made(place, runs)
    shutil.rmtree(place / "results" / runs[0].folder)
    reference.restore({SUITE: runs}, place / "results")
    assert reference.remove_restored({SUITE: runs}, place / "results") == runs[:1]  # the other was made here
    assert [is_finished(place / "results" / run.folder) for run in runs] == [False, True]


def test_a_partial_grid_says_so_and_equal_runs_give_equal_archives(place: Path) -> None:
    run = make_run("digits_rotate", "fedavg", 0)
    folder = made(place, [run], of=[make_run("digits_rotate", "fedavg", 1)])
    assert "1 of 2: a partial grid" in (folder / "provenance.yaml").read_text()
    first = (folder / "runs.zip").read_bytes()
    reference.make(SUITE, [run], place / "results", place / "reports" / SUITE, "snakemake …")
    assert (folder / "runs.zip").read_bytes() == first


def test_a_damaged_archive_and_a_suite_without_runs_are_named(place: Path) -> None:
    run = make_run("digits_rotate", "fedavg", 0)
    with pytest.raises(ConfigError, match="no run is finished below results"):
        reference.make(SUITE, [run], Path("results"), place / "reports" / SUITE, "snakemake …")
    folder = made(place, [run])
    (folder / "runs.zip").write_bytes(b"not a zip")
    shutil.rmtree(place / "results")
    with pytest.raises(ConfigError, match=r"reports/reference/tiny/runs\.zip: damaged .*reuse=false"):
        reference.restore({SUITE: [run]}, place / "results")


def test_damage_within_an_archive_leaves_nothing_behind(place: Path) -> None:
    run = make_run("digits_rotate", "fedavg", 0)
    archive = made(place, [run]) / "runs.zip"
    with zipfile.ZipFile(archive) as whole:
        member = whole.getinfo(f"{run.folder}/metrics.parquet")
    assert member.compress_type == zipfile.ZIP_DEFLATED and member.external_attr >> 16 == 0o644
    content = bytearray(archive.read_bytes())
    content[member.header_offset + 200] ^= 0xFF
    archive.write_bytes(content)
    shutil.rmtree(place / "results")
    with pytest.raises(ConfigError, match=r"runs\.zip: damaged"):
        reference.restore({SUITE: [run]}, place / "results")
    assert not (place / "results").exists()


def test_a_page_of_other_runs_is_not_committed(place: Path) -> None:
    run, other = (make_run("digits_rotate", "fedavg", seed) for seed in (0, 1))
    for one in (run, other):
        write_run(place / "results", one)
    page(place, [run])
    with pytest.raises(ConfigError, match=r"the 1 runs in .* not the 2 .*floral report tiny --partial"):
        reference.make(SUITE, [run, other], place / "results", place / "reports" / SUITE, "snakemake …")


def test_figure_and_table_files_are_not_committed_and_no_link_leads_to_them(place: Path) -> None:
    for name in ("figures/curve.pdf", "tables/main.tex"):
        file = place / "reports" / SUITE / name
        file.parent.mkdir()
        file.touch()
    folder = made(place, [make_run("digits_rotate", "fedavg", 0)])
    assert sorted(path.name for path in folder.iterdir()) == [
        "index.html", "provenance.yaml", "runs.zip", "summary.parquet",
    ]  # fmt: skip
    html = read_page(folder / "index.html")
    assert "data-files" not in html and "<svg></svg>" in html
    assert "floral report tiny --reference" in html


@pytest.mark.parametrize(
    "html", sorted((ROOT / "reports/reference").glob("*/index.html")), ids=lambda path: path.parent.name
)
def test_committed_pages_link_to_no_file(html: Path) -> None:
    targets = set(re.findall(r'\b(?:href|src)="([^"]*)"', read_page(html)))
    assert {target for target in targets if not target.startswith(("#", "data:"))} == set()


def test_an_archive_is_unpacked_whole(place: Path) -> None:
    runs = [make_run("digits_rotate", "fedavg", seed) for seed in (0, 1)]
    made(place, runs)
    here = place / "elsewhere"
    assert sorted(reference.restore_archive(SUITE, here)) == sorted(here / run.folder for run in runs)
    assert all(is_finished(here / run.folder) for run in runs)
    with pytest.raises(ConfigError, match="unknown reference 'tin'; did you mean 'tiny'"):
        reference.restore_archive("tin", here)


def test_a_half_made_reference_is_none(place: Path) -> None:
    run = make_run("digits_rotate", "fedavg", 0)
    folder = made(place, [run])
    folder.rename(folder.with_name(f".{SUITE}.new"))
    shutil.rmtree(place / "results")
    assert reference.restore({SUITE: [run]}, place / "results") == []


def test_runs_on_other_rows_are_not_mixed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("digits_rotate", "fedavg", 0)
    made(place, [run])
    shutil.rmtree(place / "results")
    manifest = place / "results" / run.partition.folder / "card.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text('{"digest": "0123456789"}')
    assert reference.restore({SUITE: [run]}, place / "results") == []
    assert "has other samples" in capsys.readouterr().err and not (place / "results" / run.folder).exists()


def test_what_was_made_here_beside_restored_files_stays(place: Path) -> None:
    run = make_run("digits_rotate", "fedavg", 0)
    made(place, [run])
    shutil.rmtree(place / "results")
    reference.restore({SUITE: [run]}, place / "results")
    (place / "results" / run.folder / "notes.txt").write_text("mine")
    assert reference.remove_restored({SUITE: [run]}, place / "results") == [run]
    assert state.failure(place / "results" / run.folder) is None  # it waits for its training, and nothing has failed
    assert sorted(path.name for path in (place / "results" / run.folder).iterdir()) == [".lock", "notes.txt"]


def test_a_newcomer_trains_nothing_and_gets_the_page(copy: Project) -> None:
    assert copy.call("floral", "reference", SUITE).returncode == 0
    page, table = copy.folder / "reports" / SUITE / "index.html", copy.folder / "reports" / SUITE / "summary.parquet"
    before, summary = read_page(page), pl.read_parquet(table)
    for left in ("results/train", "results/partition", "results/report", f"reports/{SUITE}", ".snakemake"):
        shutil.rmtree(copy.folder / left)
    assert "0 finished, 3 taken from the reference results, 0 to do" in copy.call("floral", "plan", SUITE).stdout
    dry = copy.snakemake("-n")
    assert "3 runs taken from reports/reference (not in a dry run" in dry.stdout
    assert not copy.paths("results/train/*")
    done = copy.snakemake("--until", "report")
    assert done.returncode == 0, done.stdout
    assert "3 runs taken from reports/reference" in done.stdout and not copy.paths("results/partition/*")
    assert pl.read_parquet(table).drop("reference").equals(summary.drop("reference"))
    assert before.count("(reference tiny") == 0 and read_page(page).count("(reference tiny") == 3
    again = copy.snakemake("reuse=false", "seeds=[0]", "variants=[fedavg]", "--until", "train")
    assert again.returncode == 0, again.stdout
    assert len(copy.paths("results/train/*/fedavg/*/model.safetensors")) == 1


def test_the_execution_of_committed_results_is_recorded_and_found(place: Path) -> None:
    """Other seeds of the run are computed in the same way; a run with another value has no committed results."""
    run = make_run("digits_rotate", "fedavg", 1)
    assert reference.execution_of(run) is None
    told = yaml.safe_load((made(place, [run, make_run("digits_rotate", "local", 0)]) / "provenance.yaml").read_text())
    assert told["executions"] == {"vmap on cpu, 1 thread": 2}
    assert reference.execution_of(run) == COSTS["execution"]
    assert reference.execution_of(make_run("digits_rotate", "fedavg", 7)) == COSTS["execution"]
    assert reference.execution_of(make_run("digits_rotate", "fedavg", 1, rounds=5)) is None
    assert reference.execution_of(make_run("digits_rotate", "floral_1", 1)) is None


def test_reference_results_lie_where_the_settings_say(place: Path) -> None:
    run, folder = make_run("digits_rotate", "fedavg", 0), place / "downloaded"
    write_run(place / "results", run)
    page(place, [run])
    made_in = reference.make(SUITE, [run], place / "results", place / "reports" / SUITE, "snakemake …", folder)
    assert made_in == folder / SUITE and not (place / "reports/reference").exists()
    fresh = place / "fresh"
    assert reference.restore({SUITE: [run]}, fresh) == [] and reference.execution_of(run) is None
    assert reference.execution_of(run, folder) == COSTS["execution"] and reference.archives_with([run.folder], folder)
    assert reference.restore({SUITE: [run]}, fresh, folder) == [run]
    assert reference.restore_archive(SUITE, place / "again", folder) == [place / "again" / run.folder]
