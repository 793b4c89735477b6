"""Language model of stacked LSTMs (arXiv 1409.2329).

The gates are linear layers, so that adaptors can be attached to them.
"""

import torch
from torch import Tensor

from floral.core.spec import Refused
from floral.nn.layers import Embedding, Layer, Linear, scaled_units
from floral.nn.model import Call, Model

VERSION = 1
"""Increase it when the same run gives other numbers."""

FORGET_BIAS = 1.0
"""Added to the forget gates, so that a cell keeps most of its state at the start (Gers et al. 2000)."""


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
    """Build an LSTM language model that predicts the next token.

    Token ids x [B, T] → embedding → `depth` LSTMs of `hidden` units → linear → [B, T, outputs].

    LSTM number i consists of two linear layers. The layer input<i> is applied once, to all T tokens. The layer
    recurrent<i> is applied T - 1 times, because the first token has no earlier state. With `tied`, the last layer uses
    the embedding's weights, and a linear layer before it reduces the states to the embedding's number of features.

    Raises:
        Refused: the samples are not texts of at least two tokens.
    """
    if len(shape) != 1 or shape[0] < 2:
        raise Refused(
            f"samples of shape {list(shape)} are not text: a language model needs token ids of shape [T] with T at "
            "least 2; choose another model"
        )
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
            x = run_lstm(call, f"recurrent{i}", call(f"input{i}", x))
        return call("out", call("project", x) if tied else x)

    return Model(layers=layers, forward=forward)


def run_lstm(call: Call, recurrent: str, inputs: Tensor) -> Tensor:
    """Return the states h [B, T, H] of one LSTM, computed from its linearly transformed inputs [B, T, 4H].

    At time step t the gates are (i, f, o, g) = inputs_t + R h_{t-1}, where R is the layer `recurrent`. The cell is c_t
    = σ(f + FORGET_BIAS) c_{t-1} + σ(i) tanh(g), and the state is h_t = σ(o) tanh(c_t), with the sigmoid σ.
    """
    hidden = inputs.shape[-1] // 4
    cell, states = None, list[Tensor]()
    for gates in inputs.unbind(1):
        gates = gates + call(recurrent, states[-1]) if states else gates
        into, forget, out, new = gates.split(hidden, -1)
        added = torch.sigmoid(into) * torch.tanh(new)
        cell = added if cell is None else torch.sigmoid(forget + FORGET_BIAS) * cell + added
        states.append(torch.sigmoid(out) * torch.tanh(cell))
    return torch.stack(states, 1)
