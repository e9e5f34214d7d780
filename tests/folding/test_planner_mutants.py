"""Each side condition of the planner, made wrong on purpose, is noticed by a network of the corpus."""

from __future__ import annotations

import pytest
from onnx_networks import close, evaluate, feeds, fold_of, outcomes
from planner_mutants import MUTANTS
from trap_networks import NETWORKS


def verdict(name: str) -> str:
    """What is wrong with the fold of a network: '' for nothing."""
    network = NETWORKS[name]
    model = network.model()
    inputs = feeds(model)
    truth = evaluate(model, inputs)
    try:
        result = fold_of(model, **network.given)
        found = evaluate(result.model, inputs)
    except Exception as error:
        return f"crash: {type(error).__name__}"
    if not close(found, truth, network.bound):
        return "other numbers"
    return "" if outcomes(result) == network.wanted else "another outcome"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_condition_that_is_made_wrong_is_noticed(mutant, monkeypatch):
    mutant.apply(monkeypatch)
    assert verdict(mutant.network)


@pytest.mark.parametrize("name", sorted({mutant.network for mutant in MUTANTS}))
def test_the_planner_as_it_is_passes_what_catches_the_mutants(name):
    assert verdict(name) == ""
