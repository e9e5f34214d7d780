"""Random ONNX graphs: whatever the plan does, the graph computes what it computed, and its certificate holds."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
import pytest
from facts_graphs import Drawn, Seeded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx_networks import broken, close, fold_of
from onnx_random_campaign import MOVES, TOLERANCE, problem, seeded
from onnx_random_graphs import grow

from bnfold.parity.oracle import run_float64
from bnfold.parity.weights.certificate import certify, expect

# What these run is measured by the tests that name it; to measure it here too would take more than twice the time.
pytestmark = pytest.mark.no_cover

FOUND = (
    26,  # GlobalMaxPool over other than two axes of space, which the reference evaluator of ONNX takes for others
    43,  # a model that ONNX Runtime can run, but not optimise, folded or not
    2177,  # Clip-6 with no upper bound of its own, in float64
    2616,  # float64: ONNX Runtime's optimiser rounds a factor to float32
    3615,  # float16: it fuses what is left of norms less exactly than it runs them
    4836,  # outputs of so few elements that the unfolded network was much nearer to the truth by luck
    8550,
    9980,
)
RELAXED = [
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.large_base_example,
    HealthCheck.filter_too_much,
]


@pytest.mark.parametrize("moves", MOVES)
@pytest.mark.parametrize("seed", [*range(150), *(seed for seed in FOUND if seed >= 150)])
def test_no_fold_changes_what_a_random_graph_computes(seed: int, moves: str) -> None:
    assert not problem(seeded(seed), moves)


@settings(max_examples=25, suppress_health_check=RELAXED)
@given(st.data())
def test_no_fold_changes_what_a_drawn_graph_computes(data: st.DataObject) -> None:
    """The same, where a failure shrinks."""
    sample = grow(Drawn(data.draw), data.draw(st.integers(0, 1 << 20)))
    for moves in MOVES:
        assert not problem(sample, moves)


def test_the_graphs_have_every_spelling_and_outcome() -> None:
    found: Counter[str] = Counter()
    opsets = set()
    for seed in range(200):
        model = grow(Seeded(seed), seed).model
        opsets.add(model.opset_import[0].version)
        found.update({node.op_type for node in model.graph.node})
        for moves in MOVES:
            rows = fold_of(model, moves=moves).report.norms
            found.update(row.outcome for row in rows)
            found.update(row.reason for row in rows)
    assert opsets >= {9, 10, 11, 12, 13, 17, 18, 19, 21, 24, 25}
    assert found.keys() >= {
        "Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "Concat", "Sum", "Split", "Gather", "Slice",
        "Pad", "Resize", "DepthToSpace", "SpaceToDepth", "Transpose", "Reshape", "ReduceMean", "MaxPool",
        "AveragePool", "PRelu",
    }  # fmt: skip
    assert found["folded"] > 200
    assert found["kept"] > 50
    assert found["reduced"] > 4
    assert found.keys() >= {"OTHER_READER", "NO_LINEAR_BEFORE", "AXIS_MISMATCH", "PAD_SHIFT", "COSTS_MORE"}


def test_a_broken_fold_is_seen() -> None:
    """Negative control: the certificate sees each channel that is off; the outputs show nearly all of them."""
    shown: list[bool] = []
    for seed in range(60):
        sample = seeded(seed)
        result = fold_of(sample.model)
        expectation = expect(ir.from_proto(sample.model), result.report)
        if not result.fold_map:
            continue
        inputs = sample.inputs[0]
        truth = list(run_float64(result.model, inputs).values())
        for wrong in broken(result, result.fold_map[-1]["tensor"]):
            assert not certify(expectation, ir.from_proto(wrong)).holds
            shown.append(not close(list(run_float64(wrong, inputs).values()), truth, TOLERANCE))
    assert len(shown) > 100
    assert sum(shown) > 0.8 * len(shown)
