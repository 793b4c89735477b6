"""What costs.count bills is what a real message weighs: safetensors of what one client of the engine gets and sends."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from federations import MODELS, VARIANTS, buildable, simulate, train
from safetensors.torch import save

from floral import config
from floral.engine.costs import BYTES_PER_FLOAT
from floral.engine.state import one, view
from floral.spec import Scope

CLIENT = 0
CASES = [pytest.param(v, m, id=f"{v}-{m}") for v in VARIANTS for m in MODELS if buildable(v, m)]


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
    return one(*view(simulation.method, state.values, simulation.data.learner[ids], ids))


def download(simulation, state):
    """What the client cannot have from its own past: what others changed of what it sees."""
    before = seen_by(simulation, simulation.start())
    seen = {
        group: {name: tensor for name, tensor in params.items() if not torch.equal(tensor, before[group][name])}
        for group, params in seen_by(simulation, state).items()
        if simulation.method.groups[group].scope is not Scope.PRIVATE
    }
    return flat(seen)


def alone(simulation, state):
    """What the engine adds up in a round of the client alone, p = 1."""
    return simulation.train_chunk(state, 4, np.array([CLIENT]), torch.ones(1, dtype=torch.float64))


def summed(method, trained):
    """What the server is given to add: of a CLUSTERED group the slices that weigh something, each once where the method
    sends one for several."""

    def sent(group, tensor):
        if method.groups[group].scope is not Scope.CLUSTERED:
            return tensor
        weighed = tensor[trained.mean.mass > 0]
        return torch.unique(weighed, dim=0) if method.picks else weighed

    return {g: {n: sent(g, tensor) for n, tensor in params.items()} for g, params in trained.mean.sums.items()}


def flat(values):
    return {f"{group}/{name}": tensor for group, params in values.items() for name, tensor in params.items()}


def upload(simulation, state):
    """What is added up of the client, and the PRIVATE values that its weights are a function of."""
    method, trained = simulation.method, alone(simulation, state)
    sums = summed(method, trained)
    route = {
        group: trained.values[group] for group, (_, up) in (method.sends or {}).items() if up and group not in sums
    }
    return flat(sums | route)


@pytest.mark.parametrize(("variant", "model"), CASES)
def test_bytes_are_those_of_a_serialised_message(variant, model):
    simulation = simulate(variant, model=model, clusters=3)
    state = train(simulation)
    counted = simulation.costs(state)
    assert BYTES_PER_FLOAT * counted.sent_down == weight(download(simulation, state))
    pooled = simulation.method.pool is not None or simulation.method.phases == ()
    assert BYTES_PER_FLOAT * counted.sent_up == (0 if pooled else weight(upload(simulation, state)))
    assert counted.bytes_per_client == BYTES_PER_FLOAT * (counted.sent_down + counted.sent_up)


@pytest.mark.parametrize("variant", VARIANTS)
def test_kept_and_trained_are_what_the_engine_keeps_and_changes(variant):
    simulation = simulate(variant, clusters=3)
    method, state = simulation.method, train(simulation)
    counted, seen = simulation.costs(state), seen_by(simulation, state)
    own = {name: params for name, params in seen.items() if method.groups[name].scope is Scope.PRIVATE}
    assert BYTES_PER_FLOAT * counted.kept_private == (0 if method.pool else weight(flat(own)))
    if method.phases == ():
        assert counted.trainable_per_client == 0
        return
    trained = alone(simulation, state)
    after = {name: {n: t[0] for n, t in params.items()} for name, params in trained.values.items()}
    if method.upload is None:  # which else puts something in the place of what was trained
        after |= summed(method, trained)
    before = flat(seen)
    changed = {
        name: tensor
        for name, tensor in flat({g: params for g, params in after.items() if not method.groups[g].statistic}).items()
        if tensor.shape != before[name].shape or not torch.equal(tensor, before[name])
    }
    assert BYTES_PER_FLOAT * counted.trainable_per_client == weight(changed)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_server_weighs_with_nothing_that_was_not_sent(variant):
    """Else a route would travel unbilled: what a client keeps is NaN here, and its weights are the same."""
    simulation = simulate(variant, clusters=3)
    method, state = simulation.method, train(simulation)
    if method.log_route is None:
        return
    seen = seen_by(simulation, state)
    sent = {group for group, (_, up) in (method.sends or {}).items() if up}
    kept = {group for group in seen if method.groups[group].scope is Scope.PRIVATE and group not in sent}
    hidden = {g: {n: t * torch.nan if g in kept else t for n, t in params.items()} for g, params in seen.items()}
    torch.testing.assert_close(method.log_route(hidden), method.log_route(seen), rtol=0, atol=0)


# ------------------------------------------------------------------------------- what the server is said to see


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_server_is_said_to_see_what_it_is_sent(variant):
    simulation = simulate(variant, clusters=3)
    method, sees = simulation.method, config.variant(variant).server_sees
    costs = simulation.costs(simulation.start())
    private = {name for name, group in method.groups.items() if group.scope is Scope.PRIVATE}
    sends_route = method.log_route is not None and any(
        up for g, (_, up) in (method.sends or {}).items() if g in private
    )
    assert ("routes" in sees) == (sends_route or method.member is not None)
    assert ("rows" in sees) == (method.pool is not None or method.prepare is not None)
    assert ("sizes" in sees) == (costs.sent_up > 0), "a mean with weights p(k) takes the sizes"
    assert sees or costs.bytes_per_client == 0


def test_only_sums_are_compatible_with_secure_aggregation():
    found = {name: config.variant(name).secure_aggregation for name in ("fedavg", "floral_1", "local", "centralised")}
    assert found == {"fedavg": True, "floral_1": True, "local": True, "centralised": False}
