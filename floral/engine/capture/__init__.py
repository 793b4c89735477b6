"""Record a function of tensors once as a list of PyTorch operations, and replay the list at every later call.

Without a recording, a local step of a small model spends most of its time in `torch.vmap`, autograd and Python code.
A replay skips these and calls only the PyTorch operations, one after the other.

Example: a step of m clients, with weights w [m, d] and inputs x [m, d]:

    def step(w, x):
        w = w.detach().requires_grad_()
        with torch.enable_grad():
            loss = torch.vmap(lambda w, x: torch.relu(w * x).sum())(w, x)
            (gradient,) = torch.autograd.grad(loss.sum(), w)
        return w.detach().add_(gradient, alpha=-0.1)

Its replay for m = 3 and d = 5 is this graph of TorchScript, in which w is %i0 and x is %i1:

    graph(%i0 : Tensor,
          %i1 : Tensor):
      %2 : Tensor = aten::mul(%i0, %i1)
      %3 : Tensor = aten::relu_(%2)
      %4 : int[] = prim::Constant[value=[1]]()
      %5 : bool = prim::Constant[value=0]()
      %6 : NoneType = prim::Constant()
      %7 : Tensor = aten::sum(%3, %4, %5, %6)
      %8 : Tensor = aten::sum(%7, %6)
      %9 : int = prim::Constant[value=1]()
      %10 : Tensor = aten::ones_like(%8, %6, %6, %6, %5, %9)
      %11 : int[] = prim::Constant[value=[3, 5]]()
      %12 : int[] = prim::Constant[value=[0, 0]]()
      %13 : Tensor = aten::as_strided(%10, %11, %12, %6)
      %14 : int = prim::Constant[value=0]()
      %15 : Tensor = aten::threshold_backward(%13, %3, %14)
      %16 : Tensor = aten::mul(%15, %i1)
      %17 : float = prim::Constant[value=-0.10000000000000001]()
      %18 : Tensor = aten::add_(%i0, %16, %17)
      %19 : Tensor[] = prim::ListConstruct(%18)
      return (%19)

`relu_` writes its result over %2, which no other operation reads. The interpreter frees a tensor after the last
operation that reads it, and calls no Python code.

Modules, in reading order:

- `captured`: the class `Captured`, which callers use.
- `trees`: converts nested dictionaries and tuples of tensors to flat lists, and back.
- `recording`: the parts of a recording, with names in place of tensors.
- `recorder`: records every operation of a call.
- `optimise`: removes operations that are not needed, and reuses memory.
- `emit`: writes the TorchScript graph that replays the remaining operations.
"""

from floral.engine.capture.captured import Captured

__all__ = ["Captured"]
