from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from parity_mutants import FORMULAS, refold, spoil
from parity_networks import fold, inputs_for, small_cnn

from bnfold.parity.oracle import run_float64
from bnfold.parity.rerounding import answers_of_copies
from bnfold.parity.triangle import Corner, asked_again, compare, corner
from bnfold.parity.weights.certificate import expect
from bnfold.runtime import open_session, run


def measured(model: onnx.ModelProto, folded: onnx.ModelProto, x: dict[str, Any]) -> Corner:
    unfolded = run(open_session(model.SerializeToString(), optimise=False), x)
    answers = run(open_session(folded.SerializeToString(), optimise=True), x)
    (found,) = compare([run_float64(model, x)], [unfolded], [answers])
    return found


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("seed", range(8))
def test_a_right_fold_is_as_near_to_the_truth_as_the_unfolded_network(seed: int, dtype: str) -> None:
    model = small_cnn(seed, dtype)
    found = measured(model, ir.to_proto(fold(model)[1]), inputs_for(model, seed, batch=20))
    assert found.holds, found.sentence()
    assert 0.2 < found.ratio < (2 if dtype == "float32" else 32)
    assert found.unfolded_error > 0


@pytest.mark.parametrize("name", sorted(set(FORMULAS) - {"folded in float32"}))
def test_catches_wrong_formulas(name: str) -> None:
    model = small_cnn()
    found = measured(model, refold(model, ir.to_proto(fold(model)[1]), FORMULAS[name]), inputs_for(model, batch=20))
    assert not found.holds
    assert found.ratio > 2
    assert "output 'output'" in found.sentence()


def test_a_fold_in_float32_is_beyond_the_certificate_but_not_beyond_this_tier() -> None:
    """What T3 cannot see: a few ulp in the weights drown in the network's own rounding."""
    model = small_cnn()
    mutant = refold(model, ir.to_proto(fold(model)[1]), FORMULAS["folded in float32"])
    assert measured(model, mutant, inputs_for(model, batch=20)).holds


@pytest.mark.parametrize("fault", ["channels swapped", "one channel times 1.0001", "one channel negated", "bias lost"])
def test_catches_single_faults(fault: str) -> None:
    model = small_cnn()
    site = expect(ir.from_proto(model)).sites[0]
    found = measured(model, spoil(ir.to_proto(fold(model)[1]), site, fault), inputs_for(model, batch=20))
    assert not found.holds


TRUTH = np.array([[1.0, -2.0, 4.0]])
NEAR = (TRUTH * (1 + 1e-7)).astype(np.float32)


def test_the_limit_is_k_times_the_unfolded_error_and_the_rounding_of_the_output() -> None:
    found = corner("y", [TRUTH], [NEAR], [NEAR])
    assert found.ratio == 1
    assert found.error_limit == pytest.approx(4 * found.unfolded_error + (3 * 2.0**-24 + 1e-10) * 4)
    assert found.rms_limit == pytest.approx(2 * found.unfolded_rms + (3 * 2.0**-24 + 1e-10) * np.sqrt(7))
    # 8 ulp off, where unfolded is off by about one
    off = np.float32(4 + 8 * 2.0**-21)
    assert not corner("y", [TRUTH], [NEAR], [np.array([[1, -2, off]], np.float32)]).holds


def test_one_bad_element_does_not_hide_in_the_mean() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(1000, 1000))
    unfolded = (truth + 1e-6 * rng.normal(size=truth.shape)).astype(np.float32)
    folded = unfolded.copy()
    folded[3, 4] += np.float32(1e-4)
    found = corner("y", [truth], [unfolded], [folded])
    assert found.ratio < 1.01
    assert not found.holds


def test_an_unfolded_network_without_error_leaves_the_rounding_of_the_output() -> None:
    exact = TRUTH.astype(np.float32)
    half_ulp = np.array([[1 + 2.0**-23, -2, 4]], np.float32)
    assert corner("y", [TRUTH], [exact], [half_ulp]).holds
    assert not corner("y", [TRUTH], [exact], [np.array([[1, -2, 4 + 2.0**-20]], np.float32)]).holds


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_in_one_model_alone_fails(value: float) -> None:
    spoiled = NEAR.copy()
    spoiled[0, 1] = value
    for left, right in ((NEAR, spoiled), (spoiled, NEAR), (spoiled, -spoiled) if np.isinf(value) else (NEAR, spoiled)):
        found = corner("y", [TRUTH], [left], [right])
        assert not found.holds
        assert "NaN or infinite" in found.sentence()


def test_what_is_infinite_in_both_is_left_out_of_the_comparison() -> None:
    """Intermediates that overflow unfolded are outside the contract; the rest is judged."""
    spoiled = NEAR.copy()
    spoiled[0, 1] = np.inf
    assert corner("y", [TRUTH], [spoiled], [spoiled]).elements == 2


def test_nothing_finite_cannot_be_told() -> None:
    spoiled = np.full((1, 3), np.nan, np.float32)
    found = corner("y", [TRUTH], [spoiled], [spoiled])
    assert not found.holds
    assert found.doubt


def test_another_shape_fails() -> None:
    assert "shapes differ" in corner("y", [TRUTH], [NEAR], [NEAR[:, :2]]).sentence()


def test_a_truth_that_does_not_fit_the_reference_cannot_prove_anything() -> None:
    """Were it let pass, any fold would hold: its error is no larger than the unfolded one."""
    found = corner("y", [TRUTH * 1.5], [NEAR], [NEAR])
    assert found.ratio == 1
    assert not found.holds
    assert "more than rounding explains" in found.sentence()


def test_every_output_and_every_batch_counts() -> None:
    good = {"a": NEAR, "b": NEAR}
    bad = {"a": NEAR, "b": NEAR * np.float32(1.01)}
    truth = {"a": TRUTH, "b": TRUTH}
    found = compare([truth, truth], [good, good], [good, bad])
    assert [each.holds for each in found] == [True, False]
    assert found[0].elements == 6


def test_a_fold_beyond_its_limit_is_asked_again_with_the_scatter_of_copies() -> None:
    """The unfolded model happens to be exact; copies of the folded one show what rounding alone does there."""
    folded = (TRUTH * (1 + 8e-7)).astype(np.float32)
    found = compare([{"y": TRUTH}], [{"y": TRUTH.astype(np.float32)}], [{"y": folded}])
    assert not found[0].holds
    scattered = [[{"y": (TRUTH * (1 + factor)).astype(np.float32)}] for factor in (0.0, 6e-7, -5e-7)]
    (again,) = asked_again(found, lambda: scattered)
    assert again.holds
    assert again.scatter_error == pytest.approx(4 * 6e-7, rel=0.2)
    # Copies that stay together leave the limit where it was, wherever they are.
    together = [[{"y": TRUTH.astype(np.float32) * 7}]] * 3
    (again,) = asked_again(found, lambda: together)
    assert not again.holds


def test_nobody_is_asked_again_who_holds_or_whom_no_rounding_excuses() -> None:
    def copies() -> list[Any]:
        raise AssertionError("nobody should ask")

    holds = compare([{"y": TRUTH}], [{"y": NEAR}], [{"y": NEAR}])
    assert asked_again(holds, copies) == holds
    broken = compare([{"y": TRUTH}], [{"y": NEAR}], [{"y": NEAR * np.float32(np.nan)}])
    assert asked_again(broken, copies) == broken


def test_a_wrong_channel_is_no_scatter() -> None:
    """Copies share a wrong fold's weights, and so its error; what they scatter by is rounding."""
    model = small_cnn()
    x = inputs_for(model, 0, batch=16)
    spoiled = ir.to_proto(fold(model)[1])
    tensor = next(t for t in spoiled.graph.initializer if t.name.endswith("weight.folded"))
    array = onnx.numpy_helper.to_array(tensor).copy()
    array[0] *= np.float32(1.001)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    truth, unfolded = run_float64(model, x), run(open_session(model.SerializeToString(), optimise=False), x)
    answers = run(open_session(spoiled.SerializeToString(), optimise=True), x)
    found = asked_again(compare([truth], [unfolded], [answers]), lambda: answers_of_copies(spoiled, [x]))
    assert not found[0].holds
    assert found[0].scatter_rms > 0
