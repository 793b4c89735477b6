"""A model as a body and a head: the features that the body computes, and the logits of a head on these features."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from floral.core.spec import Batch, Noise, Params, Problem, Refused, View
from floral.nn.layers import layer_params
from floral.nn.model import Model
from floral.toolkit.parts import body_model, head_name, predictor


@dataclass(frozen=True)
class BodyAndHead:
    """A model as a body and a head, its last linear layer. The head's inputs are the features [B, d].

    For text with T tokens, the features are [B, T, d].
    """

    model: Model
    body: Model
    name: str
    """Name of the head in the model."""

    @classmethod
    def of(cls, problem: Problem) -> BodyAndHead:
        """Return the task's model as a body and a head, for a method that needs classes.

        Raises:
            Refused: the task is a regression, or the model has no body before a last linear layer.
        """
        if problem.loss == "mse":
            raise Refused("the method needs classes, but the task is a regression; choose a task with classes")
        model = problem.build_model()
        return cls(model, body_model(model), head_name(model))

    def features(self, view: View, x: Tensor, noise: Noise | None, mask: Tensor | None) -> tuple[Tensor, View]:
        """Return the features of x [B, ...] by the body in the group "base", and the changed statistics."""
        return predictor(self.body)(view, x, noise, mask)

    def logits(self, params: Params, features: Tensor) -> Tensor:
        """Return the logits that a head computes from the features. `params` may also have those of the body."""
        return self.model.layers[self.name](layer_params(params, self.name), features)  # type: ignore[reportCallIssue]

    def of_head(self, params: Params) -> Params:
        """Return those of a model's parameters that belong to the head."""
        return {name: value for name, value in params.items() if name.rsplit(".", 1)[0] == self.name}


def labels_and_weights(samples: Batch, features: Tensor) -> tuple[Tensor, Tensor]:
    """Return all labels [N] of the samples, and their weights [N] in the type of the features: 1, or 0 for padding.

    N is the number of samples, or of all their tokens for text.
    """
    y = samples.y
    mask = samples.mask.reshape(-1, *(1,) * (y.dim() - 1)).expand(y.shape)
    return y.flatten(), mask.flatten().to(features.dtype)
