"""Flow and FedDPA, which mix parameters for each sample: limiting cases, and equations written out as plain loops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import federations
import plain_loops as plain
import pytest
import torch
import torch.nn.functional as F
from federations import SHALLOW, assert_close, served, train, trained
from plain_loops import CLIENTS, EXACT, FROZEN, UNEQUAL, each_backend, simulated

# ------------------------------------------------------------------------------------------------------------- Flow


def always_global(method):
    """A change of method: the policy gives the local layers the probability softmax(-100), and does not train."""

    def start():
        zeros = method.groups["policy"].init()
        return {name: torch.full_like(t, -100.0) if name == "mix.bias" else t for name, t in zeros.items()}

    policy = replace(method.groups["policy"], init=start, lr=0.0)
    return replace(method, groups={**method.groups, "policy": policy})


def on_others(method):
    """A change of method: FedAvg without every fourth sample."""
    (phase,) = method.phases_of(1, 1)
    return replace(method, phases=(replace(phase, samples="others"),))


@pytest.mark.parametrize(
    "model", [m for m in SHALLOW if m not in federations.DROPPING and federations.buildable("flow", m)]
)
def test_flow_that_always_chooses_the_global_model_is_fedavg_on_the_second_part(model):
    """In stored order: shuffles and draws of dropout differ, because the second phase is another epoch."""
    how = {"model": model, "switches": {"batches": "fixed"}}
    ours = federations.simulate("flow", change=always_global, params={"local_part": "held_out"}, **how)
    fedavg = federations.simulate("fedavg", change=on_others, **how)
    end, other = train(ours), train(fedavg)
    for group in other.values:
        assert_close(end.values[group], other.values[group], EXACT)
    torch.testing.assert_close(served(ours, end), served(fedavg, other), rtol=0, atol=EXACT)


def routed(w, local, q, x):
    """Layer by layer, q times the output of the local layer plus 1 - q times that of the global layer."""

    def layer(name, column, x):
        of_each = [F.linear(x, v[f"{name}.weight"], v[f"{name}.bias"]) for v in (local, w)]
        return q[:, column, None] * of_each[0] + (1 - q[:, column, None]) * of_each[1]

    return layer("out", 1, torch.relu(layer("hidden", 0, x.flatten(1))))


@each_backend
@pytest.mark.parametrize("local_part", ["held_out", "others"])
def test_flow(how, local_part):
    """w_k on the first part from the received w, then w and the policy on the second part with w_k fixed."""
    gamma, params = 0.02, {"gamma": 0.02, "local_part": local_part}
    simulation = simulated("flow", UNEQUAL, params=params, router_lr=5.0, **how)
    state = simulation.start()
    w, policy = plain.copied(state.values["base"]), plain.copied(state.values["policy"])
    assert not any(t.any() for t in policy.values())
    held = {"held_out": slice(3, 4), "others": slice(0, 3)}  # of a batch of four, the fourth is held out
    first, second = held[local_part], held["others" if local_part == "held_out" else "held_out"]
    for round in (1, 2, 3):
        sent, differences = [], []
        for k in CLIENTS:
            parts = [
                [(x[part], y[part]) for x, y in plain.batches(simulation, k) if len(x[part])]
                for part in (first, second)
            ]
            received = w
            local, of_k, psi = plain.sgd(received, parts[0]), received, policy
            differences.append({name: local[name] - received[name] for name in w})

            def objective(w, psi, x, y, local=local):
                logits = F.linear(x.flatten(1), psi["mix.weight"], psi["mix.bias"])
                q = torch.sigmoid(logits)
                reward = -gamma * torch.log(1 - q).mean()
                return F.cross_entropy(routed(w, local, q, x), y) + reward

            for x, y in parts[1]:
                of_w, of_psi = plain.gradients(lambda w, psi, x=x, y=y, of=objective: of(w, psi, x, y), of_k, psi)
                of_k, psi = plain.stepped(of_k, of_w), plain.stepped(psi, of_psi, lr=5.0)
            sent.append((of_k, psi))
        w, policy = (plain.mean([pair[at] for pair in sent], plain.shares(simulation)) for at in (0, 1))
        simulation.train(state, round)
        assert_close(state.values["base"], w, EXACT)
        assert_close(state.values["policy"], policy, EXACT)
        for k in CLIENTS:
            assert_close(plain.row(state.values["difference"], k), differences[k], EXACT)
    x = plain.inputs_of_test(simulation)
    logits = F.linear(x.flatten(1), policy["mix.weight"], policy["mix.bias"])
    middle = logits.mean()  # so that the policy makes both choices
    state.values["policy"]["mix.bias"] -= middle
    logits = logits - middle
    assert 0 < int((logits > 0).sum()) < logits.numel(), "the policy always makes the same choice"
    for k, outputs in enumerate(served(simulation, state)):
        local = {name: w[name] + change for name, change in differences[k].items()}
        torch.testing.assert_close(outputs, routed(w, local, (logits > 0).double(), x), rtol=0, atol=EXACT)


def test_flow_refuses_text():
    assert not federations.buildable("flow", "lstm")


# ----------------------------------------------------------------------------------------------------------- FedDPA


STORED_ORDER: dict[str, Any] = {"switches": {"batches": "fixed"}}
"""The shared adaptor trains in the second phase, whose epoch has another shuffle."""


def frozen_base(**params: Any) -> dict[str, Any]:
    return {"params": {**FROZEN, "rank": 1, **params}, "rounds": 4}


def test_feddpa_with_weight_zero_predicts_as_fedit(unbounded):
    ours = federations.simulate("feddpa", params={"weight": 0.0}, **STORED_ORDER)
    fedit = federations.simulate("fedit", **STORED_ORDER)
    end, other = train(ours, 4), train(fedit, 4)
    assert_close(end.values["base"], other.values["base"], EXACT)
    assert_close(end.values["shared"], other.values["adaptor"], EXACT)
    torch.testing.assert_close(served(ours, end), served(fedit, other), rtol=0, atol=EXACT)
    assert any(t.any() for name, t in end.values["private"].items() if name.endswith(".B"))


@each_backend
def test_feddpa(how):
    """First the private adaptor beside half of the shared one, then the shared one alone; cosines weigh them."""
    simulation = simulated("feddpa", UNEQUAL, **frozen_base(weight=0.8), **how)
    state = simulation.start()
    simulation.train(state, 1)
    base, shared = plain.copied(state.values["base"]), plain.copied(state.values["shared"])
    own = [plain.row(state.values["private"], k) for k in CLIENTS]

    def halved(adaptor):
        return {name: t if name.endswith(".A") else t / 2 for name, t in adaptor.items()}

    def directions(adaptor, x):
        of_body = {name: t for name, t in adaptor.items() if name.startswith("hidden.")}
        f = plain.features(plain.with_adaptors(base, of_body), x)
        return f / f.norm(dim=1, keepdim=True).clamp(min=1e-12)

    for round in (2, 3):
        sent, references = [], []
        for k in CLIENTS:
            references.append(directions(own[k], plain.samples(simulation, k)[0]).mean(0))
            own[k] = plain.sgd(
                own[k],
                plain.batches(simulation, k),
                lambda p, x, y, s=shared: plain.loss(plain.with_adaptors(base, halved(s), halved(p)), x, y),
            )
            sent.append(plain.sgd(shared, plain.batches(simulation, k), plain.adapted_loss(base)))
        shared = plain.mean(sent, plain.shares(simulation))
        simulation.train(state, round)
        assert_close(state.values["shared"], shared, EXACT)
        for k in CLIENTS:
            assert_close(plain.row(state.values["private"], k), own[k], EXACT)
            assert_close({"r": state.values["reference"]["direction"][k]}, {"r": references[k]}, EXACT)
    x = plain.inputs_of_test(simulation)
    for k, outputs in enumerate(served(simulation, state)):
        similar = directions(own[k], x) @ references[k]
        for sample, logits in enumerate(outputs):
            share = 0.8 * float(similar[sample])
            scaled = [
                {name: t if name.endswith(".A") else part * t for name, t in adaptor.items()}
                for part, adaptor in ((1 - share, shared), (share, own[k]))
            ]
            expected = plain.net(plain.with_adaptors(base, *scaled), x[sample : sample + 1])[0]
            torch.testing.assert_close(logits, expected, rtol=0, atol=EXACT)


def test_a_client_that_never_took_part_predicts_with_the_shared_adaptor():
    simulation = federations.simulate("feddpa", participation=0.3, rounds=4, **STORED_ORDER)
    state = train(simulation, 4)
    present = {k for round in range(1, 5) for k in simulation.cohort(round).tolist()}
    absent = sorted(set(range(simulation.data.clients)) - present)
    assert absent
    fedit = federations.simulate("fedit", participation=0.3, rounds=4, **STORED_ORDER)
    outputs, expected = served(simulation, state), served(fedit, train(fedit, 4))
    for k in absent:
        torch.testing.assert_close(outputs[k], expected[k], rtol=0, atol=EXACT)


def test_feddpa_trains_the_base_beside_the_shared_adaptor_in_its_joint_form():
    ours, fedit = (
        trained(variant, rounds=3, **STORED_ORDER) for variant in ("feddpa_trained_base", "fedit_trained_base")
    )
    assert_close(ours.values["base"], fedit.values["base"], EXACT)
    assert_close(ours.values["shared"], fedit.values["adaptor"], EXACT)
