from __future__ import annotations

import importlib.util
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from parity_mutants import spoil
from parity_networks import Layer, fold, inputs_for, single, small_cnn

from bnfold.bundle import load_bundle
from bnfold.bundle.manifest import TensorSpec
from bnfold.errors import ParityError
from bnfold.parity.evidence import Evidence
from bnfold.parity.hard_rule import HardCorner
from bnfold.parity.search.coordinate import coordinate_search
from bnfold.parity.search.seeking import seek, worst_input
from bnfold.parity.search.worst import Pair, WorstInput, apart, in_batches
from bnfold.parity.triangle import Corner
from bnfold.parity.weights.certificate import expect

HAS_TORCH = importlib.util.find_spec("torch") is not None
WAYS = [pytest.param(True, marks=pytest.mark.skipif(not HAS_TORCH, reason="needs torch")), False]
QUICK = {"steps": 15, "evaluations": 600}


def pair_of(model: onnx.ModelProto, folded: onnx.ModelProto, *, decided: bool = True, batch: int = -1) -> Pair:
    x = inputs_for(model)["input"]
    specs = [TensorSpec("input", x.dtype.name, (batch, *x.shape[1:]))]
    return Pair(model, folded, specs, "output" if decided else None)


def faulty(model: onnx.ModelProto, fault: str) -> onnx.ModelProto:
    return spoil(ir.to_proto(fold(model)[1]), expect(ir.from_proto(model)).sites[0], fault)


# ------------------------------------------------------------------------------------------ coordinate search


def test_coordinate_search_finds_the_corner_of_a_linear_function() -> None:
    slopes = np.random.default_rng(0).normal(size=40)
    found = coordinate_search(lambda x: x @ slopes, np.zeros((1, 40)), -1.0, 2.0, 2500, seed=0)
    best = np.sum(np.where(slopes > 0, 2 * slopes, -slopes))
    assert found.value > 0.97 * best
    assert found.evaluations == 2500
    assert found.best.min() >= -1
    assert found.best.max() <= 2


def test_coordinate_search_keeps_to_its_budget_to_whole_numbers_and_to_the_seed() -> None:
    asked: list[Any] = []

    def difference(x: Any) -> Any:
        asked.append(x)
        return -((x - 3.2) ** 2).sum(axis=1)

    start = np.zeros((3, 5))
    found = [coordinate_search(difference, start, 0, 9, 401, seed=4, whole=True) for _ in range(2)]
    assert np.array_equal(found[0].best, found[1].best)
    assert sum(map(len, asked)) == 802
    assert all((x == np.round(x)).all() and x.min() >= 0 and x.max() <= 9 for x in asked)
    assert found[0].value > -1.5


def test_coordinate_search_stops_in_time_and_takes_no_nan_for_a_find() -> None:
    found = coordinate_search(
        lambda x: np.where(x[:, 0] > 0, np.nan, x[:, 0]), np.full((2, 3), -1.0), -1, 1, 10**9, seed=0,
        deadline=time.monotonic() + 0.05,
    )  # fmt: skip
    assert found.value <= 0
    assert found.evaluations < 10**9


# ----------------------------------------------------------------------------------------------------- search


@pytest.mark.parametrize("gradient", WAYS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_right_fold_holds_at_the_worst_input_found(gradient: bool, dtype: str) -> None:
    model = small_cnn(3, dtype)
    pair = pair_of(model, ir.to_proto(fold(model)[1]))
    found = seek(pair, inputs_for(model, 3, batch=20), gradient=gradient, **QUICK)
    assert found.kind == ("gradient" if gradient else "coordinate")
    assert found.status == "holds", found.sentences()
    assert found.sentences() == ()
    assert found.difference > 0
    assert found.corner.output == "output"
    assert found.steps == (15 if gradient else 600)
    assert math.isfinite(found.ratio)


@pytest.mark.parametrize("gradient", WAYS)
def test_a_fault_that_hardly_shows_on_data_is_found_larger(gradient: bool) -> None:
    model = small_cnn(1)
    wrong = faulty(model, "one channel times 1.0001")
    found = seek(pair_of(model, wrong), inputs_for(model, 1, batch=20), gradient=gradient, **QUICK)
    assert found.ratio > 3
    assert found.status == "fails"
    assert "worst input" in found.sentences()[0]
    right = seek(
        pair_of(model, ir.to_proto(fold(model)[1])), inputs_for(model, 1, batch=20), gradient=gradient, **QUICK
    )
    assert found.difference > 10 * right.difference


@pytest.mark.parametrize("gradient", WAYS)
def test_finds_an_input_where_a_wrong_fold_decides_otherwise(gradient: bool) -> None:
    model = small_cnn()
    found = seek(pair_of(model, faulty(model, "bias lost")), inputs_for(model, batch=20), gradient=gradient, **QUICK)
    assert found.top1_same is False
    assert found.decisions is not None
    assert not found.decisions.holds
    assert found.margin is not None
    assert any("top-1" in sentence for sentence in found.sentences())


@pytest.mark.parametrize("gradient", WAYS)
def test_stays_within_the_range_and_finds_the_same_again(gradient: bool) -> None:
    model = small_cnn(2)
    x = inputs_for(model, 2, batch=20)
    pair = pair_of(model, ir.to_proto(fold(model)[1]))
    one, other = (seek(pair, x, gradient=gradient, seed=5, **QUICK) for _ in range(2))
    assert np.array_equal(one.inputs["input"], other.inputs["input"])
    assert one.difference == other.difference
    assert one.inputs["input"].dtype == np.float32
    assert one.inputs["input"].min() >= x["input"].min()
    assert one.inputs["input"].max() <= x["input"].max()


@pytest.mark.parametrize("gradient", WAYS)
def test_a_fixed_batch_size(gradient: bool) -> None:
    model = small_cnn()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 3
    folded = ir.to_proto(fold(model)[1])
    x = inputs_for(small_cnn(), batch=6)
    found = seek(pair_of(model, folded, batch=3), x, gradient=gradient, steps=3, evaluations=100)
    assert found.status == "holds", found.sentences()


@pytest.mark.parametrize("gradient", WAYS)
def test_outputs_without_classes(gradient: bool) -> None:
    model = single(Layer(groups=2))
    found = seek(
        pair_of(model, ir.to_proto(fold(model)[1]), decided=False), inputs_for(model, batch=9), gradient=gradient,
        **QUICK,
    )  # fmt: skip
    assert found.status == "holds", found.sentences()
    assert found.top1_same is None
    assert found.margin is None


def of_shades(wrong: bool = False) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A network that takes uint8, and its fold."""
    model = small_cnn()
    folded = ir.to_proto(fold(model)[1]) if not wrong else faulty(model, "one channel times 1.0001")
    for each in (model, folded):
        for node in each.graph.node:
            node.input[:] = ["scaled" if name == "input" else name for name in node.input]
        each.graph.initializer.append(numpy_helper.from_array(np.array(1 / 64, np.float32), "per_shade"))
        each.graph.node.insert(0, helper.make_node("Cast", ["input"], ["real"], to=onnx.TensorProto.FLOAT))
        each.graph.node.insert(1, helper.make_node("Mul", ["real", "per_shade"], ["scaled"]))
        each.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    return model, folded


@pytest.mark.parametrize("wrong", [False, True])
def test_integers_are_searched_by_coordinates(wrong: bool) -> None:
    model, folded = of_shades(wrong)
    shades = np.random.default_rng(0).integers(3, 200, (20, 1, 8, 8)).astype(np.uint8)
    pair = Pair(model, folded, [TensorSpec("input", "uint8", (-1, 1, 8, 8))], "output")
    found = seek(pair, {"input": shades}, evaluations=600)
    assert found.kind == "coordinate"
    assert "integers" in found.note
    assert found.inputs["input"].dtype == np.uint8
    assert found.inputs["input"].min() >= shades.min()
    assert found.inputs["input"].max() <= shades.max()
    assert found.status == ("fails" if wrong else "holds"), found.sentences()


@pytest.mark.parametrize("gradient", WAYS)
def test_several_inputs_move_together(gradient: bool) -> None:
    model, folded = small_cnn(), faulty(small_cnn(), "one channel times 1.0001")
    for each in (model, folded):
        for node in each.graph.node:
            node.input[:] = ["both" if name == "input" else name for name in node.input]
        each.graph.node.insert(0, helper.make_node("Add", ["input", "more"], ["both"]))
        more = each.graph.input.add()
        more.CopyFrom(each.graph.input[0])
        more.name = "more"
    x = {**inputs_for(small_cnn(), batch=20), "more": 0.1 * inputs_for(small_cnn(), 1, batch=20)["input"]}
    specs = [TensorSpec(name, "float32", (-1, 1, 8, 8)) for name in ("input", "more")]
    found = seek(Pair(model, folded, specs, "output"), x, gradient=gradient, **QUICK)
    assert found.status == "fails"
    assert found.ratio > 2
    assert np.abs(found.inputs["more"]).max() <= np.abs(x["more"]).max()
    assert not any((found.inputs["more"][0] == row).all() for row in x["more"]), "the second input did not move"


def test_an_operator_that_torch_does_not_know_leads_to_the_coordinate_search() -> None:
    model = small_cnn()
    folded = ir.to_proto(fold(model)[1])
    for each in (model, folded):
        each.graph.initializer.append(numpy_helper.from_array(np.array([10], np.int64), "ten"))
        last = each.graph.node[-1]
        last.output[:] = ["scores"]
        each.graph.node.append(helper.make_node("TopK", ["scores", "ten"], ["output", "places"], name="best"))
    found = seek(pair_of(model, folded, decided=False), inputs_for(small_cnn(), batch=9), evaluations=100)
    assert found.kind == "coordinate"
    assert "TopK 'best'" in found.note or "torch" in found.note
    assert found.status == "holds", found.sentences()


def test_a_folded_model_that_is_nan_everywhere_fails() -> None:
    model = small_cnn()
    found = seek(pair_of(model, faulty(model, "one element NaN")), inputs_for(model, batch=9), steps=2, evaluations=60)
    assert found.status == "fails"
    assert (found.difference, found.on_data, found.ratio) == (math.inf, math.inf, 1.0)


def test_says_why_nothing_can_be_searched() -> None:
    model = small_cnn()
    pair = pair_of(model, ir.to_proto(fold(model)[1]))
    with pytest.raises(ParityError, match="all of one value"):
        seek(pair, {"input": np.ones((4, 1, 8, 8), np.float32)})


def test_a_bundle(pristine: Path) -> None:
    said: list[str] = []
    found = worst_input(Evidence(load_bundle(pristine)), seconds=20, progress=said.append)
    assert found.status == "holds", found.sentences()
    assert found.inputs["input"].shape[1:] == (1, 8, 8)
    assert any("worst input" in text for text in said)


def test_too_little_time_for_gradients_is_spent_on_coordinates() -> None:
    model = small_cnn()
    found = seek(pair_of(model, ir.to_proto(fold(model)[1])), inputs_for(model, batch=9), seconds=0)
    assert found.kind == "coordinate"
    assert "too few" in found.note or "torch" in found.note
    assert found.steps >= 1
    assert found.status == "holds", found.sentences()


# ---------------------------------------------------------------------------------------------------- records


def test_the_difference_of_what_is_not_finite() -> None:
    one, other = np.array([1.0, np.inf, np.nan, 2.0]), np.array([1.5, np.inf, np.nan, np.inf])
    assert apart(one, other).tolist() == [0.5, 0.0, 0.0, math.inf]


@pytest.mark.parametrize("rows", [1, 3, 4, 7])
def test_fixed_batches_are_filled_up_and_cut_off(rows: int) -> None:
    def ask(inputs: Any) -> Any:
        assert len(inputs["x"]) == 3
        return {"y": inputs["x"] * 2}

    x = np.arange(rows, dtype=np.float32)
    assert np.array_equal(in_batches(ask, {"x": x}, 3)["y"], 2 * x)


def test_a_decision_that_no_rounding_excuses_fails_alone() -> None:
    corner = Corner("y", 4, 1e-7, 1e-7, 1e-7, 1e-7, 1.0, 1.0)
    hard = HardCorner("worst input", corner, (0.0, 0.0), 0.0, 2, 0)
    from bnfold.parity.decisions import decide

    one, other = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    for answers, status in ((one, "holds"), (other, "fails")):
        found = WorstInput(
            "gradient", {}, "y", 0.0, 0.0, None, None, 1, (hard,),
            decide(one, answers, noise=1e-6, truth=lambda rows: one[rows]),
        )  # fmt: skip
        assert found.status == status
    assert found.ratio == 1.0
