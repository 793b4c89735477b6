"""The encoder of a pretrained BERT (arXiv 1810.04805) that classifies texts, with norms after each sum (post-norm)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from floral.config import paths, pretrained
from floral.core.spec import Refused
from floral.nn.attention import attend
from floral.nn.layers import Embedding, Layer, Linear, Position
from floral.nn.model import Call, Model, in_vmap
from floral.nn.norms import LayerNorm
from floral.toolkit.prepared import with_weights

VERSION = 2
"""Increase it when the same run gives other numbers."""

HEAD = "classifier"
ATTENTION = ("self.query", "self.key", "self.value", "output.dense")
"""Linear layers of an attention block, as files of weights name them."""
UNREAD = ("embeddings.position_ids", "pooler.*")
"""Names in files of weights that mean pooling does not need."""
SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "type_vocab_size",
)  # fmt: skip
"""Keys of config.json with the sizes of the encoder."""
ONLY = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
"""Keys of config.json that must have this value, which is also the default of all but the first."""


def build(shape: tuple[int, ...], outputs: int, *, path: str, width: float = 1.0) -> Model:
    """Build the encoder in a folder with config.json and one file *.safetensors, with a new classification head.

    Token ids x [B, T] → embeddings of words, positions and the first segment → norm → blocks → mean over the tokens →
    linear → [B, outputs].

    A block computes y = norm(x + attention(x)), then norm(y + linear(gelu(linear(y)))). Attention and the mean leave
    out padding, the token id `pad_token_id` of config.json. The mean replaces BERT's pooler (arXiv 1908.10084). No
    dropout is used. The layers have the names in the file of weights. `path` is a folder, or the name of a network in
    config/data.lock.

    Raises:
        Refused: the folder is incomplete, is of another architecture, or does not fit the data.
    """
    folder = paths.in_study(path)
    if width != 1.0:
        raise Refused(
            "the method needs a wider or narrower model, but a pretrained model has one size; use another method"
        )
    if len(shape) != 1:
        raise Refused(
            f"the model needs token ids, but samples have the shape {list(shape)}; use data whose samples are texts"
        )
    files = pretrained.weights(folder)
    if not (folder / pretrained.CONFIG).is_file() or len(files) != 1:
        raise Refused(
            f"`path: {path}`: the folder {folder} must have {pretrained.CONFIG} and one file *.safetensors; download "
            "the model there, or correct `path`"
        )
    sizes = read_config(folder / pretrained.CONFIG)
    if shape[0] > (limit := sizes["max_position_embeddings"]):
        raise Refused(f"samples have {shape[0]} tokens, but the model takes {limit}; use data with shorter texts")
    padding = pretrained.padding_id(folder / pretrained.CONFIG)
    blocks = [f"encoder.layer.{number}" for number in range(sizes["num_hidden_layers"])]
    model = Model(
        layers=layers_of(sizes, blocks, padding, outputs),
        forward=Encoder(blocks, sizes["num_attention_heads"], padding),
        head=HEAD,
        unread=UNREAD,
        vocabulary=sizes["vocab_size"],
    )
    return with_weights(model, files[0], [f"{HEAD}.*"])


def layers_of(sizes: dict[str, Any], blocks: list[str], padding: int, outputs: int) -> dict[str, Layer]:
    """Declare the layers of an encoder with the sizes of config.json."""
    width, hidden, epsilon = sizes["hidden_size"], sizes["intermediate_size"], sizes["layer_norm_eps"]
    deviation = 0.02
    layers: dict[str, Layer] = {
        "embeddings.word_embeddings": Embedding(sizes["vocab_size"], width, deviation, padding=padding),
        "embeddings.position_embeddings": Position(sizes["max_position_embeddings"], width),
        "embeddings.token_type_embeddings": Embedding(sizes["type_vocab_size"], width, deviation),
        "embeddings.LayerNorm": LayerNorm(width, epsilon, fused=True),
    }
    for block in blocks:
        layers |= {f"{block}.attention.{part}": Linear(width, width) for part in ATTENTION}
        layers[f"{block}.attention.output.LayerNorm"] = LayerNorm(width, epsilon, fused=True)
        layers[f"{block}.intermediate.dense"] = Linear(width, hidden)
        layers[f"{block}.output.dense"] = Linear(hidden, width)
        layers[f"{block}.output.LayerNorm"] = LayerNorm(width, epsilon, fused=True)
    return {**layers, HEAD: Linear(width, outputs)}


class Encoder:
    """The forward pass of the encoder and of its head."""

    def __init__(self, blocks: list[str], heads: int, padding: int) -> None:
        self.blocks, self.heads, self.padding = blocks, heads, padding

    def __call__(self, call: Call, x: Tensor) -> Tensor:
        """Return the logits [B, outputs] of token ids x [B, T]."""
        x, present = without_common_padding(x, x != self.padding)
        hidden = self.hidden(call, x, present, positions_with_text(present))
        weight = present.to(hidden.dtype).unsqueeze(-1)
        return call(HEAD, (hidden * weight).sum(1) / weight.sum(1).clamp(min=1))

    def hidden(self, call: Call, x: Tensor, present: Tensor, positions: Tensor | None) -> Tensor:
        """Return the features [B, T, width] of the last block. `present` [B, T] is False for padding.

        The linear layers are applied at `positions` [N] alone, or at all positions if it is None.
        """
        segment = call("embeddings.token_type_embeddings", x.new_zeros(1, 1))
        x = call("embeddings.position_embeddings", call("embeddings.word_embeddings", x)) + segment
        x = call("embeddings.LayerNorm", x)
        for block in self.blocks:
            name = f"{block}.attention"
            added = attend(call, name, x, self.heads, present=present, positions=positions, parts=ATTENTION)
            x = call(f"{block}.attention.output.LayerNorm", x + added)
            inner = F.gelu(call(f"{block}.intermediate.dense", x, positions))
            added = call(f"{block}.output.dense", inner, positions)
            x = call(f"{block}.output.LayerNorm", x + added)
        return x


def without_common_padding(x: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Cut off the positions at the end that are padding in all texts, of x [B, T] and of `present` [B, T].

    The result of the encoder does not depend on them, but its time does. Nothing is cut where the length may not depend
    on values: inside of `torch.vmap`, and on other devices than the CPU.
    """
    if in_vmap() or x.device.type != "cpu":
        return x, present
    longest = int((present.any(0) * torch.arange(1, x.shape[1] + 1)).max())
    return (x[:, :longest], present[:, :longest]) if longest else (x, present)


def positions_with_text(present: Tensor) -> Tensor | None:
    """Return the indices [N] of the positions that are no padding, among all B·T positions of `present` [B, T].

    Linear layers take most of the time, and a third of the positions of a batch is usually padding. The result is None
    where all positions are taken: if less than a tenth is padding, inside of `torch.vmap`, and on other devices than
    the CPU.
    """
    if in_vmap() or present.device.type != "cpu":
        return None
    positions = present.flatten().nonzero().squeeze(1)
    return positions if len(positions) < 0.9 * present.numel() else None


def read_config(path: Path) -> dict[str, Any]:
    """Return the keys of config.json that describe the encoder.

    Raises:
        Refused: the file cannot be read, is of another architecture, or lacks a size.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("its content is no mapping")
    except (OSError, ValueError) as error:
        raise Refused(f"{path}: this file cannot be read ({error}); download the model again") from None
    for key, only in ONLY.items():
        value = values.get(key, only if key != "model_type" else None)
        if value != only:
            raise Refused(
                f"{path}: `{key}` is {json.dumps(value)}, but `kind: bert` needs {json.dumps(only)}; use `kind: "
                "huggingface`, or name the folder of another model"
            )
    if wrong := [key for key in SIZES if type(values.get(key)) is not int or values[key] < 1]:
        raise Refused(f"{path}: `{wrong[0]}` is no positive whole number; download the model again")
    return {"layer_norm_eps": 1e-12, **values}
