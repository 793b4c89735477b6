"""What a module does beside calling layers is computed as PyTorch computes it, or refused with the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plain
import pytest
import torch
from federations import CLASSES, assert_close, make_run, simulate, train, trained

from floral.config import code
from floral.config.reading import ConfigError
from floral.core.spec import Refused
from floral.core.streams import Stream
from floral.engine import execution
from floral.models import module
from floral.nn.model import SEED, Model
from floral.nn.modules.inputs import Inputs
from floral.nn.modules.routed import logits_of
from floral.nn.modules.wrap import built as module_built
from floral.nn.modules.wrap import wrap
from floral.toolkit.prepared import summary

PLAIN = Path(__file__).with_name("plain.py")
ANY = Stream(0, "model")


def built(function: str, **arguments: Any) -> Model:
    return module.build((4, 4), CLASSES, build=f"{PLAIN}:{function}", arguments=arguments)


def task(function: str, **arguments: Any) -> dict[str, Any]:
    return {"kind": "module", "build": f"{PLAIN}:{function}", "arguments": arguments}


def by_hand(does: str, state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """The module itself in float64, with the values of a trained run."""
    original = module_built(lambda: module.function_of(f"{PLAIN}:special")(does, CLASSES), 0).double()
    values = {name.removeprefix("value/base/").removesuffix(".value"): t for name, t in state.items()}
    original.load_state_dict(values, strict=False)
    return original.eval()


SERVED = [
    "repeats", "reads the weight", "transposes the weight", "ties", "ties and reads the weight",
    "follows its parameters", "returns an object", "returns a dictionary",
]  # fmt: skip


@pytest.mark.parametrize("does", SERVED)
def test_a_module_serves_what_it_computes_itself(does: str) -> None:
    model = built("special", does=does)
    assert model.sequential is None and not model.draws
    simulation = simulate(model=task("special", does=does))
    state = train(simulation)
    x = simulation.data.test.decode(simulation.data.test.x[:8])
    ours, _ = simulation.method.predict(state.values, x, None, None)
    with torch.no_grad():
        theirs = by_hand(does, state.tensors())(x.unsqueeze(1))
    torch.testing.assert_close(ours, logits_of(theirs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("does", ["drops", "mixes", "branches"])
def test_what_cannot_be_vectorised_is_trained_by_loop(does: str) -> None:
    """The reason is in the choice of `auto`, and in the refusal of the other backends."""
    how: dict[str, Any] = {"model": task("special", does=does), "rounds": 4}
    simulation = simulate(**how)
    chosen = execution.choose(simulation, simulation.start(), "auto")
    reason = {"drops": "draws random numbers", "mixes": "mixes the samples", "branches": "fails in `torch.vmap`"}[does]
    assert chosen.backend == "loop" and f"not vmap: the module {reason}" in chosen.reason
    for backend in ("vmap", "batched"):
        with pytest.raises(Refused, match=reason):
            execution.choose(simulation, simulation.start(), backend)
    assert_close(trained(**how, workers=2).tensors(), trained(**how).tensors(), 1e-12)


def test_dropout_of_the_module_follows_from_seed_round_and_client() -> None:
    model = task("special", does="drops")
    first = trained(model=model).tensors()
    torch.manual_seed(1)
    assert_close(trained(model=model).tensors(), first, 0)
    plain = trained(model=task("special", does="plain")).tensors()
    assert any((plain[name] - tensor).abs().max() > 1e-3 for name, tensor in first.items())


def test_padding_never_reaches_a_module_that_mixes_samples() -> None:
    """The clients have 1 to 12 samples and batches of 4: most batches of the last step are padded."""
    model = built("special", does="mixes")
    assert model.mixes
    params, x = model.init(Stream(0, "model")), torch.rand(4, 4, 4)
    mask = torch.tensor([1.0, 1.0, 0.0, 0.0])
    alone, _ = model(params, {}, x[:2], {}, torch.ones(2))
    padded, _ = model(params, {}, x, {}, mask)
    torch.testing.assert_close(padded[:2], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", ["fedavg", "floral_1", "ensemble", "ditto"])
def test_methods_train_a_module_of_unknown_layers(variant: str) -> None:
    """Its parameters get no adaptor, but they are trained, averaged and sent."""
    state = trained(variant, model=task("recurrent"), rounds=2)
    start = simulate(variant, model=task("recurrent"), rounds=2).start()
    moved = [
        name for name, t in state.tensors().items() if "lstm" in name and not torch.equal(t, start.tensors()[name])
    ]
    assert len({name.rpartition("lstm.")[2] for name in moved}) == 4


def test_attention_with_dropout_has_adaptors_and_the_random_numbers_of_the_module() -> None:
    """A training pass from a seed is that of the module after the same seed; only `loop` can be used."""
    model, original = built("attentive"), plain.attentive(CLASSES)
    assert model.draws and "set `dropout` of nn.MultiheadAttention to 0" in str(model.sequential)
    params, x, seed = model.init(ANY), torch.rand(4, 4, 4), torch.full((4,), 0.25)
    original.load_state_dict({in_file: params[name] for name, (in_file, _) in model.names.items()})
    torch.manual_seed(int(0.25 * 2**48))
    with torch.random.fork_rng([]):
        ours, _ = model(params, {}, x, {SEED: seed}, torch.ones(4))
    torch.testing.assert_close(ours, original.train()(x.unsqueeze(1)), rtol=0, atol=1e-5)
    torch.testing.assert_close(model(params, {}, x, None, None)[0], original.eval()(x.unsqueeze(1)), rtol=0, atol=1e-5)
    adapted = {
        name.rpartition(".")[0] for name in simulate("floral_1", model=task("attentive")).start().values["adaptors"]
    }
    assert {"encoder.layers.0.self_attn.in_proj", "encoder.layers.0.self_attn.out_proj"} <= adapted


@pytest.mark.parametrize("norm", list(plain.NORMS)[:6])
def test_a_batch_norm_of_any_class_has_its_statistics(norm: str) -> None:
    """A training pass gives the outputs and the statistics of the module; padding does not reach them."""
    model, original = built("normed", norm=norm), plain.normed(CLASSES, norm)
    params, x = model.init(ANY), torch.rand(4, 4, 4)
    state = {
        in_file: (params | model.statistics() | model.constants)[name] for name, (in_file, _) in model.names.items()
    }
    original.load_state_dict(state, strict=False)
    ours, statistics = model(params, model.statistics(), x, {}, torch.tensor([1.0, 1.0, 1.0, 0.0]))
    torch.testing.assert_close(ours[:3], original.train()(x[:3]), rtol=0, atol=1e-5)
    theirs = original.state_dict()
    assert all(key in model.names for key in statistics) and bool(statistics) == (norm != "evaluated")
    for name, value in statistics.items():
        torch.testing.assert_close(value, theirs[model.names[name][0]], rtol=0, atol=1e-6)
    served, _ = model(params, statistics, x, None, None)
    torch.testing.assert_close(served, original.eval()(x), rtol=0, atol=1e-5)


UNSUPPORTED = {
    "cumulative": "the layer 1 cannot be used: BatchNorm1d has `momentum=None`, .*; set it to 0.1",
    "without statistics": "the layer 1 .*: BatchNorm1d has `track_running_stats=False`, so that pred.*; remove it",
    "instance": "the layer 1.1 .*: InstanceNorm1d has `track_running_stats=True`, .*; remove it, or use batch norm",
}


@pytest.mark.parametrize(("norm", "message"), UNSUPPORTED.items(), ids=UNSUPPORTED)
def test_an_option_of_a_norm_that_is_not_supported_is_named(norm: str, message: str) -> None:
    with pytest.raises(Refused, match=message):
        built("normed", norm=norm)


WHAT_IS_UNUSUAL = {
    "old spectral norm": "the layer 1 keeps weight, .*`nn.utils.parametrizations`",
    "double": "the parameter 1.weight has the data type torch.float64; .*`module.float\\(\\)`",
    "bfloat16": "the parameter 1.weight has the data type torch.bfloat16; .*`module.float\\(\\)`",
}


@pytest.mark.parametrize(("what", "message"), WHAT_IS_UNUSUAL.items(), ids=WHAT_IS_UNUSUAL)
def test_a_parameter_that_cannot_be_trained_as_it_is_is_named(what: str, message: str) -> None:
    with pytest.raises(Refused, match=message):
        built("unusual", what=what)


REFUSED = {
    "draws with numpy": "two training passes on the same samples differ; .*PyTorch's default generator",
    "counts": "the forward pass changes steps, .*batch norm.*; keep the buffer constant",
    "averages": "the forward pass changes mean, .*batch norm.*; keep the buffer constant",
    "returns a pair": "the module returns tuple, not logits; return a tensor",
    "squeezes": r"returns a tensor of shape \[5\] for 1 sample.*do not squeeze",
    "detaches": "no parameter gets a gradient",
}


@pytest.mark.parametrize(("does", "message"), REFUSED.items(), ids=REFUSED)
def test_what_would_give_wrong_numbers_is_refused(does: str, message: str) -> None:
    with pytest.raises(Refused, match=message):
        built("special", does=does)


def test_layers_whose_weight_is_used_elsewhere_are_not_adapted() -> None:
    """A linear layer tied to another one has no weight of its own. One that is read by name is left to PyTorch."""
    tied = built("special", does="ties").layers
    assert {tied["middle"].tied, tied["extra"].tied} == {None, "middle"}
    assert "middle" not in built("special", does="reads the weight").layers


def test_layers_whose_device_and_data_type_are_read_are_adapted() -> None:
    assert {"hidden", "middle", "out"} <= built("special", does="follows its parameters").layers.keys()


WRONG = {
    "nowhere.py:make": "there is no file nowhere.py; correct the path",
    f"{PLAIN.with_name('plian.py')}:small": r"there is no file .*plian\.py; did you mean .*plain\.py\?",
    f"{PLAIN}:missing": "has no function missing; correct",
    f"{PLAIN}:smal": r"has no function smal; did you mean small\?",
    f"{PLAIN}:one_more": rf"\[3, {CLASSES + 1}\] for 3 .* `one_more` gets `outputs={CLASSES}`; make the last layer",
    "plain": "names no function",
    "no_such_package.models:make": "the import fails: ModuleNotFoundError",
    f"{PLAIN}:no_module": "`build` returns str; return a torch.nn.Module",
    f"{PLAIN}:of_units": r"has the default `width=64`, but .*write `arguments: \{width: 64\}`",
    f"{PLAIN}:special": "does not take these arguments: missing a required argument: 'does'",
}


@pytest.mark.parametrize(("build", "message"), WRONG.items(), ids=[name.rpartition("/")[2] for name in WRONG])
def test_a_wrong_build_is_an_error_with_the_remedy(build: str, message: str) -> None:
    with pytest.raises(Refused, match=message):
        module.build((4, 4), CLASSES, build=build)
    assert make_run(model={"kind": "module", "build": build}, data="digits").hash8


@pytest.mark.parametrize(
    ("line", "message"),
    {
        "{}['units']": r"KeyError: 'units' \(.*net\.py, line 2, in make\)",
        "assert outputs == 0": r"AssertionError \(.*net\.py, line 2, in make\)",
        "__import__('json').loads('{')": r"JSONDecodeError: .* \(.*net\.py, line 2, in make\)",
        "import no_package": r"ModuleNotFoundError: No module named 'no_package' \(.*net\.py, line 2, in make\)",
        "raise SystemExit(2)": r"SystemExit: 2 \(.*net\.py, line 2, in make\)",
    }.items(),
)
def test_an_error_in_build_names_the_line_of_the_user(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(f"def make(outputs):\n    {line}\n")
    with pytest.raises(Refused, match=rf"net\.py:make fails: {message}; correct this code"):
        module.build((4, 4), CLASSES, build=f"{tmp_path / 'net.py'}:make")


def test_a_method_that_widens_the_model_asks_build_for_width() -> None:
    with pytest.raises(ConfigError, match="has no argument `width`; give it one"):
        simulate("pfedmoe", model=task("special", does="plain"))
    simulate("pfedmoe", model={"kind": "module", "build": f"{PLAIN}:mlp"})


def test_a_method_cannot_widen_a_model_whose_arguments_fix_its_width() -> None:
    model = {"kind": "module", "build": f"{PLAIN}:of_units", "arguments": {"width": 8}}
    simulate(model=model)
    with pytest.raises(ConfigError, match="`arguments` sets the `width`"):
        simulate("pfedmoe", model=model)


def test_the_log_says_that_build_gets_a_width_without_a_default() -> None:
    assert "of_width is called with `width=1.0`" in summary(built("of_width"))[0]
    assert not built("mlp").remarks


def test_an_operation_that_vmap_repeats_for_each_client_gives_no_warning() -> None:
    """In the tests, a warning is an error. PyTorch has such an operation in the mean over images of this layout."""
    torch._C._functorch._set_vmap_fallback_warning_enabled(True)
    built("mlp")
    images = torch.rand(3, 2, 5, 5, 4).permute(0, 1, 4, 2, 3)
    means = torch.vmap(lambda x: torch.nn.functional.adaptive_avg_pool2d(x, 1))(images)
    torch.testing.assert_close(means, images.mean((3, 4), keepdim=True))


def test_a_layer_that_is_not_called_in_each_pass_has_no_adaptor() -> None:
    with pytest.raises(ConfigError, match=r"calls the layer middle only sometimes; .*leave this layer out of `adapt`"):
        simulate("floral_1", model=task("special", does="skips"))
    simulate("floral_1", model=task("special", does="skips") | {"adapt": ["hidden", "out"]})


def test_the_hash_of_a_run_follows_the_code_of_the_module(tmp_path: Path) -> None:
    def hashed(name: str, text: str, beside: str = "SIZE = 3") -> str:
        code.digest.cache_clear()
        code._parsed.cache_clear()
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "mine.py").write_text(text)
        (tmp_path / name / "sizes.py").write_text(beside)
        return make_run(model={"kind": "module", "build": f"{tmp_path / name / 'mine.py'}:make"}, data="digits").hash8

    text = "from sizes import SIZE\ndef make(outputs):\n    return SIZE\n"
    first = hashed("a", text)
    assert hashed("b", text.replace("def", "# the same\ndef")) == first
    assert hashed("a", text.replace("return SIZE", "return 2 * SIZE")) != first
    assert hashed("a", text, "SIZE = 4") != first
    assert hashed("a", text) == first


def test_the_hash_of_a_run_follows_a_package_beside_the_file(tmp_path: Path) -> None:
    def hashed(inner: str) -> str:
        code.digest.cache_clear()
        code._parsed.cache_clear()
        (tmp_path / "parts").mkdir(exist_ok=True)
        (tmp_path / "parts" / "__init__.py").write_text("")
        (tmp_path / "parts" / "sizes.py").write_text(inner)
        (tmp_path / "mine.py").write_text("from parts.sizes import SIZE\ndef make(outputs):\n    return SIZE\n")
        return make_run(model={"kind": "module", "build": f"{tmp_path / 'mine.py'}:make"}, data="digits").hash8

    assert hashed("SIZE = 3") != hashed("SIZE = 4")
    assert hashed("SIZE = 3") == hashed("# the same\nSIZE = 3")


def test_the_values_of_a_module_exist_once() -> None:
    """The model keeps the structure of the module only. A module of the user that lives on is not changed."""
    module_of_user = module_built(lambda: plain.mlp((4, 4), CLASSES), 0)
    before = {name: tensor.clone() for name, tensor in module_of_user.state_dict().items()}
    model = wrap(lambda: module_of_user, Inputs((4, 4)), CLASSES)
    assert all(parameter.is_meta for parameter in model.forward.module.parameters())  # type: ignore[attr-defined]
    for tensor in model.init(Stream(0, "model")).values():
        tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module_of_user.state_dict().items())
