"""pFedMoE (arXiv 2402.01350): features of a client's own body and of a small shared one, mixed sample by sample."""

from dataclasses import replace

from floral.core.spec import Cost, Method, Problem, Scope
from floral.core.streams import Stream
from floral.nn.layers import Linear, layer_params
from floral.toolkit.parts import body_model, forward_backward_passes, head_name, model_groups, predictor, renamed_groups
from floral.toolkit.routes import Gate


def build(problem: Problem, *, width: float, gate_hidden: int) -> Method:
    """Body F_k and header PRIVATE, together the task's model from one common start; extractor G SHARED; gate PRIVATE.

    Features a_g·G(x) + a_l·F_k(x) with (a_g, a_l) the gate's softmax for each sample, header on top, one joint SGD
    step on all of them; G alone is sent. A gate fixed to (0, 1) is Local. A client that never takes part serves the
    start under the latest G.

    Chosen here, where accounts of the method leave it open: all clients have the task's model; G is its body at
    `width` with a linear layer to the features that the header takes; the gate is linear → ReLU → linear of
    `gate_hidden` units on the flattened inputs (images averaged to 8×8), without their normalisation by batch or layer,
    and starts even; it is trained at the router's rate, all else at the task's.

    Raises:
        Refused: the model has no body below a last linear layer, whose features could be mixed.
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
    own_features, shared_features = predictor(local), predictor(extractor, "extractor", "extractor_statistics")
    masks = {name: f"extractor_{name}" for name in extractor.noise}

    def predict(view, x, noise, mask):
        theirs = None if noise is None else {name: noise[drawn] for name, drawn in masks.items()}
        shared, of_shared = shared_features(view, x, theirs, mask)
        ours, of_own = own_features(view, x, noise, mask)
        of_gate = gate.log_weights(view, x).exp()
        mixed = of_gate[:, :1] * shared + of_gate[:, 1:] * ours
        return model.layers[last](layer_params(view["base"], last), mixed), {**of_shared, **of_own}

    return Method(
        groups=groups,
        predict=predict,
        noise={**model.noise, **{masks[name]: shape for name, shape in extractor.noise.items()}},
        cost=Cost(passes_per_sample=forward_backward_passes(problem, model, extractor, gate.model)),
    )


def body_width(model):
    """Features that the model's head takes."""
    return model.layers[head_name(model)].inputs
