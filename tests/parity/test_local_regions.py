"""T2 on edits that are no site: what lies between two points where both graphs are equal."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from parity_moves import MAKES, Make, conv, network
from parity_networks import Builder, inputs_for

from bnfold.folding.edits import SetWeights
from bnfold.folding.expressions import Scalar, mul
from bnfold.folding.onnx_graph import fold
from bnfold.parity.local.at_regions import Regions, check_regions
from bnfold.parity.local.checking import check_local
from bnfold.parity.local.points import exact_points
from bnfold.parity.weights.certificate import Expectation, expect

DTYPES = ("float32", "float16")


def expected(model: onnx.ModelProto, moves: str = "all") -> tuple[ir.Model, ir.Model, Expectation]:
    reference = ir.from_proto(model)
    folded, report, _ = fold(reference, moves=moves)
    return reference, folded, expect(reference, report)


def checked(model: onnx.ModelProto, spoil: Any = None, seed: int = 0) -> Regions:
    reference, folded, expectation = expected(model)
    if spoil is not None:
        spoil(folded, expectation)
    return check_regions(reference, folded, expectation, [inputs_for(model, seed, batch=4)])


def times(factor: float, at: int = 0) -> Any:
    """Multiply one new tensor: some channels may be dead."""

    def spoil(folded: ir.Model, expectation: Expectation) -> None:
        value = folded.graph.initializers[expectation.tensors[at].tensor]
        array = value.const_value.numpy()  # type: ignore[union-attr]
        array = (array * factor).astype(array.dtype)
        value.const_value = ir.tensor(array, name=value.name)

    return spoil


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", MAKES, ids=lambda make: make.__name__)
def test_every_move_has_a_bound_that_right_folds_keep(make: Make, dtype: str) -> None:
    for seed in range(4):
        found = checked(network(make, dtype, seed), seed=seed)
        assert found.results
        assert not found.unbounded
        assert not found.apart
        for _, result in found.results:
            assert not result.note
            assert result.holds, result.sentence()
            assert 0 <= result.worst_ratio < 1
            assert result.elements > 0


@pytest.mark.parametrize("make", MAKES, ids=lambda make: make.__name__)
def test_a_tensor_that_is_off_by_a_hundredth_is_beyond_the_bound_and_named(make: Make) -> None:
    model = network(make)
    for at, new in enumerate(expected(model)[2].tensors):
        found = checked(model, times(1.01, at))
        bad = [result for _, result in found.results if result.bad]
        assert bad
        assert all(new.tensor in result.tensor for result in bad)
        assert all(result.worst_ratio > 1 for result in bad)


def test_other_regions_do_not_see_what_went_wrong_in_one() -> None:
    """Both sides of each get the reference's own values, so an error does not spread."""
    b = Builder(np.random.default_rng(0))
    x = "input"
    for name in ("one", "two", "three"):
        x = b.node("Sigmoid", [conv(b, b.batch_norm(x, f"{name}.bn", 4), name, 4, 4)])
    model = b.model((None, 4, 9, 9), x, 4)
    assert [bool(result.bad) for _, result in checked(model).results] == [False, False, False]
    found = checked(model, times(1.01, at=2))
    assert [bool(result.bad) for _, result in found.results] == [False, True, False]


def test_sites_and_regions_come_in_the_order_of_the_graph() -> None:
    b = Builder(np.random.default_rng(0))
    x = b.node("Relu", [b.batch_norm(conv(b, "input", "one", 3, 4), "bn1", 4)])
    x = b.node("Sigmoid", [conv(b, b.batch_norm(b.node("Sigmoid", [x]), "bn2", 4), "two", 4, 4)])
    x = b.node("Relu", [b.batch_norm(conv(b, x, "three", 4, 4), "bn3", 4)])
    model = b.model((None, 3, 9, 9), x, 4)
    reference, folded, expectation = expected(model)
    found = check_local(reference, folded, expectation, [inputs_for(model, 0)])
    assert [(one.kind, one.linear) for one in found.results] == [("site", "one"), ("region", "two"), ("site", "three")]


def test_a_plan_that_is_not_exact_is_seen_without_any_rounding() -> None:
    """The exact fold in float64 must give the reference's outputs: a wrong plan cannot hide behind the certificate."""
    model = network(MAKES[0])
    reference, folded, expectation = expected(model)
    (edit,) = [edit for edit in expectation.plan.edits if isinstance(edit, SetWeights)]
    wrong = dataclasses.replace(edit, weight=mul(Scalar(1 + 1e-6), edit.weight))
    edits = tuple(wrong if other is edit else other for other in expectation.plan.edits)
    plan = dataclasses.replace(expectation.plan, edits=edits)
    x = inputs_for(model, 0)
    assert check_regions(reference, folded, expectation, [x]).apart == {}
    apart = check_regions(reference, folded, dataclasses.replace(expectation, plan=plan), [x]).apart
    assert list(apart) == ["output"]
    assert 1e-8 < apart["output"] < 1e-5


@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners", "asymmetric"])
@pytest.mark.parametrize("scales", [(2.0, 2.0), (1.7, 2.3), (0.6, 0.5)])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_a_norm_behind_an_interpolation_has_a_bound(mode: str, scales: tuple[float, float], coordinates: str) -> None:
    for seed in range(3):
        b = Builder(np.random.default_rng(seed))
        sizes = b.constant("scales", np.array([1.0, 1.0, *scales]))
        x = b.node(
            "Resize", [conv(b, "input", "conv", 3, 4), "", sizes], mode=mode, coordinate_transformation_mode=coordinates
        )
        model = b.model((None, 3, 9, 9), b.node("Sigmoid", [b.batch_norm(x, "bn", 4)]), 4)
        (result,) = [result for _, result in checked(model, seed=seed).results]
        assert result.holds, result.sentence()
        assert not result.note
        assert 0.001 < result.worst_ratio < 1
        assert [found.bad > 0 for _, found in checked(model, times(1.01), seed).results] == [True]


def test_an_activation_of_unknown_accuracy_is_said_to_have_no_bound() -> None:
    b = Builder(np.random.default_rng(0))
    x = b.batch_norm(b.node("Elu", [conv(b, "input", "one", 3, 4)]), "bn", 4)
    found = checked(b.model((None, 3, 7, 7), conv(b, x, "two", 4, 5, 3, 1), 4))
    (result,) = [result for _, result in found.results]
    assert result.note.startswith("measured, not bounded: Elu 'elu_")
    assert "states no accuracy" in result.note
    assert result.bad == 0


def test_what_has_no_float64_meaning_is_measured_and_not_bounded() -> None:
    b = Builder(np.random.default_rng(0))
    x = conv(b, b.batch_norm("input", "bn", 4), "conv", 4, 4)
    model = b.model((None, 4, 7, 7), b.node("Add", [x, b.node("RandomNormalLike", [x])]), 4)
    found = checked(model)
    assert not found.results
    assert {result.tensor for result in found.unbounded} == {"conv.weight.folded", "conv.bias.folded"}
    assert all("random" in result.note for result in found.unbounded)


def test_points_are_equal_values_and_not_equal_names() -> None:
    """A norm behind a pool goes into the convolution before it: what the pool reads is another number than it was."""
    b = Builder(np.random.default_rng(0))
    pooled = b.node("AveragePool", [conv(b, "input", "conv", 3, 4)], kernel_shape=[2, 2])
    model = b.model((None, 3, 8, 8), b.node("Relu", [b.batch_norm(pooled, "bn", 4)]), 4)
    reference, _, expectation = expected(model)
    points = exact_points(reference, expectation.plan.edits, [inputs_for(model, 0, batch=2)])
    same = dict(points.same)
    assert same.pop("input") == "input"
    assert same.pop("output") == "output"
    assert same == {pooled: model.graph.node[2].output[0]}


def truncated(array: Any, bits: int = 11) -> Any:
    """Rounded to so many bits of significand, as the operands of a TF32 product are."""
    significand, exponent = np.frexp(array.astype(np.float64))
    return np.ldexp(np.round(significand * 2.0**bits) / 2.0**bits, exponent)


def test_operands_that_are_rounded_first_have_a_wider_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 by hand: weights and inputs with 11 bits. The plain bound raises an alarm, that for TF32 holds."""
    import bnfold.parity.local.at_regions as module

    model = network(MAKES[0])
    reference, folded, expectation = expected(model)
    x = inputs_for(model, 0, batch=4)
    real = module.run

    def coarse(session: Any, feeds: Any) -> Any:
        return real(session, {name: truncated(array).astype(array.dtype) for name, array in feeds.items()})

    def shrunk(graph: ir.Model) -> ir.Model:
        for name in ("conv.weight", "conv.weight.folded"):
            if name in graph.graph.initializers:
                value = graph.graph.initializers[name]
                array = value.const_value.numpy()  # type: ignore[union-attr]
                value.const_value = ir.tensor(truncated(array).astype(array.dtype), name=name)
        return graph

    plain = check_regions(reference, shrunk(folded), expectation, [x]).results[0][1]
    assert plain.bad
    monkeypatch.setattr(module, "run", coarse)
    wide = check_regions(reference, folded, expectation, [x], operands=2.0**-11).results[0][1]
    assert wide.holds
    assert 0.001 < wide.worst_ratio < 1


def test_the_channels_that_are_wrong_are_named() -> None:
    def spoil(folded: ir.Model, _: Expectation) -> None:
        value = folded.graph.initializers["conv.weight.folded"]
        array = value.const_value.numpy().copy()  # type: ignore[union-attr]
        array[[1, 3]] *= 1.01
        value.const_value = ir.tensor(array, name=value.name)

    ((_, found),) = checked(network(MAKES[0]), spoil).results
    assert found.bad_channels == (1, 3)
    assert "in channels 1, 3, differ by more than rounding can explain" in found.sentence()
