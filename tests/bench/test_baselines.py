"""One round of a baseline gives the engine's mean model."""

import importlib
from dataclasses import replace

import federations as small
import pytest
import torch

from floral.bench.baselines.batches import batches, samples
from floral.bench.baselines.choose import choose
from floral.bench.baselines.convolutions import Convolutions
from floral.bench.baselines.dense import Dense
from floral.bench.rounds import engine_batches
from floral.core.spec import Refused

EQUAL = (9,) * 6
"""Samples of six clients. Batch size 4 gives three steps, the last with one sample; batch size 32 gives one step."""
TOLERANCE = 1e-5


def one_round(model: str, **task):
    """Run one round of the engine. Returns its mean model, the model before, its batches and its samples."""
    data = small.make_data(EQUAL, shape=small.SHAPES.get(model, (4, 4)), regression=task.pop("regression", False))
    simulation = small.simulate("fedavg", model=model, data=data, dtype=torch.float32, **task)
    state = simulation.start()
    before = {name: value.clone() for name, value in state.values["base"].items()}
    round_batches = batches(engine_batches(simulation, 1))
    simulation.train(state, 1)
    return state.values["base"], before, round_batches, samples(simulation.data.train)


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
    after, before, round_batches, data = one_round(model, **task)
    result = Dense(data, layers, 0.1, workers, chunk)(before, round_batches)
    small.assert_close(result, after, TOLERANCE)
    assert all((after[name] - before[name]).abs().max() > 10 * TOLERANCE for name in after)


def test_hand_batched_products_support_the_squared_error():
    after, before, round_batches, data = one_round("mlp", regression=True)
    small.assert_close(Dense(data, ("hidden", "out"), 0.1, 1, 3)(before, round_batches), after, TOLERANCE)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("workers", [1, 2])
def test_convolutions_give_the_engines_mean_model(workers, task):
    after, before, round_batches, data = one_round("cnn", **task)
    result = Convolutions(data, 0.1, workers)(before, round_batches)
    small.assert_close(result, after, TOLERANCE)
    assert all((after[name] - before[name]).abs().max() > 10 * TOLERANCE for name in after)


def test_a_second_round_does_not_change_the_result_of_the_first():
    _, before, round_batches, data = one_round("mlp")
    baseline = Dense(data, ("hidden", "out"), 0.1, 2, 2)
    first = baseline(before, round_batches)
    copy = {name: value.clone() for name, value in first.items()}
    second = baseline(first, round_batches)
    small.assert_close(first, copy, 0)
    assert not torch.equal(second["out.weight"], first["out.weight"])


@pytest.mark.parametrize(("kind", "model"), [("vgg8", "cnn"), ("mlp", "batch_norm")])
def test_the_error_names_a_model_without_a_baseline(kind, model):
    simulation = small.simulate("fedavg", model=model, data=small.make_data(EQUAL, shape=(14, 14)))
    built = importlib.import_module(f"floral.models.{small.KINDS.get(model, model)}").build
    round_batches = batches(engine_batches(simulation, 1))
    with pytest.raises(Refused, match=f"no baseline for the model {kind}"):
        choose(kind, built((14, 14), 5, **small.ARGUMENTS[model]), simulation.data.train, 0.1, round_batches, 1)


def test_the_fastest_baseline_gives_the_engines_mean_model():
    after, before, round_batches, _ = one_round("mlp", batch=32)
    simulation = small.simulate("fedavg", data=small.make_data(EQUAL), dtype=torch.float32, batch=32)
    model = importlib.import_module("floral.models.mlp").build((4, 4), 5, **small.ARGUMENTS["mlp"])
    result = choose("mlp", model, simulation.data.train, 0.1, round_batches, threads=2)
    small.assert_close(result(before, round_batches), after, TOLERANCE)


def test_the_error_says_why_there_is_no_baseline():
    simulation = small.simulate("fedavg", dtype=torch.float32)
    with pytest.raises(Refused, match="unequal numbers of training samples"):
        batches(engine_batches(simulation, 1))
    rows = replace(simulation.data.train, augment=lambda x, row, noise: x)
    with pytest.raises(Refused, match="augments"):
        samples(rows)
