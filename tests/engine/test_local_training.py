"""Local training against hand-written loops: batches, epochs, phases, penalties, own steps, draws."""

from __future__ import annotations

from dataclasses import replace

import federations
import numpy as np
import pytest
import torch
from federations import OF_EACH_KIND, SIZES, assert_equal_states, make_data, simulate, train, trained

from floral.core.spec import Phase, Scope
from floral.engine.client_data import plan
from floral.toolkit import parts

EXACT = 1e-10


# ------------------------------------------------------------------------------------- the textbook loop


def textbook(simulation, rounds, epochs, batch, lr, mu=0.0):
    """FedAvg (FedProx with mu > 0) of an MLP with torch.nn and torch.optim, rows in stored order."""
    rows = simulation.data.train
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(16, 5), torch.nn.ReLU(), torch.nn.Linear(5, 5)
    ).double()
    names = dict(zip(["hidden.weight", "hidden.bias", "out.weight", "out.bias"], net.state_dict(), strict=True))
    server = {names[key]: value.clone() for key, value in simulation.start().values["base"].items()}
    losses = []
    for round in range(1, rounds + 1):
        cohort = simulation.cohort(round)
        total = sum(SIZES[k] for k in cohort)
        mean = {name: torch.zeros_like(value) for name, value in server.items()}
        loss_of_round = 0.0
        for k in cohort:
            net.load_state_dict(server)
            sgd = torch.optim.SGD(net.parameters(), lr=lr)
            x, y = rows.gather(torch.from_numpy(rows.index[k, : SIZES[k]]))
            steps = []
            for _ in range(epochs):
                for at in range(0, SIZES[k], batch):
                    sgd.zero_grad()
                    loss = torch.nn.functional.cross_entropy(net(x[at : at + batch]), y[at : at + batch])
                    for name, parameter in net.named_parameters():
                        loss = loss + mu / 2 * ((parameter - server[name]) ** 2).sum()
                    loss.backward()
                    sgd.step()
                    steps.append(loss.item())
            loss_of_round += SIZES[k] / total * sum(steps) / len(steps)
            for name, value in net.state_dict().items():
                mean[name] += SIZES[k] / total * value
        server = mean
        losses.append(loss_of_round)
    return {key: server[name] for key, name in names.items()}, losses


HOW = {"switches": {"batches": "fixed"}, "lr": 0.3}
BACKENDS = [pytest.param({"backend": "loop"}, id="loop"), pytest.param({"backend": "vmap", "chunk": 3}, id="vmap")]


@pytest.mark.parametrize("how", BACKENDS)
@pytest.mark.parametrize(("epochs", "batch"), [(1, 4), (2, 3), (1, 64)])
def test_fedavg_is_the_textbook_loop(how, epochs, batch):
    simulation = simulate("fedavg", epochs=epochs, batch=batch, **HOW, **how)
    state = simulation.start()
    losses = [float(simulation.train(state, round)[0]) for round in (1, 2, 3)]
    base, expected = textbook(simulation, 3, epochs, batch, 0.3)
    federations.assert_close(state.values["base"], base, EXACT)
    assert losses == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("how", BACKENDS)
def test_a_penalty_is_added_to_the_loss_and_sees_what_was_received(how):
    """FedProx, defined here: mu/2·‖w - received‖², against the textbook loop; mu = 0 is FedAvg."""

    def proximal(view, received, noise):
        return 0.5 * 0.7 * sum(((w - received["base"][name]) ** 2).sum() for name, w in view["base"].items())

    simulation = simulate("fedavg", epochs=2, change=lambda m: replace(m, penalty=proximal), **HOW, **how)
    base, _ = textbook(simulation, 3, 2, 4, 0.3, mu=0.7)
    federations.assert_close(train(simulation).values["base"], base, EXACT)
    assert not torch.equal(base["out.bias"], textbook(simulation, 3, 2, 4, 0.3)[0]["out.bias"])


@pytest.mark.parametrize("how", BACKENDS)
def test_a_penalty_on_private_state_sees_the_clients_own(how):
    """A local model tied to the value that its client began the round with: only later steps of a round differ."""

    def tied(view, received, noise):
        return 0.5 * sum(((w - received["base"][name]) ** 2).sum() for name, w in view["base"].items())

    plain = trained("local", **HOW, **how)
    state = train(simulate("local", change=lambda m: replace(m, penalty=tied), **HOW, **how))
    same = [torch.equal(state.values["base"]["out.bias"][k], plain.values["base"]["out.bias"][k]) for k in range(7)]
    one_step = [size <= 4 for size in SIZES]
    absent = [k not in {c for r in (1, 2, 3) for c in simulate("local").cohort(r)} for k in range(7)]
    assert same == [a or b for a, b in zip(one_step, absent, strict=True)]


@pytest.mark.parametrize("how", BACKENDS)
@pytest.mark.parametrize("variant", OF_EACH_KIND)
def test_the_default_step_is_sgd(variant, how):
    """Without preconditioning, the engine's step and `parts.sgd_step` as a method's local step give the same result."""
    how = {**how, "switches": {"preconditioner": False}}
    plain = trained(variant, **how)
    own = trained(variant, change=lambda m: replace(m, local_step=parts.sgd_step()), **how)
    assert_equal_states(own, plain, EXACT)


@pytest.mark.parametrize("how", BACKENDS)
def test_an_own_step_with_statistics_is_the_default_too(how):
    plain, own = (
        trained("fedavg", model="batch_norm", change=lambda m, s=s: replace(m, local_step=s), **how)
        for s in (None, parts.sgd_step())
    )
    assert_equal_states(own, plain, EXACT)


# ------------------------------------------------------------------------------------------------ phases


def phased(*phases):
    return lambda method: replace(method, phases=phases)


@pytest.mark.parametrize("how", BACKENDS)
def test_a_phase_trains_its_groups_only(how):
    simulation = simulate("floral_1", change=phased(Phase(train=("adaptors", "router"), epochs=2)), **how)
    start, end = simulation.start(), train(simulation)
    assert_equal_states_of("base", end, start, exactly=False)
    assert not torch.equal(end.values["adaptors"]["out.B"], start.values["adaptors"]["out.B"])


def assert_equal_states_of(group, ours, other, exactly=True):
    federations.assert_close(ours.values[group], other.values[group], 0.0 if exactly else 1e-14)


@pytest.mark.parametrize("how", BACKENDS)
def test_two_phases_of_all_groups_are_the_epochs_of_both(how):
    """Batches belong to (round, client, epoch), so they go on where the first phase stopped."""
    both = simulate("floral_1", epochs=3, params={"noise": 0.0}, **how)
    every = both.method.trained
    split = simulate(
        "floral_1",
        change=phased(Phase(train=every, epochs=1), Phase(train=every, epochs=2)),
        params={"noise": 0.0},
        **how,
    )
    assert_equal_states(train(split), train(both), 0.0)
    assert split.train(split.start(), 1)[1] == both.train(both.start(), 1)[1]


def test_phases_follow_each_other():
    """Base first, then adaptors at the moved base: by hand from two one-phase rounds of one client."""
    data = make_data((9,), clusters=1)
    how = {"data": data, "participation": 1.0, "switches": {"batches": "fixed"}, "params": {"noise": 0.0}}
    first = simulate("floral_1", change=phased(Phase(train=("base",))), **how)
    second = simulate("floral_1", change=phased(Phase(train=("adaptors",))), **how)
    together = simulate("floral_1", change=phased(Phase(train=("base",)), Phase(train=("adaptors",))), **how)
    state = train(first, 1)
    second.train(state, 1)
    assert_equal_states(train(together, 1), state, 1e-13)


def test_an_untrained_group_has_no_gradient_but_is_seen():
    """Training the adaptors only depends on the base's value."""
    alone = phased(Phase(train=("adaptors",)))
    zero = {"lr": 0.1}
    ours = trained("floral_1", change=alone, **zero)
    moved = trained("floral_1", change=lambda m: alone(scaled_base(m)), **zero)
    assert not torch.equal(ours.values["adaptors"]["out.B"], moved.values["adaptors"]["out.B"])


def scaled_base(method):
    base = method.groups["base"]
    scaled = replace(base, init=lambda: {key: 2 * t for key, t in base.init().items()})
    return replace(method, groups={**method.groups, "base": scaled})


# --------------------------------------------------------------------------------------- batches and draws


@pytest.mark.parametrize("reshuffle", [True, False])
def test_every_epoch_visits_every_row_of_a_client_once(reshuffle):
    rows = simulate("fedavg").data.train
    pools = np.array([4, 0, 3])
    batches = plan(rows, pools, round=2, seed=0, batch=4, epochs=3, reshuffle=reshuffle)
    per_epoch = batches.steps // 3
    orders = []
    for position, k in enumerate(pools):
        for epoch in range(3):
            at = slice(epoch * per_epoch, (epoch + 1) * per_epoch)
            visited = batches.index[position, at][batches.mask[position, at]].tolist()
            assert sorted(visited) == sorted(rows.index[k, : SIZES[k]].tolist())
            orders.append(tuple(visited))
        sizes = batches.mask[position].sum(-1)
        expected = [4] * (SIZES[k] // 4) + [SIZES[k] % 4] * (SIZES[k] % 4 > 0)
        assert sizes[sizes > 0].tolist() == expected * 3
    assert (len(set(orders[:3])) == 1) is not reshuffle
    assert batches.samples.tolist() == [3 * SIZES[k] for k in pools]


def test_batches_depend_on_round_client_and_seed_only():
    """Not on who else is in the chunk: the batches of client 4 alone and among others."""
    rows = simulate("fedavg").data.train

    def visits(pools, position, **how):
        how = {"round": 1, "seed": 0, **how}
        made = plan(rows, np.array(pools), batch=4, epochs=2, reshuffle=True, **how)
        return [
            made.index[position, h][made.mask[position, h]].tolist()
            for h in range(made.steps)
            if made.mask[position, h].any()
        ]

    assert visits([1], 0) == visits([4, 1, 0], 1)
    assert visits([4], 0) != visits([4], 0, round=2)
    assert visits([4], 0) != visits([4], 0, seed=1)


@pytest.mark.parametrize("reshuffle", [True, False])
def test_fixed_steps_go_through_the_rows_as_often_as_it_takes(reshuffle):
    """Clients of 12, 9 and 1 rows take five steps of at most 4 rows in each of two epochs."""
    rows = simulate("fedavg").data.train
    pools = np.array([4, 0, 3])
    batches = plan(rows, pools, round=2, seed=0, batch=4, epochs=2, reshuffle=reshuffle, steps=np.full(3, 5))
    assert batches.steps == 10 and batches.widths == [4] * 10
    assert batches.mask.sum(-1).tolist() == [[4] * 10, [4, 4, 1, 4, 4] * 2, [1] * 10]
    assert batches.samples.tolist() == [40, 34, 10]
    for position, k in enumerate(pools):
        of_pass = -(-SIZES[k] // 4)
        for first in (0, 5):
            at = slice(first, first + of_pass)
            visited = batches.index[position, at][batches.mask[position, at]].tolist()
            assert sorted(visited) == sorted(rows.index[k, : SIZES[k]].tolist())[: 4 * 5]
    again = batches.index[0, 3:5].flatten().tolist()
    assert (batches.index[0, :2].flatten().tolist() == again) is not reshuffle


def test_as_many_fixed_steps_as_one_pass_has_change_nothing():
    rows = simulate("fedavg").data.train
    how = {"round": 2, "seed": 0, "batch": 4, "epochs": 3, "reshuffle": True}
    for k in range(len(SIZES)):
        free = plan(rows, np.array([k]), **how)
        fixed = plan(rows, np.array([k]), **how, steps=np.array([-(-SIZES[k] // 4)]))
        assert torch.equal(free.index, fixed.index) and torch.equal(free.mask, fixed.mask)
        assert free.samples.tolist() == fixed.samples.tolist()


@pytest.mark.parametrize("backend", ["vmap", "batched"])
def test_fixed_steps_are_the_same_on_every_backend(backend):
    how = {"steps_per_epoch": 4, "epochs": 2}
    loop, other = trained("floral_1", **how), trained("floral_1", backend=backend, chunk=3, **how)
    assert_equal_states(loop, other, EXACT)
    free = trained("floral_1", epochs=2)
    assert not torch.equal(loop.values["base"]["out.weight"], free.values["base"]["out.weight"])


def test_a_pool_makes_the_steps_of_the_clients_that_would_take_part():
    simulation = simulate("centralised", steps_per_epoch=4, participation=0.5)
    assert simulation.fixed_steps(simulation.cohort(1)).tolist() == [4 * 4]  # half of 7 clients, rounded up
    assert simulate("centralised").fixed_steps(np.array([0])) is None
    assert simulation.train(simulation.start(), 1)[1] == 22 + 22 + 4 * 4  # rows


@pytest.mark.parametrize(
    ("variant", "model"),
    [("floral_1", "mlp"), ("ensemble", "mlp"), ("fedavg", "dropout"), ("ensemble", "dropout"), ("local", "dropout")],
)
@pytest.mark.parametrize("epochs", [1, 2])
def test_draws_do_not_depend_on_backend_chunk_or_company(variant, model, epochs):
    """Router noise and dropout with two epochs and unequal clients: the draw of a client's step is its own."""
    how = {"model": model, "epochs": epochs}
    loop = trained(variant, **how)
    for chunk in (1, 2, 7):
        assert_equal_states(trained(variant, backend="vmap", chunk=chunk, **how), loop, EXACT)


def test_draws_matter():
    """Else the law above would be empty."""
    noisy, quiet = (trained("floral_1", params={"noise": noise}).values for noise in (1.0, 0.0))
    assert not torch.equal(noisy["router"]["logits"], quiet["router"]["logits"])
    dropout, seed = trained("fedavg", model="dropout"), trained("fedavg", model="mlp")
    assert not torch.equal(dropout.values["base"]["out.bias"], seed.values["base"]["out.bias"])


def test_a_step_draws_anew():
    """A client's router noise differs between steps, rounds, clients and seeds: gradients of equal batches differ."""
    seen = set()

    def spy(objective, trained_, fixed, batch, noise, lr):
        if batch.mask.any():
            seen.add(tuple(noise["router"].tolist()))
        return parts.sgd_step()(objective, trained_, fixed, batch, noise, lr)

    simulation = simulate("floral_1", epochs=2, change=lambda m: replace(m, local_step=spy))
    train(simulation, 2)
    steps = sum(2 * -(-SIZES[k] // 4) for r in (1, 2) for k in simulation.cohort(r))
    assert len(seen) == steps
    assert all(0 <= value < 1 for draw in seen for value in draw)


# ------------------------------------------------------------------------------------------------ scopes


def test_a_frozen_group_is_not_trained_and_a_private_one_stays():
    frozen = simulate(
        "fedavg", change=lambda m: replace(m, groups={"base": replace(m.groups["base"], scope=Scope.FROZEN)}, phases=())
    )
    assert_equal_states(train(frozen), frozen.start(), 0.0)


def test_samples_and_bytes_are_counted_from_the_cohort():
    simulation = simulate("floral_1", epochs=2)
    state = simulation.start()
    _, samples = simulation.train(state, 1)
    assert samples == 2 * sum(SIZES[k] for k in simulation.cohort(1))
    costs = simulation.costs(state)
    base = sum(t.numel() for t in state.values["base"].values())
    adaptors = sum(t.numel() for t in state.values["adaptors"].values())
    assert (costs.base, costs.sent_down, costs.sent_up) == (base, base + adaptors, base + adaptors + 2)
    assert costs.bytes_per_client == 4 * (2 * base + 2 * adaptors + 2)
    assert costs.kept_private == 2
