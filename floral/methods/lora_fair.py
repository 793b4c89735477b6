"""LoRA-FAIR (arXiv 2411.14961): average the factors A and B, then correct B so that B A is near the mean product."""

from dataclasses import replace
from typing import Any

import torch

from floral.adaptors.aggregation import averaging_error, flatten, require_matrix_products, unflatten
from floral.adaptors.attach import adaptors_of
from floral.adaptors.embedding import EmbeddingAdaptor
from floral.core.spec import Method, Problem, ServerStep, ServerView, View
from floral.methods.fedit import fedit_method


def build(problem: Problem, *, base: str, warmup: float, lam: float, **adaptor: Any) -> Method:
    """LoRA-FAIR: FedIT, but after the averages the server adds a correction ΔB to the factor B of each layer.

    A = Σ_k p(k) A_k and B = Σ_k p(k) B_k are the averages of the factors. The product (B + ΔB) A is to be near the mean
    product Σ_k p(k) B_k A_k, and ΔB small: ΔB minimises ‖Σ_k p(k) B_k A_k - (B + ΔB) A‖² + lam·‖ΔB‖² in the Frobenius
    norm. With the averaging error E = Σ_k p(k) B_k A_k - B A, it is ΔB = E Aᵀ (A Aᵀ + lam·I)⁻¹. Biases are averaged.

    Limiting cases: for lam → ∞, or with one client per round, this is FedIT.

    The options `base` and `warmup` are as in `fedit`.

    Raises:
        Refused: the adaptor of a convolution is not a single matrix product.
    """
    adaptors = adaptors_of(problem, **adaptor)
    require_matrix_products(adaptors)

    def correct(served: ServerView) -> View:
        if "adaptor" not in served.means:
            return {}
        assert served.client_vectors is not None
        mean, vectors = served.means["adaptor"], served.client_vectors.vectors
        share = served.client_vectors.share.to(vectors.dtype)
        error = averaging_error(adaptors, unflatten(vectors, mean), share, mean)
        corrected = dict(served.after["adaptor"])
        for layer, part in adaptors.by_layer.items():
            down, missing = mean[f"{layer}.A"].flatten(1), error[f"{layer}.weight"] / part.scale
            missing = missing.mT if isinstance(part, EmbeddingAdaptor) else missing.flatten(1)
            gram = down @ down.mT + lam * torch.eye(len(down), dtype=down.dtype, device=down.device)
            change = torch.linalg.solve_ex(gram, down @ missing.mT)[0].mT
            corrected[f"{layer}.B"] = corrected[f"{layer}.B"] + change.reshape(mean[f"{layer}.B"].shape)
        return {"adaptor": corrected}

    method = fedit_method(problem, adaptors, base, warmup)
    return replace(method, server=ServerStep(client_vector=lambda view: flatten(view["adaptor"]), update=correct))
