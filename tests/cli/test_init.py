"""`floral init` makes a study with working examples, and keeps what is in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from projects import ROOT, Project

from floral.cli.init import init
from floral.cli.main import main
from floral.config.reading import ConfigError, read


def test_the_example_of_a_new_study_is_valid(tmp_path: Path) -> None:
    """By the commands as a user calls them: `init` where no study is, `plan` in the study."""
    project = Project(tmp_path)
    assert "cd 'my study' && snakemake" in project.call("floral", "init", "my study").stdout
    said = Project(tmp_path / "my study").call("floral", "plan").stdout
    assert "suite flowers: 12 runs of 1 task and 4 variants" in said
    module = tmp_path / "my study/config/suites/module.yaml"
    module.write_text("title: T\nruns: [{tasks: [flowers_module], variants: [floral_1], seeds: [0]}]\n")
    assert "1 run of 1 task" in Project(tmp_path / "my study").call("floral", "plan", "module").stdout
    settings = read(tmp_path / "my study/config/config.yaml")
    assert settings == {**read(ROOT / "config/config.yaml"), "suite": "flowers"}
    profiles = [tmp_path / "my study" / name / "profile.v9+.yaml" for name in ("local", "gpu", "slurm")]
    assert all(yaml.safe_load(path.read_text()) for path in profiles)
    assert (tmp_path / "my study/.gitignore").exists()


def test_a_folder_with_files_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["init", str(tmp_path)]) == 2
    assert f"{tmp_path}: this folder is not empty; choose a new folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(ConfigError, match=r"notes\.txt: this is a file"):
        init(tmp_path / "notes.txt")


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    init(tmp_path / "empty")
    assert (tmp_path / "empty/config/config.yaml").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_command_outside_a_study_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["tasks"]) == 2
    assert "config/config.yaml: no such file" in (said := capsys.readouterr().err) and "`floral init FOLDER`" in said
