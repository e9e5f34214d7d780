"""Both sides of each condition of a fold: exact where it holds, kept with the right reason where it does not."""

from __future__ import annotations

import pytest
from onnx_networks import DOUBLE, Builder, broken, built, close, evaluate, feeds, fold_of, ops, outcomes
from trap_networks import NETWORKS, bn, conv, x3


@pytest.mark.parametrize("name", NETWORKS)
def test_what_folds_is_exact_and_what_does_not_says_why(name):
    network = NETWORKS[name]
    model = network.model()
    result = fold_of(model, **network.given)
    assert outcomes(result) == network.wanted
    inputs = feeds(model)
    truth = evaluate(model, inputs)
    assert close(evaluate(result.model, inputs), truth, network.bound)
    for entry in result.fold_map:
        wrong = (evaluate(one, inputs) for one in broken(result, entry["tensor"]))
        assert any(not close(found, truth, 1e-4) for found in wrong), f"the check does not see {entry['tensor']}"


def test_a_norm_in_training_mode_is_refused_and_left_as_it_is():
    def build(b: Builder) -> str:
        y = bn(b, conv(b, x3(b)), 4, training_mode=1)
        b.nodes[-1].output.extend(["new_mean", "new_var"])  # a norm in training mode has three
        return y

    model = built(build, DOUBLE)
    result = fold_of(model)
    assert outcomes(result) == [("refused", "TRAINING_MODE")]
    assert ops(result.model) == ["Conv", "BatchNormalization"]
    assert result.fold_map == ()
