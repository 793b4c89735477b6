"""Constant prediction: predict the best constant for every input, as a lower bound for all other methods."""

import torch

from floral.core.spec import Group, Method, Problem, Scope


def build(problem: Problem) -> Method:
    """Predict one constant output for all inputs. Nothing is trained.

    In classification, the output is the logarithm of the class frequencies over all training samples (for text, over
    all tokens). One count is added to each class. In regression, the output is the mean of the targets. Apart from the
    effect of the added counts, no other constant has a smaller training loss.
    """

    def fit(everyone):
        _, y = everyone.samples()
        if problem.loss == "mse":
            return {"base": {"output": y.mean(0)}}
        counts = torch.bincount(y.flatten(), minlength=problem.outputs).to(problem.dtype)
        smoothed = (counts + 1) / (counts + 1).sum()  # Laplace: a class without training samples has a finite loss
        return {"base": {"output": smoothed.log()}}

    def predict(view, x, noise, mask):
        del noise, mask
        leading = x.shape if problem.loss == "token_cross_entropy" else x.shape[:1]
        return view["base"]["output"].expand(*leading, problem.outputs), {}

    base = Group(scope=Scope.SHARED, init=lambda: {"output": torch.zeros(problem.outputs)})
    return Method(groups={"base": base}, predict=predict, prepare=fit, phases=())
