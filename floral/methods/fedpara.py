"""FedPara (arXiv 2108.06098): each weight is the elementwise product of two low-rank matrices, trained from scratch."""

import math

from floral.core.spec import Cost, Group, Method, Params, Problem, Refused, Scope
from floral.core.streams import Stream
from floral.nn.layers import WEIGHT_LAYERS
from floral.toolkit.hadamard import composed, drawn_factors, rank_of
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
