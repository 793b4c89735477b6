"""What a round may be beside one joint training: phases that take turns, a server that sees more than means."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from federations import SIZES, assert_equal_states, simulate, train, trained

from floral.core.spec import Group, Optimiser, Phase, Refused, Scope, ServerStep
from floral.engine.execution import choose

EXACT = 1e-12
WHERE = [
    {"backend": "loop"},
    {"backend": "vmap", "chunk": 3},
    {"backend": "batched", "chunk": 2, "workers": 2},
]
each_backend = pytest.mark.parametrize("how", WHERE, ids=lambda how: how["backend"])


def odd(round, rounds):
    return round % 2 == 1


def even(round, rounds):
    return round % 2 == 0


def in_turns(method):
    """FLoRAL that trains its base in odd rounds, adaptors and router in even ones."""
    return replace(method, phases=(Phase(train=("base",), when=odd), Phase(train=("adaptors", "router"), when=even)))


# ------------------------------------------------------------------------------------------- phases in turns


@each_backend
def test_a_round_changes_only_the_groups_of_its_phases(how):
    simulation = simulate("floral_1", change=in_turns, **how)
    state = simulation.start()
    for round in (1, 2, 3, 4):
        before = {name: tensor.clone() for name, tensor in state.tensors().items()}
        simulation.train(state, round)
        changed = {
            name.split("/")[1] for name, tensor in state.tensors().items() if not torch.equal(tensor, before[name])
        }
        assert changed == ({"base"} if round % 2 else {"adaptors", "router"})


@pytest.mark.parametrize("how", WHERE[1:], ids=lambda how: how["backend"])
def test_every_backend_takes_turns_alike(how):
    assert_equal_states(
        trained("floral_1", 4, change=in_turns), trained("floral_1", 4, change=in_turns, **how), tolerance=1e-10
    )


def test_a_phase_that_always_takes_place_is_a_phase():
    def always(method):
        return replace(method, phases=(Phase(train=method.trained, when=lambda round, rounds: True),))

    assert_equal_states(trained("floral_1"), trained("floral_1", change=always), tolerance=0)


def test_a_round_without_a_phase_is_an_error():
    simulation = simulate("fedavg", change=lambda method: replace(method, phases=(Phase(train=("base",), when=odd),)))
    state = simulation.start()
    simulation.train(state, 1)
    with pytest.raises(ValueError, match="no phase of the method takes place in round 2"):
        simulation.train(state, 2)


def test_what_a_round_sends_is_what_it_trains_and_what_changed_before_it():
    simulation = simulate("floral_1", change=in_turns)
    state = simulation.start()
    base, adaptors = (sum(tensor.numel() for tensor in state.values[group].values()) for group in ("base", "adaptors"))
    first, second = simulation.costs_of(state, 1), simulation.costs_of(state, 2)
    assert (first.sent_down, first.trainable_per_client) == (base, base)
    assert second.sent_down == base + adaptors
    assert second.sent_up - first.sent_up == adaptors - base  # the router's logits are declared for every round
    mean = simulation.costs(state)
    assert mean.sent_down == round((first.sent_down + 3 * second.sent_down) / 4)


def test_a_choice_measures_every_kind_of_round():
    """A refusal in a later kind of round must be met before the run begins, not in the middle of it."""

    def refuses(view, x, noise, mask):
        return x.flatten(1)[:, :5] * torch.rand(()) + sum(t.sum() for t in view["base"].values()), {}

    def change(method):
        return replace(
            method, phases=(Phase(train=("base",), when=odd), Phase(train=("base",), when=even, predict=refuses))
        )

    simulation = simulate("fedavg", change=change, rounds=100_000)
    assert simulation.kinds() == [1, 2]
    with pytest.raises((Refused, RuntimeError), match="random"):
        choose(simulation, simulation.start(), "batched")


# ------------------------------------------------------------------------------------------------- the server


def spying(seen):
    """FedAvg whose server sees each client's last bias, and doubles the averaged one."""

    def server(served):
        seen.append(served)
        after = {name: 2 * tensor if name == "out.bias" else tensor for name, tensor in served.after["base"].items()}
        return {"base": after, "noted": {"times": served.before["noted"]["times"] + 1}}

    def change(method):
        bias = next(name for name in method.groups["base"].init() if name.endswith("bias"))
        noted = Group(scope=Scope.FROZEN, init=lambda: {"times": torch.zeros(())})
        groups = {**method.groups, "noted": noted}
        return replace(
            method, groups=groups, server=ServerStep(client_vector=lambda view: view["base"][bias] + 0, update=server)
        )

    return change


@each_backend
def test_the_server_sees_every_client_in_the_cohorts_order(how):
    """Their p(k)-weighted sum is the mean, whatever chunks and workers they came from."""
    seen = []
    simulation = simulate("fedavg", change=spying(seen), participation=0.75, **how)
    state = train(simulation, 2)
    assert float(state.values["noted"]["times"]) == 2
    for round, served in enumerate(seen, start=1):
        assert served.client_vectors.clients.tolist() == simulation.cohort(round).tolist()
        name = next(name for name in served.means["base"] if name.endswith("bias"))
        mean = served.client_vectors.share @ served.client_vectors.vectors
        torch.testing.assert_close(mean, served.means["base"][name], rtol=0, atol=EXACT)
        sizes = torch.tensor(SIZES)[served.client_vectors.clients].double()
        torch.testing.assert_close(served.client_vectors.share, sizes / sizes.sum(), rtol=0, atol=EXACT)


@pytest.mark.parametrize("how", WHERE[1:], ids=lambda how: how["backend"])
def test_what_the_server_puts_in_place_is_what_clients_receive(how):
    assert_equal_states(
        trained("fedavg", change=spying([])), trained("fedavg", change=spying([]), **how), tolerance=1e-10
    )


def test_server_momentum_is_torch_momentum_on_the_pseudo_gradient():
    """Against torch.optim.SGD(momentum), fed old minus mean, over 4 rounds."""
    means = []

    def change(method):
        optimiser = Optimiser(kind="momentum", lr=0.7, betas=(0.8, 0.0))
        return replace(
            method,
            server=ServerStep(optimiser=optimiser, update=lambda served: means.append(served.means["base"]) or {}),
        )

    simulation = simulate("fedavg", change=change)
    state = simulation.start()
    reference = {name: tensor.clone().requires_grad_() for name, tensor in state.values["base"].items()}
    sgd = torch.optim.SGD(reference.values(), lr=0.7, momentum=0.8)
    for round in (1, 2, 3, 4):
        simulation.train(state, round)
        for name, parameter in reference.items():
            parameter.grad = parameter.detach() - means[-1][name]
        sgd.step()
        for name, parameter in reference.items():
            torch.testing.assert_close(state.values["base"][name], parameter.detach(), rtol=0, atol=EXACT)
