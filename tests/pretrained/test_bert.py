"""The encoder of BERT: equal to that of transformers, trained by methods, and clear about files that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from federations import CLASSES, OF_EACH_KIND, VARIANTS, assert_close, make_data, simulate, train
from safetensors.torch import save_file
from skips import package
from tiny_bert import CONFIG, tensors
from torch import Tensor

from floral.config.reading import ConfigError
from floral.core.spec import Refused
from floral.core.streams import Stream
from floral.data.stored import read_data
from floral.engine.simulate import Simulation
from floral.models import bert
from floral.nn.model import Call, Model, by_layer

SENTENCES = 50


def padded_ids(stored: Callable[[str], Path]) -> tuple[Path, Tensor]:
    """The results with the real encoder, and the token ids of 50 sentences: the longest one, and random ones."""
    results = stored("sentiment")
    stored("all_minilm_l6_v2")
    _, arrays = read_data("sentiment", results, ["train_x"], thresholds=[0.0])
    ids = torch.from_numpy(arrays["train_x"].copy())
    chosen = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))[:SENTENCES]
    chosen[0] = int((ids != 0).sum(1).argmax())
    return results / "data" / "all_minilm_l6_v2", ids[chosen]


def call_of(model: Model) -> Call:
    params = {**model.constants, **model.init(Stream(0, "model"))}
    return Call(model.layers, by_layer(params), {}, None, None, lambda name, x: (None, None))


def test_the_encoder_is_that_of_transformers(stored: Callable[[str], Path]) -> None:
    transformers = package("transformers")
    folder, ids = padded_ids(stored)
    model = bert.build((ids.shape[1],), 3, path=str(folder))
    assert isinstance(model.forward, bert.Encoder)
    public = transformers.BertModel.from_pretrained(folder, local_files_only=True).eval()
    present = ids != 0
    with torch.no_grad():
        expected = public(input_ids=ids.long(), attention_mask=present.long()).last_hidden_state
        positions = bert.positions_with_text(present)
        assert positions is not None and len(positions) == present.sum()
        features = model.forward.hidden(call_of(model), ids.float(), present, positions)
        logits, _ = model(model.init(Stream(0, "model")), {}, ids.float(), None, None)
        head = model.init(Stream(0, "model"))
        mean = (expected * present[..., None]).sum(1) / present.sum(1, keepdim=True)
        by_hand = mean @ head["classifier.weight"].T + head["classifier.bias"]
    assert (features - expected)[present].abs().max() < 1e-5
    assert (logits - by_hand).abs().max() < 1e-5


def small(folder: Path, outputs: int = CLASSES) -> Model:
    return bert.build((10,), outputs, path=str(folder))


def test_the_result_does_not_depend_on_padding(small_bert: Path) -> None:
    model = small(small_bert)
    ids = torch.tensor([[2.0, 4, 5, 3, 0, 0, 0, 0, 0, 0], [2, 6, 3, 0, 0, 0, 0, 0, 0, 0]])
    with torch.no_grad():
        params = model.init(Stream(0, "model"))
        both, _ = model(params, {}, ids, None, None)
        rows = [model(params, {}, ids[k : k + 1, :length], None, None)[0][0] for k, length in ((0, 4), (1, 3))]
        vectorised = torch.vmap(lambda x: model(params, {}, x[None], None, None)[0][0])(ids)
    assert_close({"x": both}, {"x": torch.stack(rows)}, 1e-6)
    assert_close({"x": vectorised}, {"x": both}, 1e-6)


def test_common_padding_is_cut_off_and_texts_of_padding_are_kept() -> None:
    ids = torch.tensor([[2.0, 4, 3, 0, 0], [2, 3, 0, 0, 0]])
    cut, present = bert.without_common_padding(ids, ids != 0)
    assert cut.shape == present.shape == (2, 3) and torch.equal(cut, ids[:, :3])
    nothing = torch.zeros(2, 5)
    assert bert.without_common_padding(nothing, nothing != 0)[0].shape == (2, 5)


def text(variant: str, folder: Path, **how: Any) -> Simulation:
    data = replace(make_data((5, 3, 4), shape=(6,)), scale=1)
    return simulate(variant, model={"kind": "bert", "path": str(folder)}, data=data, **how)


@pytest.mark.parametrize("variant", OF_EACH_KIND)
def test_every_kind_of_method_trains_it(variant: str, small_bert: Path) -> None:
    simulation = text(variant, small_bert)
    start = simulation.start().tensors()
    state = train(simulation, rounds=2).tensors()
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())
    assert any(not torch.equal(tensor, start[name]) for name, tensor in state.items())


@pytest.mark.parametrize("variant", ["fedavg", "floral_1"])
@pytest.mark.parametrize("backend", ["vmap", "batched"])
def test_all_backends_train_it_equally(variant: str, backend: Any, small_bert: Path) -> None:
    loop = train(text(variant, small_bert), rounds=2)
    other = train(text(variant, small_bert, backend=backend, chunk=2), rounds=2)
    assert_close(other.tensors(), loop.tensors(), 1e-9)


def test_patterns_choose_the_adapted_layers(small_bert: Path) -> None:
    model = {"kind": "bert", "path": str(small_bert), "adapt": ["*.query", "*.intermediate.dense"]}
    data = replace(make_data((5, 3, 4), shape=(6,)), scale=1)
    state = simulate("local_adaptor", model=model, data=data, base="frozen").start()
    (adapted,) = (params for params in state.values.values() if any(name.endswith(".A") for name in params))
    layers = {name.rpartition(".")[0] for name in adapted}
    places = [f"encoder.layer.{block}" for block in (0, 1)]
    assert layers == {f"{p}.{part}" for p in places for part in ("attention.self.query", "intermediate.dense")}
    with pytest.raises(ConfigError, match=r"`adapt: \*\.queries` matches no name; the names are classifier, "):
        simulate("local_adaptor", model={**model, "adapt": ["*.queries"]}, data=data)


def test_a_head_is_drawn_for_each_seed_and_the_rest_is_read(small_bert: Path) -> None:
    model = small(small_bert)
    first, second = (model.init(Stream(seed, "model")) for seed in (0, 1))
    assert not torch.equal(first["classifier.weight"], second["classifier.weight"])
    read = tensors()
    assert all(torch.equal(value, read[name]) for name, value in first.items() if not name.startswith("classifier."))


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"model_type": "roberta"}, r'`model_type` is "roberta", but `kind: bert` needs "bert"; use'),
    "activation": ({"hidden_act": "relu"}, '`hidden_act` is "relu", but `kind: bert` needs "gelu"'),
    "positions": ({"position_embedding_type": "relative_key"}, "`position_embedding_type` is"),
    "size": ({"hidden_size": None}, "`hidden_size` is no positive whole number; download the model again"),
    "other size": ({"intermediate_size": 13}, r"intermediate.dense.weight has the shape \[12, 8\], but .* \[13, 8\]"),
    "deeper": ({"num_hidden_layers": 3}, r"encoder\.layer\.2\.attention\.self\.query\.weight, .* are missing"),
    "shallower": ({"num_hidden_layers": 1}, r"the model has no encoder\.layer\.1\."),
    "short": ({"max_position_embeddings": 9}, "samples have 10 tokens, but the model takes 9; use data with shorter"),
}


@pytest.mark.parametrize(("change", "message"), CONFIGS.values(), ids=CONFIGS)
def test_a_configuration_that_does_not_fit_is_refused(small_bert: Path, change: dict[str, Any], message: str) -> None:
    (small_bert / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(Refused, match=message):
        small(small_bert)


def test_a_truncated_or_other_file_of_weights_is_refused(small_bert: Path) -> None:
    path = small_bert / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(Refused, match=rf"{path}` cannot be read as safetensors"):
        small(small_bert)
    path.write_bytes(b"PK" + whole)
    with pytest.raises(Refused, match=rf"{path}` cannot be read as safetensors"):
        small(small_bert)
    values = tensors()
    del values["encoder.layer.1.output.dense.bias"]
    save_file(values, path)
    with pytest.raises(Refused, match=r"encoder\.layer\.1\.output\.dense\.bias is missing"):
        small(small_bert)


def test_an_incomplete_folder_and_other_samples_are_refused(small_bert: Path) -> None:
    with pytest.raises(Refused, match=r"samples have the shape \[4, 4\]; use data whose samples are texts"):
        bert.build((4, 4), 2, path=str(small_bert))
    with pytest.raises(Refused, match="a pretrained model has one size; use another method"):
        bert.build((4,), 2, path=str(small_bert), width=0.5)
    (small_bert / "config.json").write_text("[]")
    with pytest.raises(Refused, match=r"config\.json: this file cannot be read \(its content is no mapping\)"):
        small(small_bert)
    (small_bert / "config.json").unlink()
    with pytest.raises(Refused, match=r"must have config\.json and one file \*\.safetensors; download the model there"):
        small(small_bert)


def test_every_method_trains_a_frozen_encoder_or_refuses_with_a_reason(small_bert: Path) -> None:
    """Tasks with pretrained networks are left out of tests/contracts/test_declarations.py."""
    model = {"kind": "bert", "path": str(small_bert), "adapt": ["*.query", "*.value"]}
    data = replace(make_data((5, 3, 4), shape=(6,)), scale=1)
    refused = {}
    for variant in VARIANTS:
        try:
            simulation = simulate(variant, model=model, data=data, base="frozen")
        except ConfigError as error:
            refused[variant] = str(error)
            continue
        values = simulation.start().values
        embeddings = [name for params in values.values() for name in params if name.endswith("word_embeddings.weight")]
        assert bool(embeddings) == variant.endswith("_full")
    start = "variant {} cannot be used for task tiny: "
    assert all(reason.startswith(start.format(name)) for name, reason in refused.items())
    assert len(refused) < len(VARIANTS) / 2, refused
