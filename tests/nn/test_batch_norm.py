"""Running statistics: computed without the padding, moved as PyTorch moves them, averaged or kept by their scope."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from federations import FIRST, SIZES, assert_close, make_data, served, simulate, train, trained

from floral.config.reading import ConfigError
from floral.config.schema.data import Synthetic
from floral.core.spec import Scope
from floral.core.streams import Stream
from floral.nn.layers import Linear
from floral.nn.norms import BatchNorm
from floral.stages.record import further_scores

pytestmark = pytest.mark.usefixtures("without_recording")

NORM = BatchNorm(3)
PARAMS = {"weight": torch.tensor([0.5, 1.0, 2.0]).double(), "bias": torch.tensor([0.1, -1.0, 0.0]).double()}
START = {name: tensor.double() for name, tensor in NORM.statistics().items()}


def rows(count, *space):
    return torch.randn(count, 3, *space, generator=torch.Generator().manual_seed(count), dtype=torch.float64) * 2 + 1


@pytest.mark.parametrize("space", [(), (4, 2)])
def test_it_is_torchs_batch_norm(space):
    """Outputs in training and evaluation, and running statistics, over three batches."""
    torchs = (torch.nn.BatchNorm2d if space else torch.nn.BatchNorm1d)(3).double()
    torchs.load_state_dict({**torchs.state_dict(), **PARAMS})
    running = START
    for count in (5, 2, 7):
        x = rows(count, *space)
        y, running = NORM(PARAMS, running, x, torch.ones(count, dtype=torch.bool))
        torch.testing.assert_close(y, torchs(x), rtol=0, atol=1e-12)
        torch.testing.assert_close(running["mean"], torchs.running_mean, rtol=0, atol=1e-12)
        torch.testing.assert_close(running["variance"], torchs.running_var, rtol=0, atol=1e-12)
    torchs.eval()
    y, same = NORM(PARAMS, running, rows(4, *space), None)
    torch.testing.assert_close(y, torchs(rows(4, *space)), rtol=0, atol=1e-12)
    assert_close(same, running, 0.0)


@pytest.mark.parametrize("space", [(), (4, 2)])
@pytest.mark.parametrize("count", [1, 4])
def test_padding_does_not_count(space, count):
    """Statistics, outputs and gradients of a padded batch are those of the batch alone."""
    x, padding = rows(count, *space), 100 + rows(3, *space)
    both = torch.cat([x, padding]).requires_grad_()
    alone = x.clone().requires_grad_()
    mask = torch.arange(count + 3) < count
    padded, running = NORM(PARAMS, START, both, mask)
    plain, expected = NORM(PARAMS, START, alone, torch.ones(count, dtype=torch.bool))
    torch.testing.assert_close(padded[:count], plain, rtol=0, atol=1e-12)
    assert_close(running, expected, 1e-12)
    (padded[:count] ** 3).sum().backward()
    (plain**3).sum().backward()
    torch.testing.assert_close(both.grad[:count], alone.grad, rtol=0, atol=1e-10)
    assert bool((both.grad[count:] == 0).all())


def by_hand(simulation, k, base, running):
    """One local epoch of the client's running statistics and weights with torch.nn."""
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(16, 5), torch.nn.BatchNorm1d(5), torch.nn.ReLU(), torch.nn.Linear(5, 5)
    ).double()
    names = ["1.weight", "1.bias", "2.weight", "2.bias", "4.weight", "4.bias"]
    state = dict(zip(names, base.values(), strict=True))
    state |= {"2.running_mean": running["norm.mean"], "2.running_var": running["norm.variance"]}
    net.load_state_dict({**net.state_dict(), **state})
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    data = simulation.data.train
    x, y = data.gather(torch.from_numpy(data.index[k, : SIZES[k]]))
    for at in range(0, SIZES[k], 4):
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(net(x[at : at + 4]), y[at : at + 4]).backward()
        sgd.step()
    end = net.state_dict()
    return {"norm.mean": end["2.running_mean"], "norm.variance": end["2.running_var"]}


ALL_BUT_SINGLE_ROWS = [k for k, size in enumerate(SIZES) if size % 4 != 1]  # torch refuses a batch of one row


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_private_statistics_are_the_clients_own_and_kept(backend):
    simulation = simulate("local", model="batch_norm", backend=backend, chunk=3, switches={"batches": "fixed"})
    assert simulation.method.groups["statistics"].scope is Scope.PRIVATE
    start = simulation.start()
    end = train(simulation, 1)
    cohort = simulation.cohort(1).tolist()
    for k in ALL_BUT_SINGLE_ROWS:
        mine = {name: tensor[k] for name, tensor in end.values["statistics"].items()}
        received = {name: tensor[k] for name, tensor in start.values["statistics"].items()}
        if k not in cohort:
            assert_close(mine, received, 0.0)
        else:
            base = {name: tensor[k] for name, tensor in start.values["base"].items()}
            assert_close(mine, by_hand(simulation, k, base, received), 1e-12)
    assert any(k in cohort for k in ALL_BUT_SINGLE_ROWS)


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_shared_statistics_are_averaged_as_they_are(backend):
    """With p(k), whatever the server's lr and optimiser: a running mean is no parameter."""
    how = {"model": "batch_norm", "backend": backend, "chunk": 3, "participation": 1.0}
    local = trained("local", rounds=1, **how).values["statistics"]
    adam = {"optimiser": "adam", "lr": 0.01}
    for server in ({"optimiser": "sgd", "lr": 0.3}, adam):
        shared = trained("fedavg", rounds=1, server=server, **how)
        weight = torch.tensor(SIZES).double() / sum(SIZES)
        expected = {name: torch.tensordot(weight, tensor, 1) for name, tensor in local.items()}
        assert_close(shared.values["statistics"], expected, 1e-12)
        assert not any("statistics" in name for name in shared.server)


def test_clustered_statistics_are_averaged_within_the_cluster():
    how = {"model": "batch_norm", "participation": 1.0}
    ensemble = simulate("ensemble_optimal", **how)
    start = ensemble.start()
    end = train(ensemble, 1).values["statistics"]
    local = simulate("local", **how)
    member = ensemble.method.routing.cluster_of_client
    state = local.start()
    for name in state.values["base"]:
        state.values["base"][name] = start.values["base"][name][member]
    local.train(state, 1)
    for c in range(2):
        mine = np.flatnonzero(member.numpy() == c)
        weight = torch.tensor([SIZES[k] for k in mine]).double()
        for name, tensor in state.values["statistics"].items():
            expected = torch.tensordot(weight / weight.sum(), tensor[mine], 1)
            torch.testing.assert_close(end[name][c], expected, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------ statistics: private

PRIVATE = {"statistics": "private"}
HANDED_ON = {"cfl", "fedsoft"}
"""Methods in which the statistics of one model become those of another."""


def how(variant, **params):
    return {"variant": variant, "model": "batch_norm", "params": params}


def keeps(variant):
    """Whether the variant can keep its statistics private; a refusal is looked at below."""
    try:
        return bool(simulate(**how(variant, **PRIVATE)))
    except ConfigError:
        return False


KEEPING = [variant for variant in FIRST.values() if keeps(variant)]


def running(state):
    return {name: tensor for name, tensor in state.tensors().items() if "statistics/" in name}


def test_every_method_that_averages_statistics_keeps_them_or_says_why_not():
    for variant in FIRST.values():
        groups = simulate(**how(variant)).method.groups
        if variant not in KEEPING:
            with pytest.raises(ConfigError, match=r"statistics.*; set `statistics: federated`"):
                simulate(**how(variant, **PRIVATE))
        assert (
            variant in KEEPING
            or "statistics" not in groups
            or variant in HANDED_ON
            or (groups["statistics"].scope is Scope.PRIVATE)
        )


@pytest.mark.parametrize(("variant", "model"), [("fedavg", "mlp"), ("floral_1", "vit"), ("private_norm", "batch_norm")])
def test_without_averaged_statistics_there_are_none_to_keep(variant, model):
    with pytest.raises(ConfigError, match=r"averages no running statistics.*set `statistics: federated`"):
        simulate(variant, model=model, params=PRIVATE)


def test_clients_that_join_would_have_no_statistics():
    unseen = {"seen_cluster": 1, "samples": [2]}
    with pytest.raises(ConfigError, match="clients that join after training have no batch-norm statistics"):
        simulate(**how("fedavg", **PRIVATE), unseen=unseen)


@pytest.mark.parametrize("variant", KEEPING)
def test_private_statistics_of_one_client_are_the_federated_ones(variant):
    data = {"data": make_data((9,), clusters=1), "clusters": 1}
    private, federated = (trained(**how(variant, **params), **data) for params in (PRIVATE, {}))
    alone = {name: tensor.reshape(federated.tensors()[name].shape) for name, tensor in private.tensors().items()}
    assert_close(alone, federated.tensors(), 0.0)


@pytest.mark.parametrize("variant", KEEPING)
def test_private_statistics_stay_with_their_client_and_change_no_training(variant):
    """Training takes those of the batch, so that all else is bit-equal, unless a client decides by evaluating."""
    private, federated = simulate(**how(variant, **PRIVATE)), simulate(**how(variant))
    state, other = train(private, 1), train(federated, 1)
    start, absent = private.start(), sorted(set(range(len(SIZES))) - set(private.cohort(1).tolist()))
    assert absent
    for name, tensor in running(state).items():
        assert len(tensor) == len(SIZES)
        assert torch.equal(tensor[absent], start.tensors()[name][absent])
    assert any(not torch.equal(tensor[0], tensor[1]) for tensor in running(state).values())
    assert private.costs_of(state, 1).bytes_per_client < federated.costs_of(other, 1).bytes_per_client
    if federated.method.assign is None:
        trained_alike = {name: t for name, t in state.tensors().items() if name not in running(state)}
        assert_close(trained_alike, {name: other.tensors()[name] for name in trained_alike}, 0.0)


@pytest.mark.parametrize("backend", ["vmap", "batched"])
@pytest.mark.parametrize(
    ("variant", "norm"),
    [
        ("fedavg", None),
        ("ensemble", None),
        ("floral_1", "plain"),
        ("floral_1_optimal", "plain"),
        ("local_adaptor", "plain"),
    ],
)
def test_private_statistics_are_alike_on_every_backend(variant, norm, backend):
    params = {**PRIVATE, **({"norm": norm} if norm else {})}
    loop = trained(**how(variant, **params))
    assert_close(trained(**how(variant, **params), backend=backend, chunk=3).tensors(), loop.tensors(), 1e-10)


@pytest.mark.parametrize("variant", ["floral_1", "floral_1_optimal", "local_adaptor"])
def test_plain_and_reparameterised_adaptors_are_the_same_with_private_statistics(variant):
    """An adaptor's own statistics then follow the batches that the layer's do, and are kept as these are."""
    plain, other = (simulate(**how(variant, **PRIVATE, norm=norm)) for norm in ("plain", "reparameterised"))
    federated = simulate(**how(variant, norm="plain"))
    ours, theirs, averaged = (served(one, train(one)) for one in (plain, other, federated))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert not any(torch.allclose(a, b) for a, b in zip(ours, averaged, strict=True))


def test_evaluation_uses_and_leaves_the_running_statistics():
    simulation = simulate("fedavg", model="batch_norm")
    state = train(simulation, 2)
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    alone = simulation.own_rows(state, simulation.data.test, np.array([1]))
    together = simulation.own_rows(state, simulation.data.test, np.arange(7))
    assert alone.loss[0] == pytest.approx(together.loss[1], abs=1e-12)
    assert_close(state.tensors(), before, 0.0)


def test_layers_start_as_torchs():
    """U(±1/sqrt(fan_in)), PyTorch's default for weight and bias."""
    params = Linear(100, 3000).init(Stream(0, "layer"))
    torchs = torch.nn.Linear(100, 3000)
    for name, tensor in (("weight", torchs.weight), ("bias", torchs.bias)):
        assert float(params[name].var()) == pytest.approx(float(tensor.detach().var()), rel=0.1)
        assert float(params[name].abs().max()) <= 0.1


@pytest.mark.parametrize("normalised", [False, True])
def test_an_error_on_labels_normalised_per_client_is_no_excess_risk(normalised):
    """A label then depends on the client's other rows, so that the teacher itself has an error on the population."""
    data = make_data(regression=True, outputs=1)
    source = Synthetic(kind="mlp", samples_per_client=10, normalised=normalised)
    simulation = simulate("fedavg", model="batch_norm", data=data)
    scores, _ = simulation.global_test(simulation.start())
    found = further_scores(scores, {}, "population", data, source)["excess_risk"]
    assert found is None if normalised else found == scores.mean(scores.loss) > 0
