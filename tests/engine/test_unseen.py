"""Clients that join a trained run: what they are served, with and without samples, and what they never touch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from federations import CPU, VARIANTS, fitting, make_data, make_run, simulate, train, view_of

from floral.config import catalogue
from floral.engine import unseen as engine_unseen
from floral.stages.assemble import build_method, client_data, make_problem
from floral.stages.execute import join_unseen
from floral.stages.progress import Progress

SIZES = (12, 9, 15, 10)
"""Training rows of the clients that join; concepts 0 and 1 are clusters, 2 and 3 are new."""
TASK = {
    "shift": {"kind": "label_shift"},
    "unseen": {"seen_cluster": 2, "new_concept": 2, "epochs": 3, "samples": [0, 1, 4]},
    "batch": 4,
}


def trained(variant, *, joining=None, rounds=2, **task):
    """A simulation that knows of clients to join, and its state after some rounds."""
    data = replace(make_data(), unseen=joining or make_data(SIZES, clusters=4, seed=1))
    simulation = simulate(variant, model=fitting(variant), data=data, **{**TASK, **task})
    return simulation, train(simulation, rounds), data


def table(variant, simulation, state, data, **task):
    model = fitting(variant)
    run = make_run(variant, model=model, **{**TASK, **task})
    return join_unseen(run, simulation, state, Progress(), data)


def joined(variant, **how):
    simulation, state, data = trained(variant, **how)
    task = {key: value for key, value in how.items() if key not in ("joining", "rounds", "dtype")}
    return table(variant, simulation, state, data, **task), simulation, state, data


def of(found, n, kind=None):
    rows = found.filter(pl.col("n") == n)
    return rows if kind is None else rows.filter(pl.col("kind") == kind)


def loss_on_concept(simulation, view, data, concept):
    x, y = torch.from_numpy(data.unseen.global_test_x[concept]), torch.from_numpy(data.unseen.global_test_y[concept])
    outputs, _ = simulation.method.predict(view, simulation.data.test.decode(x), None, None)
    return float(torch.nn.functional.cross_entropy(outputs, y))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_method_lets_clients_join_and_the_trained_state_stays_as_it_is(variant):
    """Twice the same bits; an oracle has nothing to tell a client of a new concept."""
    simulation, state, data = trained(variant)
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    found, again = (table(variant, simulation, state, data) for _ in range(2))
    assert found.equals(again)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.tensors().items())
    kinds = ["seen_cluster"] if catalogue.variant(variant).oracle else ["seen_cluster", "new_concept"]
    assert found["n"].unique(maintain_order=True).to_list() == [0, 1, 4, 9]
    assert found["kind"].unique(maintain_order=True).to_list() == kinds
    assert found.height == 4 * 2 * len(kinds)
    assert found["loss"].is_finite().all() and (found["test_rows"] == 11).all()
    assert of(found, 0)["client"].to_list() == [7, 8, 9, 10][: 2 * len(kinds)]


@pytest.mark.parametrize("variant", ["fedavg", "fedprox", "constant", "fedit", "centralised"])
def test_where_nothing_is_a_clients_own_it_is_served_what_all_are_whatever_its_samples(variant):
    found, simulation, state, data = joined(variant, dtype=torch.float64)
    view = view_of(simulation, state, 0)
    for n in (0, 1, 4, 9):
        for row in of(found, n).iter_rows(named=True):
            assert row["loss"] == pytest.approx(loss_on_concept(simulation, view, data, row["concept"]), abs=1e-9)


@pytest.mark.parametrize("variant", ["floral_1_optimal", "ensemble_optimal", "centralised_cluster"])
def test_a_client_that_is_told_its_cluster_is_served_what_those_of_that_cluster_are(variant):
    found, simulation, state, data = joined(variant, dtype=torch.float64)
    for row in found.iter_rows(named=True):  # clients 0 and 1 are of clusters 0 and 1
        view = view_of(simulation, state, row["concept"])
        assert row["loss"] == pytest.approx(loss_on_concept(simulation, view, data, row["concept"]), abs=1e-9)


@pytest.mark.parametrize("variant", ["ditto", "pfedme", "mean_regularised", "perada"])
def test_without_samples_a_personal_model_is_the_one_that_its_penalty_pulls_to(variant):
    found, simulation, state, data = joined(variant, dtype=torch.float64)
    centre = {"perada": ("private", "shared")}.get(variant, ("personal", "base"))
    view = view_of(simulation, state, 0)
    view[centre[0]] = view[centre[1]]
    for row in of(found, 0).iter_rows(named=True):
        assert row["loss"] == pytest.approx(loss_on_concept(simulation, view, data, row["concept"]), abs=1e-9)


def test_local_with_all_rows_is_local_training_of_so_many_epochs():
    """With whole batches the order of the rows does not matter, so other random numbers give the same."""
    sizes = (9, 9, 9, 9)
    joining = make_data(sizes, clusters=4, seed=1)
    found, *_ = joined("local", joining=joining, dtype=torch.float64, batch=16)
    plain = simulate("local", data=joining, batch=16, participation=1.0, rounds=3, epochs=1)
    scores, _ = plain.global_test(train(plain, 3))
    np.testing.assert_allclose(of(found, 9)["loss"], scores.loss, atol=1e-9)


@pytest.mark.parametrize("variant", ["local", "fedper", "local_adaptor", "apfl", "ditto", "fedsa_lora"])
def test_what_is_a_clients_own_is_fitted_to_its_samples(variant):
    rule = {**TASK["unseen"], "epochs": 25}
    found, *_ = joined(variant, joining=make_data((40, 40, 40, 40), clusters=4, seed=1), rounds=3, unseen=rule)
    assert of(found, 40)["accuracy"].mean() > of(found, 0)["accuracy"].mean() + 0.05


def test_ifca_chooses_the_model_of_least_loss_on_the_samples():
    simulation, state, data = trained("ifca", dtype=torch.float64)
    found = table("ifca", simulation, state, data)
    view = view_of(simulation, state, 0)
    rows = data.unseen.rows["train"][:, :9]
    for client, row in enumerate(of(found, 9).iter_rows(named=True)):
        x, y = torch.from_numpy(data.unseen.train_x[rows[client]]), torch.from_numpy(data.unseen.train_y[rows[client]])
        losses, served = [], []
        for c in range(2):
            view["choice"] = {"cluster": torch.tensor(float(c), dtype=torch.float64)}
            outputs, _ = simulation.method.predict(view, simulation.data.test.decode(x), None, None)
            losses.append(float(torch.nn.functional.cross_entropy(outputs, y)))
            served.append(loss_on_concept(simulation, view, data, row["concept"]))
        assert row["loss"] == pytest.approx(served[int(np.argmin(losses))], abs=1e-9)


@pytest.mark.parametrize("variant", ["floral_1", "ditto", "apfl", "fedem", "fedsoft"])
def test_chunks_do_not_matter(variant, monkeypatch):
    simulation, state, data = trained(variant, dtype=torch.float64)
    whole = table(variant, simulation, state, data)
    monkeypatch.setattr(engine_unseen, "MAX_CHUNK_FLOATS", 1)
    np.testing.assert_allclose(table(variant, simulation, state, data)["loss"], whole["loss"], atol=1e-9)


@pytest.mark.parametrize("variant", ["floral_1", "ditto", "ifca", "fedsoft", "apfl", "centralised"])
def test_no_test_row_is_read_in_personalisation(variant):
    simulation, state, data = trained(variant)
    run = make_run(variant, model=fitting(variant), **TASK)
    method = build_method(run, make_problem(run, data.unseen, CPU, torch.float64))
    tensors = client_data(data.unseen, method, CPU, torch.float64)

    def forbidden(*_):
        raise AssertionError("a test row was read")

    class Unread(type(tensors.test)):
        gather = decode = forbidden

    blind = Unread(**{name: getattr(tensors.test, name) for name in tensors.test.__dataclass_fields__})
    tensors = replace(tensors, test=blind, global_test=forbidden)
    done, result = engine_unseen.personalised(method, state, tensors, simulation.settings, [0, 4], 2)
    with pytest.raises(AssertionError, match="test row"):
        done.global_test(result)


def test_training_is_the_same_with_and_without_clients_that_join():
    _, state, _ = trained("floral_1")
    alone = simulate("floral_1", data=make_data(), **TASK)
    assert all(torch.equal(t, state.tensors()[name]) for name, t in train(alone, 2).tensors().items())


def test_sizes_are_those_that_all_have_and_at_last_all_rows_of_the_smallest():
    assert engine_unseen.sizes_of((0, 1, 50, 5), np.array([35, 36])) == [0, 1, 5, 35]
    assert engine_unseen.sizes_of((), np.array([3])) == [3]
    assert engine_unseen.sizes_of((0, 35), np.array([35, 40])) == [0, 35]
