from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parity_mutants import FORMULAS, refold, replace, spoil
from parity_networks import Builder, Layer, fold, inputs_for, layers, single, small_cnn

from bnfold.errors import ParityError
from bnfold.parity.local.bounds import Rounding
from bnfold.parity.local.bounds import folded as folded_bound
from bnfold.parity.local.checking import SiteResult, check_sites, compare
from bnfold.parity.weights.certificate import expect
from bnfold.parity.weights.exact import FORMATS


def checked(model: onnx.ModelProto, folded: ir.Model, x: dict[str, Any]) -> tuple[SiteResult, ...]:
    reference = ir.from_proto(model)
    return check_sites(reference, folded, expect(reference).sites, [x])


def run_folded(model: onnx.ModelProto, x: dict[str, Any]) -> tuple[SiteResult, ...]:
    return checked(model, fold(model)[1], x)


@settings(max_examples=100)
@given(layers(("float32", "float32", "float16")), st.integers(0, 999), st.sampled_from([1.0, 1e-3, 100.0]))
def test_no_false_alarm_on_random_layers(layer: Layer, seed: int, size: float) -> None:
    """Right folds stay within the bound, whatever the operator, the statistics and the inputs."""
    model = single(layer)
    x = {name: (array * size).astype(array.dtype) for name, array in inputs_for(model, seed).items()}
    for site in run_folded(model, x):
        if layer.dtype == "float16" and not np.isfinite(site.worst_ratio):
            continue  # an intermediate that overflows in half precision has no bound
        assert site.holds, site.sentence()
        assert site.worst_ratio < 1


def test_no_false_alarm_over_many_seeds_of_a_network() -> None:
    worst = 0.0
    for seed in range(25):
        model = small_cnn(seed)
        worst = max(worst, *(site.worst_ratio for site in run_folded(model, inputs_for(model, seed, batch=4))))
    assert 0.01 < worst < 1


def test_bound_covers_a_matmul_that_is_stored_before_its_bias_is_added() -> None:
    """In half precision that is a rounding more; ONNX Runtime may leave it out, but need not."""
    (site,) = expect(ir.from_proto(single(Layer(kind="matmul", inputs=1, outputs=1, bias=False)))).sites
    rng = np.random.default_rng(0)
    half, single_ = np.float16, np.float32
    w, c = rng.uniform(1, 2, 200_000), rng.uniform(0, 0.3, 200_000)
    x = rng.uniform(1, 2, 200_000).astype(half).astype(np.float64)
    product = (x.astype(single_) * w.astype(half).astype(single_)).astype(half)
    found = (product.astype(single_) + c.astype(half).astype(single_)).astype(half).astype(np.float64)
    bound = folded_bound(site.linear, np.ones(1), np.ones(1), Rounding.of(FORMATS["float16"]))
    size = np.abs(x * w) * bound.r + c * (bound.t - bound_of_nothing(site.linear))
    ratio = np.max(np.abs(found - (x * w + c)) / size)
    assert 0.7 < ratio < 1


def bound_of_nothing(linear: Any) -> Any:
    """The part of the bound that is there without a bias: underflow."""
    return folded_bound(linear, np.ones(1), np.zeros(1), Rounding.of(FORMATS["float16"])).t


def test_subnormal_weights_and_results_stay_within_the_bound() -> None:
    """gamma of 1e-40 makes every folded weight subnormal: its rounding is absolute, not relative."""
    for seed in range(5):
        build = Builder(np.random.default_rng(seed))
        weight = build.constant("w", build.normal(6, 5))
        y = build.node("MatMul", ["input", weight])
        parts = build.statistics(5)
        parts["gamma"] = parts["gamma"] * 1e-40
        parts["beta"] = parts["beta"] * 1e-42
        y = build.node("BatchNormalization", [y, *(build.constant(k, v) for k, v in parts.items())])
        model = build.model((None, 6), y, 2)
        (site,) = run_folded(model, inputs_for(model, seed, batch=50))
        assert site.holds, site.sentence()
        assert site.worst_ratio > 0


def test_gives_a_row_a_site_in_graph_order() -> None:
    model = small_cnn()
    found = run_folded(model, inputs_for(model, batch=5))
    assert [site.linear for site in found] == ["block0.linear", "block1.linear", "block2.linear", "dense.linear"]
    assert [site.fan_in for site in found] == [9, 72, 108, 256]
    assert found[0].elements == 5 * 8 * 64
    assert all(site.norms for site in found)


@pytest.mark.parametrize("name", ["gamma lost", "beta lost", "mean lost", "stale statistics", "biased variance"])
def test_catches_wrong_formulas_at_every_site(name: str) -> None:
    model = small_cnn()
    mutant = ir.from_proto(refold(model, ir.to_proto(fold(model)[1]), FORMULAS[name]))
    found = checked(model, mutant, inputs_for(model))
    bad = [site for site in found if not site.holds]
    assert len(bad) == len(found)
    assert all(site.worst_ratio > 1 and site.bad > 0 for site in bad)


@pytest.mark.parametrize("fault", ["channels swapped", "one channel negated", "kernel transposed", "bias lost"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_catches_a_fault_at_one_site_and_only_there(fault: str, at: int) -> None:
    """Each site is fed the reference's own activation, so that what went wrong upstream does not show."""
    model = small_cnn()
    site = expect(ir.from_proto(model)).sites[at]
    mutant = ir.from_proto(spoil(ir.to_proto(fold(model)[1]), site, fault))
    found = checked(model, mutant, inputs_for(model))
    assert [result.linear for result in found if not result.holds] == [site.linear.name]
    assert site.weight in found[at].sentence()


def test_names_the_worst_channel() -> None:
    model = small_cnn()
    mutant = ir.to_proto(fold(model)[1])

    def spoiled(w: Any) -> Any:
        w = w.copy()
        w[7] *= np.float32(1.01)
        return w

    replace(mutant, "block1.linear.weight.folded", spoiled)
    found = checked(model, ir.from_proto(mutant), inputs_for(model))
    assert found[1].worst_channel == 7
    assert "channel 7" in found[1].sentence()


@pytest.mark.parametrize("fault", ["one element NaN"])
def test_not_a_number_never_passes(fault: str) -> None:
    model = small_cnn()
    site = expect(ir.from_proto(model)).sites[0]
    mutant = ir.from_proto(spoil(ir.to_proto(fold(model)[1]), site, fault))
    found = checked(model, mutant, inputs_for(model))[0]
    assert not found.holds
    assert found.worst_ratio == np.inf


def test_nan_on_both_sides_does_not_pass() -> None:
    model = small_cnn()
    x = inputs_for(model)
    x["input"][0, 0, 0, 0] = np.nan
    assert not run_folded(model, x)[0].holds


def test_a_zero_bound_lets_only_equal_values_pass() -> None:
    model = small_cnn()
    site = expect(ir.from_proto(model)).sites[3]
    zero = np.zeros((1, 20), np.float32)
    assert compare(zero, zero, zero.astype(np.float64), site).holds
    other = zero.copy()
    other[0, 4] = 1e-30
    found = compare(zero, other, zero.astype(np.float64), site)
    assert (found.bad, found.worst_channel) == (1, 4)


def test_a_missing_tensor_cannot_be_bounded() -> None:
    model = small_cnn()
    found = checked(model, ir.from_proto(model), inputs_for(model))
    assert all(site.problem and not site.holds for site in found)
    assert "block0.linear.weight.folded" in found[0].sentence()


def test_an_input_that_does_not_fit_is_one_sentence() -> None:
    model = small_cnn()
    with pytest.raises(ParityError, match="cannot be run site by site"):
        run_folded(model, {"input": np.zeros((1, 3, 8, 8), np.float32)})


def test_a_divisor_that_may_round_to_zero_has_no_bound() -> None:
    build = Builder(np.random.default_rng(0))
    weight = build.constant("w", build.normal(3, 4))
    big, little = build.constant("big", np.ones(4)), build.constant("little", np.full(4, 1 + 2.0**-23))
    scale = build.constant("scale", np.full(4, 1 / 3))
    rounded = build.node("Sub", [build.node("Mul", [big, scale]), build.node("Mul", [little, scale])])
    y = build.node("MatMul", ["input", weight])
    y = build.node("Add", [build.node("Div", [y, rounded]), build.constant("beta", build.normal(4))])
    model = build.model((None, 3), y, 2)
    (site,) = run_folded(model, inputs_for(model))
    assert "may round to zero" in site.problem
