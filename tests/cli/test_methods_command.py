"""`floral methods`: all variants by family, with their parameter scopes."""

from __future__ import annotations

import json

import pytest

from floral.cli import main, methods
from floral.config import catalogue
from floral.config.reading import ConfigError
from floral.config.schema.method import STATEMENTS
from floral.core.spec import Group, Refused, Scope


@pytest.fixture(scope="module")
def rows_by_name() -> dict[str, methods.Row]:
    return {row.variant: row for row in methods.rows()}


def test_every_variant_is_listed_once_and_families_are_together(rows_by_name):
    assert set(rows_by_name) == set(catalogue.variant_index())
    families = [row.family for row in methods.rows()]
    assert families == sorted(families) and len(families) == len(rows_by_name)


@pytest.mark.parametrize(
    ("variant", "holders"),
    [
        ("fedavg", "base shared"),
        ("local", "base private"),
        ("fedper", "base shared, head private"),
        ("ensemble", "base clustered, router private"),
        ("floral_1", "base shared, adaptors clustered, router private"),
        ("ditto", "base shared, personal private"),
    ],
)
def test_who_holds_what(rows_by_name, variant, holders):
    assert rows_by_name[variant].scopes_text == holders
    assert rows_by_name[variant].refusal is None


def test_a_refusal_is_printed_with_its_reason_and_the_scopes_on_the_accepted_model(rows_by_name):
    row = rows_by_name["private_norm"]
    assert "no normalisation layer" in row.refusal
    assert row.scopes == {"base": "shared", "norm": "private", "norm_statistics": "private"}
    assert f"refuses a model without batch norm: {row.refusal}" in methods.text([row])


def test_a_variant_that_refuses_everything_is_still_listed(monkeypatch):
    def refuse(variant, batch_norm):
        raise Refused("never")

    monkeypatch.setattr(methods, "_build", refuse)
    output = methods.text(methods.rows())
    assert "nothing was built" in output and "refuses a model without batch norm: never" in output


def test_text_and_json_of_the_command(capsys):
    assert main.main(["methods"]) == 0
    output = capsys.readouterr().out
    lines = output.splitlines()
    assert "Personalised" in lines and lines.index("Global") < lines.index("Personalised")
    (line,) = [line for line in lines if line.strip().startswith("fedprox ")]
    assert "FedProx" in line and "base shared" in line and line.endswith("arXiv 1812.06127")
    assert main.main(["methods", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    (fedprox,) = [row for row in rows if row["variant"] == "fedprox"]
    assert fedprox["family"] == "Global" and fedprox["global_only"] and fedprox["scopes"] == {"base": "shared"}
    assert len(fedprox["what"]) == 2
    assert fedprox["server_sees"] == ["sizes"] and fedprox["secure_aggregation"] is True


def test_all_of_a_variant_is_printed_with_its_relation_to_the_source(capsys):
    assert main.main(["methods", "floral_1_top2", "fedprox"]) == 0
    of_floral, of_fedprox = capsys.readouterr().out.split("fedprox: FedProx\n")
    assert of_floral.startswith("floral_1_top2: FLoRAL 1 % (top-2 router)\n  FLoRAL. Source: arXiv 2410.03497")
    assert max(map(len, of_floral.splitlines())) <= 100
    for text, variant in ((of_floral, "floral_1_top2"), (of_fedprox, "fedprox")):
        words, values = " ".join(text.split()), catalogue.variant(variant)
        for key, heading in STATEMENTS.items():
            statements = getattr(values, key)
            assert statements and f"{heading} - {' - '.join(statements)}" in words
    file = catalogue.method_file("floral")
    own = file.variants["floral_1_top2"].differs
    assert own and catalogue.variant("floral_1_top2").differs == (*file.differs, *own)
    assert catalogue.variant("floral_5").differs == file.differs


def test_the_name_of_a_method_stands_for_its_variants(capsys):
    assert main.main(["methods", "fedopt", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["variant"] for row in rows] == list(catalogue.method_file("fedopt").variants)
    assert {row["method"] for row in rows} == {"fedopt"} and rows[0]["differs"]


@pytest.mark.parametrize("name", ["fedbn", "FedBN", "fed_bn"])
def test_the_name_in_the_publication_is_answered_with_the_name_here(name, capsys):
    assert main.main(["methods", name]) == 2
    assert f"{name!r}; did you mean 'private_norm'?" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="did you mean 'private_norm'"):
        catalogue.variant(name)


def test_an_unknown_name_of_a_method_is_answered_with_the_closest(capsys):
    assert main.main(["methods", "fedpox"]) == 2
    assert "config/methods: unknown variant or method 'fedpox'; did you mean 'fedprox'?" in capsys.readouterr().err


def test_what_the_server_sees_is_printed(rows_by_name):
    assert rows_by_name["local"].server_text == "server sees nothing"
    assert rows_by_name["floral_1"].server_text == "server sees sizes, routes"
    assert rows_by_name["centralised"].server_text == "server sees rows (no secure aggregation)"


def test_scopes_are_those_of_the_declaration(monkeypatch, rows_by_name):
    """A group that a method adds appears in the list."""
    real = methods._build

    def with_one_more(variant, batch_norm):
        method = real(variant, batch_norm)
        extra = Group(scope=Scope.FROZEN, init=dict)
        return type(method)(groups={**method.groups, "extra": extra}, predict=method.predict)

    monkeypatch.setattr(methods, "_build", with_one_more)
    assert methods._row(catalogue.variant("fedavg")).scopes_text == "base shared, extra frozen"
