"""Fixtures: files of real networks, a small BERT, and a small tokenizer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from safetensors.torch import save_file
from skips import package
from tiny_bert import CONFIG, WORDS, tensors

from floral.config import data_sets
from floral.data import sources
from floral.stages.fetch import data_folders, fetch


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


DEBIAN = Path("/usr/share/datasets")
"""Where Debian's packages of data sets put their files."""


@pytest.fixture(scope="session")
def stored(missing: Callable[[str], NoReturn], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that stores an entry of config/data.lock, and returns the folder of the results."""
    results = tmp_path_factory.mktemp("stored")

    def store(name: str) -> Path:
        folders = (*(data_folders(None) if os.environ.get("FLORAL_DATA") else ()), DEBIAN)
        for file in data_sets.data_lock()[name].files:
            if not sources.is_there(file, results / "none", folders):
                missing(f"FLORAL_DATA has no {file.path}, and {DEBIAN} neither; .ci/setup installs Fashion-MNIST there")
        fetch(name, results, Path(os.pathsep.join(map(str, folders))))
        return results

    return store
