"""A language model of stacked LSTMs (arXiv 1409.2329), their gates linear layers, so that adaptors attach to them."""

import torch
from torch import Tensor

from floral.core.spec import Refused
from floral.nn.layers import Call, Embedding, Layer, Linear, Model, scaled_units

OPEN = 1.0
"""Added to the forget gates: a cell begins by keeping most of what it holds (Gers et al. 2000)."""


def build(
    shape: tuple[int, ...],
    outputs: int,
    *,
    features: int = 8,
    hidden: int = 64,
    depth: int = 2,
    tied: bool = False,
    adapt_embedding: bool = False,
    width: float = 1.0,
) -> Model:
    """Token ids x [B, T] → embedding → `depth` LSTMs of `hidden` units → linear → [B, T, outputs], the next token's.

    The input products of LSTM i, of all T tokens at once, are the layer input<i>, its recurrent ones, taken T - 1
    times, the layer recurrent<i>. `tied`: the last layer has the embedding's weights, behind a linear one to as many
    features.

    Raises:
        Refused: the rows are no text of two tokens or more.
    """
    if len(shape) != 1 or shape[0] < 2:
        raise Refused(f"rows of shape {list(shape)} are no text: a language model needs token ids [T], T at least 2")
    (length,), hidden = shape, scaled_units(hidden, width)
    layers: dict[str, Layer] = {"embedding": Embedding(outputs, features, adapted=adapt_embedding)}
    for i in range(1, depth + 1):
        layers[f"input{i}"] = Linear(features if i == 1 else hidden, 4 * hidden)
        layers[f"recurrent{i}"] = Linear(hidden, 4 * hidden, bias=False, steps=length - 1)
    if tied:
        layers["project"] = Linear(hidden, features)
    layers["out"] = Linear(features if tied else hidden, outputs, tied="embedding" if tied else None)

    def forward(call: Call, x: Tensor) -> Tensor:
        x = call("embedding", x)
        for i in range(1, depth + 1):
            x = run(call, f"recurrent{i}", call(f"input{i}", x))
        return call("out", call("project", x) if tied else x)

    return Model(layers=layers, forward=forward)


def run(call: Call, recurrent: str, given: Tensor) -> Tensor:
    """The states h [B, T, H] of one LSTM from the input products of its gates, `given` [B, T, 4H].

    c_t = σ(f) c_{t-1} + σ(i) tanh(g) and h_t = σ(o) tanh(c_t), where (i, f, o, g) = given_t + R h_{t-1}.
    """
    hidden = given.shape[-1] // 4
    cell, states = None, list[Tensor]()
    for gates in given.unbind(1):
        gates = gates + call(recurrent, states[-1]) if states else gates
        into, keep, out, new = gates.split(hidden, -1)
        added = torch.sigmoid(into) * torch.tanh(new)
        cell = added if cell is None else torch.sigmoid(keep + OPEN) * cell + added
        states.append(torch.sigmoid(out) * torch.tanh(cell))
    return torch.stack(states, 1)
