"""AdamW in local training: the steps of PyTorch, equal on all backends, and a state that lives for one round."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from federations import FIRST, assert_equal_states, make_run, simulate, trained
from pydantic import ValidationError

from floral.config.reading import ConfigError
from floral.config.schema.task import Local
from floral.core.spec import LEARNING_RATE, Method
from floral.toolkit.local_optimiser import AdamW

ADAMW = Local(optimiser="adamw", weight_decay=0.1, schedule="round")


def test_steps_are_those_of_pytorch() -> None:
    random = torch.Generator().manual_seed(0)
    ours = {name: torch.randn(3, 4, generator=random, dtype=torch.float64) for name in ("a", "b")}
    theirs = {name: torch.nn.Parameter(t.clone()) for name, t in ours.items()}
    optimiser = AdamW(betas=(0.8, 0.95), epsilon=1e-6, weight_decay=0.1)
    public = torch.optim.AdamW(theirs.values(), lr=0.05, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    linear = torch.optim.lr_scheduler.LambdaLR(public, lambda step: 1 - step / 4)
    state = optimiser.start(ours)
    for step in range(4):
        gradients = {name: torch.randn(3, 4, generator=random, dtype=torch.float64) for name in ours}
        factor = replace(optimiser, schedule="round").factor(
            torch.tensor([step]).double(), torch.tensor([4]).double(), 1, 1
        )
        ours, state = optimiser.step(ours, gradients, state, 0.05 * factor[0])
        for name, parameter in theirs.items():
            parameter.grad = gradients[name]
        public.step()
        linear.step()
        for name, parameter in theirs.items():
            torch.testing.assert_close(ours[name], parameter.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", ["fedavg", "ditto", "floral_1", "local_adaptor"])
@pytest.mark.parametrize("backend", ["vmap", "batched"])
def test_all_backends_make_equal_steps(variant: str, backend: Any) -> None:
    """Clients have one to three steps, so some wait while others train. Ditto has two phases."""
    how: dict[str, Any] = {"local": ADAMW, "rounds": 2, "lr": 0.02, "epochs": 2}
    loop = trained(variant, **how)
    assert_equal_states(trained(variant, backend=backend, chunk=3, **how), loop, 1e-9)


def test_every_method_takes_it_or_refuses_with_a_reason() -> None:
    refused = {}
    for variant in FIRST.values():
        try:
            simulation = simulate(variant, local=ADAMW, rounds=1)
        except ConfigError as error:
            refused[variant] = str(error)
            continue
        names = simulate(variant, rounds=1).method.groups.keys()
        assert simulation.method.groups.keys() == names, f"{variant}: moments would be stored or sent"
    assert refused.keys() == {"apfl", "mean_regularised", "pfedme", "per_fedavg", "scaffold"}
    assert "follow from the length of a step of SGD; remove `local`" in refused.pop("scaffold")
    assert all("local steps of its own, which another optimiser cannot replace" in why for why in refused.values())


def test_the_schedule_follows_a_clients_own_steps_of_a_phase() -> None:
    """Seven clients of 1 to 12 samples in batches of 4, all in one chunk, in two phases of two epochs."""
    seen: list[tuple[list[float], list[float], int, int]] = []

    def spy(method: Method) -> Method:
        def schedule(done, steps, round, rounds):
            seen.append((done.tolist(), steps.tolist(), round, rounds))
            return torch.ones_like(done)

        return replace(method, schedule=schedule)

    simulation = simulate("ditto", local=ADAMW, rounds=3, participation=1.0, chunk=7, backend="vmap", change=spy)
    simulation.train(simulation.start(), 2)
    by_client = [9, 4, 7, 1, 12, 6, 5]
    steps = [-(-samples // 4) for samples in by_client]
    first = [([float(min(h, n)) for n in steps], [float(n) for n in steps], 2, 3) for h in range(max(steps))]
    cohort = simulation.cohort(2).tolist()
    expected = [([done[k] for k in cohort], [total[k] for k in cohort], *rest) for done, total, *rest in first]
    assert seen == [*expected, *expected]


def test_schedules_by_hand() -> None:
    done, steps = torch.tensor([0.0, 1.0, 3.0]), torch.tensor([1.0, 4.0, 4.0])
    assert AdamW().factor(done, steps, 3, 4).tolist() == [1, 1, 1]
    assert AdamW(schedule="round").factor(done, steps, 3, 4).tolist() == [1, 0.75, 0.25]
    assert AdamW(schedule="training").factor(done, steps, 3, 4).tolist() == [0.5, 0.5, 0.5]
    assert LEARNING_RATE not in simulate("fedavg", local=ADAMW).method.noise


def test_the_optimiser_belongs_to_the_hash_unless_it_is_sgd() -> None:
    plain, sgd, adamw = (make_run(local=local) for local in (Local(), Local(optimiser="sgd"), ADAMW))
    assert plain.identity() == sgd.identity() == make_run().identity() != adamw.identity()
    assert "local" not in plain.identity()["task"] and adamw.identity()["task"]["local"]["optimiser"] == "adamw"
    with pytest.raises(ValidationError, match=r"`weight_decay` is for `optimiser: adamw`; set this optimiser, or"):
        Local(weight_decay=0.1)
