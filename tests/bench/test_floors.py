"""A floor that computed something else would be no floor."""

import importlib
from dataclasses import replace

import federations as small
import pytest
import torch

from floral.bench import floors
from floral.bench.contenders import batches_of
from floral.bench.floors import Convolutions, Dense
from floral.core.spec import Refused

EQUAL = (9,) * 6
"""Rows of six clients: with batch 4 three steps, the last with a single row; with batch 32 one step."""
TOLERANCE = 1e-5


def one_round(model: str, **task):
    """A simulation after a round, the parameters before it, its batches and its rows."""
    data = small.make_data(EQUAL, shape=small.SHAPES.get(model, (4, 4)), regression=task.pop("regression", False))
    simulation = small.simulate("fedavg", model=model, data=data, dtype=torch.float32, **task)
    state = simulation.start()
    before = {name: value.clone() for name, value in state.values["base"].items()}
    batches = floors.batches(batches_of(simulation, 1))
    simulation.train(state, 1)
    return state.values["base"], before, batches, floors.examples(simulation.data.train)


TASKS = {
    "three steps": {},
    "two epochs": {"epochs": 2},
    "one step": {"batch": 32},
    "whole cohort": {"participation": 1.0},
}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("chunk", [1, 2, 4])
@pytest.mark.parametrize(("model", "layers"), [("mlp", ("hidden", "out")), ("linear", ("out",))])
def test_hand_batched_products_give_the_engines_mean_model(model, layers, chunk, workers, task):
    after, before, batches, data = one_round(model, **task)
    found = Dense(data, layers, 0.1, workers, chunk)(before, batches)
    small.assert_close(found, after, TOLERANCE)
    assert all((after[name] - before[name]).abs().max() > 10 * TOLERANCE for name in after)


def test_hand_batched_products_know_the_squared_error():
    after, before, batches, data = one_round("mlp", regression=True)
    small.assert_close(Dense(data, ("hidden", "out"), 0.1, 1, 3)(before, batches), after, TOLERANCE)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("workers", [1, 2])
def test_convolutions_give_the_engines_mean_model(workers, task):
    after, before, batches, data = one_round("cnn", **task)
    found = Convolutions(data, 0.1, workers)(before, batches)
    small.assert_close(found, after, TOLERANCE)
    assert all((after[name] - before[name]).abs().max() > 10 * TOLERANCE for name in after)


def test_a_second_round_starts_from_the_first_and_changes_nothing_in_it():
    _, before, batches, data = one_round("mlp")
    floor = Dense(data, ("hidden", "out"), 0.1, 2, 2)
    first = floor(before, batches)
    kept = {name: value.clone() for name, value in first.items()}
    second = floor(first, batches)
    small.assert_close(first, kept, 0)
    assert not torch.equal(second["out.weight"], first["out.weight"])


@pytest.mark.parametrize(("kind", "model"), [("vgg8", "cnn"), ("mlp", "batch_norm")])
def test_a_model_without_a_floor_is_named(kind, model):
    simulation = small.simulate("fedavg", model=model, data=small.make_data(EQUAL, shape=(14, 14)))
    built = importlib.import_module(f"floral.models.{small.KINDS.get(model, model)}").build
    batches = floors.batches(batches_of(simulation, 1))
    with pytest.raises(Refused, match=f"no floor for the model {kind}"):
        floors.floor(kind, built((14, 14), 5, **small.ARGUMENTS[model]), simulation.data.train, 0.1, batches, 1)


def test_the_chosen_floor_is_one_of_the_equal_ones():
    after, before, batches, _ = one_round("mlp", batch=32)
    simulation = small.simulate("fedavg", data=small.make_data(EQUAL), dtype=torch.float32, batch=32)
    model = importlib.import_module("floral.models.mlp").build((4, 4), 5, **small.ARGUMENTS["mlp"])
    found = floors.floor("mlp", model, simulation.data.train, 0.1, batches, threads=2)
    small.assert_close(found(before, batches), after, TOLERANCE)


def test_what_has_no_floor_says_why():
    simulation = small.simulate("fedavg", dtype=torch.float32)
    with pytest.raises(Refused, match="unequal numbers of training rows"):
        floors.batches(batches_of(simulation, 1))
    rows = replace(simulation.data.train, augment=lambda x, row, noise: x)
    with pytest.raises(Refused, match="augments"):
        floors.examples(rows)
