"""Local steps of LoRA with the packages peft and transformers, in a bare loop of PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from floral.bench.rounds import engine_batches
from floral.config import networks
from floral.config.run import Run
from floral.core.process import operation_threads
from floral.stages.assemble import assemble

PACKAGES = ("peft", "transformers")
"""The packages that train here. They are part of the extra `hf`."""
PREPARED_ROUNDS = 24
"""Rounds whose batches are prepared. Later rounds use them again."""
PADDING = 0
"""Token id of padding."""

Steps = Sequence[tuple[Tensor, Tensor]]
"""For each step, the token ids [B, T] of a batch and its labels [B]."""


class MeanPooled(nn.Module):
    """A BERT of transformers with the mean over the tokens and a linear head, as `kind: bert`.

    The layers have the same names as those of `kind: bert`.
    """

    def __init__(self, bert: Any, outputs: int) -> None:
        super().__init__()
        self.encoder, self.embeddings = bert.encoder, bert.embeddings
        self.whole = [bert]  # in a list, so that its layers are registered only once, with the names above
        self.classifier = nn.Linear(bert.config.hidden_size, outputs)

    def forward(self, ids: Tensor) -> Tensor:
        present = (ids != PADDING).long()
        features = self.whole[0](input_ids=ids, attention_mask=present).last_hidden_state
        return self.classifier((features * present[..., None]).sum(1) / present.sum(1, keepdim=True))


def adapted(folder: Path, outputs: int, targets: Sequence[str], **lora: Any) -> nn.Module:
    """Return the BERT in a folder with adapters of peft in the layers `targets` and a trained head.

    It is in evaluation mode, because the models of floral have no dropout. `lora` has further keys of peft's
    `LoraConfig`, such as the rank `r`.
    """
    from peft import LoraConfig, get_peft_model  # pyright: ignore[reportMissingImports] - of the extra `hf`
    from transformers import BertModel, utils  # pyright: ignore[reportMissingImports] - of the extra `hf`

    utils.logging.set_verbosity_error()
    utils.logging.disable_progress_bar()
    model = MeanPooled(BertModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False), outputs)
    config = LoraConfig(target_modules=list(targets), modules_to_save=["classifier"], **lora)
    return get_peft_model(model, config).eval()


class PeftRounds:
    """A callable that does the local steps of rounds with peft: a call with n does those of the next n rounds.

    The steps of all clients of a round train one model, one after another. There is no server.
    """

    def __init__(self, model: nn.Module, rounds: Sequence[Steps], lr: float) -> None:
        self.model, self.rounds, self.round = model, rounds, 0
        self.optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)

    @classmethod
    def of(cls, run: Run, results: Path) -> PeftRounds:
        """Return a callable that trains a run of `fedit` with `kind: bert`, on the batches that the engine draws."""
        simulation, data, _ = assemble(run, results, torch.device("cpu"), torch.float32)
        train, rounds = simulation.data.train, []
        for round in range(1, 1 + PREPARED_ROUNDS):
            plan = engine_batches(simulation, round)
            rounds.append(
                [
                    without_padding(*train.gather(index[mask]))
                    for index, mask in zip(plan.index.flatten(0, 1), plan.mask.flatten(0, 1), strict=True)
                ]
            )
        model = networks.located(run.task.model, results)
        assert model.adapt is not None and data.classes is not None
        targets = [pattern.removeprefix("*.") for pattern in model.adapt]
        rank = run.variant.params["rank"]
        folder = Path(model.all_keys["path"])
        return cls(adapted(folder, data.classes, targets, r=rank, lora_alpha=rank), rounds, run.task.lr)

    def __str__(self) -> str:
        return "peft and transformers"

    def __call__(self, rounds: int) -> None:
        with operation_threads(1):
            for _ in range(rounds):
                for ids, labels in self.rounds[self.round % len(self.rounds)]:
                    self.optimiser.zero_grad()
                    F.cross_entropy(self.model(ids), labels).backward()
                    self.optimiser.step()
                self.round += 1


def without_padding(ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cut off the positions that are padding in all texts of a batch, and return the token ids as whole numbers."""
    ids = ids.long()
    return ids[:, : int((ids != PADDING).sum(1).max())], labels
