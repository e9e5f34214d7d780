"""Thousands of random graphs of facts: a plan's edits leave what the graph computes as it was."""

from __future__ import annotations

import dataclasses

import pytest
from facts_campaign import TOLERANCE, difference, seeded
from facts_graphs import Drawn, grow
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bnfold.folding.edits import SetWeights
from bnfold.folding.expressions import Scalar, mul
from bnfold.folding.plan import make_plan

# What these run is measured by the tests that name it; to measure it here too would take more than twice the time.
pytestmark = pytest.mark.no_cover

SEEDS = 3000
PART = 250


@pytest.mark.parametrize("first", range(0, SEEDS, PART))
def test_random_graphs_compute_what_they_did(first):
    for seed in range(first, first + PART):
        sample = seeded(seed)
        for moves in ("default", "all"):
            gap = difference(sample, make_plan(sample.graph, moves=moves))
            assert gap <= TOLERANCE, f"facts_campaign.py --seed {seed} --count 1, moves {moves}: differs by {gap:.3g}"


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data(), st.sampled_from(["default", "all"]), st.integers(0, 2**32 - 1))
def test_graphs_of_any_shape_compute_what_they_did(data, moves, numbers):
    sample = grow(Drawn(data.draw), numbers)
    assert difference(sample, make_plan(sample.graph, moves=moves)) <= TOLERANCE


def test_the_random_graphs_are_not_idle():
    outcomes = {"default": [], "all": []}
    edits = set()
    for seed in range(600):
        sample = seeded(seed)
        for moves, found in outcomes.items():
            plan = make_plan(sample.graph, moves=moves)
            found += [row.outcome for row in plan.report.norms]
            edits |= {type(edit).__name__ for edit in plan.edits}
    assert outcomes["default"].count("folded") > 0.4 * len(outcomes["default"]) > 300
    assert outcomes["all"].count("reduced") > 10
    assert {"SetWeights", "Bypass", "Redirect", "SetAffine", "AddConstant"} <= edits


def test_one_wrong_weight_is_seen():
    """The negative control: a plan whose first folded weight is off by a part in a million."""
    seen = planned = 0
    for seed in range(200):
        sample = seeded(seed)
        plan = make_plan(sample.graph)
        for at, edit in enumerate(plan.edits):
            if isinstance(edit, SetWeights):
                wrong = dataclasses.replace(edit, weight=mul(edit.weight, Scalar(1 + 1e-6)))
                edits = (*plan.edits[:at], wrong, *plan.edits[at + 1 :])
                seen += difference(sample, dataclasses.replace(plan, edits=edits)) > TOLERANCE
                planned += 1
                break
    assert planned > 50
    assert seen >= 0.9 * planned  # not where an activation cuts the difference off, or a weight leads nowhere


@pytest.mark.parametrize("seed", [127517])
def test_graphs_that_were_folded_wrongly_once_are_folded_rightly(seed):
    # 127517: two norms behind a LeakyReLU, each of which would turn its slopes
    sample = seeded(seed)
    assert difference(sample, make_plan(sample.graph, moves="all")) <= TOLERANCE
