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

Its replay for m = 3 and d = 5 has the following code, in which w is i0 and x is i1:

    def replay(i0, i1):
        t3 = mul_0(i0, i1)
        t4 = relu_over_1(t3); t3 = None
        t6 = sum_3(t4, value_2)
        t7 = sum_4(t6); t6 = None
        t8 = ones_like_6(t7, pin_memory=False, memory_format=value_5); t7 = None
        t12 = as_strided_7(t8, (3, 5), (0, 0)); t8 = None
        t14 = threshold_backward_8(t12, t4, 0); t12 = t4 = None
        t15 = mul_9(t14, i1); t14 = None
        i0 = add__10(i0, t15, alpha=-0.1); t15 = None
        return [i0]

`relu_over_1` writes its result over t3, which no other operation reads. `t3 = None` frees memory. `value_2` is the list
[1].

Modules, in reading order:

- `captured`: the class `Captured`, which callers use.
- `trees`: converts nested dictionaries and tuples of tensors to flat lists, and back.
- `recording`: the parts of a recording, with names in place of tensors.
- `recorder`: records every operation of a call.
- `optimise`: removes operations that are not needed, and reuses memory.
- `emit`: writes the Python function that replays the remaining operations.
"""

from floral.engine.capture.captured import Captured

__all__ = ["Captured"]
