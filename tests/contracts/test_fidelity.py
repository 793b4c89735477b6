"""The switches of config/fidelity.yaml that change a method. Switches of the engine are tested with the engine."""

from __future__ import annotations

from dataclasses import replace

import federations
import pytest
import torch
from federations import make_data, simulate, train, view_of

from floral.engine.simulate import Simulation
from floral.toolkit.routes import fixed_logits


def test_the_published_floor_gives_every_adaptor_one_percent_on_top():
    """A linear model: base + a_c + 0.01 Σ of the others, not renormalised."""
    data = make_data(shape=(4,), clusters=3)
    how = {"model": "linear", "data": data, "params": {"rank": 2}}
    simulation = simulate("floral_1", **how)
    state = train(simulation)
    x = torch.rand(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def outputs(simulation, cluster, adaptors=None):
        view = view_of(simulation, state, 0)
        logits = torch.full((3,), -100.0, dtype=torch.float64)
        logits[cluster] = 0.0
        view |= {"router": {"logits": logits}} | ({} if adaptors is None else {"adaptors": adaptors})
        return simulation.method.predict(view, x, None, None)[0]

    none = {name: torch.zeros_like(tensor) for name, tensor in state.values["adaptors"].items()}
    base = outputs(simulation, 0, none)
    alone = [outputs(simulation, c) - base for c in range(3)]
    floored = simulate("floral_1", switches={"mixture_floor": 0.01}, **how)
    expected = base + alone[0] + 0.01 * (alone[1] + alone[2])
    torch.testing.assert_close(outputs(floored, 0), expected, rtol=0, atol=1e-12)
    assert float(alone[1].abs().max()) > 1e-3


@pytest.mark.parametrize(("kind", "divisor"), [("plain", 1.0), ("forward", 4.0)])
def test_the_published_aggregation_ignores_the_temperature(kind, divisor):
    simulation = simulate("floral_1", params={"temperature": 4.0}, switches={"aggregation_route": kind}, clusters=3)
    logits = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    found = simulation.method.routing.log_route({"router": {"logits": logits}})
    torch.testing.assert_close(found, torch.log_softmax(logits / divisor, -1))


@pytest.mark.parametrize(("kind", "sharper"), [("minimise", True), ("maximise", False)])
def test_the_sign_of_the_entropy_term(kind, sharper):
    """From the same start, minimising sharpens the routes that maximising flattens."""
    how = {"lr": 0.0, "router_lr": 1.0, "switches": {"entropy_sign": kind}}
    simulation = simulate("floral_1", params={"entropy": 1.0, "noise": 0.0}, **how)
    state = simulation.start()
    state.values["router"]["logits"][:, 0] = 1.0
    before = torch.softmax(state.values["router"]["logits"], -1).max(-1).values
    simulation.train(state, 1)
    after = torch.softmax(state.values["router"]["logits"], -1).max(-1).values
    cohort = simulation.cohort(1)
    assert bool(((after > before) if sharper else (after < before))[cohort].all())


@pytest.mark.parametrize(("kind", "share"), [("client", 0.1), ("server", 1.0)])
def test_the_published_server_moves_adaptors_by_the_clients_lr(kind, share):
    """lr 0.1: a tenth of the averaged update, the base all of it."""
    how = {"participation": 1.0, "switches": {"adaptor_server_lr": kind, "preconditioner": False}}
    simulation, full = (
        simulate("floral_10", **how),
        simulate("floral_10", participation=1.0, switches={"preconditioner": False}),
    )
    start, end, whole = simulation.start(), train(simulation, 1), train(full, 1)
    for name, old in start.values["adaptors"].items():
        expected = old + share * (whole.values["adaptors"][name] - old)
        torch.testing.assert_close(end.values["adaptors"][name], expected, rtol=0, atol=1e-12)
    federations.assert_close(end.values["base"], whole.values["base"], 1e-12)


def test_the_preconditioner_changes_the_factors_only():
    """After one step from the same start: base, biases and router are the same with and without it."""
    on, off = (
        train(simulate("floral_10", batch=64, switches={"preconditioner": switch}), 1).values
        for switch in (True, False)
    )
    federations.assert_close(on["base"], off["base"], 1e-12)
    federations.assert_close(on["router"], off["router"], 1e-12)
    for name in on["adaptors"]:
        same = torch.allclose(on["adaptors"][name], off["adaptors"][name], atol=1e-12)
        # B starts at zero, so the gradient of A is zero at the first step, preconditioned or not
        assert same is not name.endswith(".B")


def test_a_fixed_route_needs_one_adaptor_alone():
    """With no floor the other adaptors weigh 4e-44: holding only one's own gives the same model, and sends less."""
    own, learned = simulate("floral_1_optimal"), simulate("floral_1")
    given = {"logits": fixed_logits(own.data.cluster, own.settings.clusters)}
    router = replace(learned.method.groups["router"], fixed=True, init=lambda: given)
    method = replace(learned.method, groups={**learned.method.groups, "router": router})
    full = Simulation(method, learned.data, learned.settings, learned.execution)
    found, expected = train(own), train(full)
    for group in ("base", "adaptors"):
        for name, tensor in expected.values[group].items():
            torch.testing.assert_close(found.values[group][name], tensor, rtol=0, atol=1e-10)
    assert own.costs(found).sent_down < full.costs(expected).sent_down
