"""Fixtures: files of real networks, a small BERT, and a small tokenizer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from safetensors.torch import save_file

from floral.config import data_sets
from floral.data import sources
from floral.stages.fetch import data_folders, fetch

SIZES = {
    "vocab_size": 17, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
    "max_position_embeddings": 10, "type_vocab_size": 2,
}  # fmt: skip
CONFIG = {"model_type": "bert", "hidden_act": "gelu", "pad_token_id": 0, **SIZES}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "good", "bad", "film", "book", "day"]


def tensors() -> dict[str, torch.Tensor]:
    """The values of a small BERT, by their names in files of weights."""
    random = torch.Generator().manual_seed(0)
    width, hidden = SIZES["hidden_size"], SIZES["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (SIZES["vocab_size"], width),
        "embeddings.position_embeddings.weight": (SIZES["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "pooler.dense.weight": (width, width),
    }
    norms = ["embeddings.LayerNorm"]
    for block in range(SIZES["num_hidden_layers"]):
        place = f"encoder.layer.{block}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= {f"{place}.{part}.weight": (width, width), f"{place}.{part}.bias": (width,)}
        shapes |= {f"{place}.intermediate.dense.weight": (hidden, width), f"{place}.intermediate.dense.bias": (hidden,)}
        shapes |= {f"{place}.output.dense.weight": (width, hidden), f"{place}.output.dense.bias": (width,)}
        norms += [f"{place}.attention.output.LayerNorm", f"{place}.output.LayerNorm"]
    values = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    for norm in norms:
        values |= {f"{norm}.weight": torch.ones(width), f"{norm}.bias": torch.zeros(width)}
    return values


@pytest.fixture
def small_bert(tmp_path: Path) -> Path:
    """The folder of a BERT with 2 blocks and a vocabulary of 17 token ids."""
    folder = tmp_path / "small_bert"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors(), folder / "model.safetensors")
    return folder


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """The folder of a tokenizer with 10 words, and of the configuration of the small BERT."""
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import models, pre_tokenizers, processors

    folder = tmp_path / "tokenizer"
    folder.mkdir()
    words = models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]")
    made = tokenizers.Tokenizer(words)
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture(scope="session")
def stored(missing: Callable[[str], NoReturn], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that stores an entry of config/data.lock, and returns the folder of the results."""
    results = tmp_path_factory.mktemp("stored")

    def store(name: str) -> Path:
        folders = data_folders(None) if os.environ.get("FLORAL_DATA") else ()
        for file in data_sets.data_lock()[name].files:
            if not sources.is_there(file, results / "none", folders):
                missing(f"FLORAL_DATA has no {file.path}")
        fetch(name, results)
        return results

    return store
