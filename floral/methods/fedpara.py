"""FedPara (arXiv 2108.06098): each weight is the elementwise product of two low-rank matrices, trained from scratch."""

import math

import torch
from torch import Tensor

from floral.core.spec import Cost, Group, Method, Params, Problem, Refused, Scope
from floral.core.streams import Stream
from floral.nn.layers import WEIGHT_LAYERS
from floral.toolkit.parts import model_groups, predictor, repeated_start


def build(problem: Problem, *, gamma: float) -> Method:
    """FedPara: FedAvg of a model whose weights are W = (X₁ Y₁ᵀ) ⊙ (X₂ Y₂ᵀ). The factors are trained and sent.

    The product of two matrices of rank R has a rank of up to R². In a convolution, X Yᵀ becomes Σ_rs T_rs X_r Y_s with
    a small kernel T. All linear layers and convolutions have factors. Other parameters are as in FedAvg.

    Limiting case: if X₂ Y₂ᵀ is fixed at 1 in all layers, each weight is X₁ Y₁ᵀ, a plain low-rank matrix.

    Costs: a client computes its weights once per batch, which is counted.

    Raises:
        Refused: the weights of the task's model start with values of a file, which the factors cannot have.
    """
    return hadamard_method(problem, gamma, personal=False)


def hadamard_method(problem: Problem, gamma: float, *, personal: bool) -> Method:
    """Build FedPara, or pFedPara with `personal`: W = W₁ ⊙ (W₂ + 1), with PRIVATE factors of W₂."""
    model, stream = problem.build_model(), Stream(problem.seed, "model")
    start = model.init(stream)
    layers = [name for name, layer in model.layers.items() if isinstance(layer, WEIGHT_LAYERS)]
    weights = [f"{name}.weight" for name in layers if f"{name}.weight" in start]
    if any(name in model.values for name in weights):
        raise Refused(
            "the method trains factors from scratch, which cannot start at the values of the file `weights`; "
            "remove `weights`, or use another method"
        )

    def factors(number: int) -> Params:
        """Return the initial factors of W₁ or W₂. W then has the variance of the layer's usual initial values."""
        drawn = {}
        for name in weights:
            variance = float(start[name].square().mean())
            of_layer = drawn_factors(
                stream.of(f"{name}{number}"),
                start[name].shape,
                rank_of(start[name], gamma),
                variance if personal else math.sqrt(variance),
            )
            drawn |= {f"{name}.{key}{number}": value for key, value in of_layer.items()}
        return drawn

    def predict(view, x, noise, mask):
        held = {**view["base"], **view.get("private", {})}
        product = {name: composed(held, name, 1) * (composed(held, name, 2) + personal) for name in weights}
        plain = {name: value for name, value in held.items() if name in start}
        return predictor(model)({**view, "base": {**plain, **product}}, x, noise, mask)

    first, second = factors(1), factors(2)
    rest = {name: value for name, value in start.items() if name not in weights}
    base = {**rest, **first} if personal else {**rest, **first, **second}
    groups = {
        **model_groups(model, Scope.SHARED, stream, problem.lr),
        "base": Group(scope=Scope.SHARED, init=lambda: base, lr=problem.lr),
    }
    if personal:
        groups["private"] = Group(
            scope=Scope.PRIVATE, init=lambda: repeated_start(second, problem.clients), lr=problem.lr
        )
    composing = sum(2 * rank_of(start[name], gamma) * start[name].numel() for name in weights)
    return Method(
        groups=groups,
        predict=predict,
        noise=model.noise,
        cost=Cost(passes_per_sample=1 + composing / model.multiply_adds(problem.shape, problem.batch)),
    )


def rank_of(weight: Tensor, gamma: float) -> int:
    """Return the rank R of the two factors of a weight [a, b, ...].

    It lies between R_min = √min(a, b), with which W can have full rank, and the R_max with which the factors have as
    many parameters as W. With `gamma` γ it is (1 - γ) R_min + γ R_max, or R_min if R_max is smaller. Results are
    rounded up.
    """
    rows, columns, area = weight.shape[0], weight.shape[1], math.prod(weight.shape[2:])
    smallest = math.ceil(math.sqrt(min(rows, columns)))
    if weight.dim() == 2:
        largest = weight.numel() // (2 * (rows + columns))
    else:  # 2 (R² area + R (rows + columns)) = rows · columns · area
        side = (rows + columns) / (2 * area)
        largest = int(math.sqrt(side**2 + rows * columns / 2) - side)
    return math.ceil((1 - gamma) * smallest + gamma * max(smallest, largest))


def drawn_factors(stream: Stream, shape: torch.Size, rank: int, variance: float) -> Params:
    """Draw normal factors X [a, R] and Y [b, R], and for a kernel T [R, R, ...], whose product has the variance."""
    kernel = tuple(shape[2:])
    deviation = (variance / rank**2) ** (1 / 6) if kernel else (variance / rank) ** (1 / 4)
    drawn = {"X": stream.normal("X", (shape[0], rank), deviation), "Y": stream.normal("Y", (shape[1], rank), deviation)}
    return drawn | ({"T": stream.normal("T", (rank, rank, *kernel), deviation)} if kernel else {})


def composed(params: Params, name: str, number: int) -> Tensor:
    """Return W₁ or W₂ of a layer from its factors."""
    rows, columns = (params[f"{name}.{key}{number}"] for key in "XY")
    if f"{name}.T{number}" not in params:
        return rows @ columns.mT
    return torch.einsum("rshw,ar,bs->abhw", params[f"{name}.T{number}"], rows, columns)
