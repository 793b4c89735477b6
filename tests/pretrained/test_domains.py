"""Clusters of one domain each, in which whole articles stay with one client."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from floral.config import catalogue
from floral.config.reading import ConfigError
from floral.config.schema.partition import Partition
from floral.data.fit import unfit_domains
from floral.data.partition_kinds import domains_table, natural_table

Sides = tuple[np.ndarray, np.ndarray]


def made(random: np.random.Generator, domains: int) -> tuple[Sides, Sides]:
    """The natural client (-1 for a third of the samples) and the domain of training and test samples."""
    of_client = random.integers(0, domains, 12)
    natural, domain = [], []
    for size in (300, 120):
        of_sample = random.integers(-1, 12, size)
        of_sample[random.random(size) < 1 / 3] = -1
        natural.append(of_sample)
        domain.append(np.where(of_sample < 0, random.integers(0, domains, size), of_client[of_sample]))
    return (natural[0], natural[1]), (domain[0], domain[1])


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**40), st.integers(1, 4))
def test_whole_natural_clients_go_to_one_client_and_a_cluster_has_its_domain(seed: int, domains: int) -> None:
    natural, domain = made(np.random.default_rng(seed), domains)
    clients = 2 * domains
    rule = Partition(kind="domains", validation=0)
    table = domains_table(natural, domain, clients, domains, rule, seed)
    assert table.equals(domains_table(natural, domain, clients, domains, rule, seed))
    holders: dict[int, set[int]] = {}
    for split, side in (("train", 0), ("test", 1)):
        part = table.filter(pl.col("split") == split)
        client, row = part["client"].to_numpy(), part["row"].to_numpy()
        assert len(np.unique(row)) == len(row)
        trained = np.isin(natural[side], [-1, *natural[0]])
        assert sorted(row.tolist()) == np.flatnonzero(trained).tolist()
        for k, number in zip(client.tolist(), natural[side][row].tolist(), strict=True):
            if number >= 0:
                holders.setdefault(number, set()).add(k)
        assert (domain[side][row] == client % domains).all()
        single = np.bincount(client[natural[side][row] < 0], minlength=clients)
        assert all(np.ptp(single[c::domains]) <= 1 for c in range(domains))
    assert all(len(clients) == 1 for clients in holders.values())
    assert (table["cluster"].to_numpy() == table["client"].to_numpy() % domains).all()


def test_a_client_without_samples_is_refused() -> None:
    natural, domain = made(np.random.default_rng(0), 1)
    few = (natural[0][:5], natural[1]), (domain[0][:5], domain[1])
    with pytest.raises(ConfigError, match=r"client \d would get no training sample of its domain; set fewer"):
        domains_table(*few, 8, 1, Partition(kind="domains"), 0)


def test_samples_without_a_natural_client_are_left_out_of_kind_natural() -> None:
    train, test = np.array([-1, 0, 0, 1, -1, 1]), np.array([0, -1, 1])
    table = natural_table(train, test, 2, 1, Partition(kind="natural", min_rows=1, validation=0), 0)
    rows = {(split, row): client for client, split, row in table.select("client", "split", "row").iter_rows()}
    assert rows == {
        ("train", 1): 0, ("train", 2): 0, ("test", 0): 0, ("train", 3): 1, ("train", 5): 1, ("test", 2): 1
    }  # fmt: skip


def test_each_domain_has_a_cluster() -> None:
    assert unfit_domains({"domains": ["a", "b"]}, 2) is None
    assert "`clusters` is 3, and the data have 2 domains (a, b); set `clusters: 2`" in str(
        unfit_domains({"domains": ["a", "b"]}, 3)
    )
    assert "but these have none" in str(unfit_domains({}, 2))
    without = {"data": "digits_two_sources", "clients": 4, "participation": 1.0, "rounds": 1, "batch": 4, "lr": 0.1}
    with pytest.raises(ConfigError, match="`clusters` is missing; add the number of clusters"):
        catalogue.task_of({**without, "model": {"kind": "mlp", "hidden": 4}, "partition": {"kind": "domains"}}, "x")
