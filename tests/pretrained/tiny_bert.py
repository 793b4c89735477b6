"""A small BERT: its configuration, its values, and the words of a small tokenizer."""

from __future__ import annotations

import torch

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
