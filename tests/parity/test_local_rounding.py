"""T2 where rounding is at its worst: a right fold keeps the bound, and next to each, a wrong one does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from parity_networks import Builder, inputs_for, numpy_dtype

from bnfold.folding.onnx_graph import fold
from bnfold.parity.local.bounds import Rounding
from bnfold.parity.local.checking import Local, check_local
from bnfold.parity.local.running import State, analyse
from bnfold.parity.weights.certificate import expect
from bnfold.parity.weights.exact import FORMATS

Array = np.ndarray[Any, np.dtype[Any]]
Spoil = Callable[[Array], Array]


def checked(model: onnx.ModelProto, x: Mapping[str, Array], tensor: str = "", spoil: Spoil | None = None) -> Local:
    """T2 on a fold, one of whose tensors may be spoilt: the one of a name, or the first."""
    reference = ir.from_proto(model)
    folded, report, _ = fold(reference, moves="all")
    expectation = expect(reference, report)
    if spoil is not None:
        tensor = tensor or expectation.tensors[0].tensor
        value = folded.graph.initializers[tensor]
        array = value.const_value.numpy()  # type: ignore[union-attr]
        value.const_value = ir.tensor(spoil(array.copy()).astype(array.dtype), name=tensor)
    return check_local(reference, folded, expectation, [x])


def one(found: Local) -> Any:
    (result,) = found.results
    assert not result.problem
    assert not result.note
    return result


@pytest.mark.parametrize(
    ("dtype", "weight", "gamma"), [("float32", 1e-3, 2e-42), ("float16", 1e-3, 4e-5), ("float16", 2e-3, 8e-4)]
)
def test_folded_weights_that_are_all_rounded_to_a_subnormal_the_same_way(
    dtype: str, weight: float, gamma: float
) -> None:
    """A constant kernel: the half steps that its folded weights are off by add up."""
    b = Builder(np.random.default_rng(0), dtype)
    y = b.node("MatMul", ["input", b.constant("w", np.full((512, 7), weight) * np.exp(0.01 * b.normal(1, 7)))])
    parts = {"gamma": np.full(7, gamma), "beta": np.zeros(7), "mean": np.zeros(7), "variance": np.ones(7)}
    y = b.node("BatchNormalization", [y, *(b.constant(name, values) for name, values in parts.items())])
    model = b.model((None, 512), y, 2)
    x = {"input": np.abs(100 * b.normal(50, 512)).astype(numpy_dtype(dtype))}
    found = one(checked(model, x))
    assert found.holds, found.sentence()
    assert 0.3 < found.worst_ratio < 1
    step = FORMATS[dtype].smallest

    def two_steps_off(array: Array) -> Array:
        array[:, 3] = (array[:, 3].astype(np.float64) + 2 * step).astype(array.dtype)
        return array

    assert one(checked(model, x, "w.folded", two_steps_off)).bad_channels == (3,)


def computed_statistics(b: Builder, x: str, channels: int) -> str:
    """A norm whose graph takes its variance from the mean of squares, and so loses half of the digits."""
    mean = b.constant("mean", np.full(channels, 100.0) + b.rng.uniform(0, 1e-3, channels))
    squares = b.constant("squares", np.full(channels, 1e4) + b.rng.uniform(0.5, 1.5, channels))
    variance = b.node("Sub", [squares, b.node("Mul", [mean, mean])])
    near = b.node("Sub", [mean, b.constant("middle", np.full(channels, 99.9))])
    gamma, beta = b.constant("gamma", 1 + b.rng.uniform(size=channels)), b.constant("beta", b.normal(channels))
    return b.node("BatchNormalization", [x, gamma, beta, near, variance])


@pytest.mark.parametrize("behind", [True, False])
def test_statistics_that_the_graph_computes_bring_their_error_along(behind: bool) -> None:
    for seed in range(3):
        b = Builder(np.random.default_rng(seed))
        if behind:
            y = computed_statistics(b, b.node("MatMul", ["input", b.constant("w", b.normal(5, 5))]), 5)
        else:
            y = b.node("Gemm", [computed_statistics(b, "input", 5), b.constant("w", b.normal(5, 5))])
        model = b.model((None, 5), y, 2)
        x = inputs_for(model, seed, batch=50)
        found = one(checked(model, x))
        assert found.holds, found.sentence()
        assert 0.01 < found.worst_ratio < 1
        assert one(checked(model, x, "w.folded", lambda array: array * 1.05)).bad


def test_a_variance_that_may_come_to_nothing_has_no_bound() -> None:
    b = Builder(np.random.default_rng(0))
    y = b.node("MatMul", ["input", b.constant("w", b.normal(4, 3))])
    mean = b.node("Mul", [b.constant("half", np.full(3, 60.0)), b.constant("two", np.full(3, 2.0))])
    squares = b.constant("squares", np.full(3, 14400 + 2.0**-10))
    variance = b.node("Sub", [squares, b.node("Mul", [mean, mean])])
    parts = [b.constant(name, b.normal(3)) for name in ("gamma", "beta", "mean")]
    y = b.node("BatchNormalization", [y, *parts, variance], epsilon=1e-12)
    model = b.model((None, 4), y, 2)
    (found,) = checked(model, inputs_for(model)).results
    assert "may round to zero" in found.problem


@pytest.mark.parametrize("scales", [(1.0, 2.0, 2.0, 1.0), (1.0, 2.0, 1.0, 1.0)])
def test_an_interpolation_with_channels_last_looks_at_its_neighbours(scales: tuple[float, ...]) -> None:
    """Rows of very unlike sizes, along axis 1."""
    for seed in range(3):
        b = Builder(np.random.default_rng(seed))
        y = b.node("MatMul", ["input", b.constant("w", b.normal(3, 5))])
        y = b.node("Resize", [y, "", b.constant("scales", np.array(scales))], mode="linear")
        model = b.model((None, 4, 6, 3), b.node("Sigmoid", [b.hand_written(y, "norm", (5,))]), 4)
        x = inputs_for(model, seed)
        x["input"] *= (10.0 ** b.rng.uniform(-4, 4, (3, 4, 1, 1))).astype(np.float32)
        found = one(checked(model, x))
        assert found.holds, found.sentence()
        assert 0.01 < found.worst_ratio < 1
        assert one(checked(model, x, "w.folded", lambda array: array * 1.01)).bad


def test_a_few_subnormal_weights_do_not_widen_the_bound_of_the_others() -> None:
    """float16: one subnormal weight may be off by half a hundredth; the others are not, and a wrong one shows."""
    b = Builder(np.random.default_rng(0), "float16")
    weight = np.abs(b.weight(6, 4, 3, 3))
    weight[5, 3, 2, 2] = 1.2e-5
    parts = {"gamma": np.ones(4), "beta": b.normal(4), "mean": b.normal(4), "variance": np.ones(4)}
    y = b.node("BatchNormalization", ["input", *(b.constant(name, values) for name, values in parts.items())])
    y = b.node("Conv", [y, b.constant("w", weight)])
    model = b.model((None, 4, 8, 8), b.node("Sigmoid", [y]), 4)
    x = {"input": np.abs(inputs_for(model, 0, batch=8)["input"])}
    assert one(checked(model, x)).holds

    def one_off(array: Array) -> Array:
        array[2] *= 1.006
        return array

    assert one(checked(model, x, "w.folded", one_off)).bad_channels == (2,)


def test_a_source_may_be_a_whole_number() -> None:
    """Where a slice begins is an input of the graph, whose name comes before that of the data."""
    b = Builder(np.random.default_rng(0))
    y = b.node("Conv", ["input", b.constant("w", b.weight(4, 3, 3, 3))])
    parts = {"begin": np.array([1]), "end": np.array([5]), "axis": np.array([2])}
    y = b.node("Slice", [y, *(b.constant(name, values) for name, values in parts.items())])
    model = b.model((None, 3, 8, 8), b.node("Sigmoid", [b.batch_norm(y, "norm", 4)]), 4)
    del model.graph.initializer[next(at for at, t in enumerate(model.graph.initializer) if t.name == "begin")]
    model.graph.input.append(helper.make_tensor_value_info("begin", onnx.TensorProto.INT64, [1]))
    x = {"input": b.normal(3, 3, 8, 8).astype(np.float32), "begin": np.array([1])}
    assert one(checked(model, x)).holds
    assert one(checked(model, x, "w.folded", lambda array: array * 1.01)).bad


@pytest.mark.parametrize("large", [1e6, 1e8, 1e10])
def test_a_shift_beside_a_channel_of_another_size_is_no_point(large: float) -> None:
    """What the pool gives is another number in the folded graph, if only by a shift that is 1e-10 of one channel."""
    b = Builder(np.random.default_rng(0))
    weight = b.weight(4, 1, 3, 3)
    weight[0] *= large
    y = b.node("Conv", ["input", b.constant("w", weight), b.constant("c", b.normal(4))], group=4)
    y = b.node("MaxPool", [y], kernel_shape=[2, 2])
    y = b.node(
        "Mul", [b.node("Add", [y, b.constant("shift", b.normal(4, 1, 1))]), b.constant("one", np.ones((4, 1, 1)))]
    )
    model = b.model((None, 4, 8, 8), b.node("Sigmoid", [y]), 4)
    x = inputs_for(model)
    found = checked(model, x)
    assert not found.apart
    (result,) = [result for result in found.results if result.tensor]
    assert result.holds, result.sentence()
    assert 0 < result.worst_ratio < 1
    spoilt = checked(model, x, "c.folded", lambda array: array + 0.01 * np.eye(4)[2])
    assert [result.bad_channels for result in spoilt.results if result.bad] == [(2,)]


def test_a_size_that_float32_rounds_otherwise_than_float64_has_no_bound() -> None:
    """10 times float32(0.7) is 7 in float32 and less in float64, and the size of an interpolation its floor."""
    notes = {}
    for scale in (0.7, 0.75):
        b = Builder(np.random.default_rng(0))
        y = b.node("Conv", ["input", b.constant("w", b.weight(4, 3, 3, 3))])
        y = b.node("Resize", [y, "", b.constant("scales", np.array([1, 1, 1, scale]))], mode="nearest")
        model = b.model((None, 3, 12, 12), b.node("Sigmoid", [b.batch_norm(y, "norm", 4)]), 4)
        (found,) = checked(model, inputs_for(model)).results
        assert found.holds
        notes[scale] = found.note
    assert "its shape is (3, 4, 10, 7) in the runtime and (3, 4, 10, 6) in float64" in notes[0.7]
    assert not notes[0.75]


@pytest.mark.parametrize("operator", ["Pad", "Clip"])
def test_the_error_of_a_border_or_a_limit_is_carried_on(operator: str) -> None:
    """A number that was rounded itself takes what it is written into as far off."""
    node = helper.make_node(operator, ["x", "pads", "c"] if operator == "Pad" else ["x", "c"], ["y"])
    known = {
        "x": State.of(np.ones((1, 2, 3)), is_data=True),
        "pads": State.of(np.array([0, 0, 1, 0, 0, 0])),
        "c": State.of(np.array(3.0)),
    }
    by, opsets = Rounding.of(FORMATS["float32"]), [helper.make_opsetid("", 18)]
    assert analyse([node], known, "y", by, opsets).error.max() == 0
    known["c"] = State.of(np.array(3.0), np.array(0.25))
    found = analyse([node], known, "y", by, opsets)
    assert found.error.max() == 0.25
    assert found.size.max() == 3


def _pool(b: Builder, x: str) -> str:
    attributes = {"pads": [1, 1, 0, 1], "count_include_pad": int(b.rng.integers(2))}
    return b.node("AveragePool", [x], kernel_shape=[2, 3], **attributes)


def _largest(b: Builder, x: str) -> str:
    return b.node("MaxPool", [x], kernel_shape=[2, 2], pads=[0, 1, 1, 0])


def _leaky(b: Builder, x: str) -> str:
    return b.node("LeakyRelu", [x], alpha=float(b.rng.choice([0.1, 3.0, -0.5])))


def _slopes(b: Builder, x: str) -> str:
    return b.node("PRelu", [x, b.constant(f"slopes{b.count}", b.normal(4, 1, 1))])


def _larger(b: Builder, x: str) -> str:
    name = f"scales{b.count}"
    b.tensors.append(numpy_helper.from_array(np.array([1, 1, 1.6, 0.75], np.float32), name))
    return b.node("Resize", [x, "", name], mode="linear")


def _mirrored(b: Builder, x: str) -> str:
    pads = b.constant(f"pads{b.count}", np.array([0, 0, 1, 0, 0, 0, 0, 1]))
    return b.node("Pad", [x, pads], mode="reflect")


def unlike_sizes(shape: tuple[int, ...], rng: np.random.Generator, decades: float) -> Array:
    """Data whose sizes differ by decades, from element to element, channel to channel, or place to place."""
    axes = [shape, (*shape[:2], 1, 1), (shape[0], 1, *shape[2:])][int(rng.integers(3))]
    return rng.normal(size=shape) * 10.0 ** rng.uniform(-decades, decades, axes)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_no_false_alarm_on_chains_of_carriers_and_data_of_unlike_sizes(dtype: str) -> None:
    alarms, folds, caught, worst = [], 0, 0, 0.0
    for seed in range(30):
        b = Builder(np.random.default_rng(seed), dtype)
        x = b.node("Conv", ["input", b.constant("w", b.weight(4, 4, 3, 3)), b.constant("c", b.normal(4))])
        for make in b.rng.choice([_pool, _largest, _leaky, _slopes, _larger, _mirrored], int(b.rng.integers(1, 4))):
            x = make(b, x)
        x = b.batch_norm(x, "one", 4) if seed % 2 else b.hand_written(x, "one", (4, 1, 1))
        if seed % 3:
            x = b.node("Conv", [b.batch_norm(x, "two", 4), b.constant("v", b.weight(3, 4, 2, 2))])
        model = b.model((None, 4, 12, 12), b.node("Sigmoid", [x]), 4)
        wide = 5 if dtype == "float32" else 0.8
        data = {"input": unlike_sizes((3, 4, 12, 12), b.rng, wide).astype(numpy_dtype(dtype))}
        found = checked(model, data)
        alarms += [(seed, result.sentence()) for result in found.results if not result.holds]
        worst = max([worst, *(result.worst_ratio for result in found.results)])
        if not found.results:
            continue  # no norm could be folded
        folds += 1
        caught += any(result.bad for result in checked(model, data, spoil=lambda array: array * 1.1).results)
    assert not alarms
    assert 0.05 < worst < 1
    assert folds > 20
    assert caught >= folds - 1  # in float16, one sum is a hundredth of the bias that is added to it
