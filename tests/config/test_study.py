"""A study is a folder of the user: its files are added to those of the package, and a name in both is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from projects import ROOT

import floral.methods
import floral.models
from floral.config import catalogue, code, data_sets, layers, paths, plugins, searches, tuned
from floral.config.reading import ConfigError, read
from floral.config.refresh import refresh
from floral.config.settings import read_settings

Write = Callable[[str, str], Path]
METHOD = "from floral.methods.fedavg import build\n"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """A function that writes a file of a study, which is the working directory. The package is the clone."""
    for kind in (floral.methods, floral.models):
        name = kind.__name__.rpartition(".")[2]
        monkeypatch.setattr(kind, "__path__", [str(tmp_path / name), str(ROOT / "floral" / name)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "PACKAGE", ROOT)

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        refresh()
        return path

    write("config/config.yaml", "suite: quickstart\n")
    yield write
    refresh()


TASK = "extends: digits_rotate\nrounds: 3\n"


def test_names_of_study_and_package_are_found_together(study: Write) -> None:
    study("config/tasks/mine.yaml", TASK)
    assert {"mine", "digits_rotate"} <= set(catalogue.names("tasks"))
    assert catalogue.task("mine").rounds == 3 and catalogue.task("mine").clients == 20


OF_PACKAGE = {
    "tasks/digits_rotate": lambda: catalogue.task("digits_rotate").title,
    "suites/quickstart": lambda: catalogue.suite("quickstart").title,
    "methods/fedavg": lambda: catalogue.method_file("fedavg").family,
    "search/floral": lambda: searches.search_space("floral_1").router_lr,
}


@pytest.mark.parametrize("name", OF_PACKAGE)
def test_a_name_in_both_is_refused_unless_it_overrides(study: Write, name: str) -> None:
    text = (ROOT / "config" / f"{name}.yaml").read_text()
    for old, new in (("title: ", "title: My "), ("family: Global", "family: Own"), ("router_lr: 4", "router_lr: 2")):
        text = text.replace(old, new, 1)
    before = OF_PACKAGE[name]()
    study(f"config/{name}.yaml", text)
    with pytest.raises(ConfigError) as refused:
        OF_PACKAGE[name]()
    assert f"config/{name}.yaml: {ROOT}/config/{name}.yaml has the same name" in str(refused.value)
    assert "`overrides: true` in config/" in str(refused.value)
    study(f"config/{name}.yaml", f"overrides: true\n{text}")
    assert OF_PACKAGE[name]() != before


@pytest.mark.parametrize(
    ("value", "words"), [("true", "the package has nothing of this name"), ("1", "found 1; write")]
)
def test_overrides_without_a_meaning_is_refused(study: Write, value: str, words: str) -> None:
    study("config/tasks/mine.yaml", f"overrides: {value}\n{TASK}")
    with pytest.raises(ConfigError, match=rf"^config/tasks/mine\.yaml: overrides: .*{words}"):
        catalogue.task("mine")


def test_entries_of_data_lock_are_added_and_replaced(study: Write) -> None:
    entry = read(ROOT / "config/data.lock")["digits"]
    study("config/data.lock", yaml.safe_dump({"mine": entry}))
    assert {"mine", "digits"} <= set(data_sets.data_lock())
    assert data_sets.place("mine") == "config/data.lock: mine"
    study("config/data.lock", yaml.safe_dump({"digits": entry}))
    with pytest.raises(ConfigError, match=rf"^config/data\.lock: digits: {ROOT}/config/data\.lock has the same name"):
        data_sets.data_lock()
    study("config/data.lock", yaml.safe_dump({"digits": {**entry, "title": "Other", "overrides": True}}))
    assert data_sets.data_lock()["digits"].title == "Other"


def test_tuned_values_of_the_study_replace_those_of_the_package(study: Write) -> None:
    task, (name, *others) = "digits_rotate", tuned.tuned_values("digits_rotate")
    entry = yaml.safe_load((ROOT / f"config/tuned/{task}.yaml").read_text())[name]
    study(f"config/tuned/{task}.yaml", yaml.safe_dump({name: {**entry, "search": "00000000"}}))
    assert tuned.tuned_values(task)[name].search == "00000000" and set(others) < set(tuned.tuned_values(task))
    assert list(tuned.study_values(task)) == [name]  # what `floral tune --write` keeps in the study's file


def test_a_complete_config_stands_alone(study: Write) -> None:
    study("config/parameters.yaml", "{}")
    assert layers.folders() == (paths.CONFIG_FOLDER,) and catalogue.names("tasks") == []


# ------------------------------------------------------------------------------------------ code


def test_code_of_the_study_is_found_imported_and_digested(study: Write) -> None:
    study("config/methods/mine.yaml", (ROOT / "config/methods/fedavg.yaml").read_text().replace("  fedavg", "  mine"))
    study("methods/helper.py", METHOD)
    study("methods/mine.py", "from .helper import build\n")
    study("models/own.py", "VERSION = 2\ndef build(shape, outputs, *, hidden: int, width=1.0): ...\n")
    assert catalogue.variant("mine").method == "mine" and plugins.builder("methods", "mine").__module__.endswith(
        "fedavg"
    )
    assert {"methods/mine.py", "methods/helper.py", "floral/methods/fedavg.py", "models/own.py"} <= set(
        code.files("mine", "own")
    )
    assert code.versions("mine", "own") == {"models own": 2}
    before = code.digests("mine", "own")
    study("methods/helper.py", f"{METHOD}\nfactor = 2\n")
    assert code.changed_files(before, "mine", "own") == ["methods/helper.py"]


def test_a_changed_file_of_the_study_is_imported_anew(study: Write) -> None:
    for answer in (1, 22):  # of other length, because Python compares only the second of the change and the size
        study("methods/mine.py", f"def build(problem):\n    return {answer}\n")
        assert plugins.builder("methods", "mine")(None) == answer


def test_changed_files_of_a_module_are_imported_anew(study: Write) -> None:
    from floral.models.module import function_of

    for answer in (1, 22):
        study("nets/blocks_of_mine.py", f"answer = {answer}\n")
        study("nets/mine.py", "from blocks_of_mine import answer\ndef make():\n    return answer\n")
        assert function_of("nets/mine.py:make")() == answer


@pytest.mark.parametrize("file", ["methods/fedavg.py", "models/mlp.py"])
def test_a_python_file_with_a_name_of_the_package_is_refused(study: Write, file: str) -> None:
    study(file, METHOD)
    with pytest.raises(ConfigError, match=rf"^{file}: \S*/floral/{file} has the same name; rename {file}"):
        plugins.names(file.partition("/")[0])


def test_a_method_can_be_replaced(study: Write) -> None:
    study("methods/fedprox.py", METHOD)
    study("config/methods/fedprox.yaml", f"overrides: true\n{(ROOT / 'config/methods/fedprox.yaml').read_text()}")
    assert "fedprox" in plugins.names("methods") and "methods/fedprox.py" in code.files("fedprox", "mlp")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import math\n", "this file has no function `build`"),
        ("import missing_package\n", r"line 1: ModuleNotFoundError: .*install this package"),
        ("def build(:\n", "SyntaxError: "),
        ("x = 1\ny = x / 0\n", "line 2: ZeroDivisionError: division by zero; correct this file"),
    ],
)
def test_a_broken_file_is_named_with_its_line(study: Write, text: str, words: str) -> None:
    name = f"broken{abs(hash(text))}"
    study(f"methods/{name}.py", text)
    with pytest.raises(ConfigError, match=rf"^methods/{name}\.py: {words}"):
        plugins.builder("methods", name)


def test_a_model_without_build_is_named(study: Write) -> None:
    study("models/own.py", "x = 1\n")
    study("config/tasks/mine.yaml", "extends: digits_rotate\ntitle: Mine\nmodel: {kind: own}\n")
    told = r"^config/tasks/mine\.yaml: model\.kind: own: models/own\.py: this file has no function `build`; .*"
    with pytest.raises(ConfigError, match=rf"{told}build: models/own\.py:NAME"):
        catalogue.task("mine")
    study("models/own.py", "class Block(nn.Module): ...\nclass Net(Block): ...\nclass Data(list): ...\n")
    with pytest.raises(ConfigError, match=rf"{told}write `model: {{kind: module, build: models/own\.py:Net}}` in the"):
        catalogue.task("mine")


# ------------------------------------------------------------------------------------------ folders


def test_a_path_of_an_unknown_user_is_a_path_that_does_not_exist() -> None:
    assert paths.in_study("~no-such-user/weights.safetensors").parts[-2:] == ("~no-such-user", "weights.safetensors")
    assert paths.in_study("~/weights.safetensors") == Path.home() / "weights.safetensors"


def test_a_study_is_found_from_its_folders_below(study: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLORAL_STUDY", "FLORAL_RESULTS", "FLORAL_REPORTS", "FLORAL_REFERENCE", "FLORAL_DATA"):
        monkeypatch.delenv(name, raising=False)
    study("config/config.yaml", "suite: quickstart\ndata_dir: raw\nreports: /elsewhere\n")
    assert paths._find_study() == Path()
    (tmp_path / "a/b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a/b")
    assert paths._find_study() == Path("../..")
    monkeypatch.setattr(paths, "STUDY", Path("../.."))
    monkeypatch.setattr(paths, "CONFIG_FOLDER", Path("../../config"))
    monkeypatch.setenv("FLORAL_REFERENCE", "here")  # a variable is relative to the working directory
    settings = read_settings()
    assert settings.results == Path("../../results") and settings.data_dir == Path("../../raw")
    assert settings.reports == Path("/elsewhere") and settings.reference == Path("here")
    monkeypatch.setenv("FLORAL_STUDY", str(tmp_path))
    assert paths._find_study() == tmp_path


@pytest.mark.parametrize("file", ["methods/mine.py", "models/own.py"])
def test_a_study_with_code_says_for_which_interface_it_was_written(study: Write, file: str) -> None:
    assert read_settings().interface is None  # without code, there is nothing to check
    study(file, METHOD)
    with pytest.raises(
        ConfigError, match=rf"config\.yaml: interface: this key is missing, but {file} uses floral; write"
    ):
        read_settings()
    study("config/config.yaml", f"suite: quickstart\ninterface: {plugins.INTERFACE_VERSION}\n")
    assert read_settings().interface == plugins.INTERFACE_VERSION


def test_an_error_in_a_build_of_the_study_names_its_line(study: Write, tmp_path: Path) -> None:
    from floral.check.federation import make_run
    from floral.config.schema.data import Synthetic
    from floral.stages import check_model

    study("config/methods/mine.yaml", (ROOT / "config/methods/fedavg.yaml").read_text().replace("  fedavg", "  mine"))
    study("methods/mine.py", "def build(problem, **parameters):\n    return {}['rate']\n")
    study("models/own.py", "def build(shape, outputs, *, width=1.0):\n    assert width > 1\n")
    for variant, model, message in (
        (
            "mine",
            "linear",
            r"`build` of methods/mine\.py fails: KeyError: 'rate' \(methods/mine\.py, line 2, in build\)",
        ),
        ("fedavg", "own", r"model: own cannot be used .* AssertionError \(models/own\.py, line 2, in build\)"),
    ):
        run = make_run(variant, model={"kind": model}, data=Synthetic(kind="linear", samples_per_client=2), loss="mse")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(ConfigError, match=message):
            patch.setattr(check_model, "place_of", lambda task, _: task.name)
            check_model.check([run], tmp_path)
