"""What costs.count bills is what a real message weighs: safetensors of what one client of the engine gets and sends."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from federations import METHODS, OF_EACH_KIND, VARIANTS, simulate, train
from safetensors.torch import save

from floral.config import catalogue
from floral.core.spec import Batch, Scope
from floral.core.units import BYTES_PER_FLOAT
from floral.engine.before_rounds import BeforeRounds
from floral.engine.costs import needed_to_predict
from floral.engine.simulate import Simulation
from floral.engine.state import State, client_view, view

CLIENT = 0
CASES = [(variant, None) for variant in METHODS] + [
    (variant, model) for variant in OF_EACH_KIND if variant != "private_norm" for model in ("cnn", "batch_norm")
]


def weight(message: dict[str, torch.Tensor]) -> int:
    """Bytes of the tensors of a serialised message: all but its header, which names them."""
    body = save({name: tensor.to(torch.float32).contiguous() for name, tensor in message.items()})
    header = int.from_bytes(body[:8], "little")
    told = {name: entry for name, entry in json.loads(body[8 : 8 + header]).items() if name != "__metadata__"}
    assert set(told) == set(message)
    return len(body) - 8 - header


def seen_by(simulation, state):
    """What the client sees, as the engine gathers it."""
    ids = torch.tensor([CLIENT])
    return client_view(*view(simulation.method, state.values, simulation.data.pool_of_client[ids], ids))


def alone(simulation, state, round):
    """What the engine adds up in a round of the client alone, p = 1."""
    return simulation.train_chunk(state, round, np.array([CLIENT]), torch.ones(1, dtype=torch.float64))


def declared(simulation, round):
    """Floats (down, up) by group that the method and the phases of a round state."""
    return dict(simulation.method.cost.floats_sent) | {
        group: floats for phase in simulation.phases(round) for group, floats in phase.floats_sent.items()
    }


def summed(simulation, trained):
    """What the server is given to add: of a CLUSTERED group the slices that weigh something by the engine's own rule,
    each once where the method sends one for several."""
    method = simulation.method
    _, kept = trained.mean.result(simulation.settings.empty_cluster, method)

    def sent(group, tensor):
        if method.groups[group].scope is not Scope.CLUSTERED:
            return tensor
        weighed = tensor[~kept]
        return torch.unique(weighed, dim=0) if method.routing.serves_one_cluster else weighed

    return {g: {n: sent(g, tensor) for n, tensor in params.items()} for g, params in trained.mean.sums.items()}


def flat(values):
    return {f"{group}/{name}": tensor for group, params in values.items() for name, tensor in params.items()}


def download(simulation, earlier, state, round):
    """The averaged groups that others changed in the round before, or at all if this round changes them, too; of these
    the slices that its round depends on: made NaN, they tell, or where a client picks one, made better than its own."""
    method, seen = simulation.method, seen_by(simulation, state)
    now = method.changing(simulation.phases(round))
    start, last = (seen_by(simulation, some) for some in (simulation.start(), earlier))
    before = {group: start[group] if group in now else last[group] for group in seen}
    unused, from_memory = ignored(simulation, state, round), made_by_server(simulation, state)

    def outcome(state):
        trained = alone(simulation, state, round)
        sums = {group: params for group, params in summed(simulation, trained).items() if group not in unused}
        return {**flat(trained.values), **flat(sums)}

    expected = outcome(state)

    def matters(group, slice_, put):
        values = {name: tensor.clone() for name, tensor in state.values[group].items()}
        for name, value in put.items():
            values[name][slice_] = value
        got = outcome(State({**state.values, group: values}))
        return any(not torch.equal(expected[name], got[name]) for name in expected)

    def used(group, c, params):
        if matters(group, c, dict.fromkeys(params, torch.nan)):
            return True
        if not (method.routing.serves_one_cluster and method.assign):
            return False
        trained = alone(simulation, state, round)  # one client: its sums are its values
        best = route(simulation, state, trained).argmax()
        return matters(group, c, {name: trained.mean.sums[group][name][best] for name in params})

    message = {}
    for group, params in seen.items():
        scope = method.groups[group].scope
        if scope is Scope.CLUSTERED and method.routing.cluster_of_client is None:
            held = [c for c in range(len(next(iter(params.values())))) if used(group, c, params)]
            params, start = ({n: t[held] for n, t in some.items()} for some in (params, before[group]))
        else:
            start = before[group]
        changed = any(not torch.equal(tensor, start[name]) for name, tensor in params.items())
        if scope in (Scope.SHARED, Scope.CLUSTERED) and changed:
            still = [name for name, tensor in params.items() if torch.equal(tensor, start[name])]
            left = {name for name in still if not params[name].any()}  # all know that adaptors begin with zeros
            if scope is Scope.SHARED:  # where the method says what goes down, the tensors that are as they were do not
                stated = group in declared(simulation, round)
                left |= {name for name in still if stated or not matters(group, ..., {name: torch.nan})}
            message[group] = {name: tensor for name, tensor in params.items() if name not in left}
        goes_down = declared(simulation, round).get(group, (0, 0))[0] > 0
        changed_after = scope is Scope.PRIVATE and goes_down and changed_by_server(simulation, state, round, group)
        if changed_after or group in from_memory:
            message[group] = params
    return flat(message)


def changed_by_server(simulation, state, round, group):
    """Whether the server's update gives a client of the round other PRIVATE values than the client has trained."""
    if simulation.method.server.update is None:
        return False
    after = copied(state)
    simulation.train(after, round)
    k = int(simulation.cohort(round)[0])
    trained = simulation.train_chunk(state, round, np.array([k]), torch.ones(1, dtype=torch.float64)).values
    return group in trained and any(
        not torch.equal(after.values[group][name][k], tensor[0]) for name, tensor in trained[group].items()
    )


def made_by_server(simulation, state):
    """PRIVATE groups that a client trains from values that only the server can compute: from its own FROZEN memory."""
    method, seen = simulation.method, seen_by(simulation, state)
    if method.assign is None:
        return set()
    memory = {name for name, group in method.groups.items() if group.scope is Scope.FROZEN and group.statistic}
    unknown = {name: {key: torch.full_like(t, torch.nan) for key, t in seen[name].items()} for name in memory}
    held = simulation.data.train.of_clients(simulation.data.pool_of_client[[CLIENT]].numpy())
    assigned = method.assign({**seen, **unknown}, Batch(held.x[0], held.y[0], held.mask[0]))
    return {group for group, params in assigned.items() if any(t.isnan().any() for t in params.values())}


def ignored(simulation, state, round):
    """Groups that are said not to travel up in this round, and that it leaves as they were whoever took part."""
    after = copied(state)
    simulation.train(after, round)
    before = state.values
    return {
        group
        for group, (_, up) in declared(simulation, round).items()
        if not up and all(torch.equal(tensor, before[group][name]) for name, tensor in after.values[group].items())
    }


def route(simulation, state, trained):
    """log π_k [C], which the server weighs the client's update with."""
    after = {group: {n: t[0] for n, t in params.items()} for group, params in trained.values.items()}
    return simulation.method.routing.log_route({**seen_by(simulation, state), **after})


def told(simulation, state, trained, group):
    """A PRIVATE group as the server is told it: its values, or what they make of the weights where that is shorter:
    log π_k [C], and of a client that picks one cluster the number of that."""
    values = trained.values[group]
    if group not in weighs_with(simulation, state):
        return values
    weights = route(simulation, state, trained)
    if simulation.method.routing.serves_one_cluster and weights.softmax(0).max() == 1:
        weights = weights.argmax().reshape(1)
    return values if sum(t.numel() for t in values.values()) <= weights.numel() else {"route": weights}


def upload(simulation, state, round):
    """What is added up of the client, the PRIVATE values that its weights are a function of, and what the server sees
    of it besides, if neither this nor what the client received tells it."""
    trained, unused = alone(simulation, state, round), ignored(simulation, state, round)
    sums = {group: params for group, params in summed(simulation, trained).items() if group not in unused}
    own = [group for group, (_, up) in declared(simulation, round).items() if up and group not in sums]
    message = flat(sums | {group: told(simulation, state, trained, group) for group in own})
    if trained.client_vectors is not None:
        known = [tensor.flatten() for tensor in message.values()]
        if set(own) & weighs_with(simulation, state):
            known.append(route(simulation, state, trained))
        received = {g: params for g, params in seen_by(simulation, state).items() if g not in trained.values}
        known += [tensor.flatten() for tensor in flat(received).values()]
        known.append(torch.zeros(1))  # components that the client does not have
        if not torch.isin(trained.client_vectors, torch.cat(known)).all():
            message["client_vector"] = trained.client_vectors
    return message


TRUNCATED = ("hetlora", "hetlora_trained_base")
"""Variants whose clients get and send r_k components of an adaptor that the simulation pads with zeros; they are billed
the mean over all clients, with the ranks of the start."""


ASSIGNED = ("fedamole", "fedamole_trained_base")
"""Variants whose clients get and send only the experts that have chosen them, of all that the simulation holds; they
are billed the mean over all clients, rounded once for the experts and once for what the clients report of them."""


def of_held_experts(message, state, client):
    """The message with the experts of a client only: slices of `experts`, and of what it reports of each expert."""

    def cut(name, tensor):
        group, _, key = name.partition("/")
        layer = key.rpartition(".")[0]
        held = state.values["next"][layer][client] > 0 if group in ("experts", "sent") else None
        if group == "experts":
            return tensor[held]
        return tensor[:, held] if group == "sent" and key.endswith(".experts") else tensor  # [1, E, r]

    return {name: cut(name, tensor) for name, tensor in message.items()}


def truncated(message, rank):
    """The message without the adaptor's components from `rank` on: rows of A, columns of B."""

    def cut(name, tensor):
        if not name.startswith("adaptor/") or name.endswith(".bias"):
            return tensor
        return tensor[:rank] if name.endswith(".A") else tensor[:, :rank]

    return {name: cut(name, tensor) for name, tensor in message.items()}


def ranks(state):
    return state.values["rank"]["components"]


def played(variant, model=None):
    """(simulation, state two rounds before and before the round, round) of a late round of every kind.

    Several tests share the states, and must not change them.
    """
    return late_rounds(variant, model)


@cache
def late_rounds(variant, model):
    simulation = simulate(variant, model=model, clusters=3)
    if min(Counter(map(simulation.phases, range(1, simulation.settings.rounds + 1))).values(), default=0) == 1:
        simulation = simulate(variant, model=model, clusters=3, rounds=4 * simulation.settings.rounds)
    state = simulation.start()
    if simulation.method.phases == ():
        return [(simulation, state, state, 1)]
    last = {simulation.phases(round): round for round in range(2, simulation.settings.rounds + 1)}
    states = {0: copied(state)}
    for round in range(1, max(last.values())):
        simulation.train(state, round)
        states[round] = copied(state)
    return [(simulation, states[round - 2], states[round - 1], round) for round in last.values()]


def copied(state):
    return State.of({name: tensor.clone() for name, tensor in state.tensors().items()})


@pytest.mark.parametrize(("variant", "model"), CASES)
def test_bytes_are_those_of_a_serialised_message(variant, model):
    for simulation, earlier, state, round in played(variant, model):
        counted = simulation.costs_of(state, round)
        assert counted.bytes_per_client == BYTES_PER_FLOAT * (counted.sent_down + counted.sent_up)
        if simulation.method.phases == () or simulation.method.pool is not None:
            assert counted.bytes_per_client == 0
            continue
        for floats, message in (
            (counted.sent_up, upload(simulation, state, round)),
            (counted.sent_down, download(simulation, earlier, state, round)),
        ):
            if variant in ASSIGNED:
                each = [weight(of_held_experts(message, state, k)) for k in range(simulation.data.clients)]
                assert abs(BYTES_PER_FLOAT * floats - sum(each) / len(each)) <= BYTES_PER_FLOAT
            elif variant in TRUNCATED:
                each = [weight(truncated(message, int(rank))) for rank in ranks(simulation.start())]
                assert abs(BYTES_PER_FLOAT * floats - sum(each) / len(each)) <= BYTES_PER_FLOAT / 2
            else:
                assert BYTES_PER_FLOAT * floats == weight(message)


@pytest.mark.parametrize("variant", TRUNCATED)
def test_a_client_with_a_smaller_rank_sends_and_uses_no_further_components(variant):
    simulation = simulate(variant)
    state = train(simulation, simulation.settings.rounds - 1)
    client = int(ranks(state).argmin())
    rank, held = int(ranks(state)[client]), state.values["adaptor"]

    def vector(adaptor):
        changed = State({**state.values, "adaptor": adaptor})
        share = torch.ones(1, dtype=torch.float64)
        return simulation.train_chunk(changed, simulation.settings.rounds, np.array([client]), share).client_vectors

    mine = {name.removeprefix("adaptor/"): t for name, t in truncated(flat({"adaptor": held}), rank).items()}
    assert sum(t.numel() for t in mine.values()) < sum(t.numel() for t in held.values())
    other = {name: t + 1 for name, t in held.items()}
    for name, tensor in mine.items():
        other[name][tuple(map(slice, tensor.shape))] = tensor
    sent = vector(held)
    assert torch.equal(sent, vector(other))
    assert int((sent != 0).sum()) <= sum(t.numel() for t in mine.values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_kept_and_trained_are_what_the_engine_keeps_and_changes(variant):
    for simulation, _, state, round in played(variant):
        method, counted, seen = simulation.method, simulation.costs_of(state, round), seen_by(simulation, state)
        own = {name: params for name, params in seen.items() if method.groups[name].scope is Scope.PRIVATE}
        assert BYTES_PER_FLOAT * counted.kept_private == (0 if method.pool else weight(flat(own)))
        if method.phases == ():
            assert counted.trainable_per_client == 0
            continue
        trained = alone(simulation, state, round)
        after = {name: {n: t[0] for n, t in params.items()} for name, params in trained.values.items()}
        # where a client has no slice of its own, all are trained, whatever they weigh in the end
        one_slice = method.routing.serves_one_cluster or method.routing.cluster_of_client is not None
        averaged = summed(simulation, trained) if one_slice else trained.mean.sums
        after |= {name: params for name, params in averaged.items() if name not in method.server.upload}
        changed = {
            group: params
            for group, params in after.items()
            if not method.groups[group].statistic
            and any(t.shape != seen[group][n].shape or not torch.equal(t, seen[group][n]) for n, t in params.items())
        }
        assert BYTES_PER_FLOAT * counted.trainable_per_client == weight(flat(changed))


@pytest.mark.parametrize("variant", ["apfl", "ditto", "fedavg_finetune", "fedsoft", "pfedlora", "pfedme"])
def test_a_client_with_a_model_of_its_own_serves_that_model_alone(variant):
    simulation, plain = (simulate(name, model="mlp") for name in (variant, "fedavg"))
    model = plain.costs(plain.start()).base
    assert simulation.costs(simulation.start()).served == model


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_client_predicts_with_what_it_serves(variant):
    """Also in a run that has diverged, whose values are all NaN."""
    simulation = simulate(variant)
    state = train(simulation, simulation.settings.rounds - 1) if simulation.method.phases != () else simulation.start()
    seen, held = seen_by(simulation, state), simulation.held(np.array([0]))
    samples = Batch(held.x[0], held.y[0], held.mask[0])
    needed = needed_to_predict(simulation.method, seen, samples)
    unknown = {group: {n: torch.full_like(t, torch.nan) for n, t in params.items()} for group, params in seen.items()}
    statistics = simulation.method.statistics
    kept = {group: seen[group] if group in needed or group in statistics else unknown[group] for group in seen}
    outputs = [predictions(simulation.method, values, samples) for values in (seen, kept)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
    diverged = {group: seen[group] if group in statistics else unknown[group] for group in seen}
    assert needed_to_predict(simulation.method, diverged, samples) == needed


def predictions(method, values, samples):
    """What a client with these values and training samples predicts for them."""
    if method.before_predictions is not None:
        values = {**values, **method.before_predictions(values, samples)}
    return method.predict(values, samples.x, None, None)[0]


# ------------------------------------------------------------------------------- what the server is said to see


def weighs_with(simulation, state):
    """The PRIVATE groups that the weights of the client's update are a function of."""
    return read_by(simulation.method.routing.log_route, simulation, state)


def read_by(log_route, simulation, state):
    """The PRIVATE groups that a route is a function of: those that, made NaN, tell."""
    method, seen = simulation.method, seen_by(simulation, state)
    if log_route is None:
        return set()
    usual = log_route(seen)

    def tells(group):
        hidden = {name: tensor * torch.nan for name, tensor in seen[group].items()}
        return not torch.equal(log_route({**seen, group: hidden}), usual)

    return {group for group in seen if method.groups[group].scope is Scope.PRIVATE and tells(group)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_server_weighs_with_nothing_that_it_was_not_sent_or_has_made(variant):
    """Else a route would travel unbilled."""
    for simulation, _, state, round in played(variant):
        method = simulation.method
        if method.phases == () or not any(
            method.groups[g].scope is Scope.CLUSTERED for g in alone(simulation, state, round).mean.sums
        ):
            continue  # nothing is weighed with a route
        sent = {group for group, (_, up) in declared(simulation, round).items() if up}
        for group in weighs_with(simulation, state) - sent:
            trained, seen = alone(simulation, state, round).values, seen_by(simulation, state)[group]
            made_by_client = group in trained and any(not torch.equal(t, trained[group][n][0]) for n, t in seen.items())
            fixed = simulation.method.groups[group].fixed
            assert fixed or (simulation.method.server.update is not None and not made_by_client), f"{group} is not sent"


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_server_is_said_to_see_what_it_is_sent(variant):
    sees = catalogue.variant(variant).server_sees
    assert ("routes" in sees) == any(
        bool(weighs_with(simulation, state))
        or simulation.method.routing.cluster_of_client is not None
        or bool(
            set_by_server(simulation, state, round)
            & read_by(simulation.method.routing.served_log_route, simulation, state)
        )
        for simulation, _, state, round in played(variant)
    )
    for simulation, _, state, _ in played(variant):
        method, sent_up = simulation.method, simulation.costs(state).sent_up
        in_many_means = method.routing.serves_one_cluster and bool(
            method.server.upload
        )  # one model sent, which each mean weighs otherwise
        assert ("updates" in sees) == (method.server.client_vector is not None or in_many_means)
        assert ("rows" in sees) == (
            method.pool is not None or reads_samples(simulation) or sends_statistics(simulation, state)
        )
        assert ("sizes" in sees) == (sent_up > 0), "a mean with weights p(k) takes the sizes"


def set_by_server(simulation, state, round):
    """The PRIVATE groups that the server's update of a round sets."""
    if simulation.method.server.update is None:
        return set()
    groups = set()

    def watched(served):
        values = simulation.method.server.update(served)
        groups.update(values)
        return values

    server = replace(simulation.method.server, update=watched)
    method = replace(simulation.method, server=server)
    after = copied(state)
    Simulation(method, simulation.data, simulation.settings, simulation.execution).train(after, round)
    return {group for group in groups if method.groups[group].scope is Scope.PRIVATE}


def reads_samples(simulation):
    """Whether initial values are computed from the clients' samples themselves."""
    calls = []

    class Watched(BeforeRounds):
        def samples(self):
            calls.append("samples")
            return super().samples()

    if simulation.method.prepare is not None:
        simulation.method.prepare(Watched(simulation, simulation.start()))
    return bool(calls)


def sends_statistics(simulation, state):
    """Whether a client's own vector depends on its samples in another way than by training: other samples tell."""
    method = simulation.method
    if method.after_training is None or method.server.client_vector is None:
        return False
    view, held = seen_by(simulation, state), simulation.held(np.array([CLIENT]))
    received = {group: {name: t + 1 for name, t in params.items()} for group, params in view.items()}
    sent = [
        method.server.client_vector(
            {**view, **method.after_training(view, received, Batch(x, held.y[0], held.mask[0]))}
        )
        for x in (held.x[0], held.x[0] + 1)
    ]
    return not torch.equal(*sent)


def test_only_sums_are_compatible_with_secure_aggregation():
    found = {
        name: catalogue.variant(name).secure_aggregation
        for name in ("fedavg", "floral_1", "local", "cfl", "centralised")
    }
    assert found == {"fedavg": True, "floral_1": True, "local": True, "cfl": False, "centralised": False}
