"""Equal budgets for every method, tuning seeds apart from reported ones, tuned values as they were found."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from federations import CPU, make_data, make_run

from floral.config import catalogue
from floral.config.reading import ConfigError
from floral.config.schema.tuning import Rates, Space
from floral.config.search_space import axes_of, configurations, edges
from floral.config.searches import Search, search_space, tuning_file
from floral.config.suites import suite_runs, suite_searches
from floral.config.tuned import Untuned, is_current, tuned_values
from floral.stages.assemble import make_problem
from floral.stages.build import method_of

Write = Callable[..., None]
TUNABLE = [name for name, method in catalogue.variant_index().items() if method in catalogue.names("search")]
SEED = tuning_file().seeds[0]


def tuned_suite(**change: Any) -> dict[str, Any]:
    block = {"tasks": ["digits_rotate"], "variants": ["ditto"], "seeds": [0], "tuned": True}
    return {"title": "Mine", "runs": [block | change]}


def searched() -> Search:
    (search,) = suite_searches("mine").values()
    return search


def entry(search: Search, number: int = 0, **change: Any) -> dict[str, Any]:
    chosen = search.configurations[number]
    found = {
        "rates": chosen.rates.model_dump(), "params": dict(chosen.params), "search": search.digest, "budget": 12,
        "seeds": list(search.tuning.seeds), "rounds": search.task.rounds, "commit": None, "default": 0.5,
        "losses": [0.4] * 12,
    }  # fmt: skip
    return found | change


def refusal(suite: str = "mine", kind: type[ConfigError] = ConfigError) -> str:
    with pytest.raises(kind) as refused:
        suite_runs(suite)
    return str(refused.value)


# ------------------------------------------------------------------------------------------ search spaces


@pytest.mark.parametrize("variant", TUNABLE)
def test_every_variant_tries_the_same_learning_rates_one_in_each_configuration(variant: str) -> None:
    rule, space = tuning_file(), search_space(variant)
    axes = axes_of(space, rule, Rates(lr=0.1, router_lr=0.3))
    found = configurations(axes)
    assert [one.rates.lr for one in found] == list(axes["lr"]) and len(set(axes["lr"])) == rule.budget
    assert (axes["lr"][0], axes["lr"][-1]) == pytest.approx((0.1 * rule.lr.lowest, 0.1 * rule.lr.highest), rel=0.005)
    steps = [math.log(high / low) for low, high in zip(axes["lr"], axes["lr"][1:], strict=False)]
    assert steps == pytest.approx([steps[0]] * len(steps), abs=0.05)
    others = Counter((one.rates.router_lr, *one.params.values()) for one in found)
    assert len(set(others.values())) == 1, "each combination has equally many learning rates"


@pytest.mark.parametrize("variant", [name for name in TUNABLE if search_space(name).router_lr > 1])
def test_a_routers_learning_rate_is_tuned_only_where_something_trains_with_it(variant: str) -> None:
    run = make_run(variant).model_copy(update={"own_rates": Rates(lr=0.1, router_lr=0.777)})
    problem = make_problem(run, make_data(), CPU, torch.float32)
    method = method_of(run.variant, problem)
    assert 0.777 in [group.lr for group in method.groups.values()]


def test_only_methods_that_train_nothing_have_no_search_space() -> None:
    assert {"constant"} == {name for block in catalogue.suite("methods").runs for name in block.variants} - set(TUNABLE)


def test_edges_are_ends_of_axes_that_have_an_inside() -> None:
    rule = tuning_file()
    values = {"lam": (0.1, 1.0, 10.0), "two": (1, 2), "kind": ("a", "b", "c")}
    axes = axes_of(Space(values=values), rule, Rates(lr=0.1, router_lr=0.1))
    rates = Rates(lr=axes["lr"][-1], router_lr=0.1)
    assert edges(axes, rates, {"lam": 0.1, "two": 1, "kind": "a"}) == ["lr", "lam"]
    assert edges(axes, Rates(lr=axes["lr"][1], router_lr=0.1), {"lam": 1.0, "two": 2, "kind": "c"}) == []


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"router_lr": 5}, ["config/search/ditto.yaml", "5 values of router_lr make 5 ", "divide the `budget: 12`"]),
        ({"values": {"lam": [1.0, 2.0, 3.0]}, "router_lr": 3}, ["3 values of router_lr × 3 values of lam make 9"]),
        ({"values": {"lamb": [1.0, 2.0]}}, ["values: unknown parameter 'lamb'; did you mean 'lam'?"]),
        ({"values": {"lam": [0.0, 2.0]}}, ["values: lam: 0.0 is out of range"]),
        ({"values": {"lam": [1.0, 1.0]}}, ["values: lam", "contains a value twice"]),
        ({"variants": {"dito": {}}}, ["variants: unknown variant 'dito'"]),
        ({"lr": 4}, ["unknown key 'lr'"]),
        ({"rounds": 3}, ["unknown key 'rounds'"]),
    ],
)
def test_a_search_space_that_does_not_fit_is_refused(write: Write, space: dict[str, Any], words: list[str]) -> None:
    write("suites/mine", **tuned_suite())
    write("search/ditto", **space)
    said = refusal()
    assert all(word in said for word in words), said


def test_what_a_variant_sets_is_tuned_only_in_a_space_of_its_own(write: Write) -> None:
    write("suites/mine", **tuned_suite(variants=["floral_10"]))
    ranks = {"values": {"rank": [0.01, 0.1]}}
    write("search/floral", **ranks)
    assert (
        "'floral_10' has its own value of `rank` in config/methods; give this variant a separate search space"
        in refusal()
    )
    write("search/floral", variants={"floral_10": ranks})
    assert searched().axes["rank"] == (0.01, 0.1)


def test_a_method_without_a_search_space_is_refused(write: Write) -> None:
    write("suites/mine", **tuned_suite(variants=["constant"]))
    said = refusal()
    assert "config/search/constant.yaml: no such file" in said and "without `tuned: true`" in said


@pytest.mark.parametrize(
    "change", [{"fidelity": "official"}, {"task": {"partition": {"validation": 0.0}}}], ids=["official", "no share"]
)
def test_without_held_out_rows_nothing_is_tuned(write: Write, change: dict[str, Any]) -> None:
    write("suites/mine", **tuned_suite(**change))
    said = refusal()
    assert "has no validation samples" in said and "remove the key `tuned`" in said


def test_tuning_seeds_are_not_reported(write: Write) -> None:
    both = {"title": "Mine", "runs": [*tuned_suite()["runs"], tuned_suite(tuned=False, seeds=[0, SEED])["runs"][0]]}
    write("suites/mine", **both)
    assert f"seeds: [{SEED}] are tuning seeds" in refusal()
    write("suites/mine", **tuned_suite(tuned=False, seeds=[SEED]))
    assert len(suite_runs("mine")) == 1


def test_a_task_may_have_more_tuning_seeds_and_only_its_searches_change(write: Write) -> None:
    write("suites/mine", **tuned_suite())
    rule = tuning_file().model_dump(mode="json") | {"tasks": {}}
    write("tuning", **rule)
    before = searched()
    write("tuning", **rule | {"tasks": {"digits_label_shift": {"seeds": [SEED, 7]}}})
    assert searched().digest == before.digest and searched().tuning.seeds == (SEED,)
    write("suites/mine", **tuned_suite(seeds=[0, 7]))
    assert "seeds: [7] are tuning seeds" in refusal()
    write("suites/mine", **tuned_suite())
    write("tuning", **rule | {"tasks": {"digits_rotate": {"seeds": [SEED, 7]}}})
    assert searched().digest != before.digest and searched().tuning.seeds == (SEED, 7)
    assert [run.seed for run in searched().references()] == [SEED, 7]


def test_a_task_may_have_fewer_configurations(write: Write) -> None:
    write("suites/mine", **tuned_suite(variants=["ditto"]))  # its four penalties do not divide 6
    write("tuning", **tuning_file().model_dump(mode="json") | {"tasks": {"digits_rotate": {"budget": 6}}})
    tried = searched().configurations
    assert len({each.rates.lr for each in tried}) == len(tried) == 6
    assert sorted(Counter(each.params["lam"] for each in tried).values()) == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ({"digits_rotat": {}}, "tasks: unknown task 'digits_rotat'; did you mean 'digits_rotate'?"),
        ({"digits_rotate": {"seeds": [7, 7]}}, "tasks.digits_rotate: `seeds: [7, 7]` contains a seed twice"),
        ({"digits_rotate": {"seeds": [-1]}}, "tasks.digits_rotate: seeds.0"),
        ({"digits_rotate": {"budgt": 3}}, "tasks.digits_rotate: unknown key 'budgt'"),
    ],
)
def test_wrong_values_of_one_task_are_refused(write: Write, tasks: dict[str, Any], words: str) -> None:
    write("suites/mine", **tuned_suite())
    write("tuning", **tuning_file().model_dump(mode="json") | {"tasks": tasks})
    said = refusal()
    assert "config/tuning.yaml" in said and words in said


def test_a_value_is_not_both_tuned_and_set(write: Write) -> None:
    write("suites/mine", **tuned_suite(method={"lam": 3.0}))
    assert "method: tuning chooses lam for 'ditto'" in refusal()


def test_a_learning_rate_of_0_has_no_grid(write: Write) -> None:
    write("suites/mine", **tuned_suite(task={"lr": 0.0}))
    assert "has `lr: 0`; set a positive `lr`" in refusal()


# ------------------------------------------------------------------------------------------- tuned values


def test_missing_values_are_named_with_the_command_that_finds_them(write: Write) -> None:
    write("suites/mine", **tuned_suite(variants=["ditto", "floral_1"]))
    write("tuned/digits_rotate")
    said = refusal(kind=Untuned)
    assert said.splitlines() == [
        "config/tuned/digits_rotate.yaml: no tuned values yet: ditto, floral_1",
        "tune with: snakemake --profile local tuned --config suite=mine",
    ]
    (first, second) = suite_runs("mine", with_tuned=False)  # enough for the partition, which both share
    assert first.partition == second.partition


def test_tuned_values_are_the_runs_and_decide_its_hash(write: Write) -> None:
    write("suites/mine", **tuned_suite())
    search = searched()
    write("tuned/digits_rotate", ditto=entry(search, 3))
    (run,) = suite_runs("mine")
    chosen = search.configurations[3]
    assert run.rates == chosen.rates and run.variant.params["lam"] == chosen.params["lam"] != 1.0
    write("suites/mine", **tuned_suite(tuned=False))
    (untuned,) = suite_runs("mine")
    assert untuned.hash8 != run.hash8 and "own_rates" not in untuned.identity() and untuned.own_rates is None
    assert search.trial(SEED, chosen).hash8 != run.hash8


def test_a_change_of_what_was_searched_makes_values_stale(write: Write) -> None:
    write("suites/mine", **tuned_suite())
    write("tuned/digits_rotate", ditto=entry(searched()))
    assert suite_runs("mine")
    for change in ({"batch": 8}, {"model": {"hidden": 8}}):
        write("suites/mine", **tuned_suite(task=change))
        assert "config/tuned/digits_rotate.yaml: stale values" in refusal(kind=Untuned)
    write("suites/mine", **tuned_suite())
    write("search/ditto", values={"lam": [0.1, 1.0, 9.0]})
    assert "config/tuned/digits_rotate.yaml: stale values" in refusal(kind=Untuned)


def test_a_suite_of_other_length_shares_the_search(write: Write) -> None:
    write("suites/mine", **tuned_suite(task={"rounds": 1000}))
    digest, rounds = searched().digest, searched().task.rounds
    write("suites/mine", **tuned_suite(task={"rounds": 2000, "eval_every": 7}))
    assert (searched().digest, rounds) == (digest, tuning_file().at_most)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loss": 1}, ["config/tuned/digits_rotate.yaml: ditto", "unknown key 'loss'"]),
        ({"rates": {"lr": 0.123, "router_lr": 0.1}}, ["not one of the 12 configurations of the search"]),
        ({"rates": {"lr": "fast", "router_lr": 0.1}}, ["ditto", "rates.lr", "'fast'"]),
    ],
)
def test_edited_values_are_refused(write: Write, change: dict[str, Any], words: list[str]) -> None:
    write("suites/mine", **tuned_suite())
    write("tuned/digits_rotate", ditto=entry(searched(), **change))
    said = refusal()
    assert all(word in said for word in words), said


def test_an_unknown_variant_in_tuned_values_is_refused(write: Write) -> None:
    write("suites/mine", **tuned_suite())
    write("tuned/digits_rotate", dito=entry(searched()))
    assert "config/tuned/digits_rotate.yaml: unknown variant 'dito'; did you mean 'ditto'?" in refusal()


def test_two_searches_of_one_task_and_variant_have_no_room(write: Write) -> None:
    blocks = [*tuned_suite()["runs"], *tuned_suite(task={"batch": 8})["runs"]]
    write("suites/mine", title="Mine", runs=blocks)
    with pytest.raises(ConfigError, match="is in two blocks with different values"):
        suite_searches("mine")


@pytest.mark.parametrize("suite", [name for name in catalogue.names("suites") if suite_searches(name)])
def test_committed_values_are_current(suite: str) -> None:
    found = [
        search for search in suite_searches(suite).values() if search.variant.name in tuned_values(search.task.name)
    ]
    assert [search.variant.name for search in found if not is_current(search)] == []


@pytest.mark.parametrize("suite", ["tuned", "methods"])
def test_values_are_committed_for_what_a_newcomer_runs(suite: str) -> None:
    """The searches of `methods_full` take days."""
    assert suite_runs(suite)
