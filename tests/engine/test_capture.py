"""A recording does what its function does: on other values, to its inputs, and under vmap and autograd."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from floral.core.spec import Refused
from floral.engine import capture
from floral.engine.capture import Captured, emit
from floral.engine.capture import captured as captured_calls
from floral.engine.capture.emit import graph_of

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "mul", "relu", "view", "select", "add_", "mul_", "sum", "copy", "row", "squeeze"]),
        st.integers(0, 99),
    ),
    min_size=1,
    max_size=25,
)


TOTAL = torch.zeros(())


def program(steps):
    """A straight-line function of three matrices [4, 6]: each step works on tensors that are there already."""

    def function(a, b, c):
        made = [a, b, c]
        for kind, number in steps:
            x, y = made[number % len(made)], made[number // 7 % len(made)]
            match kind:
                case "add":
                    made.append(x + y)
                case "mul":
                    made.append(x * y)
                case "relu":
                    made.append(torch.relu(x))
                case "view":
                    made.append(x.reshape(6, 4).mT)
                case "select":
                    made.append(x[number % 4].expand(4, 6))
                case "add_":
                    made[number % 3].add_(y.clone(), alpha=0.5)
                case "mul_":
                    own = x.clone()
                    made.append(own)
                    own[1:].mul_(y[1:])
                case "sum":
                    made.append(x.sum(0).expand(4, 6))
                case "copy":
                    made.append(x.clone())
                case "row":
                    row = x.mean(0, keepdim=True)
                    made.append((row.squeeze_(0) + y[0] + row).expand(4, 6))
                case "squeeze":
                    made.append((x[number % 4 :][:1].squeeze_(0) + y[:1]).expand(4, 6))
        return tuple(made[-4:])

    return function


def laid_out(lie, seed):
    """A random matrix [4, 6] that lies in its memory densely, with gaps, transposed or behind something else."""
    made = torch.randn(8, 12, generator=torch.Generator().manual_seed(seed))
    return {
        "dense": made[:4, :6].clone(),
        "gaps": made[:4, :6],
        "transposed": made[:6, :4].mT,
        "behind": made[4:, 3:9],
    }[lie]


@given(steps=STEPS, lie=st.sampled_from(["dense", "gaps", "transposed", "behind"]))
@settings(deadline=None, max_examples=200)
def test_any_straight_line_program_is_replayed(steps, lie):
    function, captured = program(steps), Captured()
    for seed in (0, 1):
        mine, theirs = ([laid_out(lie, 10 * seed + n) for n in range(3)] for _ in range(2))
        expected = function(*theirs)
        found = captured("program", function, *mine)
        for ours, other in zip((*found, *mine), (*expected, *theirs), strict=True):
            assert torch.equal(ours, other)
    assert len(captured._recorded) == 1


def test_gradients_under_vmap_are_replayed():
    def function(w, x):
        w = w.detach().requires_grad_()
        with torch.enable_grad():
            loss = torch.vmap(lambda w, x: torch.tanh(x @ w).square().sum())(w, x)
            return torch.autograd.grad(loss.sum(), w)

    captured = Captured()
    for seed in (0, 1):
        torch.manual_seed(seed)
        w, x = torch.randn(3, 5, 2), torch.randn(3, 4, 5)
        torch.testing.assert_close(captured("g", function, w, x), function(w, x))


def test_each_shape_has_its_recording_until_there_are_too_many(monkeypatch):
    monkeypatch.setattr(captured_calls, "MAX_RECORDINGS", 2)
    captured = Captured()
    for n in (3, 4, 5, 3):
        assert captured("double", lambda x: {"twice": 2 * x, "none": None}, torch.ones(n))["twice"].sum() == 2 * n
    assert len(captured._recorded) == 2


def test_recording_leaves_the_inputs_to_the_first_replay():
    x = torch.zeros(3)
    captured = Captured()
    for count in (1, 2):
        captured("count", lambda x: x.add_(1), x)
        assert x.tolist() == [count] * 3


def test_what_is_closed_over_is_read_at_every_replay():
    constant, captured = torch.ones(2), Captured()

    def function(x):
        return x * constant

    assert captured("c", function, torch.full((2,), 3.0)).tolist() == [3, 3]
    constant.fill_(2.0)
    assert captured("c", function, torch.full((2,), 3.0)).tolist() == [6, 6]


def test_a_result_is_nobody_elses_memory():
    """Two equal results may be changed by whoever gets them."""
    captured = Captured()
    for _ in range(2):
        first, second, third = captured("r", lambda x: (x + 1, x + 1, torch.relu(x + 1)), torch.zeros(2))
        first.add_(5)
        third.add_(7)
        assert second.tolist() == [1, 1]


def test_a_tree_has_tensors_dictionaries_and_tuples_alone():
    with pytest.raises(TypeError, match="of type list"):
        Captured()("l", lambda x: x, [torch.ones(1)])


def test_an_expanded_input_is_viewed_as_it_lies():
    captured = Captured()
    for value in (1.0, 2.0):
        x = torch.full((3,), value).expand(2, 3)
        assert captured("e", lambda x: x[:, :, None] * torch.ones(4), x).sum() == 24 * value


def test_the_structure_and_the_type_of_inputs_belong_to_a_recording():
    captured, one, two = Captured(), torch.ones(2), torch.full((2,), 2.0)
    for tree in ({"a": one, "b": two}, {"b": two, "a": one}):
        assert captured("s", lambda t: t["a"] - t["b"], tree).tolist() == [-1, -1]
    assert captured("t", lambda x: torch.zeros_like(x), one).dtype == torch.float32
    assert captured("t", lambda x: torch.zeros_like(x), one.double()).dtype == torch.float64


def test_a_list_of_one_result_is_a_list():
    captured = Captured()
    for _ in range(2):
        assert captured("u", lambda x: torch.unbind(x)[0] + 1, torch.zeros(1, 3)).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda x: x + torch.rand(2), "aten.rand"),
        (lambda x: x * float(x.sum()), "_local_scalar_dense"),
        (lambda x: TOTAL.add_(x.sum()), "not one of its inputs"),
        (lambda x: x.as_strided_((1,), (1,), 1) + 1, "beginning of a tensor"),
    ],
)
def test_what_cannot_be_repeated_is_refused(function, why):
    with pytest.raises(Refused, match=why):
        Captured()("r", function, torch.ones(2))


def test_beyond_the_most_recordings_no_gradients_are_kept(monkeypatch):
    monkeypatch.setattr(captured_calls, "MAX_RECORDINGS", 0)
    weight = torch.ones(2, requires_grad=True)
    assert not Captured()("g", lambda x: x * weight, torch.ones(2)).requires_grad


def test_a_recording_does_not_load_the_compiler():
    """That takes longer than many a run does."""
    code = """
import sys, torch
from floral.engine.capture import Captured
def step(x): return (x * 2).sin().sum(0)
Captured()("step", torch.vmap(step), torch.ones(3, 4))
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_example_of_the_documentation_is_a_real_replay(monkeypatch):
    """The replay printed in the docstring of `floral.engine.capture` is the one of its step."""
    graphs = []

    def noted(*arguments):
        graphs.append(graph_of(*arguments))
        return graphs[-1]

    monkeypatch.setattr(emit, "graph_of", noted)
    begin, end = capture.__doc__.index("    def step"), capture.__doc__.index("Its replay")
    namespace = {"torch": torch}
    exec(textwrap.dedent(capture.__doc__[begin:end]), namespace)
    Captured()("step", namespace["step"], torch.ones(3, 5), torch.ones(3, 5))
    assert textwrap.indent(str(graphs[0]), "    ") in capture.__doc__


@pytest.mark.parametrize("number", [True, 2, 0.5], ids=repr)
def test_numbers_in_place_of_tensors_are_replayed(number):
    def step(x):
        return x.clone().add_(number), torch.maximum(x, torch.as_tensor(number)), x * number

    x = torch.randn(3)
    for replayed, expected in zip(Captured()("step", step, x), step(x), strict=True):
        assert torch.equal(replayed, expected) and replayed.dtype == expected.dtype


def test_an_operation_that_torchscript_does_not_have_is_refused(monkeypatch):
    """The backend `auto` then takes another way; a replay that fails would end the run."""
    monkeypatch.setattr(emit, "must_be_tensor", lambda function, place: False)
    with pytest.raises(Refused, match=r"_to_copy.default with arguments that TorchScript does not take"):
        Captured()("step", lambda x: x + torch.ops.aten._to_copy(2, dtype=torch.float32), torch.ones(3))
