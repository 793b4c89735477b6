"""pFedMoE (arXiv 2402.01350): mix the features of a private body and of a small shared extractor for each sample."""

from dataclasses import replace

from floral.core.spec import Cost, Method, Problem, Scope
from floral.core.streams import Stream
from floral.nn.layers import Linear, layer_params
from floral.toolkit.parts import body_model, forward_backward_passes, head_name, model_groups, predictor, renamed_groups
from floral.toolkit.routes import Gate


def build(problem: Problem, *, width: float, gate_hidden: int) -> Method:
    """pFedMoE: mix the features of a private body F_k and of a small shared extractor G, with weights for each sample.

    The last linear layer, the header, gets the features a_g·G(x) + a_l·F_k(x). The weights (a_g, a_l) are the softmax
    of a gate's outputs for the sample x. F_k and the header together are the task's model. They are PRIVATE and have
    the same initial values for all clients. The gate is PRIVATE, and G is SHARED. All parts train together in each
    step. A client sends only G.

    Limiting case: with a gate fixed to (0, 1), the task's model is trained as in Local.

    Raises:
        Refused: the model has no body before a last linear layer.
    """
    model, small = problem.build_model(), problem.build_model(width=width)
    last, local, gate = head_name(model), body_model(model), Gate(problem=problem, experts=2, hidden=gate_hidden)
    features = Linear(body_width(small), body_width(model))
    extractor = replace(small, layers={**small.layers, head_name(small): features})
    groups = {
        **model_groups(model, Scope.PRIVATE, Stream(problem.seed, "model"), problem.lr, holders=problem.clients),
        **renamed_groups(
            "extractor", model_groups(extractor, Scope.SHARED, Stream(problem.seed, "extractor"), problem.lr)
        ),
        **gate.groups,
    }
    private_features, shared_features = predictor(local), predictor(extractor, "extractor", "extractor_statistics")
    masks = {name: f"extractor_{name}" for name in extractor.noise}

    def predict(view, x, noise, mask):
        extractor_noise = None if noise is None else {name: noise[drawn] for name, drawn in masks.items()}
        shared, of_shared = shared_features(view, x, extractor_noise, mask)
        private, of_private = private_features(view, x, noise, mask)
        of_gate = gate.log_weights(view, x).exp()
        mixed = of_gate[:, :1] * shared + of_gate[:, 1:] * private
        return model.layers[last](layer_params(view["base"], last), mixed), {**of_shared, **of_private}

    return Method(
        groups=groups,
        predict=predict,
        noise={**model.noise, **{masks[name]: shape for name, shape in extractor.noise.items()}},
        cost=Cost(passes_per_sample=forward_backward_passes(problem, model, extractor, gate.model)),
    )


def body_width(model):
    """Return the number of inputs of the model's head, its last linear layer."""
    return model.layers[head_name(model)].inputs
