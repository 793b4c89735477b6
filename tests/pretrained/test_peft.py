"""LoRA is that of the package peft on a real encoder: scale, start, dropout, and a step of training."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from federations import CLASSES, make_data, simulate, view_of
from skips import package
from torch import Tensor, nn

from floral.adaptors.attach import noise_name
from floral.bench.peft import PeftRounds, adapted, without_padding
from floral.config.schema.task import Local
from floral.engine.simulate import Simulation
from floral.engine.state import State

RANK, ALPHA, LR, TOKENS = 4, 8.0, 0.1, 12
TARGETS = ["query", "value"]
PREFIX = "base_model.model."
EXACT = {"rtol": 0, "atol": 1e-6}


class Both(NamedTuple):
    """The same encoder and adaptor in floral and in peft."""

    simulation: Simulation
    state: State
    public: nn.Module

    @property
    def samples(self) -> tuple[Tensor, Tensor]:
        """Token ids and labels of the only client."""
        held = self.simulation.data.train
        return held.decode(held.x[: int(held.count[0])]), held.y[: int(held.count[0])]

    def ours(self) -> dict[str, Tensor]:
        return {**self.state.values["base"], **self.state.values["adaptor"]}

    def theirs(self) -> dict[str, nn.Parameter]:
        """The trained parameters of peft, by their names in floral."""

        def renamed(name: str) -> str:
            factor = re.sub(r"\.lora_([AB])\.default\.weight$", r".\1", name.removeprefix(PREFIX))
            return factor.replace(".modules_to_save.default", "")

        return {renamed(name): p for name, p in self.public.named_parameters() if p.requires_grad}


@pytest.fixture
def folder(stored: Callable[[str], Path]) -> Path:
    """The folder of all-MiniLM-L6-v2."""
    package("peft")
    return stored("all_minilm_l6_v2") / "data" / "all_minilm_l6_v2"


def both(
    folder: Path, *, start: str = "kaiming", dropout: float = 0.0, dtype: torch.dtype = torch.float32, **task: Any
) -> Both:
    data = make_data((9,), shape=(TOKENS,), clusters=1)
    data = replace(data, scale=1, train_x=data.train_x.clip(1))
    params = {"rank": RANK, "alpha": ALPHA, "dropout": dropout, "start": start, "bias": False, "base": "joint"}
    model = {"kind": "bert", "path": str(folder), "adapt": [f"*.{target}" for target in TARGETS]}
    values = {"base": "frozen", "lr": LR, "batch": 16, **task}
    simulation = simulate("fedit", model=model, data=data, params=params, dtype=dtype, **values)
    weights = "gaussian" if start == "gaussian" else True
    public = adapted(
        folder, CLASSES, TARGETS, r=RANK, lora_alpha=ALPHA, lora_dropout=dropout, init_lora_weights=weights
    )
    return Both(simulation, simulation.start(), public.to(dtype))


def with_equal_values(pair: Both) -> Both:
    """The pair after both adaptors got the same random values, also of B, and both heads."""
    random = torch.Generator().manual_seed(0)
    for name, tensor in pair.state.values["adaptor"].items():
        if name.endswith(".B"):
            pair.state.values["adaptor"][name] = 0.05 * torch.randn(tensor.shape, generator=random, dtype=tensor.dtype)
    ours, theirs = pair.ours(), pair.theirs()
    assert ours.keys() == theirs.keys() and len(ours) == 2 * 2 * 6 + 2
    with torch.no_grad():
        for name, parameter in theirs.items():
            parameter.copy_(ours[name])
    return pair


@pytest.mark.parametrize("start", ["kaiming", "gaussian"])
def test_the_start_has_the_distribution_of_peft(folder: Path, start: str) -> None:
    pair = both(folder, start=start)
    ours, theirs = (
        torch.cat([t.detach().flatten() for name, t in values.items() if name.endswith(".A")])
        for values in (pair.ours(), pair.theirs())
    )
    assert len(ours) == len(theirs) == 6 * 2 * RANK * 384
    assert float(ours.std() / theirs.std()) == pytest.approx(1, abs=0.02)
    if start == "kaiming":
        assert float(ours.abs().max() / theirs.abs().max()) == pytest.approx(1, abs=1e-3)
    assert not any(t.any() for values in (pair.ours(), pair.theirs()) for n, t in values.items() if n.endswith(".B"))


def test_outputs_and_a_step_of_sgd_are_those_of_peft(folder: Path) -> None:
    pair = with_equal_values(both(folder))
    ids, labels = pair.samples
    view = view_of(pair.simulation, pair.state, 0)
    with torch.no_grad():
        logits, _ = pair.simulation.method.predict(view, ids, None, None)
        torch.testing.assert_close(logits, pair.public(ids.long()), **EXACT)
    assert_equal_steps(pair, lambda: PeftRounds(pair.public, [[without_padding(ids, labels)]], LR)(1))


def assert_equal_steps(pair: Both, step: Callable[[], None]) -> None:
    """Train peft by one step and floral for one round of one step, and compare all parameters."""
    step()
    before = pair.ours()
    pair.simulation.train(pair.state, 1)
    for name, value in pair.ours().items():
        assert not torch.equal(value, before[name])
        torch.testing.assert_close(value, pair.theirs()[name].detach(), **EXACT)


class Fixed(nn.Module):
    """Dropout with fixed random numbers."""

    def __init__(self, uniform: Tensor, rate: float) -> None:
        super().__init__()
        self.uniform, self.rate = uniform, rate

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.uniform >= self.rate) / (1 - self.rate)


def test_dropout_is_where_peft_has_it(folder: Path) -> None:
    rate = 0.3
    pair = with_equal_values(both(folder, dropout=rate))
    ids, _ = pair.samples
    random = torch.Generator().manual_seed(1)
    shapes = pair.simulation.method.noise
    assert len(shapes) == 6 * 2
    noise = {name: torch.rand(len(ids), *map(int, shape[1:]), generator=random) for name, shape in shapes.items()}
    for name, module in pair.public.named_modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout["default"] = Fixed(noise[noise_name(name.removeprefix(PREFIX))], rate)
    with torch.no_grad():
        view = view_of(pair.simulation, pair.state, 0)
        dropped, _ = pair.simulation.method.predict(view, ids, noise, torch.ones(len(ids)))
        without, _ = pair.simulation.method.predict(view, ids, None, None)
        torch.testing.assert_close(dropped, pair.public(ids.long()), **EXACT)
    assert (dropped - without).abs().max() > 1e-3


def test_a_step_of_adamw_is_that_of_peft(folder: Path) -> None:
    """In float64: the first step divides each gradient by its own size, and so also its rounding error."""
    local = Local(optimiser="adamw", weight_decay=0.1)
    pair = with_equal_values(both(folder, dtype=torch.float64, local=local, lr=1e-3))
    ids, labels = pair.samples
    optimiser = torch.optim.AdamW(pair.theirs().values(), lr=1e-3, weight_decay=0.1)

    def step() -> None:
        nn.functional.cross_entropy(pair.public(ids.long()), labels).backward()
        optimiser.step()

    assert_equal_steps(pair, step)
