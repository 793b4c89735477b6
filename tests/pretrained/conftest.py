"""Fixtures: a small BERT, and a small tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file
from skips import package
from tiny_bert import CONFIG, WORDS, tensors


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
    tokenizers = package("tokenizers")
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
