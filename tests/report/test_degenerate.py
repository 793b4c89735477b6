"""Every `equals` of config/methods is a theorem: both variants are run on a federation that meets the condition."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from federations import SIZES, VARIANTS, fitting, make_run, served, simulate, train

from floral.config import catalogue
from floral.config.reading import ConfigError
from floral.config.schema.method import Condition, Equal
from floral.report.degenerate import CONDITIONS, holds

MEETS = {"one_local_step": {"batch": max(SIZES)}, "one_cluster": {"clusters": 1}}
"""condition → the change of the usual federation that meets it."""

RULES = [(variant, rule) for variant in VARIANTS for rule in catalogue.variant(variant).equals]


def outputs(variant, model, how):
    simulation = simulate(variant, model=model, **how)
    # log-probabilities: some methods serve these and not logits, and no loss tells them apart
    return [torch.log_softmax(logits, -1) for logits in served(simulation, train(simulation))]


@pytest.mark.parametrize(("variant", "rule"), [pytest.param(v, r, id=f"{v}-{r.when}") for v, r in RULES])
def test_a_declared_equality_holds_under_its_condition_and_not_without(variant, rule):
    for how, equal in ((MEETS[rule.when], True), ({}, False)):
        assert holds(rule.when, make_run(variant, **how).task, max(SIZES)) == equal
        ours, theirs = (outputs(name, fitting(variant), how) for name in (variant, rule.variant))
        gaps = [float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)]
        assert (max(gaps) < 1e-12) == equal, gaps


def test_every_condition_is_tested_and_explained():
    assert set(CONDITIONS) == set(get_args(Condition)) == set(MEETS)


def test_an_unknown_variant_is_a_mistake_of_the_file(monkeypatch):
    rule = Equal(variant="fedavgg", when="one_cluster")
    wrong = catalogue.method_file("fedprox").model_copy(update={"equals": (rule,)})
    catalogue.variant_index()  # as it is, before a file is another one
    monkeypatch.setattr(catalogue, "method_file", lambda name: wrong)
    with pytest.raises(ConfigError, match=r"fedprox\.yaml: variants\.fedprox: equals: unknown variant 'fedavgg'; did"):
        catalogue.variant("fedprox")
