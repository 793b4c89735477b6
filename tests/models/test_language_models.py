"""Language models: what an embedding, an LSTM and their adaptors compute, and how text is scored."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from federations import CLASSES, SHAPES, assert_equal_states, make_data, make_run, simulate, train, trained, view_of

from floral.adaptors.embedding import EmbeddingAdaptor
from floral.config.reading import ConfigError
from floral.config.schema.task import Task
from floral.core.spec import Refused
from floral.core.streams import Stream
from floral.data import federation
from floral.models import lstm, transformer
from floral.nn.layers import Embedding
from floral.stages import record

TOKENS = torch.tensor([[0, 4, 4, 1], [3, 2, 0, 0]])


def in_double(params):
    return {name: tensor.double() for name, tensor in params.items()}


def test_the_lstm_is_pytorchs_with_open_forget_gates():
    model = lstm.build((4,), CLASSES, features=3, hidden=6)
    params = in_double(model.init(Stream(0, "model")))
    theirs = torch.nn.LSTM(3, 6, num_layers=2, batch_first=True, dtype=torch.float64)

    def reordered(rows):
        """(i, f, o, g) as (i, f, g, o)"""
        into, keep, out, new = rows.split(6)
        return torch.cat([into, keep, new, out])

    with torch.no_grad():
        for i in (1, 2):
            getattr(theirs, f"weight_ih_l{i - 1}").copy_(reordered(params[f"input{i}.weight"]))
            getattr(theirs, f"weight_hh_l{i - 1}").copy_(reordered(params[f"recurrent{i}.weight"]))
            getattr(theirs, f"bias_ih_l{i - 1}").copy_(reordered(params[f"input{i}.bias"]))
            getattr(theirs, f"bias_hh_l{i - 1}").zero_()[6:12] = lstm.FORGET_BIAS
        expected = F.linear(theirs(params["embedding.weight"][TOKENS])[0], params["out.weight"], params["out.bias"])
    for x in (TOKENS, TOKENS.double()):  # inputs come as numbers of the run's type
        torch.testing.assert_close(model(params, {}, x, None, None)[0], expected, rtol=0, atol=1e-12)
    steps = 2 * (4 * 4 * 6 * (3 + 6) + 3 * 2 * 4 * 6 * 6 + 4 * 6 * CLASSES)
    assert model.multiply_adds((4,), 2) == steps


def test_a_tied_output_uses_the_embeddings_weights():
    model = lstm.build((4,), CLASSES, features=3, hidden=6, tied=True)
    params = in_double(model.init(Stream(0, "model")))
    assert "out.weight" not in params and params["out.bias"].shape == (CLASSES,)
    plain = lstm.build((4,), CLASSES, features=3, hidden=6)
    untied = {**params, "out.weight": params["embedding.weight"] @ params["project.weight"]}
    untied["out.bias"] = params["out.bias"] + params["embedding.weight"] @ params["project.bias"]
    ours, theirs = (made(held, {}, TOKENS, None, None)[0] for made, held in ((model, params), (plain, untied)))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_no_place_of_the_transformer_sees_a_later_one():
    model = transformer.build((4,), CLASSES, features=8, heads=2, depth=2, hidden=6)
    params = in_double(model.init(Stream(0, "model")))
    changed = TOKENS.clone()
    changed[:, 2] = (changed[:, 2] + 1) % CLASSES
    before, after = (model(params, {}, x, None, None)[0] for x in (TOKENS, changed.double()))
    assert torch.equal(before[:, :2], after[:, :2])
    assert (before[:, 2:] != after[:, 2:]).any(-1).all()
    with pytest.raises(Refused, match="are not text"):
        transformer.build((4, 4), CLASSES)


@pytest.mark.parametrize("batch", [4, 64])
@pytest.mark.parametrize("variant", ["fedavg", "floral_1"])
def test_backends_agree_on_a_weight_that_two_layers_use(variant, batch):
    loop = trained(variant, model="tied", batch=batch)
    for backend in ("vmap", "batched"):
        assert_equal_states(trained(variant, model="tied", batch=batch, backend=backend, chunk=3), loop, 1e-10)


@pytest.mark.parametrize("clusters", [1, 3])
def test_an_embedding_adaptor_merged_is_unmerged_is_a_lookup_of_columns(clusters):
    layer = Embedding(CLASSES, 4)
    adaptor = EmbeddingAdaptor.of(layer, 2)
    start = in_double(adaptor.init(Stream(0, "adaptor")))
    assert not start["B"].any() and start["A"].any()
    random = torch.Generator().manual_seed(0)
    mixture = {n: torch.randn(clusters, *t.shape, generator=random, dtype=t.dtype) for n, t in start.items()}
    route = torch.rand(clusters, generator=random, dtype=torch.float64)
    weights = in_double(layer.init(Stream(0, "layer")))
    plain = layer(weights, TOKENS)
    for c in range(clusters):
        plain = plain + route[c] * (mixture["B"][c] @ mixture["A"][c][:, TOKENS.flatten()]).T.reshape(2, 4, 4)
    merged = layer(weights, TOKENS, adaptor.merged(mixture, route))
    unmerged = layer(weights, TOKENS) + adaptor.unmerged(mixture, route, TOKENS.double())
    torch.testing.assert_close(merged, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(unmerged, plain, rtol=0, atol=1e-12)
    assert adaptor.multiply_adds(TOKENS.shape, clusters) == (clusters * 2 * 5 * 4, clusters * 2 * 8 * 4)


def test_merged_recurrent_adaptors_are_the_unmerged_ones():
    merged, unmerged = (
        trained("floral_1", model="lstm", params={"application": how}) for how in ("merged", "unmerged")
    )
    assert_equal_states(merged, unmerged, 1e-10)


def test_text_is_scored_token_by_token():
    """Loss, accuracy and hits are those of all tokens in one row after another; perplexity is the exponential."""
    data = replace(make_data(shape=SHAPES["lstm"], text=True), client_names=tuple("ABCDEFG"))
    simulation = simulate("fedavg", model="lstm", data=data)
    state = train(simulation, 2)
    rows = simulation.data.test
    scores = simulation.own_rows(state, rows, np.arange(simulation.data.clients))
    for k, (index, count) in enumerate(zip(rows.index, rows.count, strict=True)):
        x, y = rows.gather(torch.from_numpy(index[:count]))
        outputs = simulation.method.predict(view_of(simulation, state, k), x, None, None)[0].flatten(0, 1)
        hits = int((outputs.argmax(1) == y.flatten()).sum())
        assert scores.loss[k] == pytest.approx(float(F.cross_entropy(outputs, y.flatten())), abs=1e-10)
        assert (scores.correct[k], scores.tokens, scores.rows[k]) == (hits, 3, count)
        assert scores.accuracy[k] == pytest.approx(hits / (3 * count))
    told = {(split, name): value for split, name, value in simulation.evaluate(state, 2, None).metrics}
    for split in ("test", "validation"):
        assert told[split, "perplexity"] == pytest.approx(math.exp(told[split, "loss"]))
    table = record.clients_table(scores, scores, simulation, None, data)
    assert table["name"].to_list() == list("ABCDEFG")
    assert table["own_rows"].to_list() == (3 * scores.rows).tolist()
    assert table["own_correct"].to_list() == scores.correct.tolist()
    global_test, metrics = simulation.global_test(state)
    assert global_test.tokens == 3 and (global_test.correct <= 3 * global_test.rows).all()
    assert "perplexity" in {name for _, name, _ in metrics}


def test_classes_have_no_perplexity():
    simulation = simulate("fedavg")
    metrics = simulation.evaluate(simulation.start(), 0, None).metrics
    assert "perplexity" not in {name for _, name, _ in metrics}


def test_the_constant_answer_to_text_is_the_frequencies_of_its_tokens():
    simulation = simulate("constant", model="lstm")
    train_rows, test = simulation.data.train, simulation.data.test
    held = np.concatenate([train_rows.index[k, :n] for k, n in enumerate(train_rows.count)])
    counts = torch.bincount(train_rows.y[torch.from_numpy(held)].flatten(), minlength=CLASSES) + 1
    scores = simulation.own_rows(simulation.start(), test, np.arange(simulation.data.clients))
    y = test.y[torch.from_numpy(test.index[0, : test.count[0]])].flatten()
    assert scores.loss[0] == pytest.approx(float(-(counts / counts.sum()).log()[y].mean()), abs=1e-6)
    assert scores.accuracy[0] == pytest.approx(float((y == counts.argmax()).double().mean()))


def test_images_are_no_text_and_text_no_images():
    with pytest.raises(Refused, match=r"shape \[4, 4\] are not text"):
        lstm.build((4, 4), CLASSES)
    with pytest.raises(Refused, match="T at least 2"):
        lstm.build((1,), CLASSES)


@pytest.mark.parametrize(
    ("per", "text", "message"), [(None, True, "set `per: character`"), ("token", False, "remove the key `per`")]
)
def test_a_task_says_whether_its_rows_are_text(per, text, message):
    with pytest.raises(ConfigError, match=message):
        federation._check_text(make_run("fedavg", per=per).task, text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shift": {"kind": "label_shift"}}, "`shift`, `normalise` and `augmentation` cannot be used with text"),
        ({"augmentation": "flip_crop"}, "cannot be used with text"),
        ({"partition": {"kind": "dirichlet", "alpha": 0.1}}, "set `partition.kind` to natural or iid"),
        ({"partition": {"label_noise": 0.1}}, "`partition.label_noise` and `partition.mixed` cannot be used with text"),
    ],
)
def test_text_is_not_shifted(change, message):
    values = make_run("fedavg", per="character").task.model_dump()
    with pytest.raises(ValueError, match=message):
        Task(**{**values, **change})


@pytest.mark.parametrize(("variant", "model", "why"), [
    ("pfedmoe", "lstm", "numbers of text tokens are only names"),
    ("pfl_moe", "lstm", "numbers of text tokens are only names"),
    ("fedmix", "lstm", "numbers of text tokens are only names"),
    ("fedper", "tied", "shares its weights with the embedding"),
])  # fmt: skip
def test_what_text_cannot_have_is_refused_with_a_reason(variant, model, why):
    with pytest.raises(ConfigError, match=why):
        simulate(variant, model=model, data=make_data(shape=(3,), text=True))
