"""A pretrained model in a folder classifies texts, which the tokenizer of the folder turns into token ids."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federations import make_run, train
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from skips import package

from floral.bench.prepare import prepare
from floral.config import data_sets
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.schema.data import CustomData
from floral.data.federation import Federation
from floral.data.sources import DataError
from floral.engine.simulate import Simulation
from floral.models import huggingface
from floral.stages.assemble import assemble
from floral.stages.fetch import fetch

MINILM = Path(os.environ.get("FLORAL_DATA", "no folder")) / "all-MiniLM-L6-v2"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "good", "bad", "film"]
TEXTS = [("a good film", "yes"), ("bad", "no"), ("a bad film", "no"), ("good good good good good good", "yes")]


@pytest.fixture(autouse=True)
def without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError(f"a connection to {arguments[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small BERT without a head, with a tokenizer of 8 words."""
    package("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    path = tmp_path_factory.mktemp("bert")
    sizes = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 6}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=8, **sizes)).save_pretrained(path)
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def run_of(folder: Path, place: Path, variant: str = "fedavg", tokens: int = 6, **keys: Any) -> Run:
    """A run of two clients with 16 texts each. `keys` are keys of the model."""
    rows = [f"{text},{label},{client}" for client in "ab" for text, label in TEXTS * 4]
    (place / "texts.csv").write_text("\n".join(["text,label,client", *rows]))
    data = CustomData(kind="table", path=str(place / "texts.csv"), label="label", client="client", text="text",
                      tokenizer=str(folder), tokens=tokens)  # fmt: skip
    model = {"kind": "huggingface", "path": str(folder), "auto": "sequence_classification", **keys}
    return make_run(variant, model=model, data=data, clients=2, clusters=1, partition={"kind": "natural"})  # type: ignore[arg-type]


def assembled(run: Run, results: Path) -> tuple[Simulation, Federation]:
    prepare([run], results, None)
    simulation, data, _ = assemble(run, results, torch.device("cpu"))
    return simulation, data


@pytest.mark.parametrize("variant", ["fedavg", "floral_1"])
def test_a_folder_is_trained_without_a_network(
    folder: Path, tmp_path: Path, variant: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="floral.train"):  # which writes the log of a run
        simulation, data = assembled(run_of(folder, tmp_path, variant, labels=2), tmp_path / "results")
    assert ("floral.train", 20, "model: the head is classifier") in caplog.record_tuples
    rows = {tuple(row) for row in np.concatenate([data.train_x, data.test_x]).tolist()}
    assert rows == {(2, 4, 5, 7, 3, 0), (2, 6, 3, 0, 0, 0), (2, 4, 6, 7, 3, 0), (2, 5, 5, 5, 5, 3)}
    start = simulation.start().values["base"]
    word = load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"]
    assert torch.equal(start["bert.embeddings.word_embeddings.weight"], word)
    state = train(simulation, rounds=1)
    assert not torch.equal(state.values["base"]["classifier.weight"], start["classifier.weight"])


def test_the_hash_follows_the_content_of_the_folder_and_not_its_path(folder: Path, tmp_path: Path) -> None:
    def copied(name: str, **change: torch.Tensor) -> Path:
        (tmp_path / name).mkdir()
        for file in ("config.json", "tokenizer.json"):
            (tmp_path / name / file).write_bytes((folder / file).read_bytes())
        save_file(load_file(folder / "model.safetensors") | change, tmp_path / name / "model.safetensors")
        return tmp_path / name

    first, same = run_of(copied("a"), tmp_path), run_of(copied("b"), tmp_path)
    assert first.hash8 == same.hash8 and first.partition.hash8 == same.partition.hash8
    changed = run_of(copied("c", **{"pooler.dense.bias": torch.ones(4)}), tmp_path)
    assert changed.hash8 != first.hash8 and changed.partition.hash8 == first.partition.hash8
    other_words = copied("d")
    (other_words / "tokenizer.json").write_text((folder / "tokenizer.json").read_text().replace("film", "book"))
    data_sets._content.cache_clear()
    assert run_of(other_words, tmp_path).partition.hash8 != first.partition.hash8


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "labels": ({"labels": 5}, "`labels: 5` is set, but the data have 2 classes"),
    "auto": ({"auto": "causal_lm"}, "`auto: causal_lm` is unknown; write one of sequence_classification"),
    "path": ({"path": "nowhere"}, "the folder nowhere must have config.json and weights"),
    "width": ({"width": 0.5}, "a pretrained model has one size; use another method"),
    "shape": ({"shape": (4, 4)}, r"needs token ids, but samples have the shape \[4, 4\]; name `text`"),
    "tokens": ({"shape": (9,)}, "samples have 9 tokens, but the model takes 8; set `data.tokens` to at most 8"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_a_model_that_does_not_fit_is_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(huggingface.Refused, match=message):
        huggingface.build(**{"shape": (6,), "outputs": 2, "path": str(folder), **change})


def test_a_folder_without_all_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    values = load_file(folder / "model.safetensors")
    del values["encoder.layer.0.output.dense.weight"]
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file(values, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        huggingface.Refused, match=r"the weights have no bert\.encoder\.layer\.0\.output\.dense\.weight"
    ):
        huggingface.build((6,), 2, path=str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-8])
    with pytest.raises(
        huggingface.Refused, match=rf"^{tmp_path}/model\.safetensors cannot be .* the file is incomplete"
    ):
        huggingface.build((6,), 2, path=str(tmp_path))


def test_token_ids_of_another_tokenizer_and_texts_that_are_too_long_are_refused(folder: Path, tmp_path: Path) -> None:
    larger = tmp_path / "larger"
    larger.mkdir()
    (larger / "config.json").write_text(
        json.dumps(json.loads((folder / "config.json").read_text()) | {"vocab_size": 9})
    )
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["film"] = 8
    (larger / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(
        ConfigError, match=rf"token id 8, but the model of `model\.path: {folder}` has 8 token ids; make"
    ):
        assembled(run_of(larger, tmp_path, path=str(folder)), tmp_path / "results")
    rows = ["text,label", *(f"{text},{label}" for text, label in TEXTS * 2), f"{'good ' * 10_000},yes"]
    (tmp_path / "long.csv").write_text("\n".join(rows))
    data = {"path": str(tmp_path / "long.csv"), "label": "label", "text": "text", "tokenizer": str(folder)}
    message = (
        r"long\.csv: column 'text', row 8 .*: the text has 10,002 tokens, but .* takes 8; .* or set `data\.tokens`"
    )
    with pytest.raises(DataError, match=message):
        fetch(CustomData(kind="table", **data), tmp_path)
    cut = fetch(CustomData(kind="table", tokens=3, **data), tmp_path)
    assert np.load(cut / "train_x.npy").shape[1] == 3


def test_a_folder_without_a_padding_id_is_refused(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"pad_token_id": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(ConfigError, match="`pad_token_id` cannot be read; name the folder"):
        prepare([run_of(tmp_path, tmp_path)], tmp_path / "results", None)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"text": "t"}, "`data.tokenizer` is missing"),
        ({"tokens": 9}, "need `data.text`; name the column"),
        ({"text": "t", "tokenizer": "m", "features": ["u"]}, "`data.text` excludes `data.features`"),
    ],
)
def test_keys_of_text_belong_together(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CustomData(kind="table", path="texts.csv", label="label", **keys)


def test_a_real_encoder_with_a_frozen_base_trains_its_head_and_adaptors(tmp_path: Path) -> None:
    package("transformers")
    if not MINILM.is_dir():
        pytest.skip("FLORAL_DATA has no folder all-MiniLM-L6-v2")
    run = run_of(MINILM, tmp_path, "local_adaptor", tokens=8)
    run = run.model_copy(update={"task": run.task.model_copy(update={"base": "frozen"})})
    simulation, data = assembled(run, tmp_path / "results")
    assert data.train_x[0][0] == 101 and {102, 0} <= set(data.train_x[0].tolist())
    state = train(simulation, rounds=1)
    trained_values = sum(tensor.numel() for params in state.values.values() for tensor in params.values())
    assert trained_values < 1e6
