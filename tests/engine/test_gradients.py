"""The gradient of a function inside a vectorised step."""

from __future__ import annotations

import torch

from floral.toolkit.gradients import gradient_and_loss


class Absent:
    """Stands for PyTorch's compiler, which takes 2 s to import."""

    def __getattr__(self, name):
        raise AssertionError(f"the gradient imports the compiler, for {name}")


def test_gradients_of_several_clients_need_no_compiler(monkeypatch):
    monkeypatch.setattr(torch, "_dynamo", Absent(), raising=False)
    w, x = torch.randn(3, 4, dtype=torch.double), torch.randn(3, 4, dtype=torch.double)

    def loss(params, x):
        return (params["base"]["w"] ** 2 * x).sum(), {"mean": x.mean()}

    with torch.no_grad():
        slopes, value, changed = torch.vmap(gradient_and_loss(loss))({"base": {"w": w, "unused": x}}, x)
    torch.testing.assert_close(slopes, {"base": {"w": 2 * w * x, "unused": torch.zeros_like(x)}})
    torch.testing.assert_close(value, (w**2 * x).sum(1))
    torch.testing.assert_close(changed["mean"], x.mean(1))


def test_the_gradient_of_a_constant_is_zero():
    slopes, value, _ = gradient_and_loss(lambda params: (torch.ones(()), {}))({"w": torch.ones(2)})
    assert slopes["w"].tolist() == [0, 0] and value == 1
