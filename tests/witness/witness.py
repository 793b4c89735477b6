"""Federated methods as plain PyTorch loops, written from their papers. This file imports nothing of floral.

It has its own split of the data, initial values, batch order, averaging and evaluation. `METHODS` maps the name of a
method to its function, which trains all rounds and returns a function that predicts for a client.

All clients take part in every round. A local epoch passes over all samples of a client in a new random order; its last
batch may be shorter. Server averages have the weights p_k = n_k / n, where n_k is the number of training
samples of client k. This is a setting of all methods, also of those whose papers average with equal weights.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

SPLIT = Path(__file__).with_name("split.json")


@dataclass(frozen=True)
class Settings:
    """What all methods share, and the hyper-parameters of each, as its paper calls them."""

    rounds: int = 20
    epochs: int = 2
    batch: int = 16
    lr: float = 0.1
    hidden: int = 64
    fedprox_mu: float = 1.0
    ditto_lambda: float = 0.5
    fedrep_head_epochs: int = 2
    apfl_alpha: float = 0.5
    pfedme_lambda: float = 5.0
    pfedme_inner_steps: int = 3
    feddbe_kappa: float = 10.0
    feddbe_momentum: float = 1.0
    finetune_after: float = 0.8


# ------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Client:
    """Training and test samples of one client: inputs [n, 64] and classes [n]."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's digits: 64 pixels, shifted and scaled to about mean 0 and deviation 1, and classes."""
    data = load_digits()
    return ((data.data - 5) / 6).astype(np.float32), data.target


def draw_split(clients: int = 15, alpha: float = 0.1, least: int = 24) -> list[dict[str, list[int]]]:
    """Draw which rows of the digits each client trains on and is tested on. split.json has the result.

    For each class, the clients' shares are drawn from Dirichlet(alpha). The draw is repeated until every client has
    `least` rows. Half of a client's rows, rounded down to a multiple of 8, are for training, and all others are for
    testing. So with batches of 16, no batch has fewer than 8 rows, and batch norm is stable.
    """
    random, y = np.random.default_rng(2026), digits()[1]
    while True:
        rows: list[list[int]] = [[] for _ in range(clients)]
        for digit in range(10):
            of_class = random.permutation(np.flatnonzero(y == digit))
            ends = np.rint(np.cumsum(random.dirichlet(np.full(clients, alpha))) * len(of_class)).astype(int)
            for client, part in enumerate(np.split(of_class, ends[:-1])):
                rows[client] += part.tolist()
        if min(map(len, rows)) >= least:
            break
    split = []
    for of_client in rows:
        shuffled = random.permutation(of_client).tolist()
        train = len(shuffled) // 2 // 8 * 8
        split.append({"train": sorted(shuffled[:train]), "test": sorted(shuffled[train:])})
    return split


def read_split() -> list[dict[str, list[int]]]:
    return json.loads(SPLIT.read_text())


def clients_of_split() -> list[Client]:
    x, y = (torch.tensor(values) for values in digits())
    return [Client(x[r["train"]], y[r["train"]], x[r["test"]], y[r["test"]]) for r in read_split()]


# ------------------------------------------------------------------------------------------------ models


class Net(nn.Module):
    """A perceptron: the body (a hidden layer, with batch norm or not) and the head (the last layer)."""

    def __init__(self, hidden: int, batch_norm: bool) -> None:
        super().__init__()
        layers = [nn.Linear(64, hidden), nn.BatchNorm1d(hidden)] if batch_norm else [nn.Linear(64, hidden)]
        self.body = nn.Sequential(*layers, nn.ReLU())
        self.head = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


Predict = Callable[[int, Tensor], Tensor]
"""The logits of client k on x."""


@dataclass(frozen=True)
class Federation:
    """The clients, the settings and the random numbers of one training."""

    clients: Sequence[Client]
    settings: Settings
    seed: int

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)

    def net(self, batch_norm: bool = False) -> Net:
        return Net(self.settings.hidden, batch_norm)

    def batches(self, k: int, epochs: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        client = self.clients[k]
        for _ in range(epochs or self.settings.epochs):
            for rows in torch.randperm(len(client.y)).split(self.settings.batch):
                yield client.x[rows], client.y[rows]

    def weights(self) -> Tensor:
        sizes = torch.tensor([len(client.y) for client in self.clients], dtype=torch.float32)
        return sizes / sizes.sum()


def mean(states: Sequence[Mapping[str, Tensor]], weights: Tensor) -> dict[str, Tensor]:
    """The weighted mean of parameters and running statistics. Counters of batches, which nothing reads, are kept."""
    return {
        name: sum(w * state[name] for w, state in zip(weights, states, strict=True))
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }


def copied(net: Net) -> Net:
    return copy.deepcopy(net)


def state_of(net: Net) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def sgd(
    net: Net,
    batches: Iterator[tuple[Tensor, Tensor]],
    lr: float,
    parameters: Sequence[Tensor] | None = None,
    penalty: Callable[[], Tensor] | None = None,
) -> None:
    """Train a network in place by SGD on the cross-entropy, or only some of its parameters, perhaps with a penalty."""
    optimiser = torch.optim.SGD(list(net.parameters()) if parameters is None else parameters, lr)
    net.train()
    for x, y in batches:
        net.zero_grad()
        loss = F.cross_entropy(net(x), y)
        (loss if penalty is None else loss + penalty()).backward()
        optimiser.step()


def proximal(net: Net, centre: Net, weight: float) -> Callable[[], Tensor]:
    """The penalty weight/2 ||w - centre||^2 on the parameters w of a network."""

    def penalty() -> Tensor:
        pairs = zip(net.parameters(), centre.parameters(), strict=True)
        return weight / 2 * torch.stack([(w - c.detach()).square().sum() for w, c in pairs]).sum()

    return penalty


# ----------------------------------------------------------------------------------------------- methods


def fedavg(fed: Federation, batch_norm: bool = False, private: Callable[[str], bool] = lambda name: False) -> Predict:
    """FedAvg, arXiv 1602.05629, algorithm 1. The state whose name is `private` stays with its client."""
    start = fed.net(batch_norm)
    nets = [copied(start) for _ in fed.clients]
    for _ in range(fed.settings.rounds):
        for k, net in enumerate(nets):
            sgd(net, fed.batches(k), fed.settings.lr)
        average = mean([state_of(net) for net in nets], fed.weights())
        for net in nets:
            net.load_state_dict({n: value for n, value in average.items() if not private(n)}, strict=False)
    return lambda k, x: nets[k].eval()(x)


def fedavg_batch_norm(fed: Federation) -> Predict:
    """FedAvg of a network with batch norm: scales, shifts and running statistics are averaged too."""
    return fedavg(fed, batch_norm=True)


def fedbn(fed: Federation) -> Predict:
    """FedBN, arXiv 2102.07623, algorithm 1: parameters and running statistics of batch norm stay with the client."""
    return fedavg(fed, batch_norm=True, private=lambda name: name.startswith("body.1."))


def private_statistics(fed: Federation) -> Predict:
    """SiloBN, arXiv 2008.07424: only the running statistics of batch norm stay with the client."""
    return fedavg(fed, batch_norm=True, private=lambda name: "running" in name)


def fedper(fed: Federation) -> Predict:
    """FedPer, arXiv 1912.00818, algorithms 1 and 2: the head stays with the client, all layers train together."""
    return fedavg(fed, private=lambda name: name.startswith("head."))


def fedprox(fed: Federation) -> Predict:
    """FedProx, arXiv 1812.06127, algorithm 2: clients minimise f_k(w) + mu/2 ||w - w_t||^2, inexactly, by SGD."""
    shared = fed.net()
    for _ in range(fed.settings.rounds):
        states = []
        for k in range(len(fed.clients)):
            net = copied(shared)
            sgd(net, fed.batches(k), fed.settings.lr, penalty=proximal(net, shared, fed.settings.fedprox_mu))
            states.append(state_of(net))
        shared.load_state_dict(mean(states, fed.weights()))
    return lambda k, x: shared(x)


def local(fed: Federation) -> Predict:
    """Local training: no communication, common initial values, and the epochs of all rounds."""
    start = fed.net()
    nets = [copied(start) for _ in fed.clients]
    for k, net in enumerate(nets):
        sgd(net, fed.batches(k, fed.settings.rounds * fed.settings.epochs), fed.settings.lr)
    return lambda k, x: nets[k](x)


def fedavg_finetune(fed: Federation) -> Predict:
    """FedAvg in the first rounds; in the others each client trains a copy of its result and sends nothing."""
    rounds = fed.settings.rounds
    first = int(fed.settings.finetune_after * rounds)
    shared = fed.net()
    for _ in range(first):
        states = []
        for k in range(len(fed.clients)):
            net = copied(shared)
            sgd(net, fed.batches(k), fed.settings.lr)
            states.append(state_of(net))
        shared.load_state_dict(mean(states, fed.weights()))
    nets = [copied(shared) for _ in fed.clients]
    for k, net in enumerate(nets):
        sgd(net, fed.batches(k, (rounds - first) * fed.settings.epochs), fed.settings.lr)
    return lambda k, x: nets[k](x)


def ditto(fed: Federation) -> Predict:
    """Ditto, arXiv 2012.04221, algorithm 1: v_k takes steps on f_k(v) + lambda/2 ||v - w_t||^2, w is as in FedAvg."""
    shared = fed.net()
    personal = [copied(shared) for _ in fed.clients]
    for _ in range(fed.settings.rounds):
        states = []
        for k, v in enumerate(personal):
            net = copied(shared)
            sgd(net, fed.batches(k), fed.settings.lr)
            states.append(state_of(net))
            sgd(v, fed.batches(k), fed.settings.lr, penalty=proximal(v, shared, fed.settings.ditto_lambda))
        shared.load_state_dict(mean(states, fed.weights()))
    return lambda k, x: personal[k](x)


def fedrep(fed: Federation) -> Predict:
    """FedRep, arXiv 2102.07078, algorithm 1: a client trains its head, then the body; the server averages bodies."""
    start = fed.net()
    nets = [copied(start) for _ in fed.clients]
    for _ in range(fed.settings.rounds):
        for k, net in enumerate(nets):
            sgd(net, fed.batches(k, fed.settings.fedrep_head_epochs), fed.settings.lr, list(net.head.parameters()))
            sgd(net, fed.batches(k), fed.settings.lr, list(net.body.parameters()))
        body = mean([net.body.state_dict() for net in nets], fed.weights())
        for net in nets:
            net.body.load_state_dict(body)
    return lambda k, x: nets[k](x)


def apfl(fed: Federation) -> Predict:
    """APFL, arXiv 2003.13461, algorithm 1 with adaptive alpha.

    The personal model is vbar = alpha v + (1 - alpha) w. On each batch, w takes a step along grad f(w), and v along the
    gradient of f(vbar) with respect to v, which is alpha grad f(vbar). alpha takes one step in a round, on its first
    batch as in the authors' code, along <v - w, grad f(vbar)>, and stays in [0, 1].
    """
    lr, shared = fed.settings.lr, fed.net()
    personal = [copied(shared) for _ in fed.clients]
    alphas = [fed.settings.apfl_alpha for _ in fed.clients]

    def mixed(k: int, w: Net) -> dict[str, Tensor]:
        pairs = zip(personal[k].named_parameters(), w.parameters(), strict=True)
        return {name: (alphas[k] * v + (1 - alphas[k]) * value).detach() for (name, v), value in pairs}

    for _ in range(fed.settings.rounds):
        states = []
        for k, v in enumerate(personal):
            w = copied(shared)
            for step, (x, y) in enumerate(fed.batches(k)):
                vbar = {name: value.requires_grad_() for name, value in mixed(k, w).items()}
                loss = F.cross_entropy(torch.func.functional_call(w, vbar, (x,)), y)
                of_vbar = torch.autograd.grad(loss, list(vbar.values()))
                of_w = torch.autograd.grad(F.cross_entropy(w(x), y), list(w.parameters()))
                with torch.no_grad():
                    slope = 0.0
                    for v_j, w_j, g, h in zip(v.parameters(), w.parameters(), of_vbar, of_w, strict=True):
                        slope += float(((v_j - w_j) * g).sum())
                        v_j -= lr * alphas[k] * g
                        w_j -= lr * h
                if step == 0:
                    alphas[k] = min(1.0, max(0.0, alphas[k] - lr * slope))
            states.append(state_of(w))
        shared.load_state_dict(mean(states, fed.weights()))
    return lambda k, x: torch.func.functional_call(shared, mixed(k, shared), (x,))


def pfedme(fed: Federation) -> Predict:
    """pFedMe, arXiv 2006.08848, algorithm 1 with beta = 1.

    For each batch of a round, theta takes K steps on f(theta) + lambda/2 ||theta - w_k||^2, and then w_k becomes
    w_k - eta lambda (w_k - theta). As in the authors' code, theta starts a round at w and continues from batch to
    batch. The server averages the w_k. Clients predict with theta.
    """
    lr, lam, shared = fed.settings.lr, fed.settings.pfedme_lambda, fed.net()
    personal = [copied(shared) for _ in fed.clients]
    for _ in range(fed.settings.rounds):
        states = []
        for k in range(len(fed.clients)):
            w, theta = copied(shared), copied(shared)
            for batch in fed.batches(k):
                repeated = iter([batch] * fed.settings.pfedme_inner_steps)
                sgd(theta, repeated, lr, penalty=proximal(theta, w, lam))
                with torch.no_grad():
                    for value, target in zip(w.parameters(), theta.parameters(), strict=True):
                        value -= lr * lam * (value - target)
            personal[k] = theta
            states.append(state_of(w))
        shared.load_state_dict(mean(states, fed.weights()))
    return lambda k, x: personal[k](x)


def feddbe(fed: Federation) -> Predict:
    """FedDBE, arXiv 2311.14975, algorithm 1.

    Client k predicts with head(body(x) + b_k). Before round 1, all clients train the initial network once without b_k;
    the mean of their running feature means m_k is the consensus, and these networks are discarded. In a round, the loss
    has the term kappa mean_j (m_j - consensus_j)^2 / 2. m starts a pass at 0, and each batch changes it to
    (1 - momentum) m + momentum (mean of the batch's features). With momentum 1 it is the mean of the last batch.
    """
    lr, share = fed.settings.lr, fed.settings.feddbe_momentum
    shared = fed.net()
    biases = [torch.zeros(fed.settings.hidden, requires_grad=True) for _ in fed.clients]

    def train(net: Net, k: int, consensus: Tensor | None) -> Tensor:
        seen = torch.zeros(fed.settings.hidden)
        parameters = [*net.parameters()] + ([] if consensus is None else [biases[k]])
        optimiser = torch.optim.SGD(parameters, lr)
        for x, y in fed.batches(k):
            optimiser.zero_grad()
            features = net.body(x)
            seen = (1 - share) * seen.detach() + share * features.mean(0)
            if consensus is None:
                loss = F.cross_entropy(net.head(features), y)
            else:
                loss = F.cross_entropy(net.head(features + biases[k]), y)
                loss = loss + fed.settings.feddbe_kappa * (seen - consensus).square().mean() / 2
            loss.backward()
            optimiser.step()
        return seen.detach()

    means = [train(copied(shared), k, None) for k in range(len(fed.clients))]
    consensus = sum(p * m for p, m in zip(fed.weights(), means, strict=True))
    for _ in range(fed.settings.rounds):
        states = []
        for k in range(len(fed.clients)):
            net = copied(shared)
            train(net, k, consensus)
            states.append(state_of(net))
        shared.load_state_dict(mean(states, fed.weights()))
    return lambda k, x: shared.head(shared.body(x) + biases[k])


METHODS: Mapping[str, Callable[[Federation], Predict]] = {
    "fedavg": fedavg,
    "fedavg_batch_norm": fedavg_batch_norm,
    "fedprox": fedprox,
    "local": local,
    "fedavg_finetune": fedavg_finetune,
    "ditto": ditto,
    "fedper": fedper,
    "fedrep": fedrep,
    "apfl": apfl,
    "pfedme": pfedme,
    "feddbe": feddbe,
    "fedbn": fedbn,
    "private_statistics": private_statistics,
}


def accuracy(method: str, seed: int, settings: Settings) -> float:
    """Train a method, and return the percentage of all clients' test samples that their own models classify."""
    torch.set_num_threads(1)
    clients = clients_of_split()
    predict = METHODS[method](Federation(clients, settings, seed))
    correct = 0
    for k, client in enumerate(clients):
        with torch.no_grad():
            correct += int((predict(k, client.test_x).argmax(1) == client.test_y).sum())
    return 100 * correct / sum(len(client.test_y) for client in clients)
