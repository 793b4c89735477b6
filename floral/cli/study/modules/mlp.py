"""A PyTorch module, written as usual. The task flowers_module trains it."""

from torch import Tensor, nn


class MLP(nn.Module):
    """Two layers. FLoRAL-Bench gives `outputs`, the number of classes; a task gives the other arguments."""

    def __init__(self, outputs: int, columns: int = 4, hidden: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(columns, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

    def forward(self, x: Tensor) -> Tensor:  # x [B, columns]
        return self.layers(x.flatten(1))  # [B, outputs]
