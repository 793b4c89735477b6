"""`floral export` writes the adaptor of a client for the package peft, which then computes the same outputs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federations import make_data, make_run, simulate, view_of
from safetensors.torch import load_file, save_file
from skips import package
from tiny_bert import SIZES, tensors
from torch import Tensor

import floral
from floral.api.peft import CONFIG, HEAD, WEIGHTS, export_peft
from floral.cli.main import main
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.core.spec import Method, View
from floral.nn.model import Model
from floral.stages.assemble import make_problem

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # which peft calls
IDS = torch.tensor([[2, 4, 5, 3, 0, 0], [2, 6, 7, 8, 9, 3], [2, 3, 0, 0, 0, 0]])


class Trained:
    """A stand-in of `TrainedModel` on data in memory. All adaptors have random values, also their factors B."""

    clients = 3

    def __init__(self, variant: str, model: dict[str, Any], **run: Any) -> None:
        self.data = replace(make_data((5, 3, 4), shape=(6,)), scale=1)
        keys: dict[str, Any] = {"base": "frozen", **run}
        self.run: Run = make_run(variant, model=model, clients=3, **keys)
        self.simulation = simulate(variant, model=model, data=self.data, dtype=torch.float32, **keys)
        self.state = self.simulation.start()
        random = torch.Generator().manual_seed(0)
        for params in self.state.values.values():
            for name, tensor in params.items():
                params[name] = tensor + 0.3 * torch.randn(tensor.shape, generator=random)

    @property
    def method(self) -> Method:
        return self.simulation.method

    def build_model(self) -> Model:
        return make_problem(self.run, self.data, torch.device("cpu"), torch.float32).build_model()

    def view(self, client: int) -> View:
        return view_of(self.simulation, self.state, client)

    def logits(self, client: int) -> Tensor:
        with torch.no_grad():
            return self.method.predict(self.view(client), IDS.float(), None, None)[0]


def exported(trained: Any, client: int, folder: Path) -> Path:
    export_peft(trained, client, folder)
    return folder


@pytest.fixture
def peft() -> Any:
    return package("peft")


def outputs_of_peft(peft: Any, network: Path, adapter: Path, *, merge: bool = False) -> Tensor:
    """The logits of the network of `kind: bert` with the exported adapter and head."""
    from transformers import BertModel

    model = peft.PeftModel.from_pretrained(BertModel.from_pretrained(network, local_files_only=True), adapter).eval()
    model = model.merge_and_unload() if merge else model
    head, present = load_file(adapter / HEAD), (IDS != 0).long()
    with torch.no_grad():
        features = model(input_ids=IDS, attention_mask=present).last_hidden_state
        mean = (features * present[..., None]).sum(1) / present.sum(1, keepdim=True)
        return mean @ head["weight"].T + head["bias"]


QUERY_VALUE = ["*.query", "*.value"]
CASES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "one adaptor with a scale": ("fedit", {"rank": 2, "alpha": 6, "bias": False}, QUERY_VALUE),
    "mixture with biases": ("floral_1", {"rank": 2, "alpha": 3}, [*QUERY_VALUE, "*.dense"]),
    "mixture of each layer": ("floral_1_per_layer", {"rank": 2, "bias": False}, QUERY_VALUE),
    "two adaptors, shares as ranks": ("dual_lora", {"rank": 0.5, "bias": False}, ["*.query", "*.intermediate.dense"]),
    "embedding": ("local_adaptor", {"rank": 2, "bias": False}, ["*.query", "*.word_embeddings"]),
    "private head": ("fedsa_lora", {"rank": 2}, QUERY_VALUE),
    "adapted head": ("fedit", {"rank": 2}, ["*.query", "classifier"]),
}


@pytest.mark.parametrize(("variant", "params", "adapt"), CASES.values(), ids=CASES)
def test_peft_computes_the_same_logits(
    variant: str, params: dict[str, Any], adapt: list[str], small_bert: Path, tmp_path: Path, peft: Any
) -> None:
    trained = Trained(variant, {"kind": "bert", "path": str(small_bert), "adapt": adapt}, params=params)
    first, second = (exported(trained, client, tmp_path / str(client)) for client in (0, 1))
    torch.testing.assert_close(outputs_of_peft(peft, small_bert, first), trained.logits(0), rtol=0, atol=1e-5)
    merged = outputs_of_peft(peft, small_bert, second, merge=True)
    torch.testing.assert_close(merged, trained.logits(1), rtol=0, atol=1e-5)
    clusters = {"floral_1": 2, "floral_1_per_layer": 2, "dual_lora": 2}.get(variant, 1)
    if params["rank"] == 2:
        assert json.loads((first / CONFIG).read_text())["r"] == 2 * clusters


def test_a_classifier_of_hugging_face_is_exported_with_its_head(small_bert: Path, tmp_path: Path, peft: Any) -> None:
    from transformers import AutoModelForSequenceClassification

    save_file({**tensors(), "pooler.dense.bias": torch.zeros(SIZES["hidden_size"])}, small_bert / "model.safetensors")
    model = {"kind": "huggingface", "path": str(small_bert), "auto": "sequence_classification", "adapt": QUERY_VALUE}
    trained = Trained("floral_1", model, params={"rank": 2})
    adapter = exported(trained, 2, tmp_path / "adapter")
    assert sorted(path.name for path in adapter.iterdir()) == [CONFIG, WEIGHTS]
    torch.manual_seed(0)
    network = AutoModelForSequenceClassification.from_pretrained(small_bert, local_files_only=True, num_labels=5)
    loaded = peft.PeftModel.from_pretrained(network, adapter).eval()
    with torch.no_grad():
        logits = loaded(input_ids=IDS, attention_mask=(IDS != 0).long()).logits
    torch.testing.assert_close(logits, trained.logits(2), rtol=0, atol=1e-5)


def test_what_peft_cannot_represent_is_refused(small_bert: Path, tmp_path: Path) -> None:
    bert: dict[str, Any] = {"kind": "bert", "path": str(small_bert), "adapt": QUERY_VALUE}
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    new = tmp_path / "new"
    wrong: list[tuple[Any, Path, str]] = [
        (Trained("fedit", bert), tmp_path / "full", "full exists and is not empty; name a new folder"),
        (Trained("fedavg", bert), new, "fedavg have no adaptors, or weigh them .*; choose a run of another variant"),
        (Trained("fedalt", bert), new, "fedalt have no adaptors, or weigh them for each sample"),
        (Trained("fedit", bert, base="trained"), new, "base was trained or changed .*; train with `base: fro"),
        (
            Trained("floral_1", {**bert, "adapt": ["*.query", "*LayerNorm"]}, params={"norm": "plain"}),
            new,
            r"LayerNorm\) is no LoRA of a linear layer or an",
        ),
        (Trained("floral_1_fedex", bert), new, "the base was trained or changed"),
    ]
    for trained, folder, message in wrong:
        with pytest.raises(ConfigError, match=message):
            export_peft(trained, 0, folder)
    diverged = Trained("fedit", bert)
    diverged.state.values["adaptor"]["encoder.layer.0.attention.self.query.A"].fill_(torch.nan)
    with pytest.raises(ConfigError, match=r"lora_A\.weight is not finite, because the run has diverged"):
        export_peft(diverged, 0, new)  # type: ignore[arg-type]
    mlp: Any = type("Run", (), {"run": make_run("fedit")})
    with pytest.raises(ConfigError, match=r"`kind: mlp`, but an adapter of peft needs a pretrained encoder; choose"):
        export_peft(mlp, 0, new)
    assert not new.exists()


def test_the_command_exports_a_client_of_a_run(
    small_bert: Path, tmp_path: Path, peft: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = np.random.default_rng(0).integers(1, 17, (40, 6)).astype(np.float32)
    data = {"x": ids, "y": np.arange(40) % 5, "client": np.arange(40) % 2}
    model = {"kind": "bert", "path": str(small_bert), "adapt": QUERY_VALUE}
    task = {
        "data": data, "base": "frozen", "participation": 1.0, "rounds": 1, "batch": 4, "lr": 0.5, "model": model,
    }  # fmt: skip
    how: dict[str, Any] = {"results": tmp_path / "results", "threads": 1, "backend": "loop", "progress": False}
    trained = floral.run(task, {"name": "local_adaptor", "rank": 2}, **how).model()
    (summary,) = (tmp_path / "results").rglob("summary.json")
    folder = tmp_path / "adapter"
    command = ["export", str(summary.parent), "--peft", str(folder), "--client"]
    assert main([*command, "2"]) == 2
    assert "client: 2 is no client; give a number from 0 to 1" in capsys.readouterr().err
    assert main([*command, "1"]) == 0
    assert capsys.readouterr().out.split() == [str(folder / name) for name in (CONFIG, WEIGHTS, HEAD)]
    logits = outputs_of_peft(peft, small_bert, folder)
    torch.testing.assert_close(logits, trained.predict(IDS.float(), 1), rtol=0, atol=1e-5)
