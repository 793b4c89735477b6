"""Initial values from a file, frozen parameters, and the choice of the head and of the adapted layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from federations import FIRST, fitting, make_data, make_run, simulate, train
from safetensors.torch import save_file

from floral.config.reading import ConfigError
from floral.config.schema.task import Model as Keys
from floral.core.spec import Refused
from floral.core.streams import Stream
from floral.models import module
from floral.nn.modules.wrap import built as module_built
from floral.toolkit.prepared import near, prepared, read

PLAIN = Path(__file__).with_name("plain.py")
MODULE = {"kind": "module", "build": f"{PLAIN}:small"}
MLP = {"kind": "mlp", "hidden": 5}
AUXILIARY = f"{PLAIN}:auxiliary"
ANY = Stream(0, "model")


def pretrained(path: Path, **change: torch.Tensor | None) -> str:
    """A file with the values of another seed of the module. `change` replaces or removes values."""
    state = module_built(lambda: module.function_of(f"{PLAIN}:small")(5), 3).state_dict()
    state["norm.running_mean"] += 0.25
    values = {name: tensor for name, tensor in {**state, **change}.items() if tensor is not None}
    save_file(values, path / "model.safetensors")
    return str(path / "model.safetensors")


def test_a_run_starts_from_the_values_of_the_file(tmp_path: Path) -> None:
    path = pretrained(tmp_path)
    expected = module_built(lambda: module.function_of(f"{PLAIN}:small")(5), 3).state_dict()
    start = simulate(model={**MODULE, "weights": path, "ignore": ["out.*"]}).start().values
    assert torch.equal(start["base"]["conv.weight"].float(), expected["conv.weight"])
    assert torch.equal(start["base"]["attention.in_proj.weight"].float(), expected["attention.in_proj_weight"])
    assert torch.equal(start["base"]["scale.value"].float(), expected["scale"])
    assert torch.equal(start["statistics"]["norm.mean"], torch.full((4,), 0.25, dtype=torch.float64))
    assert not torch.equal(start["base"]["out.weight"].float(), expected["out.weight"])


def test_a_declared_model_starts_from_a_file_too(tmp_path: Path) -> None:
    first = simulate(model=MLP).start().values["base"]
    save_file({name: tensor.float() + 1 for name, tensor in first.items()}, tmp_path / "mlp.safetensors")
    start = simulate(model={**MLP, "weights": str(tmp_path / "mlp.safetensors")}).start().values["base"]
    assert all(torch.equal(start[name], (first[name].float() + 1).double()) for name in first)


@pytest.mark.parametrize("held", ["middle.weight", "extra.weight"])
@pytest.mark.parametrize("does", ["ties", "ties and reads the weight"])
def test_one_name_of_a_tied_weight_is_enough(tmp_path: Path, held: str, does: str) -> None:
    """`save_model` of safetensors keeps one name only. `ignore` of the missing name does not lose the value."""
    path, model = tmp_path / "tied.safetensors", {"kind": "module", "build": f"{PLAIN}:special"}
    state = module_built(lambda: module.function_of(f"{PLAIN}:special")(does, 5), 3).state_dict()
    both = {"middle.weight", "extra.weight"}
    save_file({name: t for name, t in state.items() if t.is_floating_point() and name not in both - {held}}, path)
    for ignore in ([], sorted(both - {held})):
        keys = {**model, "arguments": {"does": does}, "weights": str(path), "ignore": ignore}
        base = simulate(model=keys).start().values["base"]
        tied = [t for name, t in base.items() if name.startswith(("middle.weight", "extra.weight"))]
        assert len(tied) == 1 and torch.equal(tied[0].float(), state["middle.weight"])
    different = {name: t + (name == "extra.weight") for name, t in state.items() if t.is_floating_point()}
    save_file(different, path)
    with pytest.raises(ConfigError, match="are the same parameter in the model, but the file has different values; na"):
        simulate(model={**model, "arguments": {"does": does}, "weights": str(path)})


def test_statistics_of_a_batch_norm_that_the_module_freezes_are_read(tmp_path: Path) -> None:
    weights = Keys(kind="module", weights=pretrained(tmp_path))
    model = prepared(
        module.build((4, 4), 5, build=f"{PLAIN}:frozen_norm"), weights, "trained", shape=(4, 4), width=1, stream=ANY
    )
    assert torch.equal(model.constants["norm.mean"], torch.full((4,), 0.25))


def test_the_scale_and_shift_of_a_batch_norm_are_those_that_build_sets() -> None:
    start = module.build((4, 4), 5, build=f"{PLAIN}:scaled_norm").init(ANY)
    assert torch.equal(start["norm.weight"], torch.zeros(4)) and torch.equal(start["norm.bias"], torch.full((4,), 0.5))


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "missing": ({"conv.weight": None, "conv.weights": torch.zeros(4, 1, 3, 3)}, {},
                "conv.weight is missing; the closest names are conv.weights; or name it in `ignore`"),
    "extra": ({"conv.bias": torch.zeros(4)}, {}, "the model has no conv.bias; the closest names are .*norm.bias"),
    "shape": ({"out.weight": torch.zeros(7, 5)}, {},
              r"out.weight has the shape \[7, 5\], but the model needs \[5, 5\]; .* name it in `ignore`"),
    "ignores nothing": ({}, {"ignore": ["hed.*"]}, "`ignore: hed.*` matches no name; the names are attention.in_proj"),
    "ignores a close name": ({}, {"ignore": ["scal"]}, "`ignore: scal` matches no name; the closest names are scale$"),
    "freezes nothing": ({}, {"freeze": ["conv9"]}, "`freeze: conv9` matches no name; the closest names are conv"),
    "adapts nothing": ({}, {"adapt": ["hiden"]}, "`adapt: hiden` matches no name; the closest names are hidden"),
    "no head": ({}, {"head": "conv"},
                "`head: conv` is no linear layer of the model; the names are attention.in_proj, .*hidden, out$"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "keys", "message"), WRONG.values(), ids=WRONG)
def test_names_that_do_not_fit_are_errors(tmp_path: Path, change: Any, keys: Any, message: str) -> None:
    weights = pretrained(tmp_path, **change)
    with pytest.raises(ConfigError, match=message):
        simulate(model={**MODULE, "weights": weights, **keys})


def test_names_of_the_model_and_of_the_file_are_suggested_once() -> None:
    names = ["bn.bias", "fc.bias", "fc.weight", "conv.weight"]
    assert near("fc.weigth", [*names, *names]).count("fc.weight") == 1
    assert near("head.*", [*names, *names]) == "; the names are bn.bias, conv.weight, fc.bias, fc.weight"
    assert near("head.*", [f"{at}" for at in range(7)]) == "; the names are 0, 1, 2, 3, 4 and 2 more"


@pytest.mark.parametrize("variant", ["local_adaptor", "floral_1"])
def test_a_pattern_of_norm_layers_alone_leaves_nothing_to_adapt(variant: str) -> None:
    with pytest.raises(ConfigError, match="`adapt` of the model names no linear layer, embedding or convolution; norm"):
        simulate(variant, model={**MODULE, "adapt": ["norm"]})


def test_a_pickle_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "old.pt")
    for path, message in ((tmp_path / "old.pt", "weights_only=True"), (tmp_path / "none", "there is no such file")):
        with pytest.raises(ConfigError, match=message):
            simulate(model={**MODULE, "weights": str(path)})


DAMAGED = {
    "cut in the tensors": (
        lambda whole: whole[:-100],
        r"incomplete: it has [\d,]+ of the {size:,} bytes that its header .*; copy or",
    ),
    "cut in the header": (lambda whole: whole[:60], r"incomplete: it has 60 of the at least [\d,]+ bytes .*; copy or"),
    "5 bytes": (lambda whole: whole[:5], "incomplete: it has only 5 bytes; copy or"),
    "a page": (lambda _: b"<html>404</html>" * 9, "begins with b'<html>40' and has no header .*; copy or"),
    "longer": (lambda whole: whole + bytes(9), "the file is damaged .*; copy or"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_copied_again_and_not_converted(tmp_path: Path, damage: Any, message: str) -> None:
    path = Path(pretrained(tmp_path))
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with pytest.raises(Refused, match=f"cannot be read as safetensors: .*{message.format(size=len(whole))}"):
        read(path)


def test_the_hash_follows_the_content_of_the_file_and_not_its_path(tmp_path: Path) -> None:
    def hashed(folder: str, **change: torch.Tensor) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        return make_run(data="digits", model={**MODULE, "weights": pretrained(tmp_path / folder, **change)}).hash8

    first = hashed("a")
    assert hashed("b") == first
    assert hashed("b", **{"conv.weight": torch.zeros(4, 1, 3, 3)}) != first
    plain, frozen = make_run(data="digits"), make_run(data="digits", base="frozen")
    assert plain.hash8 != frozen.hash8 and make_run(data="digits", base="trained").hash8 == plain.hash8


@pytest.mark.parametrize("variant", FIRST.values())
def test_every_method_understands_a_frozen_base(variant: str) -> None:
    """No group that clients train has the frozen parameters; only the head and the adaptors move."""
    model = "batch_norm" if fitting(variant) == "batch_norm" else "mlp"
    simulation = simulate(variant, model=model, data=make_data((6, 3)), base="frozen")
    state = train(simulation, rounds=2)
    trained = {name for number in (1, 2) for phase in simulation.phases(number) for name in phase.train}
    names = {f"{group}/{name}" for group, params in state.values.items() for name in params if group in trained}
    trains_own_model = {"fedavg_wide", "pfedmoe"}
    assert not any(name.endswith(("hidden.weight", "norm.mean")) for name in names) or variant in trains_own_model
    server_adds = any(name.endswith("hidden.weight") for name in state.values.get("weights", {}))
    assert server_adds == (variant in {"fedex_lora", "flora_stacking"})


def test_patterns_choose_what_is_frozen_and_what_is_adapted() -> None:
    simulation = simulate("floral_1", model={**MODULE, "freeze": ["norm", "conv.*"], "adapt": ["hid*", "attention.*"]})
    state = simulation.start().values
    assert {name.rpartition(".")[0] for name in state["adaptors"]} == {
        "hidden", "attention.in_proj", "attention.out_proj"
    }  # fmt: skip
    assert not {"norm.weight", "norm.mean", "conv.weight"} & {*state["base"], *state.get("statistics", {})}
    head = simulate("fedper", model={**MODULE, "head": "hidden"}).start().values["head"]
    assert set(head) == {"hidden.weight", "hidden.bias"}


NOT_TRAINED = {
    "all": ({"freeze": ["*"]}, {}, "trains nothing, because `freeze` names all parameters of the model; leave"),
    "unused": ({"build": AUXILIARY, "freeze": ["[!s]*"]}, {},
               "`freeze` leaves only side.weight, side.bias trained, without effect on the outputs; change `freeze`"),
    "wrong head": ({"build": AUXILIARY, "head": "side"}, {"base": "frozen"},
                   "but side has no effect on the outputs; name the layer that makes the outputs as `head`"),
}  # fmt: skip


@pytest.mark.parametrize(("keys", "how", "message"), NOT_TRAINED.values(), ids=NOT_TRAINED)
def test_a_run_that_cannot_train_is_refused(keys: Any, how: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate(model={**MODULE, **keys}, **how)


def test_a_method_with_adaptors_trains_these_if_the_model_is_frozen() -> None:
    assert simulate("fedit", model={**MODULE, "freeze": ["*"]}).start().values


def test_an_auxiliary_layer_that_is_called_last_is_not_the_head() -> None:
    model = {"kind": "module", "build": AUXILIARY}
    assert set(simulate("fedper", model=model).start().values["head"]) == {"out.weight", "out.bias"}


@pytest.mark.parametrize("backend", ["loop", "vmap", "batched"])
def test_a_frozen_layer_computes_with_its_values(backend: str) -> None:
    """With a learning rate of 0, the predictions of all rounds are those of the trained base's start."""
    how: dict[str, Any] = {"model": MODULE, "backend": backend, "chunk": 3}
    simulation, other = simulate("floral_1", base="frozen", **how), simulate("floral_1", **how)
    state, start = train(simulation, rounds=1), other.start()
    params = {name: value for name, value in state.values["base"].items()}
    assert set(params) == {"out.weight", "out.bias"}
    x = simulation.data.test.decode(simulation.data.test.x[:8])
    view = {group: {n: t[0] if simulation.method.groups[group].scope.value == "private" else t for n, t in p.items()}
            for group, p in simulation.start().values.items()}  # fmt: skip
    whole = {group: {n: t[0] if other.method.groups[group].scope.value == "private" else t for n, t in p.items()}
             for group, p in start.values.items()}  # fmt: skip
    frozen, _ = simulation.method.predict(view, x, None, None)
    torch.testing.assert_close(frozen, other.method.predict(whole, x, None, None)[0], rtol=0, atol=1e-12)
