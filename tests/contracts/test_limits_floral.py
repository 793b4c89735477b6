"""The limiting cases and equations of FLoRAL's options: routers, centred adaptors, a split budget, more adaptors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from federations import SIZES, assert_close, assert_equal_states, make_data, served, simulate, train, trained

from floral.config.reading import ConfigError
from floral.core.spec import ServerView
from floral.toolkit.routes import fixed_logits, keep_largest

pytestmark = pytest.mark.usefixtures("without_recording")

EXACT = 1e-12
WHERE = [{"backend": "loop"}, {"backend": "vmap", "chunk": 3}, {"backend": "batched", "chunk": 3}]
each_backend = pytest.mark.parametrize("how", WHERE, ids=lambda how: how["backend"])
TRUE = torch.arange(len(SIZES)) % 2


def losses(simulation, values, k):
    """Cross-entropies [C, n] of W + B_c A_c, each c alone, on all training rows of client k; the MLP by hand."""
    rows, base, mixture = simulation.data.train, values["base"], values["adaptors"]
    x, y = rows.gather(torch.from_numpy(rows.index[k, : rows.count[k]]))

    def layer(name, x, c):
        weight = base[f"{name}.weight"] + mixture[f"{name}.B"][c] @ mixture[f"{name}.A"][c]
        return F.linear(x, weight, base[f"{name}.bias"] + mixture[f"{name}.bias"][c])

    outputs = (layer("out", torch.relu(layer("hidden", x.flatten(1), c)), c) for c in range(simulation.clusters))
    return torch.stack([F.cross_entropy(some, y, reduction="none") for some in outputs])


def starting(router):
    """A change of method: given logits, which training does not move."""

    def change(method):
        group = replace(method.groups["router"], init=lambda: {"logits": router}, lr=0.0)
        return replace(method, groups={**method.groups, "router": group})

    return change


# ------------------------------------------------------------------------------------------------- top 2


@each_backend
@pytest.mark.parametrize("variant", ["floral_1", "ensemble"])
def test_the_two_largest_of_two_are_all(variant, how):
    top = {"params": {"top": 2}, **how}
    assert_equal_states(trained(variant, **top), trained(variant, **how), 1e-10)
    ours, others = (trained(variant, clusters=3, **some).values["router"] for some in (top, how))
    assert not torch.allclose(ours["logits"], others["logits"])


def test_the_largest_weights_are_kept_and_renormalised():
    route = torch.tensor([0.1, 0.4, 0.2, 0.3])
    torch.testing.assert_close(keep_largest(route, 2), torch.tensor([0.0, 4 / 7, 0.0, 3 / 7]))
    torch.testing.assert_close(keep_largest(route, 1), torch.tensor([0.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(keep_largest(torch.ones(3) / 3, 2), torch.ones(3) / 3)


@pytest.mark.parametrize(("switch", "kept"), [("forward", [0, 2]), ("plain", [0, 1, 2])])
def test_top_2_serves_the_largest_and_weighs_with_two(switch, kept):
    simulation = simulate("floral_1_top2", clusters=3, switches={"aggregation_route": switch})
    view = {"router": {"logits": torch.tensor([1.0, -2.0, 0.5])}}
    assert simulation.method.routing.served_log_route(view).exp().tolist() == [1.0, 0.0, 0.0]
    assert simulation.method.routing.log_route(view).exp().nonzero()[:, 0].tolist() == kept


def test_top_2_with_an_entropy_term_has_gradients():
    state = trained("floral_1_top2", clusters=3, params={"entropy": 0.1})
    assert all(bool(tensor.isfinite().all()) for tensor in state.tensors().values())


# ------------------------------------------------------------------------------------------- one route per layer


@each_backend
def test_a_router_per_layer_of_one_layer_is_the_router(how):
    ours, plain = (trained(v, model="linear", clusters=3, **how).values for v in ("floral_1_per_layer", "floral_1"))
    assert_close({"logits": ours["router"]["logits"][:, 0]}, plain["router"], 1e-10)
    for group in ("base", "adaptors"):
        assert_close(ours[group], plain[group], 1e-10)


def test_tied_routers_per_layer_are_one_router():
    logits = torch.randn(len(SIZES), 3, generator=torch.Generator().manual_seed(0))
    how = {"clusters": 3, "params": {"noise": 0.0}}
    ours = trained("floral_1_per_layer", change=starting(logits[:, None].expand(-1, 2, -1)), **how).values
    plain = trained("floral_1", change=starting(logits), **how).values
    for group in ("base", "adaptors"):
        assert_close(ours[group], plain[group], EXACT)


def test_routers_per_layer_learn_apart_and_are_weighed_by_their_mean():
    simulation = simulate("floral_1_per_layer", clusters=3)
    logits = train(simulation).values["router"]["logits"][0]
    assert logits.shape == (2, 3) and not torch.allclose(logits[0], logits[1])
    found = simulation.method.routing.log_route({"router": {"logits": logits}}).exp()
    torch.testing.assert_close(found, torch.softmax(logits, -1).mean(0))


# ------------------------------------------------------------------------------------------- routes from losses


@each_backend
@pytest.mark.parametrize("router", ["em", "exponential"])
def test_routes_are_set_from_the_losses_of_the_rounds_start(router, how):
    simulation = simulate("floral_1", params={"router": router}, clusters=3, **how)
    state = simulation.start()
    for round in (1, 2, 3):
        before = {g: {n: t.clone() for n, t in state.values[g].items()} for g in ("base", "adaptors", "router")}
        simulation.train(state, round)
        for k in simulation.cohort(round):
            log_pi = torch.log_softmax(before["router"]["logits"][k], -1)
            found = losses(simulation, before, k)
            if router == "em":
                expected = torch.softmax(log_pi[:, None] - found, 0).mean(1)
            else:
                expected = torch.softmax(log_pi - found.mean(1), 0)
            ours = torch.softmax(state.values["router"]["logits"][k], -1)
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
    assert float((ours - 1 / 3).abs().max()) > 1e-4


def test_with_one_row_a_client_em_is_the_exponential_update():
    data = make_data((1, 1, 1, 1, 1))
    em, exponential = (trained("floral_1", 4, data=data, params={"router": r}) for r in ("em", "exponential"))
    assert_equal_states(em, exponential, EXACT)


@each_backend
def test_argmin_keeps_the_drawn_choice_until_adaptors_differ_and_then_takes_the_least_loss(how):
    simulation = simulate("floral_1_argmin", clusters=3, **how)
    state = simulation.start()
    drawn = state.values["router"]["logits"].argmax(-1)
    for round in (1, 2, 3):
        before = {g: {n: t.clone() for n, t in state.values[g].items()} for g in ("base", "adaptors", "router")}
        simulation.train(state, round)
        for k in simulation.cohort(round):
            found = int(state.values["router"]["logits"][k].argmax())
            expected = int(drawn[k]) if round == 1 else int(losses(simulation, before, k).mean(1).argmin())
            assert found == expected
    assert bool((drawn != state.values["router"]["logits"].argmax(-1)).any())


@each_backend
def test_an_argmin_that_names_the_true_cluster_is_the_optimal_router(how):
    def told(method):
        return replace(starting(fixed_logits(TRUE, 2))(method), assign=None)

    ours, optimal = trained("floral_1_argmin", change=told, **how).values, trained("floral_1_optimal", **how).values
    for group in ("base", "adaptors"):
        assert_close(ours[group], optimal[group], 1e-10)


@pytest.mark.parametrize("router", ["em", "exponential", "argmin"])
def test_with_one_cluster_routes_from_losses_are_the_learned_ones(router):
    ours, learned = (trained("floral_1", clusters=1, params={"router": r}).values for r in (router, "learned"))
    for group in ("base", "adaptors"):
        assert_close(ours[group], learned[group], EXACT)


def test_an_argmin_client_sends_its_choice_and_one_adaptor():
    argmin, optimal, plain = (
        (s := simulate(v, clusters=3)).costs(s.start()) for v in ("floral_1_argmin", "floral_1_optimal", "floral_1")
    )
    assert (argmin.sent_up, argmin.sent_down) == (optimal.sent_up + 1, plain.sent_down)
    assert (argmin.trainable_per_client, argmin.served) == (optimal.trainable_per_client, optimal.served)
    assert argmin.passes_per_sample == pytest.approx(2 * optimal.passes_per_sample)  # 3 forward passes per row


# ------------------------------------------------------------------------------------------------- centring

CENTRED = [("mlp", "none"), *(("cnn", way) for way in ("in", "out", "balanced", "balanced_2d"))]


def centring(model, convolution, alike):
    """A centred FLoRAL, its state with adaptors away from zero, and the state after the server has centred them."""
    params = {"convolution": convolution, "rank": 2}
    simulation = simulate("floral_1_centred", model=model, clusters=3, params=params)
    state, random = simulation.start(), torch.Generator().manual_seed(1)
    state.values["router"]["logits"].normal_(generator=random)
    for name, tensor in state.values["adaptors"].items():
        if name.endswith(".A"):
            tensor.copy_(tensor[:1].clone() if alike else tensor)
        else:
            tensor.normal_(generator=random)
    values = {group: dict(params) for group, params in state.values.items()}
    after = simulation.method.server.update(
        ServerView(round=1, before=values, means={}, after=values, client_vectors=None)
    )
    return simulation, state, replace(state, values={**values, **after})


@pytest.mark.parametrize(("model", "convolution"), CENTRED)
def test_centring_changes_no_served_function_where_the_adaptors_rows_are_alike(model, convolution):
    """The mean product then lies in every adaptor's reach: W + M + Σ π_c (B_c A_c - M), for any routes."""
    simulation, before, after = centring(model, convolution, alike=True)
    for ours, others in zip(served(simulation, after), served(simulation, before), strict=True):
        torch.testing.assert_close(ours, others, rtol=0, atol=1e-9)
    assert any(float((t - before.values["base"][n]).abs().max()) > 1e-3 for n, t in after.values["base"].items())
    for name, tensor in after.values["adaptors"].items():
        if not name.endswith(".A"):
            torch.testing.assert_close(tensor.mean(0), torch.zeros_like(tensor[0]), rtol=0, atol=1e-9)


def test_centring_moves_the_mean_product_exactly_and_fits_the_rest_by_least_squares():
    _, before, after = centring("mlp", "none", alike=False)
    for layer in ("hidden", "out"):
        down, up = (before.values["adaptors"][f"{layer}.{factor}"] for factor in "AB")
        products = up @ down
        moved = after.values["base"][f"{layer}.weight"] - before.values["base"][f"{layer}.weight"]
        torch.testing.assert_close(moved, products.mean(0), rtol=0, atol=EXACT)
        for c in range(3):
            expected = torch.linalg.lstsq(down[c].mT, (products[c] - products.mean(0)).mT).solution.mT
            torch.testing.assert_close(after.values["adaptors"][f"{layer}.B"][c], expected, rtol=0, atol=1e-9)


def test_centring_adaptors_at_zero_changes_nothing():
    simulation = simulate("floral_1_centred", lr=0.0, router_lr=0.0)
    assert_close(train(simulation).tensors(), simulation.start().tensors(), EXACT)


# ------------------------------------------------------------------------------------- a split-budget client


@each_backend
@pytest.mark.parametrize("variant", ["floral_1", "floral_1_optimal", "floral_1_em", "floral_1_argmin"])
def test_a_personal_client_without_its_own_rounds_is_floral(variant, how):
    def without(method):
        (public,) = (phase for phase in method.phases if "private" not in phase.train)
        return replace(method, phases=(replace(public, when=None),))

    ours = trained(variant, params={"personal": True}, change=without, **how)
    plain = trained(variant, **how)
    for group, params in plain.values.items():
        assert_close(ours.values[group], params, 1e-10)


@each_backend
def test_a_personal_client_trains_its_own_adaptor_in_odd_rounds_and_the_rest_in_even_ones(how):
    simulation = simulate("floral_1_personal", **how)
    state = simulation.start()
    for round in (1, 2, 3, 4):
        before = {name: tensor.clone() for name, tensor in state.tensors().items()}
        simulation.train(state, round)
        changed = {n.split("/")[1] for n, tensor in state.tensors().items() if not torch.equal(tensor, before[n])}
        assert changed == ({"private"} if round % 2 else {"base", "adaptors", "router"})
    assert simulation.costs_of(state, 1).sent_up == 0


# ------------------------------------------------------------------------- adaptors per cluster, server's rate


def test_twice_one_cluster_is_two_clusters():
    data = make_data(clusters=1)
    assert_equal_states(trained("floral_1_double", data=data), trained("floral_1", data=data, clusters=2), 0.0)


def test_a_server_rate_of_the_clients_lr_is_the_published_switch():
    ours = trained("floral_1", lr=0.1, params={"server_lr": 0.1})
    assert_equal_states(ours, trained("floral_1", lr=0.1, switches={"adaptor_server_lr": "client"}), 0.0)
    assert_equal_states(trained("floral_1", params={"server_lr": 1.0}), trained("floral_1"), 0.0)


@pytest.mark.parametrize(
    ("variant", "params", "reason"),
    [
        ("floral_1_optimal", {"top": 2}, "router: learned"),
        ("floral_1_em", {"per_layer": True}, "router: learned"),
        ("floral_1_random", {"entropy": 0.1}, "router: learned"),
        ("floral_1", {"top": 1}, "0 or 2"),
        ("floral_1_optimal", {"multiplier": 2}, "no client"),
        ("ensemble_optimal", {"top": 2}, "router: learned"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(variant, params, reason):
    with pytest.raises(ConfigError, match=reason):
        simulate(variant, params=params)
