"""Steps replayed as a GPU's graphs do what plain steps do; a stand-in takes the place of CUDA's graphs."""

from __future__ import annotations

import federations
import pytest
import torch
from federations import FIRST, OF_EACH_KIND, simulate, train
from torch.utils._python_dispatch import TorchDispatchMode

from floral.core.spec import Refused
from floral.engine.capture import Captured, captured
from floral.engine.capture.recorder import Recorder
from floral.engine.graphs import Graphs, load
from floral.engine.state import start

TRAINED = [variant for variant in FIRST.values() if simulate(variant).method.phases != ()]
CASES = [(variant, None) for variant in TRAINED] + [
    (variant, model)
    for variant in ("fedavg", "floral_1", "local_adaptor")
    for model in ("cnn", "batch_norm", "dropout")
]
"""A variant of every method that trains, on a model that it can do, and some on the others."""


def stand_in(function):
    """Results stay where they are, as in a graph's own memory, and what is in them before a replay is nothing."""
    results = function()
    outside = [tensor for tensor in results if tensor.numel()]

    def run():
        for kept, new in zip(results, function(), strict=True):
            if kept.data_ptr() != new.data_ptr():
                load([kept], [new])

    def spoil(tensor):
        if tensor.dtype.is_floating_point:
            tensor.fill_(torch.nan)

    for tensor in outside:  # a capture computes nothing
        spoil(tensor)
    return results, run


def on_graphs(variant, made=None, **how):
    """The simulation of a variant whose steps are replayed as graphs, each entry of `made` one that was made."""

    def make(function):
        if made is not None:
            made.append(1)
        return stand_in(function)

    simulation = simulate(variant, backend="batched", **how)
    simulation.graphs = Graphs(make)
    simulation._clients.clear()
    return simulation


@pytest.mark.parametrize(("variant", "model"), CASES)
def test_graphs_change_nothing(variant, model, monkeypatch):
    """Against steps that are called: over 3 rounds with other cohorts, chunks of 3 that leave a last one of 2, and
    short last batches; bit for bit."""
    made = []
    how = {"model": model, "chunk": 3}
    with monkeypatch.context() as unrecorded:
        unrecorded.setattr(captured, "MAX_RECORDINGS", 0)
        plain = train(simulate(variant, backend="batched", **how))
    federations.assert_equal_states(train(on_graphs(variant, made, **how)), plain, 0.0)
    assert made


@pytest.mark.parametrize("variant", OF_EACH_KIND)
def test_graphs_change_nothing_when_a_round_is_one_step(variant):
    plain = train(simulate(variant, backend="batched", chunk=2, batch=64))
    federations.assert_equal_states(train(on_graphs(variant, chunk=2, batch=64)), plain, 0.0)


def test_graphs_change_nothing_over_several_epochs_with_momenta_at_the_server():
    how = {"epochs": 2, "server": {"optimiser": "adam", "lr": 0.01}, "chunk": 2}
    plain = train(simulate("floral_1", backend="batched", **how))
    federations.assert_equal_states(train(on_graphs("floral_1", **how)), plain, 0.0)


def test_a_graph_is_made_once_for_each_layout():
    """First, middle, last and only steps of chunks of 3 and of 2; none when the same cohorts come again."""
    made = []
    simulation = on_graphs("fedavg", made, chunk=3)
    state = simulation.start()
    counts = []
    for _ in range(2):
        for round in (1, 2, 3):
            simulation.train(state, round)
        counts.append(len(made))
    assert counts == [6, 6]


def called(function, *rounds, lasting=True):
    captured = Captured(Graphs(stand_in))
    return [captured("f", function, *trees, lasting=lasting) for trees in rounds]


def test_lasting_results_outlive_the_next_call():
    first, second = called(lambda x: (x.add_(1), x * 2), (torch.zeros(2),), (torch.ones(2),))
    assert [tensor.tolist() for tensor in (*first, *second)] == [[1, 1], [2, 2], [2, 2], [4, 4]]


def test_what_a_step_changes_in_place_stays_in_its_buffer():
    captured, x = Captured(Graphs(stand_in)), torch.zeros(3)
    addresses = set()
    for count in range(1, 5):
        x, double = captured("step", lambda x: (x.add_(1), 2 * x), x, lasting=False)
        addresses.add(x.data_ptr())
        assert (x.tolist(), double.tolist()) == ([count] * 3, [2 * count] * 3)
    assert len(addresses) == 1
    short, _ = captured("other", lambda x: (x.mul_(2), x + 1), x, lasting=False)  # recorded while x lies in the buffer
    assert short.tolist() == [8] * 3 and short.data_ptr() in addresses


def test_inputs_may_change_places():
    captured = Captured(Graphs(stand_in))
    a, b = torch.tensor([1.0]), torch.tensor([2.0])
    for expected in ([1.0, 3.0], [3.0, 2.0], [2.0, 4.0], [4.0, 3.0]):
        b, a = captured("swap", lambda a, b: (a.add_(0), b.add_(1)), a, b, lasting=False)
        assert [b.item(), a.item()] == expected


@pytest.mark.parametrize("lie", ["expanded", "transposed", "gaps", "empty"])
def test_inputs_may_lie_in_any_way(lie):
    def made(value):
        whole = torch.arange(12.0).reshape(3, 4) + value
        return {"expanded": whole[:1].expand(3, 4), "transposed": whole.mT, "gaps": whole[:, ::2], "empty": whole[:0]}[
            lie
        ]

    rounds = [(made(value), torch.arange(2) + value) for value in (0, 5)]
    for found, (x, y) in zip(called(lambda x, y: (x * 2 + y.sum(), y), *rounds), rounds, strict=True):
        assert torch.equal(found[0], x * 2 + y.sum()) and torch.equal(found[1], y)


def test_several_devices_are_refused(monkeypatch):
    """A CPU has no second device to compute on: its recorder is told of one."""

    class Elsewhere(torch.Tensor):
        device = torch.device("cuda")

    real = Recorder._name
    elsewhere = torch.ones(2).as_subclass(Elsewhere)
    monkeypatch.setattr(Recorder, "_name", lambda self, t, n: (real(self, t, n), self.alive.append(elsewhere)))
    with pytest.raises(Refused, match=r"several devices, cpu and cuda"):
        Captured(Graphs(stand_in))("f", lambda x: x + 1, torch.zeros(2))


@pytest.mark.parametrize(("variant", "model"), CASES)
def test_a_step_touches_no_device_but_its_own(variant, model):
    """A graph can hold no copy from the CPU, and plain steps would wait for it: seen on the device without values."""
    simulation = simulate(variant, model=model, device=torch.device("meta"), backend="vmap", chunk=2)
    state = start(simulation.method, simulation.dtype, simulation.device)  # without `prepare`, which reads values
    inside, clients = Inside(), simulation.clients(1)
    for name in ("step", "last"):
        object.__setattr__(clients, name, inside.watched(getattr(clients, name)))
    simulation.local_training(state, 1, *(some[:2] for some in simulation.pools(1)))
    assert inside.kinds == {"meta"}


class Inside(TorchDispatchMode):
    """The devices of all tensors that operations of a step give back."""

    def __init__(self):
        super().__init__()
        self.kinds = set()

    def watched(self, function):
        def call(*arguments):
            with self:
                return function(*arguments)

        return call

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in (*args, *(out if isinstance(out, tuple | list) else (out,))):
            if isinstance(tensor, torch.Tensor) and tensor.dim():  # a number is part of its operation
                self.kinds.add(tensor.device.type)
        return out


def test_on_a_cpu_nobody_makes_graphs_of_cuda():
    """As when a run that began on a GPU is continued where there is none."""
    how = {"backend": "batched", "chunk": 3}
    continued = simulate("fedavg", graphs=True, **how)
    assert continued.graphs is None
    federations.assert_equal_states(train(continued), train(simulate("fedavg", **how)), 0.0)
